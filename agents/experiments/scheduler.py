"""The scheduler: each run after the one that it starts from, as many at a time as there is room for."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from agents.experiments.pace import Left, Pace, State, state_of
from agents.experiments.settings import RunSpec
from agents.experiments.workers import STOPPED, LocalPool, Pool, RayPool
from agents.report.run_files import ERROR, NOW, RESULTS, keep_error, seconds_of


class Progress:
    """Progress of a comparison.

    Attributes:
        folders: Folders of all runs.
        finished: Runs that have results.
        failed: Runs that failed, and why.
        running: Runs that are under way, each with what it is doing.
        jobs: Runs at a time.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        """Find the runs that an earlier comparison finished."""
        self.folders = list(folders)
        self.specs = {folder: RunSpec.read(folder) for folder in folders}
        self.finished = [folder for folder in folders if (folder / RESULTS).exists()]
        self.finished_before = len(self.finished)
        self.failed: dict[Path, str] = {}
        self.running: dict[Path, State] = {}
        self.jobs = 1
        self._pace = Pace()
        for folder in self.finished:
            if (took := seconds_of(folder)) is not None:
                self._pace.took.setdefault(self.specs[folder].label, []).append(took)

    def start_of(self, folder: Path) -> Path | None:
        """Find the run that this one starts from."""
        spec = self.specs[folder]
        return None if spec.start is None else folder.parent.parent / spec.start / folder.name

    @property
    def waiting(self) -> list[Path]:
        """Runs that have not begun."""
        begun = {*self.finished, *self.failed, *self.running}
        return [folder for folder in self.folders if folder not in begun]

    @property
    def left(self) -> Left | None:
        """How long it will take from now on, as far as can be told; None before anything is known."""
        return self._pace.left([self.specs[folder].label for folder in self.waiting], self.jobs, time.monotonic())

    @property
    def timed(self) -> int:
        """Number of models of which it is known how long their runs take."""
        return len(self._pace.expected(time.monotonic()))

    def begin(self, folder: Path) -> None:
        """Count a run as begun."""
        spec = self.specs[folder]
        self.running[folder] = State("starting")
        self._pace.begin(spec.label, spec.seed, time.monotonic())

    def look(self) -> None:
        """Read how far each run is."""
        for folder in self.running:
            spec = self.specs[folder]
            self.running[folder] = state = state_of(folder)
            self._pace.running[spec.label, spec.seed].see(state, time.monotonic())

    def end(self, folder: Path, error: str | None) -> None:
        """Count a run as finished, or as failed."""
        spec = self.specs[folder]
        del self.running[folder]
        self._pace.end(spec.label, spec.seed, time.monotonic(), error is None)
        if error is None:
            self.finished.append(folder)
        else:
            fail(self, folder, error)

    @property
    def ready(self) -> list[Path]:
        """Runs that could begin: what they start from is there."""
        return [folder for folder in self.waiting if self.start_of(folder) in (None, *self.finished)]


def run_all(progress: Progress, make: Callable[[], Pool], watch: Callable[[Progress], None]) -> None:
    """Run what is not finished, as many at a time as the pool has room for."""
    if not progress.waiting:
        watch(progress)
        return
    pool = make()
    progress.jobs = pool.jobs
    watch(progress)
    try:
        while progress.waiting or progress.running:
            for folder in progress.ready[: pool.free]:
                pool.begin(folder)
                progress.begin(folder)
            _give_up_those_without_start(progress)
            for folder, error in pool.wait(0.25):
                (folder / NOW).unlink(missing_ok=True)
                if error == STOPPED:
                    raise KeyboardInterrupt
                progress.end(folder, error)
            progress.look()
            watch(progress)
    finally:
        pool.close()


def _give_up_those_without_start(progress: Progress) -> None:
    for folder in progress.waiting:
        start = progress.start_of(folder)
        if start in progress.failed:
            fail(progress, folder, f"{start} failed, with which it would have begun")


def fail(progress: Progress, folder: Path, why: str) -> None:
    """Count a run as failed, and say why in its folder, unless it has said so itself."""
    progress.failed[folder] = why
    if not (folder / ERROR).exists():
        keep_error(folder, why + "\n")


def make_pool(jobs: int | None, threads: int, device: str, ray: str | None) -> Pool:
    """Make what executes the runs; without a number of jobs, as many at a time as the machine has room for."""
    if ray is not None:
        return RayPool(ray, jobs, threads, device != "cpu")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    on_gpu = device != "cpu" and torch.cuda.is_available()
    return LocalPool(jobs or (1 if on_gpu else max(1, cores // threads)))
