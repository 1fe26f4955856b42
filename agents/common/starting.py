"""Learners that can begin with another agent's policy, as most do with one that `MLE` has trained."""

from __future__ import annotations

from typing import Any

from torch import nn

from agents.common.agent import Agent
from agents.common.generation import rules_of
from agents.networks.policies import architecture_of
from text_gym.errors import OptionError


class StartingAgent(Agent):
    """An `Agent` that takes `start`; its build() makes the policy and then calls begin_from_start().

    Args:
        env: The environment.
        start: An agent whose policy is where this one begins.
        **options: See `Agent`.
    """

    def __init__(
        self,
        env: Any,
        seed: int | None = None,
        preset: str | None = None,
        *,
        start: Agent | None = None,
        **options: Any,
    ) -> None:
        """Begin with a copy of start's policy, or with a random one."""
        self._start_policy: Any = None
        if start is not None:
            if not hasattr(start, "policy"):
                raise OptionError(f"start must be an agent, as MLE.load(folder, env) gives one, and not {start!r}")
            self._start_policy = start.policy
            for name, value in architecture_of(start.policy).items():
                if options.setdefault(name, value) != value:
                    raise OptionError(f"{name}={options[name]!r}, but the policy to start from has {value!r}")
            if start.task.vocab.tokens != rules_of(env).vocab.tokens:
                raise OptionError(f"start was made for the tokens of {start.task!r}, which are not those of {env!r}")
        super().__init__(env, seed=seed, preset=preset, **options)

    def begin_from_start(self) -> None:
        """Take over the policy of the agent to start from, if there is one."""
        if self._start_policy is not None:
            self.begin_with(self._start_policy)

    def begin_with(self, policy: nn.Module) -> None:
        """Give the policy the weights of another."""
        self.policy.load_state_dict(policy.state_dict())
