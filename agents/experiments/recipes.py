"""Recipes: create an agent from its name, its hyperparameters and its reward.

The properties of an agent that are needed before it is created come from its class: `Agent` has class attributes and
class methods for them, and `PlainAgent` has the same ones for functions and classes that are not an `Agent`.
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
GIVEN = {"seed", "preset", "folder", "device", "threads", "start", "progress", "log"}
"""Arguments that a run passes to every agent with parameters of these names."""


class PlainAgent:
    """Adapter with the class interface of `Agent`, for a function or class that creates other agents.

    The agents have sample(), and optionally learn(), rewards() and log_prob().

    Args:
        name: Name in error messages.
        factory: Function or class, called with the environment and the arguments that it has parameters for.
    """

    presets: ClassVar[Presets] = {}
    settings_type = NoSettings
    is_warm_start = False

    def __init__(self, name: str, factory: Callable[..., object]) -> None:
        """Inspect the attributes and the parameters of the factory."""
        self.name, self.factory = name, factory
        self.parameters = parameters_of(factory)
        self.takes_start = bool(getattr(factory, "takes_start", "start" in self.parameters))
        self.learns_from_reward = bool(getattr(factory, "learns_from_reward", True))
        self.learns = not isinstance(factory, type) or callable(getattr(factory, "learn", None))
        self.can_load = "folder" in self.parameters or not callable(getattr(factory, "learn", None))

    def choose_settings(self, preset: str | None = None, **options: object) -> None:
        """Raise an OptionError for options that the factory does not take; return None, for there are no settings."""
        given = dict.fromkeys(GIVEN & self.parameters)
        check_options(f"agent {self.name!r}", partial(self.factory, None, **given), options)

    def same_updates(self, settings: object, steps: int | None, reward: str) -> Updates | None:
        """Return the agent's own updates; None if it does not learn from a reward, or has its own reward."""
        has_own = hasattr(self.factory, "rewards")
        return Updates(None, {}) if self.learns and self.learns_from_reward and not has_own else None

    def stopped_early(self, settings: object, patience: int) -> None:
        """Return None: early stopping is not supported."""

    def begins_with(self, settings: object) -> str:
        """Describe the initial policy; "" if the agent does not learn."""
        return "weights of its own" if self.learns else ""

    def relative_cost(self, settings: object, steps: int | None) -> float:
        """Return 0: the cost is unknown."""
        return 0.0

    def check_task(self, task: Task) -> None:
        """Raise an OptionError for a task that the factory refuses."""
        check = getattr(self.factory, "check_task", None)
        if check is not None:
            check(task)


@dataclass(frozen=True)
class Recipe:
    """The class, hyperparameters and reward of an agent."""

    name: str
    """Name of the agent: a registered name, or module:attribute."""
    factory: Callable[..., object]
    """Function or class that creates the agent."""
    options: dict[str, object]
    """Hyperparameters that differ from the preset."""
    reward: RewardSpec | None
    """Reward that replaces the environment's; None to keep it."""
    steps: int | None = None
    """Training steps from the option "steps", if that is not a hyperparameter of the agent."""

    @cached_property
    def agent_class(self) -> type[Agent[Any]] | PlainAgent:
        """The class of the agent, or an adapter with the same interface."""
        if isinstance(self.factory, type) and issubclass(self.factory, Agent):
            return self.factory
        return PlainAgent(self.name, self.factory)

    @property
    def takes_start(self) -> bool:
        """Whether the agent supports a warm start."""
        return self.agent_class.takes_start and "start" in parameters_of(self.factory)

    def begins_with(self, preset: str | None) -> str:
        """Describe the initial policy without a warm start; "" if the agent does not learn."""
        return self.agent_class.begins_with(self.settings(preset))

    def settings(self, preset: str | None) -> DataclassInstance | None:
        """Check the hyperparameters and return all of them; None for an agent that does not list them."""
        if taken := GIVEN & self.options.keys():
            raise OptionError(f"{min(taken)!r} is set by the run; leave it out of the options of agent {self.name!r}")
        settings: DataclassInstance | None
        settings = self.agent_class.choose_settings(self.preset_of(preset), **self.options)
        if settings is not None and (taken := GIVEN & {field.name for field in fields(settings)}):
            raise OptionError(f"hyperparameter {min(taken)!r} of agent {self.name!r} has a reserved name; rename it")
        return settings

    def check_preset(self, preset: str | None) -> None:
        """Raise an OptionError if the agent has no preset of this name."""
        known = self.agent_class.presets
        if preset is not None and preset not in known:
            raise OptionError(f"{self.name} has no preset {preset!r}." + suggest(preset, known))

    def preset_of(self, preset: str | None) -> str | None:
        """Return the preset if the agent has it, else None: the user's own agents often have no presets."""
        return preset if preset in self.agent_class.presets else None

    def make(self, env: Env, preset: str | None = None, **arguments: object) -> Sampler:
        """Create the agent with those of the arguments (seed, start, folder, ...) that it has parameters for."""
        given = {"preset": self.preset_of(preset), **arguments}
        if not self.takes_start:
            given.pop("start", None)
        parameters = parameters_of(self.factory)
        fitting = {name: value for name, value in given.items() if name in parameters and value is not None}
        made = self.factory(env, **fitting, **self.options)
        if not callable(getattr(made, "sample", None)):
            raise OptionError(f"agent {self.name!r} returned {made!r}, which has no method sample()")
        if not hasattr(made, "task"):
            setattr(made, "task", rules_of(env).task)  # noqa: B010 - its class does not declare the attribute
        return cast(Sampler, made)


def find_agent(spec: str, preset: str | None = None, trust: bool = True, /, **options: object) -> Recipe:
    """Find the recipe for a name, "name(option=value)" or, with trust, "module:attribute".

    >>> find_agent("seqgan(rounds=3)").options, find_agent("pg-bleu").reward
    ({'rounds': 3}, 'bleu')
    >>> find_agent("pg-bleu", "paper").reward
    'bleu(n=3, references=0.4, smoothing=None)'
    """
    name, factory, own_options = AGENTS.resolve(spec, trust)
    if not callable(factory):
        raise OptionError(f"{spec!r} is {factory!r}; name a class or a function that returns an agent")
    hyper = merged(own_options, options)
    reward = hyper.pop("reward", None)
    if reward is None and name == "pg-bleu":
        reward = PUBLISHED_BLEU if preset in ("paper", "fast") else "bleu"
    recipe = Recipe(name, factory, hyper, reward)
    known = parameters_of(factory) | {field.name for field in fields(recipe.agent_class.settings_type)}
    if "steps" in hyper and "steps" not in known:
        return replace(recipe, steps=whole_number("steps", hyper.pop("steps"), least=0))
    return recipe


def parameters_of(factory: Callable[..., object]) -> set[str]:
    """Return the names of a factory's parameters, with those of Agent.__init__ if a subclass passes **kwargs to it."""
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError) as problem:
        raise OptionError(f"{factory!r} has no signature; wrap it in a function that returns an agent") from problem
    names = set(parameters)
    passes_on = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if passes_on and isinstance(factory, type) and issubclass(factory, Agent):
        names |= set(inspect.signature(Agent.__init__).parameters)
    return names
