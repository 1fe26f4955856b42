"""Implementation of `text-gym train`, `compare` and `evaluate`, after their flags are parsed."""

from __future__ import annotations

import shlex
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from agents.experiments.comparison import run_comparison
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
from agents.report.write import terminal_table
from text_gym.errors import OptionError, RunError, TextGymError
from text_gym.terminal import printable
from text_gym.validation import whole_number


def train_agent(asked: Training, options: dict[str, object], command: str) -> None:
    """Train one agent, and print its headline metrics and the commands to continue with."""
    label, _ = split_label(asked.agent)
    folder = asked.out or Path("runs") / label
    task = asked.task
    if task is None:
        task = Comparison.task if asked.start is None else RunSpec.read(asked.start).task
    recipe = find_agent(asked.agent, asked.preset, **options)
    spec = replace(
        RunSpec.template(asked, task, command),
        label=label,
        agent=asked.agent,
        seed=asked.seed,
        preset=asked.preset,
        options=options,
        start_folder=None if asked.start is None else str(asked.start),
        begins_with=recipe.begins_with(asked.preset) if asked.start is None else str(asked.start),
        steps=asked.steps,
    )
    env, start = _prepare(spec, asked.trust)
    check_folder(folder, spec)
    with alone_in(folder):
        prepare_run(folder, spec)
        if recipe.takes_start and spec.begins_with == RANDOM_WEIGHTS and not has_checkpoint(folder):
            sys.stderr.write(
                f"{label} starts from {RANDOM_WEIGHTS}; for a warm start, train a policy first "
                f"(text-gym train mle --task {shlex.quote(task)} --out runs/mle) and add --start runs/mle\n"
            )
        _execute(folder, env, start)
    console = Console()
    run = read_run(folder)
    headline = [f"{c.title} {c.show(run.figures[c.key])}" for c in in_order(set(run.figures)) if c.headline]
    console.print(escape(printable(f"{run.label}, seed {run.seed}: " + ", ".join(headline))), highlight=False)
    console.print("Next steps:", highlight=False)
    for command in ("sample", "evaluate", "report"):
        console.print(f"  text-gym {command} {escape(printable(str(folder)))}", highlight=False)


def _prepare(spec: RunSpec, trust: bool) -> tuple[gym.Env[object, object], Sampler | None]:
    """Return the environment and the warm start of a run, and raise errors before its folder is created.

    The specification comes from the command line and is trusted; the folder of the warm start is trusted only if
    `trust` is true.
    """
    recipe = find_agent(spec.agent, spec.preset, **spec.options)
    find_device(spec.device)
    start = None
    if spec.start_folder is not None:  # check its trust first: the folder may have named the task
        if not recipe.takes_start:
            raise OptionError(f"{spec.label} cannot use a warm start; leave out --start")
        start = load_model(Path(spec.start_folder), trust)
    env = make_env(spec, trust=True)
    task = rules_of(env).task
    Metrics(task, spec.metrics, spec.reward if spec.report_reward else None)
    if start is not None and start.task.vocab.tokens != task.vocab.tokens:
        raise OptionError(
            f"the warm start {spec.start_folder} was trained on task "
            f"{RunSpec.read(Path(str(spec.start_folder))).task!r}, whose vocabulary differs from that of "
            f"{spec.task!r}; leave out --task, or use a run of the same task"
        )
    return env, start


def _execute(folder: Path, env: gym.Env[object, object], start: Sampler | None) -> None:
    """Execute a run; save the traceback of an exception of the user's own agent or reward, and raise a RunError."""
    try:
        execute(folder, progress=True, env=env, start=start, trust=True)
    except TextGymError:
        raise
    except Exception as problem:  # the user's own code, a full disk, a folder that was removed
        where = f". The traceback is in {folder / ERROR}" if keep_error(folder, traceback.format_exc()) else ""
        raise RunError(f"{type(problem).__name__}: {problem}{where}") from problem


def compare_agents(asked: Comparing, command: str) -> int:
    """Run a comparison, write its report and print a summary; return 1 if runs failed or are unfinished, else 0."""
    console = Console() if sys.stdout.isatty() else Console(width=110)
    with _shown(asked, console), Display(console) as display:
        results = run_comparison(asked, display, command)
    page = results.write_report()
    console.print(terminal_table(results, console.width))
    for line in summaries(results):
        console.print(escape(printable(f"- {line}")), highlight=False)
    console.print(f"Report: {escape(printable(str(page)))}", highlight=False, soft_wrap=True)
    for run in results.failures:
        reason = (run.error or "").strip().rpartition("\n")[2]
        line = f"FAILED: {run.label}, seed {run.seed}: {reason} ({run.folder / ERROR})"
        console.print(escape(printable(line)), highlight=False)
    return 1 if results.failures or results.unfinished else 0


@contextmanager
def _shown(asked: Comparing, console: Console) -> Iterator[None]:
    """Show the comparison in the browser, if that was asked for."""
    if not asked.watch:
        yield
        return
    from agents.web.server import LocalServer
    from agents.web.watch import Watcher

    with LocalServer(Watcher(asked.out).page) as server:
        console.print(f"The comparison as it runs: {server.address}", highlight=False, soft_wrap=True)
        server.open_browser()
        yield


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
    """Evaluate the agent of a run; arguments that are None take the settings of the run."""
    spec = RunSpec.read(folder)
    torch.set_num_threads(spec.threads if threads is None else whole_number("threads", threads, least=1))
    model = load_model(folder, trust, device)
    settings = replace(
        spec.metrics,
        samples=spec.metrics.samples if samples is None else samples,
        references=spec.metrics.references if references is None else references,
        also=tuple(also) or spec.metrics.also,
    )
    trusted = trust or bool(also)  # the user has named the additional rewards
    with refusing_damage(folder):
        metrics = Metrics(model.task, settings, spec.reward if spec.report_reward else None, trusted)
        return _measure(metrics, model, spec, seed, temperature)


def _measure(metrics: Metrics, model: Sampler, spec: RunSpec, seed: int | None, temperature: float) -> dict[str, float]:
    seed = spec.seed if seed is None else whole_number("seed", seed, least=0)
    if temperature == 1:
        return metrics.figures(model, seed)
    if not knows_temperature(model):
        raise OptionError(f"{spec.label} cannot be sampled at another temperature; leave out --temperature")
    samples = draw(model, max(metrics.settings.samples, metrics.size), seed, "test", temperature=temperature)
    return metrics.of_samples(model, samples, metrics.test, temperature) | metrics.of_texts(samples)
