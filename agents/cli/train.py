"""What `text-gym train`, `compare` and `evaluate` do once their flags are read."""

from __future__ import annotations

import shlex
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import torch
from rich.console import Console
from rich.markup import escape

from agents.cli.flags import Comparing, Training
from agents.cli.progress import Display
from agents.common.agent import RANDOM_WEIGHTS
from agents.common.checkpoint import has_checkpoint
from agents.common.evaluation import Sampler, draw
from agents.common.generation import find_device, rules_of
from agents.common.training import alone_in
from agents.experiments.comparison import compare
from agents.experiments.metrics import Metrics, knows_temperature
from agents.experiments.recipes import find_agent
from agents.experiments.run import (
    check_folder,
    execute,
    load_model,
    make_env,
    prepare_run,
    refusing_damage,
)
from agents.experiments.settings import Comparison, RunSpec, split_label
from agents.report.columns import in_order
from agents.report.run_files import ERROR, keep_error, read_run
from agents.report.verdicts import summaries
from agents.report.write import terminal_table, write_report
from text_gym.errors import OptionError, RunError, TextGymError
from text_gym.terminal import printable
from text_gym.validation import whole_number


def train_agent(asked: Training, options: dict[str, object], command: str) -> None:
    """Train one agent, and print its headline figures."""
    label, _ = split_label(asked.agent)
    folder = asked.out or Path("runs") / label
    task = asked.task
    if task is None:
        task = Comparison.task if asked.start is None else RunSpec.read(asked.start).task
    recipe = find_agent(asked.agent, asked.preset, **options)
    spec = RunSpec(
        label,
        asked.agent,
        asked.seed,
        task,
        asked.reward,
        asked.preset,
        options,
        start_folder=None if asked.start is None else str(asked.start),
        begins_with=recipe.begins_with(asked.preset) if asked.start is None else str(asked.start),
        steps=asked.steps,
        device=asked.device,
        threads=asked.threads,
        metrics=asked.metrics,
        report_reward=asked.reward is not None,
        command=command,
    )
    env, start = _check(spec, asked.trust)
    check_folder(folder, spec)
    with alone_in(folder):
        prepare_run(folder, spec)
        if recipe.takes_start and spec.begins_with == RANDOM_WEIGHTS and not has_checkpoint(folder):
            sys.stderr.write(
                f"{label} begins with {RANDOM_WEIGHTS}; to begin with a trained policy, train one "
                f"(text-gym train mle --task {shlex.quote(task)} --out runs/mle) and say --start runs/mle\n"
            )
        _execute(folder, env, start)
    console = Console()
    run = read_run(folder)
    told = [f"{c.title} {c.show(run.figures[c.key])}" for c in in_order(set(run.figures)) if c.headline]
    console.print(escape(printable(f"{run.label}, seed {run.seed}: " + ", ".join(told))), highlight=False)
    for follow in ("sample", "evaluate", "report"):
        console.print(f"  text-gym {follow} {escape(printable(str(folder)))}", highlight=False)


def _check(spec: RunSpec, trust: bool) -> tuple[gym.Env[object, object], Sampler | None]:
    """Refuse what cannot be run before there is a folder; return the environment of the run, and what it starts from.

    The user named what is to be run, and vouches for it; whoever made the folder to start from did not.
    """
    recipe = find_agent(spec.agent, spec.preset, **spec.options)
    find_device(spec.device)
    start = None
    if spec.start_folder is not None:  # before the task is made, which that folder may have named
        if not recipe.takes_start:
            raise OptionError(f"{spec.label} does not begin with another agent's policy; leave --start out")
        start = load_model(Path(spec.start_folder), trust)
    env = make_env(spec, trust=True)
    task = rules_of(env).task
    Metrics(task, spec.metrics, spec.reward if spec.report_reward else None)
    if start is not None and start.task.vocab.tokens != task.vocab.tokens:
        raise OptionError(
            f"{spec.start_folder} is a run of task {RunSpec.read(Path(str(spec.start_folder))).task!r}, whose "
            f"tokens are others than those of {spec.task!r}; leave --task out, or begin with a run of that task"
        )
    return env, start


def _execute(folder: Path, env: gym.Env[object, object], start: Sampler | None) -> None:
    """Execute a run; what a user's own agent or reward raises is kept in the folder, and told in a line."""
    try:
        execute(folder, progress=True, env=env, start=start, trust=True)
    except TextGymError:
        raise
    except Exception as problem:  # the user's own code, a disk that is full, a folder that is gone
        kept = f". The traceback is in {folder / ERROR}" if keep_error(folder, traceback.format_exc()) else ""
        raise RunError(f"{type(problem).__name__}: {problem}{kept}") from problem


def compare_agents(asked: Comparing, command: str) -> int:
    """Run a comparison, write its report and print its summary; return 1 if some runs have no results, else 0."""
    console = Console() if sys.stdout.isatty() else Console(width=110)
    with Display(console) as display:
        results = compare(asked, display, command)
    page = write_report(results, asked.out)
    console.print(terminal_table(results, console.width))
    for line in summaries(results):
        console.print(escape(printable(line)), highlight=False)
    console.print(f"The report: {escape(printable(str(page)))}", highlight=False, soft_wrap=True)
    for run in results.failures:
        why = (run.error or "").strip().rpartition("\n")[2]
        line = f"FAILED: {run.label}, seed {run.seed}: {why} ({run.folder / ERROR})"
        console.print(escape(printable(line)), highlight=False)
    return 1 if results.failures or results.unfinished else 0


def measure_run(
    folder: Path,
    samples: int | None,
    seed: int | None,
    also: Sequence[str],
    temperature: float,
    trust: bool,
    references: int | None = None,
    device: str | None = None,
    threads: int | None = None,
) -> dict[str, float]:
    """Measure the agent in a folder; what is None is as its run says."""
    spec = RunSpec.read(folder)
    torch.set_num_threads(spec.threads if threads is None else whole_number("threads", threads, least=1))
    model = load_model(folder, trust, device)
    settings = replace(
        spec.metrics,
        samples=spec.metrics.samples if samples is None else samples,
        references=spec.metrics.references if references is None else references,
        also=tuple(also) or spec.metrics.also,
    )
    named_here = trust or bool(also)
    with refusing_damage(folder):
        metrics = Metrics(model.task, settings, spec.reward if spec.report_reward else None, named_here)
        return _measure(metrics, model, spec, seed, temperature)


def _measure(metrics: Metrics, model: Sampler, spec: RunSpec, seed: int | None, temperature: float) -> dict[str, float]:
    seed = spec.seed if seed is None else whole_number("seed", seed, least=0)
    if temperature == 1:
        return metrics.figures(model, seed)
    if not knows_temperature(model):
        raise OptionError(f"{spec.label} cannot be drawn from at a temperature; leave --temperature out")
    drawn = draw(model, max(metrics.settings.samples, metrics.size), seed, "test", temperature=temperature)
    return metrics.of_samples(model, drawn, metrics.test, temperature) | metrics.of_texts(drawn)
