"""The scheduler: each run after the one that it starts from, as many at a time as there is room for."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from agents.experiments.settings import RunSpec
from agents.experiments.workers import STOPPED, LocalPool, Pool, RayPool
from agents.report.run_files import ERROR, NOW, RESULTS


class Progress:
    """Progress of a comparison.

    Attributes:
        folders: Folders of all runs.
        finished: Runs that have results.
        failed: Runs that failed, and why.
        running: Runs that are under way.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        """Find the runs that an earlier comparison finished."""
        self.folders = list(folders)
        self.specs = {folder: RunSpec.read(folder) for folder in folders}
        self.finished = [folder for folder in folders if (folder / RESULTS).exists()]
        self.finished_before = len(self.finished)
        self.failed: dict[Path, str] = {}
        self.running: list[Path] = []

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
    def ready(self) -> list[Path]:
        """Runs that could begin: what they start from is there."""
        return [folder for folder in self.waiting if self.start_of(folder) in (None, *self.finished)]


def run_all(progress: Progress, make: Callable[[], Pool], watch: Callable[[Progress], None]) -> None:
    """Run what is not finished, as many at a time as the pool has room for."""
    if not progress.waiting:
        watch(progress)
        return
    pool = make()
    try:
        while progress.waiting or progress.running:
            for folder in progress.ready[: pool.free]:
                pool.begin(folder)
                progress.running.append(folder)
            _give_up_those_without_start(progress)
            for folder, error in pool.wait(0.25):
                progress.running.remove(folder)
                (folder / NOW).unlink(missing_ok=True)
                if error == STOPPED:
                    raise KeyboardInterrupt
                if error is None:
                    progress.finished.append(folder)
                else:
                    fail(progress, folder, error)
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
        (folder / ERROR).write_text(why + "\n", encoding="utf-8")


def make_pool(jobs: int | None, threads: int, device: str, ray: str | None) -> Pool:
    """Make what executes the runs; without a number of jobs, as many at a time as the machine has room for."""
    if ray is not None:
        return RayPool(ray, jobs, threads, device != "cpu")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    on_gpu = device != "cpu" and torch.cuda.is_available()
    return LocalPool(jobs or (1 if on_gpu else max(1, cores // threads)))
