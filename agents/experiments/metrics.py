"""Metrics of a model: likelihoods, divergences, BLEU, self-BLEU, diversity, and rewards.

All metrics of a model are computed on the same samples. BLEU and self-BLEU use as many samples as references for every
model, because BLEU rises with the number of references, and self-BLEU with the number of samples.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from functools import cached_property
from typing import Protocol, TypeGuard

import numpy as np

from agents.common.agent import Agent
from agents.common.credit import prefix_values
from agents.common.evaluation import Model, Sampler, draw, likelihoods, per_token
from agents.experiments.reference_models import knows_real_data
from agents.experiments.settings import MetricSettings
from agents.report.columns import ALSO
from agents.report.run_files import Nearest, Sample
from text_gym.arrays import FloatArray, IntArray
from text_gym.bleu import Bleu, self_bleu, sentence_bleu
from text_gym.errors import OptionError
from text_gym.rewards import Scorer
from text_gym.rewards.builtin import rouge_l
from text_gym.rewards.scorer import RewardSpec
from text_gym.sequences import SPLITS, Batch
from text_gym.tasks.task import Task

BLEU_ORDERS = (2, 3, 4, 5)
REFERENCE_SEED = 0  # selects the references, which are the same for every model and every seed
SWEPT = ("nll_oracle", "nll_test", "entropy", "kl_model_data", "kl_data_model", "kl_sum", "js", "validity", "bleu4",
         "self_bleu4", "reward")  # fmt: skip


class Rewarded(Protocol):
    """A model with its own reward."""

    def rewards(self, batch: Batch) -> FloatArray:
        """Score finished sequences, [n]."""


class Metrics:
    """Computes the metrics of models of one task.

    Args:
        task: Task with the held-out sequences.
        settings: Numbers of samples, temperatures and additional rewards.
        reward: Reward of the environment to report; None for no reward, or for the default reward of a task with
            prompts.
        trust: Whether rewards may be named as Python code; see `Scorer`.
    """

    def __init__(
        self, task: Task, settings: MetricSettings, reward: RewardSpec | None = None, trust: bool = True
    ) -> None:
        """Select the references; raise an OptionError if the test split has fewer than two sequences."""
        self.task, self.settings = task, settings
        self.test = task.batch("test")
        if len(self.test) < 2:
            raise OptionError(f"the 'test' split of {task!r} has {len(self.test)} sequences; it needs at least 2")
        if reward is None and task.conditional:
            reward = task.default_reward
        self.reward = None if reward is None else Scorer(reward, task, trust=trust)
        self.also = {ALSO + name: Scorer(name, task, trust=trust) for name in settings.also}
        rows = np.random.default_rng(REFERENCE_SEED).permutation(len(self.test))
        self.size = min(settings.references, len(self.test), _max_real_samples(task))
        self.references = self.test.take(rows[: self.size])
        self.swept = self.test.take(rows[: max(settings.sweep_samples, self.size)])

    @cached_property
    def tables(self) -> dict[int, Bleu]:
        """BLEU scorers against the references, by maximal n-gram order."""
        return {n: Bleu(self.references.sentences, n) for n in BLEU_ORDERS}

    @cached_property
    def training(self) -> list[list[int]]:
        """All training sequences."""
        return self.task.train.references.to_lists()

    @cached_property
    def steps_of_real(self) -> IntArray:
        """Steps of the test split through the language, as numbered by `Task.steps`, for coverage."""
        steps = self.task.steps(self.test.tokens, self.test.lengths)
        return steps[steps >= 0]

    def sizes(self) -> dict[str, int]:
        """Return the number of sequences in each split, and the number of BLEU references."""
        splits = {name: len(self.task.split(name).references) for name in SPLITS}
        return splits if self.task.conditional else splits | {"references": self.size}

    def unknown(self) -> dict[str, float]:
        """Compute the share of unknown words in each split; {} for a vocabulary without an unknown token."""
        unk = self.task.vocab.unk
        splits = {name: self.task.split(name).references.flat for name in SPLITS}
        return {} if unk is None else {name: float((ids == unk).mean()) for name, ids in splits.items() if len(ids)}

    def signatures(self) -> dict[str, str]:
        """Return the signature of each score, which says how it was computed."""
        scores = {} if self.task.conditional else {f"bleu{n}": table.signature for n, table in self.tables.items()}
        sizes = f"sequences:{self.size}"
        return scores | {f"self_bleu{n}": f"self_bleu|n:{n}|smoothing:method1|{sizes}" for n in BLEU_ORDERS}

    def figures(self, model: Sampler, seed: int) -> dict[str, float]:
        """Compute every metric that the task and the model support."""
        samples = draw(model, max(self.settings.samples, self.size), seed, "test")
        return self.of_samples(model, samples, self.test) | self.of_texts(samples)

    def sweep(self, model: Sampler, seed: int) -> list[dict[str, float]]:
        """Compute metrics of quality and diversity at each temperature; [] for a model without temperatures."""
        if not knows_temperature(model):
            return []
        n = max(self.settings.sweep_samples, self.size)
        rows = []
        for temperature in self.settings.temperatures:
            samples = draw(model, n, seed, "test", temperature=temperature)
            figures = self.of_samples(model, samples, self.swept, temperature)
            figures |= self._overlaps(samples.take(np.arange(self.size)), (4,))
            rows.append({"temperature": temperature} | {key: figures[key] for key in SWEPT if key in figures})
        return rows

    def of_samples(self, model: object, samples: Batch, real: Batch, temperature: float = 1.0) -> dict[str, float]:
        """Compute likelihoods, divergences, validity, coverage and mean rewards of samples."""
        task = self.task
        figures: dict[str, float] = {}
        if has_log_prob(model):
            figures = likelihoods(model, samples, real, temperature)
            figures.pop("data_entropy", None)
        elif task.knows("log_prob"):
            figures["nll_oracle"] = per_token(task.log_prob(samples.tokens, samples.lengths), samples)
        if task.knows("is_valid"):
            figures["validity"] = float(task.is_valid(samples.tokens, samples.lengths).mean())
        if task.knows("steps"):
            steps = task.steps(samples.tokens, samples.lengths)
            figures["coverage"] = float(np.isin(self.steps_of_real, steps).mean())
        if not _has_references(samples):
            return figures
        if self.reward is not None:
            figures["reward"] = float(self.reward(samples).total.mean())
        return figures | {key: float(scorer(samples).total.mean()) for key, scorer in self.also.items()}

    def of_texts(self, samples: Batch) -> dict[str, float]:
        """Compute BLEU, self-BLEU, diversity and lengths of as many samples as there are references."""
        part = samples.take(np.arange(min(self.size, len(samples))))
        sentences = [tuple(sentence) for sentence in part.sentences]
        training = set(map(tuple, self.training))
        figures = self._overlaps(part, BLEU_ORDERS)
        figures |= {f"distinct{n}": distinct(sentences, n) for n in (1, 2, 3, 4)}
        figures["duplicates"] = 1 - len(set(sentences)) / len(sentences)
        figures["copies"] = sum(sentence in training for sentence in sentences) / len(sentences)
        figures["length"] = float(part.content_lengths.mean())
        return figures

    def _overlaps(self, part: Batch, orders: Sequence[int]) -> dict[str, float]:
        """Compute BLEU and self-BLEU; with prompts, also ROUGE-L and exact match against each prompt's references."""
        figures = {f"self_bleu{n}": float(self_bleu(part.sentences, n).mean()) for n in orders}
        if part.examples is None:
            scores = {n: self.tables[n].score(part.tokens, part.content_lengths) for n in orders}
            return figures | {f"bleu{n}": float(score.mean()) for n, score in scores.items()}
        if not _has_references(part):
            return figures
        rows = list(zip(part.sentences, [example.references for example in part.examples], strict=True))
        for n in orders:
            figures[f"bleu{n}"] = float(np.mean([sentence_bleu(s, references, n) for s, references in rows]))
        figures["rouge_l"] = float(np.mean([max(rouge_l(s, r) for r in references) for s, references in rows]))
        figures["exact_match"] = float(np.mean([tuple(s) in references for s, references in rows]))
        return figures

    def samples(self, model: Sampler, seed: int) -> list[Sample]:
        """Sample a few sequences, with their rewards, the value of each prefix, and the nearest training sequence."""
        if not self.settings.shown:
            return []
        batch = draw(model, self.settings.shown, seed, "test")
        rewards = model.rewards(batch) if has_rewards(model) else self._env_rewards(batch)
        rollouts, values = self.settings.credit_rollouts, None
        if rollouts and isinstance(model, Agent):
            values = prefix_values(model, batch, rollouts, seed)
        return [
            {
                "text": batch.texts[i],
                "prompt": batch.prompts[i],
                "tokens": [self.task.vocab.tokens[token] for token in batch.tokens[i, : batch.lengths[i]].tolist()],
                "reward": None if rewards is None else float(rewards[i]),
                "values": None if values is None else [round(v, 5) for v in values[i, : batch.lengths[i] + 1].tolist()],
                "nearest": self._nearest(batch.sentences[i]),
            }
            for i in range(len(batch))
        ]

    def _env_rewards(self, batch: Batch) -> FloatArray | None:
        return self.reward(batch).total if self.reward is not None and _has_references(batch) else None

    def _nearest(self, sentence: list[int]) -> Nearest:
        """Find the training sequence with the highest ROUGE-L."""
        if not self.training:
            return {"text": "", "similarity": 0.0}
        similarity = [rouge_l(sentence, other) for other in self.training]
        best = int(np.argmax(similarity))
        return {"text": self.task.decode(self.training[best]), "similarity": round(similarity[best], 4)}


