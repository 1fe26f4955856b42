"""PPO, A2C and MaskablePPO: the algorithms of Stable-Baselines3, with a language model as the actor.

One iteration: every environment generates `n_steps` tokens, from new episodes on; the KL penalty is subtracted from
the rewards; and the algorithm learns from this rollout. The algorithms are Stable-Baselines3's, unchanged. What is
written here: their settings, the environments and the policy that they are given, and what makes a resumed run equal
an uninterrupted one.
"""

from __future__ import annotations

import inspect
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, ClassVar, Literal, TypeVar, cast

import numpy as np
import stable_baselines3 as sb3
import torch
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from agents.common.agent import Agent
from agents.common.kl import AdaptiveKL, KLSettings
from agents.networks.policies import LogitMask, PolicySettings, frozen_copy, make_policy
from agents.sb3.actor_critic import LanguageActorCritic, TextPolicy
from agents.sb3.buffers import DictSequenceRolloutBuffer, SequenceRolloutBuffer
from agents.sb3.kl_penalty import KLPenalty
from agents.sb3.vec_env import TextGenVecEnv
from text_gym.errors import DependencyError, OptionError, TrainingError
from text_gym.language_model import LanguageModel
from text_gym.validation import (
    check_not_negative,
    check_positive,
    check_switch,
    check_whole,
    finite_number,
    whole_number,
)
from text_gym.vector_env import TextGenVectorEnv


@dataclass(frozen=True)
class ActorCriticSettings(PolicySettings):
    """Hyper-parameters of `A2C`, which `PPO`, `MaskablePPO` and `NLPO` share."""

    iterations: int = 100
    """Iterations that learn() runs if it is not told."""
    n_envs: int = 64
    """Parallel environments."""
    n_steps: int | None = None
    """Tokens that each environment generates in an iteration; None for the length of the longest sequence."""
    learning_rate: float = 1e-3
    """Learning rate of Adam, and of RMSprop for A2C."""
    anneal_learning_rate: bool = False
    """Whether the learning rate falls linearly to 0 over the iterations."""
    gamma: float = 1.0
    """Discount factor."""
    gae_lambda: float = 0.95
    """Trade-off of bias and variance in generalised advantage estimation; 1 for the variance of plain returns."""
    critic: Literal["shared", "separate"] = "shared"
    """Whether the critic reads the policy's own features, or those of a language model of its own."""
    critic_layers: tuple[int, ...] = (64,)
    """Sizes of the layers between features and value."""
    vf_coef: float = 0.5
    """Weight of the critic's loss."""
    ent_coef: float = 0.0
    """Weight of the entropy bonus."""
    kl: KLSettings = field(default_factory=KLSettings)
    """KL penalty."""
    max_grad_norm: float = 0.5
    """Norm to which the gradient is clipped."""
    normalize_advantage: bool = True
    """Whether to normalise advantages to mean 0 and standard deviation 1 in each minibatch."""

    def __post_init__(self) -> None:
        """Check every value."""
        super().__post_init__()
        check_whole(self, 0, "iterations")
        check_whole(self, 1, "n_envs", "n_steps")
        check_switch("anneal_learning_rate", self.anneal_learning_rate)
        check_switch("normalize_advantage", self.normalize_advantage)
        check_positive(self, "learning_rate", "max_grad_norm", "gamma")
        check_not_negative(self, "vf_coef", "ent_coef")
        if max(self.gamma, finite_number("gae_lambda", self.gae_lambda)) > 1 or self.gae_lambda < 0:
            raise OptionError(f"gamma={self.gamma} and gae_lambda={self.gae_lambda} must lie in [0, 1]")
        if self.critic not in ("shared", "separate"):
            raise OptionError(f"critic={self.critic!r} must be 'shared' or 'separate'")
        if not isinstance(self.critic_layers, tuple | list):
            raise OptionError(f"critic_layers={self.critic_layers!r} must be sizes of layers, as (64,)")
        sizes = tuple(whole_number("critic_layers", size, least=1) for size in self.critic_layers)
        object.__setattr__(self, "critic_layers", sizes)


@dataclass(frozen=True)
class PPOSettings(ActorCriticSettings):
    """Hyper-parameters of `PPO` and `MaskablePPO`."""

    n_epochs: int = 4
    """Epochs over each rollout."""
    batch_size: int = 512
    """Transitions in a minibatch, about: it holds all transitions of some environments."""
    clip_range: float = 0.2
    """Change of a token's probability, as a ratio, beyond which it has no gradient."""
    target_kl: float | None = None
    """KL divergence from the policy of the rollout at which an iteration ends early; None for no limit."""

    def __post_init__(self) -> None:
        """Check the values of PPO too."""
        super().__post_init__()
        check_whole(self, 1, "n_epochs")
        check_whole(self, 2, "batch_size")
        check_positive(self, "clip_range", "target_kl")


