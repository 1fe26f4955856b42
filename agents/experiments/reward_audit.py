"""Reward audits: mean rewards of real sequences, of their words in random order, and of random tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from text_gym.arrays import IntArray
from text_gym.errors import DependencyError, OptionError, RewardError, TaskError
from text_gym.rewards import Scorer, registered_rewards
from text_gym.sequences import Batch
from text_gym.tasks.task import Task
from text_gym.validation import whole_number


def audit_rewards(
    task: Task, rewards: Sequence[str] = (), n: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float, float]]:
    """Compute the mean of each reward on real test sequences, on shuffled ones, and on random tokens.

    Args:
        task: Task of the sequences.
        rewards: Names of rewards; all registered rewards that suit the task if there are none.
        n: Number of sequences, at most the size of the test split.
        seed: Random seed of the selection, the shuffling and the random tokens.

    Returns:
        (real, shuffled, random) means by name.
    """
    random = np.random.default_rng(whole_number("seed", seed, least=0))
    if not len(task.test):
        raise TaskError(f"{task!r} has no test split to audit rewards on")
    real = task.batch("test", random.permutation(len(task.test.references))[: whole_number("n", n, least=1)])
    shuffled = Batch(_shuffle(real, random), real.lengths, task.vocab, real.examples)
    noise = Batch(_replace(real, random), real.lengths, task.vocab, real.examples)
    results = {}
    for name in rewards or registered_rewards():
        try:
            scorer = Scorer(name, task)
        except (RewardError, OptionError, DependencyError):
            if rewards:
                raise
            continue  # the reward does not suit the task, needs options, or its library is not installed
        real_mean, shuffled_mean, noise_mean = (float(scorer(b).total.mean()) for b in (real, shuffled, noise))
        results[name] = (real_mean, shuffled_mean, noise_mean)
    return results


def _shuffle(batch: Batch, random: np.random.Generator) -> IntArray:
    """Shuffle the words of each row; EOS and padding stay in place."""
    order = random.random(batch.tokens.shape)
    place = np.arange(batch.tokens.shape[1])
    order = np.where(place < batch.content_lengths[:, None], order, place + 1)
    return np.take_along_axis(batch.tokens, order.argsort(axis=1), axis=1)


def _replace(batch: Batch, random: np.random.Generator) -> IntArray:
    """Replace the words of each row by random tokens; EOS and padding stay in place."""
    size, eos = len(batch.vocab), batch.vocab.eos
    draws = random.integers(0, size if eos is None else size - 1, batch.tokens.shape)
    if eos is not None:
        draws += draws >= eos
    inside = np.arange(batch.tokens.shape[1]) < batch.content_lengths[:, None]
    return np.where(inside, draws, batch.tokens)
