"""Speed of Stable-Baselines3's PPO with 256 environments in one process, compared with scalar environments."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import gymnasium as gym
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

import text_gym  # noqa: F401 - registers TextGen-v0
from agents.sb3.actor_critic import TextPolicy
from agents.sb3.buffers import SequenceRolloutBuffer
from agents.sb3.vec_env import TextGenVecEnv

NUM_ENVS = 256
SCALAR_ENVS = 8  # the tutorials of Stable-Baselines3 use 4 to 8
TRANSITIONS = 30_000  # per measurement, approximately
STEPS = 21  # per environment and rollout: the length of the grammar's longest sentence


class Row(NamedTuple):
    """One measurement, in transitions per second (rollouts and training together)."""

    name: str
    ours: float
    theirs: float
    target: str


def measure() -> Iterator[Row]:
    """Measure PPO with both kinds of environments, with a language model and with a plain network."""
    policies: tuple[type[TextPolicy] | str, ...] = (TextPolicy, "MlpPolicy")
    for policy in policies:
        name = policy if isinstance(policy, str) else "language model"
        ours = rate(policy, _vector, NUM_ENVS)
        few = {kind: rate(policy, partial(_scalar, kind), SCALAR_ENVS) for kind in (DummyVecEnv, SubprocVecEnv)}
        fastest = max(few, key=few.__getitem__)
        start = f"PPO, {name}, {NUM_ENVS} environments"
        target = "at least 5" if policy is TextPolicy else "-"
        yield Row(f"{start} / {SCALAR_ENVS} in {fastest.__name__}", ours, few[fastest], target)
        many = rate(policy, partial(_scalar, DummyVecEnv), NUM_ENVS)
        yield Row(f"{start} / {NUM_ENVS} in DummyVecEnv", ours, many, "-")


def rate(
    policy: type[TextPolicy] | str, make: Callable[[int], VecEnv], num_envs: int, transitions: int = TRANSITIONS
) -> float:
    """Measure transitions per second of rollouts and one epoch of training, after a first rollout as a warm-up."""
    envs = make(num_envs)
    steps = STEPS * max(1, NUM_ENVS // num_envs)  # the same number of transitions in every rollout
    ours = isinstance(envs, TextGenVecEnv) and policy is TextPolicy
    model = PPO(
        policy, envs, n_steps=steps, batch_size=STEPS * 32, n_epochs=1, gamma=1.0,
        rollout_buffer_class=SequenceRolloutBuffer if ours else None,
    )  # fmt: skip
    model.learn(steps * num_envs)
    start = time.perf_counter()
    before = model.num_timesteps
    model.learn(max(transitions, steps * num_envs), reset_num_timesteps=False)
    seconds = time.perf_counter() - start
    envs.close()
    return (model.num_timesteps - before) / seconds


def _vector(num_envs: int) -> VecEnv:
    envs = gym.make_vec("TextGen-v0", num_envs=num_envs, task="grammar", reward="constant", autoreset_mode="SameStep")
    return TextGenVecEnv(envs)


def _scalar(kind: type[DummyVecEnv] | type[SubprocVecEnv], num_envs: int) -> VecEnv:
    return kind([_make_env] * num_envs)


def _make_env() -> gym.Env[Any, Any]:  # not a lambda, so that subprocesses import this module and text_gym
    return gym.make("TextGen-v0", task="grammar", reward="constant")
