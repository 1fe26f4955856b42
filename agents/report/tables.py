"""All that a report of a comparison says, as plain data worked out once from the run files.

The page, the Markdown, the table of numbers and the terminal only arrange it, so a number is the same in all of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

from agents.report.columns import Column, column_of
from agents.report.run_files import Run, Runs, Sample
from agents.report.statistics import Difference, Summary, Test, against, summarize
from agents.report.sweeps import Best, best_under, plane_axes
from agents.report.verdicts import summaries, verdicts

SAMPLES_SHOWN = 5  # of each model
ARROWS = {"lower": "↓", "higher": "↑", "neither": ""}
OUTCOMES = {  # a sign, and what it says
    "gain": ("▲", "gain"),
    "control": ("=", "not told from a control"),
    "uncontrolled": ("?", "better, no control"),
    "none": ("·", "no difference"),
    "loss": ("▼", "loss"),
    "one seed": ("1", "one seed"),
}
Plain = dict[str, Any]


def context(results: Runs) -> Plain:
    """Collect all that a report says, but for its pictures."""
    tests = against(results, results.baseline) if results.baseline else []
    return {
        "title": comparison_title(results),
        "line": _line(results),
        "baseline": results.baseline,
        "summaries": summaries(results),
        "verdicts": _verdicts(results, tests),
        "table": main_table(results),
        "tests": _tests(tests),
        "comparisons": sum(not math.isnan(test.p) for test in tests),
        "best": _best_table(results),
        "samples": [its for label in results.labels if (its := _samples(results, label))],
        "settings": [_settings(results, label) for label in results.labels],
        "failures": [_place(run) | _error(run) for run in results.failures],
        "unfinished": [_place(run) for run in results.unfinished],
        "commands": _distinct(run.spec.get("command") for run in results.runs.values()),
        "versions": _distinct(_pairs(run.about.get("versions")) for run in results.runs.values()),
        "hardware": _distinct(run.about.get("hardware") for run in results.runs.values()),
    }


def comparison_title(results: Runs) -> str:
    """Name the agents and the task."""
    agents = [label for label in results.labels if results.kind(label) == "agent"] or results.labels
    names = " and ".join([*([", ".join(agents[:-1])] if len(agents) > 1 else []), agents[-1]])
    return f"{names} on the task {results.task}"


def _line(results: Runs) -> str:
    """Say what was measured, and when."""
    kinds = [results.kind(label) for label in results.labels]
    counts = [f"{n} {kind}{'s' * (n != 1)}" for kind in ("agent", "control", "reference") if (n := kinds.count(kind))]
    counts.append(f"{len(results.seeds)} seed{'s' * (len(results.seeds) != 1)}")
    runs = results.runs.values()
    drawn = {run.spec.get("metrics", {}).get("samples") for run in runs} - {None}
    counts += [f"{n:,} sequences drawn from each" for n in drawn] if len(drawn) == 1 else []
    started = sorted(str(run.about["started"]) for run in runs if "started" in run.about)
    sizes = _distinct(_pairs(run.about.get("sizes")) for run in runs)
    counts += [f"sequences of data: {size}" for size in sizes]
    counts += _distinct(_unknown(run.about.get("unknown")) for run in runs)
    counts += [f"begun {started[0][:16].replace('T', ' ')}"] if started else []
    return ", ".join(counts)


def _unknown(shares: Plain | None) -> str:
    """Say how many of the data's words are <unk>, where the vocabulary has such a token."""
    if not shares:
        return ""
    return "unknown words (<unk>): " + ", ".join(f"{100 * share:.2g} % of {split}" for split, share in shares.items())


