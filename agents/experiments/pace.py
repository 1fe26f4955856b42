"""How long a comparison takes: expected from the runs that have ended, and from the first steps of those under way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from agents.report.run_files import NOW
from text_gym.errors import DataError
from text_gym.files import read_json

SOON = 2.0  # seconds of steps from which the pace of a run is told: the first ones may be slower


class State(NamedTuple):
    """What a run is doing, as its folder says."""

    doing: str
    """"starting", "learning", "measuring"."""
    step: int = 0
    """Steps learned."""
    of: int = 1
    """Steps to learn."""


def state_of(folder: Path) -> State:
    """Read what a run is doing, and how far it has learned."""
    try:
        now = read_json(folder / NOW)
        return State(str(now["doing"]), int(now.get("step", 1)), int(now.get("of", 1)))
    except (DataError, KeyError, OverflowError, TypeError, ValueError):
        return State("starting")


class Left(NamedTuple):
    """What is left to do."""

    seconds: float
    """Until all runs will have ended."""
    untimed: int
    """Number of models of which nothing is known yet; the seconds count them as the mean of the others."""

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
    """A run under way. Times are those of one clock, in seconds."""

    begin: float
    """When it began."""
    first: tuple[float, int] | None = None
    """When its first step was seen, and which step that was."""
    learned: float | None = None
    """When it will have learned, or has."""
    measuring: bool = False
    """Whether it has learned."""

    def see(self, state: State, now: float) -> None:
        """Expect from the steps per second since the first one when the last step comes."""
        if state.doing == "measuring" and not self.measuring:
            self.learned, self.measuring = now, True
        if state.doing != "learning":
            return
        if self.first is None:
            self.first = now, state.step
        time, step = self.first
        if state.step > step and now - time >= SOON:
            self.learned = now + (state.of - state.step) * (now - time) / (state.step - step)


@dataclass
class Pace:
    """Seconds that each model's runs take; the models' names are the kinds of runs."""

    took: dict[str, list[float]] = field(default_factory=dict)
    """Seconds of the runs that have ended, by model."""
    measuring: list[float] = field(default_factory=list)
    """Seconds in which models were measured."""
    running: dict[tuple[str, int], Watched] = field(default_factory=dict)
    """Runs under way, by model and seed."""

    def begin(self, label: str, seed: int, now: float) -> None:
        """Begin a run."""
        self.running[label, seed] = Watched(now)

    def end(self, label: str, seed: int, now: float, well: bool) -> None:
        """End a run; one that failed says nothing of the others."""
        run = self.running.pop((label, seed))
        if well:
            self.took.setdefault(label, []).append(now - run.begin)
        if well and run.measuring and run.learned is not None:
            self.measuring.append(now - run.learned)

    def expected(self, now: float) -> dict[str, float]:
        """Expect how long a run of each model takes, as far as that is known."""
        measuring = fmean(self.measuring) if self.measuring else 0.0
        known = {
            label: max(now, run.learned + measuring) - run.begin
            for (label, _), run in self.running.items()
            if run.learned is not None
        }
        return known | {label: fmean(seconds) for label, seconds in self.took.items()}

    def left(self, waiting: Sequence[str], jobs: int, now: float) -> Left | None:
        """Expect in how many seconds all runs will have ended; None before anything is known of them.

        Args:
            waiting: The model of each run that has not begun.
            jobs: Runs at a time.
            now: The time.
        """
        expected = self.expected(now)
        if not expected:
            return None
        typical = fmean(expected.values())  # of models that nothing is known of
        to_go = [max(0.0, run.begin + expected.get(label, typical) - now) for (label, _), run in self.running.items()]
        to_go += [expected.get(label, typical) for label in waiting]
        untimed = {*waiting, *(label for label, _ in self.running)} - expected.keys()
        return Left(max(sum(to_go) / jobs, *to_go, 0.0), len(untimed))
