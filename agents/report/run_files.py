"""The files of runs and comparisons: the one place that reports take their numbers from.

    runs/table1/<label>/seed-<k>/       a run: one model, one seed
        run.json         what was to be run: label, kind, seed, agent, task, preset, options, controls_for, ...
        results.json     figures, sweep over temperatures, versions; absent until the run is done
        samples.json     a few sequences with their rewards, credits and nearest training sequences
        progress.json    metrics, one JSON object a line
        error.txt        why it failed, if it did
        latest.json      and the checkpoint that it names

Numbers that JSON lacks are written as "inf" and "-inf". Whatever these files hold is checked when it is read: a file
that is damaged is a `DataError` that names it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from agents.report.columns import Column, in_order
from text_gym.errors import DataError
from text_gym.files import read_json, replace_file

RUN, RESULTS, SAMPLES, ERROR = "run.json", "results.json", "samples.json", "error.txt"
COMPARISON = "comparison.json"  # the runs of a comparison; others beside them are of earlier ones
OLD_RUN = "cell.json"  # in place of run.json, in folders that earlier versions made
NOW = "now.json"  # how far a run is that is under way
LOG = "progress.json"  # metrics while it learns
FORMAT = "text_gym run 2"
KINDS = ("agent", "control", "reference")
LARGEST = 1e100  # of a figure that is finite

# What these files hold, where they hold it: see _check().
ANY, WHOLE = object(), object()
NONE = type(None)
TEXT, NUMBER = (str, NONE), (int, float)
COUNTS = ("samples", "references", "sweep_samples", "shown", "credit_rollouts", "points", "curve_samples")
METRICS: dict[Any, Any] = {"temperatures": [NUMBER], "also": [str]}
METRICS |= dict.fromkeys(COUNTS, int)
SPEC: dict[Any, Any] = {
    **dict.fromkeys(("label", "kind", "task", "device", "begins_with", "words", "command"), str),
    **dict.fromkeys(("agent", "preset", "start", "start_folder", "baseline"), TEXT),
    **dict.fromkeys(("seed", "order", "threads"), int),
    **dict.fromkeys(("report_reward", "trivial"), bool),
    "steps": (int, NONE),
    "reward": (str, list, dict, NONE),
    "options": {},
    "controls_for": [str],
    "metrics": METRICS,
    "inputs": {ANY: str},
}
DONE: dict[Any, Any] = {
    "figures": {},
    "sweep": [{}],
    "settings": {},
    "signatures": {ANY: str},
    "sizes": {ANY: int},
    "unknown": {ANY: NUMBER},
    "versions": {ANY: str},
    **dict.fromkeys(("hardware", "started", "finished"), str),
}
WRITTEN: list[Any] = [
    {
        WHOLE: True,
        **dict.fromkeys(("text", "prompt"), str),
        "tokens": [str],
        "reward": (*NUMBER, NONE),
        "values": ([NUMBER], NONE),
        "nearest": {WHOLE: True, "text": str, "similarity": NUMBER},
    }
]

Json = dict[str, Any]
"""The content of a JSON file, which holds an object."""


class Nearest(TypedDict):
    """The training sequence that is most like a sample."""

    text: str
    similarity: float


class Sample(TypedDict):
    """A sequence that a model generated."""

    text: str
    prompt: str
    tokens: list[str]
    reward: float | None
    values: list[float] | None
    """Estimated value before the first token and after each."""
    nearest: Nearest


class Run(NamedTuple):
    """One model of one seed."""

    folder: Path
    spec: Json
    """Content of run.json."""
    figures: dict[str, float]
    """Figures by column; empty if the run is not finished."""
    sweep: list[dict[str, float]]
    """Figures at other temperatures, each with its "temperature"."""
    curve: list[dict[str, float]]
    """Figures while it learned, each with its "step"."""
    samples: list[Sample]
    """A few sequences."""
    about: Json
    """Versions, hardware, times, signatures."""
    error: str | None
    """Traceback, if it failed."""

    @property
    def label(self) -> str:
        """Name of the model."""
        return str(self.spec["label"])

    @property
    def kind(self) -> str:
        """One of "agent", "control" and "reference"."""
        return str(self.spec["kind"])

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return int(self.spec["seed"])

    @property
    def finished(self) -> bool:
        """Whether there are results."""
        return bool(self.figures)


class Results:
    """All runs of one comparison, or of several on one task.

    Args:
        runs: In any order.
    """

    def __init__(self, runs: Iterable[Run]) -> None:
        """Keep them by label and seed, labels in the order in which they were asked for."""
        ordered = sorted(runs, key=lambda run: (int(run.spec.get("order", 0)), run.label, run.seed))
        self.runs = {(run.label, run.seed): run for run in ordered}
        if not self.runs:
            raise DataError("no runs to report")
        if len(self.runs) < len(ordered):
            twice = next(c for c in ordered if self.runs[c.label, c.seed] is not c)
            other = self.runs[twice.label, twice.seed].folder
            raise DataError(f"{twice.folder} and {other} are both {twice.label}, seed {twice.seed}; report one of them")
        self.task = str(self._shared("task"))
        for name in ("metrics", "reward"):
            self._shared(name)

    def _shared(self, name: str) -> object:
        """Look up a setting that all runs must have in common, for their figures to stand side by side."""
        said = {json.dumps(run.spec.get(name), sort_keys=True): run.spec.get(name) for run in self.runs.values()}
        if len(said) > 1:
            raise DataError(f"these runs differ in {name}: {' and '.join(said)}; report them one by one")
        return next(iter(said.values()))

    @cached_property
    def labels(self) -> list[str]:
        """All models, in order: agents, then controls, then references."""
        found = {label: run.kind for (label, _), run in self.runs.items()}
        return [label for kind in KINDS for label, its in found.items() if its == kind]

    @cached_property
    def seeds(self) -> list[int]:
        """All seeds."""
        return sorted({seed for _, seed in self.runs})

    @cached_property
    def baseline(self) -> str | None:
        """The model that others are measured against: the one most agents started from, or the first agent."""
        for run in self.runs.values():
            if run.spec.get("baseline") in self.labels:
                return str(run.spec["baseline"])
        agents = [label for label in self.labels if self.kind(label) == "agent"]
        return agents[0] if agents else None

    @cached_property
    def columns(self) -> list[Column]:
        """The columns that any model has."""
        return in_order({key for run in self.runs.values() for key in run.figures})

    def of(self, label: str) -> list[Run]:
        """A model's runs, by seed."""
        return [run for (name, _), run in sorted(self.runs.items(), key=lambda item: item[0][1]) if name == label]

    def kind(self, label: str) -> str:
        """Whether a model is an "agent", a "control" or a "reference"."""
        return self.of(label)[0].kind

    def begins_with(self, label: str) -> str:
        """What the policy of a model began with, in words; "" if it learned nothing."""
        return str(self.of(label)[0].spec.get("begins_with", ""))

    def is_trivial(self, label: str) -> bool:
        """Whether a model is a control that it shows nothing to be better than."""
        return bool(self.of(label)[0].spec.get("trivial"))

    def values(self, label: str, key: str) -> dict[int, float]:
        """A model's figure in each seed that has it."""
        return {run.seed: run.figures[key] for run in self.of(label) if key in run.figures}

    def controls_of(self, label: str) -> list[str]:
        """The controls that must not do as well as this model, if its success is to mean anything."""
        return [name for name in self.labels if label in self.of(name)[0].spec.get("controls_for", ())]

    @cached_property
    def failures(self) -> list[Run]:
        """The runs that failed."""
        return [run for run in self.runs.values() if run.error is not None and not run.finished]

    @cached_property
    def unfinished(self) -> list[Run]:
        """The runs that neither finished nor failed."""
        return [run for run in self.runs.values() if run.error is None and not run.finished]


