"""The hyper-parameters of `PPO`, `A2C`, `MaskablePPO` and `NLPO`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from agents.common.kl import KLSettings
from agents.networks.policies import PolicySettings
from text_gym.errors import OptionError
from text_gym.validation import check_switch, finite_number, whole_number


@dataclass(frozen=True)
class ActorCriticSettings(PolicySettings):
    """The hyper-parameters that `PPO`, `A2C`, `MaskablePPO` and `NLPO` share."""

    iterations: int = 100
    """Rollouts that learn() makes and learns from if it is not told."""
    n_envs: int = 64
    """Copies of the environment, in one process."""
    n_steps: int | None = None
    """Tokens that each copy writes in an iteration; as many as the longest sequence has if not given."""
    learning_rate: float = 1e-3
    """Of Adam; of RMSprop for `A2C`."""
    anneal_learning_rate: bool = False
    """Whether the learning rate falls to nothing, in a straight line over `iterations`."""
    gamma: float = 1.0
    """How much a reward is worth one token earlier."""
    gae_lambda: float = 0.95
    """How far advantages look ahead before they trust the critic."""
    critic: Literal["shared", "separate"] = "shared"
    """Whether values are read off the policy's own features, or off a model of the critic's own."""
    critic_layers: tuple[int, ...] = (64,)
    """Sizes of the layers between features and value."""
    vf_coef: float = 0.5
    """The weight of the critic's loss."""
    ent_coef: float = 0.0
    """The weight of the policy's entropy, to be raised."""
    kl: KLSettings = field(default_factory=KLSettings)
    """KL penalty."""
    max_grad_norm: float = 0.5
    """The largest norm of the gradient."""
    normalize_advantage: bool = True
    """Whether advantages are brought to mean 0 and standard deviation 1 in each minibatch."""

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        super().__post_init__()
        whole_number("iterations", self.iterations, least=0)
        whole_number("n_envs", self.n_envs, least=1)
        check_switch("anneal_learning_rate", self.anneal_learning_rate)
        check_switch("normalize_advantage", self.normalize_advantage)
        if self.n_steps is not None:
            whole_number("n_steps", self.n_steps, least=1)
        for name in ("learning_rate", "max_grad_norm", "gamma"):
            if finite_number(name, getattr(self, name)) <= 0:
                raise OptionError(f"{name}={getattr(self, name)} must be above 0")
        for name in ("vf_coef", "ent_coef"):
            if finite_number(name, getattr(self, name)) < 0:
                raise OptionError(f"{name} must not be negative, and is {getattr(self, name)}")
        if max(self.gamma, finite_number("gae_lambda", self.gae_lambda)) > 1 or self.gae_lambda < 0:
            raise OptionError(f"gamma={self.gamma} and gae_lambda={self.gae_lambda} must lie in [0, 1]")
        if self.critic not in ("shared", "separate"):
            raise OptionError(f"critic={self.critic!r} must be 'shared' or 'separate'")
        if not isinstance(self.critic_layers, tuple | list):
            raise OptionError(f"critic_layers={self.critic_layers!r} must be sizes of layers, as (64,)")
        sizes = tuple(whole_number("critic_layers", size, least=1) for size in self.critic_layers)
        object.__setattr__(self, "critic_layers", sizes)


@dataclass(frozen=True)
class A2CSettings(ActorCriticSettings):
    """The hyper-parameters of `A2C`."""


@dataclass(frozen=True)
class PPOSettings(ActorCriticSettings):
    """The hyper-parameters of `PPO` and `MaskablePPO`."""

    n_epochs: int = 4
    """Times that each rollout is gone through."""
    batch_size: int = 512
    """Transitions in a minibatch, about: it holds all that some of the copies did."""
    clip_range: float = 0.2
    """How far a token's probability may move in an iteration before it stops to count."""
    target_kl: float | None = None
    """The change of the policy in an iteration at which it ends early."""

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        super().__post_init__()
        whole_number("n_epochs", self.n_epochs, least=1)
        whole_number("batch_size", self.batch_size, least=2)
        for name in ("clip_range", "target_kl"):
            value = getattr(self, name)
            if value is not None and finite_number(name, value) <= 0:
                raise OptionError(f"{name}={value} must be above 0")


PRESETS: dict[str, dict[str, Any]] = {
    "fast": {"iterations": 60, "embedding": 32, "hidden": 32},
    "demo": {"iterations": 30},
    # A pretrained Hugging Face model, in small steps that stay near it.
    "finetune": {"n_envs": 32, "learning_rate": 1e-5, "kl": {"weight": 0.1}},
}
# As published with GPT-2 on reviews of films (RL4LMs, arXiv:2210.01241): small steps for a large model.
IMDB: dict[str, Any] = {
    "n_envs": 10,
    "n_steps": 128,
    "batch_size": 64,
    "n_epochs": 5,
    "learning_rate": 1e-6,
    "gamma": 0.99,
    "kl": {"weight": 0.1, "target": 0.1},
}
