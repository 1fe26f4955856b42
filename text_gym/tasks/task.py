"""Tasks: a vocabulary, a maximum length, data splits and, if it is known, the source of the data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt

from text_gym.arrays import BoolArray, FloatArray, IntArray
from text_gym.corpus.corpus import Report
from text_gym.errors import OptionError, TaskError
from text_gym.sequences import SPLITS, Batch, Example, Examples, Sequences
from text_gym.validation import LARGEST_SIZE, shown, suggest, whole_number
from text_gym.vocab import Vocabulary


class Source(Protocol):
    """The distribution that the data of a task was sampled from."""

    vocab: Vocabulary

    def sample(self, n: int, seed: int | np.random.Generator | None = None) -> Batch:
        """Sample n sequences."""

    def log_prob(self, tokens: npt.ArrayLike, lengths: npt.ArrayLike | None = None) -> FloatArray:
        """Compute the log-probability of each sequence, in nats, [n]."""


class KnownLanguage(Source, Protocol):
    """A source with a known language. All methods are optional; `Task.knows` tells which are defined."""

    def is_valid(self, tokens: npt.ArrayLike, lengths: npt.ArrayLike | None = None) -> BoolArray:
        """Return whether each sequence belongs to the language, [n]."""

    def steps(self, tokens: npt.ArrayLike, lengths: npt.ArrayLike | None = None) -> IntArray:
        """Return the number of the transition that each token takes in the language's automaton, [n, T]."""

    def entropy(self) -> float:
        """Compute the exact entropy, in nats per sequence."""

    def allowed(self, prefixes: IntArray, lengths: IntArray) -> BoolArray:
        """Return which tokens can follow each prefix within the language, [n, V]."""