def read_results(folders: Sequence[str | Path]) -> Results:
    """Read the runs in and below these folders."""
    found: list[Path] = []
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise DataError(f"no folder {str(folder)!r}; is the path right?")
        here = _runs_in(folder)
        if not here and (old := next(folder.rglob(OLD_RUN), None)):
            raise _other_version(old)
        if not here:
            raise DataError(f"no run of text-gym train or compare in {str(folder)!r}: no {RUN} in it or below it")
        found += here
    return Results(map(read_run, found))


def _runs_in(folder: Path) -> list[Path]:
    """List the runs of a comparison, or else all in and below a folder."""
    if (folder / COMPARISON).exists():
        listed = read_json(folder / COMPARISON)
        if isinstance(listed, dict) and "cells" in listed:
            raise _other_version(folder / COMPARISON)
        if not isinstance(listed, dict) or not isinstance(listed.get("runs"), list):
            raise DataError(f"{folder / COMPARISON} is damaged: it lists no runs")
        if not all(isinstance(run, str) and "\0" not in run for run in listed["runs"]):
            raise DataError(f"{folder / COMPARISON} is damaged: a run is the path of a folder")
        return [folder / run for run in listed["runs"]]
    return sorted(path.parent for path in folder.rglob(RUN))


def read_spec(folder: Path) -> Json:
    """Read what was to be run in a folder."""
    path = folder / RUN
    if path.is_file():
        spec = read_json(path)
    elif (folder / OLD_RUN).exists():
        raise _other_version(folder / OLD_RUN)
    else:
        raise DataError(
            f"no run of text-gym train in {str(folder)!r}, nor one seed of a comparison: there is no {RUN}; "
            "is the path right?"
        )
    if not isinstance(spec, dict) or not str(spec.get("format")).startswith(FORMAT[:-1]):
        raise DataError(f"{path} is no {FORMAT!r}")
    if spec["format"] != FORMAT:
        raise _other_version(path)
    if not {"label", "kind", "seed", "task", "agent"} <= set(spec):
        raise DataError(f"{path} is damaged: it lacks what was to be run")
    _check(spec, SPEC, path)
    if spec["kind"] not in KINDS:
        raise DataError(f"{path} is damaged: there is no such kind of model")
    return spec


