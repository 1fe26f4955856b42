"""A page that shows a comparison, or a single run, as it runs. It is made from run files, and writes none."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from agents.experiments.pace import Pace, State, clock, state_of
from agents.report import charts
from agents.report.run_files import (
    COMPARISON,
    ERROR,
    LOG,
    NOW,
    RESULTS,
    RUN,
    SAMPLES,
    Run,
    Runs,
    list_runs,
    read_run,
    seconds_of,
)
from agents.report.tables import Plain, context
from agents.report.templates import find_template
from agents.report.verdicts import missing_seeds
from agents.report.write import pictures
from text_gym.errors import DataError
from text_gym.files import LOCK

LOCKS = Path("/proc/locks")  # of the files that are locked on this machine, where there is such a list
FILES = (RUN, RESULTS, SAMPLES, ERROR, LOG)  # what is read of a run, beside NOW
UNDER_WAY = ("starting", "learning", "measuring")
DRAWING = 0.1  # share of the time that may go into charts


class Seen(NamedTuple):
    """A run, as its files were when they were read last."""

    signature: tuple[object, ...]
    """Changes when the files do."""
    run: Run
    seconds: float | None
    """How long it took, if it is finished."""


class Doing(NamedTuple):
    """What a run is doing."""

    seed: int
    state: str
    """One of "finished", "failed", "measuring", "learning", "starting", "stopped", "waiting" and "damaged"."""
    text: str
    share: float
    """Share of its steps that it has learned."""
    about: str = ""
    """Details."""


class Watcher:
    """Makes the page of a folder, as often as it is asked.

    Args:
        folder: Folder of a comparison or of a run; it need not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        """Read nothing yet."""
        self.folder = folder
        self._template = find_template("watch.html", "agents.web")
        self._lock = threading.Lock()
        self._seen: dict[Path, Seen] = {}
        self._pace, self._jobs = Pace(), 1
        self._found: tuple[object, Plain] = (None, {})
        self._drawn: tuple[object, Plain] = (None, {})
        self._next_drawing = 0.0

    def page(self, nonce: str, token: str) -> str:
        """Render the page as the folder is now."""
        with self._lock:
            try:
                found = self._look()
            except (DataError, OSError, ValueError) as problem:
                found = self._waiting(str(problem))
            return self._template.render(found, nonce=nonce, folder=str(self.folder))

    def _look(self) -> Plain:
        if not self.folder.is_dir():
            return self._waiting("There is no such folder yet; this page waits for it.")
        self._check_inside(self.folder / COMPARISON)
        folders = list_runs(self.folder)
        if not folders:
            return self._waiting("There is no run in it yet; this page waits for one.")
        damaged = {}
        for folder in folders:
            try:
                self._read(folder)
            except (DataError, OSError, ValueError) as problem:
                self._seen.pop(folder, None)
                damaged[folder] = str(problem)
        seen = {folder: self._seen[folder] for folder in folders if folder in self._seen}
        if not seen:
            return self._waiting(next(iter(damaged.values())))
        results = Runs(one.run for one in seen.values())
        live = self._progress(results, seen, damaged)
        ended = live["ended"] == live["total"]
        return self._findings(results, seen, ended) | self._charts(results, seen, ended) | live

    def _waiting(self, message: str) -> Plain:
        live = {"models": [], "ended": 0, "total": 0, "status": message, "damaged": [], "shows": False}
        return live | {"title": f"Waiting for {self.folder}", "line": "Nothing to show yet", "palette": charts.PALETTE}

    def _read(self, folder: Path) -> None:
        """Read a run anew if its files have changed."""
        for name in (*FILES, NOW):
            self._check_inside(folder / name)
        signature = tuple(_signature(folder / name) for name in FILES)
        if folder not in self._seen or self._seen[folder].signature != signature:
            run = read_run(folder)
            self._seen[folder] = Seen(signature, run, seconds_of(folder) if run.finished else None)

    def _check_inside(self, path: Path) -> None:
        """Refuse a link that leads out of the folder."""
        root = os.path.realpath(self.folder)
        if os.path.commonpath((os.path.realpath(path), root)) != root:
            raise DataError(f"{path} leads out of {self.folder}; put a copy in its place")

    # Progress.

    def _progress(self, results: Runs, seen: dict[Path, Seen], damaged: dict[Path, str]) -> Plain:
        """Collect how far each run is, and how long the others will take."""
        held = _held_locks()
        places = {place for folder in seen for place in (self.folder, folder, folder.parent.parent)}
        alive = any(_is_held(place, held) for place in places)
        states = {folder: state_of(folder) for folder in seen}
        doing = {folder: _doing(one, states[folder], alive, held) for folder, one in seen.items()}
        if not alive:
            self._pace.running.clear()  # the pause until they go on is no time that steps take
        left = self._left(seen, states, doing) if alive else ""
        styles = charts.styles(results)
        models = [
            {
                "label": label,
                "kind": results.kind(label),
                "style": styles[label],
                "runs": [doing[run.folder] for run in results.of(label)],
            }
            for label in results.labels
        ]
        kinds, total = [one.state for one in doing.values()], len(seen) + len(damaged)
        return {
            "models": models,
            "ended": kinds.count("finished") + kinds.count("failed"),
            "total": total,
            "status": _status(kinds, total, alive, left),
            "damaged": list(damaged.values()),
        }

    def _left(self, seen: dict[Path, Seen], states: dict[Path, State], doing: dict[Path, Doing]) -> str:
        """Say how long it will take from now on; "" as long as nothing is known."""
        now, waiting = time.monotonic(), []
        pace = self._pace
        for folder, its in doing.items():
            run = seen[folder].run
            key = run.label, run.seed
            if its.state in UNDER_WAY:
                if key not in pace.running:
                    pace.begin(*key, now)
                pace.running[key].see(states[folder], now)
            elif key in pace.running:
                pace.end(*key, now, its.state == "finished")
            if its.state == "waiting":
                waiting.append(run.label)
        pace.took = {}
        for one in seen.values():
            if one.seconds is not None:
                pace.took.setdefault(one.run.label, []).append(one.seconds)
        self._jobs = max(self._jobs, len(pace.running))
        left = pace.left(waiting, self._jobs, now)
        return "" if left is None or 2 * left.untimed > len({one.run.label for one in seen.values()}) else str(left)

    # What is found so far.

    def _findings(self, results: Runs, seen: dict[Path, Seen], ended: bool) -> Plain:
        """Work out what the report says, if any run has ended since the last time."""
        signature = [(folder, one.signature if _has_ended(one.run) else None) for folder, one in seen.items()]
        if self._found[0] != signature:
            self._found = signature, context(results)
        found = self._found[1]
        missing = [] if ended else missing_seeds(results)  # which the progress says better
        return found | {"summaries": [line for line in found["summaries"] if line not in missing]}

    def _charts(self, results: Runs, seen: dict[Path, Seen], ended: bool) -> Plain:
        """Draw the charts, if they have changed and some time has passed."""
        signature = [(folder, one.run.finished, one.run.curve) for folder, one in seen.items()]
        begin = time.monotonic()
        if self._drawn[0] != signature and (ended or begin >= self._next_drawing):
            self._drawn = signature, pictures(results, growing=True)
            now = time.monotonic()
            self._next_drawing = now + (now - begin) / DRAWING
        drawn = self._drawn[1]
        return drawn | {"shows": bool(drawn["curves"]) or any(map(_has_ended, results.runs.values()))}


