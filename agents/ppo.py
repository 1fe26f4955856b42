"""PPO, A2C and MaskablePPO of Stable-Baselines3, with a language model as the actor.

One iteration has three steps:

1. Collect a rollout: start new episodes and generate `n_steps` tokens in each environment.
2. Subtract the KL penalty from the rewards, and compute the advantages (GAE).
3. Update actor and critic on the rollout.

Stable-Baselines3 implements the algorithms. This module has their settings, their environments and their policy, and
makes runs resumable.
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
    """Hyperparameters of `A2C`. `PPO`, `MaskablePPO` and `NLPO` have them too."""

    iterations: int = 100
    """Number of iterations, each with one rollout and one update. Overridden by learn(steps) and --steps."""
    n_envs: int = 64
    """Number of parallel environments."""
    n_steps: int | None = None
    """Number of steps (tokens) per environment in a rollout; None for the maximum length of a sequence."""
    learning_rate: float = 1e-3
    """Learning rate of the optimiser: RMSprop for A2C, Adam for all others."""
    anneal_learning_rate: bool = False
    """Whether to decrease the learning rate linearly to 0 over the iterations."""
    gamma: float = 1.0
    """Discount factor."""
    gae_lambda: float = 0.95
    """Trade-off of bias and variance in generalised advantage estimation (GAE); 1 for Monte-Carlo returns."""
    critic: Literal["shared", "separate"] = "shared"
    """Language model whose features the critic reads: the policy itself (shared), or a second one (separate)."""
    critic_layers: tuple[int, ...] = (64,)
    """Sizes of the hidden layers of the critic."""
    vf_coef: float = 0.5
    """Coefficient of the value function loss."""
    ent_coef: float = 0.0
    """Coefficient of the entropy bonus."""
    kl: KLSettings = field(default_factory=KLSettings)
    """KL penalty, which keeps the policy close to the initial policy."""
    max_grad_norm: float = 0.5
    """Maximum norm for gradient clipping."""
    normalize_advantage: bool = True
    """Whether to normalise advantages to mean 0 and standard deviation 1 in each minibatch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, 0, "iterations")
        check_whole(self, 1, "n_envs", "n_steps")
        check_switch("anneal_learning_rate", self.anneal_learning_rate)
        check_switch("normalize_advantage", self.normalize_advantage)
        check_positive(self, "learning_rate", "max_grad_norm", "gamma")
        check_not_negative(self, "vf_coef", "ent_coef")
        if max(self.gamma, finite_number("gae_lambda", self.gae_lambda)) > 1 or self.gae_lambda < 0:
            raise OptionError(
                f"gamma={self.gamma} or gae_lambda={self.gae_lambda} is out of range; give numbers up to 1, "
                "gamma above 0 and gae_lambda not below 0"
            )
        if self.critic not in ("shared", "separate"):
            raise OptionError(f"there is no critic {self.critic!r}; give 'shared' or 'separate'")
        if not isinstance(self.critic_layers, tuple | list):
            raise OptionError(
                f"critic_layers={self.critic_layers!r} is not a sequence of layer sizes; give for example (64,)"
            )
        sizes = tuple(whole_number("critic_layers", size, least=1) for size in self.critic_layers)
        object.__setattr__(self, "critic_layers", sizes)


