"""Recipes: how to make an agent by its name, its hyper-parameters and its reward.

Everything that can be known of an agent before there is one is asked of its class: `Agent` has class attributes and
class methods for it, and `PlainAgent` answers for functions and classes that are not an `Agent`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar, cast

from agents.common.agent import Agent, Updates
from agents.common.evaluation import Sampler
from agents.common.generation import Env, rules_of
from agents.common.settings import NoSettings, Presets, merged
from agents.experiments.registry import AGENTS
from text_gym.errors import OptionError
from text_gym.rewards.scorer import RewardSpec
from text_gym.tasks.task import Task
from text_gym.validation import check_options, suggest, whole_number

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

PUBLISHED_BLEU = "bleu(n=3, references=0.4, smoothing=None)"
GIVEN = {"seed", "preset", "folder", "device", "threads", "start", "progress", "log"}  # to agents that take it


class PlainAgent:
    """A function or a class that makes agents without being an `Agent`, described as one.

    What it makes has sample(), and perhaps learn(), rewards() and log_prob().

    Args:
        name: What error messages call it.
        factory: Called with the environment, and with what it has parameters for.
    """

    presets: ClassVar[Presets] = {}
    settings_type = NoSettings
    is_warm_start = False

    def __init__(self, name: str, factory: Callable[..., object]) -> None:
        """Read what the factory says of itself."""
        self.name, self.factory = name, factory
        self.parameters = parameters_of(factory)
        self.takes_start = bool(getattr(factory, "takes_start", "start" in self.parameters))
        self.learns_from_reward = bool(getattr(factory, "learns_from_reward", True))
        self.learns = not isinstance(factory, type) or callable(getattr(factory, "learn", None))
        self.can_load = "folder" in self.parameters or not callable(getattr(factory, "learn", None))

    def choose_settings(self, preset: str | None = None, **options: object) -> None:
        """Refuse options that the factory does not take; it lists no settings."""
        given = dict.fromkeys(GIVEN & self.parameters)
        check_options(f"agent {self.name!r}", partial(self.factory, None, **given), options)

    def same_updates(self, settings: object, steps: int | None, reward: str) -> Updates | None:
        """Return its own updates, unless it learns from no reward or has a reward of its own."""
        has_own = hasattr(self.factory, "rewards")
        return Updates(None, {}) if self.learns and self.learns_from_reward and not has_own else None

    def stopped_early(self, settings: object, patience: int) -> None:
        """Return None: it is not known how to stop it early."""

    def begins_with(self, settings: object) -> str:
        """Say that it begins with what it makes itself; "" if it learns nothing."""
        return "weights of its own" if self.learns else ""

    def relative_cost(self, settings: object, steps: int | None) -> float:
        """Return 0: nothing is known of its cost."""
        return 0.0

    def check_task(self, task: Task) -> None:
        """Refuse a task that the factory says it cannot be used with."""
        check = getattr(self.factory, "check_task", None)
        if check is not None:
            check(task)


@dataclass(frozen=True)
class Recipe:
    """A way to make an agent: its class, hyper-parameters and reward."""

    name: str
    """The name that it was found by."""
    factory: Callable[..., object]
    """Called with the environment, and with what it has parameters for."""
    options: dict[str, object]
    """Hyper-parameters that were given."""
    reward: RewardSpec | None
    """Reward in place of the environment's."""
    steps: int | None = None
    """Steps that it learns, if they were given and are none of its hyper-parameters."""

    @cached_property
    def agent_class(self) -> type[Agent[Any]] | PlainAgent:
        """The class of the agent, or what answers for a factory that is none."""
        if isinstance(self.factory, type) and issubclass(self.factory, Agent):
            return self.factory
        return PlainAgent(self.name, self.factory)

    @property
    def takes_start(self) -> bool:
        """Whether the agent can begin with another one's policy."""
        return self.agent_class.takes_start and "start" in parameters_of(self.factory)

    def begins_with(self, preset: str | None) -> str:
        """Describe what the agent begins with where it has no warm start; "" if it learns nothing."""
        return self.agent_class.begins_with(self.settings(preset))

    def settings(self, preset: str | None) -> DataclassInstance | None:
        """Check the hyper-parameters, and return all there are; None for an agent that does not list them."""
        if taken := GIVEN & self.options.keys():
            raise OptionError(f"agent {self.name!r} is given {min(taken)} by the run; leave it out of its options")
        settings: DataclassInstance | None
        settings = self.agent_class.choose_settings(self.preset_of(preset), **self.options)
        if settings is not None and (taken := GIVEN & {field.name for field in fields(settings)}):
            raise OptionError(
                f"agent {self.name!r} has a hyper-parameter {min(taken)!r}, which every agent is given; "
                "call it otherwise"
            )
        return settings

    def check_preset(self, preset: str | None) -> None:
        """Refuse a preset that it does not have."""
        known = self.agent_class.presets
        if preset is not None and preset not in known:
            raise OptionError(f"{self.name} has no preset {preset!r}." + suggest(preset, known))

    def preset_of(self, preset: str | None) -> str | None:
        """Return the preset if it has one of this name; agents of the user's own often have none."""
        return preset if preset in self.agent_class.presets else None

    def make(self, env: Env, preset: str | None = None, **surroundings: object) -> Sampler:
        """Make the agent; of seed, start, folder and so on it gets what it has parameters for."""
        given = {"preset": self.preset_of(preset), **surroundings}
        if not self.takes_start:
            given.pop("start", None)
        parameters = parameters_of(self.factory)
        fitting = {name: value for name, value in given.items() if name in parameters and value is not None}
        made = self.factory(env, **fitting, **self.options)
        if not callable(getattr(made, "sample", None)):
            raise OptionError(f"agent {self.name!r} made {made!r}, which has no sample()")
        if not hasattr(made, "task"):
            setattr(made, "task", rules_of(env).task)  # noqa: B010 - an attribute that its class does not have
        return cast(Sampler, made)


def find_agent(spec: str, preset: str | None = None, trust: bool = True, /, **options: object) -> Recipe:
    """Look up the recipe that a name, "name(option=value)" or, with trust, "module:attribute" stands for.

    >>> find_agent("seqgan(rounds=3)").options, find_agent("pg-bleu").reward
    ({'rounds': 3}, 'bleu')
    >>> find_agent("pg-bleu", "paper").reward
    'bleu(n=3, references=0.4, smoothing=None)'
    """
    name, factory, written = AGENTS.resolve(spec, trust)
    if not callable(factory):
        raise OptionError(f"{spec!r} is {factory!r}, which cannot be called to make an agent")
    hyper = merged(written, options)
    reward = hyper.pop("reward", None)
    if reward is None and name == "pg-bleu":
        reward = PUBLISHED_BLEU if preset in ("paper", "fast") else "bleu"
    recipe = Recipe(name, factory, hyper, reward)
    known = parameters_of(factory) | {field.name for field in fields(recipe.agent_class.settings_type)}
    if "steps" in hyper and "steps" not in known:
        return replace(recipe, steps=whole_number("steps", hyper.pop("steps"), least=0))
    return recipe


def parameters_of(factory: Callable[..., object]) -> set[str]:
    """List what a factory takes; what Agent.__init__ takes too where a subclass passes arguments on to it."""
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError) as problem:
        raise OptionError(f"{factory!r} does not say what it takes, and so cannot make an agent") from problem
    names = set(parameters)
    passes_on = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if passes_on and isinstance(factory, type) and issubclass(factory, Agent):
        names |= set(inspect.signature(Agent.__init__).parameters)
    return names
