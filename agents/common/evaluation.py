"""What a model's samples and likelihoods say of it, and a callback that asks again and again while it learns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from text_gym.arrays import FloatArray
from text_gym.errors import OptionError
from text_gym.sequences import Batch
from text_gym.tasks.task import Task
from text_gym.validation import whole_number


class Sampler(Protocol):
    """Anything that samples sequences of a task."""

    task: Task

    @property
    def sample(self) -> Callable[..., Batch]:
        """Sample sequences: takes n and seed, in tasks with prompts also prompts, and perhaps a temperature."""


class Model(Sampler, Protocol):
    """A sampler that knows the likelihood of sequences."""

    @property
    def log_prob(self) -> Callable[..., FloatArray]:
        """Compute the log-probability of each sequence: takes tokens, lengths, examples, and perhaps a temperature."""


def evaluate(model: Model, n: int = 9_984, seed: int = 0, split: str = "test") -> dict[str, float]:
    """Likelihoods of the model and, where its source is known, of the data; in nats per token.

    Args:
        model: A trained agent.
        n: How many sequences to draw; in tasks with prompts, for prompts drawn from the split.
        seed: Draws them.
        split: The real sequences to score.

    Returns:
        nll_test (or nll_ and the split's name): the model's of real sequences. entropy: the model's
        of its own. With a known source, nll_oracle: the source's of the model's sequences, infinite
        if any is impossible; data_entropy: the source's of its own; kl_model_data, kl_data_model,
        kl_sum: both divergences and their sum; js: that of Jensen and Shannon, in nats per
        sequence, finite always and at most log 2. With a known language, validity. Where the
        environment bans tokens or has a min_length, the entropy is that of what is written, nll_test
        still the policy's own, and kl_data_model, kl_sum and js are left out.
        A low nll_oracle alone says little: it falls as a model says less and less.
    """
    task = model.task
    if not len(task.split(split)):
        raise OptionError(f"the {split!r} split of task {task.name!r} is empty")
    drawn = draw(model, whole_number("n", n, least=1), seed, split)
    results = likelihoods(model, drawn, task.batch(split))
    if task.knows("is_valid"):
        results["validity"] = float(np.mean(task.is_valid(drawn.tokens, drawn.lengths)))
    return {f"nll_{split}" if name == "nll_test" else name: value for name, value in results.items()}


def likelihoods(model: Model, drawn: Batch, real: Batch, temperature: float = 1.0) -> dict[str, float]:
    """What `evaluate` says of likelihoods, for sequences drawn (at this temperature) and real ones."""
    task = model.task
    changed = {} if temperature == 1 else {"temperature": temperature}
    of_real = model.log_prob(real.tokens, real.lengths, real.examples, **changed)
    restricts = getattr(model, "restricts", False)
    as_sampled = {"as_sampled": True} if restricts else {}
    of_drawn = model.log_prob(drawn.tokens, drawn.lengths, drawn.examples, **as_sampled, **changed)
    results = {"nll_test": per_token(of_real, real), "entropy": per_token(of_drawn, drawn)}
    same_language = drawn.tokens.shape[1] == task.max_length  # not if the environment limits the length
    if task.knows("log_prob") and same_language:
        source_of_real = task.log_prob(real.tokens, real.lengths)
        source_of_drawn = task.log_prob(drawn.tokens, drawn.lengths)
        results["nll_oracle"] = per_token(source_of_drawn, drawn)
        results["data_entropy"] = per_token(source_of_real, real)
        results["kl_model_data"] = results["nll_oracle"] - results["entropy"]
        if not restricts:
            results["kl_data_model"] = results["nll_test"] - results["data_entropy"]
            results["kl_sum"] = results["kl_model_data"] + results["kl_data_model"]
            halves = _above_mixture(of_drawn, source_of_drawn), _above_mixture(source_of_real, of_real)
            results["js"] = max(0.0, sum(halves) / 2)  # 0 but for rounding, if both are one
    return results


class Evaluation(BaseCallback):
    """Evaluates before the first step of learn() and after every so many, and records the results as `eval/...`.

    Args:
        every: How many steps.
        n: How many sequences to draw, always by the same seed.
        split: The real sequences to score.
    """

    def __init__(self, every: int = 1, n: int = 1_000, split: str = "test") -> None:
        """Keep the numbers."""
        super().__init__()
        self.every, self.n, self.split = whole_number("every", every, least=1), n, split
        self.history: list[dict[str, float]] = []

    def _on_training_start(self) -> None:
        if self.num_timesteps == 0:
            self._evaluate()
            self.logger.dump(0)

    def _on_step(self) -> bool:
        if self.num_timesteps % self.every == 0:
            self._evaluate()
        return True

    def _evaluate(self) -> None:
        model: Model = self.model  # type: ignore[assignment]
        results = evaluate(model, self.n, split=self.split)
        self.history.append({"step": self.num_timesteps} | results)
        for name, value in results.items():
            self.logger.record(f"eval/{name}", value)


def draw(model: Sampler, n: int, seed: int, split: str, temperature: float = 1.0) -> Batch:
    """Sample sequences by a seed; in tasks with prompts, for prompts sampled from the split by the same seed."""
    options = {} if temperature == 1 else {"temperature": temperature}  # a model may know none
    if not model.task.conditional:
        return model.sample(n, seed=seed, **options)
    pool = model.task.split(split)
    chosen = np.random.default_rng(seed).integers(len(pool), size=n)
    return model.sample(n, seed=seed, prompts=[pool[i] for i in chosen.tolist()], **options)


def _above_mixture(own: FloatArray, other: FloatArray) -> float:
    """The mean of log p - log((p + q) / 2) over sequences drawn from p, whose log p and log q these are."""
    return float(np.mean(own - np.logaddexp(own, other) + np.log(2)))


def per_token(log_probs: FloatArray, batch: Batch) -> float:
    """The mean over tokens of minus the log-probabilities, [n], of sequences."""
    return float(-log_probs.sum() / batch.lengths.sum())