def _has_ended(run: Run) -> bool:
    return run.finished or run.error is not None


def _signature(path: Path) -> tuple[int, int, int] | None:
    """Return something that changes when a file does; None if there is no such file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _doing(one: Seen, now: State, alive: bool, held: set[int] | None) -> Doing:
    """Describe what a run is doing."""
    run, seconds = one.run, one.seconds
    if run.finished:
        return Doing(run.seed, "finished", "finished" + (f", {clock(seconds)}" if seconds is not None else ""), 1.0)
    if run.error is not None:
        return Doing(run.seed, "failed", "failed", 0.0, run.error.strip().rpartition("\n")[2])
    noted = (run.folder / NOW).exists()
    share = min(1.0, max(0.0, now.step / now.of)) if noted and now.of > 0 else 0.0
    if alive and noted:
        if now.doing == "learning":
            return Doing(run.seed, "learning", f"{now.step:,} of {now.of:,}", share)
        return Doing(run.seed, "measuring", "measuring", 1.0)
    if alive:
        starting = held is not None and _is_held(run.folder, held)
        return Doing(run.seed, *(("starting", "starting") if starting else ("waiting", "waiting")), 0.0)
    if noted and now.doing == "learning":
        return Doing(run.seed, "stopped", f"stopped at {now.step:,} of {now.of:,}", share)
    begun = noted or bool(run.curve)
    return Doing(run.seed, *(("stopped", "stopped") if begun else ("waiting", "not started")), share)


def _status(states: Sequence[str], total: int, alive: bool, left: str) -> str:
    """Say in a sentence or two how far all of it is."""
    failed = states.count("failed")
    ended = states.count("finished") + failed
    running = sum(state in UNDER_WAY for state in states)
    parts = [f"{ended} of {total} runs {'has' if ended == 1 else 'have'} ended"]
    if ended == total:
        parts = [f"All {total} runs have ended" if total > 1 else "The run has ended"]
    parts += [f"{running} {'is' if running == 1 else 'are'} running"] if running else []
    parts += [f"{failed} failed"] if failed else []
    sentence = ", ".join(parts) + (f"; {left}" if left and ended < total else "") + "."
    if ended < total and not alive:
        sentence += " No process on this machine is working in this folder; run the same command again to resume."
    return sentence


def _held_locks() -> set[int] | None:
    """Inode numbers of the locked files of this machine; None where the system does not list them."""
    try:
        lines = LOCKS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return set(_inodes(lines))


def _inodes(lines: Sequence[str]) -> Iterator[int]:
    """Read the inode numbers of lines as 1: FLOCK  ADVISORY  WRITE 11816 fe:00:3195505 0 EOF."""
    for line in lines:
        words = line.split()
        if len(words) > 5 and words[1] != "->":  # which waits for a lock
            number = words[5].rpartition(":")[2]
            if number.isdigit():
                yield int(number)


def _is_held(folder: Path, held: set[int] | None) -> bool:
    """Whether a process holds the lock of a folder; without a list of locks, whether its run says that it goes on."""
    if held is None:
        return (folder / NOW).exists()
    try:
        return (folder / LOCK).stat().st_ino in held
    except OSError:
        return False
