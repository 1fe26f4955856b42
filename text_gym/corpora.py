"""Files of text to sequences of ids: .txt, .jsonl and .abc, split, counted and cached.

A file is read once, its words numbered as they come. Only then, when the words of the
training split have been counted, are they renumbered by frequency.
"""

from __future__ import annotations

import codecs
import json
import logging
import os
import zlib
from array import array
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from text_gym import cache
from text_gym.errors import DataError, OptionError
from text_gym.readers import ABC_TOKEN, SUFFIXES, Record, read_records
from text_gym.sequences import Examples, IntArray, Sequences
from text_gym.vocab import EOS, UNK, Splitter, TokenizerVocabulary, Vocabulary

SPLITS = ("train", "valid", "test")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CorpusOptions:
    """How a file becomes a task; the keyword arguments of `make_task("file.txt", ...)`."""

    tokenizer: Any = None
    """"word" (the default), "char", a regular expression, or an object with encode and decode."""
    joiner: str | None = None
    """What stands between tokens in decoded text; a space, or nothing for "char"."""
    max_length: int | None = None
    """Tokens of a sequence at most, EOS included; as many as the longest line needs if not given."""
    max_prompt_length: int | None = None
    """Tokens of a prompt at most."""
    long_lines: Literal["drop", "cut", "error"] = "drop"
    """What happens to longer lines: left out, cut off (a prompt at its beginning), or an error."""
    min_count: int = 1
    """Words seen less often in the training split become UNK."""
    max_vocab: int | None = None
    """Only so many of the most frequent words are kept, EOS and UNK not counted."""
    valid: float | str = 0.1
    """The share of lines held out for validation, or a file of its own."""
    test: float | str = 0.1
    """The share of lines held out for testing, or a file of its own."""
    seed: int = 0
    """Chooses which lines are held out. Equal lines always fall in the same split."""
    encoding: str = "utf-8"
    """The file's encoding."""
    cache: bool = True
    """Whether large files, once encoded, are kept in the cache folder."""

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        if self.long_lines not in ("drop", "cut", "error"):
            raise OptionError(f"long_lines must be 'drop', 'cut' or 'error', not {self.long_lines!r}")
        for name, least in (("max_length", 2), ("max_prompt_length", 1), ("min_count", 1), ("max_vocab", 1)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < least):
                raise OptionError(f"{name} must be a whole number of at least {least}, not {value!r}")
        try:
            codecs.lookup(self.encoding)
        except LookupError as problem:
            raise OptionError(f"{problem}; for example encoding='utf-8' or 'latin-1'") from problem
        shares = [s for s in (self.valid, self.test) if not isinstance(s, str | os.PathLike)]
        if any(not 0 <= share < 1 for share in shares) or sum(shares) >= 1:
            raise OptionError(
                f"valid={self.valid!r} and test={self.test!r} must be shares that leave lines to train on, or files"
            )


@dataclass(frozen=True)
class Report:
    """What was read, and what was left out of it."""

    lines: int
    """Lines, records or tunes kept."""
    empty: int
    """Blank ones, left out."""
    too_long: int
    """Longer than max_length: left out, or cut, as long_lines says."""
    tokens: dict[str, int]
    """Tokens in each split."""
    unknown: dict[str, int]
    """How many of them became UNK."""

    def __str__(self) -> str:
        """One line for a person."""
        parts = [f"{self.lines:,} lines"]
        parts += [f"{self.too_long:,} longer than max_length"] * bool(self.too_long)
        parts += [f"{self.empty:,} blank"] * bool(self.empty)
        for split, count in self.unknown.items():
            if count:
                parts.append(f"{count:,} of {self.tokens[split]:,} tokens unknown in {split}")
        return ", ".join(parts)


class Corpus(NamedTuple):
    """A file, read: ids, splits, and what was left out."""

    vocab: Vocabulary
    splits: dict[str, Examples]
    report: Report


def read_corpus(path: str | Path, options: CorpusOptions) -> Corpus:
    """Read a file into splits of encoded sequences, from the cache if it has been read before."""
    path = Path(path)
    files = {"train": path}
    files |= {s: Path(f) for s in SPLITS[1:] if not isinstance(f := getattr(options, s), int | float)}
    for file in files.values():
        _check_file(file)
    key = None
    if options.cache and isinstance(options.tokenizer, str | None) and cache.worth_keeping(files.values()):
        key = cache.key_of(files, asdict(options))
        stored = cache.load(key)
        if stored is not None:
            return _unpack(stored, options, path)
    reading = _Reading(options, path)
    for split, file in files.items():
        reading.read(file, split)
    corpus = reading.finish()
    if key is not None:
        cache.store(key, _pack(corpus))
    if corpus.report.too_long or any(corpus.report.unknown.values()):
        _log.warning("%s: %s", path, corpus.report)
    return corpus