class Task:
    """A text-generation problem: vocabulary, maximum length and data. Immutable, and shared instead of copied.

    Attributes:
        name: Name in reports.
        vocab: The vocabulary; `len(vocab)` is the number of actions.
        max_length: Maximum number of tokens of a sequence, including EOS.
        prompt_length: Maximum number of tokens of a prompt; 0 for tasks without prompts.
        source: The known source of the data, or None.
        default_reward: Reward of environments that are created without one: a name, or a dict {name: weight}.
        report: For corpora, how many lines were read and left out; else None.
    """

    def __init__(
        self,
        name: str,
        vocab: Vocabulary,
        max_length: int,
        splits: Mapping[str, Examples] | Callable[[str], Examples],
        prompt_length: int = 0,
        source: Source | None = None,
        default_reward: str | Mapping[str, float] = "bleu",
        report: Report | None = None,
    ) -> None:
        """Store the parts; `splits` may be a function of a split's name, called when the split is first used."""
        if source is not None and source.vocab.tokens != vocab.tokens:
            raise TaskError(
                f"the source of task {name!r} has {len(source.vocab)} tokens and the task has {len(vocab)}; "
                "both must have the same vocabulary"
            )
        self.name = name
        self.vocab = vocab
        self.max_length = whole_number("max_length", max_length, 1, LARGEST_SIZE)
        self.prompt_length = whole_number("prompt_length", prompt_length, 0, LARGEST_SIZE)
        self.source = source
        self.default_reward = default_reward
        self.report = report
        self._make_split = splits.__getitem__ if isinstance(splits, Mapping) else splits
        self._splits: dict[str, Examples] = {}

    def __repr__(self) -> str:
        kind = "conditional, " if self.conditional else ""
        return f"Task({self.name!r}, {kind}{len(self.vocab)} tokens, max_length={self.max_length})"

    def __deepcopy__(self, memo: dict[int, object]) -> Task:
        """Return the task itself: tasks are immutable, and Gymnasium deep-copies the arguments in an EnvSpec."""
        return self

    @property
    def conditional(self) -> bool:
        """Whether the task has prompts."""
        return self.prompt_length > 0

    def split(self, name: str) -> Examples:
        """Return the sequences (or the prompts with their references) of the split "train", "valid" or "test"."""
        if not isinstance(name, str) or name not in SPLITS:
            raise OptionError(f"unknown split {shown(name)}." + suggest(name, SPLITS))
        if name not in self._splits:
            self._splits[name] = self._make_split(name)
        return self._splits[name]

    @property
    def train(self) -> Examples:
        """The training split."""
        return self.split("train")

    @property
    def valid(self) -> Examples:
        """The validation split."""
        return self.split("valid")

    @property
    def test(self) -> Examples:
        """The test split."""
        return self.split("test")

    def batch(self, split: str = "train", indices: npt.ArrayLike | None = None) -> Batch:
        """Return the sequences of a split as a `Batch`, each with its prompt in tasks with prompts.

        Args:
            split: "train", "valid" or "test".
            indices: Indices of sequences in the split; None takes all. In tasks with prompts, the sequences are the
                references of all prompts.
        """
        examples = self.split(split)
        rows = np.arange(len(examples.references)) if indices is None else np.asarray(indices)
        tokens, lengths = examples.references[rows].padded(self.max_length, self.vocab.pad, self.vocab.eos)
        row_examples: list[Example] | None = None
        if self.conditional:
            row_examples = [examples[i] for i in examples.owner[rows].tolist()]
        return Batch(tokens, lengths, self.vocab, row_examples)

    def encode(self, text: str) -> list[int]:
        """Encode a text to ids, without EOS."""
        return self.vocab.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        """Decode ids to a text, up to EOS."""
        return self.vocab.decode(ids)

    def sample(self, n: int, seed: int | np.random.Generator | None = None) -> Batch:
        """Sample n sequences from the known source."""
        return self._known_source("sample").sample(n, seed)

    def log_prob(self, tokens: npt.ArrayLike, lengths: npt.ArrayLike | None = None) -> FloatArray:
        """Compute the exact log-probability of each sequence under the known source, in nats, [n]."""
        return self._known_source("log_prob").log_prob(tokens, lengths)

    def is_valid(self, tokens: npt.ArrayLike, lengths: npt.ArrayLike | None = None) -> BoolArray:
        """Return whether each sequence belongs to the source's language, [n]."""
        return self._known_source("is_valid").is_valid(tokens, lengths)

    def steps(self, tokens: npt.ArrayLike, lengths: npt.ArrayLike | None = None) -> IntArray:
        """Return the number of the transition that each token takes in the language's automaton, [n, T]."""
        return self._known_source("steps").steps(tokens, lengths)

    def entropy(self) -> float:
        """Compute the exact entropy of the source, in nats per sequence."""
        return float(self._known_source("entropy").entropy())

    def allowed(self, prefixes: IntArray, lengths: IntArray) -> BoolArray:
        """Return which tokens can follow each prefix within the source's language, [n, V]."""
        return self._known_source("allowed").allowed(prefixes, lengths)

    def knows(self, ability: str) -> bool:
        """Return whether the task has a known source with this method, for example "is_valid"."""
        return hasattr(self.source, ability)

    def _known_source(self, ability: str) -> KnownLanguage:
        """Return the source; TaskError if the task has none, or if the source does not have this method."""
        if not self.knows(ability):
            raise TaskError(
                f"task {self.name!r} has no known source with {ability}(); use 'grammar', whose source has all "
                "methods, or 'oracle', whose source has sample() and log_prob()"
            )
        return cast(KnownLanguage, self.source)


def sampled_task(name: str, source: Source, max_length: int, seed: int, sizes: tuple[int, int, int]) -> Task:
    """Create a task whose splits are sampled from a known source, each with its own random generator.

    Args:
        name: Name of the task.
        source: The source to sample from.
        max_length: Maximum number of tokens of a sequence, including EOS.
        seed: Seed of the splits.
        sizes: Number of sequences in "train", "valid" and "test".
    """
    counts = [whole_number(f"{split}_size", size, 0, LARGEST_SIZE) for split, size in zip(SPLITS, sizes, strict=True)]

    return Task(name, source.vocab, max_length, partial(_sampled_split, source, seed, counts), source=source)


def _sampled_split(source: Source, seed: int, counts: Sequence[int], split: str) -> Examples:
    number = SPLITS.index(split)
    batch = source.sample(counts[number], np.random.default_rng([seed, 100 + number]))
    return Examples(Sequences.from_lists(batch.sentences))
