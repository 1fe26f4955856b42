"""Evaluation of models by likelihoods and divergences, and a callback that evaluates during learning."""

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
        """Sample sequences; the arguments are n, seed, prompts (in tasks with prompts) and optionally temperature."""


class Model(Sampler, Protocol):
    """A sampler that can compute the log-probability of sequences."""

    @property
    def log_prob(self) -> Callable[..., FloatArray]:
        """Compute log-probabilities; the arguments are tokens, lengths, examples and optionally temperature."""


def evaluate(model: Model, n: int = 9_984, seed: int = 0, split: str = "test") -> dict[str, float]:
    """Compute likelihoods and divergences of a model.

    Args:
        model: A trained agent.
        n: Number of sequences to sample. In tasks with prompts, the prompts are sampled from the split.
        seed: Seed of the sampling.
        split: Split with the real sequences to score.

    Returns:
        Metrics by name, in nats per token unless stated otherwise:

        - nll_test (or nll_ and the name of the split): NLL of real sequences under the model.
        - entropy: NLL of the model's sequences under the model.

        In tasks with a known source, such as the oracle:

        - nll_oracle: NLL of the model's sequences under the source; infinite if one of them is impossible. A low value
          alone is no sign of quality, because it also decreases as the model loses diversity.
        - data_entropy: NLL of real sequences under the source.
        - kl_model_data, kl_data_model, kl_sum: KL divergences in both directions, and their sum.
        - js: Jensen-Shannon divergence in nats per sequence, at most log 2.

        In tasks with a known language, such as the grammar:

        - validity: share of the model's sequences that are valid.

        If the environment bans tokens or has a min_length, entropy is the entropy of this restricted distribution,
        nll_test is still the policy's own, and kl_data_model, kl_sum and js are left out. If the environment limits the
        length, all metrics of a known source are left out.
    """
    task = model.task
    if not len(task.split(split)):
        raise OptionError(f"the {split!r} split of task {task.name!r} is empty; name another split")
    sampled = draw(model, whole_number("n", n, least=1), seed, split)
    results = likelihoods(model, sampled, task.batch(split))
    if task.knows("is_valid"):
        results["validity"] = float(np.mean(task.is_valid(sampled.tokens, sampled.lengths)))
    return {f"nll_{split}" if name == "nll_test" else name: value for name, value in results.items()}


def likelihoods(model: Model, sampled: Batch, real: Batch, temperature: float = 1.0) -> dict[str, float]:
    """Compute the likelihoods and divergences of `evaluate`.

    Args:
        model: A trained agent.
        sampled: Sequences sampled from the model at this temperature.
        real: Real sequences.
        temperature: Temperature of the model.
    """
    task = model.task
    changed = {} if temperature == 1 else {"temperature": temperature}
    model_of_real = model.log_prob(real.tokens, real.lengths, real.examples, **changed)
    restricts = getattr(model, "restricts", False)
    as_sampled = {"as_sampled": True} if restricts else {}
    model_of_sampled = model.log_prob(sampled.tokens, sampled.lengths, sampled.examples, **as_sampled, **changed)
    results = {"nll_test": per_token(model_of_real, real), "entropy": per_token(model_of_sampled, sampled)}
    same_length = sampled.tokens.shape[1] == task.max_length  # False if the environment limits the length
    if task.knows("log_prob") and same_length:
        source_of_real = task.log_prob(real.tokens, real.lengths)
        source_of_sampled = task.log_prob(sampled.tokens, sampled.lengths)
        results["nll_oracle"] = per_token(source_of_sampled, sampled)
        results["data_entropy"] = per_token(source_of_real, real)
        results["kl_model_data"] = results["nll_oracle"] - results["entropy"]
        if not restricts:
            results["kl_data_model"] = results["nll_test"] - results["data_entropy"]
            results["kl_sum"] = results["kl_model_data"] + results["kl_data_model"]
            halves = _kl_to_mixture(model_of_sampled, source_of_sampled), _kl_to_mixture(source_of_real, model_of_real)
            results["js"] = max(0.0, sum(halves) / 2)  # rounding may make the divergence of equal models negative
    return results


class Evaluation(BaseCallback):
    """Callback that evaluates before the first step of learn() and after every `every` steps, and logs `eval/...`.

    Args:
        every: Number of steps between evaluations.
        n: Number of sequences to sample, always with the same seed.
        split: Split with the real sequences to score.
    """

    def __init__(self, every: int = 1, n: int = 1_000, split: str = "test") -> None:
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
    """Sample n sequences with a seed. In tasks with prompts, the prompts are sampled from the split with this seed."""
    options = {} if temperature == 1 else {"temperature": temperature}  # sample() of a model may not have the argument
    if not model.task.conditional:
        return model.sample(n, seed=seed, **options)
    pool = model.task.split(split)
    chosen = np.random.default_rng(seed).integers(len(pool), size=n)
    return model.sample(n, seed=seed, prompts=[pool[i] for i in chosen.tolist()], **options)


def _kl_to_mixture(log_p: FloatArray, log_q: FloatArray) -> float:
    """Estimate KL(p, (p + q) / 2) from the log-probabilities [n] of sequences that were sampled from p."""
    return float(np.mean(log_p - np.logaddexp(log_p, log_q) + np.log(2)))


def per_token(log_probs: FloatArray, batch: Batch) -> float:
    """Compute the mean NLL per token from the log-probabilities [n] of sequences."""
    return float(-log_probs.sum() / batch.lengths.sum())
