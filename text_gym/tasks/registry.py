"""Registry of tasks: `make_task` creates a task from a name, a path or data, and `register_task` adds a name."""

from __future__ import annotations

import inspect
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from text_gym.corpus.corpus import CorpusOptions
from text_gym.corpus.readers import SUFFIXES
from text_gym.corpus.rows import ColumnNames, Objects, is_table
from text_gym.errors import OptionError, TaskError
from text_gym.registry import Options, Registry, parse_call
from text_gym.tasks.files import file_task, rows_task
from text_gym.tasks.task import Task
from text_gym.validation import check_options, shown

TASKS: Registry[Callable[..., Task]] = Registry(
    "task",
    {
        "answers": "text_gym.tasks.answers:answers_task",
        "cnn_dailymail": "text_gym.tasks.grue:cnn_dailymail_task",
        "commongen": "text_gym.tasks.grue:commongen_task",
        "grammar": "text_gym.tasks.grammar:grammar_task",
        "imdb": "text_gym.tasks.grue:imdb_task",
        "iwslt": "text_gym.tasks.grue:iwslt_task",
        "narrativeqa": "text_gym.tasks.grue:narrativeqa_task",
        "oracle": "text_gym.tasks.oracle:oracle_task",
        "totto": "text_gym.tasks.grue:totto_task",
    },
)

_made: weakref.WeakValueDictionary[str, Task] = weakref.WeakValueDictionary()


TaskSpec = str | Path | Task | Objects | Mapping[str, Objects]
"""A name, "module:factory", a path, a Task, or data: lists of texts or pairs, or Hugging Face Datasets."""


def make_task(spec: TaskSpec = "grammar", **options: object) -> Task:
    """Create a task.

    A call with the same name or path and the same options returns the same object, as long as the object is in use.

    Args:
        spec: A registered name, "module:factory", the path of a .txt, .jsonl or .abc file, a `Task`, a list of
            texts, a list of (prompt, references) pairs, or a Hugging Face Dataset. Options may follow a name or path
            in parentheses: "grammar(seed=1)".
        **options: Options of the task. See `grammar_task`, `oracle_task` and `answers_task` for these names,
            `text_gym.corpus.corpus.CorpusOptions` for files, and `text_gym.tasks.files.rows_task` for data.

    >>> make_task("grammar", seed=1)
    Task('grammar', 209 tokens, max_length=21)
    >>> make_task("oracle(vocab_size=100)")
    Task('oracle', 100 tokens, max_length=20)
    >>> make_task(["to be", "or not to be"] * 5, valid=0, test=0)
    Task('list', 6 tokens, max_length=5)
    """
    if isinstance(spec, Task):
        if options:
            raise OptionError(
                f"{spec!r} already exists, so it takes no options; remove {', '.join(options)}, or give them where the "
                "task is created"
            )
        return spec
    name, factory, spec_options = find_task(spec, trust=True)
    options = spec_options | options
    check_options(f"task {name!r}", factory, options)
    key = _memory_key(name, factory, options) if isinstance(spec, str | Path) else None
    task = _made.get(key) if key is not None else None
    if task is None:
        task = factory(**options)
        if not isinstance(task, Task):
            raise TaskError(f"{spec!r} returned {task!r}, which is not a text_gym.Task; return a Task")
    if key is not None:
        _made[key] = task
    return task


def find_task(spec: object, trust: bool = False) -> tuple[str, Callable[..., Task], Options]:
    """Return the name, the factory and the options of a spec; "module:factory" is imported only with trust=True."""
    if isinstance(spec, Path):
        return str(spec), partial(file_task, spec), {}
    if not isinstance(spec, str):
        if not (is_table(spec) or isinstance(spec, Sequence | Mapping)) or isinstance(spec, bytes):
            raise OptionError(
                f"a task must be a name, a path, a text_gym.Task, a list of texts or of (prompt, references) pairs, or "
                f"a Hugging Face Dataset, not {shown(spec)}"
            )
        return type(spec).__name__, partial(rows_task, spec), {}
    name, spec_options = (spec, {}) if spec.endswith(SUFFIXES) else parse_call(spec)
    if ":" not in name and (Path(name).suffix or "/" in name or "\\" in name):
        return name, partial(file_task, name), spec_options
    return name, TASKS.find(name, trust), spec_options


def option_names(spec: object) -> frozenset[str] | None:
    """Return the names of the options that a spec's task takes; None if it takes any."""
    _, factory, _ = find_task(spec, trust=True)
    if isinstance(factory, partial):  # of file_task or rows_task
        columns = ColumnNames._fields if factory.func is rows_task else ()
        return frozenset((*CorpusOptions.__dataclass_fields__, *columns))
    parameters = inspect.signature(factory).parameters.values()
    return None if any(p.kind is p.VAR_KEYWORD for p in parameters) else frozenset(p.name for p in parameters)


def _memory_key(name: str, factory: Callable[..., Task], options: Mapping[str, object]) -> str | None:
    """Return a key that is equal for specs of the same task; None if equality cannot be decided."""
    plain = (str, int, float, bool, Path, type(None))
    if ":" in name or not all(isinstance(value, plain) for value in options.values()):
        return None
    files = [f for f in (name, *options.values()) if isinstance(f, str | Path) and os.path.isfile(f)]  # noqa: PTH113
    stamps = [(str(f), os.stat(f).st_mtime_ns, os.stat(f).st_size) for f in files]  # noqa: PTH116
    made_by = id(factory) if name in TASKS.entries else os.path.realpath(name)
    values = [(key, hex(value) if type(value) is int else value) for key, value in sorted(options.items())]
    return repr((name, made_by, values, stamps))


def register_task(name: str, factory: Callable[..., Task], replace: bool = False) -> None:
    """Register a task, so that `make_task(name, **options)` calls `factory(**options)`.

    `text-gym tasks` prints the first line of the factory's docstring.
    """
    TASKS.register(name, factory, replace)


def registered_tasks() -> dict[str, str]:
    """Return the registered names, each with a one-line description."""
    return dict(sorted(TASKS.describe().items()))
