"""One run: an agent with one seed, from its specification to its metrics on disk.

The folder of a run contains everything about it (agents/report/run_files.py lists the files). A run that was stopped
can be resumed, a finished run is not repeated, and a report needs nothing but the folder.

A folder may come from an untrusted source. Without `trust`, everything that it names is treated as data:

- registered names of tasks, rewards and agents, with options in brackets: only code of this package is executed;
- paths of corpora, data sets and oracle parameters: read as data; pickles are read by an interpreter for arrays only;
- names and folders of Hugging Face models and tokenizers: loaded without the code that comes with them;
- folders of other runs, as warm starts: read by the same rules;
- checkpoints: tensors in safetensors, and JSON;
- "module:attribute" and "file.py:attribute", for an agent, a task or a reward: refused, at any depth of the options
  (`RunSpec.code` finds them; `Registry.find` does not import them).
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback

import text_gym
from agents.common.agent import Agent
from agents.common.checkpoint import has_checkpoint
from agents.common.evaluation import Evaluation, Sampler
from agents.common.settings import as_json, describe_difference
from agents.experiments.metrics import Metrics
from agents.experiments.recipes import PlainAgent, find_agent
from agents.experiments.settings import INPUTS, RunSpec
from agents.report.run_files import ERROR, LOG, NOW, OLD_RUN, RESULTS, RUN, SAMPLES, read_log, step_of
from text_gym.errors import DataError, OptionError, TextGymError
from text_gym.files import LOCK, read_json, replace_file, worded
from text_gym.rewards import Scorer
from text_gym.tasks import find_task, make_task

# Settings that do not affect the results.
DESCRIPTIVE = {"order", "baseline", "controls_for", "trivial", "words", "command", "begins_with"}
# Files that a run leaves before its first training step. The log counts only if it has rows of later steps.
PRELIMINARY = (LOCK, RUN, ERROR, NOW, "output.txt", "events.out.tfevents*", LOG, "*.part")
PACKAGES = ("torch", "numpy", "gymnasium", "stable-baselines3")


def prepare_run(folder: Path, spec: RunSpec) -> None:
    """Create the folder of a run and write run.json; raise an OptionError if the folder holds another run."""
    check_folder(folder, spec)
    if (folder / RESULTS).exists():
        spec = replace(spec, command=RunSpec.read(folder).command)  # keep the command that created the results
    folder.mkdir(parents=True, exist_ok=True)
    if not _has_progress(folder):
        (folder / LOG).unlink(missing_ok=True)  # of a failed run of another agent; only Agent.learn() would clear it
    write_json(folder / RUN, spec.as_json())


def check_folder(folder: Path, spec: RunSpec) -> None:
    """Raise an OptionError if a path is not a folder, or holds the progress of a run with other settings."""
    wanted = spec.as_json()
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise OptionError(f"{existing} is not a folder; choose another one")
    if (folder / OLD_RUN).exists() or ((folder / RUN).exists() and _has_progress(folder)):
        saved = RunSpec.read(folder).as_json() | {INPUTS: read_json(folder / RUN).get(INPUTS, {})}
        differs = [name for name in wanted if name not in DESCRIPTIVE and saved.get(name) != wanted[name]]
        if differs == [INPUTS]:
            changed = [path for path, digest in wanted[INPUTS].items() if saved[INPUTS].get(path) != digest]
            raise OptionError(f"{', '.join(changed)} changed since the run in {folder} started; choose another folder")
        if differs:
            changes = ", ".join(describe_difference(saved.get(name), wanted[name], name) for name in differs)
            raise OptionError(
                f"{folder} holds a run with other settings: {changes}; choose another folder, or use the same settings"
            )


def _has_progress(folder: Path) -> bool:
    """Whether a run left a checkpoint, metrics of a training step, results, or files of the user's own agent."""
    learned = any(step_of(row) > 0 for row in read_log(folder))
    return learned or any(not any(map(path.match, PRELIMINARY)) for path in folder.iterdir())


