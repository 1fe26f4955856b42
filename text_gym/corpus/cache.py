"""A cache of encoded corpora on disk: one .npz file, without pickles, for each corpus and its options."""

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

VERSION = 2  # of the cached data; increase it when reading or encoding changes
SMALLEST = 1 << 20  # bytes; reading a smaller file is faster than a lookup in the cache


def folder() -> Path:
    """Return the folder of the cache: $TEXT_GYM_CACHE, or text_gym in the user's cache folder."""
    own = os.environ.get("TEXT_GYM_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "text_gym"


def worth_keeping(files: Iterable[Path]) -> bool:
    """Return whether the files are large enough to be cached."""
    return sum(file.stat().st_size for file in files) >= SMALLEST


def key_of(files: Mapping[str, Path], options: Mapping[str, object]) -> str:
    """Hash the contents of the files and the options; the names of the files have no effect."""
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
    """Load the arrays stored under a key; None if the entry is missing or damaged."""
    try:
        with (folder() / f"{key}.npz").open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def store(key: str, arrays: Mapping[str, AnyArray]) -> None:
    """Store arrays under a key atomically; errors of the disk are ignored."""
    with contextlib.suppress(OSError):
        folder().mkdir(parents=True, exist_ok=True)
        with replace_file(folder() / f"{key}.npz") as file:
            np.savez(file, **dict(arrays))  # type: ignore[arg-type]
