"""The `text-gym` command: finds the function of a command, and tells mistakes in one line.

Only what a command needs is imported, so that help and lists appear at once.
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

READ_WORDS = ("train", "compare")  # read their own flags, which depend on the agents; others have a signature
LONGEST = 480  # characters of a message
HELP = """\
usage: text-gym COMMAND [OPTIONS]

Text generation as reinforcement learning.

{commands}

text-gym COMMAND --help   options of a command
text-gym --version        version
--debug                   with any command: the traceback of a mistake
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0 if all went well; 1 if a run failed, or some lines had no score; 2 for a user's mistake, told in one line
        (--debug shows where it came from); 130 after Ctrl-C.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if str(Path.cwd()) not in sys.path:
        # For module:attribute. Last, so that workers do not import the user's own folder agents/ in place of this one.
        sys.path.append(str(Path.cwd()))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for a terminal that cannot show every character
    try:
        return _run([word for word in given if word != "--debug"])
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except (TextGymError, OSError) as problem:  # OSError: a folder that cannot be written, a disk that is full
        if "--debug" in given:
            raise
        sys.stderr.write(f"text-gym: {_one_line(str(problem))}\n")
        return 1 if isinstance(problem, RunError) else 2
    except KeyboardInterrupt as stopped:
        sys.stderr.write(f"text-gym: stopped. {stopped}\n".replace(". \n", "; the same command goes on.\n"))
        return 130


def _one_line(text: str) -> str:
    """A message as one line, of which the middle is left out where it is long."""
    line = printable(" ".join(part.strip() for part in text.splitlines()))
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 + 5 :]}"


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
        raise UnknownNameError(f"there is no command {name!r}." + suggest(name, COMMANDS))
    return _run_command(name, words[1:]) or 0


def _run_command(name: str, words: list[str]) -> int | None:
    function = COMMANDS[name]
    if name in READ_WORDS:
        return function(words)
    if not words and all(p.default is not p.empty for p in inspect.signature(function).parameters.values()):
        return function()  # without a parser, whose import takes time
    import tyro

    return tyro.cli(function, prog=f"text-gym {name}", args=words)


if __name__ == "__main__":
    sys.exit(main())
