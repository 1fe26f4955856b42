"""Context of learn(): the lock of the run folder, callbacks, and a clean stop on Ctrl-C."""

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
    """Hold the lock of a run folder, or raise OptionError if another process or thread holds it.

    The same thread may acquire the lock again: a command locks the folder, and learn() does so too.
    """
    if folder is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / LOCK, timeout=0, is_singleton=True)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise OptionError(f"another run is using {folder}; wait until it ends, or give another folder") from None
    try:
        yield
    finally:
        lock.release()


def as_callback(callback: Callback) -> BaseCallback:
    """Convert a callback, a sequence of callbacks, a function or None to one callback."""
    if isinstance(callback, Sequence):
        return CallbackList(list(callback))
    return callback if isinstance(callback, BaseCallback) else ConvertCallback(callback)


_active: list[threading.Event] = []  # the event of the outermost stop_on_interrupt(), if there is one


@contextmanager
def stop_on_interrupt() -> Iterator[threading.Event]:
    """Return an event that the first Ctrl-C sets; the second Ctrl-C raises KeyboardInterrupt as usual.

    Nested calls share one event, so that Ctrl-C stops a pretraining and the run that contains it.
    """
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted  # only the main thread receives signals
        return
    if _active:
        yield _active[0]
        return
    before = signal.getsignal(signal.SIGINT)

    def stop(*_: object) -> None:
        interrupted.set()
        tqdm.write("Ctrl-C: stopping after the current step; press it again to stop at once.", file=sys.stderr)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, stop)
    _active.append(interrupted)
    try:
        yield interrupted
    finally:
        _active.clear()
        signal.signal(signal.SIGINT, before)
