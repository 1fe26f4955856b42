"""Rewards that compare texts with the prompt's own references, as published libraries compute them.

The libraries are the extra `metrics`; each is imported when its reward is made. Texts are what
the vocabulary decodes, so the libraries' own ways of cutting up words and ignoring case hold.
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
    """A score of a text against the references of its prompt, computed once for rows that are equal."""

    def prepare(self, task: Task) -> None:
        """Refuse a task without prompts."""
        needs_prompts(self.name, task)

    def _library(self, module: str) -> ModuleType:
        return import_extra(module, f"reward {self.name!r}", "metrics")

    @abstractmethod
    def compare(self, text: str, references: list[str]) -> float:
        """Score one text."""

    def score(self, batch: Batch) -> FloatArray:
        """Compare each different pair of a text and its references."""
        for example in batch.examples or ():
            references_of(example, self.name)  # refuses a prompt without any
        rows = [(text, tuple(references)) for text, references in zip(batch.texts, batch.references, strict=True)]
        scores = {row: self.compare(row[0], list(row[1])) for row in dict.fromkeys(rows)}
        return np.array([scores[row] for row in rows], dtype=np.float64)


class ChrfReward(_ComparingReward):
    """sacreBLEU's chrF in [0, 1]: n-grams of characters shared with the references; chrF++ with word_order=2."""

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
        """Take sacreBLEU's options, with its defaults.

        Args:
            char_order: The longest n-gram of characters.
            word_order: The longest n-gram of words; 0 leaves words out.
            beta: How many times as much recall counts as precision.
            lowercase: Whether case is ignored.
            whitespace: Whether spaces are characters.
            eps_smoothing: Whether short texts are smoothed as in NLTK and Moses.
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
        """Compare with all references as sacreBLEU does: the best counts."""
        return float(self._metric.sentence_score(text, references).score) / 100


class TerReward(_ComparingReward):
    """1 - TER, sacreBLEU's translation edit rate: 1 for a reference itself, negative where more is wrong than right."""

    name = "ter"

    def __init__(
        self,
        floor: float | None = None,
        normalized: bool = False,
        no_punct: bool = False,
        asian_support: bool = False,
        case_sensitive: bool = False,
    ) -> None:
        """Take sacreBLEU's options, with its defaults.

        Args:
            floor: The least that a text is worth, for example 0; no such limit if None.
            normalized: Whether texts are tokenized and normalized first.
            no_punct: Whether punctuation is left out.
            asian_support: Whether Asian characters are words.
            case_sensitive: Whether case matters.
        """
        self._floor = -np.inf if floor is None else finite_number("floor", floor)
        self._metric = self._library("sacrebleu.metrics").TER(
            normalized=normalized, no_punct=no_punct, asian_support=asian_support, case_sensitive=case_sensitive
        )

    def compare(self, text: str, references: list[str]) -> float:
        """Count the edits to the nearest reference, over the references' mean length, as sacreBLEU does."""
        return max(1 - float(self._metric.sentence_score(text, references).score) / 100, self._floor)


class RougeReward(_ComparingReward):
    """ROUGE's F-measure by rouge-score, which ignores case and punctuation; the best of the references counts."""

    name = "rouge"

    def __init__(self, variant: str = "rougeL", use_stemmer: bool = False) -> None:
        """Choose the variant.

        Args:
            variant: "rougeL", "rouge1" to "rouge9", or "rougeLsum", which compares line by line.
            use_stemmer: Whether words are compared by their stems (English).
        """
        if not (isinstance(variant, str) and re.fullmatch(r"rouge(?:[1-9]|L|Lsum)", variant)):
            raise OptionError(f"variant={variant!r} is none of rouge-score's: give 'rougeL', 'rouge1' or 'rougeLsum'")
        self.variant = variant
        self._scorer = self._library("rouge_score.rouge_scorer").RougeScorer([variant], use_stemmer=use_stemmer)

    def compare(self, text: str, references: list[str]) -> float:
        """Compare with each reference alone: the best counts."""
        return max(float(self._scorer.score(reference, text)[self.variant].fmeasure) for reference in references)


class MeteorReward(_ComparingReward):
    """NLTK's METEOR in [0, 1]: words and stems shared with the best of the references, and in what order."""

    name = "meteor"

    def __init__(self, alpha: float = 0.9, beta: float = 3.0, gamma: float = 0.5, synonyms: bool = False) -> None:
        """Take NLTK's weights, with its defaults.

        Args:
            alpha: How much recall counts against precision: recall alone at 1, precision alone at 0.
            beta: The power of the penalty for words out of order.
            gamma: The most that this penalty takes.
            synonyms: Whether synonyms match too, as in the published METEOR. They are WordNet's, which
                NLTK reads from a download of its own; without it the score depends on no data.
        """
        self._score = self._library("nltk.translate.meteor_score").meteor_score
        self._cut_up = self._library("nltk.tokenize").wordpunct_tokenize
        self._unknown: str | None = None
        self._options = {
            "alpha": finite_number("alpha", alpha),
            "beta": finite_number("beta", beta),
            "gamma": finite_number("gamma", gamma),
            "wordnet": _wordnet() if synonyms else _NoSynonyms(),
        }

    def score(self, batch: Batch) -> FloatArray:
        """Score with the vocabulary's token for unknown words as one word."""
        self._unknown = None if batch.vocab.unk is None else batch.vocab.tokens[batch.vocab.unk]
        return super().score(batch)

    def compare(self, text: str, references: list[str]) -> float:
        """Compare words and punctuation marks with those of each reference: the best counts."""
        return float(self._score([self._words(r) for r in references], self._words(text), **self._options))

    def _words(self, text: str) -> list[str]:
        """Split a text into NLTK's words and punctuation marks, of which `<unk>` alone would be three."""
        first, *rest = text.split(self._unknown) if self._unknown else [text]
        words = list(self._cut_up(first))
        for part in rest:
            words += [str(self._unknown), *self._cut_up(part)]
        return words


class _NoSynonyms:
    """A WordNet in which no word has a synonym."""

    def synsets(self, word: str) -> list[object]:
        """List the synonyms of a word: none."""
        return []


def _wordnet() -> object:
    """Load WordNet, where it has been downloaded."""
    wordnet = import_extra("nltk.corpus", "reward 'meteor'", "metrics").wordnet
    try:
        wordnet.ensure_loaded()
    except LookupError as problem:
        raise DependencyError(
            "meteor(synonyms=True) needs WordNet: python -m nltk.downloader wordnet (or leave synonyms out)"
        ) from problem
    return wordnet
