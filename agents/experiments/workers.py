"""Pools that execute runs: worker processes on this machine, or a Ray cluster. The results are the same."""

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
"""Folder of a run that has ended, and the reason if it failed."""
STOPPED = "\0"  # in place of a reason: the run was interrupted
SAFE_PATH = "PYTHONSAFEPATH"  # environment variable of Python
OUTPUT = "output.txt"  # standard output and error of a run
PRELOADED = ["agents.experiments.run", "torch._dynamo"]  # torch's optimisers import the second


class Pool(Protocol):
    """Executes runs in parallel."""

    jobs: int
    """Number of runs in parallel."""

    @property
    def free(self) -> int:
        """Number of runs that can begin now."""

    def begin(self, folder: Path) -> None:
        """Begin a run."""

    def wait(self, seconds: float) -> list[Done]:
        """Wait until a run ends, but no longer than `seconds`, and return all runs that have ended."""

    def close(self) -> None:
        """Stop the runs that have not ended."""


def run_safely(folder: Path) -> str | None:
    """Execute a run; if it fails, save the traceback in its folder and return the reason in one line."""
    from agents.experiments.run import execute

    try:
        execute(folder, trust=True)  # the user named the agents, task and rewards of the comparison
    except KeyboardInterrupt:
        return STOPPED
    except Exception as problem:  # any exception of the user's own agent or reward: the other runs continue
        keep_error(folder, traceback.format_exc())
        reason = str(problem) if isinstance(problem, TextGymError) else f"{type(problem).__name__}: {problem}"
        return reason.splitlines()[0] if reason else type(problem).__name__
    return None


class LocalPool:
    """Worker processes on this machine, each of which executes one run after another.

    Args:
        jobs: Number of processes.
    """

    def __init__(self, jobs: int) -> None:
        """Create the pool; processes are started when they are needed."""
        self.jobs = jobs
        self._workers: dict[Connection, tuple[BaseProcess, Path | None]] = {}
        self._context = _context()

    @property
    def free(self) -> int:
        """Number of runs that can begin now."""
        return self.jobs - sum(folder is not None for _, folder in self._workers.values())

    def begin(self, folder: Path) -> None:
        """Send the run to an idle process, or to a new one."""
        for connection, (process, running) in list(self._workers.items()):
            if running is None and not process.is_alive():
                del self._workers[connection]
        idle = next((connection for connection, (_, running) in self._workers.items() if running is None), None)
        if idle is None:
            idle, remote = self._context.Pipe()
            process = self._context.Process(target=_work, args=(remote, dict(os.environ)))
            with _safe_path(), _without_main():
                process.start()
            remote.close()
            self._workers[idle] = (process, None)
        idle.send(str(folder))
        self._workers[idle] = (self._workers[idle][0], folder)

    def wait(self, seconds: float) -> list[Done]:
        """Return the runs that have ended; the run of a process that died has failed."""
        ended: list[Done] = []
        for ready in wait(list(self._workers), seconds):
            assert isinstance(ready, Connection)
            process, folder = self._workers[ready]
            try:
                error = ready.recv()
                self._workers[ready] = (process, None)
            except (EOFError, OSError):
                process.join()
                error = f"the worker process died ({_describe_exit(process.exitcode)})"
                if folder is not None and (folder / OUTPUT).exists():
                    error += f"; its output is in {folder / OUTPUT}"
                del self._workers[ready]
            if folder is not None:
                ended.append((folder, error))
        return ended

    def close(self) -> None:
        """Stop the processes; their runs can be resumed later."""
        for connection, (process, folder) in self._workers.items():
            connection.close()  # an idle process ends by itself
            if folder is not None:
                process.terminate()
        for process, _ in self._workers.values():
            process.join()
        self._workers = {}


class RayPool:
    """A Ray cluster whose machines share a file system.

    Args:
        address: Address of the cluster; "local" starts a cluster on this machine.
        jobs: Number of runs in parallel; None for the number of cores of the cluster divided by threads.
        threads: Number of cores per run.
        on_gpu: Whether each run reserves a GPU, if the cluster has GPUs.
    """

    def __init__(self, address: str, jobs: int | None, threads: int, on_gpu: bool = False) -> None:
        """Connect to the cluster."""
        try:
            import ray
        except ImportError as problem:
            raise DependencyError("--ray needs Ray: pip install 'text-gym[ray]', or pip install ray") from problem
        self._ray: Any = ray
        self._connected_here = not self._ray.is_initialized()  # keep a connection that the caller has made
        if self._connected_here:
            dashboard = False if address == "local" else None
            self._ray.init(address, log_to_driver=False, configure_logging=False, include_dashboard=dashboard)
        available = self._ray.cluster_resources()
        self.jobs = jobs or max(1, int(available.get("CPU", 1)) // threads)
        needs = {"num_cpus": threads, "num_gpus": int(on_gpu and available.get("GPU", 0) > 0), "max_retries": 0}
        self._remote: Callable[..., object] = self._ray.remote(**needs)(_run_remotely).remote
        self._running: dict[object, Path] = {}

    @property
    def free(self) -> int:
        """Number of runs that can begin now."""
        return self.jobs - len(self._running)

    def begin(self, folder: Path) -> None:
        """Submit the run to the cluster."""
        self._running[self._remote(str(folder.resolve()), str(Path.cwd()), sys.path)] = folder

    def wait(self, seconds: float) -> list[Done]:
        """Return the runs that have ended, after at most `seconds`."""
        if not self._running:
            return []
        ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=seconds)
        return [(self._running.pop(handle), self._result(handle)) for handle in ready]

    def _result(self, handle: object) -> str | None:
        try:
            error: str | None = self._ray.get(handle)
        except self._ray.exceptions.RayError as problem:
            return f"Ray failed to execute the run: {str(problem).splitlines()[0]}"
        return error

    def close(self) -> None:
        """Stop the runs that have not ended, and disconnect."""
        for handle in self._running:
            self._ray.cancel(handle, force=True)
        if self._running:
            self._ray.wait(list(self._running), num_returns=len(self._running), timeout=60)
        self._running = {}
        if self._connected_here:
            self._ray.shutdown()


def _run_remotely(folder: str, working_directory: str, path: list[str]) -> str | None:
    os.chdir(working_directory)  # for relative paths of corpora and agents
    sys.path[:] = [*dict.fromkeys([*path, *sys.path])]
    return run_safely(Path(folder))


def _context() -> SpawnContext | ForkServerContext:
    """Return the start method of processes: forkserver with preloaded libraries if available, else spawn.

    With a fork server, a process starts in milliseconds instead of the seconds that importing torch takes, and the
    processes share the memory of the libraries.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


@contextmanager
def _safe_path() -> Iterator[None]:
    """Start Python without the working directory in sys.path, where a file could shadow a module.

    Later imports use the sys.path of the parent process. Python 3.10 ignores the variable.
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
    """Execute one run after another, until the connection is closed."""
    os.environ.clear()  # the fork server has kept the environment of the first process
    os.environ.update(environment)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    tqdm.set_lock(threading.RLock())  # tqdm's default lock is shared by processes, and leaks if one is terminated
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
    """Exit when the parent process is killed, because the next comparison will resume the run."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _describe_exit(exit_code: int | None) -> str:
    """Describe how a process ended."""
    return f"killed by signal {-exit_code}" if exit_code is not None and exit_code < 0 else f"exit code {exit_code}"