def execute(
    folder: Path,
    progress: bool = False,
    env: gym.Env[object, object] | None = None,
    start: Sampler | None = None,
    trust: bool = False,
) -> None:
    """Train and evaluate the agent that run.json specifies; resume a run that was stopped, skip a finished one.

    Args:
        folder: Folder of the run.
        progress: Whether to show a progress bar.
        env: Environment of the run; None to create it.
        start: Warm start of the run; None to load it.
        trust: Whether Python code that run.json names may be executed.
    """
    spec = RunSpec.read(folder)
    check_trust(folder, spec, trust)
    if (folder / RESULTS).exists():
        return
    (folder / ERROR).unlink(missing_ok=True)
    torch.set_num_threads(spec.threads)
    seed_everything(spec.seed)
    started = _now()
    with refusing_damage(folder) if has_checkpoint(folder) else nullcontext():
        model = make_model(spec, folder, progress, env, start, trust)
    cost = learn(model, spec, folder)
    note(folder, {"doing": "measuring"})
    metrics = Metrics(model.task, spec.metrics, spec.reward if spec.report_reward else None, trust)
    write_json(folder / SAMPLES, metrics.samples(model, spec.seed))
    results = {
        "figures": metrics.figures(model, spec.seed) | cost,
        "sweep": metrics.sweep(model, spec.seed) if cost else [],
        "signatures": metrics.signatures(),
        "sizes": metrics.sizes(),
        "unknown": metrics.unknown(),
        "settings": as_json(model.settings) if isinstance(model, Agent) else dict(spec.options),
        "versions": versions(),
        "hardware": hardware(),
        "started": started,
        "finished": _now(),
    }
    write_json(folder / RESULTS, results)
    (folder / NOW).unlink(missing_ok=True)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def make_model(
    spec: RunSpec,
    folder: Path,
    progress: bool = False,
    env: gym.Env[object, object] | None = None,
    start: Sampler | None = None,
    trust: bool = False,
) -> Sampler:
    """Create the model of a run, with the state that its folder holds; see execute() for the arguments."""
    recipe = find_agent(spec.agent, spec.preset, trust, **spec.options)
    env = make_env(spec, trust) if env is None else env
    if start is None and recipe.takes_start:
        if spec.start_folder is not None:
            start = load_model(Path(spec.start_folder), trust)
        elif spec.start is not None:
            start = load_model(folder.parent.parent / spec.start / f"seed-{spec.seed}", trust)
    arguments = {"seed": spec.seed, "device": spec.device, "folder": folder, "start": start, "progress": progress}
    return recipe.make(env, spec.preset, **arguments, log=logs())


def make_env(spec: RunSpec, trust: bool = False) -> gym.Env[object, object]:
    """Create the environment of a run, with the agent's own reward if it has one."""
    reward = find_agent(spec.agent, spec.preset, trust, **spec.options).reward or spec.reward
    find_task(spec.task, trust)  # raises an error for code without trust
    task = make_task(spec.task)
    return gym.make("TextGen-v0", task=task, reward=None if reward is None else Scorer(reward, task, trust=trust))


def check_trust(folder: Path, spec: RunSpec, trust: bool) -> None:
    """Raise an OptionError if a run names Python code and is not trusted."""
    if not trust and (code := spec.code()):
        raise OptionError(
            f"the run in {folder} names the Python code {code[0]!r}, which loading it would execute; "
            "if you trust this code, add --trust (trust=True in Python)"
        )


@contextmanager
def refusing_damage(folder: Path) -> Iterator[None]:
    """Convert any other exception in the context to a DataError that names the folder."""
    try:
        yield
    except (TextGymError, OSError):
        raise
    except Exception as problem:  # wrong settings, shapes and numbers can fail anywhere
        reason = f"{type(problem).__name__}: {problem}".strip().partition("\n")[0]
        raise DataError(f"the run in {folder} is damaged, or its own code failed: {reason}") from problem


