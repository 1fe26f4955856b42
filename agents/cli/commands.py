"""The commands of `text-gym`. Each function imports its slow dependencies itself."""

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

    from agents.web.server import LocalServer

RAY_ADDRESS = re.compile(r"auto|local|ray://.+|[\w.-]+:\d+")


def train(words: Sequence[str]) -> None:
    """Train one agent and evaluate it."""
    from agents.cli.flags import read_training

    asked, options = read_training(words)
    from agents.cli.train import train_agent

    train_agent(asked, options, shlex.join(["text-gym", "train", *words]))


def compare(words: Sequence[str]) -> int:
    """Compare agents with controls over several seeds."""
    from agents.cli.flags import read_comparison

    asked = read_comparison(_with_ray_address(words))
    from agents.cli.train import compare_agents

    return compare_agents(asked, shlex.join(["text-gym", "compare", *words]))


def tasks() -> None:
    """List the registered tasks.

    The path of a .txt, .jsonl or .abc file is a task too.
    """
    _print_names("task", registered_tasks())


def rewards() -> None:
    """List the registered rewards."""
    _print_names("reward", registered_rewards())


def agents(name: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[AGENT]")] = None) -> None:
    """List the registered agents, or the hyperparameters of one agent.

    Args:
        name: Agent whose hyperparameters and presets are listed; None lists the agents.
    """
    if name is None:
        from agents.experiments.registry import registered_agents

        _print_names("agent", registered_agents())
        _say("List the hyperparameters and presets of an agent: text-gym agents seqgan")
        return
    from rich.table import Table

    from agents.common.settings import NoSettings, flattened
    from agents.experiments.recipes import find_agent

    recipe = find_agent(name)
    presets = recipe.agent_class.presets
    columns = [dict(flattened(recipe.settings(preset) or NoSettings())) for preset in (None, *presets)]
    if not columns[0]:
        raise OptionError(f"agent {name!r} has no hyperparameters to list")
    table = Table("hyperparameter", "default", *presets, box=None)
    for hyper in columns[0]:
        default, *others = (_short(column[hyper]) for column in columns)
        table.add_row(hyper, default, *(value if value != default else "" for value in others))
    _console(140).print(table)
    _say(f"Descriptions of the hyperparameters: text-gym train {name} --help")


def sample(
    run: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[RUN]")] = None,
    task: str = "grammar",
    n: int = 8,
    seed: int | None = None,
    split: str = "test",
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    prompt: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    trust: bool = False,
) -> None:
    """Print sequences of a trained agent, or real sequences of a task.

    Args:
        run: Run folder, made by train or found in a comparison as LABEL/seed-N; None prints real sequences of --task.
        task: Task of the real sequences: a name, name(option=value), or the path of a corpus.
        n: Number of sequences.
        seed: Random seed; None samples anew in each call, and prints real sequences in the order of the split.
        split: Split of the real sequences: train, valid or test.
        temperature: Sampling temperature.
        top_k: Sample from the k most likely tokens; 0 for all tokens.
        top_p: Nucleus sampling: sample from the smallest set of tokens with this total probability.
        prompt: Prompt to complete; repeat the flag for several prompts.
        trust: Allow the run to load Python code that it names as module:attribute.
    """
    options = {"temperature": (temperature, 1.0), "top_k": (top_k, 0), "top_p": (top_p, 1.0), "prompts": (prompt, ())}
    asked = {name: value for name, (value, default) in options.items() if value != default}
    if run is None:
        if asked:
            raise OptionError(f"{', '.join(asked)} cannot be used with real sequences; name the folder of a run")
        made = make_task(task)
        batch = _real_batch(made, split, n, seed)
    else:
        from agents.experiments.run import load_model, refusing_damage

        model = load_model(run, trust)
        made = model.task
        whole_number("n", n, least=1)
        whole_number("seed", 0 if seed is None else seed, least=0)
        for name in asked:
            if name not in inspect.signature(model.sample).parameters:
                raise OptionError(f"the agent in {run} cannot sample with {name}; leave it out")
        seed = secrets.randbits(31) if seed is None else seed
        with refusing_damage(run):
            batch = model.sample(len(prompt) or n, seed=seed, **asked)
    for question, text in zip(batch.prompts, batch.texts, strict=True):
        _say(f"{question} -> {text}" if made.conditional else text)


def evaluate(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    samples: int | None = None,
    references: int | None = None,
    seed: int | None = None,
    also: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = (),
    temperature: float = 1.0,
    device: str | None = None,
    threads: int | None = None,
    trust: bool = False,
) -> None:
    """Evaluate a trained agent again.

    Args:
        run: Run folder, made by train or found in a comparison as LABEL/seed-N.
        samples: Number of sequences to sample; None for the setting of the run.
        references: Number of held-out sequences that BLEU compares with; None for the setting of the run.
        seed: Random seed of the sampling; None for the seed of the run.
        also: Additional rewards to report: names, name(option=value), or module:attribute.
        temperature: Sampling temperature.
        device: cpu, cuda, or auto (cuda if available); None for the device of the run.
        threads: Number of torch threads; None for the setting of the run.
        trust: Allow the run to load Python code that it names as module:attribute.
    """
    from rich.markup import escape
    from rich.table import Table

    from agents.cli.train import measure_run
    from agents.report.columns import in_order

    named = [name for names in also for name in names]
    figures = measure_run(run, samples, seed, named, temperature, trust, references, device, threads)
    table = Table("metric", "value", "description", box=None)
    for column in in_order(set(figures)):
        about = escape(printable(column.help))
        table.add_row(escape(printable(column.title)), column.show(figures[column.key]), about)
    _console(140).print(table)


def report(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER ...")],
    out: Path | None = None,
) -> None:
    """Write the report of existing runs and comparisons.

    Args:
        runs: Folders of runs or comparisons.
        out: Folder for report.html, report.md, report.csv and the pictures; None for the first folder given.
    """
    from agents.report.results import Results

    if not runs:
        raise OptionError("name the folder of a run, for example: text-gym report runs/compare")
    _say(str(Results.load(*runs).write_report(out)))


def watch(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")],
    port: int | None = None,
    open: bool = True,
) -> None:
    """Show a comparison or a run in the browser while it runs.

    The page reads the run files and changes nothing.

    Start it before, during or after the comparison.

    Args:
        run: Folder of a comparison or of a run; it need not exist yet.
        port: Port on 127.0.0.1; None takes the first free port from 8600 on.
        open: Open the page in the browser.
    """
    from agents.web.server import LocalServer
    from agents.web.watch import Watcher

    with LocalServer(Watcher(run).page, port=port) as server:
        _serve(server, str(run), "the page, and no run", open)


def play(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    reward: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    port: int | None = None,
    open: bool = True,
    trust: bool = False,
) -> None:
    """Play with a trained agent in the browser: tokens, rollouts, credit.

    Args:
        run: Run folder, made by train or found in a comparison as LABEL/seed-N.
        reward: Reward to offer beside the registered ones: a name, name(option=value), or module:attribute; repeat the
            flag for several rewards.
        port: Port on 127.0.0.1; None takes the first free port from 8600 on.
        open: Open the page in the browser.
        trust: Allow the run to load Python code that it names as module:attribute.
    """
    from agents.web.play import Player
    from agents.web.server import LocalServer

    player = Player(run, trust, reward)
    with LocalServer(player.page, player.calls, port) as server:
        _serve(server, str(run), "the page", open)


def score(
    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")],
    task: str = "grammar",
    reward: str = "bleu",
) -> int:
    """Score each line of a text file with a reward.

    Prints the reward of each line, then the mean.

    For a task with prompts, line i answers prompt i of the test split.

    A blank line is an empty sequence.

    Lines that the task cannot encode are reported and skipped (exit code 1).

    Args:
        file: Text file with one sequence per line.
        task: Task that the lines are sequences of: a name, name(option=value), or the path of a corpus.
        reward: Reward: a name, name(option=value), or module:attribute.
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
    task: str = "grammar",
    reward: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    n: int = 1000,
    seed: int = 0,
) -> None:
    """Compare rewards on real, shuffled and random sequences.

    A reward that cannot tell them apart carries no information about the language.

    Args:
        task: Task of the sequences: a name, name(option=value), or the path of a corpus.
        reward: Reward: a name, name(option=value), or module:attribute; all that suit the task if not given.
        n: Number of test sequences.
        seed: Random seed of the selection, the shuffling and the random tokens.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from agents.experiments.reward_audit import audit_rewards

    made = make_task(task)
    results = audit_rewards(made, reward, n, seed)
    size = min(n, len(made.test.references))
    _say(f"Mean rewards of {size} sequences of task {made.name!r}:")
    table = Table()
    for heading in ("reward", "real", "shuffled", "random"):
        table.add_column(heading, justify="left" if heading == "reward" else "right")
    for name, means in results.items():
        table.add_row(escape(printable(name)), *(f"{mean:.3f}" for mean in means))
    Console().print(table)
    _say("real: test split. shuffled: the same words in random order. random: random words.")
    _say("A reward whose columns agree carries no information about the language.")


def bench() -> None:
    """Benchmark environments, BLEU and learning on this machine."""
    from agents.bench.main import run

    run(_console(120))


def completion(shell: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SHELL")]) -> None:
    """Print the completion script for bash or zsh.

    In bash, save the script as a file:
      text-gym completion bash > ~/.local/share/bash-completion/completions/text-gym

    In zsh, add this line to ~/.zshrc:
      source <(text-gym completion zsh)

    Args:
        shell: bash or zsh.
    """
    from agents.cli.completion import completion_script

    sys.stdout.write(completion_script(shell, COMMANDS))


def _with_ray_address(words: Sequence[str]) -> list[str]:
    """Insert the address "local" after a `--ray` without an address."""
    given = list(words)
    for i, word in enumerate(given):
        if word == "--ray" and not (i + 1 < len(given) and RAY_ADDRESS.fullmatch(given[i + 1])):
            return [*given[: i + 1], "local", *given[i + 1 :]]
    return given


def _serve(server: LocalServer, what: str, stops: str, open_browser: bool) -> None:
    """Print the address of a page, and answer until Ctrl-C."""
    _say(f"{what} is shown at {server.address} (Ctrl-C stops {stops})")
    sys.stdout.flush()
    if open_browser:
        server.open_browser()
    server.wait()


def _real_batch(task: Task, split: str, n: int, seed: int | None) -> Batch:
    """Return n real sequences of a split: the first ones, or random ones if there is a seed."""
    whole_number("n", n, least=1)
    count = len(task.split(split).references)
    if not count:
        raise DataError(f"the {split!r} split of {task.name!r} is empty; choose another with --split")
    rows = np.arange(count)
    if seed is not None:
        rows = np.random.default_rng(whole_number("seed", seed, least=0)).permutation(count)
    return task.batch(split, rows[:n])


def _read_batch(task: Task, file: Path) -> tuple[Batch, list[str]]:
    """Encode the lines of a file as finished sequences; return an error message for each line that cannot be."""
    if not file.is_file():
        raise DataError(f"there is no file {str(file)!r}; check the path")
    ids: dict[int, list[int]] = {}
    problems: dict[int, str] = {}
    for number, line in read_lines(file, "utf-8"):
        try:
            ids[number] = task.encode(line)
        except DataError as problem:
            problems[number] = str(problem)
            continue
        if len(ids[number]) > task.max_length:
            problems[number] = f"{len(ids.pop(number))} tokens exceed the maximum of {task.max_length}"
    if not (ids or problems):
        raise DataError(f"{file} is empty; write one sequence per line")
    tokens, lengths = Sequences.from_lists([*ids.values()]).padded(task.max_length, task.vocab.pad, task.vocab.eos)
    examples: list[Example] | None = None
    if task.conditional:
        if max(*ids, *problems, 0) > len(task.test):
            raise DataError(
                f"{file} has more lines than the test split has prompts ({len(task.test)}); remove the extra lines"
            )
        examples = [task.test[number - 1] for number in ids]
    return Batch(tokens, lengths, task.vocab, examples), [f"{file}, line {n}: {why}" for n, why in problems.items()]


def _print_names(kind: str, described: Mapping[str, str]) -> None:
    """Print names and descriptions in two columns."""
    indent = 1 + max(map(len, (kind, *described)))
    width = max(40, shutil.get_terminal_size().columns)
    for name, text in {kind: "description", **described}.items():
        _say(textwrap.fill(text, width, initial_indent=f"{name:<{indent}}", subsequent_indent=" " * indent))


def _console(width: int) -> Console:
    """Create a console as wide as the terminal, or of the given width if the output is not a terminal."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else width)


def _say(line: str) -> None:
    sys.stdout.write(printable(line) + "\n")


def _short(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return text if len(text) <= 24 else text[:21] + "..."


COMMANDS: dict[str, Callable[..., int | None]] = {
    function.__name__: function
    for function in (
        train,
        compare,
        watch,
        report,
        sample,
        play,
        evaluate,
        agents,
        tasks,
        rewards,
        score,
        audit,
        bench,
        completion,
    )
}
