"""Lines of .txt, objects of .jsonl and tunes of .abc, read one at a time with useful errors."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from text_gym.errors import DataError

SUFFIXES = (".txt", ".jsonl", ".abc")

ABC_TOKEN = (
    r'"[^"]*"'  # a chord symbol
    r"|\[[A-Za-z]:[^\]]*\]"  # a field such as [M:3/4]
    r"|[_=^]*[A-Ga-gxz][,']*\d*(?:/+\d*)?"  # a note or a rest: accidental, octave, duration
    r"|[:|]+\]?|\[\d"  # a bar line, a numbered ending
    r"|\(\d|\S"  # a tuplet, anything else
)
"""A token of ABC notation."""

CutUp = Callable[[str], list[Any]]


class Record(NamedTuple):
    """What one line, or one tune, says."""

    key: str  # equal keys fall in the same split
    prompt: list[Any] | None  # tokens, or ids where a tokenizer of its own gives them
    references: list[list[Any]]
    columns: dict[str, Any]


def read_records(path: Path, cut_up: CutUp, encoding: str) -> Iterator[Record]:
    """The records of a file, by its suffix; `cut_up` turns text into tokens."""
    lines = _lines(path, encoding)
    if path.suffix == ".jsonl":
        yield from _json_records(path, lines, cut_up)
        return
    texts = _tunes(lines) if path.suffix == ".abc" else (line for _, line in lines)
    for text in texts:
        yield Record(text, None, [cut_up(text)], {})


def _lines(path: Path, encoding: str) -> Iterator[tuple[int, str]]:
    """A file's lines with their numbers, under a progress bar when it takes longer than a second."""
    from tqdm import tqdm

    size, done = path.stat().st_size, 0
    bar = tqdm(total=size, desc=path.name, unit="B", unit_scale=True, delay=1, disable=None, leave=False)
    number = 0
    with bar, path.open(encoding="utf-8-sig" if encoding == "utf-8" else encoding, newline="\n") as file:
        try:
            for number, line in enumerate(file, 1):
                yield number, line.rstrip("\r\n")
                done += len(line)
                if number % 10_000 == 0:
                    bar.update(done)
                    done = 0
        except UnicodeDecodeError as problem:
            raise DataError(
                f"{path}, line {_undecodable_line(path, encoding, number)}: not {encoding} "
                f"({problem.reason}); pass encoding=..., for example encoding='latin-1'"
            ) from problem


def _undecodable_line(path: Path, encoding: str, last: int) -> int:
    """Which line cannot be decoded: the reader decodes ahead, so look for it by itself."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                raw.decode(encoding)
            except UnicodeDecodeError:
                return number
    return last + 1


def _json_records(path: Path, lines: Iterator[tuple[int, str]], cut_up: CutUp) -> Iterator[Record]:
    conditional: bool | None = None
    for number, line in lines:
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as problem:
            raise DataError(f"{path}, line {number}: not JSON ({problem})") from problem
        if not isinstance(record, dict):
            raise DataError(f"{path}, line {number}: a JSON object is needed, not {line[:40]!r}")
        if conditional is None:
            conditional = "text" not in record
        if not conditional:
            text = _field(record, "text", path, number)
            others = {k: v for k, v in record.items() if k != "text"}
            yield Record(text, None, [cut_up(text)], others)
            continue
        prompt = _field(record, "prompt", path, number)
        texts = _references(record, path, number)
        others = {k: v for k, v in record.items() if k not in ("prompt", "reference", "references")}
        yield Record(prompt, list(cut_up(prompt)), [cut_up(t) for t in texts], others)


def _field(record: dict[str, Any], name: str, path: Path, number: int) -> str:
    if name not in record:
        found = ", ".join(record) or "none"
        raise DataError(
            f"{path}, line {number}: no field {name!r} (found: {found}). A line is "
            '{"text": ...}, or {"prompt": ..., "reference": ...} or {"prompt": ..., "references": [...]}.'
        )
    if not isinstance(record[name], str):
        raise DataError(f"{path}, line {number}: {name!r} must be a string, not {record[name]!r}")
    return str(record[name])


def _references(record: dict[str, Any], path: Path, number: int) -> list[str]:
    if "references" not in record:
        return [_field(record, "reference", path, number)]
    listed = record["references"]
    if not isinstance(listed, list) or not listed or not all(isinstance(r, str) for r in listed):
        raise DataError(f"{path}, line {number}: 'references' must be a list of strings, not {listed!r}")
    return listed


def _tunes(lines: Iterator[tuple[int, str]]) -> Iterator[str]:
    """Each tune of an ABC file as one text: metre and key first, then its body."""
    tune: list[str] = []
    in_body = False
    for _, line in lines:
        text = re.sub(r"%.*", "", line).rstrip().removesuffix("\\").strip()
        field = re.match(r"([A-Za-z]):\s*(.*)", text)
        if field is None:
            tune += [text] * bool(in_body and text)
        elif field[1] == "X":
            if tune and in_body:
                yield " ".join(tune)
            tune, in_body = [], False
        elif field[1] in "MK":
            tune.append(f"[{field[1]}:{field[2]}]")
            in_body |= field[1] == "K"
    if tune and in_body:
        yield " ".join(tune)