PRESETS: dict[str, dict[str, object]] = {
    "fast": {"iterations": 60, "embedding": 32, "hidden": 32},
    "demo": {"iterations": 30},
    # A pretrained Hugging Face model, in small steps that stay near it.
    "finetune": {"n_envs": 32, "learning_rate": 1e-5, "kl": {"weight": 0.1}},
}
PPO_PRESETS: dict[str, dict[str, object]] = {
    **PRESETS,
    # As published with GPT-2 on film reviews (RL4LMs, arXiv:2210.01241): small steps for a large model.
    "imdb": {
        "n_envs": 10,
        "n_steps": 128,
        "batch_size": 64,
        "n_epochs": 5,
        "learning_rate": 1e-6,
        "gamma": 0.99,
        "kl": {"weight": 0.1, "target": 0.1},
    },
}
SB3_OPTIONS = inspect.signature(sb3.PPO).parameters.keys() - {"policy"}
"""Settings with these names are handed to Stable-Baselines3; its `policy` is a class, and ours a kind of network."""

SettingsT = TypeVar("SettingsT", bound=ActorCriticSettings)


class ActorCritic(Agent[SettingsT]):
    """Base class of agents around Stable-Baselines3's on-policy algorithms. A step of learn() is an iteration.

    `model` is Stable-Baselines3's algorithm, with its own learn(), save() and policy.
    """

    presets = PRESETS
    shown = ("train/reward", "train/entropy")
    samples_within_masks: ClassVar[bool] = False
    """Whether the algorithm applies the environment's masks; if not, the policy's logits have banned tokens masked."""
    kl_without_masks: ClassVar[bool] = False
    """Whether the KL penalty is of the policies without the environment's masks."""

    def build(self) -> None:
        """Create the environments, the algorithm with its policy, and the reference policy."""
        settings = self.settings
        self._check_rollout()
        self.envs = TextGenVecEnv(TextGenVectorEnv(settings.n_envs, "SameStep", rules=self.rules))
        options = {f.name: getattr(settings, f.name) for f in fields(settings) if f.name in SB3_OPTIONS}
        options["n_steps"] = self.n_steps
        options["policy_kwargs"] = {
            "language_model": partial(make_policy, settings, self.task.vocab, device=self.device),
            "critic": settings.critic,
            "critic_layers": settings.critic_layers,
            "logit_mask": self._actor_mask,
        }
        options["device"] = self.device
        options["stats_window_size"] = self.n_steps * settings.n_envs  # so that it holds all episodes of a rollout
        with warnings.catch_warnings():  # minibatches of whole environments need not divide the rollout evenly
            warnings.filterwarnings("ignore", "You have specified a mini-batch size")
            self.model = self.make_model(**options)
        self.actor_critic = cast("LanguageActorCritic", self.model.policy)
        self.policy = self.actor_critic.language_model
        self.optimizer = self.actor_critic.optimizer
        self.reference = frozen_copy(self.policy)
        self.kl = AdaptiveKL(settings.kl.weight, settings.kl.target)

    @abstractmethod
    def make_model(self, **options: Any) -> OnPolicyAlgorithm:
        """Create the algorithm; the options are those that all of them have."""

    @property
    def n_steps(self) -> int:
        """Tokens that each environment generates in an iteration."""
        return self.settings.n_steps or self.rules.limit

    @property
    def buffer_class(self) -> type[RolloutBuffer]:
        """Rollout buffer of an algorithm without masks."""
        return DictSequenceRolloutBuffer if self.task.conditional else SequenceRolloutBuffer

    @property
    def _actor_mask(self) -> LogitMask | None:
        return None if self.samples_within_masks else self.logit_mask

    def _check_rollout(self) -> None:
        """Refuse rollouts of which nothing can be learned."""
        if self.settings.normalize_advantage and self.n_steps * self.settings.n_envs < 2:
            raise OptionError(
                "advantages are normalised over at least two tokens; give a larger n_envs, or normalize_advantage=False"
            )
        limit = self.rules.limit
        if self.rules.eos is None and self.n_steps < limit:
            raise OptionError(f"in n_steps={self.n_steps} no sequence of this task ever ends; give at least {limit}")

    def load_policy(self, policy: LanguageModel) -> None:
        """Copy the weights of another policy to the actor, to a critic of its own and to the reference policy."""
        self.actor_critic.load_language_model(policy)
        self.reference.load_state_dict(policy.state_dict())

    def get_env(self) -> VecEnv:
        """Return the environments, for Stable-Baselines3's callbacks."""
        return self.envs

    @property
    def default_steps(self) -> int:
        """Number of iterations in the settings."""
        return self.settings.iterations

    def one_step(self, step: int) -> bool:
        """Run one iteration."""
        settings = self.settings
        random = self.numpy_random(step)
        model = self.model
        # One learn() for each iteration, which starts from new episodes, so that a resumed run equals an uninterrupted
        # one. Its progress is that of the iteration, so the learning rate of the run is computed here; and of what
        # Stable-Baselines3 keeps between iterations, checkpoints hold the number of updates, which it logs.
        if settings.anneal_learning_rate:
            done = min(step, settings.iterations) / max(1, settings.iterations)
            rate = settings.learning_rate * (1 - done)
            model.lr_schedule = lambda _: rate
        model.set_logger(self.logger)
        self.envs.seed(int(random.integers(2**31)))
        kl_penalty = KLPenalty(self.reference, self.kl, self._actor_mask, self.kl_without_masks)
        with global_numpy_random(int(random.integers(2**32))):
            try:  # None is for no logs of its own, which its type does not say
                model.learn(self.n_steps * settings.n_envs, kl_penalty, log_interval=None)  # type: ignore[arg-type]
            except ValueError as problem:  # torch's distributions take no logits that are not finite
                self._check_finite(problem)
                raise
        self._check_finite()
        self.n_sampled += int(model.rollout_buffer.episode_starts.sum())
        if model.ep_info_buffer:
            self.logger.record("train/reward", float(np.mean([episode["r"] for episode in model.ep_info_buffer])))
        self.logger.record("train/entropy", -float(model.rollout_buffer.log_probs.mean()))
        return True

    def _check_finite(self, problem: Exception | None = None) -> None:
        """Refuse weights that are not finite, so that they are never saved."""
        if not all(bool(parameter.isfinite().all()) for parameter in self.actor_critic.parameters()):
            raise TrainingError(
                "weights are no longer finite: training has diverged. "
                "Lower the learning rate; the last checkpoint is from before."
            ) from problem

    def trained_parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """Return the policy, the critic, the optimiser of both, and the reference policy."""
        policy = self.actor_critic
        critic = nn.ModuleDict({"layers": policy.mlp_extractor, "value": policy.value_net})
        if not policy.share_features_extractor:
            critic["features"] = policy.critic_model
        return super().trained_parts() | {"critic": critic, "reference": self.reference}

    def trained_numbers(self) -> dict[str, float]:
        """Return the KL weight, and the number of updates that Stable-Baselines3 logs."""
        return {"kl_weight": self.kl.weight, "n_updates": self.model._n_updates}

    def restore_trained_numbers(self, numbers: Mapping[str, float]) -> None:
        """Restore the KL weight and the number of updates."""
        self.kl.weight = float(numbers["kl_weight"])
        self.model._n_updates = int(numbers["n_updates"])


