"""Train several agents on one task from the same start, with controls, and keep everything that a report needs.

A comparison is a list of runs (run.py), one for each model and seed. It can be stopped and
started again at any time: finished runs are not repeated.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import filelock

from agents.common.generation import find_device
from agents.common.settings import merged
from agents.experiments.controls import PlannedModel, begins_with, controls, is_start
from agents.experiments.metrics import Metrics, MetricSettings, knows_real_data
from agents.experiments.reference_models import RealData
from agents.experiments.registry import Recipe, find_agent
from agents.experiments.run import RunSpec, check_folder, prepare_run, write_json
from agents.experiments.scheduler import Progress, make_pool, run_all
from agents.networks.policies import PolicySettings
from agents.report.run_files import COMPARISON, Results, read_run
from text_gym.errors import OptionError
from text_gym.registry import parse_call
from text_gym.rewards import Scorer
from text_gym.tasks import Task, make_task
from text_gym.validation import suggest, whole_number

LOCK = ".lock"
LABEL = re.compile(r"[\w+-][\w.+-]*")
START = "mle"  # what the start is called when it is not among the agents


@dataclass(frozen=True)
class Comparison:
    """What is compared, and how."""

    agents: tuple[str, ...] = ("mle", "ss", "pg-bleu", "seqgan")
    """Names, name(option=value), or module:attribute; with label= before it to call it otherwise."""
    task: str = "grammar"
    """A name, name(option=value), or the path of a corpus."""
    seeds: int = 3
    """How many: each model is trained with seeds 0, 1, ..."""
    out: Path = Path("runs/compare")
    """The folder of the comparison. The same command goes on where it stopped."""
    preset: str | None = None
    """A set of hyper-parameters for all agents that have it: "paper", "fast", "demo"."""
    reward: str | None = None
    """The environment's reward; the task's own if not given."""
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Single hyper-parameters by label."""
    controls: bool = True
    """Whether to run the controls: a constant and a random reward under each agent's update rule, likelihood
    stopped early, uniform tokens, and real data."""
    baseline: str | None = None
    """The label that others are measured against; the start, if not given."""
    metrics: MetricSettings = field(default_factory=MetricSettings)
    """What is measured of each model, and on how much."""
    jobs: int | None = None
    """Runs at a time; as many as there are cores for if not given."""
    threads: int = 1
    """Torch threads of each run. Other threads give other last digits; other jobs give the same numbers."""
    device: str = "auto"
    """"cpu", "cuda", or "auto" for a GPU where there is one."""
    ray: str | None = None
    """The address of a Ray cluster that executes the runs; "local" starts one here."""

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        whole_number("seeds", self.seeds, least=1)
        whole_number("threads", self.threads, least=1)
        if self.jobs is not None:
            whole_number("jobs", self.jobs, least=1)
        if not self.agents:
            raise OptionError("name the agents to compare, for example: mle seqgan")


def compare(comparison: Comparison, watch: Callable[[Progress], None] | None = None, command: str = "") -> Results:
    """Run a comparison, and read back what came of it.

    In a program of your own, call it under `if __name__ == "__main__":`, because runs are executed in processes
    that import the program anew.

    Args:
        comparison: What to run.
        watch: Called several times a second with how far it is.
        command: What was typed, for the records.
    """
    models = plan(comparison, command or shlex.join(sys.argv))
    if comparison.out.exists() and not comparison.out.is_dir():
        raise OptionError(f"{comparison.out} is no folder; give another one")
    comparison.out.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(comparison.out / LOCK, timeout=0):
            runs = lay_out(comparison, models)
            progress = Progress(runs)
            where = comparison.jobs, comparison.threads, comparison.device, comparison.ray
            run_all(progress, lambda: make_pool(*where), watch or (lambda progress: None))
            return Results(map(read_run, runs))
    except filelock.Timeout:
        raise OptionError(
            f"another comparison is running in {comparison.out}; wait for it, or give another folder"
        ) from None


def plan(comparison: Comparison, command: str = "") -> list[PlannedModel]:
    """All models of a comparison: the agents, the start that they share, and the controls."""
    agents = [_agent(comparison, named) for named in comparison.agents]
    for label in comparison.options:
        if label not in (labels := [entry.spec.label for entry in agents]):
            raise OptionError(
                f"there are hyper-parameters for {label!r}, which is not compared." + suggest(label, labels)
            )
    if any(entry.recipe.takes_start for entry in agents) and not any(map(is_start, agents)):
        agents.insert(0, _agent(comparison, START))
    labels = [entry.spec.label for entry in agents]
    for label in labels:
        if labels.count(label) > 1:
            what = f"two agents are called {label!r} (what all begin with is called {START!r})"
            raise OptionError(f"{what}; write label=agent to call one otherwise")
    start = next((entry.spec.label for entry in agents if is_start(entry)), None)
    agents = [begins_with(entry, start) for entry in agents]
    models = agents + (controls(agents, start, partial(_spec, comparison)) if comparison.controls else [])
    baseline = comparison.baseline or start or agents[0].spec.label
    if baseline not in (known := [model.spec.label for model in models]):
        raise OptionError(f"the baseline {baseline!r} is not compared." + suggest(baseline, known))
    return [
        model._replace(spec=replace(model.spec, order=order, baseline=baseline, command=command))
        for order, model in enumerate(models)
    ]


