"""Token sequences: ragged in a corpus, padded in a batch.

Everywhere in this package, a finished sequence is represented by a row of `tokens`, right-padded
with PAD, and its length, which includes EOS if there is one. A valid mask is True at real tokens.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, pairwise
from typing import NamedTuple, overload

import numpy as np
import numpy.typing as npt

from text_gym.arrays import AnyArray, BoolArray, IntArray, outline
from text_gym.errors import OptionError
from text_gym.vocab import Vocabulary

SPLITS = ("train", "valid", "test")


class Sequences:
    """Token sequences of different lengths in two flat arrays, without EOS and PAD.

    >>> some = Sequences.from_lists([[4, 2], [], [7]])
    >>> len(some), some[0].tolist(), some.lengths.tolist()
    (3, [4, 2], [2, 0, 1])
    """

    def __init__(self, flat: npt.NDArray[np.int32], offsets: IntArray) -> None:
        """Store the concatenated tokens, and the offset of each sequence in them."""
        if len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != len(flat):
            raise OptionError(f"offsets must start with 0 and end with the number of tokens, {len(flat)}")
        self.flat = flat  # [sum of lengths]
        self.offsets = offsets  # [n + 1]

    @classmethod
    def from_lists(cls, rows: Iterable[Sequence[int]]) -> Sequences:
        """Create sequences from lists of ids."""
        rows = list(rows)
        flat = np.fromiter(chain.from_iterable(rows), dtype=np.int32)
        lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        return cls(flat, np.concatenate(([0], np.cumsum(lengths))))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __repr__(self) -> str:
        return f"Sequences({len(self)} sequences, {len(self.flat)} tokens)"

    @overload
    def __getitem__(self, index: int) -> npt.NDArray[np.int32]: ...
    @overload
    def __getitem__(self, index: AnyArray) -> Sequences: ...
    def __getitem__(self, index: int | AnyArray) -> npt.NDArray[np.int32] | Sequences:
        """Return one sequence by its index, or several by an array of indices or a boolean mask."""
        if isinstance(index, np.ndarray):
            rows = np.flatnonzero(index) if index.dtype == np.bool_ else index
            lengths = self.lengths[rows]
            offsets = np.concatenate(([0], np.cumsum(lengths)))
            shift = np.repeat(self.offsets[rows] - offsets[:-1], lengths)
            return Sequences(self.flat[np.arange(offsets[-1]) + shift], offsets)
        index = range(len(self))[index]
        return self.flat[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> IntArray:
        """Number of tokens of each sequence, [n]."""
        return np.diff(self.offsets)

    @property
    def longest(self) -> int:
        """Maximum length; 0 if there are no sequences."""
        return int(self.lengths.max(initial=0))

    def to_lists(self) -> list[list[int]]:
        """Convert to lists of ids."""
        flat = self.flat.tolist()
        return [flat[a:b] for a, b in pairwise(self.offsets.tolist())]

    def padded(self, width: int, pad: int, eos: int | None = None) -> tuple[IntArray, IntArray]:
        """Pad the sequences to a common width.

        Args:
            width: Number of columns; longer sequences are truncated.
            pad: Id of PAD.
            eos: Id of EOS, which is appended to sequences shorter than `width`; None appends nothing.

        Returns:
            `tokens` [n, width], and `lengths` [n] including EOS.
        """
        tokens = np.full((len(self), width), pad, dtype=np.int64)
        lengths = np.minimum(self.lengths, width)
        if len(self.flat):
            inside = np.arange(width) < lengths[:, None]
            source = self.offsets[:-1, None] + np.arange(width)
            tokens[inside] = self.flat[source[inside]]
        if eos is not None:
            room = lengths < width
            tokens[np.flatnonzero(room), lengths[room]] = eos
            lengths = lengths + room
        return tokens, lengths


class Example(NamedTuple):
    """A prompt, its references, and the other columns of its row in the data."""

    prompt: tuple[int, ...]
    references: tuple[tuple[int, ...], ...]
    columns: dict[str, object]
    number: int | None = None
    """Index in the split; None for a prompt that is not in the data."""

    def __repr__(self) -> str:
        return outline(self)


class Examples:
    """A split of a task: sequences, or prompts with references.

    >>> texts = Examples(Sequences.from_lists([[4, 2], [7]]))
    >>> len(texts), texts[1].references
    (2, ((7,),))
    >>> questions = Examples(Sequences.from_lists([[1], [2], [3]]), Sequences.from_lists([[8], [9]]), [2, 1])
    >>> len(questions), questions[0]
    (2, Example(prompt=(8,), references=((1,), (2,)), columns={}, number=0))
    """

    def __init__(
        self,
        references: Sequences,
        prompts: Sequences | None = None,
        per_prompt: npt.ArrayLike | None = None,
        columns: Mapping[str, Sequence[object]] | None = None,
    ) -> None:
        """Store a split.

        Args:
            references: The sequences of the split, or the references of all prompts in order.
            prompts: The prompts; None for a split of sequences.
            per_prompt: Number of references of each prompt; by default 1.
            columns: Values of the other columns, one for each prompt (or sequence), by name.
        """
        self.references = references
        self.prompts = prompts
        counts = np.ones(len(references), dtype=np.int64) if per_prompt is None else np.asarray(per_prompt)
        self.per_prompt: IntArray = counts.astype(np.int64)
        self.columns = dict(columns or {})
        self._starts = np.concatenate(([0], np.cumsum(self.per_prompt)))

    def __len__(self) -> int:
        return len(self.per_prompt)

    def __repr__(self) -> str:
        prompts = "" if self.prompts is None else f"{len(self)} prompts, "
        return f"Examples({prompts}{len(self.references)} {'references' if prompts else 'sequences'})"

    def __getitem__(self, index: int) -> Example:
        """Return one prompt with its references; in a split of sequences, the sequence is the only reference."""
        index = range(len(self))[index]
        first = self._starts[index]
        last = self._starts[index + 1]
        prompt = () if self.prompts is None else tuple(self.prompts[index].tolist())
        references = tuple(tuple(self.references[r].tolist()) for r in range(first, last))
        return Example(prompt, references, {name: column[index] for name, column in self.columns.items()}, index)

    @cached_property
    def owner(self) -> IntArray:
        """Index of the prompt of each reference, [len(references)]."""
        return np.repeat(np.arange(len(self)), self.per_prompt)

    @cached_property
    def by_prompt(self) -> dict[tuple[int, ...], int]:
        """Index of the first example with each prompt."""
        prompts = [] if self.prompts is None else self.prompts.to_lists()
        return {tuple(p): i for i, p in reversed(list(enumerate(prompts)))}


@dataclass(frozen=True, eq=False)
class Batch:
    """A batch of finished sequences: the input of rewards, and the output of sampling.

    >>> vocab = Vocabulary(("<eos>", "to", "be"), eos=0)
    >>> batch = Batch(np.array([[1, 2, 0, 3]]), np.array([3]), vocab)
    >>> batch.texts, batch.content_lengths.tolist(), batch.sentences, batch.take([0, 0]).texts
    (['to be'], [2], [[1, 2]], ['to be', 'to be'])
    """

    tokens: IntArray
    """Token ids, right-padded with PAD, [n, T]."""
    lengths: IntArray
    """Number of tokens of each row, including EOS, [n]."""
    vocab: Vocabulary = field(repr=False)
    """Vocabulary of the ids."""
    examples: Sequence[Example] | None = field(default=None, repr=False)
    """Example (prompt and references) of each row; None in tasks without prompts."""

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        return outline(self)

    def take(self, rows: npt.ArrayLike) -> Batch:
        """Select rows by indices or a boolean mask."""
        index = np.asarray(rows)
        chosen: IntArray = np.flatnonzero(index) if index.dtype == np.bool_ else index.astype(np.int64)
        examples = None if self.examples is None else [self.examples[i] for i in chosen.tolist()]
        return Batch(self.tokens[chosen], self.lengths[chosen], self.vocab, examples)

    def keys(self) -> list[Hashable]:
        """Return a cache key for each row, equal for rows with the same tokens and the same example."""
        rows: list[Hashable] = [row[:n].tobytes() for row, n in zip(self.tokens, self.lengths.tolist(), strict=True)]
        if self.examples is None:
            return rows
        return [
            (row, e.prompt, e.references, e.number, repr(e.columns) if e.columns else "")
            for row, e in zip(rows, self.examples, strict=True)
        ]

    @cached_property
    def valid_mask(self) -> BoolArray:
        """True at real tokens, including EOS, [n, T]."""
        return np.arange(self.tokens.shape[1]) < self.lengths.reshape(-1, 1)

    @cached_property
    def content_lengths(self) -> IntArray:
        """Number of tokens of each row without EOS, [n]."""
        if self.vocab.eos is None or not len(self.tokens):
            return self.lengths
        last = self.tokens[np.arange(len(self)), np.maximum(self.lengths - 1, 0)]
        ended: BoolArray = (last == self.vocab.eos) & (self.lengths > 0)
        return self.lengths - ended

    @cached_property
    def sentences(self) -> list[list[int]]:
        """Ids of each row as a list, without EOS and PAD."""
        ends = self.content_lengths.tolist()
        return [row[:end] for row, end in zip(self.tokens.tolist(), ends, strict=True)]

    @cached_property
    def texts(self) -> list[str]:
        """Text of each row."""
        return self.vocab.decode_rows(self.tokens, self.content_lengths)

    @cached_property
    def prompts(self) -> list[str]:
        """Prompt of each row as text; "" in tasks without prompts."""
        if self.examples is None:
            return [""] * len(self)
        return [self.vocab.decode(example.prompt) for example in self.examples]

    @cached_property
    def references(self) -> list[list[str]]:
        """References of each row as texts; [] in tasks without prompts."""
        if self.examples is None:
            return [[] for _ in range(len(self))]
        return [[self.vocab.decode(r) for r in e.references] for e in self.examples]

    @cached_property
    def columns(self) -> dict[str, object]:
        """Other columns of the data by name, with a value for each row; {} in tasks without prompts."""
        names = self.examples[0].columns if self.examples else ()
        return {name: [example.columns.get(name) for example in self.examples or ()] for name in names}


def make_batch(
    tokens: npt.ArrayLike,
    lengths: npt.ArrayLike | None,
    vocab: Vocabulary,
    width: int | None = None,
) -> Batch:
    """Create a `Batch` from token ids, and check it.

    Args:
        tokens: Token ids, [n, T] or [T].
        lengths: Number of tokens of each row, [n]. None infers them: a row ends after its first EOS, before its first
            PAD, or at column T.
        vocab: Vocabulary of the ids.
        width: Minimum number of columns of the batch; None adds no padding.
    """
    rows = np.atleast_2d(np.asarray(tokens))
    if rows.ndim != 2 or (rows.dtype.kind not in "iu" and rows.size):
        raise OptionError(f"tokens must be integers of shape [n, T] or [T], not {rows.dtype} {rows.shape}")
    rows = rows.astype(np.int64)
    if rows.size and (rows.min() < 0 or rows.max() > vocab.pad):
        raise OptionError(f"tokens must be in 0..{vocab.pad}, not {rows.min()}..{rows.max()}")
    if lengths is None:
        stops = rows == vocab.pad
        if vocab.eos is not None:
            stops[:, 1:] |= rows[:, :-1] == vocab.eos
        counts = np.where(stops.any(1), stops.argmax(1), rows.shape[1]).astype(np.int64)
    else:
        counts = np.atleast_1d(np.asarray(lengths, dtype=np.int64))
        if counts.shape != rows.shape[:1] or (counts.size and not 0 <= counts.min() <= counts.max() <= rows.shape[1]):
            raise OptionError(f"lengths must be {len(rows)} numbers in 0..{rows.shape[1]}")
    inside = np.arange(rows.shape[1]) < counts[:, None]
    if (rows[inside] == vocab.pad).any():
        raise OptionError(f"PAD ({vocab.pad}) occurs within a sequence; it may only follow the last token")
    rows = np.where(inside, rows, vocab.pad)
    if width is not None and rows.shape[1] < width:
        rows = np.pad(rows, ((0, 0), (0, width - rows.shape[1])), constant_values=vocab.pad)
    return Batch(rows, counts, vocab)
