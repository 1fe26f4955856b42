"""Readers of the published files of GRUE's six datasets; a record is a prompt, its references and other columns.

docs/grue.md lists the files and their sources.
"""

from __future__ import annotations

import csv
import html
import json
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from hashlib import sha1
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from text_gym.corpus.readers import read_lines
from text_gym.errors import DataError

Json = dict[str, Any]
"""A parsed JSON object."""


class TableCell(TypedDict):
    """A cell of a ToTTo table."""

    value: str
    is_header: bool
    column_span: int
    row_span: int


class Published(NamedTuple):
    """A record: a prompt, its references and other columns."""

    prompt: str
    references: list[str]
    columns: dict[str, object] = {}


Splits = dict[str, Callable[[], Iterable[Published]]]
"""A function for each split that reads its records; without "valid" if that is a share of "train"."""


def imdb(folder: Path, prompt_words: int) -> Splits:
    """IMDB: the first words of a film review are the prompt, the rest is the reference."""
    return {split: partial(_reviews, folder / split, prompt_words) for split in ("train", "test")}


def commongen(folder: Path) -> Splits:
    """CommonGen: a set of concepts is the prompt, the references are sentences that contain all of them."""
    train = folder / "commongen.train.jsonl"
    dev = folder / "commongen.dev.jsonl"
    return _with_dev(partial(_concepts, train), partial(_concepts, dev))


def cnn_dailymail(folder: Path) -> Splits:
    """CNN/DailyMail: articles and their highlights, from train.csv etc., or from .story files and lists of URLs."""
    names = {"train": ("train", "all_train"), "valid": ("validation", "all_val"), "test": ("test", "all_test")}
    if (folder / "train.csv").is_file():
        return {split: partial(_articles, folder / f"{csv_name}.csv") for split, (csv_name, _) in names.items()}
    lists = folder / "url_lists" if (folder / "url_lists").is_dir() else folder
    if not (lists / "all_train.txt").is_file():
        raise missing(folder / "train.csv", "or all_train.txt next to the stories")
    return {split: partial(_stories, folder, lists / f"{list_name}.txt") for split, (_, list_name) in names.items()}


def totto(folder: Path) -> Splits:
    """ToTTo: Wikipedia tables with highlighted cells, and sentences that describe the cells."""
    train = folder / "totto_train_data.jsonl"
    dev = folder / "totto_dev_data.jsonl"
    return _with_dev(partial(_tables, train), partial(_tables, dev))


def iwslt(folder: Path, source: str, target: str) -> Splits:
    """IWSLT: sentences of talks in two languages."""
    pairs = (f"{source}-{target}", f"{target}-{source}")
    places = [(base, pair) for pair in pairs for base in (folder / pair, folder)]
    found = [(base, pair) for base, pair in places if (base / f"train.tags.{pair}.{source}").is_file()]
    if not found:
        raise missing(folder / pairs[0] / f"train.tags.{pairs[0]}.{source}")
    base, pair = found[0]
    train = [base / f"train.tags.{pair}.{language}" for language in (source, target)]
    splits: Splits = {"train": partial(_aligned, [train], _talk_lines)}
    for split, years in (("valid", "dev"), ("test", "tst")):
        sources = sorted(base.glob(f"IWSLT*.TED*.{years}*.{pair}.{source}.xml"))
        files = [[file, file.with_name(file.name.removesuffix(f"{source}.xml") + f"{target}.xml")] for file in sources]
        files = [both for both in files if both[1].is_file()]  # the translations of some years are not published
        if not files:
            raise missing(base / f"IWSLT17.TED.{years}2010.{pair}.{source}.xml", "and its translation")
        splits[split] = partial(_aligned, files, _segments)
    return splits


def narrativeqa(folder: Path) -> Splits:
    """NarrativeQA: questions about stories with the summary of the story, and two answers each."""
    return {split: partial(_questions, folder, split) for split in ("train", "valid", "test")}


def missing(path: Path, more: str = "") -> DataError:
    """Return the error for a missing file; `more` names alternatives."""
    return DataError(f"no file {path}{' ' if more else ''}{more}; docs/grue.md lists the expected files")


