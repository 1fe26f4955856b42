"""Content of a report as plain data, computed once from the run files.

The HTML page, the Markdown, the CSV and the terminal only format it, so all of them show the same numbers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

from agents.report.claims import join_words
from agents.report.columns import TOKENS_COUNTED, Column, column_of
from agents.report.run_files import KINDS, Run, Runs, Sample
from agents.report.statistics import Difference, Summary, Test, against, summarize
from agents.report.sweeps import PLANES, Best, best_under, plane_axes
from agents.report.verdicts import summaries, verdicts

SAMPLES_SHOWN = 5  # of each model
ARROWS = {"lower": "↓", "higher": "↑", "neither": ""}
OUTCOMES = {  # symbol and meaning of each outcome
    "gain": ("▲", "better, and better than its controls"),
    "control": ("=", "better, but not better than a control"),
    "uncontrolled": ("?", "better, without a control"),
    "none": ("·", "no evidence of a difference"),
    "loss": ("▼", "worse"),
    "one seed": ("1", "one seed only"),
}
NOT_SIGNIFICANT = "not significant after the correction"
ABOUT = {  # how to read each part of a report
    "verdicts": "One verdict for each metric. In brackets: 95 % interval of the difference over seeds.",
    "metrics": (
        "Mean over seeds, with the 95 % bootstrap interval of the mean. The best of the agents and controls is marked, "
        "without uniform noise. ↓ lower is better, ↑ higher is better."
    ),
    "tests": (
        "Difference: mean over the seeds that both models have, with its 95 % interval. Welch p: p-value of Welch's "
        "test. Holm p: the same p-value, corrected for all {n_tests} tests; bold if it is below 0.05. Seeds: of the "
        "model and of the baseline."
    ),
    "curves": (
        "Metrics measured during training: mean over seeds, with a band from the lowest to the highest seed. Controls "
        "are dashed, references dotted."
    ),
    "plane": (
        "Each line is one model at several sampling temperatures; the large marker is temperature 1. A model is better "
        "than another if its line lies further to the {corner}. Another point on the same line is only another "
        "trade-off of {quality} against {diversity}."
    ),
    "frontier": "Best {quality} over all temperatures at which {diversity} is at most the limit in the column's head.",
}
DESCRIBED = {  # names in the report of settings in run.json
    "description": "words",
    "agent": "agent",
    "preset": "preset",
    "reward": "reward",
    "warm start": "start",
    "options": "options",
}
Plain = dict[str, Any]


def context(results: Runs) -> Plain:
    """Compute the content of a report, without the charts."""
    tests = against(results, results.baseline) if results.baseline else []
    n_tests = sum(not math.isnan(test.p) for test in tests)
    return {
        "title": comparison_title(results),
        "line": _line(results),
        "intro": _intro(results),
        "baseline": results.baseline,
        "summaries": summaries(results),
        "verdicts": _verdicts(results, tests),
        "table": main_table(results),
        "tests": _tests(tests),
        "n_tests": n_tests,
        "about": _about(results, n_tests),
        "tokens_counted": TOKENS_COUNTED,
        "best": _frontier(results),
        "samples": [found for label in results.labels if (found := _samples(results, label))],
        "settings": [_settings(results, label) for label in results.labels],
        "failures": [_place(run) | _error(run) for run in results.failures],
        "unfinished": [_place(run) for run in results.unfinished],
        "commands": _distinct(run.spec.get("command") for run in results.runs.values()),
        "versions": _distinct(_pairs(run.about.get("versions")) for run in results.runs.values()),
        "hardware": _distinct(run.about.get("hardware") for run in results.runs.values()),
    }


def comparison_title(results: Runs) -> str:
    """Title of a report: the agents and the task."""
    agents = [label for label in results.labels if results.kind(label) == "agent"] or results.labels
    what = "Comparison" if len(results.labels) > 1 else "Report"
    return f"{what} of {join_words(agents)} on the task {results.task}"


def _intro(results: Runs) -> str:
    """Say what was compared with what, and how to read the outcome."""
    sentences = []
    baseline = results.baseline
    others = [label for label in results.labels if label != baseline and results.kind(label) == "agent"]
    if baseline is not None and others:
        warm = [label for label in others if results.begins_with(label) == baseline]
        verb, pronoun = ("is", "its") if len(others) == 1 else ("are", "their")
        role = (
            f", {pronoun} warm start" if warm == others else f", the warm start of {join_words(warm)}" if warm else ""
        )
        sentences.append(f"{join_words(others)} {verb} compared with {baseline}{role}.")
    if any(results.kind(label) == "control" for label in results.labels):
        sentences.append(
            "A control does not have the information that an agent learns from: for example, it is trained with a "
            "constant or random reward. A gain counts as an agent's own only if no control gains as much."
        )
    return " ".join(sentences)


def _line(results: Runs) -> str:
    """Count the models, seeds and sequences, and give the share of unknown words and the starting time."""
    kinds = [results.kind(label) for label in results.labels]
    models = [_count(n, kind) for kind in KINDS if (n := kinds.count(kind))]
    parts = [f"{join_words(models)} over {_count(len(results.seeds), 'seed')}"]
    runs = results.runs.values()
    sampled = {run.spec.get("metrics", {}).get("samples") for run in runs} - {None}
    parts += [f"{n:,} samples per model" for n in sampled] if len(sampled) == 1 else []
    sizes = _distinct(_pairs(run.about.get("sizes")) for run in runs)
    parts += [f"sequences of data: {size}" for size in sizes]
    parts += _distinct(_unknown(run.about.get("unknown")) for run in runs)
    started = sorted(str(run.about["started"]) for run in runs if "started" in run.about)
    parts += [f"started {started[0][:16].replace('T', ' ')}"] if started else []
    return "; ".join(parts)


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'s' * (n != 1)}"


def _unknown(shares: Plain | None) -> str:
    """Describe the share of <unk> in each split; "" if the vocabulary has no such token."""
    if not shares:
        return ""
    return "unknown words (<unk>): " + ", ".join(f"{100 * share:.2g} % of {split}" for split, share in shares.items())


def _verdicts(results: Runs, tests: Sequence[Test]) -> list[Plain]:
    """Verdicts grouped by agent."""
    significant = {(test.label, test.key) for test in tests if test.significant}
    groups: dict[str, list[Plain]] = {}
    for verdict in verdicts(results):
        sign, word = OUTCOMES[verdict.outcome]
        weak = verdict.outcome in ("gain", "uncontrolled", "loss") and (verdict.label, verdict.key) not in significant
        item = {"outcome": verdict.outcome.replace(" ", "-"), "sign": sign, "word": word, "text": verdict.text}
        item |= {"word": f"{word}, {NOT_SIGNIFICANT}"} if weak else {}
        groups.setdefault(verdict.label, []).append(item | {"weak": weak})
    return [{"label": label, "items": items} for label, items in groups.items()]


def main_table(results: Runs) -> Plain:
    """Build the main table: columns, and rows of cells grouped by the kind of model."""
    rows = {label: [_cell(results, label, column) for column in results.columns] for label in results.labels}
    ranked = [rows[label] for label in results.labels if _is_ranked(results, label)]
    for i, column in enumerate(results.columns):
        _mark_best([cells[i] for cells in ranked], column)
    signatures: dict[str, str] = {}
    for run in results.runs.values():
        signatures |= run.about.get("signatures", {})
    columns = [_heading(column) | {"signature": signatures.get(column.key, "")} for column in results.columns]
    groups: list[Plain] = [{"kind": kind, "rows": []} for kind in ("agent", "control", "reference")]
    for group in groups:
        group["rows"] = [
            _row(results, label, rows[label]) for label in results.labels if results.kind(label) == group["kind"]
        ]
    return {"columns": columns, "groups": [group for group in groups if group["rows"]], "seeds": results.seeds}


def _heading(column: Column) -> Plain:
    return {
        "key": column.key,
        "title": column.title,
        "better": column.better,
        "arrow": ARROWS[column.better],
        "help": column.help,
        "headline": column.headline,
    }


def _row(results: Runs, label: str, cells: list[Plain]) -> Plain:
    done, due = sum(run.finished for run in results.of(label)), len(results.of(label))
    words = results.of(label)[0].spec.get("words") or ""
    seeds = str(done) if done == due else f"{done} of {due}"
    initial = results.begins_with(label)
    return {"label": label, "words": words, "initial": initial, "done": done, "seeds": seeds, "cells": cells}


def _cell(results: Runs, label: str, column: Column) -> Plain:
    """Build a cell: mean and interval as text and in full, and the value of each seed."""
    values = results.values(label, column.key)
    summary = summarize(list(values.values()))
    return {
        "text": column.show(summary.mean),
        "interval": _interval(column, summary),
        "half": _half_width(column, summary),
        "infinite": _infinite(list(values.values())),
        "summary": summary,
        "values": values,
        "best": False,
    }


def _interval(column: Column, estimate: Summary | Difference, signed: bool = False) -> str:
    """Format the interval in brackets, without the unit; "" without one."""
    if estimate.low is None or estimate.high is None:
        return ""
    return f"[{', '.join(column.show(end, signed).removesuffix(' %') for end in (estimate.low, estimate.high))}]"


def _half_width(column: Column, summary: Summary) -> str:
    """Format half of the interval's width; "" without an interval."""
    if summary.low is None or summary.high is None:
        return ""
    return column.show((summary.high - summary.low) / 2).removesuffix(" %")


