"""Rollout buffers whose minibatches have whole sequences, and the conversion of a rollout to sequences."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer

from text_gym.arrays import IntArray, outline


class SequenceRolloutBuffer(RolloutBuffer):
    """Rollout buffer whose minibatches have all transitions of some environments.

    A language model can then read each sequence of a minibatch once, instead of every prefix.
    """

    def get(self, batch_size: int | None = None) -> Generator[Any, None, None]:
        """Yield minibatches of at most `batch_size` transitions, rounded down to whole environments, at least one."""
        if not self.generator_ready:
            next(super().get(1))  # makes the steps of each environment contiguous
        steps = self.buffer_size
        n_envs = self.n_envs if batch_size is None else max(1, batch_size // steps)  # per minibatch
        order = np.random.permutation(self.n_envs)  # noqa: NPY002 - the generator of Stable-Baselines3
        for begin in range(0, self.n_envs, n_envs):
            firsts = order[begin : begin + n_envs] * steps
            yield self._get_samples((firsts[:, None] + np.arange(steps)).ravel())


class DictSequenceRolloutBuffer(SequenceRolloutBuffer, DictRolloutBuffer):
    """SequenceRolloutBuffer for observations with prompts."""


class RolloutSequences(NamedTuple):
    """Sequences of a rollout, and the location of each transition in them."""

    tokens: IntArray
    """Sequences [m, T], one per episode, padded with PAD. The last sequence of an environment may be unfinished."""
    prompts: IntArray | None
    """Prompts [m, P]."""
    rows: IntArray
    """Index of the sequence of each transition, [steps, envs]."""
    positions: IntArray
    """Position of the token that each transition appended, [steps, envs]."""

    def __repr__(self) -> str:
        return outline(self)


def rollout_sequences(buffer: RolloutBuffer, pad: int) -> RolloutSequences:
    """Collect the sequences of a full rollout buffer, before get() changes the layout of its arrays."""
    prompts = None
    prefixes = buffer.observations  # [steps, envs, T]
    if isinstance(buffer, DictRolloutBuffer):
        prompts = buffer.observations["prompt"]
        prefixes = buffer.observations["prefix"]
    actions = buffer.actions[:, :, 0].astype(np.int64)  # [steps, envs]
    positions = (prefixes != pad).sum(axis=2)
    last = np.ones(actions.shape, dtype=bool)  # True at the last transition of each sequence
    last[:-1] = buffer.episode_starts[1:] > 0
    env, step = np.nonzero(last.T)
    tokens = prefixes[step, env].astype(np.int64)
    tokens[np.arange(len(step)), positions[step, env]] = actions[step, env]
    rows = np.cumsum(last.T.ravel()) - last.T.ravel()  # number of sequences that end before each transition
    return RolloutSequences(
        tokens,
        None if prompts is None else prompts[step, env].astype(np.int64),
        rows.reshape(last.T.shape).T,
        positions,
    )
