"""Collect and encode the records of a corpus in one pass over its files.

While files are read, words get provisional numbers in the order of their first occurrence. The
final ids are assigned at the end, when the words of the training split have been counted.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt

from text_gym.arrays import BoolArray, IntArray
from text_gym.corpus.readers import Record, Tokenize, Tokens, read_records
from text_gym.corpus.rows import Rows
from text_gym.errors import DataError
from text_gym.sequences import SPLITS, Examples, Sequences
from text_gym.vocab import UNK, whole_characters


class Limits(Protocol):
    """The fields of `CorpusOptions` that `RawCorpus` uses."""

    @property
    def max_length(self) -> int | None: ...  # noqa: D102
    @property
    def max_prompt_length(self) -> int | None: ...  # noqa: D102
    @property
    def long_lines(self) -> str: ...  # noqa: D102
    @property
    def cut_prompts(self) -> str: ...  # noqa: D102
    @property
    def seed(self) -> int: ...  # noqa: D102
    @property
    def encoding(self) -> str: ...  # noqa: D102


class _SequenceBuilder:
    """Sequences of word numbers in growing flat arrays, 4 bytes per token."""

    def __init__(self) -> None:
        self.flat = array("i")
        self.lengths = array("q")

    def add(self, ids: Iterable[int]) -> None:
        before = len(self.flat)
        self.flat.extend(ids)
        self.lengths.append(len(self.flat) - before)

    def sequences(self) -> Sequences:
        flat = np.frombuffer(self.flat, dtype=np.int32) if self.flat else np.zeros(0, np.int32)
        lengths = np.array(self.lengths, dtype=np.int64)
        return Sequences(flat, np.concatenate(([0], np.cumsum(lengths))))


class _Numbering(dict[str, int]):
    """Maps each word to a number, in the order in which words are first looked up."""

    def __missing__(self, word: str) -> int:
        self[word] = number = len(self)
        return number


class RawCorpus:
    """All records of a corpus in the order of reading.

    Args:
        tokenize: Splits a text into tokens. Tokens that are strings are numbered in `numbers`; tokens that are ids
            of a tokenizer are kept.
        limits: Options of the corpus.
    """

    def __init__(self, tokenize: Tokenize, limits: Limits) -> None:
        """Start without records."""
        self._tokenize = lambda text: tokenize(self._whole(text))
        self._limits = limits
        self._salt = _salt(limits.seed)
        self.numbers = _Numbering()
        self.empty = self.too_long = self.broken = 0
        self._prompts = _SequenceBuilder()
        self._references = _SequenceBuilder()
        self._per_prompt = array("q")
        self._keys = array("Q")
        self._files = array("b")
        self._columns: dict[str, list[object]] = {}
        self._conditional: bool | None = None

    def read(self, source: Path | Rows, split: int) -> None:
        """Add the records of a file or of Python objects; `split` is the index in SPLITS of their split."""
        before = len(self._files)
        if isinstance(source, Rows):
            records = source.records(self._tokenize)
        else:
            records = read_records(source, self._tokenize, self._limits.encoding)
        for record in records:
            if not any(record.references):
                self.empty += 1
                continue
            kept = self._fit(record, source)
            if kept is not None:
                self._add(kept, source)
                self._files.append(split)
        if len(self._files) > before:
            return
        if self.too_long:
            raise DataError(
                f"every line of {source} is longer than max_length={self._limits.max_length} allows "
                "(EOS counts as a token); increase max_length, or pass long_lines='cut'"
            )
        raise DataError(f"{source} has only blank lines; give a file with one sequence per line")

    def _whole(self, text: str) -> str:
        """Replace lone surrogates, which JSON may contain, but which cannot be encoded as UTF-8."""
        whole = whole_characters(text)
        self.broken += whole is not text
        return whole

    def _fit(self, record: Record, source: Path | Rows) -> Record | None:
        """Apply `long_lines` to a record; None if the record is dropped."""
        limits = self._limits
        room = limits.max_length - 1 if limits.max_length is not None else None
        prompt_room = limits.max_prompt_length
        long_prompt = prompt_room is not None and record.prompt is not None and len(record.prompt) > prompt_room
        long_reference = room is not None and max(map(len, record.references)) > room
        if not long_prompt and not long_reference:
            return record
        self.too_long += 1
        if limits.long_lines == "error":
            limit = (
                f"max_prompt_length={prompt_room} allows"
                if long_prompt
                else f"max_length={limits.max_length} allows (EOS counts as a token)"
            )
            raise DataError(
                f"{source}: {record.text[:60]!r} is longer than {limit}; raise it, or pass long_lines='drop' or 'cut'"
            )
        if limits.long_lines == "cut":
            prompt = record.prompt
            if prompt and prompt_room:
                prompt = prompt[:prompt_room] if limits.cut_prompts == "end" else prompt[-prompt_room:]
            return record._replace(prompt=prompt, references=[r[:room] for r in record.references])
        short = [r for r in record.references if room is None or len(r) <= room]
        return None if long_prompt or not short else record._replace(references=short)

    def _add(self, record: Record, source: Path | Rows) -> None:
        """Encode a record and store it."""
        self._add_columns(record.columns)
        conditional = record.prompt is not None
        if self._conditional is None:
            self._conditional = conditional
        elif self._conditional != conditional:
            raise DataError(
                f"{source} and the file before it have different formats: only one of them has prompts; "
                "give all splits prompts, or none"
            )
        identity = record.prompt if record.prompt is not None else record.references[0]
        key = "\x1f".join(map(str, identity)).encode("utf-8", "surrogatepass")
        self._keys.append(int.from_bytes(blake2b(key, digest_size=8, salt=self._salt).digest(), "little"))
        if record.prompt is not None:
            self._prompts.add(self._ids(record.prompt))
        for reference in record.references:
            self._references.add(self._ids(reference))
        self._per_prompt.append(len(record.references))

    def _ids(self, tokens: Tokens) -> Iterable[int]:
        if tokens and isinstance(tokens[0], str):
            return map(self.numbers.__getitem__, cast("Sequence[str]", tokens))
        return cast("Sequence[int]", tokens)

    def _add_columns(self, columns: dict[str, object]) -> None:
        """Store the other fields of a record; missing fields are None."""
        done = len(self._files)
        for name in columns.keys() - self._columns.keys():
            self._columns[name] = [None] * done
        for name, values in self._columns.items():
            values.append(_whole_characters_in(columns.get(name)))

    def keys(self) -> npt.NDArray[np.uint64]:
        """Return the hash of each record's prompt, or of its text if it has none, [records]; salted by the seed."""
        return np.array(self._keys, dtype=np.uint64)

    def files(self) -> IntArray:
        """Return the index of the split of each record's file, [records]."""
        return np.array(self._files, dtype=np.int64)

    def counts(self, chosen: BoolArray) -> IntArray:
        """Count the occurrences of each word in the chosen records, [words]."""
        counts = np.zeros(len(self.numbers), dtype=np.int64)
        for rows, owner in ((self._references, np.repeat(chosen, self._per_prompt)), (self._prompts, chosen)):
            if rows.flat:
                inside = np.repeat(owner, np.array(rows.lengths))
                counts += np.bincount(np.frombuffer(rows.flat, dtype=np.int32)[inside], minlength=len(counts))
        return counts

    def examples(self, chosen: BoolArray, new_ids: npt.NDArray[np.int32] | None) -> Examples:
        """Return the chosen records, with word numbers replaced by `new_ids`."""
        per_prompt = np.array(self._per_prompt, dtype=np.int64)
        references = self._references.sequences()[np.repeat(chosen, per_prompt)]
        prompts = self._prompts.sequences()[chosen] if self._conditional else None
        if new_ids is not None:
            references = Sequences(new_ids[references.flat], references.offsets)
            prompts = None if prompts is None else Sequences(new_ids[prompts.flat], prompts.offsets)
        rows = np.flatnonzero(chosen).tolist()
        columns = {name: [values[i] for i in rows] for name, values in self._columns.items()}
        return Examples(references, prompts, per_prompt[chosen], columns)