def _check_file(path: Path) -> None:
    if path.suffix not in SUFFIXES:
        raise DataError(f"cannot read {str(path)!r}: a corpus ends in {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise DataError(f"no file {str(path)!r}; is the path right? (seen from {os.getcwd()})")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty; a corpus has a sequence a line")


class _Rows:
    """Sequences while they are read: numbers in flat arrays, 4 bytes a token."""

    def __init__(self) -> None:
        self.flat, self.lengths = array("i"), array("q")

    def add(self, ids: Iterable[int]) -> None:
        before = len(self.flat)
        self.flat.extend(ids)
        self.lengths.append(len(self.flat) - before)

    def sequences(self) -> Sequences:
        flat = np.frombuffer(self.flat, dtype=np.int32) if self.flat else np.zeros(0, np.int32)
        lengths = np.array(self.lengths, dtype=np.int64)
        return Sequences(flat, np.concatenate(([0], np.cumsum(lengths))))


class _Numbering(dict[str, int]):
    """Numbers words as they come."""

    def __missing__(self, word: str) -> int:
        self[word] = number = len(self)
        return number


class _Reading:
    """A corpus while it is read."""

    def __init__(self, options: CorpusOptions, path: Path) -> None:
        self.options, self.path = options, path
        self.own_vocab: TokenizerVocabulary | None = None
        self.splitter = _splitter(options, path)
        if self.splitter is None:
            self.own_vocab = TokenizerVocabulary(options.tokenizer)
        self.numbers = _Numbering()
        self.prompts, self.references = _Rows(), _Rows()
        self.per_prompt, self.keys, self.files = array("q"), array("L"), array("b")
        self.columns: dict[str, list[Any]] = {}
        self.conditional: bool | None = None
        self.empty = self.too_long = 0

    def read(self, path: Path, split: str) -> None:
        """Add a file's records."""
        before = len(self.per_prompt)
        salt, number = self.options.seed & 0xFFFFFFFF, self._numberer()
        for record in read_records(path, self._cut_up(), self.options.encoding):
            if not any(record.references):
                self.empty += 1
                continue
            kept = self._fit(record, path)
            if kept is None:
                continue
            self._add_columns(kept.columns)
            if self.conditional is None:
                self.conditional = kept.prompt is not None
            elif self.conditional != (kept.prompt is not None):
                raise DataError(f"{path} has prompts and {self.path} has none, or the reverse")
            if kept.prompt is not None:
                self.prompts.add(number(kept.prompt))
            for reference in kept.references:
                self.references.add(number(reference))
            self.per_prompt.append(len(kept.references))
            self.keys.append(zlib.crc32(kept.key.encode("utf-8", "surrogatepass"), salt))
            self.files.append(SPLITS.index(split))
        if len(self.per_prompt) == before:
            raise DataError(self._nothing_left(path))

    def _cut_up(self) -> Any:
        return self.own_vocab.encode if self.own_vocab is not None else self.splitter.split  # type: ignore[union-attr]

    def _numberer(self) -> Any:
        if self.own_vocab is not None:
            return iter
        lookup = self.numbers.__getitem__
        return lambda tokens: map(lookup, tokens)

    def _nothing_left(self, path: Path) -> str:
        if self.too_long:
            return (
                f"every line of {path} is longer than max_length={self.options.max_length} allows "
                f"(EOS takes one place); raise it, or pass long_lines='cut'"
            )
        return f"{path} holds only blank lines; a corpus has a sequence a line"

    def _fit(self, record: Record, path: Path) -> Record | None:
        """Apply the rule for long lines; None when nothing is left."""
        room = self.options.max_length - 1 if self.options.max_length else None
        prompt_room = self.options.max_prompt_length
        long_prompt = prompt_room is not None and record.prompt is not None and len(record.prompt) > prompt_room
        long_reference = room is not None and max(map(len, record.references)) > room
        if not long_prompt and not long_reference:
            return record
        self.too_long += 1
        if self.options.long_lines == "error":
            raise DataError(
                f"{path}: {record.key[:60]!r} is longer than max_length={self.options.max_length} allows "
                "(EOS takes one place); raise it, or pass long_lines='drop' or 'cut'"
            )
        if self.options.long_lines == "cut":
            prompt = record.prompt[-prompt_room:] if long_prompt and record.prompt and prompt_room else record.prompt
            return record._replace(prompt=prompt, references=[r[:room] for r in record.references])
        short = [r for r in record.references if room is None or len(r) <= room]
        return None if long_prompt or not short else record._replace(references=short)

    def _add_columns(self, columns: dict[str, Any]) -> None:
        """Keep the other fields of a record; those it lacks are None."""
        done = len(self.per_prompt)
        for name in columns.keys() - self.columns.keys():
            self.columns[name] = [None] * done
        for name, values in self.columns.items():
            values.append(columns.get(name))

    def finish(self) -> Corpus:
        """Split, count, renumber."""
        which = self._assign()  # [records] 0, 1, 2 for train, valid, test
        references, prompts = self.references.sequences(), self.prompts.sequences()
        per_prompt = np.array(self.per_prompt, dtype=np.int64)
        of_reference = np.repeat(which, per_prompt)
        if self.own_vocab is not None:
            vocab: Vocabulary = self.own_vocab
        else:
            counts = np.zeros(len(self.numbers), dtype=np.int64)
            for rows, owner in ((references, of_reference), (prompts, which)):
                if len(rows):
                    inside = np.repeat(owner == 0, rows.lengths)
                    counts += np.bincount(rows.flat[inside], minlength=len(counts))
            vocab, new_ids = self._vocabulary(counts)
            references, prompts = (Sequences(new_ids[s.flat], s.offsets) for s in (references, prompts))
        splits = {}
        for number, split in enumerate(SPLITS):
            chosen = np.flatnonzero(which == number)
            splits[split] = Examples(
                references[of_reference == number],
                prompts[chosen] if self.conditional else None,
                per_prompt[chosen],
                {name: [values[i] for i in chosen.tolist()] for name, values in self.columns.items()},
            )
        return Corpus(vocab, splits, self._report(splits, vocab))

    def _assign(self) -> IntArray:
        """Hold out records by the hash of what they say."""
        which = np.array(self.files, dtype=np.int64)
        keys = np.array(self.keys, dtype=np.int64)
        inside = np.flatnonzero(which == 0)
        ordered, taken = np.sort(keys[inside]), 0
        for number, split in ((2, "test"), (1, "valid")):
            share = getattr(self.options, split)
            if isinstance(share, int | float) and share and len(inside) > 2:
                begin, taken = taken, taken + max(1, round(share * len(inside)))
                low, high = ordered[begin], ordered[min(taken, len(ordered) - 1)]
                which[inside[(keys[inside] >= low) & (keys[inside] < high)]] = number
        return which

    def _vocabulary(self, counts: IntArray) -> tuple[Vocabulary, npt.NDArray[np.int32]]:
        """Words by frequency, then text; and the new id of each old number."""
        words = list(self.numbers)
        if EOS in self.numbers:
            raise DataError(f"{self.path} contains {EOS!r}, which marks the end here; write it differently")
        kept = [i for i in np.flatnonzero(counts >= self.options.min_count).tolist() if words[i] != UNK]
        kept.sort(key=lambda i: (-counts[i], words[i]))
        kept = kept[: self.options.max_vocab]
        new_ids = np.full(len(words), 1, dtype=np.int32)
        new_ids[kept] = np.arange(2, len(kept) + 2)
        return Vocabulary([EOS, UNK, *(words[i] for i in kept)], 0, 1, self.splitter), new_ids

    def _report(self, splits: dict[str, Examples], vocab: Vocabulary) -> Report:
        flats = {s: [r.flat for r in (e.references, e.prompts) if r is not None] for s, e in splits.items()}
        tokens = {s: sum(map(len, f)) for s, f in flats.items()}
        unknown = {s: sum(int((x == vocab.unk).sum()) for x in f) for s, f in flats.items()}
        return Report(len(self.per_prompt), self.empty, self.too_long, tokens, unknown)


