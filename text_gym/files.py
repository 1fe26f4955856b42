"""Replace files atomically, and read and write JSON."""

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

LOCK = ".lock"  # lock file in a folder that only one process may write to
DEEPEST = 64  # maximum nesting of lists and objects in a JSON file


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[BinaryIO]:
    """Replace a file atomically.

    Opens a temporary file in the same folder. At the end of the context, the temporary file is
    flushed to disk and renamed to `path`. Until then, and after an error, `path` is the old file.
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
    """Read a JSON file; DataError if it is missing, damaged, or nested too deeply for recursive functions."""
    try:
        if not path.is_file():
            raise DataError(f"cannot read {path}: {'it is not a file' if path.exists() else 'it does not exist'}")
        content = json.loads(path.read_text(encoding="utf-8"))
        _check_json(content)
    except (OSError, ValueError, RecursionError) as problem:
        if isinstance(problem, DataError):
            raise
        raise DataError(f"cannot read {path}: {problem}") from problem
    return content


def worded(content: object) -> object:
    """Replace inf and nan, which JSON does not have, by strings, at any depth.

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
    """Raise ValueError for deep nesting, and for strings with lone surrogates; not recursive."""
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
