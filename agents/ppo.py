"""Stable-Baselines3's PPO and A2C, and sb3-contrib's MaskablePPO, as learners of this package.

The algorithms are theirs, unchanged. What is said here is what they learn in (many copies of the environment in one
process), what they train (a language model and a critic beside it), and how a run is stopped and resumed.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from stable_baselines3 import A2C as SB3_A2C
from stable_baselines3 import PPO as SB3_PPO
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from agents.common.agent import Agent
from agents.common.kl import AdaptiveKL
from agents.networks.policies import frozen_copy, make_policy
from agents.sb3.actor_critic import TextPolicy
from agents.sb3.buffers import CopiesBuffer, DictCopiesBuffer, KLPenalty
from agents.sb3.settings import IMDB, PRESETS, A2CSettings, ActorCriticSettings, PPOSettings
from agents.sb3.vec_env import TextGenVecEnv
from text_gym.errors import DependencyError, OptionError, TrainingError
from text_gym.vector_env import TextGenVectorEnv


class ActorCritic(Agent[Any]):
    """What the learners around Stable-Baselines3's on-policy algorithms share. A step of learn() is an iteration.

    `model` is Stable-Baselines3's algorithm, with its own learn(), save() and policy.
    """

    at_start: Any
    takes_start = True
    settings_type: ClassVar[type] = ActorCriticSettings
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS
    shown = ("train/reward", "train/entropy")
    masks: ClassVar[bool] = False
    """Whether the algorithm keeps to the environment's masks by itself."""
    pays_unmasked: ClassVar[bool] = False
    """Whether the penalty for going astray is of log-probabilities without masks."""

    def build(self) -> None:
        """The environment's copies, the algorithm with its policy, and what the policy is kept near."""
        settings = self.settings
        self._check_rollout()
        envs = TextGenVectorEnv(settings.n_envs, "SameStep", rules=self.rules)
        self.envs = TextGenVecEnv(envs)
        options: dict[str, Any] = {
            "n_steps": settings.n_steps or self.rules.limit,
            "learning_rate": partial(_falling, settings.learning_rate)
            if settings.anneal_learning_rate
            else settings.learning_rate,
            "gamma": settings.gamma,
            "gae_lambda": settings.gae_lambda,
            "ent_coef": settings.ent_coef,
            "vf_coef": settings.vf_coef,
            "max_grad_norm": settings.max_grad_norm,
            "policy_kwargs": {
                "language_model": partial(make_policy, settings, self.task.vocab, device=self.device),
                "critic": settings.critic,
                "critic_layers": settings.critic_layers,
                "logit_mask": None if self.masks else self.logit_mask,
            },
            "device": self.device,
        }
        self.at_start = None  # until there is a policy
        with warnings.catch_warnings():  # batches of whole copies need not divide the rollout evenly
            warnings.filterwarnings("ignore", "You have specified a mini-batch size")
            self.model = self.make_algorithm(options)
        self.policy = self.model.policy.language_model
        self.optimizer = self.model.policy.optimizer
        self.at_start = frozen_copy(self.policy)
        self.kl = AdaptiveKL(settings.kl.weight, settings.kl.target)

    def _check_rollout(self) -> None:
        """Refuse rollouts of which nothing can be learned."""
        steps, limit = self.settings.n_steps or self.rules.limit, self.rules.limit
        if self.settings.normalize_advantage and steps * self.settings.n_envs < 2:
            raise OptionError(
                "advantages are normalised over at least two tokens; give a larger n_envs, or normalize_advantage=False"
            )
        if self.rules.eos is None and steps < limit:
            raise OptionError(f"in n_steps={steps} no sequence of this task ever ends; give at least {limit}")

    def make_algorithm(self, options: dict[str, Any]) -> Any:
        """The algorithm, from what it shares with the others and its own."""
        raise NotImplementedError(f"{type(self).__name__} has no algorithm")

    def load_policy(self, policy: nn.Module) -> None:
        """Give the actor, a critic of its own, and what the policy is kept near the weights of a language model."""
        self.model.policy.begin_with(policy)
        if self.at_start is not None:
            self.at_start.load_state_dict(policy.state_dict())

    def get_env(self) -> VecEnv:
        """The copies, for Stable-Baselines3's callbacks."""
        return self.envs

    def _buffer(self) -> dict[str, Any]:
        """The rollout buffer."""
        return {"rollout_buffer_class": DictCopiesBuffer if self.task.conditional else CopiesBuffer}

    @property
    def default_steps(self) -> int:
        """The iterations of the settings."""
        iterations: int = self.settings.iterations
        return iterations

    def one_step(self, step: int) -> bool:
        """One rollout, from new episodes on, and what is learned from it."""
        random, model = self.numpy_random(step), self.model
        model.set_logger(self.logger)
        model._update_current_progress_remaining(min(step, self.settings.iterations), max(1, self.settings.iterations))
        logit_mask = None if self.masks else self.logit_mask
        episodes, stay_near = _Episodes(), KLPenalty(self.at_start, self.kl, logit_mask, self.pays_unmasked)
        callbacks = CallbackList([episodes, stay_near])
        callbacks.init_callback(model)
        self.envs.seed(int(random.integers(2**31)))
        with global_numpy_random(int(random.integers(2**32))):
            self.begin_rollout(step)
            model.ep_info_buffer, model.ep_success_buffer = deque(maxlen=1), deque(maxlen=1)
            model._last_obs = model.env.reset()
            model._last_episode_starts = np.ones(self.settings.n_envs, dtype=bool)
            model.collect_rollouts(model.env, callbacks, model.rollout_buffer, model.n_steps)
            self._train()
        self.n_sampled += int(model.rollout_buffer.episode_starts.sum())
        if episodes.returns:
            self.logger.record("train/reward", float(np.mean(episodes.returns)))
        self.logger.record("train/entropy", -float(model.rollout_buffer.log_probs.mean()))
        return True

    def _train(self) -> None:
        """What the algorithm learns from the rollout; weights that are not finite are refused, and so never saved."""
        problem = None
        try:
            self.model.train()
        except ValueError as refused:  # torch's distributions take no logits that are not finite
            problem = refused
        if not all(bool(parameter.isfinite().all()) for parameter in self.model.policy.parameters()):
            raise TrainingError(
                "weights are no longer finite: training has diverged. "
                "Lower the learning rate; the last checkpoint is from before."
            ) from problem
        if problem is not None:
            raise problem

    def begin_rollout(self, step: int) -> None:
        """Called before each rollout."""

    def trained_parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """The policy, the critic, the optimiser of both, and the policy at the start."""
        built = self.model.policy
        critic = nn.ModuleDict({"layers": built.mlp_extractor, "value": built.value_net})
        if not built.share_features_extractor:
            critic["reader"] = built.vf_features_extractor.model
        return super().trained_parts() | {"critic": critic, "at_start": self.at_start}

    def trained_numbers(self) -> dict[str, Any]:
        """The adapted weight, and the count of updates that Stable-Baselines3 logs."""
        return {"kl_weight": self.kl.weight, "updates": self.model._n_updates}

    def restore_trained_numbers(self, numbers: Mapping[str, Any]) -> None:
        """Put them back."""
        self.kl.weight = float(numbers["kl_weight"])
        self.model._n_updates = int(numbers["updates"])


