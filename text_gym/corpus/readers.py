"""Readers of .txt, .jsonl and .abc files, one record at a time; errors name the file and the line."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from text_gym.errors import DataError, OptionError

SUFFIXES = (".txt", ".jsonl", ".abc")

ABC_TOKEN = (
    r'"[^"]*"'  # a chord symbol
    r"|\[[A-Za-z]:[^\]]*\]"  # a field such as [M:3/4]
    r"|[_=^]*[A-Ga-gxz][,']*\d*(?:/+\d*)?"  # a note or a rest: accidental, octave, duration
    r"|[:|]+\]?|\[\d"  # a bar line, a numbered ending
    r"|\(\d|\S"  # a tuplet, anything else
)
"""Regular expression of a token of ABC notation."""

Tokens = Sequence[str | int]
"""Words, or the ids of a tokenizer."""
Tokenize = Callable[[str], Tokens]
"""Splits a text into tokens."""


class Record(NamedTuple):
    """A line of .txt, an object of .jsonl or a tune of .abc, tokenized."""

    text: str
    prompt: Tokens | None
    references: list[Tokens]
    columns: dict[str, object]


def read_records(path: Path, tokenize: Tokenize, encoding: str) -> Iterator[Record]:
    """Yield the records of a file, in the format of its suffix; `tokenize` splits texts into tokens."""
    lines = read_lines(path, encoding)
    if path.suffix == ".jsonl":
        yield from _json_records(path, lines, tokenize)
        return
    texts = _tunes(lines) if path.suffix == ".abc" else (line for _, line in lines)
    for text in texts:
        yield Record(text, None, [tokenize(text)], {})


def check_encoding(encoding: str) -> None:
    """Raise OptionError unless Python has this text encoding."""
    try:
        "".encode(encoding)
    except (LookupError, TypeError, ValueError) as problem:
        raise OptionError(f"encoding={encoding!r}: {problem}; give for example 'utf-8' or 'latin-1'") from problem


def read_lines(path: Path, encoding: str) -> Iterator[tuple[int, str]]:
    """Yield the numbers and lines of a file, with a progress bar if reading takes longer than a second."""
    from tqdm import tqdm

    if codecs.lookup(encoding).name == "utf-8":
        encoding = "utf-8-sig"  # skip a byte order mark
    size, done = path.stat().st_size, 0
    bar = tqdm(total=size, desc=path.name, unit="B", unit_scale=True, delay=1, disable=None, leave=False)
    with bar, path.open(encoding=encoding, newline="\n") as file:
        try:
            for number, line in enumerate(file, 1):
                yield number, line.rstrip("\r\n")
                done += len(line)
                if number % 10_000 == 0:
                    bar.update(done)
                    done = 0
        except UnicodeError as problem:
            raise DataError(
                f"{path}, line {_undecodable_line(path, encoding)}: not {encoding.removesuffix('-sig')} "
                f"({problem}); pass encoding=..., for example encoding='latin-1'"
            ) from problem


def _undecodable_line(path: Path, encoding: str) -> int:
    """Return the number of the first line that cannot be decoded; the error itself occurs in a buffer read ahead."""
    try:
        with path.open(encoding=encoding, newline="\n", errors="replace") as file:
            return next((number for number, line in enumerate(file, 1) if "\ufffd" in line), 1)
    except UnicodeError:  # no byte order mark
        return 1


def _json_records(path: Path, lines: Iterator[tuple[int, str]], tokenize: Tokenize) -> Iterator[Record]:
    conditional: bool | None = None
    for number, line in lines:
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as problem:
            raise DataError(f"{path}, line {number}: invalid JSON ({problem})") from problem
        if not isinstance(record, dict):
            raise DataError(f"{path}, line {number}: expected a JSON object, not {line[:40]!r}")
        if conditional is None:
            conditional = "text" not in record
        if not conditional:
            text = _field(record, "text", path, number)
            others = {k: v for k, v in record.items() if k != "text"}
            yield Record(text, None, [tokenize(text)], others)
            continue
        prompt = _field(record, "prompt", path, number)
        texts = _references(record, path, number)
        others = {k: v for k, v in record.items() if k not in ("prompt", "reference", "references")}
        yield Record(prompt, list(tokenize(prompt)), [tokenize(t) for t in texts], others)


def _field(record: dict[str, object], name: str, path: Path, number: int) -> str:
    if name not in record:
        found = ", ".join(record) or "none"
        raise DataError(
            f"{path}, line {number}: no field {name!r} (found: {found}); each line must be "
            '{"text": ...}, {"prompt": ..., "reference": ...} or {"prompt": ..., "references": [...]}'
        )
    text = record[name]
    if not isinstance(text, str):
        raise DataError(f"{path}, line {number}: {name!r} must be a string, not {text!r}")
    return text


def _references(record: dict[str, object], path: Path, number: int) -> list[str]:
    if "references" not in record:
        return [_field(record, "reference", path, number)]
    listed = record["references"]
    if not isinstance(listed, list) or not listed or not all(isinstance(r, str) for r in listed):
        raise DataError(f"{path}, line {number}: 'references' must be a list of strings, not {listed!r}")
    return listed


def _tunes(lines: Iterator[tuple[int, str]]) -> Iterator[str]:
    """Yield each tune of an ABC file as one text: the fields of metre and key, then the body up to a blank line."""
    tune: list[str] = []
    in_tune = in_body = False
    for _, line in lines:
        text = re.sub(r'("[^"]*")|%.*', r"\1", line).strip().removesuffix("\\").strip()
        field = re.match(r"([A-Za-z+]):\s*(?![|:])(.*)", text)
        begins = field is not None and field[1] == "X"
        if begins or not line.strip():
            if in_body:
                yield " ".join(tune)
            tune = []
            in_tune = begins
            in_body = False
        elif field is None:
            tune += [text] * bool(in_body and text)
        elif in_tune and field[1] in "MK":
            tune.append(f"[{field[1]}:{field[2]}]")
            in_body |= field[1] == "K"
    if in_body:
        yield " ".join(tune)
