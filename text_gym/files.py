"""Files that are replaced whole or not at all, and files of JSON that may be damaged."""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from text_gym.errors import DataError

LOCK = ".lock"  # in a folder that one process at a time works in
DEEPEST = 64  # levels of lists and objects in a file of JSON


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside the path, and give it the path's name once all is written and on the disk.

    Whoever reads the path meanwhile finds the old file. After an error it is still the old file, and
    the temporary one is removed.
    """
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def read_json(path: Path) -> Any:
    """Read a file of JSON; one that is damaged, or nested too deep for recursive functions, is a `DataError`."""
    try:
        if not path.is_file():
            raise DataError(f"cannot read {path}: it is {'no file' if path.exists() else 'not there'}")
        content = json.loads(path.read_text(encoding="utf-8"))
        _check_json(content)
    except (OSError, ValueError, RecursionError) as problem:
        if isinstance(problem, DataError):
            raise
        raise DataError(f"cannot read {path}: {problem}") from problem
    return content


def worded(content: object) -> object:
    """Replace the numbers that JSON lacks by words, at any depth.

    >>> worded({"a": [1.0, float("nan")], "b": float("-inf")})
    {'a': [1.0, 'nan'], 'b': '-inf'}
    """
    if isinstance(content, float) and not math.isfinite(content):
        return str(content)
    if isinstance(content, Mapping):
        return {key: worded(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [worded(value) for value in content]
    return content


def _check_json(content: object) -> None:
    """Refuse deep nesting, and texts that cannot be written, level by level."""
    level = [content]
    for _ in range(DEEPEST):
        for value in level:
            if isinstance(value, str):
                value.encode()
        within = [value for value in level if isinstance(value, dict | list)]
        level = [part for value in within for part in value]
        level += [part for value in within if isinstance(value, dict) for part in value.values()]
        if not level:
            return
    raise ValueError(f"it is nested more than {DEEPEST} levels deep")
