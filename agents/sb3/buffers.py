"""Rollout buffers for sequences: minibatches of whole environments, and the sequences that a rollout generated."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer

from text_gym.arrays import IntArray, outline


class SequenceRolloutBuffer(RolloutBuffer):
    """Rollout buffer whose minibatches hold all transitions of some environments, so that each prefix is read once."""

    def get(self, batch_size: int | None = None) -> Generator[Any, None, None]:
        """Yield minibatches of about `batch_size` transitions: of as many whole environments, and at least one."""
        if not self.generator_ready:
            next(super().get(1))  # lays the steps of each environment side by side
        steps = self.buffer_size
        together = self.n_envs if batch_size is None else max(1, batch_size // steps)
        order = np.random.permutation(self.n_envs)  # noqa: NPY002 - drawn as Stable-Baselines3 does
        for begin in range(0, self.n_envs, together):
            firsts = order[begin : begin + together] * steps
            yield self._get_samples((firsts[:, None] + np.arange(steps)).ravel())


class DictSequenceRolloutBuffer(SequenceRolloutBuffer, DictRolloutBuffer):
    """The same for observations with prompts."""


class RolloutSequences(NamedTuple):
    """The sequences that a rollout generated, and the position of each of its transitions in them."""

    tokens: IntArray
    """Each episode as far as it is known, [m, T], PAD after it."""
    prompts: IntArray | None
    """Prompt of each episode, [m, P]."""
    rows: IntArray
    """Episode of each transition, [steps, envs]."""
    positions: IntArray
    """Position in it of the token that was appended, [steps, envs]."""

    def __repr__(self) -> str:
        return outline(self)


def rollout_sequences(buffer: RolloutBuffer, pad: int) -> RolloutSequences:
    """Put together the sequences of a rollout buffer that has just been filled."""
    prompts = None
    prefixes = buffer.observations  # [steps, envs, T]
    if isinstance(buffer, DictRolloutBuffer):
        prompts = buffer.observations["prompt"]
        prefixes = buffer.observations["prefix"]
    actions = buffer.actions[:, :, 0].astype(np.int64)  # [steps, envs]
    positions = (prefixes != pad).sum(axis=2)
    last = np.ones(actions.shape, dtype=bool)  # of an episode, or of the rollout
    last[:-1] = buffer.episode_starts[1:] > 0
    env, step = np.nonzero(last.T)
    tokens = prefixes[step, env].astype(np.int64)
    tokens[np.arange(len(step)), positions[step, env]] = actions[step, env]
    rows = np.cumsum(last.T.ravel()) - last.T.ravel()  # how many episodes ended before
    return RolloutSequences(
        tokens,
        None if prompts is None else prompts[step, env].astype(np.int64),
        rows.reshape(last.T.shape).T,
        positions,
    )