def _verdicts(results: Runs, tests: Sequence[Test]) -> list[Plain]:
    """The verdicts by agent."""
    certain = {(test.label, test.key) for test in tests if test.significant}
    groups: dict[str, list[Plain]] = {}
    for verdict in verdicts(results):
        sign, word = OUTCOMES[verdict.outcome]
        weak = verdict.outcome in ("gain", "uncontrolled", "loss") and (verdict.label, verdict.key) not in certain
        item = {"outcome": verdict.outcome.replace(" ", "-"), "sign": sign, "word": word, "text": verdict.text}
        item |= {"word": f"{word}, but not after the correction"} if weak else {}
        groups.setdefault(verdict.label, []).append(item | {"weak": weak})
    return [{"label": label, "items": items} for label, items in groups.items()]


def main_table(results: Runs) -> Plain:
    """The main table: columns, and groups of rows of cells."""
    rows = {label: [_figure(results, label, column) for column in results.columns] for label in results.labels}
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
        "about": column.about,
        "headline": column.headline,
    }


def _row(results: Runs, label: str, cells: list[Plain]) -> Plain:
    done, due = sum(run.finished for run in results.of(label)), len(results.of(label))
    words = results.of(label)[0].spec.get("words") or ""
    seeds = str(done) if done == due else f"{done} of {due}"
    begun = results.begins_with(label)
    return {"label": label, "words": words, "begun": begun, "done": done, "seeds": seeds, "cells": cells}


def _figure(results: Runs, label: str, column: Column) -> Plain:
    """A model's figure: its mean as text and in full, its interval, and each seed's value."""
    values = results.values(label, column.key)
    its = summarize(list(values.values()))
    return {
        "text": column.show(its.mean),
        "interval": _interval(column, its),
        "half": _half(column, its),
        "odd": _odd(list(values.values())),
        "summary": its,
        "values": values,
        "best": False,
    }


def _interval(column: Column, its: Summary | Difference, signed: bool = False) -> str:
    """The interval in brackets, without units."""
    if its.low is None or its.high is None:
        return ""
    return f"[{', '.join(column.show(end, signed).removesuffix(' %') for end in (its.low, its.high))}]"


def _half(column: Column, its: Summary) -> str:
    """Half of the interval, for where there is no room for its ends."""
    return "" if its.low is None or its.high is None else column.show((its.high - its.low) / 2).removesuffix(" %")


def _odd(values: Sequence[float]) -> str:
    infinite = sum(map(math.isinf, values))
    return f"infinite in {infinite} of {len(values)}" if 0 < infinite < len(values) else ""


def _is_ranked(results: Runs, label: str) -> bool:
    """Whether a model can be the best: not real data, nor noise, which has most variety."""
    return results.kind(label) != "reference" and not results.is_trivial(label)


def _mark_best(cells: Sequence[Plain], column: Column) -> None:
    """Mark the best of several models, and all that read the same."""
    finite = [cell for cell in cells if math.isfinite(cell["summary"].mean)]
    if column.better == "neither" or len({cell["text"] for cell in finite}) < 2:
        return
    of = min if column.better == "lower" else max
    best = of(finite, key=lambda cell: float(cell["summary"].mean))
    for cell in finite:
        cell["best"] = cell["text"] == best["text"]


def _tests(tests: Sequence[Test]) -> list[Plain]:
    """The tests against the baseline, by figure; without the figures that are finite for nobody."""
    groups: dict[str, list[Plain]] = {}
    for test in tests:
        if any(math.isfinite(other.difference.mean) for other in tests if other.key == test.key):
            groups.setdefault(test.key, []).append(_test(test))
    return [_heading(column_of(key)) | {"rows": rows} for key, rows in groups.items()]


def _test(test: Test) -> Plain:
    column = column_of(test.key)
    return {
        "label": test.label,
        "seeds": f"{test.n} and {test.n_baseline}",
        "difference": column.show(test.difference.mean, signed=True) or "—",
        "interval": _interval(column, test.difference, signed=True),
        "value": test.difference.mean,
        "p": _p(test.p),
        "p_holm": _p(test.p_holm),
        "p_values": (test.p, test.p_holm),
        "significant": test.significant,
    }


