"""Rewards that compare texts with the references of the prompt: metrics of sacreBLEU, rouge-score and NLTK.

The libraries are optional dependencies, the extra `metrics`. A library is imported when a reward
that needs it is created. The metrics get decoded texts, and tokenize and lowercase them in the
way of the library.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from types import ModuleType

import numpy as np

from text_gym.arrays import FloatArray
from text_gym.errors import DependencyError, OptionError
from text_gym.extras import import_extra
from text_gym.rewards.builtin import needs_prompts, references_of
from text_gym.rewards.reward import Reward
from text_gym.sequences import Batch
from text_gym.tasks.task import Task
from text_gym.validation import finite_number, whole_number


class _ComparingReward(Reward):
    """Base class of metrics of a text and its references; equal rows are scored once."""

    def prepare(self, task: Task) -> None:
        """Raise RewardError for a task without prompts."""
        needs_prompts(self.name, task)

    def _library(self, module: str) -> ModuleType:
        return import_extra(module, f"reward {self.name!r}", "metrics")

    @abstractmethod
    def compare(self, text: str, references: list[str]) -> float:
        """Compute the score of one text."""

    def score(self, batch: Batch) -> FloatArray:
        """Score each row; equal pairs of a text and its references are scored once."""
        for example in batch.examples or ():
            references_of(example, self.name)  # raises an error for a prompt without references
        rows = [(text, tuple(references)) for text, references in zip(batch.texts, batch.references, strict=True)]
        scores = {row: self.compare(row[0], list(row[1])) for row in dict.fromkeys(rows)}
        return np.array([scores[row] for row in rows], dtype=np.float64)


class ChrfReward(_ComparingReward):
    """chrF of sacreBLEU in [0, 1]: F-score of character n-grams; word_order=2 gives chrF++."""

    name = "chrf"

    def __init__(
        self,
        char_order: int = 6,
        word_order: int = 0,
        beta: int = 2,
        lowercase: bool = False,
        whitespace: bool = False,
        eps_smoothing: bool = False,
    ) -> None:
        """Create the metric; options and defaults are those of sacreBLEU.

        Args:
            char_order: Length of the longest character n-grams.
            word_order: Length of the longest word n-grams; 0 uses no word n-grams.
            beta: Weight of recall relative to precision.
            lowercase: Whether to ignore case.
            whitespace: Whether whitespace counts as characters.
            eps_smoothing: Whether to use epsilon smoothing, as NLTK and Moses do.
        """
        self._metric = self._library("sacrebleu.metrics").CHRF(
            char_order=whole_number("char_order", char_order, least=1),
            word_order=whole_number("word_order", word_order, least=0),
            beta=whole_number("beta", beta, least=1),
            lowercase=lowercase,
            whitespace=whitespace,
            eps_smoothing=eps_smoothing,
        )

    def compare(self, text: str, references: list[str]) -> float:
        """Compute the sentence-level chrF, which is the maximum over the references."""
        return float(self._metric.sentence_score(text, references).score) / 100


class TerReward(_ComparingReward):
    """1 - TER (translation edit rate of sacreBLEU): 1 for an exact match, negative for many edits."""

    name = "ter"

    def __init__(
        self,
        floor: float | None = None,
        normalized: bool = False,
        no_punct: bool = False,
        asian_support: bool = False,
        case_sensitive: bool = False,
    ) -> None:
        """Create the metric; all options but `floor`, and their defaults, are those of sacreBLEU.

        Args:
            floor: Lower bound of the score, for example 0; None sets no bound.
            normalized: Whether to tokenize and normalize the texts.
            no_punct: Whether to remove punctuation.
            asian_support: Whether to split Asian characters into words.
            case_sensitive: Whether to distinguish case.
        """
        self._floor = -np.inf if floor is None else finite_number("floor", floor)
        self._metric = self._library("sacrebleu.metrics").TER(
            normalized=normalized, no_punct=no_punct, asian_support=asian_support, case_sensitive=case_sensitive
        )

    def compare(self, text: str, references: list[str]) -> float:
        """Compute 1 - TER: edits to the nearest reference, divided by the mean length of the references."""
        return max(1 - float(self._metric.sentence_score(text, references).score) / 100, self._floor)


class RougeReward(_ComparingReward):
    """ROUGE F-measure of rouge-score, ignoring case and punctuation (maximum over the references)."""

    name = "rouge"

    def __init__(self, variant: str = "rougeL", use_stemmer: bool = False) -> None:
        """Create the metric.

        Args:
            variant: "rougeL", "rouge1" to "rouge9", or "rougeLsum" (ROUGE-L with lines as sentences).
            use_stemmer: Whether to compare the stems of words (English).
        """
        if not (isinstance(variant, str) and re.fullmatch(r"rouge(?:[1-9]|L|Lsum)", variant)):
            raise OptionError(f"unknown variant={variant!r}; give 'rougeL', 'rougeLsum', or 'rouge1' to 'rouge9'")
        self.variant = variant
        self._scorer = self._library("rouge_score.rouge_scorer").RougeScorer([variant], use_stemmer=use_stemmer)

    def compare(self, text: str, references: list[str]) -> float:
        """Compute the maximum F-measure over the references."""
        return max(float(self._scorer.score(reference, text)[self.variant].fmeasure) for reference in references)


class MeteorReward(_ComparingReward):
    """METEOR of NLTK in [0, 1]: matched words and stems, with a word-order penalty (maximum over the references)."""

    name = "meteor"

    def __init__(self, alpha: float = 0.9, beta: float = 3.0, gamma: float = 0.5, synonyms: bool = False) -> None:
        """Create the metric; the defaults are those of NLTK.

        Args:
            alpha: Weight of recall relative to precision: 1 is recall alone, 0 is precision alone.
            beta: Exponent of the fragmentation penalty.
            gamma: Weight of the fragmentation penalty.
            synonyms: Whether synonyms match, as in the published METEOR. Needs NLTK's download of WordNet.
        """
        self._score = self._library("nltk.translate.meteor_score").meteor_score
        self._tokenize = self._library("nltk.tokenize").wordpunct_tokenize
        self._unknown: str | None = None
        self._options = {
            "alpha": finite_number("alpha", alpha),
            "beta": finite_number("beta", beta),
            "gamma": finite_number("gamma", gamma),
            "wordnet": _wordnet() if synonyms else _NoSynonyms(),
        }

    def score(self, batch: Batch) -> FloatArray:
        """Score each row; the vocabulary's token for unknown words counts as one word."""
        self._unknown = None if batch.vocab.unk is None else batch.vocab.tokens[batch.vocab.unk]
        return super().score(batch)

    def compare(self, text: str, references: list[str]) -> float:
        """Compute the maximum METEOR over the references."""
        return float(self._score([self._words(r) for r in references], self._words(text), **self._options))

    def _words(self, text: str) -> list[str]:
        """Split a text by NLTK's wordpunct_tokenize, which would split `<unk>` into three tokens, and keep `<unk>`."""
        first, *rest = text.split(self._unknown) if self._unknown else [text]
        words = list(self._tokenize(first))
        for part in rest:
            words += [str(self._unknown), *self._tokenize(part)]
        return words


class _NoSynonyms:
    """A WordNet in which no word has a synonym."""

    def synsets(self, word: str) -> list[object]:
        """Return an empty list."""
        return []


def _wordnet() -> object:
    """Load WordNet; DependencyError if it has not been downloaded."""
    wordnet = import_extra("nltk.corpus", "reward 'meteor'", "metrics").wordnet
    try:
        wordnet.ensure_loaded()
    except LookupError as problem:
        raise DependencyError(
            "meteor(synonyms=True) needs WordNet: python -m nltk.downloader wordnet (or leave synonyms out)"
        ) from problem
    return wordnet
