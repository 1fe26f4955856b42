"""The commands of `text-gym`. What takes long to import is imported in their functions."""

from __future__ import annotations

import inspect
import re
import secrets
import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import tyro

from text_gym import make_task
from text_gym.corpus.readers import read_lines
from text_gym.errors import DataError, OptionError
from text_gym.rewards import Scorer, registered_rewards
from text_gym.sequences import Batch, Example, Sequences
from text_gym.tasks import Task, registered_tasks
from text_gym.terminal import printable
from text_gym.validation import whole_number

if TYPE_CHECKING:
    from rich.console import Console

ADDRESS = re.compile(r"auto|local|ray://.+|[\w.-]+:\d+")  # of a Ray cluster
TaskName = Annotated[str, tyro.conf.arg(help="A name, name(option=value), or the path of a corpus.")]
RewardName = Annotated[str, tyro.conf.arg(help="A name, name(option=value), or module:attribute.")]


def train(words: Sequence[str]) -> None:
    """Train one agent, measure it, and keep everything in a folder."""
    from agents.cli.flags import read_training

    asked, options = read_training(words)
    from agents.cli.train import train_agent

    train_agent(asked, options, shlex.join(["text-gym", "train", *words]))


def compare(words: Sequence[str]) -> int:
    """Train several agents with their controls, and write the report."""
    from agents.cli.flags import read_comparison

    asked = read_comparison(_with_address(words))
    from agents.cli.train import compare_agents

    return compare_agents(asked, shlex.join(["text-gym", "compare", *words]))


def tasks() -> None:
    """List the tasks that have a name. A .txt, .jsonl or .abc file is a task too."""
    _print_names("task", registered_tasks())


def rewards() -> None:
    """List the rewards that have a name."""
    _print_names("reward", registered_rewards())


def agents(name: tyro.conf.Positional[str | None] = None) -> None:
    """List the agents that have a name, or one agent's presets and hyper-parameters."""
    if name is None:
        from agents.experiments.registry import registered_agents

        _print_names("agent", registered_agents())
        _say("Hyper-parameters and presets of one: text-gym agents seqgan")
        return
    from rich.table import Table

    from agents.common.settings import NoSettings, flattened
    from agents.experiments.recipes import find_agent

    recipe = find_agent(name)
    presets = recipe.agent_class.presets
    columns = [dict(flattened(recipe.settings(preset) or NoSettings())) for preset in (None, *presets)]
    if not columns[0]:
        raise OptionError(f"{name} is {recipe.factory!r}, which has no hyper-parameters to list")
    table = Table("hyper-parameter", "default", *presets, box=None)
    for hyper in columns[0]:
        default, *others = (_short(column[hyper]) for column in columns)
        table.add_row(hyper, default, *(value if value != default else "" for value in others))
    _console(140).print(table)
    _say(f"What each of them is: text-gym train {name} --help")


def sample(
    run: tyro.conf.Positional[Path | None] = None,
    task: TaskName = "grammar",
    n: int = 8,
    seed: int | None = None,
    split: str = "test",
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    prompt: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    trust: bool = False,
) -> None:
    """Print sequences: what the agent in a run's folder writes, or without one, real sequences of a task.

    Args:
        run: The folder of a run of train, or of one seed of compare.
        task: Whose real sequences to print, where there is no run.
        n: How many.
        seed: Draws them; without it the first n of the split are printed, or others in each call.
        split: Of the real sequences.
        temperature: Below 1, likely tokens become likelier.
        top_k: Only so many of the likeliest tokens; 0 for all.
        top_p: Only the fewest likeliest tokens with this much probability together.
        prompt: What to answer; once for each prompt.
        trust: Let a run name modules and files of your own, which are then run.
    """
    ways = {"temperature": (temperature, 1.0), "top_k": (top_k, 0), "top_p": (top_p, 1.0), "prompts": (prompt, ())}
    asked = {name: value for name, (value, usual) in ways.items() if value != usual}
    if run is None:
        if asked:
            raise OptionError(f"{', '.join(asked)}: only for what an agent writes; name the folder of a run")
        made = make_task(task)
        batch = _draw(made, split, n, seed)
    else:
        from agents.experiments.run import load_model, refusing_damage

        model = load_model(run, trust)
        made = model.task
        whole_number("n", n, least=1)
        whole_number("seed", 0 if seed is None else seed, least=0)
        for name in asked:
            if name not in inspect.signature(model.sample).parameters:
                raise OptionError(f"the agent in {run} draws without {name}; leave it out")
        seed = secrets.randbits(31) if seed is None else seed
        with refusing_damage(run):
            batch = model.sample(len(prompt) or n, seed=seed, **asked)
    for question, text in zip(batch.prompts, batch.texts, strict=True):
        _say(f"{question} -> {text}" if made.conditional else text)


