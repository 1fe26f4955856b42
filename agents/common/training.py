"""What surrounds a run of learn(): where its metrics go, who is called back, and how Ctrl-C ends it."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback
from stable_baselines3.common.logger import Logger, make_output_format
from tqdm import tqdm

from text_gym.errors import DependencyError, OptionError
from text_gym.validation import suggest

Callback = BaseCallback | Sequence[BaseCallback] | Callable[[dict[str, Any], dict[str, Any]], bool] | None
LOGS = ("csv", "json", "stdout", "log", "tensorboard")


def checked_logs(kinds: Sequence[str], folder: Path | None) -> tuple[str, ...]:
    """The names of logs, or an error that says which there are, or what they need."""
    kinds = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    for kind in kinds:
        if kind not in LOGS:
            raise OptionError(f"there is no log {kind!r}." + suggest(str(kind), LOGS))
    if "tensorboard" in kinds:
        try:
            import torch.utils.tensorboard  # noqa: F401
        except ImportError as problem:
            raise DependencyError("log='tensorboard' needs TensorBoard: pip install tensorboard") from problem
    if folder is None and {"tensorboard", "log"} & set(kinds):
        raise OptionError(f"log={kinds!r} needs a place: give folder= too")
    return kinds


def open_logger(folder: Path | None, kinds: Sequence[str]) -> Logger:
    """Files in the folder; a run that goes on writes new ones, numbered from 2."""
    if folder is None:
        return Logger(None, [make_output_format(kind, ".") for kind in kinds if kind == "stdout"])
    folder.mkdir(parents=True, exist_ok=True)
    parts = {path.stem for path in (*folder.glob("progress*"), *folder.glob("log*.txt")) if path.stat().st_size}
    number = 1 + max((int(stem.partition("-")[2] or 1) for stem in parts), default=0)
    suffix = f"-{number}" if number > 1 else ""
    return Logger(str(folder), [make_output_format(kind, str(folder), suffix) for kind in kinds])


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