class PPO(ActorCritic):
    """Proximal policy optimisation, by Stable-Baselines3. A step of learn() is an iteration.

    >>> import gymnasium as gym, text_gym
    >>> env = gym.make("TextGen-v0", reward="validity")
    >>> agent = PPO(env, seed=0, n_envs=4, hidden=8, embedding=8, progress=False).learn(2)
    >>> agent.steps_done, agent.sample(3).tokens.shape, type(agent.model).__module__
    (2, (3, 21), 'stable_baselines3.ppo.ppo')

    Args:
        env: The environment.
        start: An agent whose policy is where this one begins; usually one that `MLE` has trained.
        **options: See `Agent` and `PPOSettings`.
    """

    name = "ppo"
    settings_type: ClassVar[type] = PPOSettings
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {**PRESETS, "imdb": IMDB}

    def make_algorithm(self, options: dict[str, Any]) -> Any:
        """PPO."""
        return SB3_PPO(TextPolicy, self.envs, **options, **ppo_options(self.settings), **self._buffer())


class A2C(ActorCritic):
    """Advantage actor-critic, by Stable-Baselines3: one update for each rollout.

    Args:
        env: The environment.
        start: An agent whose policy is where this one begins; usually one that `MLE` has trained.
        **options: See `Agent` and `A2CSettings`.
    """

    name = "a2c"
    settings_type: ClassVar[type] = A2CSettings

    def make_algorithm(self, options: dict[str, Any]) -> Any:
        """A2C."""
        return SB3_A2C(
            TextPolicy, self.envs, normalize_advantage=self.settings.normalize_advantage, **options, **self._buffer()
        )


class MaskablePPO(ActorCritic):
    """PPO within the environment's masks, a `constraint` among them, by sb3-contrib (extra: contrib).

    Args:
        env: The environment.
        start: An agent whose policy is where this one begins; usually one that `MLE` has trained.
        **options: See `Agent` and `PPOSettings`.
    """

    name = "maskable-ppo"
    settings_type: ClassVar[type] = PPOSettings
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {**PRESETS, "imdb": IMDB}
    masks = True

    def make_algorithm(self, options: dict[str, Any]) -> Any:
        """MaskablePPO."""
        contrib = import_contrib()
        buffer = contrib.DictCopiesBuffer if self.task.conditional else contrib.CopiesBuffer
        return contrib.MaskablePPO(
            contrib.MaskableTextPolicy,
            self.masking_envs(),
            **options,
            **ppo_options(self.settings),
            rollout_buffer_class=buffer,
        )

    def masking_envs(self) -> VecEnv:
        """The copies, which say what may be written."""
        return self.envs


def ppo_options(settings: PPOSettings) -> dict[str, Any]:
    """What PPO takes beside what A2C takes too."""
    return {
        "n_epochs": settings.n_epochs,
        "batch_size": settings.batch_size,
        "clip_range": settings.clip_range,
        "target_kl": settings.target_kl,
        "normalize_advantage": settings.normalize_advantage,
    }


def import_contrib() -> Any:
    """What is built on sb3-contrib."""
    try:
        from agents.sb3 import maskable as masked
    except ImportError as problem:
        raise DependencyError("this learner needs sb3-contrib: pip install 'text-gym[contrib]'") from problem
    return masked


def _falling(rate: float, remaining: float) -> float:
    """A learning rate, of which as much is left as there is to learn."""
    return rate * remaining


class _Episodes(BaseCallback):
    """The returns of the episodes that ended in a rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.returns: list[float] = []

    def _on_step(self) -> bool:
        self.returns += [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
        return True


@contextmanager
def global_numpy_random(seed: int) -> Iterator[None]:
    """Numpy's global random numbers, from which Stable-Baselines3 shuffles, by a seed; put back afterwards."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
