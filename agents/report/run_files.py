"""Files of run folders and comparisons. Reports take every number from these files.

    runs/table1/<label>/seed-<k>/       a run: one agent, one seed
        run.json         specification of the run: label, kind, seed, agent, task, preset, options, controls_for, ...
        results.json     metrics, temperature sweep, versions; absent until the run has finished
        samples.json     a few samples with their rewards, values and nearest training sequences
        progress.json    training log: one JSON object per line
        error.txt        traceback, if the run failed
        latest.json      name of the latest checkpoint, which lies beside it

JSON has no infinity, so infinite numbers are stored as the strings "inf" and "-inf". Reading a file checks the types of
its values; a damaged file raises a `DataError` that names the file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from agents.report.columns import Column, in_order
from text_gym.errors import DataError
from text_gym.files import read_json, replace_file

RUN, RESULTS, SAMPLES, ERROR = "run.json", "results.json", "samples.json", "error.txt"
COMPARISON = "comparison.json"  # lists the runs of the latest comparison in this folder
OLD_RUN = "cell.json"  # name of run.json in folders that earlier versions made
NOW = "now.json"  # progress of a run that is under way
LOG = "progress.json"  # metrics during training
FORMAT = "text_gym run 2"
KINDS = ("agent", "control", "reference")
LARGEST = 1e100  # largest finite value of a metric

# Expected types of the files' values; see _check() for the notation.
ANY, ALL_REQUIRED = object(), object()
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
SAMPLE_LIST: list[Any] = [
    {
        ALL_REQUIRED: True,
        **dict.fromkeys(("text", "prompt"), str),
        "tokens": [str],
        "reward": (*NUMBER, NONE),
        "values": ([NUMBER], NONE),
        "nearest": {ALL_REQUIRED: True, "text": str, "similarity": NUMBER},
    }
]

Json = dict[str, Any]
"""Content of a JSON file that holds an object."""


class Nearest(TypedDict):
    """Training sequence that is most similar to a sample."""

    text: str
    similarity: float  # ROUGE-L, 0 to 1


class Sample(TypedDict):
    """One sequence that a model generated."""

    text: str
    prompt: str
    tokens: list[str]
    reward: float | None
    values: list[float] | None
    """Estimated value (expected reward) before the first token and after each token; None if not estimated."""
    nearest: Nearest


class Run(NamedTuple):
    """One run: a model with one seed."""

    folder: Path
    spec: Json
    """Content of run.json."""
    figures: dict[str, float]
    """Metrics by column key; empty if the run has not finished."""
    sweep: list[dict[str, float]]
    """Metrics at each temperature of the sweep, with the key "temperature"."""
    curve: list[dict[str, float]]
    """Metrics of each evaluation during training, with the key "step"."""
    samples: list[Sample]
    """A few generated sequences."""
    about: Json
    """Rest of results.json: versions, hardware, times, signatures, settings."""
    error: str | None
    """Traceback of a failed run; None otherwise."""

    def __repr__(self) -> str:
        return f"Run({self.label!r}, {self.kind}, seed={self.seed}, folder={str(self.folder)!r})"

    @property
    def label(self) -> str:
        """Name of the model in reports."""
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
        """Whether the run has results."""
        return bool(self.figures)


class Runs:
    """Runs of one comparison, or of several comparisons on the same task.

    Args:
        runs: Runs in any order; they must agree in task, metric settings and reward.

    Raises:
        DataError: If there are no runs, two runs have the same label and seed, or runs differ in a shared setting.
    """

    def __init__(self, runs: Iterable[Run]) -> None:
        """Index the runs by label and seed, labels in the order of the command."""
        ordered = sorted(runs, key=lambda run: (int(run.spec.get("order", 0)), run.label, run.seed))
        self.runs = {(run.label, run.seed): run for run in ordered}
        if not self.runs:
            raise DataError("there are no runs to report; name the folder of a run or a comparison")
        if len(self.runs) < len(ordered):
            duplicate = next(run for run in ordered if self.runs[run.label, run.seed] is not run)
            other = self.runs[duplicate.label, duplicate.seed].folder
            raise DataError(
                f"{duplicate.folder} and {other} are both runs of {duplicate.label} with seed {duplicate.seed}; "
                "report only one of them"
            )
        self.task = str(self._shared("task"))
        for name in ("metrics", "reward"):
            self._shared(name)

    def _shared(self, name: str) -> object:
        """Return a setting that all runs must share for their metrics to be comparable."""
        found = {json.dumps(run.spec.get(name), sort_keys=True): run.spec.get(name) for run in self.runs.values()}
        if len(found) > 1:
            raise DataError(f"these runs differ in {name}: {' and '.join(found)}; write a report for each")
        return next(iter(found.values()))

    @cached_property
    def labels(self) -> list[str]:
        """Labels of all models: agents, then controls, then references."""
        kinds = {label: run.kind for (label, _), run in self.runs.items()}
        return [label for group in KINDS for label, kind in kinds.items() if kind == group]

    @cached_property
    def seeds(self) -> list[int]:
        """Seeds of all runs, sorted."""
        return sorted({seed for _, seed in self.runs})

    @cached_property
    def baseline(self) -> str | None:
        """Label of the model that others are compared with; the first agent if runs name none; None without agents."""
        for run in self.runs.values():
            if run.spec.get("baseline") in self.labels:
                return str(run.spec["baseline"])
        agents = [label for label in self.labels if self.kind(label) == "agent"]
        return agents[0] if agents else None

    @cached_property
    def columns(self) -> list[Column]:
        """Columns that at least one model has, in the order of tables."""
        return in_order({key for run in self.runs.values() for key in run.figures})

    def of(self, label: str) -> list[Run]:
        """Runs of a model, sorted by seed."""
        return [run for (name, _), run in sorted(self.runs.items(), key=lambda item: item[0][1]) if name == label]

    def kind(self, label: str) -> str:
        """Kind of a model: "agent", "control" or "reference"."""
        return self.of(label)[0].kind

    def begins_with(self, label: str) -> str:
        """Initial policy of a model: a label, a folder or "random weights"; "" if the model does not learn."""
        return str(self.of(label)[0].spec.get("begins_with", ""))

    def is_trivial(self, label: str) -> bool:
        """Whether a control is trivial, such as uniform tokens: being better than it is no evidence."""
        return bool(self.of(label)[0].spec.get("trivial"))

    def values(self, label: str, key: str) -> dict[int, float]:
        """Values of a model's metric by seed, without the seeds that lack it."""
        return {run.seed: run.figures[key] for run in self.of(label) if key in run.figures}

    def controls_of(self, label: str) -> list[str]:
        """Labels of the controls that this model must exceed for its gain to count as its own."""
        return [name for name in self.labels if label in self.of(name)[0].spec.get("controls_for", ())]

    @cached_property
    def failures(self) -> list[Run]:
        """Runs that failed."""
        return [run for run in self.runs.values() if run.error is not None and not run.finished]

    @cached_property
    def unfinished(self) -> list[Run]:
        """Runs that have neither finished nor failed."""
        return [run for run in self.runs.values() if run.error is None and not run.finished]