def _whole_characters_in(value: object) -> object:
    """Replace lone surrogates in all strings of a JSON value."""
    if isinstance(value, str):
        return whole_characters(value)
    if isinstance(value, list):
        return [_whole_characters_in(part) for part in value]
    if isinstance(value, dict):
        return {_whole_characters_in(name): _whole_characters_in(part) for name, part in value.items()}
    return value


def _salt(seed: int) -> bytes:
    """Convert a seed of any size to 16 bytes."""
    number = int(seed)
    size = max(16, (number.bit_length() + 7) // 8)
    whole = number.to_bytes(size, "little")
    return whole if size == 16 else blake2b(whole, digest_size=16).digest()


def hold_out(keys: npt.NDArray[np.uint64], files: IntArray, shares: Mapping[str, float]) -> IntArray:
    """Return the split of each record, [records]; held-out records are chosen from the training file by their keys.

    All records with the same key stay together. Keys are taken in ascending order until a share is
    filled; a key with more records than the share has left is skipped.

    >>> hold_out(np.array([5, 1, 5, 9], dtype=np.uint64), np.zeros(4, dtype=int), {"test": 0.25}).tolist()
    [0, 2, 0, 0]
    """
    which = files.copy()
    inside = np.flatnonzero(files == 0)
    unique, owner, counts = np.unique(keys[inside], return_inverse=True, return_counts=True)
    split_of_key = np.zeros(len(unique), dtype=np.int64)
    for split in reversed(SPLITS[1:]):
        target = round(float(shares.get(split, 0)) * len(inside))
        wanted = max(target, 1) if shares.get(split) and len(unique) > 2 else 0
        for key in range(len(unique)):
            if not wanted:
                break
            if counts[key] <= wanted and not split_of_key[key]:
                split_of_key[key] = SPLITS.index(split)
                wanted -= counts[key]
    which[inside] = split_of_key[owner]
    return which


def frequent_words(words: Sequence[str], counts: IntArray, min_count: int, most: int | None) -> list[str]:
    """Return the words of the vocabulary, ordered by frequency, then alphabetically.

    >>> frequent_words(["b", "a", "c"], np.array([2, 2, 1]), min_count=2, most=None)
    ['a', 'b']
    """
    kept = [i for i in np.flatnonzero(counts >= min_count).tolist() if words[i] != UNK]
    kept.sort(key=lambda i: (-counts[i], words[i]))
    return [words[i] for i in kept[:most]]
