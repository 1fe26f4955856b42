"""What a model's samples and likelihoods say of it, in nats per token."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from text_gym.arrays import FloatArray
from text_gym.errors import OptionError
from text_gym.sequences import Batch, Example
from text_gym.tasks import Task


class Model(Protocol):
    """What can be measured: anything that draws sequences and knows their likelihood."""

    task: Task

    def sample(self, n: int, *, seed: int | None = None) -> Batch:
        """Draw n sequences."""

    def log_prob(
        self, tokens: npt.ArrayLike, lengths: npt.ArrayLike | None = None, examples: list[Example] | None = None
    ) -> FloatArray:
        """The log-probability of each sequence."""


def evaluate(model: Model, n: int = 9_984, seed: int = 0, split: str = "test") -> dict[str, float]:
    """Likelihoods of the model and, where its source is known, of the data.

    Args:
        model: A trained agent.
        n: How many sequences to draw.
        seed: Draws them.
        split: The real sequences to score.

    Returns:
        nll_test: the model's of real sequences. entropy: the model's of its own. With a known
        source, nll_oracle: the source's of the model's sequences, infinite if any is impossible;
        data_entropy: the source's of its own; kl_model_data, kl_data_model: both divergences.
        A low nll_oracle alone says little: it falls as a model says less and less.
    """
    task = model.task
    if not len(task.split(split)):
        raise OptionError(f"the {split!r} split of task {task.name!r} is empty")
    real, drawn = task.batch(split), model.sample(n, seed=seed)
    results = {
        "nll_test": _per_token(model.log_prob(real.tokens, real.lengths, _listed(real)), real),
        "entropy": _per_token(model.log_prob(drawn.tokens, drawn.lengths, _listed(drawn)), drawn),
    }
    same_language = drawn.tokens.shape[1] == task.max_length  # not if the environment limits the length
    if task.knows("log_prob") and same_language:
        results["nll_oracle"] = _per_token(task.log_prob(drawn.tokens, drawn.lengths), drawn)
        results["data_entropy"] = _per_token(task.log_prob(real.tokens, real.lengths), real)
        results["kl_model_data"] = results["nll_oracle"] - results["entropy"]
        results["kl_data_model"] = results["nll_test"] - results["data_entropy"]
    if task.knows("is_valid"):
        results["validity"] = float(np.mean(task.is_valid(drawn.tokens, drawn.lengths)))
    return results


def _per_token(log_probs: FloatArray, batch: Batch) -> float:
    return float(-log_probs.sum() / batch.lengths.sum())


def _listed(batch: Batch) -> list[Example] | None:
    return None if batch.examples is None else list(batch.examples)
