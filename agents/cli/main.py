"""Entry point of the `text-gym` command: dispatches to the commands and reports errors in one line.

Each command imports only what it needs, so that help and lists are fast.
"""

from __future__ import annotations

import inspect
import io
import sys
from collections.abc import Sequence
from pathlib import Path

from agents.cli.commands import COMMANDS
from text_gym import TextGymError, __version__
from text_gym.errors import RunError, UnknownNameError
from text_gym.terminal import printable
from text_gym.validation import suggest

OWN_PARSERS = ("train", "compare")  # their flags depend on the agents; other commands have a signature
MAX_MESSAGE = 480  # characters
HELP = """\
usage: text-gym COMMAND [OPTIONS]

Text generation as a Gymnasium environment: train, compare and evaluate agents.

commands:
{commands}

text-gym COMMAND --help   show the options of a command
text-gym --version        show the version
--debug                   with any command: show the traceback of an error
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        Exit code: 0 for success; 1 if a run failed or some lines could not be scored; 2 for invalid input, reported
        in one line (--debug shows the traceback); 130 after Ctrl-C.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if str(Path.cwd()) not in sys.path:
        # For module:attribute. Last, so that a folder agents/ of the user does not replace this package in workers.
        sys.path.append(str(Path.cwd()))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for a terminal that cannot show every character
    try:
        return _run([word for word in given if word != "--debug"])
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except (TextGymError, OSError) as problem:  # OSError: a folder without write permission, a full disk
        if "--debug" in given:
            raise
        sys.stderr.write(f"text-gym: {_one_line(str(problem))}\n")
        return 1 if isinstance(problem, RunError) else 2
    except KeyboardInterrupt as stopped:
        sys.stderr.write(f"text-gym: stopped. {str(stopped) or 'Run the same command again to resume.'}\n")
        return 130


def _one_line(text: str) -> str:
    """Join the lines of a message, and cut out the middle of a long one."""
    line = printable(" ".join(part.strip() for part in text.splitlines()))
    return line if len(line) <= MAX_MESSAGE else f"{line[: MAX_MESSAGE // 2]} ... {line[-MAX_MESSAGE // 2 + 5 :]}"


def _run(words: list[str]) -> int:
    name = words[0] if words else "--help"
    if name in ("-h", "--help"):
        lines = [f"  {command:<11}{inspect.getdoc(COMMANDS[command])}".partition("\n")[0] for command in COMMANDS]
        sys.stdout.write(HELP.format(commands="\n".join(lines)))
        return 0
    if name == "--version":
        sys.stdout.write(f"text_gym {__version__}\n")
        return 0
    if name not in COMMANDS:
        raise UnknownNameError(f"unknown command {name!r}." + suggest(name, COMMANDS))
    return _run_command(name, words[1:]) or 0


def _run_command(name: str, words: list[str]) -> int | None:
    function = COMMANDS[name]
    if name in OWN_PARSERS:
        return function(words)
    if not words and all(p.default is not p.empty for p in inspect.signature(function).parameters.values()):
        return function()  # importing the parser would take time
    import tyro

    return tyro.cli(function, prog=f"text-gym {name}", args=words)


if __name__ == "__main__":
    sys.exit(main())
