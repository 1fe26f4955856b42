"""What a finished sequence is worth: the protocol, how rewards combine, and how names become rewards.

A reward is a function that names the columns it wants, in the signature TRL's users know,

    def polite(completions, prompts, **columns) -> list[float]: ...

or a `Reward`, whose score() gets the whole `Batch`. The built-in ones are in `builtin`,
`reference_metrics` and `classifier`; `register_reward` adds a name of your own.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from text_gym.arrays import FloatArray
from text_gym.errors import OptionError, RewardError, TextGymError
from text_gym.registry import Registry
from text_gym.sequences import Batch
from text_gym.tasks.task import Task
from text_gym.validation import check_options, finite_number, suggest

RewardSpec = Any
"""A name, "name(option=value)", "module:attribute", a function, a Reward, a list of these, or {spec: weight}."""

COLUMNS: dict[str, Callable[[Batch], Any]] = {
    "completions": lambda batch: list(batch.texts),
    "prompts": lambda batch: batch.prompts,
    "references": lambda batch: batch.references,
    "completion_ids": lambda batch: batch.sentences,
    "tokens": lambda batch: batch.tokens,
    "lengths": lambda batch: batch.lengths,
}
"""What a reward function may ask for, beside the fields that the task's own data carry."""


TRAINER: dict[str, Any] = {"trainer_state": None, "log_extra": lambda *_: None, "log_metric": lambda *_: None}
"""What TRL's trainers pass beside columns, as it is without such a trainer."""


class Reward(ABC):
    """A score for each finished sequence of a batch. Subclass it and write score().

    A reward is shared and never copied, so that one which learns (a discriminator) may go on
    being trained while environments use it.

    >>> class Shout(Reward):
    ...     name = "shout"
    ...     def score(self, batch):
    ...         return [text.count("!") for text in batch.texts]
    """

    name: str = ""
    """What info["reward_terms"] and error messages call it; the class's name if empty."""

    def prepare(self, task: Task) -> None:  # noqa: B027 - most rewards need no preparation
        """Called once when an environment is made: refuse a task that lacks what score() needs."""

    @abstractmethod
    def score(self, batch: Batch) -> Sequence[float | None] | npt.NDArray[Any]:
        """One number for each row of the batch; None or 0 where the reward does not apply."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Reward:
        """Itself: Gymnasium copies what an EnvSpec holds, and a trained reward must stay one."""
        return self


class FunctionReward(Reward):
    """A plain function, called with the columns that its signature names."""

    def __init__(self, function: Callable[..., Any], name: str | None = None) -> None:
        """Read the function's signature."""
        self.function = function
        self.name = name or _name_of(function)
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError) as problem:
            raise RewardError(f"reward {self.name!r} has no readable signature: {problem}") from problem
        named = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        if any(p.kind is p.POSITIONAL_ONLY for p in named):
            raise RewardError(f"reward {self.name!r} takes positional-only arguments; columns are passed by name")
        self._wanted = {p.name: p.default is p.empty for p in named}
        self._wants_all = any(p.kind is p.VAR_KEYWORD for p in parameters)

    def prepare(self, task: Task) -> None:
        """Refuse a function that asks for a column nobody provides."""
        known = {*COLUMNS, *TRAINER, *(task.train.columns if task.conditional else ())}
        for name, required in self._wanted.items():
            if required and name not in known:
                raise RewardError(
                    f"reward {self.name!r} asks for {name!r}, which is no column of task {task.name!r}."
                    + suggest(name, known)
                )

    def score(self, batch: Batch) -> Sequence[float | None] | npt.NDArray[Any]:
        """Call the function with its columns."""
        wanted = dict.fromkeys([*COLUMNS, *batch.columns, *self._wanted]) if self._wants_all else self._wanted
        known = {*COLUMNS, *batch.columns, *TRAINER}
        answer = self.function(**{name: self.column(name, batch) for name in wanted if name in known})
        scores: Sequence[float | None] = _awaited(answer) if inspect.isawaitable(answer) else answer
        return scores

    def column(self, name: str, batch: Batch) -> Any:
        """What the function gets under a name."""
        if name in COLUMNS:
            return COLUMNS[name](batch)
        return batch.columns[name] if name in batch.columns else TRAINER[name]