def _infinite(values: Sequence[float]) -> str:
    """Count the infinite values, if others are finite."""
    infinite = sum(map(math.isinf, values))
    return f"infinite in {infinite} of {len(values)}" if 0 < infinite < len(values) else ""


def _is_ranked(results: Runs, label: str) -> bool:
    """Whether a model can be marked as the best: not real data, and not noise, which has the highest diversity."""
    return results.kind(label) != "reference" and not results.is_trivial(label)


def _mark_best(cells: Sequence[Plain], column: Column) -> None:
    """Mark the best of several models, and all models with the same text."""
    finite = [cell for cell in cells if math.isfinite(cell["summary"].mean)]
    if column.better == "neither" or len({cell["text"] for cell in finite}) < 2:
        return
    best_of = min if column.better == "lower" else max
    best = best_of(finite, key=lambda cell: float(cell["summary"].mean))
    for cell in finite:
        cell["best"] = cell["text"] == best["text"]


def _tests(tests: Sequence[Test]) -> list[Plain]:
    """Group the tests by metric, without the metrics that are infinite for all models."""
    groups: dict[str, list[Plain]] = {}
    for test in tests:
        if any(math.isfinite(other.difference.mean) for other in tests if other.key == test.key):
            groups.setdefault(test.key, []).append(_test(test))
    columns = [column_of(key) for key in groups]
    units = ["percentage points" if column.form == "%" else column.unit for column in columns]
    return [_heading(c) | {"unit": unit, "rows": groups[c.key]} for c, unit in zip(columns, units, strict=True)]


