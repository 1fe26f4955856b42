"""The `text-gym` command: what there is, samples, scores, and how fast it runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from agents.audit import audit_rewards
from text_gym import TextGymError, __version__, make_task
from text_gym.errors import DataError
from text_gym.names import whole_number
from text_gym.readers import read_lines
from text_gym.rewards import Scorer, registered_rewards
from text_gym.sequences import Batch, Example, Sequences
from text_gym.tasks import Task, registered_tasks

app = tyro.extras.SubcommandApp()

TaskName = Annotated[str, tyro.conf.arg(help="A name, name(option=value), or the path of a corpus.")]
RewardName = Annotated[str, tyro.conf.arg(help="A name, name(option=value), or module:attribute.")]


@app.command
def tasks() -> None:
    """List the tasks that have a name. A .txt, .jsonl or .abc file is a task too."""
    _print_names("task", registered_tasks())


@app.command
def rewards() -> None:
    """List the rewards that have a name."""
    _print_names("reward", registered_rewards())


@app.command
def sample(task: TaskName = "grammar", n: int = 8, seed: int | None = None, split: str = "test") -> None:
    """Print real sequences of a task: the first n of a split, or n drawn by a seed."""
    made = make_task(task)
    batch = _draw(made, split, n, seed)
    for prompt, text in zip(batch.prompts, batch.texts, strict=True):
        _say(f"{prompt} -> {text}" if made.conditional else text)


@app.command
def score(
    file: Annotated[Path, tyro.conf.Positional],
    task: TaskName = "grammar",
    reward: RewardName = "bleu",
) -> None:
    """Score each line of a text file with a reward; the last line is the mean.

    For a task with prompts, line i answers prompt i of the test split, in the order of
    `text-gym sample`. A blank line is an empty sequence.
    """
    made = make_task(task)
    batch = _read_batch(made, file)
    total, terms = Scorer(reward, made)(batch)
    for value, text in zip(total.tolist(), batch.texts, strict=True):
        _say(f"{value:.6g}\t{text}")
    _say(f"{total.mean():.6g}\tmean of {len(batch)} by {', '.join(terms)}")


@app.command
def audit(
    task: TaskName = "grammar",
    reward: tyro.conf.UseAppendAction[tuple[RewardName, ...]] = (),
    n: int = 1000,
    seed: int = 0,
) -> None:
    """What rewards say of real sequences, of the same words shuffled, and of random tokens.

    A reward that cannot tell these apart says nothing about the language.
    """
    made = make_task(task)
    results = audit_rewards(made, reward, n, seed)
    size = min(n, len(made.test.references))
    _say(f"What rewards say of {size} sequences of task {made.name!r}, on average:")
    table = Table()
    for heading in ("reward", "real", "shuffled", "random"):
        table.add_column(heading, justify="left" if heading == "reward" else "right")
    for name, means in results.items():
        table.add_row(escape(name), *(f"{mean:.3f}" for mean in means))
    Console().print(table)
    _say("real: from the test split. shuffled: the same words in another order. random: other words, as many.")
    _say("A reward whose columns agree says nothing about the language.")


@app.command
def bench() -> None:
    """Measure this machine: the environment beside CartPole, BLEU beside other implementations."""
    from agents.bench import run

    run(Console() if sys.stdout.isatty() else Console(width=120))


def _draw(task: Task, split: str, n: int, seed: int | None) -> Batch:
    whole_number("n", n, least=1)
    count = len(task.split(split).references)
    if not count:
        raise DataError(f"the {split!r} split of {task.name!r} is empty; choose another with --split")
    rows = np.arange(count)
    if seed is not None:
        rows = np.random.default_rng(whole_number("seed", seed, least=0)).permutation(count)
    return task.batch(split, rows[:n])


def _read_batch(task: Task, file: Path) -> Batch:
    """Lines of a file as finished sequences of a task."""
    if not file.is_file():
        raise DataError(f"no file {str(file)!r}; is the path right?")
    ids = []
    for number, line in read_lines(file, "utf-8"):
        try:
            ids.append(task.encode(line))
        except DataError as problem:
            raise DataError(f"{file}, line {number}: {problem}") from problem
        if len(ids[-1]) > task.max_length:
            raise DataError(f"{file}, line {number}: {len(ids[-1])} tokens, and {task!r} takes no more")
    if not ids:
        raise DataError(f"{file} is empty; give a sequence a line")
    tokens, lengths = Sequences.from_lists(ids).padded(task.max_length, task.vocab.pad, task.vocab.eos)
    examples: list[Example] | None = None
    if task.conditional:
        if len(ids) > len(task.test):
            raise DataError(f"{file} has {len(ids)} lines, and the test split only {len(task.test)} prompts")
        examples = [task.test[i] for i in range(len(ids))]
    return Batch(tokens, lengths, task.vocab, examples)


def _print_names(kind: str, described: dict[str, str]) -> None:
    table = Table(kind, "what it is", box=None)
    for name, text in described.items():
        table.add_row(name, escape(text))
    Console().print(table)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 2 for a user's mistake, told in one line. --debug shows where it came from."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given == ["--version"]:
        _say(f"text_gym {__version__}")
        return 0
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # so that module:attribute finds the user's own files
    debug = "--debug" in given
    try:
        app.cli(
            prog="text-gym",
            description="Text generation as reinforcement learning. Also: --version; --debug, for tracebacks.",
            args=[argument for argument in given if argument != "--debug"],
        )
    except TextGymError as problem:
        if debug:
            raise
        sys.stderr.write(f"text-gym: {problem}\n")
        return 2
    except BrokenPipeError:
        sys.stderr.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
