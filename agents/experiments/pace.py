"""Estimated time left of a comparison, from finished runs and from the first steps of running ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from agents.report.run_files import NOW
from text_gym.errors import DataError
from text_gym.files import read_json

MIN_SECONDS = 2.0  # of training before the pace of a run is estimated: the first steps may be slower


class State(NamedTuple):
    """State of a run, read from its folder."""

    doing: str
    """Phase: "starting", "learning" or "measuring"."""
    step: int = 0
    """Training steps done."""
    of: int = 1
    """Training steps in total."""


def state_of(folder: Path) -> State:
    """Read what a run is doing, and how far it has learned."""
    try:
        now = read_json(folder / NOW)
        return State(str(now["doing"]), int(now.get("step", 1)), int(now.get("of", 1)))
    except (DataError, KeyError, OverflowError, TypeError, ValueError):
        return State("starting")


class Left(NamedTuple):
    """Estimated time left."""

    seconds: float
    """Seconds until all runs have ended."""
    untimed: int
    """Number of models without an estimate yet; they count as the mean of the others."""

    def __str__(self) -> str:
        """Describe it for people.

        >>> str(Left(3725, 0)), str(Left(65, 2))
        ('about 1:02:05 left', 'about 1:05 left (2 models not timed yet)')
        """
        untimed = f" ({self.untimed} model{'s' * (self.untimed != 1)} not timed yet)" if self.untimed else ""
        return f"about {clock(self.seconds)} left{untimed}"


def clock(seconds: float) -> str:
    """Format seconds as hours, minutes and seconds.

    >>> clock(3725), clock(65)
    ('1:02:05', '1:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@dataclass
class Watched:
    """Times of a running run, in seconds of one clock."""

    begin: float
    """Time when the run began."""
    first: tuple[float, int] | None = None
    """Time of the first observed step, and its number."""
    learned: float | None = None
    """Time when training ends, estimated or measured; None if it is not known."""
    measuring: bool = False
    """Whether training has ended and the evaluation runs."""

    def see(self, state: State, now: float) -> None:
        """Update the estimated end of training, from the steps per second since the first observed step."""
        if state.doing == "measuring" and not self.measuring:
            self.learned, self.measuring = now, True
        if state.doing != "learning":
            return
        if self.first is None:
            self.first = now, state.step
        time, step = self.first
        if state.step > step and now - time >= MIN_SECONDS:
            self.learned = now + (state.of - state.step) * (now - time) / (state.step - step)


@dataclass
class Pace:
    """Durations of the runs of each model, in seconds."""

    took: dict[str, list[float]] = field(default_factory=dict)
    """Durations of finished runs, by label."""
    measuring: list[float] = field(default_factory=list)
    """Durations of evaluations."""
    running: dict[tuple[str, int], Watched] = field(default_factory=dict)
    """Running runs, by label and seed."""

    def begin(self, label: str, seed: int, now: float) -> None:
        """Record that a run has begun."""
        self.running[label, seed] = Watched(now)

    def end(self, label: str, seed: int, now: float, well: bool) -> None:
        """Record that a run has ended; the duration of a failed run is not used."""
        run = self.running.pop((label, seed))
        if well:
            self.took.setdefault(label, []).append(now - run.begin)
        if well and run.measuring and run.learned is not None:
            self.measuring.append(now - run.learned)

    def expected(self, now: float) -> dict[str, float]:
        """Estimate the duration of a run of each model that has an estimate, in seconds by label."""
        measuring = fmean(self.measuring) if self.measuring else 0.0
        known = {
            label: max(now, run.learned + measuring) - run.begin
            for (label, _), run in self.running.items()
            if run.learned is not None
        }
        return known | {label: fmean(seconds) for label, seconds in self.took.items()}

    def left(self, waiting: Sequence[str], jobs: int, now: float) -> Left | None:
        """Estimate the time until all runs have ended; None before there is an estimate for any model.

        Args:
            waiting: Label of each run that has not begun.
            jobs: Number of runs executed in parallel.
            now: Current time in seconds.
        """
        expected = self.expected(now)
        if not expected:
            return None
        typical = fmean(expected.values())  # for models without an estimate
        seconds = [max(0.0, run.begin + expected.get(label, typical) - now) for (label, _), run in self.running.items()]
        seconds += [expected.get(label, typical) for label in waiting]
        untimed = {*waiting, *(label for label, _ in self.running)} - expected.keys()
        return Left(max(sum(seconds) / jobs, *seconds, 0.0), len(untimed))