def load_model(folder: Path, trust: bool = False, device: str | None = None) -> Sampler:
    """Load the model of a run, to sample from it, to evaluate it, or as a warm start.

    Args:
        folder: Folder of the run.
        trust: Whether Python code that run.json names for an agent, a task or a reward may be executed.
        device: Device of the model; None for the device of the run.
    """
    spec = RunSpec.read(folder)
    spec = spec if device is None else replace(spec, device=device)
    check_trust(folder, spec, trust)
    with refusing_damage(folder):
        return _load(folder, spec, trust)


def _load(folder: Path, spec: RunSpec, trust: bool) -> Sampler:
    agent_class = find_agent(spec.agent, spec.preset, trust, **spec.options).agent_class
    if isinstance(agent_class, PlainAgent):
        if not agent_class.can_load:
            raise OptionError(
                f"the weights of {spec.label} are not saved in {folder}, so it cannot be loaded; make it a subclass of "
                "agents.Agent, or let it take folder= and restore its weights from there"
            )
    elif agent_class.learns:
        return agent_class.load(folder, make_env(spec, trust), device=spec.device, progress=False)
    return make_model(spec, folder, trust=trust)


def learn(model: Sampler, spec: RunSpec, folder: Path) -> dict[str, float]:
    """Train a model, with evaluations if it is an `Agent`; return the cost, or {} for a model that does not learn."""
    if isinstance(model, Agent):
        if not model.learns:
            return {}
        total = model.default_steps if spec.steps is None else spec.steps
        callbacks: list[BaseCallback] = [Heartbeat(folder, total)]
        if spec.metrics.points:
            split = "valid" if len(model.task.valid.references) else "test"
            callbacks.append(Evaluation(max(1, -(-total // spec.metrics.points)), spec.metrics.curve_samples, split))
        model.learn(None if spec.steps is None else max(0, total - model.steps_done), callbacks)
        return model.cost
    learn_alone = getattr(model, "learn", None)
    if not callable(learn_alone):
        return {}
    begin = time.perf_counter()
    learn_alone(*([] if spec.steps is None else [spec.steps]))
    return {"seconds": time.perf_counter() - begin}


def note(folder: Path, doing: Mapping[str, object]) -> None:
    """Write the progress of a run into its folder; raise a FileNotFoundError if run.json was removed."""
    if not (folder / RUN).exists():
        raise FileNotFoundError(f"{folder / RUN} is missing: it was removed during the run")
    write_json(folder / NOW, doing)


class Heartbeat(BaseCallback):
    """Writes the training step to the folder of a run, at most twice a second."""

    def __init__(self, folder: Path, total: int) -> None:
        """Store the folder and the total number of steps."""
        super().__init__()
        self.folder, self.total, self.last = folder, total, 0.0

    def _on_step(self) -> bool:
        if time.monotonic() - self.last > 0.5:
            self.last = time.monotonic()
            note(self.folder, {"doing": "learning", "step": self.num_timesteps, "of": self.total})
        return True


def seed_everything(seed: int) -> None:
    """Seed the global generators, which some agents use: otherwise their results would depend on earlier runs."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - seeds the global generator
    torch.manual_seed(seed)


def versions() -> dict[str, str]:
    """Return the versions of Python, of this package, and of the packages that results depend on."""
    own = {"python": platform.python_version(), "text-gym": text_gym.__version__}
    return own | {name: metadata.version(name) for name in PACKAGES}


def logs() -> tuple[str, ...]:
    """Return the log formats: JSON lines, and TensorBoard if it is installed."""
    return ("json", "tensorboard") if importlib.util.find_spec("tensorboard") else ("json",)


def hardware() -> str:
    """Return the name of the GPU, or the cores and the name of the processor."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text(encoding="utf-8").splitlines() if line.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
    return f"{os.cpu_count()} cores of {name}"


def write_json(path: Path, content: object) -> None:
    """Replace a JSON file atomically; NaN and infinities are written as strings."""
    with replace_file(path) as file:
        file.write(json.dumps(worded(content), indent=1, ensure_ascii=False, allow_nan=False).encode())