@dataclass(frozen=True)
class PPOSettings(ActorCriticSettings):
    """Hyperparameters of `PPO` and `MaskablePPO`."""

    n_epochs: int = 4
    """Number of epochs per rollout when optimising the surrogate loss."""
    batch_size: int = 512
    """Minibatch size, in transitions; rounded down to whole environments, that is, to a multiple of n_steps."""
    clip_range: float = 0.2
    """Clipping parameter: the surrogate loss clips the probability ratio of new and old policy to 1 +/- clip_range."""
    target_kl: float | None = None
    """An update stops early if the KL divergence of new and old policy exceeds 1.5 target_kl; None for no limit."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, 1, "n_epochs")
        check_whole(self, 2, "batch_size")
        check_positive(self, "clip_range", "target_kl")


PRESETS: dict[str, dict[str, object]] = {
    "fast": {"iterations": 60, "embedding": 32, "hidden": 32},
    "demo": {"iterations": 30},
    # Fine-tuning of a Hugging Face model: a small learning rate and a KL penalty keep the policy close to it.
    "finetune": {"n_envs": 32, "learning_rate": 1e-5, "kl": {"weight": 0.1}},
}
PPO_PRESETS: dict[str, dict[str, object]] = {
    **PRESETS,
    # Published settings for GPT-2 on film reviews (RL4LMs, arXiv:2210.01241).
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
"""Names of the settings that are passed to Stable-Baselines3. `policy` is not: there it is a class, here a string."""

SettingsT = TypeVar("SettingsT", bound=ActorCriticSettings)


class ActorCritic(Agent[SettingsT]):
    """Base class of the agents that use Stable-Baselines3's on-policy algorithms. One step of learn() is one iteration.

    The attribute `model` is the Stable-Baselines3 algorithm.
    """

    presets = PRESETS
    shown = ("train/reward", "train/entropy")
    samples_within_masks: ClassVar[bool] = False
    """Whether the algorithm applies the environments' action masks. If not, the policy masks the logits of banned
    tokens."""
    kl_without_masks: ClassVar[bool] = False
    """Whether the KL penalty compares the policies without action masks."""

    def build(self) -> None:
        """Create the environments, the algorithm and its policy, and the reference policy."""
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
        options["stats_window_size"] = self.n_steps * settings.n_envs  # enough for all episodes of a rollout
        with warnings.catch_warnings():  # the last minibatch of whole environments may be smaller
            warnings.filterwarnings("ignore", "You have specified a mini-batch size")
            self.model = self.make_model(**options)
        self.actor_critic = cast("LanguageActorCritic", self.model.policy)
        self.policy = self.actor_critic.language_model
        self.optimizer = self.actor_critic.optimizer
        self.reference = frozen_copy(self.policy)
        self.kl = AdaptiveKL(settings.kl.weight, settings.kl.target)

    @abstractmethod
    def make_model(self, **options: Any) -> OnPolicyAlgorithm:
        """Create the algorithm.

        Args:
            **options: Arguments that all on-policy algorithms of Stable-Baselines3 take.
        """

    @property
    def n_steps(self) -> int:
        """Number of steps (tokens) per environment in a rollout."""
        return self.settings.n_steps or self.rules.limit

    @property
    def buffer_class(self) -> type[RolloutBuffer]:
        """Rollout buffer of an algorithm without action masks."""
        return DictSequenceRolloutBuffer if self.task.conditional else SequenceRolloutBuffer

    @property
    def _actor_mask(self) -> LogitMask | None:
        return None if self.samples_within_masks else self.logit_mask

    def _check_rollout(self) -> None:
        """Raise OptionError if a rollout is too short to normalise advantages or to finish a sequence."""
        if self.settings.normalize_advantage and self.n_steps * self.settings.n_envs < 2:
            raise OptionError(
                "normalising advantages needs at least two tokens per rollout; give a larger n_envs, or "
                "normalize_advantage=False"
            )
        limit = self.rules.limit
        if self.rules.eos is None and self.n_steps < limit:
            raise OptionError(
                f"n_steps={self.n_steps} is shorter than every sequence of this task; give at least {limit}"
            )

    def load_policy(self, policy: LanguageModel) -> None:
        """Copy the weights of another policy to the actor, a separate critic and the reference policy."""
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
        # Each iteration calls learn() of Stable-Baselines3 once, which starts new episodes. A resumed run therefore
        # equals an uninterrupted one. Stable-Baselines3 knows only the progress of this iteration, so the annealed
        # learning rate is computed here. Of the state that it keeps between iterations, checkpoints hold only the
        # number of updates, which it logs.
        if settings.anneal_learning_rate:
            done = min(step, settings.iterations) / max(1, settings.iterations)
            rate = settings.learning_rate * (1 - done)
            model.lr_schedule = lambda _: rate
        model.set_logger(self.logger)
        self.envs.seed(int(random.integers(2**31)))
        kl_penalty = KLPenalty(self.reference, self.kl, self._actor_mask, self.kl_without_masks)
        with global_numpy_random(int(random.integers(2**32))):
            try:  # log_interval=None, which its annotation lacks, turns off the logs of Stable-Baselines3
                model.learn(self.n_steps * settings.n_envs, kl_penalty, log_interval=None)  # type: ignore[arg-type]
            except ValueError as problem:  # torch's distributions raise it for logits that are not finite
                self._check_finite(problem)
                raise
        self._check_finite()
        self.n_sampled += int(model.rollout_buffer.episode_starts.sum())
        if model.ep_info_buffer:
            self.logger.record("train/reward", float(np.mean([episode["r"] for episode in model.ep_info_buffer])))
        self.logger.record("train/entropy", -float(model.rollout_buffer.log_probs.mean()))
        return True

    def _check_finite(self, problem: Exception | None = None) -> None:
        """Raise TrainingError if weights are not finite, so that they are never saved."""
        if not all(bool(parameter.isfinite().all()) for parameter in self.actor_critic.parameters()):
            raise TrainingError(
                "training has diverged: some weights are no longer finite; lower the learning rate and resume, because "
                "the last checkpoint was saved before this update"
            ) from problem

    def trained_parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """Return the policy, the critic, their common optimiser, and the reference policy."""
        policy = self.actor_critic
        critic = nn.ModuleDict({"layers": policy.mlp_extractor, "value": policy.value_net})
        if not policy.share_features_extractor:
            critic["features"] = policy.critic_model
        return super().trained_parts() | {"critic": critic, "reference": self.reference}

    def trained_numbers(self) -> dict[str, float]:
        """Return the KL weight and the number of updates, which Stable-Baselines3 logs."""
        return {"kl_weight": self.kl.weight, "n_updates": self.model._n_updates}

    def restore_trained_numbers(self, numbers: Mapping[str, float]) -> None:
        """Restore the KL weight and the number of updates."""
        self.kl.weight = float(numbers["kl_weight"])
        self.model._n_updates = int(numbers["n_updates"])


class PPO(ActorCritic[PPOSettings]):
    """Proximal policy optimisation (PPO) of Stable-Baselines3. One step of learn() is one iteration.

    >>> import gymnasium as gym, text_gym
    >>> env = gym.make("TextGen-v0", reward="validity")
    >>> agent = PPO(env, seed=0, n_envs=4, hidden=8, embedding=8, progress=False).learn(2)
    >>> agent.steps_done, agent.sample(3).tokens.shape, type(agent.model).__module__
    (2, (3, 21), 'stable_baselines3.ppo.ppo')

    Args:
        env: A TextGen-v0 environment.
        **options: See `Agent` and `PPOSettings`. `start` is usually an `MLE` agent.
    """

    name = "ppo"
    settings_type = PPOSettings
    presets = PPO_PRESETS

    def make_model(self, **options: Any) -> sb3.PPO:
        """Create Stable-Baselines3's PPO."""
        return sb3.PPO(TextPolicy, self.envs, rollout_buffer_class=self.buffer_class, **options)