def _with_dev(train: Callable[[], Iterable[Published]], dev: Callable[[], Iterable[Published]]) -> Splits:
    """Split the development set: even records for valid, odd ones for test; the test sets have no references."""
    return {
        "train": train,
        "valid": lambda: (record for i, record in enumerate(dev()) if i % 2 == 0),
        "test": lambda: (record for i, record in enumerate(dev()) if i % 2 == 1),
    }


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    if not path.is_file():
        raise missing(path)
    yield from read_lines(path, "utf-8")


def _objects(path: Path, *fields: str) -> Iterator[Json]:
    """Yield the objects of a .jsonl file; DataError if one lacks a field."""
    for number, line in _lines(path):
        try:
            record = json.loads(line) if line.strip() else None
        except ValueError as problem:
            raise DataError(f"{path}, line {number}: invalid JSON ({problem})") from problem
        if record is None:
            continue
        if not isinstance(record, dict) or any(field not in record for field in fields):
            raise DataError(f"{path}, line {number}: expected a JSON object with {', '.join(fields)}; see docs/grue.md")
        yield record


def _table_rows(path: Path, *fields: str) -> Iterator[dict[str, str]]:
    """Yield the rows of a .csv file; DataError if it lacks a column."""
    if not path.is_file():
        raise missing(path)
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        lacking = [field for field in fields if field not in (rows.fieldnames or ())]
        if lacking:
            raise DataError(f"{path} has no column {lacking[0]!r}; see docs/grue.md")
        try:
            yield from rows
        except (csv.Error, UnicodeError) as problem:
            raise DataError(f"{path}, line {rows.line_num}: {problem}") from problem


def _reviews(folder: Path, prompt_words: int) -> Iterator[Published]:
    """Yield positive and negative reviews alternately, so that a limited number has both."""
    kinds = []
    for label in ("pos", "neg"):
        files = sorted((folder / label).glob("*.txt"))
        if not files:
            raise missing(folder / label / "*.txt")
        kinds.append([(file, label) for file in files])
    for file, label in filter(None, chain.from_iterable(zip_longest(*kinds))):
        words = re.sub(r"<br\s*/?>", " ", file.read_text(encoding="utf-8")).split()
        prompt = " ".join(words[:prompt_words])
        rest = " ".join(words[prompt_words:])
        yield Published(prompt, [rest], {"label": label})


def _concepts(path: Path) -> Iterator[Published]:
    for record in _objects(path, "concept_set", "scene"):
        concepts = [re.sub(r"_[NV]$", "", concept) for concept in record["concept_set"].split("#")]
        yield Published(" ".join(concepts), list(record["scene"]), {"concepts": concepts})


def _articles(path: Path) -> Iterator[Published]:
    for row in _table_rows(path, "article", "highlights"):
        yield Published(row["article"] or "", [" ".join((row["highlights"] or "").split())], {"id": row.get("id")})


def _stories(folder: Path, addresses: Path) -> Iterator[Published]:
    """Yield the stories of a list of URLs; the name of a story's file is the hash of its URL."""
    places = [folder / "cnn" / "stories", folder / "dailymail" / "stories", folder]
    for _, address in _lines(addresses):
        if not address.strip():
            continue
        name = sha1(address.strip().encode()).hexdigest()
        file = next((place / f"{name}.story" for place in places if (place / f"{name}.story").is_file()), None)
        if file is None:
            raise missing(places[0] / f"{name}.story", f"for {address.strip()}")
        article, *highlights = file.read_text(encoding="utf-8").split("@highlight")
        sentences = [re.sub(r"(?<![.!?])$", " .", " ".join(h.split())) for h in highlights if h.strip()]
        yield Published(" ".join(article.split()), [" ".join(sentences)], {"id": name})


def _tables(path: Path) -> Iterator[Published]:
    for record in _objects(path, "table", "highlighted_cells", "sentence_annotations", "table_page_title"):
        references = [annotation["final_sentence"] for annotation in record["sentence_annotations"]]
        try:
            prompt = linearized(record)
        except (IndexError, KeyError, TypeError) as problem:
            raise DataError(
                f"{path}, example {record.get('example_id')}: the table is not in ToTTo's format ({problem!r}); "
                "see docs/grue.md"
            ) from problem
        seen = record.get("overlap_subset")
        yield Published(prompt, references, {"example_id": record.get("example_id"), "overlap_subset": seen})


