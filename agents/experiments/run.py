"""One model of one seed, from what is to be run to its figures on disk; a comparison is many of these.

The folder of a run holds everything about it (agents/report/run_files.py says which files), so that a run that
was stopped goes on, one that is finished is not run again, and a report needs nothing else.
"""

from __future__ import annotations

import inspect
import json
import os
import platform
import random
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime, timezone
from hashlib import blake2b
from importlib import metadata
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback

import text_gym
from agents.common.agent import Agent
from agents.common.evaluation import Evaluation
from agents.common.settings import as_json
from agents.experiments.metrics import Metrics, MetricSettings
from agents.experiments.registry import find_agent
from agents.report.run_files import ERROR, FORMAT, NOW, OLD_RUN, RESULTS, RUN, SAMPLES, read_json, read_log, read_spec
from text_gym.corpus.readers import SUFFIXES
from text_gym.errors import DataError, OptionError
from text_gym.files import replace_file
from text_gym.registry import parse_call
from text_gym.tasks import make_task

# What changes nothing in the results.
WORDS_ALONE = {"order", "baseline", "controls_for", "trivial", "words", "command"}
INPUTS = "inputs"
# What a folder may have before anything was learned in it; of metrics it depends on what they say.
BEFORE = (".lock", RUN, ERROR, NOW, "output.txt", "events.out.tfevents*", "progress*.json", "*.part")
PACKAGES = ("torch", "numpy", "gymnasium", "stable-baselines3")


@dataclass(frozen=True)
class RunSpec:
    """What is to be run."""

    label: str
    """What reports call the model."""
    agent: str
    """A name, or module:attribute."""
    seed: int = 0
    """Decides everything random."""
    task: str = "grammar"
    """A name, name(option=value), or the path of a corpus."""
    reward: str | None = None
    """The environment's reward; the task's own if not given."""
    preset: str | None = None
    """A set of hyper-parameters, for agents that have one of this name."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Single hyper-parameters."""
    start: str | None = None
    """The label of the model, of the same seed, whose policy this one begins with."""
    start_folder: str | None = None
    """Or the folder of a run that it begins with."""
    steps: int | None = None
    """How many it learns; as many as its settings say if not given."""
    device: str = "auto"
    """See `Agent`."""
    threads: int = 1
    """Of torch. Results depend on it in the last digits, and so it is not left to the machine."""
    metrics: MetricSettings = field(default_factory=MetricSettings)
    """What is measured when it has learned."""
    report_reward: bool = False
    """Whether the environment's reward is among that."""
    kind: str = "agent"
    """Also "control" and "reference"."""
    order: int = 0
    """Its place in reports."""
    baseline: str | None = None
    """The label that others are measured against."""
    controls_for: tuple[str, ...] = ()
    """The labels whose success it puts to the test."""
    trivial: bool = False
    """Whether being better than it shows nothing."""
    words: str = ""
    """What a sentence calls it."""
    command: str = ""
    """What was typed."""

    def as_json(self) -> dict[str, Any]:
        """The content of run.json, with digests of the files that it names."""
        content: dict[str, Any] = json.loads(json.dumps({"format": FORMAT, **asdict(self), INPUTS: self.inputs()}))
        return content

    def inputs(self) -> dict[str, str]:
        """The files that the task, the agent and the rewards are read from, each with a digest of its content."""
        named = [self.task, self.agent, self.reward, self.options.get("reward"), *self.metrics.also]
        paths = {path for name in named if name is not None for path in _files_in(str(name))}
        return {path: blake2b(Path(path).read_bytes(), digest_size=8).hexdigest() for path in sorted(paths)}

    @classmethod
    def read(cls, folder: Path) -> RunSpec:
        """What a folder's run.json says."""
        content = read_spec(folder)
        known = {field.name for field in fields(cls)}
        try:
            metrics = MetricSettings(**_tupled(content.pop("metrics", {})))
            return cls(**_tupled({k: v for k, v in content.items() if k in known}), metrics=metrics)
        except TypeError as problem:
            raise DataError(f"{folder / RUN} is damaged: {problem}") from problem