def _test(test: Test) -> Plain:
    column = column_of(test.key)
    return {
        "label": test.label,
        "seeds": f"{test.n} and {test.n_baseline}",
        "difference": column.show(test.difference.mean, signed=True).removesuffix(" %") or "—",
        "interval": _interval(column, test.difference, signed=True),
        "value": test.difference.mean,
        "p": _p(test.p),
        "p_holm": _p(test.p_holm),
        "p_values": (test.p, test.p_holm),
        "significant": test.significant,
    }


def _p(p: float) -> str:
    return "—" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _about(results: Runs, n_tests: int) -> dict[str, str]:
    """Complete the texts of ABOUT with the number of tests and the axes of the quality/diversity plane."""
    quality, diversity = map(column_of, plane_axes(results) or PLANES[0])
    corner = "lower left" if quality.better == "lower" else "upper left"
    names = {"quality": quality.title, "diversity": diversity.title, "corner": corner, "n_tests": n_tests}
    return {part: text.format(**names) for part, text in ABOUT.items()}


def _frontier(results: Runs) -> Plain | None:
    """Build the table of the best quality within each limit of diversity; None without a temperature sweep."""
    keys = plane_axes(results)
    rows = best_under(results)
    if keys is None or not rows:
        return None
    quality = column_of(keys[0])
    limits = list(dict.fromkeys(row.limit for row in rows))
    cells = {(row.label, row.limit): _frontier_cell(row, quality) for row in rows}
    labels = list(dict.fromkeys(row.label for row in rows))
    for limit in limits:
        ranked = [cell for (label, at), cell in cells.items() if at == limit and _is_ranked(results, label)]
        _mark_best([cell for cell in ranked if cell["complete"]], quality)
    return {
        "limits": [f"≤ {limit:g}" for limit in limits],
        "rows": [{"label": label, "cells": [cells[label, limit] for limit in limits]} for label in labels],
    }