def has_log_prob(model: object) -> TypeGuard[Model]:
    """Whether a model computes log-probabilities of sequences."""
    return hasattr(model, "log_prob")


def has_rewards(model: object) -> TypeGuard[Rewarded]:
    """Whether a model has its own reward."""
    return hasattr(model, "rewards")


def knows_temperature(model: Sampler) -> bool:
    """Whether sample() and, if there is one, log_prob() of a model take a temperature."""
    methods = [model.sample, model.log_prob] if has_log_prob(model) else [model.sample]
    return all("temperature" in inspect.signature(method).parameters for method in methods)


def _has_references(batch: Batch) -> bool:
    """Whether every prompt has references; true without prompts."""
    return batch.examples is None or all(example.references for example in batch.examples)


def _max_real_samples(task: Task) -> int:
    """Return how many sequences the model of real data can sample."""
    if task.conditional or task.knows("sample") or not knows_real_data(task):
        return sys.maxsize
    return len(task.valid.references)


def distinct(sentences: Sequence[Sequence[int]], n: int) -> float:
    """Compute the share of distinct n-grams among all n-grams of the sentences; 0 without n-grams.

    >>> distinct([(1, 2, 1), (1, 2)], 1), distinct([(1, 2, 1), (1, 2)], 2)
    (0.4, 0.6666666666666666)
    """
    grams = [tuple(sentence[i : i + n]) for sentence in sentences for i in range(len(sentence) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0
