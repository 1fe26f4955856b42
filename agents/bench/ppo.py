"""How fast Stable-Baselines3's PPO learns on 256 copies in one process, beside the same on scalar environments."""

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
from agents.sb3.buffers import CopiesBuffer
from agents.sb3.vec_env import TextGenVecEnv

COPIES = 256
SCALAR_COPIES = 8  # of the scalar environment; Stable-Baselines3's own tutorials take 4 to 8
TRANSITIONS = 30_000  # of a measurement, about
ENV: dict[str, Any] = {"task": "grammar", "reward": "constant"}
STEPS = 21  # of a copy in a rollout: the grammar's longest sentence


class Work(NamedTuple):
    """One measurement."""

    what: str
    ours: float
    """Transitions written and learned from in a second."""
    theirs: float
    wanted: str


def measure() -> Iterator[Work]:
    """PPO through the adapter beside PPO on scalar environments, with a language model and with a plain network."""
    for policy, name in ((TextPolicy, "language model"), ("MlpPolicy", "MlpPolicy")):
        ours = rate(policy, _together, COPIES)
        few = {kind: rate(policy, partial(_apart, kind), SCALAR_COPIES) for kind in (DummyVecEnv, SubprocVecEnv)}
        fastest = max(few, key=few.__getitem__)
        what = f"PPO, {name}, {COPIES} copies / {SCALAR_COPIES} in {fastest.__name__}"
        yield Work(what, ours, few[fastest], "at least 5" if policy is TextPolicy else "-")
        many = rate(policy, partial(_apart, DummyVecEnv), COPIES)
        yield Work(f"PPO, {name}, {COPIES} copies / {COPIES} in DummyVecEnv", ours, many, "-")


def rate(policy: Any, make: Callable[[int], VecEnv], copies: int, transitions: int = TRANSITIONS) -> float:
    """Transitions a second, written and learned from once, after a first rollout that is not counted."""
    envs = make(copies)
    steps = STEPS * max(1, COPIES // copies)  # as many transitions in a rollout, however many copies there are
    ours = isinstance(envs, TextGenVecEnv) and policy is TextPolicy
    model = PPO(
        policy, envs, n_steps=steps, batch_size=STEPS * 32, n_epochs=1, gamma=1.0,
        rollout_buffer_class=CopiesBuffer if ours else None,
    )  # fmt: skip
    model.learn(steps * copies)
    begin, before = time.perf_counter(), model.num_timesteps
    model.learn(max(transitions, steps * copies), reset_num_timesteps=False)
    seconds = time.perf_counter() - begin
    envs.close()
    return (model.num_timesteps - before) / seconds


def _together(copies: int) -> VecEnv:
    return TextGenVecEnv(gym.make_vec("TextGen-v0", num_envs=copies, autoreset_mode="SameStep", **ENV))


def _apart(kind: Callable[[list[Callable[[], Any]]], VecEnv], copies: int) -> VecEnv:
    return kind([_scalar] * copies)


def _scalar() -> gym.Env[Any, Any]:
    return gym.make("TextGen-v0", **ENV)
