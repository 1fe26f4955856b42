"""A comparison on the terminal: what is being run, how far it is, and what came of it."""

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

from agents.experiments.scheduler import Progress
from agents.report.run_files import NOW, read_json
from text_gym.errors import DataError


class Display:
    """Shows the progress of a comparison: bars on a terminal; elsewhere a line for each run that ends."""

    def __init__(self, console: Console) -> None:
        """Begin the clock."""
        self.console = console
        self.begin = time.monotonic()
        self._said: set[Path] = set()
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
        for folder in [*progress.finished[progress.finished_before :], *progress.failed]:
            if folder not in self._said:
                self._said.add(folder)
                self._say(progress, folder)
        if self._live is not None:
            self._live.update(self._picture(progress))

    def _say(self, progress: Progress, folder: Path) -> None:
        spec = progress.specs[folder]
        count = f"{len(progress.finished) + len(progress.failed)}/{len(progress.folders)}"
        what = f"{_clock(time.monotonic() - self.begin)}  {count}  {spec.label}, seed {spec.seed}"
        why = progress.failed.get(folder)
        self.console.print(escape(what if why is None else f"{what} FAILED: {why}"), highlight=False)

    def _picture(self, progress: Progress) -> RenderableType:
        ended = len(progress.finished) + len(progress.failed)
        rows = Table.grid(padding=(0, 2))
        rows.add_row(
            Text(f"{ended} of {len(progress.folders)} runs"),
            ProgressBar(total=len(progress.folders), completed=ended, width=30),
            Text(_clock(time.monotonic() - self.begin)),
        )
        for folder in progress.running:
            spec = progress.specs[folder]
            doing, step, total = _now(folder)
            rows.add_row(
                Text(f"  {spec.label}, seed {spec.seed}"),
                ProgressBar(total=max(total, 1), completed=step, width=30),
                Text(doing),
            )
        return Group(rows)


def _now(folder: Path) -> tuple[str, int, int]:
    """Read what a run is doing, and how far it has learned."""
    try:
        now = read_json(folder / NOW)
        doing, step, total = str(now["doing"]), int(now.get("step", 1)), int(now.get("of", 1))
    except (DataError, KeyError, TypeError, ValueError):
        return "starting", 0, 1
    return (f"{step} of {total}" if doing == "learning" else doing), step, total


def _clock(seconds: float) -> str:
    """Seconds as hours, minutes and seconds.

    >>> _clock(3725), _clock(65)
    ('1:02:05', '1:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