def evaluate(
    run: tyro.conf.Positional[Path],
    samples: int | None = None,
    references: int | None = None,
    seed: int | None = None,
    also: tyro.conf.UseAppendAction[tuple[tuple[RewardName, ...], ...]] = (),
    temperature: float = 1.0,
    device: str | None = None,
    threads: int | None = None,
    trust: bool = False,
) -> None:
    """Measure the agent in a run's folder anew.

    Args:
        run: The folder of a run of train, or of one seed of compare.
        samples: How many sequences to draw; as many as the run says if not given.
        references: Held-out sequences that BLEU compares with; as many as the run says if not given.
        seed: Draws them; the run's own if not given.
        also: Rewards to report beside the rest.
        temperature: At which to draw them.
        device: cpu, cuda, or auto for a GPU where there is one; where the run was if not given.
        threads: Torch threads; those of the run if not given.
        trust: Let a run name modules and files of your own, which are then run.
    """
    from rich.markup import escape
    from rich.table import Table

    from agents.cli.train import measure_run
    from agents.report.columns import in_order

    named = [name for names in also for name in names]
    figures = measure_run(run, samples, seed, named, temperature, trust, references, device, threads)
    table = Table("figure", "value", "what it is", box=None)
    for column in in_order(set(figures)):
        about = escape(printable(column.about))
        table.add_row(escape(printable(column.title)), column.show(figures[column.key]), about)
    _console(140).print(table)


def report(runs: tyro.conf.Positional[tuple[Path, ...]], out: Path | None = None) -> None:
    """Write the report of one or more runs of train or compare, from their folders alone.

    Args:
        runs: The folders.
        out: Where report.html, report.md, report.csv and the pictures go; the first run's folder if not given.
    """
    from agents.report.run_files import read_results
    from agents.report.write import write_report

    if not runs:
        raise OptionError("name the folder of a run, for example: text-gym report runs/compare")
    _say(str(write_report(read_results(runs), out or runs[0])))


def score(
    file: Annotated[Path, tyro.conf.Positional],
    task: TaskName = "grammar",
    reward: RewardName = "bleu",
) -> int:
    """Score each line of a text file with a reward; the last line is the mean.

    For a task with prompts, line i answers prompt i of the test split, in the order of
    `text-gym sample`. A blank line is an empty sequence. A line that the task cannot read is
    reported and left out; then the exit code is 1.
    """
    made = make_task(task)
    batch, problems = _read_batch(made, file)
    scorer = Scorer(reward, made)
    for problem in problems:
        sys.stderr.write(f"text-gym: {problem}\n")
    if len(batch):
        total, terms = scorer(batch)
        for value, text in zip(total.tolist(), batch.texts, strict=True):
            _say(f"{value:.6g}\t{text}")
        _say(f"{total.mean():.6g}\tmean of {len(batch)} by {', '.join(terms)}")
    return 1 if problems else 0