class PPO(ActorCritic[PPOSettings]):
    """Proximal policy optimisation, by Stable-Baselines3. A step of learn() is an iteration.

    >>> import gymnasium as gym, text_gym
    >>> env = gym.make("TextGen-v0", reward="validity")
    >>> agent = PPO(env, seed=0, n_envs=4, hidden=8, embedding=8, progress=False).learn(2)
    >>> agent.steps_done, agent.sample(3).tokens.shape, type(agent.model).__module__
    (2, (3, 21), 'stable_baselines3.ppo.ppo')

    Args:
        env: A TextGen-v0 environment.
        **options: See `Agent` and `PPOSettings`; `start` is usually an agent that `MLE` has trained.
    """

    name = "ppo"
    settings_type = PPOSettings
    presets = PPO_PRESETS

    def make_model(self, **options: Any) -> sb3.PPO:
        """Create Stable-Baselines3's PPO."""
        return sb3.PPO(TextPolicy, self.envs, rollout_buffer_class=self.buffer_class, **options)


class A2C(ActorCritic[ActorCriticSettings]):
    """Advantage actor-critic, by Stable-Baselines3: one update for each rollout.

    Args:
        env: A TextGen-v0 environment.
        **options: See `Agent` and `ActorCriticSettings`; `start` is usually an agent that `MLE` has trained.
    """

    name = "a2c"
    settings_type = ActorCriticSettings

    def make_model(self, **options: Any) -> sb3.A2C:
        """Create Stable-Baselines3's A2C."""
        return sb3.A2C(TextPolicy, self.envs, rollout_buffer_class=self.buffer_class, **options)


class MaskablePPO(ActorCritic[PPOSettings]):
    """PPO that samples within the environment's masks, those of a `constraint` included, by sb3-contrib.

    Args:
        env: A TextGen-v0 environment.
        **options: See `Agent` and `PPOSettings`; `start` is usually an agent that `MLE` has trained.
    """

    name = "maskable-ppo"
    settings_type = PPOSettings
    presets = PPO_PRESETS
    samples_within_masks = True

    def make_model(self, **options: Any) -> OnPolicyAlgorithm:
        """Create sb3-contrib's MaskablePPO."""
        return maskable_ppo(self.envs, **options)


def maskable_ppo(envs: VecEnv, **options: Any) -> OnPolicyAlgorithm:
    """Create sb3-contrib's MaskablePPO with a language model as the actor (extra: contrib)."""
    try:
        from agents.sb3.maskable import make_maskable_ppo
    except ImportError as problem:
        raise DependencyError("this agent needs sb3-contrib: pip install 'text-gym[contrib]'") from problem
    return make_maskable_ppo(envs, **options)


@contextmanager
def global_numpy_random(seed: int) -> Iterator[None]:
    """Seed numpy's global random numbers, from which Stable-Baselines3 shuffles; restore them afterwards."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