def read_runs(folder: Path) -> list[Run]:
    """Read the runs in and below a folder; of a comparison, the runs that its comparison.json lists.

    Raises:
        DataError: If there is no such folder, it holds no run, or it holds a damaged file.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder {str(folder)!r}; check the path")
    found = list_runs(folder)
    if not found:
        raise DataError(
            f"there is no {RUN} in or below {str(folder)!r}; name the output folder of text-gym train or compare"
        )
    return list(map(read_run, found))


def list_runs(folder: Path) -> list[Path]:
    """List the run folders of a comparison; without comparison.json, all run folders in and below a folder.

    Raises:
        DataError: If comparison.json is damaged, or another version made the folder.
    """
    if (folder / COMPARISON).exists():
        listed = read_json(folder / COMPARISON)
        if isinstance(listed, dict) and "cells" in listed:
            raise _other_version(folder / COMPARISON)
        if not isinstance(listed, dict) or not isinstance(listed.get("runs"), list):
            raise DataError(f"{folder / COMPARISON} is damaged: it lists no runs; run the comparison again")
        if not all(isinstance(run, str) and "\0" not in run for run in listed["runs"]):
            raise DataError(f"{folder / COMPARISON} is damaged: its runs are not paths; run the comparison again")
        if outside := [run for run in listed["runs"] if Path(run).is_absolute() or ".." in Path(run).parts]:
            raise DataError(
                f"{folder / COMPARISON} is damaged: {outside[0]!r} lies outside of {folder}; run the comparison again"
            )
        return [folder / run for run in listed["runs"]]
    found = sorted(path.parent for path in folder.rglob(RUN))
    if not found and (old := next(folder.rglob(OLD_RUN), None)):
        raise _other_version(old)
    return found


def read_spec(folder: Path) -> Json:
    """Read the run.json of a run folder.

    Raises:
        DataError: If there is none, it is damaged, or another version wrote it.
    """
    path = folder / RUN
    if path.is_file():
        spec = read_json(path)
    elif (folder / OLD_RUN).exists():
        raise _other_version(folder / OLD_RUN)
    else:
        raise DataError(
            f"{str(folder)!r} is no run folder: there is no {RUN} in it; name the output folder of text-gym train, "
            "or the folder of one seed of a comparison, such as runs/compare/mle/seed-0"
        )
    if not isinstance(spec, dict) or not str(spec.get("format")).startswith(FORMAT[:-1]):
        raise DataError(f"{path} is damaged: its format is not {FORMAT!r}")
    if spec["format"] != FORMAT:
        raise _other_version(path)
    if not {"label", "kind", "seed", "task", "agent"} <= set(spec):
        raise DataError(f"{path} is damaged: label, kind, seed, task or agent is missing")
    _check(spec, SPEC, path)
    if spec["kind"] not in KINDS:
        raise DataError(f"{path} is damaged: kind must be one of {', '.join(KINDS)}, not {spec['kind']!r}")
    return spec


def _other_version(path: Path) -> DataError:
    return DataError(f"another version of text-gym wrote {path}; run the command again with another output folder")


def read_run(folder: Path) -> Run:
    """Read a run folder; a run that has not finished has no metrics, sweep or samples yet."""
    spec = read_spec(folder)
    done = read_json(folder / RESULTS) if (folder / RESULTS).exists() else {"figures": {}}
    samples = read_json(folder / SAMPLES) if (folder / SAMPLES).exists() else []
    _check(done, DONE, folder / RESULTS)
    _check(samples, SAMPLE_LIST, folder / SAMPLES)
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


def seconds_of(folder: Path) -> float | None:
    """Compute how long a finished run took; None if its results do not say."""
    try:
        done = read_json(folder / RESULTS)
        return (datetime.fromisoformat(done["finished"]) - datetime.fromisoformat(done["started"])).total_seconds()
    except (DataError, KeyError, TypeError, ValueError):
        return None


def keep_error(folder: Path, text: str) -> bool:
    """Write the traceback of a failed run to error.txt; return False if that failed too, for example on a full disk."""
    with suppress(OSError):
        with replace_file(folder / ERROR) as file:
            file.write(text.encode("utf-8", "backslashreplace"))
        return True
    return False


def read_curve(folder: Path, prefix: str = "eval/") -> list[dict[str, float]]:
    """Read the evaluations of a training log, sorted by step; a later row replaces an earlier one of the same step."""
    rows: dict[float, dict[str, float]] = {}
    for row in read_log(folder):
        figures = {k.removeprefix(prefix): v for k, v in row.items() if k.startswith(prefix)}
        if figures:
            rows[step_of(row)] = {"step": step_of(row)} | figures
    return [rows[step] for step in sorted(rows)]


def step_of(row: Mapping[str, float]) -> float:
    """Return the training step of a log's row."""
    return row.get("time/step", 0.0)


