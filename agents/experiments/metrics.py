"""Every figure of a model: likelihoods, divergences, BLEU and self-BLEU of fixed sizes, variety, and rewards.

What is written is drawn once for a row of figures. Texts are compared in sets of one size: as many of
the model's sequences as there are references, whatever the model, because BLEU rises with the number
of references and self-BLEU with that of sequences.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from functools import cached_property
from typing import Protocol, TypeGuard

import numpy as np
import torch

from agents.common.agent import Agent
from agents.common.evaluation import Model, Sampler, draw, likelihoods, per_token
from agents.common.rollouts import rollout_values, score_sequences
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
REFERENCE_SEED = 0  # chooses the references, which are the same for every model and every seed
SWEPT = ("nll_oracle", "nll_test", "entropy", "kl_model_data", "kl_data_model", "kl_sum", "js", "validity", "bleu4",
         "self_bleu4", "reward")  # fmt: skip


class Rewarded(Protocol):
    """A model that has a reward of its own."""

    def rewards(self, batch: Batch) -> FloatArray:
        """Score finished sequences, [n]."""


class Metrics:
    """The figures of the models of one task.

    Args:
        task: Whose held-out sequences they are compared with.
        settings: How much is drawn.
        reward: The environment's reward, if it is to be a column; with prompts the task's own is one in any case.
        trust: Whether rewards may be named as code; see `Scorer`.
    """

    def __init__(
        self, task: Task, settings: MetricSettings, reward: RewardSpec | None = None, trust: bool = True
    ) -> None:
        """Choose the references."""
        self.task, self.settings = task, settings
        self.test = task.batch("test")
        if len(self.test) < 2:
            raise OptionError(f"the 'test' split of {task!r} has {len(self.test)} sequences, and comparing takes two")
        if reward is None and task.conditional:
            reward = task.default_reward
        self.reward = None if reward is None else Scorer(reward, task, trust=trust)
        self.also = {ALSO + name: Scorer(name, task, trust=trust) for name in settings.also}
        rows = np.random.default_rng(REFERENCE_SEED).permutation(len(self.test))
        self.size = min(settings.references, len(self.test), _real_ones(task))
        self.references = self.test.take(rows[: self.size])
        self.swept = self.test.take(rows[: max(settings.sweep_samples, self.size)])

    @cached_property
    def tables(self) -> dict[int, Bleu]:
        """BLEU against the references, by the longest n."""
        return {n: Bleu(self.references.sentences, n) for n in BLEU_ORDERS}

    @cached_property
    def training(self) -> list[list[int]]:
        """All training sequences."""
        return self.task.train.references.to_lists()

    @cached_property
    def steps_of_real(self) -> IntArray:
        """Steps through the language that the test split takes."""
        steps = self.task.steps(self.test.tokens, self.test.lengths)
        return steps[steps >= 0]

    def sizes(self) -> dict[str, int]:
        """Count the sequences of each split, and those that BLEU compares with."""
        splits = {name: len(self.task.split(name).references) for name in SPLITS}
        return splits if self.task.conditional else splits | {"references": self.size}

    def unknown(self) -> dict[str, float]:
        """Compute the share of unknown words in each split's sequences; nothing where there is no such token."""
        unk = self.task.vocab.unk
        splits = {name: self.task.split(name).references.flat for name in SPLITS}
        return {} if unk is None else {name: float((ids == unk).mean()) for name, ids in splits.items() if len(ids)}

    def signatures(self) -> dict[str, str]:
        """Describe how each kind of score was computed, to stand beside it."""
        scores = {} if self.task.conditional else {f"bleu{n}": table.signature for n, table in self.tables.items()}
        sizes = f"sequences:{self.size}"
        return scores | {f"self_bleu{n}": f"self_bleu|n:{n}|smoothing:method1|{sizes}" for n in BLEU_ORDERS}

    def figures(self, model: Sampler, seed: int) -> dict[str, float]:
        """Compute every figure of a model that the task and the model allow."""
        drawn = draw(model, max(self.settings.samples, self.size), seed, "test")
        return self.of_samples(model, drawn, self.test) | self.of_texts(drawn)

    def sweep(self, model: Sampler, seed: int) -> list[dict[str, float]]:
        """Compute the figures of quality and diversity at each temperature, if the model can be sampled at one."""
        if not knows_temperature(model):
            return []
        n = max(self.settings.sweep_samples, self.size)
        rows = []
        for temperature in self.settings.temperatures:
            drawn = draw(model, n, seed, "test", temperature=temperature)
            figures = self.of_samples(model, drawn, self.swept, temperature)
            figures |= self._alike(drawn.take(np.arange(self.size)), (4,))
            rows.append({"temperature": temperature} | {key: figures[key] for key in SWEPT if key in figures})
        return rows

    def of_samples(self, model: object, drawn: Batch, real: Batch, temperature: float = 1.0) -> dict[str, float]:
        """Compute likelihoods, shares of valid sequences and mean rewards of samples."""
        task = self.task
        figures: dict[str, float] = {}
        if has_log_prob(model):
            figures = likelihoods(model, drawn, real, temperature)
            figures.pop("data_entropy", None)
        elif task.knows("log_prob"):
            figures["nll_oracle"] = per_token(task.log_prob(drawn.tokens, drawn.lengths), drawn)
        if task.knows("is_valid"):
            figures["validity"] = float(task.is_valid(drawn.tokens, drawn.lengths).mean())
        if task.knows("steps"):
            figures["coverage"] = float(np.isin(self.steps_of_real, task.steps(drawn.tokens, drawn.lengths)).mean())
        if not _has_references(drawn):
            return figures
        if self.reward is not None:
            figures["reward"] = float(self.reward(drawn).total.mean())
        return figures | {key: float(scorer(drawn).total.mean()) for key, scorer in self.also.items()}

    def of_texts(self, drawn: Batch) -> dict[str, float]:
        """Compare as many samples as there are references with each other and with real sequences."""
        part = drawn.take(np.arange(min(self.size, len(drawn))))
        sentences = [tuple(sentence) for sentence in part.sentences]
        trained = set(map(tuple, self.training))
        figures = self._alike(part, BLEU_ORDERS)
        figures |= {f"distinct{n}": distinct(sentences, n) for n in (1, 2, 3, 4)}
        figures["duplicates"] = 1 - len(set(sentences)) / len(sentences)
        figures["copies"] = sum(sentence in trained for sentence in sentences) / len(sentences)
        figures["length"] = float(part.content_lengths.mean())
        return figures

    def _alike(self, part: Batch, orders: Sequence[int]) -> dict[str, float]:
        """Compute BLEU and self-BLEU; with prompts, also ROUGE-L and exact match against the prompt's references."""
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
        """Sample a few sequences, with their rewards, each token's credit, and the nearest training sequence."""
        if not self.settings.shown:
            return []
        batch = draw(model, self.settings.shown, seed, "test")
        rewards = model.rewards(batch) if has_rewards(model) else self._own_reward(batch)
        values = self._values(model, batch, seed)
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

    def _own_reward(self, batch: Batch) -> FloatArray | None:
        return self.reward(batch).total if self.reward is not None and _has_references(batch) else None

    def _values(self, model: Sampler, batch: Batch, seed: int) -> FloatArray | None:
        """Estimate an agent's value of each sequence before its first token and after each, [n, T + 1]."""
        if not self.settings.credit_rollouts or not isinstance(model, Agent):
            return None
        values = rollout_values(
            model.restricted(model.policy.eval()),
            model.tensor(batch.tokens),
            model.tensor(batch.lengths),
            score_sequences(model.rewards, self.task.vocab, batch.examples),
            self.settings.credit_rollouts,
            self.task.vocab.eos,
            torch.Generator(model.device).manual_seed(seed),
            model.prompt_tokens(batch.examples),
            from_start=True,
        )
        return np.asarray(values.cpu().numpy(), dtype=np.float64)

    def _nearest(self, sentence: list[int]) -> Nearest:
        """Find the training sequence with the longest common subsequence, for its length."""
        if not self.training:
            return {"text": "", "similarity": 0.0}
        likeness = [rouge_l(sentence, other) for other in self.training]
        best = int(np.argmax(likeness))
        return {"text": self.task.decode(self.training[best]), "similarity": round(likeness[best], 4)}


