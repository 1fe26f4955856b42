"""Vectorised BLEU and self-BLEU for batches of sentences, which are lists of words or token ids.

Scores equal NLTK's `sentence_bleu` with uniform weights: the geometric mean of the modified n-gram
precisions against all references, times the brevity penalty for the reference length nearest to
that of the hypothesis. The references are read once, into a hash table for each n-gram order. A
batch of hypotheses is then scored by a few array operations.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from itertools import chain
from typing import Literal, NamedTuple, TypeGuard

import numpy as np
import numpy.typing as npt

from text_gym.arrays import AnyArray, FloatArray, IntArray
from text_gym.errors import OptionError
from text_gym.validation import whole_number

Smoothing = Literal["method1"] | None
Sentences = Sequence[Sequence[Hashable]] | AnyArray

EPSILON = 0.1  # replaces a count of zero in smoothing "method1", as in NLTK
_LARGEST_ID = 2**31  # larger ids are mapped by a dictionary, so that n-gram keys fit in 64 bits


class _Tokens(NamedTuple):
    """Concatenated sentences; N tokens in n sentences."""

    flat: IntArray  # [N] token ids, -1 for a token that is in no reference
    row: IntArray  # [N] index of the token's sentence
    room: IntArray  # [N] number of tokens from here to the end of the sentence, including this one
    lengths: IntArray  # [n] lengths of the sentences

    @classmethod
    def lay_out(cls, flat: IntArray, lengths: IntArray) -> _Tokens:
        ends = np.cumsum(lengths)
        row = np.repeat(np.arange(len(lengths)), lengths)
        return cls(flat, row, ends[row] - np.arange(len(flat)), lengths)


class _HashTable:
    """Maps non-negative int64 keys to their indices, by open addressing in numpy."""

    def __init__(self, keys: IntArray) -> None:
        bits = max(int(4 * len(keys)).bit_length(), 4)
        self._mask = (1 << bits) - 1
        self._shift = np.uint64(64 - bits)
        self._keys = np.full(1 << bits, -1, dtype=np.int64)
        self._values = np.zeros(1 << bits, dtype=np.int64)
        waiting = np.arange(len(keys))
        slots = self._hash(keys)
        while len(waiting):
            free = self._keys[slots] == -1
            self._values[slots[free]] = waiting[free]  # if several keys have the same slot, the last one gets it
            self._keys[slots[free]] = keys[waiting[free]]
            lost = self._keys[slots] != keys[waiting]
            waiting = waiting[lost]
            slots = (slots[lost] + 1) & self._mask

    def _hash(self, keys: IntArray) -> IntArray:
        mixed = keys.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        return (mixed >> self._shift).astype(np.int64)

    def find(self, keys: IntArray) -> IntArray:
        """Return the index of each key, [n]; -1 for a key that is not in the table."""
        slots = self._hash(keys)
        found = self._keys[slots]
        result = np.where(found == keys, self._values[slots], -1)
        (open_,) = np.nonzero((found != keys) & (found != -1))
        while len(open_):
            slots_open = (slots[open_] + 1) & self._mask
            slots[open_] = slots_open
            found = self._keys[slots_open]
            hit = found == keys[open_]
            result[open_[hit]] = self._values[slots_open[hit]]
            open_ = open_[~hit & (found != -1)]
        return result


class Bleu:
    """BLEU of batches of hypotheses against one set of references.

    >>> bleu = Bleu([["the", "cat", "sat"], ["a", "cat", "ran"]], n=2)
    >>> bleu.score([["the", "cat", "ran"], ["dogs"]]).round(4).tolist()
    [1.0, 0.0]

    Args:
        references: The reference sentences: lists of hashable tokens, or an array of ids [n, T].
        n: Length of the longest n-grams.
        smoothing: "method1" of NLTK (0.1 instead of a zero count) or None.
    """

    def __init__(self, references: Sentences, n: int = 4, smoothing: Smoothing = "method1") -> None:
        """Build the hash tables of the references."""
        check_bleu_options(n, smoothing)
        if not len(references):
            raise OptionError("BLEU needs references; give at least one reference")
        self.n = n
        self.smoothing: Smoothing = smoothing
        self._ids: dict[Hashable, int] | None = None
        tokens = self._read_references(references)
        self._base = int(tokens.flat.max(initial=0)) + 1
        self._tables: list[_HashTable] = []
        self._most: list[IntArray] = []
        self._count_references(tokens)
        self._lengths = np.unique(tokens.lengths)
        self.count = len(references)

    def __repr__(self) -> str:
        return f"Bleu(n={self.n}, smoothing={self.smoothing!r})"

    @property
    def signature(self) -> str:
        """Signature of the score, to be reported with it, as in sacreBLEU.

        >>> Bleu([[1, 2]]).signature
        'bleu|n:4|smoothing:method1|references:1'
        """
        return f"bleu|n:{self.n}|smoothing:{self.smoothing}|references:{self.count}"

    def score(self, hypotheses: Sentences, lengths: npt.ArrayLike | None = None) -> FloatArray:
        """Compute the BLEU of each hypothesis, [n], in [0, 1].

        Args:
            hypotheses: n lists of tokens, or an array of ids [n, T].
            lengths: For an array, the number of tokens of each row, [n]; by default T.
        """
        tokens = self._read(hypotheses, lengths)
        rows = len(tokens.lengths)
        matches = np.zeros((rows, self.n))
        (at,) = np.nonzero((tokens.flat >= 0) & (tokens.flat < self._base))
        gram = tokens.flat[at]
        for order in range(self.n):
            if order:
                keep = tokens.room[at] > order
                at = at[keep]
                following = tokens.flat[at + order]
                known = (following >= 0) & (following < self._base)
                at = at[known]
                gram = self._tables[order - 1].find((gram[keep] * self._base + following)[known])
                at = at[gram >= 0]
                gram = gram[gram >= 0]
            matches[:, order] = self._clipped(tokens.row[at], gram, rows, self._most[order])
        return _combine(matches, tokens.lengths, self._nearest(tokens.lengths), self.smoothing)

    def _read_references(self, references: Sentences) -> _Tokens:
        """Concatenate the references; unless their tokens are small ids, map tokens to ids by a dictionary."""
        flat, lengths = _flatten(references, None)
        if not _are_small_ids(flat):
            self._ids = {}
            flat = _number(flat, self._ids)
        return _Tokens.lay_out(np.asarray(flat, dtype=np.int64), lengths)

    def _read(self, hypotheses: Sentences, lengths: npt.ArrayLike | None) -> _Tokens:
        flat, counts = _flatten(hypotheses, lengths)
        if self._ids is None and isinstance(flat, np.ndarray):
            return _Tokens.lay_out(flat, counts)
        if self._ids is None:
            raise OptionError("the references are lists of ids, so the hypotheses must be ids too")
        get = self._ids.get
        listed = flat.tolist() if isinstance(flat, np.ndarray) else flat
        return _Tokens.lay_out(np.array([get(token, -1) for token in listed], dtype=np.int64), counts)

    def _count_references(self, tokens: _Tokens) -> None:
        at = np.arange(len(tokens.flat))
        gram = tokens.flat
        size = self._base
        for order in range(self.n):
            if order:
                keep = tokens.room[at] > order
                at = at[keep]
                keys, gram = np.unique(gram[keep] * self._base + tokens.flat[at + order], return_inverse=True)
                self._tables.append(_HashTable(keys))
                size = len(keys)
            pairs, counts = _runs(gram * len(tokens.lengths) + tokens.row[at])
            most = np.zeros(size, dtype=np.int64)
            if len(pairs):
                owners, starts = np.unique(pairs // len(tokens.lengths), return_index=True)
                most[owners] = np.maximum.reduceat(counts, starts)
            self._most.append(most)

    @staticmethod
    def _clipped(row: IntArray, gram: IntArray, rows: int, most: IntArray) -> FloatArray:
        """Count the matches in each row; the count of an n-gram is clipped by its maximum count in a reference."""
        pairs, counts = _runs(row * max(len(most), 1) + gram)
        owner, kind = np.divmod(pairs, max(len(most), 1))
        clipped = np.minimum(counts, most[kind]).astype(np.float64)
        return np.bincount(owner, weights=clipped, minlength=rows).astype(np.float64)

    def _nearest(self, lengths: IntArray) -> IntArray:
        """Return the reference length nearest to each length; of two equally near ones, the shorter."""
        above = np.minimum(np.searchsorted(self._lengths, lengths), len(self._lengths) - 1)
        below = np.maximum(above - 1, 0)
        low = self._lengths[below]
        high = self._lengths[above]
        return np.where(np.abs(lengths - low) <= np.abs(high - lengths), low, high)


def self_bleu(sentences: Sentences, n: int = 4, smoothing: Smoothing = "method1") -> FloatArray:
    """Compute the BLEU of each sentence against all other sentences, [n]; high values mean low diversity.

    >>> self_bleu([["a", "b"], ["a", "b"], ["c", "d"]], n=2).round(3).tolist()
    [1.0, 1.0, 0.0]
    """
    check_bleu_options(n, smoothing)
    if len(sentences) < 2:
        raise OptionError("self-BLEU compares sentences with each other; give at least two")
    flat, lengths = _flatten(sentences, None)
    tokens = _Tokens.lay_out(flat if _are_small_ids(flat) else _number(flat, {}), lengths)
    base = int(tokens.flat.max(initial=0)) + 1
    rows = len(lengths)
    matches = np.zeros((rows, n))
    at = np.arange(len(tokens.flat))
    gram = tokens.flat
    for order in range(n):
        if order:
            keep = tokens.room[at] > order
            at = at[keep]
            _, gram = np.unique(gram[keep] * base + tokens.flat[at + order], return_inverse=True)
        matches[:, order] = _matches_of_others(gram, tokens.row[at], rows)
    return _combine(matches, lengths, _nearest_other(lengths), smoothing)


def sentence_bleu(
    hypothesis: Sequence[Hashable],
    references: Sequence[Sequence[Hashable]],
    n: int = 4,
    smoothing: Smoothing = "method1",
) -> float:
    """Compute the BLEU of one sentence against its references, in [0, 1].

    >>> round(sentence_bleu("a b c".split(), ["a b d".split()], n=2), 4)
    0.5774
    """
    check_bleu_options(n, smoothing)
    if not references:
        raise OptionError("BLEU needs references; give at least one reference")
    matches = np.zeros((1, n))
    for order in range(1, n + 1):
        most: Counter[tuple[Hashable, ...]] = Counter()
        for reference in references:
            most |= _ngrams(reference, order)
        matches[0, order - 1] = (_ngrams(hypothesis, order) & most).total()
    length = len(hypothesis)
    nearest = min((abs(len(r) - length), len(r)) for r in references)[1]
    return float(_combine(matches, np.array([length]), np.array([nearest]), smoothing)[0])


def _ngrams(sentence: Sequence[Hashable], order: int) -> Counter[tuple[Hashable, ...]]:
    return Counter(zip(*(sentence[i:] for i in range(order)), strict=False))


def check_bleu_options(n: int, smoothing: Smoothing) -> None:
    """Raise OptionError if n is below 1 or the smoothing is unknown."""
    whole_number("n", n, least=1)
    if smoothing not in ("method1", None):
        raise OptionError(f"smoothing must be 'method1' or None, not {smoothing!r}")


def _flatten(sentences: Sentences, lengths: npt.ArrayLike | None) -> tuple[IntArray | list[Hashable], IntArray]:
    """Return the concatenated sentences, as an array if their tokens are integers, and their lengths."""
    if isinstance(sentences, np.ndarray):
        if sentences.ndim != 2 or sentences.dtype.kind not in "iu":
            raise OptionError(f"an array of ids must be integers [n, T], not {sentences.dtype} {sentences.shape}")
        if lengths is None:
            return sentences.reshape(-1).astype(np.int64), np.full(len(sentences), sentences.shape[1])
        counts = np.asarray(lengths)
        if counts.shape != sentences.shape[:1] or counts.dtype.kind not in "iu":
            raise OptionError(f"lengths must be {len(sentences)} whole numbers, one for each row")
        if len(counts) and not 0 <= counts.min() <= counts.max() <= sentences.shape[1]:
            raise OptionError(f"lengths must be in 0..{sentences.shape[1]}, not {counts.min()}..{counts.max()}")
        counts = counts.astype(np.int64)
        return sentences[np.arange(sentences.shape[1]) < counts[:, None]].astype(np.int64), counts
    if lengths is not None:
        raise OptionError("lengths are only for an array of ids; leave them out for lists")
    if any(isinstance(sentence, str) for sentence in sentences):
        raise OptionError("a sentence must be a list of tokens, not a string; split it first")
    try:
        counts = np.fromiter(map(len, sentences), dtype=np.int64, count=len(sentences))
    except TypeError as problem:
        raise OptionError(f"sentences must be a list of lists of tokens: {problem}") from problem
    listed = list(chain.from_iterable(sentences))
    numbers = np.array(listed) if listed and isinstance(listed[0], int | np.integer) else None
    if numbers is not None and numbers.dtype.kind == "i":
        return numbers.astype(np.int64), counts
    return (listed if listed else np.zeros(0, dtype=np.int64)), counts


def _are_small_ids(flat: IntArray | list[Hashable]) -> TypeGuard[IntArray]:
    """Return whether tokens are non-negative ids small enough for 64-bit n-gram keys."""
    return isinstance(flat, np.ndarray) and flat.min(initial=0) >= 0 and flat.max(initial=0) < _LARGEST_ID


def _number(flat: IntArray | list[Hashable], ids: dict[Hashable, int]) -> IntArray:
    """Map tokens to ids by the dictionary `ids`, to which new tokens are added."""
    listed = flat.tolist() if isinstance(flat, np.ndarray) else flat
    return np.array([ids.setdefault(token, len(ids)) for token in listed], dtype=np.int64)


def _runs(keys: IntArray) -> tuple[IntArray, IntArray]:
    """Return the sorted distinct keys and their counts."""
    ordered = np.sort(keys)
    (starts,) = np.nonzero(np.diff(ordered, prepend=-1))
    return ordered[starts], np.diff(starts, append=len(ordered))


def _matches_of_others(gram: IntArray, row: IntArray, rows: int) -> FloatArray:
    """Count the n-grams of each row; the count of an n-gram is clipped by its maximum count in another row."""
    pairs, counts = _runs(gram * rows + row)
    if not len(pairs):
        return np.zeros(rows)
    kind, owner = np.divmod(pairs, rows)
    (starts,) = np.nonzero(np.diff(kind, prepend=-1))
    sizes = np.diff(starts, append=len(kind))
    most = np.repeat(np.maximum.reduceat(counts, starts), sizes)
    is_most = counts == most
    alone = np.repeat(np.add.reduceat(is_most, starts, dtype=np.int64) == 1, sizes)
    second = np.repeat(np.maximum.reduceat(np.where(is_most, 0, counts), starts), sizes)
    clipped = np.where(is_most & alone, second, counts)
    return np.bincount(owner, weights=clipped, minlength=rows).astype(np.float64)


def _nearest_other(lengths: IntArray) -> IntArray:
    """Return the nearest length among the other sentences; of two equally near ones, the shorter."""
    values, which, counts = np.unique(lengths, return_inverse=True, return_counts=True)
    far = 1 << 40
    padded = np.concatenate(([-far], values, [far]))
    low = padded[which]
    high = padded[which + 2]
    nearest = np.where(lengths - low <= high - lengths, low, high)
    return np.where(counts[which] > 1, lengths, nearest)


def _combine(matches: FloatArray, lengths: IntArray, reference_lengths: IntArray, smoothing: Smoothing) -> FloatArray:
    """Compute BLEU [rows] from clipped matches [rows, n]: geometric mean of precisions times brevity penalty."""
    n = matches.shape[1]
    totals = np.maximum(lengths[:, None] - np.arange(n), 1)
    counted = np.where(matches == 0, EPSILON, matches) if smoothing else matches
    with np.errstate(divide="ignore"):
        mean = np.exp(np.log(counted / totals).mean(axis=1))
        shortfall = 1 - reference_lengths / np.maximum(lengths, 1)
    penalty = np.exp(np.minimum(shortfall, 0))
    return np.where(matches[:, 0] == 0, 0.0, mean * penalty)