def _agent(comparison: Comparison, named: str) -> PlannedModel:
    """One of the agents that were named."""
    label = label_of(named)
    recipe, preset = recipe_of(comparison, named)
    known = getattr(recipe.factory, "presets", {})
    if preset is not None and known and preset not in known:
        raise OptionError(f"{label} has no preset {preset!r}." + suggest(preset, known))
    recipe.settings(preset)  # refuses what makes no sense before anything is run
    own_reward = find_agent(recipe.name, preset).reward
    options = recipe.options | ({} if recipe.reward == own_reward else {"reward": recipe.reward})
    spec = _spec(comparison, label, recipe.name, preset=preset, options=options, steps=recipe.steps)
    return PlannedModel(spec, recipe)


def recipe_of(comparison: Comparison, named: str) -> tuple[Recipe, str | None]:
    """How to make one of the agents that were named, and with what preset."""
    name, written = parse_call(_without_label(named))
    options = merged(written, comparison.options.get(label_of(named), {}))
    preset = options.pop("preset", comparison.preset)
    return find_agent(name, preset, **options), preset


def label_of(named: str) -> str:
    """What an agent is called: what stands before =, or its name.

    >>> label_of("strong=mle(preset='strong')"), label_of("mine.py:Plain(hidden=32)"), label_of("seqgan")
    ('strong', 'Plain', 'seqgan')
    """
    text = _without_label(named)
    label = named[: -len(text)].removesuffix("=") or parse_call(text)[0].rpartition(":")[2]
    if not LABEL.fullmatch(label):
        raise OptionError(
            f"{label!r} is no name for a folder; write label=agent, with letters, digits and _ . + - in the label"
        )
    return label


def _without_label(named: str) -> str:
    label, equals, text = named.partition("=")
    return text if equals and LABEL.fullmatch(label) else named


def _spec(comparison: Comparison, label: str, agent: str, **more: Any) -> RunSpec:
    shared = {name: getattr(comparison, name) for name in ("task", "reward", "device", "threads", "metrics")}
    return RunSpec(label, agent, report_reward=comparison.reward is not None, **shared | more)


def lay_out(comparison: Comparison, models: Sequence[PlannedModel]) -> list[Path]:
    """A folder for each model and seed, the ones that others wait for first, then those that take longest."""
    task = check(comparison, models)
    models = [model for model in models if model.spec.kind != "reference" or knows_real_data(task)]
    runs = {
        comparison.out / model.spec.label / f"seed-{seed}": replace(model.spec, seed=seed)
        for model in sorted(models, key=_urgency)
        for seed in range(comparison.seeds)
    }
    for folder, spec in runs.items():  # all of them before any is written
        check_folder(folder, spec)
    for folder, spec in runs.items():
        prepare_run(folder, spec)
    write_json(comparison.out / COMPARISON, {"runs": [str(run.relative_to(comparison.out)) for run in runs]})
    return list(runs)


def check(comparison: Comparison, models: Sequence[PlannedModel]) -> Task:
    """Refuse now what would fail in every run: devices, tasks, rewards, metrics, architectures."""
    if comparison.ray is None:
        find_device(comparison.device)
    task = make_task(comparison.task)
    metrics = Metrics(task, comparison.metrics, comparison.reward)
    few = metrics.test.take([0, 1])
    for scorer in (metrics.reward, *metrics.also.values()):
        if scorer is not None:
            scorer(few)  # a reward that fails does so before anything is trained
    starts = {model.spec.label: model.recipe.settings(model.spec.preset) for model in models if is_start(model)}
    for model in models:
        if model.spec.start is not None:
            _check_architecture(model, starts[model.spec.start])
        if model.recipe.factory is RealData and model.spec.kind == "agent" and not knows_real_data(task):
            raise OptionError(f"the 'valid' split of {task!r} is empty, so there are no real sequences to compare with")
        if model.recipe.reward is not None:
            Scorer(model.recipe.reward, task)(few)
    return task


def _check_architecture(model: PlannedModel, start: Any) -> None:
    """Who goes on with a policy cannot have another architecture."""
    for name in (each.name for each in fields(PolicySettings) if each.name != "initial_std"):
        if name in model.recipe.options and model.recipe.options[name] != getattr(start, name):
            raise OptionError(
                f"{model.spec.label} has {name}={model.recipe.options[name]!r}, and begins with the policy of "
                f"{model.spec.start}, which has {getattr(start, name)!r}; say it of {model.spec.start} alone"
            )


def _urgency(model: PlannedModel) -> tuple[int, ...]:
    if is_start(model) and model.spec.kind == "agent":
        return (0,)
    settings = model.recipe.settings(model.spec.preset)
    return (1, -bool(getattr(settings, "rounds", 0)), -getattr(settings, "rollouts", 0))