REWARDS: Registry[Callable[..., object]] = Registry(
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
    """What a batch is worth."""

    total: FloatArray
    """The weighted sum, [n]."""
    terms: dict[str, FloatArray]
    """Each reward's own score before weighting, [n]."""


class Scorer:
    """One or more weighted rewards, checked: what an environment calls on sequences that ended.

    >>> from text_gym.tasks import make_task
    >>> task = make_task("grammar")
    >>> scorer = Scorer({"length": 0.1, "validity": 1.0}, task)
    >>> score = scorer(task.sample(2, seed=0))
    >>> sorted(score.terms), bool(np.allclose(score.total, 0.1 * score.terms["length"] + 1))
    (['length', 'validity'], True)
    """

    def __init__(self, spec: RewardSpec, task: Task) -> None:
        """Resolve the names, and let each reward check the task."""
        self.task = task
        self.weights: dict[str, float] = {}
        self.rewards: dict[str, Reward] = {}
        for reward, weight, label in _weighted(spec):
            name = _distinct(label or reward.name or type(reward).__name__, self.rewards)
            self.weights[name] = finite_number(f"the weight of reward {name!r}", weight)
            self.prepare(reward)
            self.rewards[name] = reward

    def prepare(self, reward: Reward) -> None:
        """Let a reward check the task."""
        reward.prepare(self.task)

    def __call__(self, batch: Batch) -> Score:
        """Score a batch: the total and every term, all finite."""
        terms = {name: _scores(name, reward, batch) for name, reward in self.rewards.items()}
        total = np.zeros(len(batch))
        with np.errstate(over="ignore"):
            for name, scores in terms.items():
                total += self.weights[name] * scores
        return Score(_checked("the weighted sum", total, batch), terms)


def make_reward(spec: RewardSpec, **options: Any) -> Reward:
    """One reward from a name with options, "module:attribute", a function, or a Reward.

    >>> make_reward("bleu", n=2).name
    'bleu'
    """
    label = None
    if isinstance(spec, str):
        name, spec, written = REWARDS.resolve(spec)
        options = written | options
        label = None if ":" in name else name
    if inspect.isclass(spec) and issubclass(spec, Reward):
        if inspect.isabstract(spec):
            raise OptionError(f"{spec.__name__} has no score() method")
        check_options(f"reward {label or spec.__name__!r}", spec, options)
        return spec(**options)
    if options:
        raise OptionError(f"{label or spec!r} takes no options; only a Reward class does, or the name of one")
    if isinstance(spec, Reward):
        return spec
    if callable(spec):
        return FunctionReward(spec, label)
    raise OptionError(
        f"{spec!r} is no reward: give a name, a function of completions, a text_gym.Reward, "
        "a list of these, or a dict from these to weights"
    )


def register_reward(name: str, reward: type[Reward] | Callable[..., Any], replace: bool = False) -> None:
    """Give a name to a Reward class, which may take options, or to a plain reward function.

    >>> register_reward("shortness", lambda completions: [-len(c) for c in completions], replace=True)
    >>> make_reward("shortness").name
    'shortness'
    """
    REWARDS.register(name, reward, replace)


def registered_rewards() -> dict[str, str]:
    """List the registered names, each with a line about it."""
    return dict(sorted(REWARDS.describe().items()))


def _weighted(spec: RewardSpec) -> Iterator[tuple[Reward, Any, str]]:
    """The rewards of a spec with their weights and, where a name was written, that name."""
    if isinstance(spec, Mapping):
        if not spec:
            raise OptionError("a dict of rewards needs at least one")
        pairs = list(spec.items())
    elif isinstance(spec, list | tuple):
        if not spec:
            raise OptionError("a list of rewards needs at least one")
        pairs = [(part, 1.0) for part in spec]
    else:
        pairs = [(spec, 1.0)]
    for part, weight in pairs:
        label = part if isinstance(part, str) and ":" not in part else ""
        yield make_reward(part), weight, label


def _name_of(function: Callable[..., Any]) -> str:
    while isinstance(function, partial):
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__))


def _awaited(answer: Awaitable[Any]) -> Any:
    """What an async function answers, in a thread of its own where this one runs an event loop already."""
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    async def wait() -> Any:
        return await answer

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(wait())
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, wait()).result()


def _distinct(name: str, taken: Mapping[str, Any]) -> str:
    number, candidate = 2, name
    while candidate in taken:
        candidate, number = f"{name}#{number}", number + 1
    return candidate


def _scores(name: str, reward: Reward, batch: Batch) -> FloatArray:
    try:
        scores = reward.score(batch)
    except TextGymError:
        raise
    except Exception as problem:  # a reward is the user's own, and may fail in any way
        raise RewardError(f"reward {name!r} failed with {type(problem).__name__}: {problem}") from problem
    return _checked(name, scores, batch)


def _checked(name: str, scores: Any, batch: Batch) -> FloatArray:
    """A reward's answer as finite numbers, or an error that names the reward and shows the text."""
    if hasattr(scores, "detach"):  # a tensor, perhaps on a GPU or with a gradient
        scores = scores.detach().cpu().numpy()
    if isinstance(scores, list | tuple):
        scores = [0.0 if score is None else score for score in scores]
    try:
        if np.iscomplexobj(scores):
            raise TypeError("complex numbers")
        values = np.asarray(scores, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as problem:
        raise RewardError(
            f"reward {name!r} must return one number for each sequence, not {scores!r} ({problem})"
        ) from problem
    if values.shape != (len(batch),):
        raise RewardError(
            f"reward {name!r} returned scores of shape {values.shape} for {len(batch)} sequences; "
            "it must return one number for each"
        )
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        row = int(bad[0])
        raise RewardError(f"reward {name!r} returned {values[row]} for {batch.texts[row]!r}; scores must be finite")
    return values
