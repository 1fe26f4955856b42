"""The commands that train: `text-gym train` and `text-gym compare`, and what `evaluate` metrics."""

from __future__ import annotations

import re
import shlex
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import filelock
from rich.console import Console
from rich.markup import escape

from agents.cli.flags import Comparing, Flat, Training, read_comparison, read_training
from agents.cli.progress import Display
from agents.common.evaluation import draw
from agents.common.generation import find_device
from agents.experiments.comparison import LOCK, label_of
from agents.experiments.comparison import compare as run_comparison
from agents.experiments.metrics import Metrics, knows_temperature
from agents.experiments.registry import find_agent
from agents.experiments.run import RunSpec, check_folder, execute, load_model, make_env, prepare_run
from agents.report.run_files import ERROR, read_run
from agents.report.verdicts import summaries
from agents.report.write import terminal_table, write_report
from text_gym.errors import OptionError, TextGymError
from text_gym.validation import whole_number

ADDRESS = re.compile(r"auto|local|ray://.+|[\w.-]+:\d+")


def train(words: Sequence[str]) -> int:
    """Train one agent, measure it, and keep everything in a folder."""
    asked, options = read_training(words)
    label = label_of(asked.agent)
    folder = asked.out or Path("runs") / label
    spec = RunSpec(
        label, asked.agent, asked.seed, asked.task, asked.reward, asked.preset, options,
        start_folder=None if asked.start is None else str(asked.start), steps=asked.steps, device=asked.device,
        threads=asked.threads, metrics=asked.metrics, report_reward=asked.reward is not None,
        command=shlex.join(["text-gym", "train", *words]),
    )  # fmt: skip
    env = _check(spec, asked.trust)
    check_folder(folder, spec)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(folder / LOCK, timeout=0):
            prepare_run(folder, spec)
            _run(folder, env)
    except filelock.Timeout:
        raise OptionError(f"another training is running in {folder}; wait for it, or give another folder") from None
    console = Console()
    _show_figures(console, folder)
    for follow in ("sample", "evaluate", "report"):
        console.print(f"  text-gym {follow} {escape(str(folder))}", highlight=False)
    return 0


def _check(spec: RunSpec, trust: bool) -> Any:
    """Refuse what cannot be run before there is a folder; the environment that it will be run in."""
    recipe = find_agent(spec.agent, spec.preset, **spec.options)
    find_device(spec.device)
    env: Any = make_env(spec)
    Metrics(env.unwrapped.task, spec.metrics, spec.reward if spec.report_reward else None)
    if spec.start_folder is None:
        return env
    if not recipe.takes_start:
        raise OptionError(f"{spec.label} does not begin with another agent's policy; leave --start out")
    start = load_model(Path(spec.start_folder), trust)
    if start.task.vocab.tokens != env.unwrapped.task.vocab.tokens:
        raise OptionError(
            f"{spec.start_folder} is a run of task {RunSpec.read(Path(spec.start_folder)).task!r}, whose "
            f"tokens are others than those of {spec.task!r}"
        )
    return env


def _run(folder: Path, env: Any) -> None:
    """Execute a run; what a user's own agent or reward raises is kept in the folder, and told in a line."""
    try:
        execute(folder, progress=True, env=env)
    except (TextGymError, OSError):
        raise
    except Exception as problem:
        (folder / ERROR).write_text(traceback.format_exc(), encoding="utf-8")
        raise TextGymError(f"{type(problem).__name__}: {problem}. The traceback is in {folder / ERROR}") from problem


def compare(words: Sequence[str]) -> int:
    """Train several agents with their controls, and write the report."""
    asked = read_comparison(_with_address(words))
    console = Console() if sys.stdout.isatty() else Console(width=110)
    with Display(console) as display:
        results = run_comparison(asked, display, shlex.join(["text-gym", "compare", *words]))
    page = write_report(results, asked.out)
    console.print(terminal_table(results, console.width))
    for line in summaries(results):
        console.print(escape(line), highlight=False)
    console.print(f"The report: {escape(str(page))}", highlight=False, soft_wrap=True)
    for run in results.failures:
        why = (run.error or "").strip().rpartition("\n")[2]
        console.print(escape(f"FAILED: {run.label}, seed {run.seed}: {why} ({run.folder / ERROR})"), highlight=False)
    return 1 if results.failures or results.unfinished else 0


def measure_run(
    folder: Path, samples: int | None, seed: int | None, also: Sequence[str], temperature: float, trust: bool
) -> dict[str, float]:
    """The figures of the agent in a folder."""
    spec = RunSpec.read(folder)
    model: Any = load_model(folder, trust)
    settings = replace(spec.metrics, also=tuple(also) or spec.metrics.also)
    settings = settings if samples is None else replace(settings, samples=samples)
    metrics = Metrics(model.task, settings, spec.reward if spec.report_reward else None)
    seed = spec.seed if seed is None else whole_number("seed", seed, least=0)
    if temperature == 1:
        return metrics.figures(model, seed)
    if not knows_temperature(model):
        raise OptionError(f"{spec.label} cannot be drawn from at a temperature; leave --temperature out")
    drawn = draw(model, max(settings.samples, metrics.size), seed, "test", temperature=temperature)
    return metrics.of_samples(model, drawn, metrics.test, temperature) | metrics.of_texts(drawn)


def add_to(app: Any) -> None:
    """Let an app list and complete both commands; their hyper-parameters are flags only when they run."""

    def train_(asked: Annotated[Training, Flat]) -> None:
        raise AssertionError("run by train() above")

    def compare_(asked: Annotated[Comparing, Flat]) -> None:
        raise AssertionError("run by compare() above")

    for function, name, runs in ((train_, "train", train), (compare_, "compare", compare)):
        function.__doc__ = runs.__doc__
        app.command(function, name=name)


def _with_address(words: Sequence[str]) -> list[str]:
    """`--ray` alone is a cluster on this machine."""
    given = list(words)
    for i, word in enumerate(given):
        if word == "--ray" and not (i + 1 < len(given) and ADDRESS.fullmatch(given[i + 1])):
            return [*given[: i + 1], "local", *given[i + 1 :]]
    return given


def _show_figures(console: Console, folder: Path) -> None:
    """The headline figures of a run."""
    from agents.report.columns import in_order

    run = read_run(folder)
    told = [f"{c.title} {c.show(run.figures[c.key])}" for c in in_order(set(run.figures)) if c.headline]
    console.print(escape(f"{run.label}, seed {run.seed}: " + ", ".join(told)), highlight=False)
