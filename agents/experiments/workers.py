"""Where runs are executed: processes of this machine, or a Ray cluster. The results are the same."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from tqdm import tqdm

from agents.report.run_files import keep_error
from text_gym.errors import DependencyError, TextGymError

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext

Done = tuple[Path, str | None]
"""A run's folder, and why it failed if it did."""
STOPPED = "\0"  # in place of why a run failed: it was interrupted
SAFE_PATH = "PYTHONSAFEPATH"  # Python's own variable
OUTPUT = "output.txt"  # what a run's process printed
PRELOADED = ["agents.experiments.run", "torch._dynamo"]  # an optimiser imports the second


class Pool(Protocol):
    """Executes runs beside each other."""

    jobs: int
    """Runs at a time."""

    @property
    def free(self) -> int:
        """Number of runs that it could begin now."""

    def begin(self, folder: Path) -> None:
        """Begin a run."""

    def wait(self, seconds: float) -> list[Done]:
        """Wait for a run to end, but not longer than this, and return all that have ended."""

    def close(self) -> None:
        """End what is still running."""


def run_safely(folder: Path) -> str | None:
    """Execute a run; if it fails, keep the traceback in its folder and give the last line."""
    from agents.experiments.run import execute

    try:
        execute(folder, trust=True)  # the user of this program named what is compared
    except KeyboardInterrupt:
        return STOPPED
    except Exception as problem:  # whatever a user's own agent or reward raises: the other runs go on
        keep_error(folder, traceback.format_exc())
        said = str(problem) if isinstance(problem, TextGymError) else f"{type(problem).__name__}: {problem}"
        return said.splitlines()[0] if said else type(problem).__name__
    return None


class LocalPool:
    """Processes of this machine, each of which executes one run after another.

    Args:
        jobs: How many.
    """

    def __init__(self, jobs: int) -> None:
        """Nothing is started before there is something to run."""
        self.jobs = jobs
        self._workers: dict[Connection, tuple[BaseProcess, Path | None]] = {}
        self._context = _context()

    @property
    def free(self) -> int:
        """Number of runs that could begin now."""
        return self.jobs - sum(folder is not None for _, folder in self._workers.values())

    def begin(self, folder: Path) -> None:
        """Give the run to a process that has nothing to do, or to a new one."""
        for ours, (process, doing) in list(self._workers.items()):
            if doing is None and not process.is_alive():
                del self._workers[ours]
        idle = next((ours for ours, (_, doing) in self._workers.items() if doing is None), None)
        if idle is None:
            idle, theirs = self._context.Pipe()
            process = self._context.Process(target=_work, args=(theirs, dict(os.environ)))
            with _safe_path(), _without_main():
                process.start()
            theirs.close()
            self._workers[idle] = (process, None)
        idle.send(str(folder))
        self._workers[idle] = (self._workers[idle][0], folder)

    def wait(self, seconds: float) -> list[Done]:
        """Hear from processes; one that died took its run with it, and is replaced when it is needed."""
        ended: list[Done] = []
        for ready in wait(list(self._workers), seconds):
            assert isinstance(ready, Connection)
            process, folder = self._workers[ready]
            try:
                error = ready.recv()
                self._workers[ready] = (process, None)
            except (EOFError, OSError):
                process.join()
                error = f"its process died ({_how(process.exitcode)})"
                if folder is not None and (folder / OUTPUT).exists():
                    error += f"; what it said is in {folder / OUTPUT}"
                del self._workers[ready]
            if folder is not None:
                ended.append((folder, error))
        return ended

    def close(self) -> None:
        """End the processes; the runs they are at go on another time."""
        for connection, (process, folder) in self._workers.items():
            connection.close()  # an idle process ends by itself
            if folder is not None:
                process.terminate()
        for process, _ in self._workers.values():
            process.join()
        self._workers = {}


