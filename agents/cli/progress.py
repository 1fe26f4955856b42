"""Progress of a comparison on the terminal: finished and running runs, and the estimated time left."""

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

from agents.experiments.pace import State, clock
from agents.experiments.scheduler import Progress
from text_gym.terminal import printable


class Display:
    """Shows the progress of a comparison: progress bars on a terminal, otherwise lines.

    A line is printed when a run ends, and when the duration of another model's runs becomes known.

    Args:
        console: Console to print on.
        silence: Seconds after which a line is printed in any case, if the console is not a terminal.
    """

    def __init__(self, console: Console, silence: float = 60.0) -> None:
        """Start the clock."""
        self.console, self.silence = console, silence
        self.begin = self._last = time.monotonic()
        self._printed: set[Path] | None = None  # runs whose end was printed; None before the first line
        self._timed = 0  # models with a known duration at the last line
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None

    def __enter__(self) -> Display:
        """Start the live display."""
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        """Stop the live display."""
        if self._live is not None:
            self._live.stop()

    def __call__(self, progress: Progress) -> None:
        """Update the display."""
        last = self._last
        if self._printed is None:
            self._printed = set()
            self._print(_plan(progress))
        for folder in [*progress.finished[progress.finished_before :], *progress.failed]:
            if folder not in self._printed:
                self._printed.add(folder)
                self._print_end(progress, folder)
        if self._live is not None:
            self._live.update(self._bars(progress))
        elif (
            progress.running
            and self._last == last
            and (progress.timed > self._timed or time.monotonic() - last >= self.silence)
        ):
            running = ", ".join(
                f"{_name(progress, folder)}: {_activity(state)}" for folder, state in progress.running.items()
            )
            self._print(f"{self._count(progress)}  {running}{_left(progress)}")
        self._timed = progress.timed

    def _print(self, line: str) -> None:
        self._last = time.monotonic()
        self.console.print(escape(printable(line)), highlight=False, soft_wrap=True)

    def _count(self, progress: Progress) -> str:
        """Format the elapsed time and the number of runs that have ended."""
        ended = len(progress.finished) + len(progress.failed)
        return f"{clock(time.monotonic() - self.begin)}  {ended}/{len(progress.folders)}"

    def _print_end(self, progress: Progress, folder: Path) -> None:
        """Print a line for a run that has ended."""
        reason = progress.failed.get(folder)
        result = "finished" if reason is None else f"FAILED: {reason}"
        self._print(f"{self._count(progress)}  {_name(progress, folder)}: {result}{_left(progress)}")

    def _bars(self, progress: Progress) -> RenderableType:
        ended = len(progress.finished) + len(progress.failed)
        rows = Table.grid(padding=(0, 2))
        rows.add_row(
            Text(f"{ended} of {len(progress.folders)} runs"),
            ProgressBar(total=len(progress.folders), completed=ended, width=30),
            Text(clock(time.monotonic() - self.begin) + _left(progress)),
        )
        for folder, state in progress.running.items():
            rows.add_row(
                Text(printable(f"  {_name(progress, folder)}")),
                ProgressBar(total=max(state.of, 1), completed=state.step, width=30),
                Text(printable(_activity(state))),
            )
        return Group(rows)


def _plan(progress: Progress) -> str:
    """Describe the number of runs, and the time left if finished runs tell how long others take."""
    specs = progress.specs.values()
    models, seeds = len({spec.label for spec in specs}), len({spec.seed for spec in specs})
    line = f"{len(specs)} runs ({models} models, {seeds} seed{'s' * (seeds != 1)}), {progress.jobs} in parallel"
    line += f", {progress.finished_before} finished before" if progress.finished_before else ""
    if not progress.waiting:
        return line
    return line + (_left(progress) or "; the time left is estimated after the first steps of each model")


def _name(progress: Progress, folder: Path) -> str:
    spec = progress.specs[folder]
    return f"{spec.label}, seed {spec.seed}"


def _activity(state: State) -> str:
    return f"step {state.step} of {state.of}" if state.doing == "learning" else state.doing


def _left(progress: Progress) -> str:
    """Format the estimated time left; "" if it is not known."""
    left = progress.left if progress.waiting or progress.running else None
    return "" if left is None else f"; {left}"