def audit(
    task: TaskName = "grammar",
    reward: tyro.conf.UseAppendAction[tuple[RewardName, ...]] = (),
    n: int = 1000,
    seed: int = 0,
) -> None:
    """What rewards say of real sequences, of the same words shuffled, and of random tokens.

    A reward that cannot tell these apart says nothing about the language.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from agents.experiments.reward_audit import audit_rewards

    made = make_task(task)
    results = audit_rewards(made, reward, n, seed)
    size = min(n, len(made.test.references))
    _say(f"What rewards say of {size} sequences of task {made.name!r}, on average:")
    table = Table()
    for heading in ("reward", "real", "shuffled", "random"):
        table.add_column(heading, justify="left" if heading == "reward" else "right")
    for name, means in results.items():
        table.add_row(escape(printable(name)), *(f"{mean:.3f}" for mean in means))
    Console().print(table)
    _say("real: from the test split. shuffled: the same words in another order. random: other words, as many.")
    _say("A reward whose columns agree says nothing about the language.")


def bench() -> None:
    """Measure this machine: the environment beside CartPole, BLEU beside other implementations."""
    from agents.bench.main import run

    run(_console(120))


def completion(shell: tyro.conf.Positional[str]) -> None:
    """Print the script by which bash or zsh completes commands, agents and flags.

    Args:
        shell: bash, whose script belongs in ~/.local/share/bash-completion/completions/text-gym, or zsh, whose script
            is read in ~/.zshrc: source <(text-gym completion zsh)
    """
    from agents.cli.completion import completion_script

    sys.stdout.write(completion_script(shell, COMMANDS))


def _with_address(words: Sequence[str]) -> list[str]:
    """`--ray` alone is a cluster on this machine."""
    given = list(words)
    for i, word in enumerate(given):
        if word == "--ray" and not (i + 1 < len(given) and ADDRESS.fullmatch(given[i + 1])):
            return [*given[: i + 1], "local", *given[i + 1 :]]
    return given


def _draw(task: Task, split: str, n: int, seed: int | None) -> Batch:
    whole_number("n", n, least=1)
    count = len(task.split(split).references)
    if not count:
        raise DataError(f"the {split!r} split of {task.name!r} is empty; choose another with --split")
    rows = np.arange(count)
    if seed is not None:
        rows = np.random.default_rng(whole_number("seed", seed, least=0)).permutation(count)
    return task.batch(split, rows[:n])


def _read_batch(task: Task, file: Path) -> tuple[Batch, list[str]]:
    """Read the lines of a file as finished sequences of a task; of those that cannot be, say why."""
    if not file.is_file():
        raise DataError(f"no file {str(file)!r}; is the path right?")
    ids: dict[int, list[int]] = {}
    problems: dict[int, str] = {}
    for number, line in read_lines(file, "utf-8"):
        try:
            ids[number] = task.encode(line)
        except DataError as problem:
            problems[number] = str(problem)
            continue
        if len(ids[number]) > task.max_length:
            problems[number] = f"{len(ids.pop(number))} tokens, and {task!r} takes no more"
    if not (ids or problems):
        raise DataError(f"{file} is empty; give a sequence a line")
    tokens, lengths = Sequences.from_lists([*ids.values()]).padded(task.max_length, task.vocab.pad, task.vocab.eos)
    examples: list[Example] | None = None
    if task.conditional:
        if max(*ids, *problems, 0) > len(task.test):
            raise DataError(
                f"{file} has more than {len(task.test)} lines, which is the number of prompts in the test split"
            )
        examples = [task.test[number - 1] for number in ids]
    return Batch(tokens, lengths, task.vocab, examples), [f"{file}, line {n}: {why}" for n, why in problems.items()]


def _print_names(kind: str, described: Mapping[str, str]) -> None:
    """Print names and what they are, in two columns."""
    indent = 1 + max(map(len, (kind, *described)))
    width = max(40, shutil.get_terminal_size().columns)
    for name, text in {kind: "what it is", **described}.items():
        _say(textwrap.fill(text, width, initial_indent=f"{name:<{indent}}", subsequent_indent=" " * indent))


def _console(width: int) -> Console:
    """A console as wide as the terminal, or of this width where the output is no terminal."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else width)


def _say(line: str) -> None:
    sys.stdout.write(printable(line) + "\n")


def _short(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return text if len(text) <= 24 else text[:21] + "..."


COMMANDS: dict[str, Callable[..., int | None]] = {
    function.__name__: function
    for function in (train, compare, report, sample, evaluate, agents, tasks, rewards, score, audit, bench, completion)
}
