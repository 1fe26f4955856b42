"""What surrounds a run of learn(): the lock of its folder, who is called back, and how Ctrl-C ends it."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback
from tqdm import tqdm

from text_gym.errors import OptionError
from text_gym.files import LOCK

Callback = BaseCallback | Sequence[BaseCallback] | Callable[[dict[str, Any], dict[str, Any]], bool] | None


@contextmanager
def alone_in(folder: Path | None) -> Iterator[None]:
    """Hold the lock of a run's folder; refuse a folder that another process or thread is at work in.

    The thread that holds it may enter again: what trains an agent locks the folder, and the agent does too.
    """
    if folder is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / LOCK, timeout=0, is_singleton=True)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise OptionError(f"another run is at work in {folder}; wait for it, or give another folder") from None
    try:
        yield
    finally:
        lock.release()


def as_callback(callback: Callback) -> BaseCallback:
    """One callback, whatever was given."""
    if isinstance(callback, Sequence):
        return CallbackList(list(callback))
    return callback if isinstance(callback, BaseCallback) else ConvertCallback(callback)


_waiting: list[threading.Event] = []  # what Ctrl-C sets at present, if anything


@contextmanager
def stop_on_interrupt() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets; the second Ctrl-C interrupts as usual. A run within a run shares its event."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted  # signals reach the main thread only
        return
    if _waiting:
        yield _waiting[0]
        return
    before = signal.getsignal(signal.SIGINT)

    def stop(*_: object) -> None:
        interrupted.set()
        tqdm.write("Ctrl-C: ending after the step that is under way; press it again to end at once.", file=sys.stderr)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, stop)
    _waiting.append(interrupted)
    try:
        yield interrupted
    finally:
        _waiting.clear()
        signal.signal(signal.SIGINT, before)
