"""Registry of rewards, and weighted sums of rewards.

The built-in rewards are in `builtin`, `reference_metrics` and `classifier`; `register_reward` adds another one.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from text_gym.arrays import FloatArray, outline
from text_gym.errors import OptionError
from text_gym.registry import Options, Registry
from text_gym.rewards.cached import CachedReward
from text_gym.rewards.calls import call_rewards, checked_scores
from text_gym.rewards.functions import FunctionReward, RewardFunction
from text_gym.rewards.reward import Reward
from text_gym.sequences import Batch
from text_gym.tasks.task import Task
from text_gym.validation import check_options, check_switch, finite_number, shown

OneReward = str | Reward | RewardFunction
RewardSpec = OneReward | Sequence[OneReward] | Mapping[str, float] | Mapping[OneReward, float]
"""A name, "name(option=value)", "module:attribute", a function, a Reward, a list of these, or {spec: weight}."""

REWARDS: Registry[RewardFunction] = Registry(
    "reward",
    {
        "bleu": "text_gym.rewards.builtin:BleuReward",
        "chrf": "text_gym.rewards.reference_metrics:ChrfReward",
        "classifier": "text_gym.rewards.classifier:ClassifierReward",
        "constant": "text_gym.rewards.builtin:ConstantReward",
        "exact_match": "text_gym.rewards.builtin:ExactMatchReward",
        "length": "text_gym.rewards.builtin:LengthReward",
        "likelihood": "text_gym.rewards.builtin:LikelihoodReward",
        "meteor": "text_gym.rewards.reference_metrics:MeteorReward",
        "random": "text_gym.rewards.builtin:RandomReward",
        "repetition": "text_gym.rewards.builtin:RepetitionReward",
        "rouge": "text_gym.rewards.reference_metrics:RougeReward",
        "rouge_l": "text_gym.rewards.builtin:RougeLReward",
        "ter": "text_gym.rewards.reference_metrics:TerReward",
        "validity": "text_gym.rewards.builtin:ValidityReward",
    },
)


class Score(NamedTuple):
    """Scores of a batch."""

    total: FloatArray
    """Weighted sum of the rewards, [n]."""
    terms: dict[str, FloatArray]
    """Score of each reward before weighting, [n], by name."""

    def __repr__(self) -> str:
        return outline(self)


class Scorer:
    """Weighted sum of one or more rewards for finished sequences.

    >>> from text_gym.tasks import make_task
    >>> task = make_task("grammar")
    >>> scorer = Scorer({"length": 0.1, "validity": 1.0}, task)
    >>> score = scorer(task.sample(2, seed=0))
    >>> sorted(score.terms), bool(np.allclose(score.total, 0.1 * score.terms["length"] + 1))
    (['length', 'validity'], True)

    Args:
        spec: The reward or rewards, see `RewardSpec`.
        task: The task whose sequences are scored.
        timeout: Maximum seconds per batch, for each reward; None sets no limit.
        trust: Whether "module:attribute" may import code; pass False for names that are read from a file.
    """

    def __init__(self, spec: RewardSpec, task: Task, timeout: float | None = None, trust: bool = True) -> None:
        """Create the rewards and prepare them for the task."""
        self.task = task
        if timeout is not None and finite_number("reward_timeout", timeout) <= 0:
            raise OptionError(f"reward_timeout={shown(timeout)} must be a number of seconds above 0, or None")
        self.timeout = None if timeout is None else float(timeout)
        self.weights: dict[str, float] = {}
        self.rewards: dict[str, Reward] = {}
        for reward, weight, label in _weighted(spec, trust):
            name = _distinct(label or reward.name or type(reward).__name__, self.rewards)
            self.weights[name] = finite_number(f"the weight of reward {name!r}", weight)
            self.prepare(reward)
            self.rewards[name] = reward

    def __str__(self) -> str:
        return " + ".join(
            f"{reward!r}" if self.weights[name] == 1 else f"{self.weights[name]:g} * {reward!r}"
            for name, reward in self.rewards.items()
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self})"

    def prepare(self, reward: Reward) -> None:
        """Prepare a reward for the task."""
        reward.prepare(self.task)

    def __call__(self, batch: Batch) -> Score:
        """Score a batch; a score that is not finite raises RewardError."""
        terms = call_rewards(self.rewards, batch, self.timeout)
        total = np.zeros(len(batch))
        with np.errstate(over="ignore"):
            for name, scores in terms.items():
                total += self.weights[name] * scores
        return Score(checked_scores("the weighted sum", total, batch), terms)


def make_reward(spec: OneReward, **options: object) -> Reward:
    """Create one reward from a name with options, "module:attribute", a function, or a `Reward`.

    The option cached=True wraps any of them in a `CachedReward`.

    >>> make_reward("bleu", n=2).name
    'bleu'
    """
    return _make_reward(spec, options, trust=True)


def _make_reward(spec: OneReward, options: dict[str, object], trust: bool) -> Reward:
    label = None
    if isinstance(spec, str):
        name, spec, spec_options = REWARDS.resolve(spec, trust)
        options = spec_options | options
        label = None if ":" in name else name
    cached = options.pop("cached", False)
    check_switch("cached", cached)
    reward = _make_one(spec, label, options)
    return CachedReward(reward) if cached else reward


def _make_one(spec: Reward | RewardFunction, label: str | None, options: Options) -> Reward:
    if inspect.isclass(spec) and issubclass(spec, Reward):
        if inspect.isabstract(spec):
            raise OptionError(f"{spec.__name__} is abstract; define score() in it")
        check_options(f"reward {label or spec.__name__!r}", spec, options)
        return spec(**options)
    if options:
        raise OptionError(
            f"{label or shown(spec)} takes no options but cached; only a Reward class takes options, or the name of one"
        )
    if isinstance(spec, Reward):
        return spec
    if callable(spec):
        return FunctionReward(spec, label)
    raise OptionError(
        f"{shown(spec)} is not a reward; give a name, a function of completions, a text_gym.Reward, "
        "a list of these, or a dict {reward: weight}"
    )


def register_reward(name: str, reward: type[Reward] | RewardFunction, replace: bool = False) -> None:
    """Register a `Reward` class, whose arguments become options, or a reward function under a name.

    >>> register_reward("shortness", lambda completions: [-len(c) for c in completions], replace=True)
    >>> make_reward("shortness").name
    'shortness'
    """
    REWARDS.register(name, reward, replace)


def registered_rewards() -> dict[str, str]:
    """Return the registered names, each with a one-line description."""
    return dict(sorted(REWARDS.describe().items()))


def _weighted(spec: RewardSpec, trust: bool) -> Iterator[tuple[Reward, object, str]]:
    """Yield each reward of a spec with its weight and its registered name, "" if it was not given by name."""
    pairs: Collection[tuple[OneReward, object]]
    if isinstance(spec, Mapping):
        pairs = spec.items()
    elif isinstance(spec, Sequence) and not isinstance(spec, str):
        pairs = [(part, 1.0) for part in spec]
    else:
        pairs = [(spec, 1.0)]
    if not pairs:
        raise OptionError("the list or dict of rewards is empty; give at least one reward")
    for part, weight in pairs:
        label = part if isinstance(part, str) and ":" not in part else ""
        yield _make_reward(part, {}, trust), weight, label


def _distinct(name: str, taken: Container[str]) -> str:
    candidate = name
    number = 2
    while candidate in taken:
        candidate = f"{name}#{number}"
        number += 1
    return candidate