class A2C(ActorCritic[ActorCriticSettings]):
    """Advantage actor-critic (A2C) of Stable-Baselines3. One step of learn() is one rollout and one update.

    Args:
        env: A TextGen-v0 environment.
        **options: See `Agent` and `ActorCriticSettings`. `start` is usually an `MLE` agent.
    """

    name = "a2c"
    settings_type = ActorCriticSettings

    def make_model(self, **options: Any) -> sb3.A2C:
        """Create Stable-Baselines3's A2C."""
        return sb3.A2C(TextPolicy, self.envs, rollout_buffer_class=self.buffer_class, **options)


class MaskablePPO(ActorCritic[PPOSettings]):
    """PPO with invalid action masking, of sb3-contrib. One step of learn() is one iteration.

    The policy samples only tokens that the environment's action mask allows. This includes the mask of a `constraint`.

    Args:
        env: A TextGen-v0 environment.
        **options: See `Agent` and `PPOSettings`. `start` is usually an `MLE` agent.
    """

    name = "maskable-ppo"
    settings_type = PPOSettings
    presets = PPO_PRESETS
    samples_within_masks = True

    def make_model(self, **options: Any) -> OnPolicyAlgorithm:
        """Create sb3-contrib's MaskablePPO."""
        return maskable_ppo(self.envs, **options)


def maskable_ppo(envs: VecEnv, **options: Any) -> OnPolicyAlgorithm:
    """Create sb3-contrib's MaskablePPO with a language model as the actor. Needs the extra "contrib"."""
    try:
        from agents.sb3.maskable import make_maskable_ppo
    except ImportError as problem:
        raise DependencyError("this agent needs sb3-contrib; install it: pip install 'text-gym[contrib]'") from problem
    return make_maskable_ppo(envs, **options)


@contextmanager
def global_numpy_random(seed: int) -> Iterator[None]:
    """Seed numpy's global generator, with which Stable-Baselines3 shuffles minibatches; restore its state on exit."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
