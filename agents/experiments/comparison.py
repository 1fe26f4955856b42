"""Comparisons: train several agents on one task from the same initial policy, with controls.

A comparison is a list of runs (run.py), one for each model and seed. It can be stopped and
resumed at any time: finished runs are not repeated.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from agents.common.generation import find_device
from agents.common.settings import flattened, merged
from agents.common.training import alone_in
from agents.experiments.controls import PlannedModel, controls
from agents.experiments.metrics import Metrics
from agents.experiments.recipes import Recipe, find_agent
from agents.experiments.run import check_folder, make_env, prepare_run, write_json
from agents.experiments.scheduler import Progress, make_pool, run_all
from agents.experiments.settings import Comparison, MetricSettings, RunSpec, split_label
from agents.networks.policies import PolicySettings
from agents.report.results import Results
from agents.report.run_files import COMPARISON, read_run
from text_gym.errors import OptionError, TextGymError
from text_gym.registry import parse_call
from text_gym.rewards import Scorer
from text_gym.tasks import Task, make_task
from text_gym.validation import check_options, suggest

START = "mle"  # agent that provides the initial policy if no agent of the comparison does


def compare(
    agents: Sequence[str],
    task: str = Comparison.task,
    *,
    seeds: int = Comparison.seeds,
    out: str | Path = Comparison.out,
    preset: str | None = Comparison.preset,
    reward: str | None = Comparison.reward,
    options: Mapping[str, Mapping[str, object]] | None = None,
    controls: bool = Comparison.controls,
    baseline: str | None = Comparison.baseline,
    metrics: Mapping[str, Any] | None = None,
    jobs: int | None = Comparison.jobs,
    threads: int = Comparison.threads,
    device: str = Comparison.device,
    ray: str | None = Comparison.ray,
    progress: bool = True,
) -> Results:
    """Train agents on a task with their controls, over several seeds, and return the results.

    The same call resumes where it stopped; finished runs are not repeated. Models are trained in processes of their
    own, and the results do not depend on their number.

    Args:
        agents: Names, name(option=value), module:attribute or file.py:attribute; label=agent renames one.
        task: Name, name(option=value), or path of a corpus.
        seeds: Number of seeds: each model is trained with seeds 0, 1, ...
        out: Folder of the comparison.
        preset: Preset of hyperparameters for all agents that have it: "paper", "fast" or "demo".
        reward: Reward of the environment, by name; the task's own if None.
        options: Hyperparameters by label: {"seqgan": {"rounds": 5}}.
        controls: Whether to run the controls.
        baseline: Label that the others are compared with; the warm start if None.
        metrics: Fields of `MetricSettings` that differ from the defaults: {"samples": 1000, "also": ["length"]}.
        jobs: Number of runs at a time; one for each core if None.
        threads: Torch threads of each run.
        device: "cpu", "cuda", or "auto" for a GPU where there is one.
        ray: Address of a Ray cluster that executes the runs; "local" starts one here.
        progress: Whether to show a progress bar on a terminal.
    """
    given = dict(metrics or {})
    check_options("metrics", MetricSettings, given)
    comparison = Comparison(
        agents=(agents,) if isinstance(agents, str) else tuple(agents),
        task=task,
        seeds=seeds,
        out=Path(out),
        preset=preset,
        reward=reward,
        options=options or {},
        controls=controls,
        baseline=baseline,
        metrics=MetricSettings(**given),
        jobs=jobs,
        threads=threads,
        device=device,
        ray=ray,
    )
    with tqdm(desc="runs", disable=not progress or None) as bar:
        return run_comparison(comparison, partial(_show, bar))


def _show(bar: tqdm[NoReturn], progress: Progress) -> None:
    """Show on a bar how many runs have ended, and what the others are doing."""
    bar.total, bar.n = len(progress.folders), len(progress.finished) + len(progress.failed)
    names = [progress.specs[folder] for folder in progress.running]
    bar.set_postfix_str(", ".join(f"{spec.label} seed {spec.seed}" for spec in names), refresh=False)
    bar.refresh()


def run_comparison(
    comparison: Comparison, watch: Callable[[Progress], None] | None = None, command: str = ""
) -> Results:
    """Run a comparison and return its results.

    Args:
        comparison: Settings of the comparison.
        watch: Function that is called with the progress once before the first run, then several times a second.
        command: Command line that is recorded in run.json.
    """
    models = plan(comparison, command or shlex.join(sys.argv))
    if comparison.out.exists() and not comparison.out.is_dir():
        raise OptionError(f"{comparison.out} is not a folder; choose another one")
    with alone_in(comparison.out):
        folders = lay_out(comparison, models)
        progress = Progress(folders)
        resources = comparison.jobs, comparison.threads, comparison.device, comparison.ray
        run_all(progress, lambda: make_pool(*resources), watch or (lambda progress: None))
        return Results(map(read_run, folders), comparison.out)


def plan(comparison: Comparison, command: str = "") -> list[PlannedModel]:
    """Plan the models of a comparison: the agents, their shared warm start, and the controls."""
    template = RunSpec.template(comparison, comparison.task, command)
    agents = [_plan_agent(comparison, named, template) for named in comparison.agents]
    for label in comparison.options:
        if label not in (labels := [agent.label for agent in agents]):
            raise OptionError(
                f"hyperparameters are given for {label!r}, which is not compared." + suggest(label, labels)
            )
    starts = [agent.label for agent in agents if agent.is_start]
    if any(agent.recipe.takes_start for agent in agents) and not starts:
        agents.insert(0, _plan_agent(comparison, START, template))
        starts = [START]
    labels = [agent.label for agent in agents]
    for label in labels:
        if labels.count(label) > 1:
            reason = f"two models are called {label!r} (the shared warm start is called {START!r})"
            raise OptionError(f"{reason}; write label=agent to rename one of them")
    start = starts[0] if starts else None
    models = [agent.starting_from(start) for agent in agents]
    if comparison.controls:
        models += controls(models, start, template)
    baseline = comparison.baseline or start or agents[0].label
    if baseline not in (known := [model.label for model in models]):
        raise OptionError(f"the baseline {baseline!r} is not among the models." + suggest(baseline, known))
    return [
        model._replace(spec=replace(model.spec, order=order, baseline=baseline)) for order, model in enumerate(models)
    ]


def _plan_agent(comparison: Comparison, named: str, template: RunSpec) -> PlannedModel:
    """Plan the model of an agent."""
    label, _ = split_label(named)
    recipe, preset = recipe_of(comparison, named)
    known = recipe.agent_class.presets
    if preset is not None and known and preset not in known:
        raise OptionError(f"{label} has no preset {preset!r}." + suggest(preset, known))
    recipe.settings(preset)  # raises if hyperparameters are wrong, before anything is run
    own_reward = find_agent(recipe.name, preset).reward
    options = recipe.options if recipe.reward == own_reward else {**recipe.options, "reward": recipe.reward}
    spec = replace(template, label=label, agent=recipe.name, preset=preset, options=options, steps=recipe.steps)
    return PlannedModel(spec, recipe)


def recipe_of(comparison: Comparison, named: str) -> tuple[Recipe, str | None]:
    """Find the recipe and the preset of an agent."""
    label, agent = split_label(named)
    name, own_options = parse_call(agent)
    options = merged(own_options, comparison.options.get(label, {}))
    preset = options.pop("preset", comparison.preset)
    return find_agent(name, preset, **options), preset


def lay_out(comparison: Comparison, models: Sequence[PlannedModel]) -> list[Path]:
    """Prepare a folder for each model and seed, and return the folders in the order of execution.

    Runs are ordered by seed, so that the first seed shows how long each model takes. Within a seed, the warm start
    that other runs wait for comes first, then the runs that take longest.
    """
    task = check(comparison, models)
    models = [model for model in models if model.spec.kind != "reference" or _suits(model, task)]
    specs = {
        comparison.out / model.label / f"seed-{seed}": replace(model.spec, seed=seed)
        for seed in range(comparison.seeds)
        for model in sorted(models, key=_urgency)
    }
    for folder, spec in specs.items():  # check all folders before anything is written
        check_folder(folder, spec)
    for folder, spec in specs.items():
        prepare_run(folder, spec)
    write_json(comparison.out / COMPARISON, {"runs": [str(folder.relative_to(comparison.out)) for folder in specs]})
    return list(specs)


def check(comparison: Comparison, models: Sequence[PlannedModel]) -> Task:
    """Raise errors before the first run that would fail every run: device, task, rewards, metrics, architectures."""
    if comparison.ray is None:
        find_device(comparison.device)
    task = make_task(comparison.task)
    metrics = Metrics(task, comparison.metrics, comparison.reward)
    few = metrics.test.take([0, 1])
    for scorer in (metrics.reward, *metrics.also.values()):
        if scorer is not None:
            scorer(few)  # a reward that raises does so before anything is trained
    by_label = {model.label: model for model in models}
    for model in models:
        if model.spec.start is not None:
            _check_architecture(model, by_label[model.spec.start])
        if model.spec.kind == "agent":
            model.recipe.agent_class.check_task(task)
        if model.recipe.reward is not None:
            Scorer(model.recipe.reward, task)(few)
    return task


def _check_architecture(model: PlannedModel, start: PlannedModel) -> None:
    """Raise an error if a model has another architecture than its warm start."""
    names = {field.name for field in fields(PolicySettings)} - {"initial_std"}
    wanted = {name: value for name, value in flattened(start.settings) if name in names} if start.settings else {}
    for name, value in wanted.items():
        if model.recipe.options.get(name, value) != value:
            raise OptionError(
                f"{model.label} has {name}={model.recipe.options[name]!r}, but its warm start {start.label} has "
                f"{value!r}; set {name} for {start.label} only"
            )
    if model.settings is not None and not names & {name for name, _ in flattened(model.settings)}:
        # Only build() of the user's own agent knows its architecture.
        env = make_env(model.spec, trust=True)
        common = {"seed": 0, "device": "cpu", "progress": False}
        start_model = start.recipe.make(env, start.spec.preset, **common)
        try:
            model.recipe.make(env, model.spec.preset, start=start_model, **common)
        except TextGymError:
            raise
        except Exception:  # the user's own code: this run will fail with the same error, and the others continue
            return


def _suits(model: PlannedModel, task: Task) -> bool:
    """Whether a reference model can be used with a task."""
    try:
        model.recipe.agent_class.check_task(task)
    except OptionError:
        return False
    return True


def _urgency(model: PlannedModel) -> tuple[int, float]:
    """Sort key of models: the warm start that others wait for, then the models that take longest."""
    if model.is_start and model.spec.kind == "agent":
        return 0, 0.0
    return 1, -model.recipe.agent_class.relative_cost(model.settings, model.recipe.steps)