def _tupled(content: Mapping[str, Any]) -> dict[str, Any]:
    """What JSON read as lists, as tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in content.items()}


def _files_in(name: str) -> list[str]:
    """The files that a name stands for, as captions.txt(valid='more.txt') or mine.py:Mine does."""
    plain, options = (name, {}) if name.endswith(SUFFIXES) else parse_call(name)
    texts = [plain, plain.rpartition(":")[0], *(str(value) for value in options.values())]
    return [text for text in texts if text and Path(text).is_file()]


def prepare_run(folder: Path, spec: RunSpec) -> None:
    """Write down what is to be run; refuse a folder where something else was."""
    check_folder(folder, spec)
    if (folder / RESULTS).exists():
        spec = replace(spec, command=RunSpec.read(folder).command)  # what it was made with
    folder.mkdir(parents=True, exist_ok=True)
    if not _begun(folder):
        for path in folder.glob("progress*.json"):  # perhaps of other settings, that failed at once
            path.unlink()
    write_json(folder / RUN, spec.as_json())


def check_folder(folder: Path, spec: RunSpec) -> None:
    """Refuse a folder that is none, or where something else was, as far as it came to anything."""
    wanted = spec.as_json()
    there_is = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there_is.is_dir():
        raise OptionError(f"{there_is} is no folder; give another one")
    if (folder / OLD_RUN).exists() or ((folder / RUN).exists() and _begun(folder)):
        there = RunSpec.read(folder).as_json() | {INPUTS: read_json(folder / RUN).get(INPUTS, {})}
        differs = [name for name in wanted if name not in WORDS_ALONE and there.get(name) != wanted[name]]
        if differs == [INPUTS]:
            changed = [path for path, digest in wanted[INPUTS].items() if there[INPUTS].get(path) != digest]
            raise OptionError(f"{', '.join(changed)} changed since {folder} was made from it. Give another folder.")
        if differs:
            said = ", ".join(f"{name} was {there.get(name)!r} and is {wanted[name]!r}" for name in differs)
            raise OptionError(f"{folder} holds another run: {said}. Give another folder, or the same arguments.")


def _begun(folder: Path) -> bool:
    """Whether a run left anything: a checkpoint, metrics, results, or files of an agent's own."""
    learned = any(float(row.get("time/step", 0)) > 0 for row in read_log(folder))
    return learned or any(not any(map(path.match, BEFORE)) for path in folder.iterdir())


def execute(folder: Path, progress: bool = False, env: gym.Env[Any, Any] | None = None) -> None:
    """Learn and measure what run.json asks for, going on where an earlier run was stopped; with a bar if wanted."""
    spec = RunSpec.read(folder)
    if (folder / RESULTS).exists():
        return
    (folder / ERROR).unlink(missing_ok=True)
    torch.set_num_threads(spec.threads)
    seed_everything(spec.seed)
    started, begin = datetime.now(timezone.utc).isoformat(timespec="seconds"), time.perf_counter()
    model = make_model(spec, folder, progress, env)
    learn(model, spec, folder)
    cost = model.cost if isinstance(model, Agent) else {"seconds": time.perf_counter() - begin}
    write_json(folder / NOW, {"doing": "measuring"})
    metrics = Metrics(model.task, spec.metrics, spec.reward if spec.report_reward else None)
    write_json(folder / SAMPLES, metrics.samples(model, spec.seed))
    learns = model.learns if isinstance(model, Agent) else callable(getattr(model, "learn", None))
    write_json(
        folder / RESULTS,
        {
            "figures": metrics.figures(model, spec.seed) | (cost if learns else {}),
            "sweep": metrics.sweep(model, spec.seed) if learns else [],
            "signatures": metrics.signatures(),
            "sizes": metrics.sizes(),
            "settings": as_json(model.settings) if isinstance(model, Agent) else dict(spec.options),
            "versions": versions(),
            "hardware": hardware(),
            "started": started,
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        },
    )
    (folder / NOW).unlink(missing_ok=True)


def make_model(spec: RunSpec, folder: Path, progress: bool = False, env: gym.Env[Any, Any] | None = None) -> Any:
    """The model that a run asks for, as far as the folder holds it; in its environment, if there is one already."""
    recipe = find_agent(spec.agent, spec.preset, **spec.options)
    env = make_env(spec) if env is None else env
    begins_with = None if spec.start_folder is None else Path(spec.start_folder)
    if spec.start is not None:
        begins_with = folder.parent.parent / spec.start / f"seed-{spec.seed}"
    start = None if begins_with is None else load_model(begins_with)
    surroundings = {"seed": spec.seed, "device": spec.device, "folder": folder, "start": start, "progress": progress}
    model = recipe.make(env, spec.preset, **surroundings, log=logs())
    if not hasattr(model, "task"):
        model.task = env.unwrapped.task  # type: ignore[attr-defined]
    return model