def linearized(record: Json) -> str:
    """Convert the titles and highlighted cells of a table to text, each cell with its column and row headers.

    >>> cells = [[{"value": "Year", "is_header": True, "column_span": 1, "row_span": 1}],
    ...          [{"value": "1997", "is_header": False, "column_span": 1, "row_span": 1}]]
    >>> linearized({"table_page_title": "Films", "table": cells, "highlighted_cells": [[1, 0]]})
    '<page_title> Films </page_title> <table> <cell> 1997 <col_header> Year </col_header> </cell> </table>'
    """
    parts = [_tagged("page_title", record.get("table_page_title", ""))]
    parts.append(_tagged("section_title", record.get("table_section_title", "")))
    grid, corners = _grid(record["table"])
    cells = []
    for place in map(tuple, record["highlighted_cells"]):
        row, column = corners[place]
        cell = grid[row, column]
        above = [grid.get((r, c)) for r in range(row) for c in range(column, column + cell["column_span"])]
        before = [grid.get((r, c)) for c in range(column) for r in range(row, row + cell["row_span"])]
        headers = [_tagged("col_header", value) for value in _headers(above)]
        headers += [_tagged("row_header", value) for value in _headers(before)]
        cells.append(_tagged("cell", " ".join([cell["value"], *headers])))
    return " ".join(filter(None, [*parts, _tagged("table", " ".join(cells))]))


def _grid(
    table: list[list[TableCell]],
) -> tuple[dict[tuple[int, int], TableCell], dict[tuple[int, ...], tuple[int, int]]]:
    """Resolve the row and column spans of a table.

    Returns:
        The cell at each (row, column), and for each (row, index of a cell in the row) its first (row, column).
    """
    grid: dict[tuple[int, int], TableCell] = {}
    corners: dict[tuple[int, ...], tuple[int, int]] = {}
    for r, cells in enumerate(table):
        column = 0
        for number, cell in enumerate(cells):
            while (r, column) in grid:  # occupied by a cell of a row above
                column += 1
            corners[r, number] = (r, column)
            for down in range(cell["row_span"]):
                grid |= {(r + down, column + right): cell for right in range(cell["column_span"])}
    return grid, corners


def _headers(cells: Iterable[TableCell | None]) -> list[str]:
    """Return the distinct texts of the header cells among these cells."""
    return list(dict.fromkeys(cell["value"] for cell in cells if cell is not None and cell["is_header"]))


def _tagged(tag: str, text: str) -> str:
    text = " ".join(text.split())
    return f"<{tag}> {text} </{tag}>" if text else ""


def _aligned(pairs: list[list[Path]], read: Callable[[Path], Iterable[str]]) -> Iterator[Published]:
    """Yield pairs of lines of two files, the second of which is the translation of the first."""
    for source, target in pairs:
        if not target.is_file():
            raise missing(target)
        for text, translation in zip_longest(read(source), read(target)):
            if text is None or translation is None:
                raise DataError(
                    f"{source} and {target} have different numbers of sentences; use the files as published"
                )
            yield Published(text, [translation])


def _talk_lines(path: Path) -> Iterator[str]:
    """Yield the sentences of the talks, without the lines of metadata, which begin with a tag."""
    return (line.strip() for _, line in _lines(path) if not line.lstrip().startswith("<"))


def _segments(path: Path) -> Iterator[str]:
    text = path.read_text(encoding="utf-8")
    return (html.unescape(segment.strip()) for segment in re.findall(r"<seg\b[^>]*>(.*?)</seg>", text, re.DOTALL))


def _questions(folder: Path, split: str) -> Iterator[Published]:
    """Yield questions with their summaries; the question comes first, so that truncating the end keeps it."""
    files = [folder / "third_party" / "wikipedia" / "summaries.csv", folder / "summaries.csv"]
    summaries = next((file for file in files if file.is_file()), files[0])
    rows = _table_rows(summaries, "document_id", "set", "summary")
    about = {row["document_id"]: " ".join(row["summary"].split()) for row in rows if row["set"] == split}
    for row in _table_rows(folder / "qaps.csv", "document_id", "set", "question", "answer1", "answer2"):
        if row["set"] != split:
            continue
        if row["document_id"] not in about:
            raise DataError(
                f"{summaries} has no summary of document {row['document_id']}, which {folder / 'qaps.csv'} refers to; "
                "use the files as published"
            )
        prompt = f"{row['question']} {about[row['document_id']]}"
        yield Published(prompt, [row["answer1"], row["answer2"]], {"document_id": row["document_id"]})