def _p(p: float) -> str:
    return "—" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _best_table(results: Runs) -> Plain | None:
    keys = plane_axes(results)
    rows = best_under(results)
    if keys is None or not rows:
        return None
    quality, diversity = map(column_of, keys)
    limits = list(dict.fromkeys(row.limit for row in rows))
    cells = {(row.label, row.limit): _best_cell(row, quality) for row in rows}
    labels = list(dict.fromkeys(row.label for row in rows))
    for limit in limits:
        ranked = [cell for (label, at), cell in cells.items() if at == limit and _is_ranked(results, label)]
        _mark_best([cell for cell in ranked if cell["complete"]], quality)
    return {
        "quality": quality.title,
        "diversity": diversity.title,
        "limits": [f"{limit:g}" for limit in limits],
        "rows": [{"label": label, "cells": [cells[label, limit] for limit in limits]} for label in labels],
    }


def _best_cell(row: Best, column: Column) -> Plain:
    text = column.show(row.mean) or "—"
    seeds = "" if row.n in (0, row.seeds) else f"{row.n} of {row.seeds}"
    its = Summary(row.n, row.mean, None, None)
    return {"text": text, "seeds": seeds, "summary": its, "complete": row.n == row.seeds, "best": False}


def _samples(results: Runs, label: str) -> Plain | None:
    """A model's samples of the first seed that has any, with each token's credit."""
    run = next((run for run in results.of(label) if run.samples), None)
    if run is None:
        return None
    shown = run.samples[:SAMPLES_SHOWN]
    largest = max((abs(credit) for sample in shown for credit in _credits(sample)), default=0.0) or 1.0
    told = [{key: sample.get(key) for key in ("prompt", "reward", "nearest")} for sample in shown]
    samples = [its | {"tokens": _tokens(sample, largest)} for its, sample in zip(told, shown, strict=True)]
    return {"label": label, "kind": run.kind, "seed": run.seed, "samples": samples}


def _credits(sample: Sample) -> list[float]:
    """Compute what each token added to the value."""
    values = sample.get("values") or []
    return [after - before for before, after in pairwise(values)]


def _tokens(sample: Sample, largest: float) -> list[Plain]:
    """Each token, with its credit as text and as a share of the largest, where it is known."""
    tokens: list[Plain] = [{"text": token} for token in sample["tokens"]]
    for token, credit, after in zip(tokens, _credits(sample), (sample.get("values") or [])[1:], strict=False):
        token |= {"share": round(credit / largest, 3), "credit": f"{credit:+.3f}", "value": f"{after:.3f}"}
    return tokens


def _settings(results: Runs, label: str) -> Plain:
    """Describe a model, with all its hyper-parameters."""
    runs = results.of(label)
    spec = runs[0].spec
    about = {key: spec.get(key) for key in ("words", "agent", "preset", "reward", "start", "options")}
    if controls := results.controls_of(label):
        about["controls"] = ", ".join(controls)
    settings: Plain = next((run.about["settings"] for run in runs if run.about.get("settings")), {})
    return {"label": label, "about": _texts(about), "settings": _texts(dict(_flattened(settings)))}


def _flattened(settings: Plain, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each hyper-parameter, those in groups as group.name."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flattened(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _texts(values: Plain) -> dict[str, str]:
    """Write the values that are not empty."""
    full = {key: value for key, value in values.items() if value not in (None, "", {}, [])}
    return {k: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for k, v in full.items()}


def _place(run: Run) -> Plain:
    return {"label": run.label, "seed": run.seed}


def _error(run: Run) -> Plain:
    """The whole message, and its last line, which says what it was."""
    text = (run.error or "").strip()
    return {"error": text, "last": text.rpartition("\n")[2]}


def _pairs(values: Plain | None) -> str:
    return ", ".join(f"{key} {value}" for key, value in (values or {}).items())


def _distinct(values: Iterable[Any]) -> list[str]:
    """Each of these once, but for the empty ones."""
    return list(dict.fromkeys(str(value) for value in values if value))
