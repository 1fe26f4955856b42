"""Read .txt, .jsonl and .abc files, and Python objects, as a vocabulary and encoded splits."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, TypeGuard

import numpy as np

from text_gym.arrays import AnyArray
from text_gym.corpus import cache
from text_gym.corpus.builder import RawCorpus, frequent_words, hold_out
from text_gym.corpus.readers import ABC_TOKEN, SUFFIXES, check_encoding
from text_gym.corpus.rows import Rows
from text_gym.errors import DataError, OptionError
from text_gym.sequences import SPLITS, Examples, Sequences
from text_gym.validation import finite_number, whole_number
from text_gym.vocab import EOS, HUGGING_FACE, UNK, Splitter, Tokenizer, TokenizerVocabulary, Vocabulary, load_tokenizer

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CorpusOptions:
    """Options of tasks from files and Python objects: the keyword arguments of `make_task("file.txt", ...)`."""

    tokenizer: str | Tokenizer | None = None
    """"word" (split at whitespace), "char", a regular expression that matches a token, "hf:" followed by the name or
    folder of a Hugging Face model, or an object with encode() and decode(). None means "word", or musical tokens for
    .abc files."""
    joiner: str | None = None
    """Text between tokens when ids are decoded; None means a space, or "" for the tokenizer "char"."""
    max_length: int | None = None
    """Maximum number of tokens of a sequence, including EOS; None takes that of the longest line."""
    max_prompt_length: int | None = None
    """Maximum number of tokens of a prompt; None sets no limit."""
    long_lines: Literal["drop", "cut", "error"] = "drop"
    """What to do with lines that are too long: "drop" leaves them out, "cut" truncates them, "error" raises."""
    cut_prompts: Literal["beginning", "end"] = "beginning"
    """Which end of a long prompt long_lines="cut" removes: "beginning" (for dialogues) or "end" (for articles)."""
    min_count: int = 1
    """Minimum number of occurrences of a word in the training split; rarer words become UNK."""
    max_vocab: int | None = None
    """Maximum number of words, the most frequent ones, without EOS and UNK; None keeps all."""
    valid: float | str = 0.1
    """Validation split: a share of the lines, or the path of a separate file."""
    test: float | str = 0.1
    """Test split: a share of the lines, or the path of a separate file."""
    seed: int = 0
    """Seed for choosing the held-out lines. Lines with equal tokens, or equal prompts, stay in the same split."""
    encoding: str = "utf-8"
    """Character encoding of the files."""
    cache: bool = True
    """Whether to cache encoded large files in the cache folder."""

    def __post_init__(self) -> None:
        """Check all options but the tokenizer."""
        if self.long_lines not in ("drop", "cut", "error"):
            raise OptionError(f"long_lines must be 'drop', 'cut' or 'error', not {self.long_lines!r}")
        if self.cut_prompts not in ("beginning", "end"):
            raise OptionError(f"cut_prompts must be 'beginning' or 'end', not {self.cut_prompts!r}")
        for name, least in (("max_length", 2), ("max_prompt_length", 1), ("min_count", 1), ("max_vocab", 1)):
            if getattr(self, name) is not None:
                whole_number(name, getattr(self, name), least)
        whole_number("seed", self.seed, least=0)
        check_encoding(self.encoding)
        shares = [finite_number("valid or test", s) for s in (self.valid, self.test) if not is_file(s)]
        if any(not 0 <= share < 1 for share in shares) or sum(shares) >= 1:
            raise OptionError(
                f"valid={self.valid!r} and test={self.test!r} must be shares with a sum below 1, or paths of files"
            )


@dataclass(frozen=True)
class Report:
    """Statistics of a corpus: what was read, dropped and changed."""

    lines: int
    """Number of lines, records or tunes in all splits."""
    empty: int
    """Number of blank lines, which are dropped."""
    too_long: int
    """Number of lines longer than max_length, which are dropped or truncated as `long_lines` says."""
    tokens: dict[str, int]
    """Number of tokens in each split."""
    unknown: dict[str, int]
    """Number of UNK tokens in each split."""
    broken: int
    """Number of texts with lone surrogates, which are replaced by U+FFFD."""
    unfilled: tuple[str, ...] = ()
    """Held-out splits that are empty because equal lines stay in the same split."""

    def __str__(self) -> str:
        """Return a summary in one line."""
        parts = [f"{self.lines:,} lines"]
        parts += [f"{self.too_long:,} longer than max_length"] * bool(self.too_long)
        parts += [f"{self.empty:,} blank"] * bool(self.empty)
        parts += [f"lone surrogates replaced by U+FFFD in {self.broken:,} texts"] * bool(self.broken)
        for split, count in self.unknown.items():
            if count:
                parts.append(f"{count:,} of {self.tokens[split]:,} tokens unknown in {split}")
        if self.unfilled:
            why = "equal lines, or equal prompts, stay in the same split"
            parts.append(f"no lines for {' and '.join(self.unfilled)} ({why})")
        return ", ".join(parts)


class Corpus(NamedTuple):
    """The result of reading: vocabulary, encoded splits and statistics."""

    vocab: Vocabulary
    splits: dict[str, Examples]
    report: Report


def is_file(held_out: object) -> TypeGuard[str | os.PathLike[str]]:
    """Return whether a value of `valid` or `test` is a path, not a share."""
    return isinstance(held_out, str | os.PathLike)


def read_corpus(path: str | Path, options: CorpusOptions) -> Corpus:
    """Read a file as encoded splits, from the cache if possible."""
    files = {"train": Path(path)}
    files |= {split: Path(f) for split in SPLITS[1:] if is_file(f := getattr(options, split))}
    for file in files.values():
        _check_file(file)
    encoder = _make_encoder(options, files["train"])
    corpus = key = None
    if options.cache and isinstance(encoder, Splitter) and cache.worth_keeping(files.values()):
        key = cache.key_of(files, asdict(options))
        corpus = _unpack(cache.load(key), encoder)
    if corpus is None:
        corpus = _read_sources(files, options, encoder)
        if key is not None:
            cache.store(key, _pack(corpus))
    _warn(path, corpus.report)
    return corpus


def read_rows(rows: Mapping[str, Rows], options: CorpusOptions) -> Corpus:
    """Read Python objects as encoded splits; the options `valid` and `test` may be paths of files."""
    files = {split: Path(f) for split in SPLITS[1:] if is_file(f := getattr(options, split))}
    for file in files.values():
        _check_file(file)
    corpus = _read_sources({**files, **rows}, options, _make_encoder(options, Path()))
    _warn(rows["train"], corpus.report)
    return corpus


def _warn(source: object, report: Report) -> None:
    """Log a warning if lines were dropped or changed."""
    if report.too_long or report.broken or any(report.unknown.values()) or report.unfilled:
        _log.warning("%s: %s", source, report)


def _check_file(path: Path) -> None:
    if path.suffix not in SUFFIXES:
        raise DataError(f"cannot read {str(path)!r}: unknown suffix; give a file that ends in {', '.join(SUFFIXES)}")
    if not os.path.isfile(path):  # noqa: PTH113 - also False for invalid paths, where Path.is_file() may raise
        raise DataError(f"no file {str(path)!r} (the working directory is {Path.cwd()}); is the path right?")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty; give a file with one sequence per line")


def _make_encoder(options: CorpusOptions, path: Path) -> Splitter | TokenizerVocabulary:
    """Return the splitter of texts into words, or the vocabulary of a tokenizer with its own ids."""
    tokenizer = options.tokenizer
    if tokenizer is None:
        tokenizer = ABC_TOKEN if path.suffix == ".abc" else "word"
    if not isinstance(tokenizer, str):
        return TokenizerVocabulary(tokenizer)
    if tokenizer.startswith(HUGGING_FACE):
        return TokenizerVocabulary(load_tokenizer(tokenizer.removeprefix(HUGGING_FACE)))
    return Splitter(tokenizer, options.joiner)


def _read_sources(
    sources: Mapping[str, Path | Rows], options: CorpusOptions, encoder: Splitter | TokenizerVocabulary
) -> Corpus:
    """Read all sources, choose the held-out records, and assign ids by frequency."""
    raw = RawCorpus(encoder.split if isinstance(encoder, Splitter) else encoder.encode, options)
    for split in SPLITS:
        if split in sources:
            raw.read(sources[split], SPLITS.index(split))
    shares = {split: getattr(options, split) for split in SPLITS[1:] if split not in sources}
    which = hold_out(raw.keys(), raw.files(), shares)  # [records], the index of the split
    vocab: Vocabulary
    new_ids = None
    if isinstance(encoder, TokenizerVocabulary):
        vocab = encoder
    else:
        if EOS in raw.numbers:
            raise DataError(
                f"{sources['train']} contains {EOS!r}, which is reserved for the end of a sequence; replace it"
            )
        kept = frequent_words(list(raw.numbers), raw.counts(which == 0), options.min_count, options.max_vocab)
        vocab = Vocabulary([EOS, UNK, *kept], 0, 1, encoder)
        new_ids = np.array([vocab.ids.get(word, 1) for word in raw.numbers], dtype=np.int32)
    splits = {split: raw.examples(which == number, new_ids) for number, split in enumerate(SPLITS)}
    unfilled = tuple(split for split, share in shares.items() if share and not len(splits[split]))
    return Corpus(vocab, splits, _report(raw, splits, vocab, unfilled))


def _report(raw: RawCorpus, splits: Mapping[str, Examples], vocab: Vocabulary, unfilled: tuple[str, ...]) -> Report:
    flats = {s: [r.flat for r in (e.references, e.prompts) if r is not None] for s, e in splits.items()}
    tokens = {s: sum(map(len, f)) for s, f in flats.items()}
    unknown = {s: sum(int((x == vocab.unk).sum()) for x in f) for s, f in flats.items()}
    return Report(len(raw.files()), raw.empty, raw.too_long, tokens, unknown, raw.broken, unfilled)


def _pack(corpus: Corpus) -> dict[str, AnyArray]:
    """Convert a corpus to arrays for the cache."""
    arrays: dict[str, AnyArray] = {}
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


def _unpack(arrays: Mapping[str, AnyArray] | None, splitter: Splitter) -> Corpus | None:
    """Convert arrays from the cache to a corpus; None if they are missing or invalid."""
    if arrays is None:
        return None
    try:
        texts = json.loads(arrays["texts"].tobytes())
        splits = {}
        for split in SPLITS:
            prompts = None
            if f"{split}.prompt_flat" in arrays:
                prompts = Sequences(arrays[f"{split}.prompt_flat"], arrays[f"{split}.prompt_offsets"])
            references = Sequences(arrays[f"{split}.flat"], arrays[f"{split}.offsets"])
            splits[split] = Examples(references, prompts, arrays[f"{split}.per_prompt"], texts["columns"][split])
        report = Report(**texts["report"])
        return Corpus(
            Vocabulary(texts["tokens"], 0, 1, splitter), splits, replace(report, unfilled=(*report.unfilled,))
        )
    except (KeyError, TypeError, ValueError):
        return None