def make_env(spec: RunSpec) -> gym.Env[Any, Any]:
    """The environment of a run: its task, and its agent's own reward or the one that was asked for."""
    reward = find_agent(spec.agent, spec.preset, **spec.options).reward or spec.reward
    return gym.make("TextGen-v0", task=make_task(spec.task), reward=reward)


def load_model(folder: Path, trust: bool = True) -> Any:
    """The model that a finished run's folder holds, for sampling and measuring or as another's start.

    Args:
        folder: Of the run.
        trust: Whether modules and files that the folder names, for an agent or a reward of one's own, may be run.
    """
    spec = RunSpec.read(folder)
    named = [spec.agent, spec.task, spec.reward or "", str(spec.options.get("reward", "")), *spec.metrics.also]
    for name in named if not trust else ():
        if ":" in name.partition("(")[0]:
            raise OptionError(
                f"the run in {folder} names {name!r}, and to load it would run what is there; "
                "if that is your own code or code that you trust, say --trust"
            )
    factory = find_agent(spec.agent, spec.preset, **spec.options).factory
    if isinstance(factory, type) and issubclass(factory, Agent) and factory.learns:
        return factory.load(folder, make_env(spec), device=spec.device, progress=False)
    learns = callable(getattr(factory, "learn", None)) and getattr(factory, "learns", True)
    if learns and "folder" not in inspect.signature(factory).parameters:
        raise OptionError(
            f"what {spec.label} learned is not kept in {folder}: only an agents.Agent can be loaded, or an agent that "
            "takes folder= and reads from there what it has learned"
        )
    return make_model(spec, folder)


def learn(model: Any, spec: RunSpec, folder: Path) -> None:
    """Let a model learn, with its learning curve where it is an `Agent`."""
    if not isinstance(model, Agent):
        if callable(getattr(model, "learn", None)):
            model.learn(spec.steps) if spec.steps is not None else model.learn()
        return
    if not model.learns:
        return
    total = model.default_steps if spec.steps is None else spec.steps
    callbacks: list[BaseCallback] = [Heartbeat(folder / NOW, total)]
    if spec.metrics.points:
        split = "valid" if len(model.task.valid.references) else "test"
        callbacks.append(Evaluation(max(1, -(-total // spec.metrics.points)), spec.metrics.curve_samples, split))
    model.learn(None if spec.steps is None else max(0, total - model.steps_done), callbacks)


class Heartbeat(BaseCallback):
    """Says in a file how far a model has learned, at most twice a second."""

    def __init__(self, path: Path, total: int) -> None:
        """Keep the path."""
        super().__init__()
        self.path, self.total, self.last = path, total, 0.0

    def _on_step(self) -> bool:
        if time.monotonic() - self.last > 0.5:
            self.last = time.monotonic()
            write_json(self.path, {"doing": "learning", "step": self.num_timesteps, "of": self.total})
        return True


def seed_everything(seed: int) -> None:
    """For agents that draw from the global generators; without it their numbers would depend on earlier runs."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the global one is meant
    torch.manual_seed(seed)


def versions() -> dict[str, str]:
    """Of Python, this package and those that results depend on."""
    own = {"python": platform.python_version(), "text-gym": text_gym.__version__}
    return own | {name: metadata.version(name) for name in PACKAGES}


def logs() -> tuple[str, ...]:
    """Where metrics go: into JSON lines, and to TensorBoard where it is installed."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        return ("json",)
    return ("json", "tensorboard")


def hardware() -> str:
    """The processor, or the GPU, that this runs on."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text(encoding="utf-8").splitlines() if line.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
    return f"{os.cpu_count()} cores of {name}"


def write_json(path: Path, content: Any) -> None:
    """Replace a file as a whole; what JSON has no number for is written as a word."""
    with replace_file(path) as file:
        file.write(json.dumps(_worded(content), indent=1, ensure_ascii=False, allow_nan=False).encode())


def _worded(content: Any) -> Any:
    if isinstance(content, float) and content in (float("inf"), float("-inf")):
        return "inf" if content > 0 else "-inf"
    if isinstance(content, float) and content != content:
        return "nan"
    if isinstance(content, Mapping):
        return {key: _worded(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_worded(value) for value in content]
    return content
