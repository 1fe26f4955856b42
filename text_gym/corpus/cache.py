"""A cache of encoded corpora: one .npz for each file and way of reading it, never a pickle."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from text_gym.arrays import AnyArray
from text_gym.files import replace_file

VERSION = 2  # of what is stored; raise it when the way of reading changes
SMALLEST = 1 << 20  # bytes; a smaller file is read faster than it is looked up


def folder() -> Path:
    """The cache's folder: TEXT_GYM_CACHE, or text_gym in the user's cache folder."""
    own = os.environ.get("TEXT_GYM_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "text_gym"


def worth_keeping(files: Iterable[Path]) -> bool:
    """Whether reading these files takes noticeable time."""
    return sum(file.stat().st_size for file in files) >= SMALLEST


def key_of(files: Mapping[str, Path], options: Mapping[str, object]) -> str:
    """Hash what the files contain and how they are read; their names do not matter."""
    digest = hashlib.blake2b(digest_size=16)
    described = {k: v for k, v in options.items() if k not in files}
    kinds = {name: path.suffix for name, path in files.items()}
    digest.update(json.dumps([VERSION, described, kinds], sort_keys=True, default=str).encode())
    for name in sorted(files):
        digest.update(files[name].stat().st_size.to_bytes(8, "little"))
        with files[name].open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def load(key: str) -> dict[str, AnyArray] | None:
    """Load what was stored under a key; None if there is nothing, or nothing readable."""
    try:
        with (folder() / f"{key}.npz").open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def store(key: str, arrays: Mapping[str, AnyArray]) -> None:
    """Store arrays under a key, whole or not at all; a full or read-only disk is no error."""
    with contextlib.suppress(OSError):
        folder().mkdir(parents=True, exist_ok=True)
        with replace_file(folder() / f"{key}.npz") as file:
            np.savez(file, **dict(arrays))  # type: ignore[arg-type]
