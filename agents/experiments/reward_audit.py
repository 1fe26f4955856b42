"""What rewards can tell apart: real sequences, the same words in another order, random tokens."""

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
    """For each reward its mean on real test sequences, on those shuffled, and on random tokens.

    Args:
        task: Where the sequences come from.
        rewards: Their names; all registered ones that fit the task as they are if none are given.
        n: How many sequences, if the test split has so many.
        seed: Draws the sequences and the noise.
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
            continue  # it does not fit the task, must be told something first, or lacks its library
        real_mean, shuffled_mean, noise_mean = (float(scorer(b).total.mean()) for b in (real, shuffled, noise))
        results[name] = (real_mean, shuffled_mean, noise_mean)
    return results


def _shuffle(batch: Batch, random: np.random.Generator) -> IntArray:
    """Each row's words in random order, its end where it was."""
    order = random.random(batch.tokens.shape)
    place = np.arange(batch.tokens.shape[1])
    order = np.where(place < batch.content_lengths[:, None], order, place + 1)
    return np.take_along_axis(batch.tokens, order.argsort(axis=1), axis=1)


def _replace(batch: Batch, random: np.random.Generator) -> IntArray:
    """Random tokens in place of each row's words, its end where it was."""
    size, eos = len(batch.vocab), batch.vocab.eos
    draws = random.integers(0, size if eos is None else size - 1, batch.tokens.shape)
    if eos is not None:
        draws += draws >= eos
    inside = np.arange(batch.tokens.shape[1]) < batch.content_lengths[:, None]
    return np.where(inside, draws, batch.tokens)
