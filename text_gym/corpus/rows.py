"""Readers of Python objects: lists of texts, pairs or dicts, and tables such as a Hugging Face Dataset."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeGuard, cast

from text_gym.corpus.readers import Record, Tokenize
from text_gym.errors import DataError, OptionError
from text_gym.validation import suggest

TEXT, PROMPT, REFERENCES = "text", "prompt", ("references", "reference", "completion")  # default names of columns


class Table(Protocol):
    """A table with named columns, such as a Hugging Face Dataset."""

    @property
    def column_names(self) -> list[str]:
        """Names of the columns."""

    def __getitem__(self, name: str, /) -> Iterable[object]:
        """Return the values of a column."""


Objects = Table | Sequence[object]
"""A table, or a list of texts, of (prompt, references) pairs, or of dicts."""


class ColumnNames(NamedTuple):
    """Names of the columns of a table, or keys of dicts, with the sequences; None means the default names."""

    text_column: str | None = None
    prompt_column: str | None = None
    references_column: str | None = None


def is_table(objects: object) -> TypeGuard[Table]:
    """Return whether an object is a table with named columns."""
    return hasattr(objects, "column_names") and hasattr(objects, "__getitem__")


@dataclass(frozen=True)
class Rows:
    """The Python objects of one split."""

    objects: Objects
    """A table, or a list of texts, pairs or dicts."""
    names: ColumnNames
    """Names of the columns with the sequences."""

    def __str__(self) -> str:
        """Return the description for error messages."""
        return f"this {type(self.objects).__name__}"

    def records(self, tokenize: Tokenize) -> Iterator[Record]:
        """Yield each row as a record; `tokenize` splits texts into tokens."""
        conditional: bool | None = None
        for number, row in enumerate(self._rows()):
            prompt, references, columns = self._parts(row, number)
            if conditional not in (None, prompt is not None):
                raise DataError(f"{self}, row {number}: not all rows have prompts; give every row a prompt, or none")
            conditional = prompt is not None
            tokenized = [tokenize(text) for text in references]
            yield Record(
                prompt or references[0], None if prompt is None else list(tokenize(prompt)), tokenized, columns
            )
        if conditional is None:
            raise DataError(f"{self} is empty; give at least one sequence")

    def _rows(self) -> Iterator[object]:
        if not is_table(self.objects):
            yield from cast("Sequence[object]", self.objects)
            return
        names = list(self.objects.column_names)
        _find(names, self.names, str(self))
        for values in zip(*(self.objects[name] for name in names), strict=True):
            yield dict(zip(names, values, strict=True))

    def _parts(self, row: object, number: int) -> tuple[str | None, list[str], dict[str, object]]:
        """Split a row into its prompt (or None), its references and its other columns."""
        where = f"{self}, row {number}"
        if isinstance(row, str):
            return None, [row], {}
        if isinstance(row, Mapping):
            prompt, references = _find([str(name) for name in row], self.names, where)
            others = {name: value for name, value in row.items() if name not in (prompt, references)}
            if prompt is None:
                return None, [_text(row[references], references, where)], others
            return _text(row[prompt], prompt, where), _texts(row[references], where), others
        if isinstance(row, Sequence) and len(row) == 2:
            return _text(row[0], "the prompt", where), _texts(row[1], where), {}
        raise DataError(
            f"{where}: a row must be a text, a (prompt, references) pair, or a dict with a text or with a prompt and "
            f"references, not {_shown(row)}"
        )


def _find(known: Sequence[str], names: ColumnNames, where: str) -> tuple[str | None, str]:
    """Return the name of the column of prompts (or None), and of the column of texts or references."""
    for option, name in names._asdict().items():
        if name is not None and name not in known:
            raise OptionError(f"{where}: no column {name!r} for {option}." + suggest(name, known))
    if names.text_column is not None and (names.prompt_column or names.references_column):
        raise OptionError("text_column excludes prompt_column and references_column; give one or the others, not both")
    prompt = names.prompt_column or (PROMPT if PROMPT in known and names.text_column is None else None)
    if names.text_column is None and (names.prompt_column or names.references_column or TEXT not in known):
        references = names.references_column or next((name for name in REFERENCES if name in known), None)
        if prompt is not None and references is not None:
            return prompt, references
        raise OptionError(
            f"{where} has the columns {', '.join(known) or 'none'}, none of them with a default name; give "
            "text_column=..., or prompt_column=... and references_column=..."
        )
    return None, names.text_column or TEXT


def _text(value: object, name: str, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: {name} must be a string, not {_shown(value)}")
    return value


def _texts(value: object, where: str) -> list[str]:
    """Return the references of a row as a list, from a string or a list of strings."""
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, Sequence) or not listed or not all(isinstance(text, str) for text in listed):
        raise DataError(f"{where}: the references must be a string or a list of strings, not {_shown(value)}")
    return [str(text) for text in listed]


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
