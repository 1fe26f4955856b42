"""Scheduler of a comparison: executes runs in parallel, each after its warm start."""

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
        finished: Folders of the runs with results.
        failed: Folders of the runs that failed, with the reasons.
        running: Folders of the running runs, with their states.
        jobs: Number of runs executed in parallel.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        """Find the runs that are finished already."""
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
        """Return the folder of the run's warm start; None if it has none."""
        spec = self.specs[folder]
        return None if spec.start is None else folder.parent.parent / spec.start / folder.name

    @property
    def waiting(self) -> list[Path]:
        """Runs that have not begun."""
        begun = {*self.finished, *self.failed, *self.running}
        return [folder for folder in self.folders if folder not in begun]

    @property
    def left(self) -> Left | None:
        """Estimated time left; None before there is an estimate."""
        return self._pace.left([self.specs[folder].label for folder in self.waiting], self.jobs, time.monotonic())

    @property
    def timed(self) -> int:
        """Number of models with an estimated duration."""
        return len(self._pace.expected(time.monotonic()))

    def begin(self, folder: Path) -> None:
        """Record that a run has begun."""
        spec = self.specs[folder]
        self.running[folder] = State("starting")
        self._pace.begin(spec.label, spec.seed, time.monotonic())

    def look(self) -> None:
        """Update the states of the running runs from their folders."""
        for folder in self.running:
            spec = self.specs[folder]
            self.running[folder] = state = state_of(folder)
            self._pace.running[spec.label, spec.seed].see(state, time.monotonic())

    def end(self, folder: Path, error: str | None) -> None:
        """Record that a run is finished, or failed if there is an error."""
        spec = self.specs[folder]
        del self.running[folder]
        self._pace.end(spec.label, spec.seed, time.monotonic(), error is None)
        if error is None:
            self.finished.append(folder)
        else:
            fail(self, folder, error)

    @property
    def ready(self) -> list[Path]:
        """Runs that can begin, because their warm start is finished."""
        return [folder for folder in self.waiting if self.start_of(folder) in (None, *self.finished)]


def run_all(progress: Progress, make: Callable[[], Pool], watch: Callable[[Progress], None]) -> None:
    """Execute the unfinished runs of a comparison.

    Args:
        progress: Runs of the comparison.
        make: Creates the pool that executes the runs; not called if all runs are finished.
        watch: Called with the progress before the first run, then several times a second.
    """
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
            _fail_without_start(progress)
            for folder, error in pool.wait(0.25):
                (folder / NOW).unlink(missing_ok=True)
                if error == STOPPED:
                    raise KeyboardInterrupt
                progress.end(folder, error)
            progress.look()
            watch(progress)
    finally:
        pool.close()


def _fail_without_start(progress: Progress) -> None:
    """Record the waiting runs whose warm start failed as failed."""
    for folder in progress.waiting:
        start = progress.start_of(folder)
        if start in progress.failed:
            fail(progress, folder, f"its warm start {start} failed")


def fail(progress: Progress, folder: Path, reason: str) -> None:
    """Record that a run failed, and write the reason into its folder unless there is an error already."""
    progress.failed[folder] = reason
    if not (folder / ERROR).exists():
        keep_error(folder, reason + "\n")


def make_pool(jobs: int | None, threads: int, device: str, ray: str | None) -> Pool:
    """Create the pool that executes the runs.

    Args:
        jobs: Number of runs in parallel; None for the number of cores divided by threads, or 1 on a GPU.
        threads: Number of torch threads per run.
        device: Device of the runs: "cpu", "cuda" or "auto".
        ray: Address of a Ray cluster; None for processes on this machine.
    """
    if ray is not None:
        return RayPool(ray, jobs, threads, device != "cpu")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    on_gpu = device != "cpu" and torch.cuda.is_available()
    return LocalPool(jobs or (1 if on_gpu else max(1, cores // threads)))
