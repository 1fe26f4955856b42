"""Run programs in new processes, forked from a server process that has already imported the libraries."""

import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import time
from pathlib import Path

from agents.experiments.workers import PRELOADED


class Program:
    """A running program.

    Args:
        program: Path of a Python file, or code.
        *arguments: Command-line arguments.
        cwd: Working directory.
    """

    def __init__(self, program, *arguments, cwd=None):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self._folder = tempfile.TemporaryDirectory()
        self._output, self._errors = (Path(self._folder.name, name) for name in ("output.txt", "errors.txt"))
        self._process = context.Process(
            target=_run,
            args=(program, [str(a) for a in arguments], cwd, dict(os.environ), self._output, self._errors),
        )
        for path in (self._output, self._errors):
            path.touch()
        self._process.start()

    def poll(self):
        """Return the exit code; None while the program is running."""
        return self._process.exitcode

    def until(self, ready, seconds=60):
        """Wait until ready() is true; the program must not exit before."""
        end = time.monotonic() + seconds
        while not ready():
            assert self.poll() is None, (self.wait(), self.errors)
            assert time.monotonic() < end
            time.sleep(0.01)

    def printed(self):
        """Return the output so far."""
        return self._output.read_text()

    def interrupt(self):
        """Send SIGINT, like Ctrl-C."""
        os.kill(self._process.pid, signal.SIGINT)

    def kill(self):
        self._process.kill()
        self.wait()

    def wait(self, seconds=120):
        """Wait for the program to exit, and return the exit code; its output is then in `output` and `errors`."""
        self._process.join(seconds)
        assert self._process.exitcode is not None, f"still running after {seconds} seconds"
        self.output, self.errors = self._output.read_text(), self._errors.read_text()
        self._folder.cleanup()
        return self._process.exitcode


def run(program, *arguments, cwd=None):
    """Run a program, assert that it succeeds, and return its output."""
    process = Program(program, *arguments, cwd=cwd)
    assert process.wait() == 0, process.errors
    return process.output


def _run(program, arguments, cwd, environment, output, errors):
    os.environ.clear()
    os.environ.update(environment)
    if cwd is not None:
        os.chdir(cwd)
    for path, stream in ((output, sys.stdout), (errors, sys.stderr)):
        with path.open("wb") as file:
            os.dup2(file.fileno(), stream.fileno())
    sys.argv = [str(program), *arguments]
    if isinstance(program, Path):
        sys.path.insert(0, str(program.parent))
        runpy.run_path(str(program), run_name="__main__")
    else:
        sys.argv[0] = "-c"
        exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})
