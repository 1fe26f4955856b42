"""Agents by name: what `text-gym train` and `compare` call them, and what a user's own stand for."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any, NamedTuple

from agents.common.settings import merged
from text_gym.errors import OptionError
from text_gym.registry import Registry
from text_gym.validation import check_options, suggest, whole_number

PUBLISHED_BLEU = "bleu(n=3, references=0.4, smoothing=None)"
GIVEN = {"seed", "preset", "folder", "device", "threads", "start", "progress", "log"}  # to agents that take it

AGENTS: Registry[Callable[..., Any]] = Registry(
    "agent",
    {
        "mle": "agents.mle:MLE",
        "ss": "agents.scheduled_sampling:ScheduledSampling",
        "reinforce": "agents.reinforce:Reinforce",
        "pg-bleu": "agents.reinforce:Reinforce",
        "seqgan": "agents.seqgan:SeqGAN",
        "ppo": "agents.ppo:PPO",
        "a2c": "agents.ppo:A2C",
        "maskable-ppo": "agents.ppo:MaskablePPO",
        "nlpo": "agents.nlpo:NLPO",
        "uniform": "agents.experiments.reference_models:Uniform",
        "real": "agents.experiments.reference_models:RealData",
    },
    about={  # so that listing the names imports no torch
        "mle": "Maximum likelihood. A step of learn() is an epoch.",
        "ss": "Scheduled sampling. A step of learn() is an epoch.",
        "reinforce": "REINFORCE on the environment's reward. A step of learn() is one update of the policy.",
        "pg-bleu": "REINFORCE on BLEU, whatever the environment's reward is.",
        "seqgan": "SeqGAN. A step of learn() is a round; before the first one come both pretrainings.",
        "ppo": "Proximal policy optimisation, by Stable-Baselines3. A step of learn() is an iteration.",
        "a2c": "Advantage actor-critic, by Stable-Baselines3: one update for each rollout.",
        "maskable-ppo": "PPO within the environment's masks, by sb3-contrib (extra: contrib).",
        "nlpo": "Natural-language policy optimisation, on sb3-contrib's masked distributions (extra: contrib).",
        "uniform": "Writes tokens that are all as likely, the end among them.",
        "real": "Real sequences: newly drawn where the source is known, else the validation split.",
    },
)


class Recipe(NamedTuple):
    """How to make an agent."""

    name: str
    """What it is called."""
    factory: Callable[..., Any]
    """Called with the environment, and with what it has parameters for."""
    options: dict[str, Any]
    """Hyper-parameters that were written in brackets."""
    reward: str | None
    """Its own reward, in place of the environment's."""
    steps: int | None = None
    """How many it learns, if that was written and is none of its hyper-parameters."""

    @property
    def learns_from_reward(self) -> bool:
        """Whether a reward has any part in what it learns; likelihood needs none."""
        return bool(getattr(self.factory, "learns_from_reward", True))

    @property
    def takes_start(self) -> bool:
        """Whether it can go on from another agent's policy."""
        return bool(getattr(self.factory, "takes_start", "start" in _parameters(self.factory)))

    def settings(self, preset: str | None) -> Any:
        """All its hyper-parameters, where it says what they are; else None. Refuses what it does not have."""
        if taken := GIVEN & self.options.keys():
            raise OptionError(f"agent {self.name!r} is given {min(taken)} by the run; leave it out of its options")
        choose = getattr(self.factory, "choose_settings", None)
        if choose is not None:
            settings = choose(self.preset_of(preset), **self.options)
            if taken := GIVEN & {field.name for field in fields(settings)}:
                raise OptionError(
                    f"agent {self.name!r} has a hyper-parameter {min(taken)!r}, which every agent is given; "
                    "call it otherwise"
                )
            return settings
        given = dict.fromkeys(GIVEN & _parameters(self.factory))
        check_options(f"agent {self.name!r}", partial(self.factory, None, **given), self.options)
        return None

    def check_preset(self, preset: str | None) -> None:
        """Refuse a preset that it does not have."""
        known = getattr(self.factory, "presets", {})
        if preset is not None and preset not in known:
            raise OptionError(f"{self.name} has no preset {preset!r}." + suggest(preset, known))

    def preset_of(self, preset: str | None) -> str | None:
        """The preset, where it has one of this name; agents of the user's own often have none."""
        return preset if preset in getattr(self.factory, "presets", {}) else None

    def make(self, env: Any, preset: str | None = None, **surroundings: Any) -> Any:
        """The agent in its environment; of seed, start, folder and so on it gets what it has parameters for."""
        given = {"preset": self.preset_of(preset), **surroundings}
        parameters = _parameters(self.factory)
        if not self.takes_start:
            given.pop("start", None)
        fitting = {name: value for name, value in given.items() if name in parameters and value is not None}
        made = self.factory(env, **fitting, **self.options)
        if not callable(getattr(made, "sample", None)):
            raise OptionError(f"agent {self.name!r} made {made!r}, which has no sample()")
        return made


def find_agent(spec: str, preset: str | None = None, **options: Any) -> Recipe:
    """The recipe that a name, "name(option=value)" or "module:attribute" stands for.

    >>> find_agent("seqgan(rounds=3)").options, find_agent("pg-bleu").reward
    ({'rounds': 3}, 'bleu')
    >>> find_agent("pg-bleu", "paper").reward
    'bleu(n=3, references=0.4, smoothing=None)'
    """
    name, factory, written = AGENTS.resolve(spec)
    if not callable(factory):
        raise OptionError(f"{spec!r} is {factory!r}, which cannot be called to make an agent")
    written = merged(written, options)
    reward = written.pop("reward", None)
    if reward is None and name == "pg-bleu":
        reward = PUBLISHED_BLEU if preset in ("paper", "fast") else "bleu"
    hyper = fields(factory.settings_type) if hasattr(factory, "settings_type") else ()
    has_steps = "steps" in _parameters(factory) | {field.name for field in hyper}
    steps = None if has_steps else written.pop("steps", None)
    return Recipe(name, factory, written, reward, None if steps is None else whole_number("steps", steps, least=0))


def register_agent(name: str, factory: Callable[..., Any], replace: bool = False) -> None:
    """Let `text-gym train` and `compare` call `factory(env, ...)` by this name."""
    AGENTS.register(name, factory, replace)


def registered_agents() -> dict[str, str]:
    """List the registered names, each with a line about it."""
    return AGENTS.describe()


def _parameters(factory: Callable[..., Any]) -> set[str]:
    """The names of what a factory takes; those of Agent.__init__ too where it passes others on to it."""
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError) as problem:
        raise OptionError(f"{factory!r} does not say what it takes, and so cannot make an agent") from problem
    names = set(parameters)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        from agents.common.agent import Agent

        if isinstance(factory, type) and issubclass(factory, Agent):
            names |= set(inspect.signature(Agent.__init__).parameters)
    return names
