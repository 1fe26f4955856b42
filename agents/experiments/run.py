"""One run: an agent with one seed, from what is to be run to its figures on disk.

The folder of a run holds everything about it (agents/report/run_files.py says which files), so that a run that
was stopped goes on, one that is finished is not run again, and a report needs nothing else.

A folder may come from anybody, so what it names is data unless the caller trusts it:

- registered names of tasks, rewards and agents, with options in brackets: nothing but this package's code is run;
- paths of corpora, of data sets and of an oracle's parameters: read as data, pickles by an interpreter of arrays;
- names and folders of Hugging Face models and tokenizers: loaded without the code that comes with them;
- folders of other runs, to start from: read by the same rules;
- checkpoints: tensors in safetensors, and JSON;
- "module:attribute" and "file.py:attribute", for an agent, a task or a reward: refused without trust, wherever they
  stand (`RunSpec.code` finds them; `Registry.find` does not import them).
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
from agents.common.settings import as_json
from agents.experiments.metrics import Metrics
from agents.experiments.recipes import PlainAgent, find_agent
from agents.experiments.settings import INPUTS, RunSpec
from agents.report.run_files import ERROR, LOG, NOW, OLD_RUN, RESULTS, RUN, SAMPLES, read_log, step_of
from text_gym.errors import DataError, OptionError, TextGymError
from text_gym.files import LOCK, read_json, replace_file, worded
from text_gym.rewards import Scorer
from text_gym.tasks import find_task, make_task

# What changes nothing in the results.
WORDS_ALONE = {"order", "baseline", "controls_for", "trivial", "words", "command", "begins_with"}
# What a folder may have before anything was learned in it; of the log it depends on what it says.
BEFORE = (LOCK, RUN, ERROR, NOW, "output.txt", "events.out.tfevents*", LOG, "*.part")
PACKAGES = ("torch", "numpy", "gymnasium", "stable-baselines3")


def prepare_run(folder: Path, spec: RunSpec) -> None:
    """Write down what is to be run; refuse a folder where something else was."""
    check_folder(folder, spec)
    if (folder / RESULTS).exists():
        spec = replace(spec, command=RunSpec.read(folder).command)  # what it was made with
    folder.mkdir(parents=True, exist_ok=True)
    if not _begun(folder):
        (folder / LOG).unlink(missing_ok=True)  # perhaps of other settings, that failed at once
    write_json(folder / RUN, spec.as_json())


def check_folder(folder: Path, spec: RunSpec) -> None:
    """Refuse a folder that is none, or where something else was, as far as it came to anything."""
    wanted = spec.as_json()
    there_is = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there_is.is_dir():
        raise OptionError(f"{there_is} is not a folder; choose another one")
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
    learned = any(step_of(row) > 0 for row in read_log(folder))
    return learned or any(not any(map(path.match, BEFORE)) for path in folder.iterdir())


def execute(
    folder: Path,
    progress: bool = False,
    env: gym.Env[object, object] | None = None,
    start: Sampler | None = None,
    trust: bool = False,
) -> None:
    """Learn and measure what run.json asks for, going on where an earlier run was stopped.

    Args:
        folder: Folder of the run.
        progress: Whether to show a progress bar.
        env: Environment of the run, if there is one already.
        start: Model to start from, if it is loaded already.
        trust: Whether code that run.json names may be run, because this program's user named it.
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
    """Make the model of a run, as far as the folder holds it; see execute() for the arguments."""
    recipe = find_agent(spec.agent, spec.preset, trust, **spec.options)
    env = make_env(spec, trust) if env is None else env
    if start is None and recipe.takes_start:
        if spec.start_folder is not None:
            start = load_model(Path(spec.start_folder), trust)
        elif spec.start is not None:
            start = load_model(folder.parent.parent / spec.start / f"seed-{spec.seed}", trust)
    surroundings = {"seed": spec.seed, "device": spec.device, "folder": folder, "start": start, "progress": progress}
    return recipe.make(env, spec.preset, **surroundings, log=logs())