def _other_version(path: Path) -> DataError:
    return DataError(f"another version of text-gym made {path}: run it again, into another folder")


def read_run(folder: Path) -> Run:
    """Read one run, as far as it has come."""
    spec = read_spec(folder)
    done = read_json(folder / RESULTS) if (folder / RESULTS).exists() else {"figures": {}}
    samples = read_json(folder / SAMPLES) if (folder / SAMPLES).exists() else []
    _check(done, DONE, folder / RESULTS)
    _check(samples, WRITTEN, folder / SAMPLES)
    try:
        error = (folder / ERROR).read_text(encoding="utf-8") if (folder / ERROR).exists() else None
    except (OSError, ValueError) as problem:
        raise DataError(f"cannot read {folder / ERROR}: {problem}") from problem
    try:
        figures = as_numbers(done["figures"])
        sweep = [row for row in map(as_numbers, done.get("sweep", [])) if "temperature" in row]
    except (KeyError, ValueError) as problem:
        raise DataError(f"{folder / RESULTS} is damaged: {problem}") from problem
    about = {key: value for key, value in done.items() if key not in ("figures", "sweep")}
    return Run(folder, spec, figures, sweep, read_curve(folder), samples, about, error)


def keep_error(folder: Path, text: str) -> bool:
    """Write into a run's folder why it failed; return whether that was possible, on a full disk for example."""
    with suppress(OSError):
        with replace_file(folder / ERROR) as file:
            file.write(text.encode("utf-8", "backslashreplace"))
        return True
    return False


def read_curve(folder: Path, prefix: str = "eval/") -> list[dict[str, float]]:
    """Read the evaluations of a log, by step; of two rows of one step the latter counts."""
    rows: dict[float, dict[str, float]] = {}
    for row in read_log(folder):
        figures = {k.removeprefix(prefix): v for k, v in row.items() if k.startswith(prefix)}
        if figures:
            rows[step_of(row)] = {"step": step_of(row)} | figures
    return [rows[step] for step in sorted(rows)]


def step_of(row: Mapping[str, float]) -> float:
    """Return the step that a row of a log is of."""
    return row.get("time/step", 0.0)


def read_log(folder: Path) -> list[dict[str, float]]:
    """Read the numbers of the log, a dict for each row; a row that a kill has cut off, or is damaged, is left out."""
    path = folder / LOG
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    except (OSError, ValueError) as problem:
        raise DataError(f"cannot read {path}: {problem}") from problem
    rows = []
    for line in lines:
        try:
            row = as_numbers(json.loads(line))
        except (AttributeError, ValueError, RecursionError):
            continue
        if 0 <= step_of(row) < math.inf:
            rows.append(row)
    return rows


def _check(value: object, shape: object, path: Path, name: str = "its content") -> None:
    """Refuse a value of another shape: a type, a list of a shape, a dict of shapes by key, or a tuple of any of these.

    A dict needs no key of its shape, unless the shape has WHOLE; the shape of ANY is that of all other keys.
    """
    shapes = shape if isinstance(shape, tuple) else (shape,)
    found = [one for one in shapes if type(value) is (type(one) if isinstance(one, list | dict) else one)]
    if not found:
        raise DataError(f"{path} is damaged: {name} is of the wrong type, {type(value).__name__}")
    if isinstance(value, int | float) and LARGEST < abs(value) < math.inf:
        raise DataError(f"{path} is damaged: {name} is too large")
    inside = found[0]
    if isinstance(value, list) and isinstance(inside, list):
        for part in value:
            _check(part, inside[0], path, f"a part of {name}")
    if isinstance(value, dict) and isinstance(inside, dict):
        if WHOLE in inside and (lacking := inside.keys() - value.keys() - {WHOLE}):
            raise DataError(f"{path} is damaged: {name} lacks {min(lacking)}")
        for key, part in value.items():
            if (expected := inside.get(key, inside.get(ANY))) is not None:
                _check(part, expected, path, key)


def as_numbers(row: Mapping[str, object]) -> dict[str, float]:
    """Keep what of a row is a number, or the word for one that JSON lacks.

    >>> as_numbers({"js": 0.1, "kl_sum": "inf", "note": "no"})
    {'js': 0.1, 'kl_sum': inf}

    Finite numbers beyond LARGEST, with which nothing can be computed, are refused.
    """
    words = {"inf": float("inf"), "-inf": float("-inf"), "nan": float("nan")}
    numbers = {}
    for key, value in row.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            if LARGEST < abs(value) < math.inf:
                raise DataError(f"the number of {key!r} is too large")
            numbers[key] = float(value)
        elif isinstance(value, str) and value in words:
            numbers[key] = words[value]
    return numbers