def has_log_prob(model: object) -> TypeGuard[Model]:
    """Whether a model knows the likelihood of sequences."""
    return hasattr(model, "log_prob")


def has_rewards(model: object) -> TypeGuard[Rewarded]:
    """Whether a model has a reward of its own."""
    return hasattr(model, "rewards")


def knows_temperature(model: Sampler) -> bool:
    """Whether a model can be sampled, and asked for likelihoods, at a temperature."""
    asked = [model.sample, model.log_prob] if has_log_prob(model) else [model.sample]
    return all("temperature" in inspect.signature(method).parameters for method in asked)


def _has_references(batch: Batch) -> bool:
    """Whether there is something to compare each answer with; always, where there are no prompts."""
    return batch.examples is None or all(example.references for example in batch.examples)


def _real_ones(task: Task) -> int:
    """Count the real sequences that can stand in a row of their own."""
    if task.conditional or task.knows("sample") or not knows_real_data(task):
        return sys.maxsize
    return len(task.valid.references)


def distinct(sentences: Sequence[Sequence[int]], n: int) -> float:
    """Share of distinct n-grams among all n-grams of the sentences; 0 where there are none.

    >>> distinct([(1, 2, 1), (1, 2)], 1), distinct([(1, 2, 1), (1, 2)], 2)
    (0.4, 0.6666666666666666)
    """
    grams = [tuple(sentence[i : i + n]) for sentence in sentences for i in range(len(sentence) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0