def make_env(spec: RunSpec, trust: bool = False) -> gym.Env[object, object]:
    """Make the environment of a run: its task, and its agent's own reward or the one that was asked for."""
    reward = find_agent(spec.agent, spec.preset, trust, **spec.options).reward or spec.reward
    find_task(spec.task, trust)  # which refuses code
    task = make_task(spec.task)
    return gym.make("TextGen-v0", task=task, reward=None if reward is None else Scorer(reward, task, trust=trust))


def check_trust(folder: Path, spec: RunSpec, trust: bool) -> None:
    """Refuse a run that names code, unless it may be run."""
    if not trust and (code := spec.code()):
        raise OptionError(
            f"the run in {folder} names {code[0]!r}, and to load it would run what is there; "
            "if that is your own code or code that you trust, say --trust"
        )


@contextmanager
def refusing_damage(folder: Path) -> Iterator[None]:
    """Turn whatever is raised by what a folder says into an error that names the folder."""
    try:
        yield
    except (TextGymError, OSError):
        raise
    except Exception as problem:  # a setting, a shape or a number that is wrong can fail anywhere
        said = f"{type(problem).__name__}: {problem}".strip().partition("\n")[0]
        raise DataError(f"the run in {folder} is damaged, or its own code failed: {said}") from problem


def load_model(folder: Path, trust: bool = False, device: str | None = None) -> Sampler:
    """Load the model of a finished run, for sampling and measuring or as another's start.

    Args:
        folder: Folder of the run.
        trust: Whether code that the folder names, for an agent, a task or a reward of one's own, may be run.
        device: Where to put it; where the run was if None.
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
                f"what {spec.label} learned is not kept in {folder}: only an agents.Agent can be loaded, or an agent "
                "that takes folder= and reads from there what it has learned"
            )
    elif agent_class.learns:
        return agent_class.load(folder, make_env(spec, trust), device=spec.device, progress=False)
    return make_model(spec, folder, trust=trust)


def learn(model: Sampler, spec: RunSpec, folder: Path) -> dict[str, float]:
    """Let a model learn, an `Agent` with its learning curve, and return the cost; nothing if there is none to learn."""
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
    """Write into the folder of a run how far it is; an error where somebody has removed what it had written."""
    if not (folder / RUN).exists():
        raise FileNotFoundError(f"{folder / RUN} is gone: it was removed while the run went on")
    write_json(folder / NOW, doing)


class Heartbeat(BaseCallback):
    """Says in a file how far a model has learned, at most twice a second."""

    def __init__(self, folder: Path, total: int) -> None:
        """Keep the folder."""
        super().__init__()
        self.folder, self.total, self.last = folder, total, 0.0

    def _on_step(self) -> bool:
        if time.monotonic() - self.last > 0.5:
            self.last = time.monotonic()
            note(self.folder, {"doing": "learning", "step": self.num_timesteps, "of": self.total})
        return True


def seed_everything(seed: int) -> None:
    """Seed the global generators, which some agents use; their numbers would depend on earlier runs otherwise."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the global one is meant
    torch.manual_seed(seed)


def versions() -> dict[str, str]:
    """Versions of Python, this package and those that results depend on."""
    own = {"python": platform.python_version(), "text-gym": text_gym.__version__}
    return own | {name: metadata.version(name) for name in PACKAGES}


def logs() -> tuple[str, ...]:
    """Kinds of logs: JSON lines, and TensorBoard's where it is installed."""
    return ("json", "tensorboard") if importlib.util.find_spec("tensorboard") else ("json",)


def hardware() -> str:
    """Name the processor, or the GPU, of this machine."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text(encoding="utf-8").splitlines() if line.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
    return f"{os.cpu_count()} cores of {name}"


def write_json(path: Path, content: object) -> None:
    """Write a JSON file whole; numbers that JSON lacks become words."""
    with replace_file(path) as file:
        file.write(json.dumps(worded(content), indent=1, ensure_ascii=False, allow_nan=False).encode())