def _frontier_cell(row: Best, column: Column) -> Plain:
    text = column.show(row.mean) or "—"
    seeds = "" if row.n in (0, row.seeds) else f"{row.n} of {row.seeds}"
    summary = Summary(row.n, row.mean, None, None)
    return {"text": text, "seeds": seeds, "summary": summary, "complete": row.n == row.seeds, "best": False}


def _samples(results: Runs, label: str) -> Plain | None:
    """Return a model's samples of its first seed with samples, with the credit of each token; None without samples."""
    run = next((run for run in results.of(label) if run.samples), None)
    if run is None:
        return None
    shown = run.samples[:SAMPLES_SHOWN]
    largest = max((abs(credit) for sample in shown for credit in _credits(sample)), default=0.0) or 1.0
    parts = [{key: sample.get(key) for key in ("prompt", "reward", "nearest")} for sample in shown]
    samples = [part | {"tokens": _tokens(sample, largest)} for part, sample in zip(parts, shown, strict=True)]
    return {"label": label, "kind": run.kind, "seed": run.seed, "samples": samples}


def _credits(sample: Sample) -> list[float]:
    """Compute the credit of each token: the change of the value."""
    values = sample.get("values") or []
    return [after - before for before, after in pairwise(values)]


def _tokens(sample: Sample, largest: float) -> list[Plain]:
    """Return each token, with its credit as text and as a share of the largest credit, if values were estimated."""
    tokens: list[Plain] = [{"text": token} for token in sample["tokens"]]
    for token, credit, after in zip(tokens, _credits(sample), (sample.get("values") or [])[1:], strict=False):
        token |= {"share": round(credit / largest, 3), "credit": f"{credit:+.3f}", "value": f"{after:.3f}"}
    return tokens


def _settings(results: Runs, label: str) -> Plain:
    """Describe a model and its hyperparameters."""
    runs = results.of(label)
    spec = runs[0].spec
    about = {name: spec.get(key) for name, key in DESCRIBED.items()}
    if controls := results.controls_of(label):
        about["controls"] = ", ".join(controls)
    settings: Plain = next((run.about["settings"] for run in runs if run.about.get("settings")), {})
    return {"label": label, "about": _texts(about), "settings": _texts(dict(_flattened(settings)))}


def _flattened(settings: Plain, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each hyperparameter; a hyperparameter of a group is named group.name."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flattened(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _texts(values: Plain) -> dict[str, str]:
    """Format the values that are not empty."""
    full = {key: value for key, value in values.items() if value not in (None, "", {}, [])}
    return {k: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for k, v in full.items()}


def _place(run: Run) -> Plain:
    return {"label": run.label, "seed": run.seed}


def _error(run: Run) -> Plain:
    """Return the traceback and its last line, which is the error message."""
    text = (run.error or "").strip()
    return {"error": text, "last": text.rpartition("\n")[2]}


def _pairs(values: Plain | None) -> str:
    return ", ".join(f"{key} {value}" for key, value in (values or {}).items())


def _distinct(values: Iterable[Any]) -> list[str]:
    """List the different values as text, without empty ones."""
    return list(dict.fromkeys(str(value) for value in values if value))