class RayPool:
    """A Ray cluster, whose machines see the same files.

    Args:
        address: Of the cluster; "local" starts one on this machine.
        jobs: How many runs at once; as many as the cluster has cores for if not given.
        threads: The cores that a run takes.
        on_gpu: Whether it takes a GPU too, where there are any.
    """

    def __init__(self, address: str, jobs: int | None, threads: int, on_gpu: bool = False) -> None:
        """Connect."""
        try:
            import ray
        except ImportError as problem:
            raise DependencyError("--ray needs Ray: pip install 'text-gym[ray]', or pip install ray") from problem
        self._ray: Any = ray
        self._ours = not self._ray.is_initialized()  # a cluster that the caller is connected to stays so
        if self._ours:
            dashboard = False if address == "local" else None
            self._ray.init(address, log_to_driver=False, configure_logging=False, include_dashboard=dashboard)
        there = self._ray.cluster_resources()
        self.jobs = jobs or max(1, int(there.get("CPU", 1)) // threads)
        needs = {"num_cpus": threads, "num_gpus": int(on_gpu and there.get("GPU", 0) > 0), "max_retries": 0}
        self._remote: Callable[..., object] = self._ray.remote(**needs)(_run_remotely).remote
        self._running: dict[object, Path] = {}

    @property
    def free(self) -> int:
        """Number of runs that could begin now."""
        return self.jobs - len(self._running)

    def begin(self, folder: Path) -> None:
        """Hand the run to the cluster."""
        self._running[self._remote(str(folder.resolve()), str(Path.cwd()), sys.path)] = folder

    def wait(self, seconds: float) -> list[Done]:
        """Hear from the cluster."""
        if not self._running:
            return []
        ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=seconds)
        return [(self._running.pop(handle), self._result(handle)) for handle in ready]

    def _result(self, handle: object) -> str | None:
        try:
            error: str | None = self._ray.get(handle)
        except self._ray.exceptions.RayError as problem:
            return f"Ray lost it: {str(problem).splitlines()[0]}"
        return error

    def close(self) -> None:
        """End what is running, and disconnect."""
        for handle in self._running:
            self._ray.cancel(handle, force=True)
        if self._running:
            self._ray.wait(list(self._running), num_returns=len(self._running), timeout=60)
        self._running = {}
        if self._ours:
            self._ray.shutdown()


def _run_remotely(folder: str, here: str, path: list[str]) -> str | None:
    os.chdir(here)  # where paths of corpora and agents begin
    sys.path[:] = [*dict.fromkeys([*path, *sys.path])]
    return run_safely(Path(folder))


def _context() -> SpawnContext | ForkServerContext:
    """Return how processes are started: forked from one that has imported the libraries, where the system can.

    Each then starts in milliseconds, where importing torch takes seconds, and they share the libraries' memory.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


@contextmanager
def _safe_path() -> Iterator[None]:
    """Let Python start without the working directory in its path, where a file may be called as a module is.

    What is imported later is found in the path of the parent, which a worker is given. Python 3.10 has no such switch.
    """
    before = os.environ.get(SAFE_PATH)
    os.environ[SAFE_PATH] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[SAFE_PATH]
        else:
            os.environ[SAFE_PATH] = before


@contextmanager
def _without_main() -> Iterator[None]:
    """Let a process start without importing the program that calls compare(), so that a plain script may call it.

    Nothing of the program is needed: a run names its agent, its task and its reward by module or by file.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")  # of which there is no file to import
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _work(connection: Connection, environment: dict[str, str]) -> None:
    """Execute one run after another, until the other side is gone."""
    os.environ.clear()  # it is that of the moment when the first process was started
    os.environ.update(environment)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    tqdm.set_lock(threading.RLock())  # its usual lock is for several processes, and would outlive one that is ended
    while True:
        try:
            folder = Path(connection.recv())
        except (EOFError, OSError, KeyboardInterrupt):
            return
        with (folder / OUTPUT).open("ab", buffering=0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        error = run_safely(folder)
        try:
            connection.send(error)
        except (OSError, KeyboardInterrupt):
            return


def _end_with_parent() -> None:
    """A process whose parent was killed must not go on writing: the next comparison begins its run again."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _how(exit_code: int | None) -> str:
    """Say how a process ended."""
    return f"killed by signal {-exit_code}" if exit_code is not None and exit_code < 0 else f"exit code {exit_code}"
