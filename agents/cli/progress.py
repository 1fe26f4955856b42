"""A comparison on the terminal: what is being run, how far it is, and how long it will take."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from agents.experiments.pace import State
from agents.experiments.scheduler import Progress
from text_gym.terminal import printable


class Display:
    """Shows the progress of a comparison: bars on a terminal; elsewhere lines.

    There is a line for each run that ends, and one as soon as the first steps of a model tell how long its runs take.

    Args:
        console: Where to.
        silence: Seconds after which there is a line in any case, where there is no terminal.
    """

    def __init__(self, console: Console, silence: float = 60.0) -> None:
        """Begin the clock."""
        self.console, self.silence = console, silence
        self.begin = self._last = time.monotonic()
        self._said: set[Path] | None = None  # runs that have ended; None before the first line
        self._timed = 0  # models that the last line could take into account
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None

    def __enter__(self) -> Display:
        """Begin to show."""
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        """Leave the terminal as it was."""
        if self._live is not None:
            self._live.stop()

    def __call__(self, progress: Progress) -> None:
        """Show how far it is."""
        last = self._last
        if self._said is None:
            self._said = set()
            self._print(_plan(progress))
        for folder in [*progress.finished[progress.finished_before :], *progress.failed]:
            if folder not in self._said:
                self._said.add(folder)
                self._say(progress, folder)
        if self._live is not None:
            self._live.update(self._picture(progress))
        elif (
            progress.running
            and self._last == last
            and (progress.timed > self._timed or time.monotonic() - last >= self.silence)
        ):
            doing = ", ".join(
                f"{_name(progress, folder)}: {_doing(state)}" for folder, state in progress.running.items()
            )
            self._print(f"{self._count(progress)}  {doing}{_left(progress)}")
        self._timed = progress.timed

    def _print(self, line: str) -> None:
        self._last = time.monotonic()
        self.console.print(escape(printable(line)), highlight=False, soft_wrap=True)

    def _count(self, progress: Progress) -> str:
        """The time, and how many runs have ended."""
        ended = len(progress.finished) + len(progress.failed)
        return f"{_clock(time.monotonic() - self.begin)}  {ended}/{len(progress.folders)}"

    def _say(self, progress: Progress, folder: Path) -> None:
        why = progress.failed.get(folder)
        failed = "" if why is None else f" FAILED: {why}"
        self._print(f"{self._count(progress)}  {_name(progress, folder)}{failed}{_left(progress)}")

    def _picture(self, progress: Progress) -> RenderableType:
        ended = len(progress.finished) + len(progress.failed)
        rows = Table.grid(padding=(0, 2))
        rows.add_row(
            Text(f"{ended} of {len(progress.folders)} runs"),
            ProgressBar(total=len(progress.folders), completed=ended, width=30),
            Text(_clock(time.monotonic() - self.begin) + _left(progress)),
        )
        for folder, state in progress.running.items():
            rows.add_row(
                Text(printable(f"  {_name(progress, folder)}")),
                ProgressBar(total=max(state.of, 1), completed=state.step, width=30),
                Text(printable(_doing(state))),
            )
        return Group(rows)


def _plan(progress: Progress) -> str:
    """Say how many runs there are, and how long they take as far as that is known before the first begins."""
    specs = progress.specs.values()
    models, seeds = len({spec.label for spec in specs}), len({spec.seed for spec in specs})
    line = f"{len(specs)} runs ({models} models, {seeds} seed{'s' * (seeds != 1)}), {progress.jobs} at a time"
    line += f", of which {progress.finished_before} are finished" if progress.finished_before else ""
    if not progress.waiting:
        return line
    return line + (_left(progress) or "; the first steps of each will tell how long that takes")


def _name(progress: Progress, folder: Path) -> str:
    spec = progress.specs[folder]
    return f"{spec.label}, seed {spec.seed}"


def _doing(state: State) -> str:
    return f"{state.step} of {state.of}" if state.doing == "learning" else state.doing


def _left(progress: Progress) -> str:
    """Say how long it will take from now on, if that is known."""
    left = progress.left if progress.waiting or progress.running else None
    if left is None:
        return ""
    untimed = f" ({left.untimed} model{'s' * (left.untimed != 1)} not timed yet)" if left.untimed else ""
    return f"; about {_clock(left.seconds)} left{untimed}"


def _clock(seconds: float) -> str:
    """Seconds as hours, minutes and seconds.

    >>> _clock(3725), _clock(65)
    ('1:02:05', '1:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