def read_log(folder: Path) -> list[dict[str, float]]:
    """Read the numbers of a training log, one dict per row; rows that are cut off or damaged are skipped."""
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
    """Raise DataError if a value of a JSON file does not have the expected shape.

    A shape is a type, a list with the shape of its items, a dict with the shapes of its values, or a tuple of
    alternatives. Keys are optional unless the shape has the key ALL_REQUIRED. The key ANY gives the shape of all keys
    that are not listed.
    """
    shapes = shape if isinstance(shape, tuple) else (shape,)
    found = [one for one in shapes if type(value) is (type(one) if isinstance(one, list | dict) else one)]
    if not found:
        raise DataError(f"{path} is damaged: {name} has the wrong type {type(value).__name__}")
    if isinstance(value, int | float) and LARGEST < abs(value) < math.inf:
        raise DataError(f"{path} is damaged: {name} is too large")
    inside = found[0]
    if isinstance(value, list) and isinstance(inside, list):
        for part in value:
            _check(part, inside[0], path, f"an item of {name}")
    if isinstance(value, dict) and isinstance(inside, dict):
        if ALL_REQUIRED in inside and (lacking := inside.keys() - value.keys() - {ALL_REQUIRED}):
            raise DataError(f"{path} is damaged: {name} lacks the key {min(lacking)!r}")
        for key, part in value.items():
            if (expected := inside.get(key, inside.get(ANY))) is not None:
                _check(part, expected, path, key)


def as_numbers(row: Mapping[str, object]) -> dict[str, float]:
    """Return the numbers of a row, among them "inf", "-inf" and "nan"; other values are dropped.

    >>> as_numbers({"js": 0.1, "kl_sum": "inf", "note": "no"})
    {'js': 0.1, 'kl_sum': inf}

    Raises:
        DataError: If a finite number is larger than LARGEST.
    """
    words = {"inf": float("inf"), "-inf": float("-inf"), "nan": float("nan")}
    numbers = {}
    for key, value in row.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            if LARGEST < abs(value) < math.inf:
                raise DataError(f"the value of {key!r} is too large")
            numbers[key] = float(value)
        elif isinstance(value, str) and value in words:
            numbers[key] = words[value]
    return numbers