def _splitter(options: CorpusOptions, path: Path) -> Splitter | None:
    pattern = options.tokenizer
    if pattern is None:
        pattern = ABC_TOKEN if path.suffix == ".abc" else "word"
    return Splitter(pattern, options.joiner) if isinstance(pattern, str) else None


def _pack(corpus: Corpus) -> dict[str, npt.NDArray[Any]]:
    """A corpus as plain arrays."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    for split, examples in corpus.splits.items():
        arrays |= {
            f"{split}.flat": examples.references.flat,
            f"{split}.offsets": examples.references.offsets,
            f"{split}.per_prompt": examples.per_prompt,
        }
        if examples.prompts is not None:
            arrays |= {
                f"{split}.prompt_flat": examples.prompts.flat,
                f"{split}.prompt_offsets": examples.prompts.offsets,
            }
    texts = {
        "tokens": corpus.vocab.tokens,
        "report": asdict(corpus.report),
        "columns": {split: examples.columns for split, examples in corpus.splits.items()},
    }
    return arrays | {"texts": np.frombuffer(json.dumps(texts).encode(), dtype=np.uint8)}


def _unpack(arrays: dict[str, npt.NDArray[Any]], options: CorpusOptions, path: Path) -> Corpus:
    """The corpus that was packed."""
    texts = json.loads(arrays["texts"].tobytes())
    splits = {}
    for split in SPLITS:
        prompts = None
        if f"{split}.prompt_flat" in arrays:
            prompts = Sequences(arrays[f"{split}.prompt_flat"], arrays[f"{split}.prompt_offsets"])
        references = Sequences(arrays[f"{split}.flat"], arrays[f"{split}.offsets"])
        splits[split] = Examples(references, prompts, arrays[f"{split}.per_prompt"], texts["columns"][split])
    return Corpus(Vocabulary(texts["tokens"], 0, 1, _splitter(options, path)), splits, Report(**texts["report"]))
