"""Tasks from files and from Python objects."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from text_gym.corpus.corpus import Corpus, CorpusOptions, read_corpus, read_rows
from text_gym.corpus.rows import ColumnNames, Objects, Rows, is_table
from text_gym.errors import OptionError
from text_gym.sequences import SPLITS
from text_gym.tasks.task import Task
from text_gym.validation import suggest


def file_task(path: str | Path, **options: Any) -> Task:
    """Create a task of sequences, or of prompts with references, from a .txt, .jsonl or .abc file."""
    _check_options(repr(str(path)), options, CorpusOptions.__dataclass_fields__)
    settings = CorpusOptions(**options)
    return _task_of(Path(path).stem, read_corpus(path, settings), settings)


def rows_task(objects: Objects | Mapping[str, Objects], **options: Any) -> Task:
    """Create a task of sequences, or of prompts with references, from Python objects.

    Args:
        objects: A list of texts, of (prompt, references) pairs or of dicts; a Hugging Face Dataset, or any table with
            `column_names` whose columns are indexed by name; or a dict of these, such as a DatasetDict, with the key
            "train" and optionally "valid" (or "validation") and "test".
        **options: The options of `CorpusOptions`, where `valid` and `test` may also be such objects; and the names of
            columns, if they are not the default ones: text_column, or prompt_column and references_column.
    """
    _check_options(
        f"this {type(objects).__name__}", options, (*CorpusOptions.__dataclass_fields__, *ColumnNames._fields)
    )
    names = ColumnNames(**{name: options.pop(name) for name in ColumnNames._fields if name in options})
    given: Mapping[str, Any] = objects if isinstance(objects, Mapping) else {"train": objects}
    splits = {"valid" if name == "validation" else name: part for name, part in given.items()}
    for name in SPLITS[1:]:
        if not isinstance(options.get(name, 0.0), int | float | str | os.PathLike):
            splits[name] = options.pop(name)
    if "train" not in splits or splits.keys() - set(SPLITS):
        raise OptionError(
            f"the splits must be 'train' and optionally 'valid' (or 'validation') and 'test', not "
            f"{', '.join(map(repr, splits))}; rename them, for example {{'train': data[...], 'test': data[...]}}"
        )
    for name, part in splits.items():
        if isinstance(part, str | bytes) or not (is_table(part) or isinstance(part, Sequence)):
            raise OptionError(f"the {name!r} split must be a list of texts or pairs, or a Dataset, not {part!r:.60}")
    settings = CorpusOptions(**options)
    rows = {name: Rows(part, names) for name, part in splits.items()}
    return _task_of(type(objects).__name__, read_rows(rows, settings), settings)


def _check_options(source: str, options: Mapping[str, object], known: Iterable[str]) -> None:
    for option in options.keys() - set(known):
        raise OptionError(f"the task from {source} has no option {option!r}." + suggest(option, known))


def _task_of(name: str, corpus: Corpus, settings: CorpusOptions) -> Task:
    """Create the task of a corpus."""
    splits = corpus.splits.values()
    longest = 1 + max(examples.references.longest for examples in splits)
    prompt_length = max(e.prompts.longest or 1 if e.prompts is not None else 0 for e in splits)
    return Task(
        name,
        corpus.vocab,
        settings.max_length or longest,
        corpus.splits,
        prompt_length=prompt_length,
        report=corpus.report,
    )
