"""Files of text as tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from text_gym.corpus.corpus import CorpusOptions, read_corpus
from text_gym.errors import OptionError
from text_gym.tasks.task import Task
from text_gym.validation import suggest


def file_task(path: str | Path, **options: Any) -> Task:
    """Make a task of sequences, or of prompts with references, from a .txt, .jsonl or .abc file."""
    for option in options.keys() - CorpusOptions.__dataclass_fields__.keys():
        known = CorpusOptions.__dataclass_fields__
        raise OptionError(f"the task from {str(path)!r} has no option {option!r}." + suggest(option, known))
    settings = CorpusOptions(**options)
    corpus = read_corpus(path, settings)
    splits = corpus.splits.values()
    longest = 1 + max(examples.references.longest for examples in splits)
    prompt_length = max(e.prompts.longest or 1 if e.prompts is not None else 0 for e in splits)
    return Task(
        Path(path).stem,
        corpus.vocab,
        settings.max_length or longest,
        corpus.splits,
        prompt_length=prompt_length,
        report=corpus.report,
    )
