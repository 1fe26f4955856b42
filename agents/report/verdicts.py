"""Verdicts of a comparison in words: which agents are better than the baseline, and whether a control is too.

Verdicts rest on paired differences over seeds with 95 % intervals. Each verdict states the number of seeds ("3 of 5" if
some are missing) and, for a difference, its p-value after the correction for all tests of the report.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from agents.report.claims import Claim, Verdict, describe, join_words
from agents.report.columns import column_of
from agents.report.run_files import Runs
from agents.report.statistics import Test, against


class Skipped(NamedTuple):
    """Metric of an agent that is excluded from the verdicts."""

    label: str
    """Label of the agent."""
    key: str
    """Key of the metric."""
    reason: str
    """Reason: in how many seeds the metric is not finite."""


def verdicts(results: Runs) -> list[Verdict]:
    """Return a verdict for each agent but the baseline, in each headline metric that both have."""
    return [claim.verdict() for claim in _claims(results) if not claim.problem]


def skipped(results: Runs) -> list[Skipped]:
    """List the metrics that have no verdict because they are not finite in all seeds."""
    return [Skipped(claim.label, claim.column.key, claim.problem) for claim in _claims(results) if claim.problem]


def summaries(results: Runs) -> list[str]:
    """Summarize the verdicts: a paragraph for each agent but the baseline, and one for missing runs."""
    agents = [label for label in results.labels if results.kind(label) == "agent" and label != results.baseline]
    all_verdicts, excluded = verdicts(results), skipped(results)
    significant = {(test.label, test.key) for test in _tests(results) if test.significant}
    lines = []
    for label in agents:
        text = _summary(results, label, [v for v in all_verdicts if v.label == label], significant)
        reasons = _by_reason([s for s in excluded if s.label == label])
        lines.append(text + (f" Excluded: {reasons}." if reasons else ""))
    if len(results.seeds) == 2 and agents:
        lines.append("Two seeds are too few to separate an effect from chance; use at least five.")
    return [*lines, *missing_seeds(results)]


def missing_seeds(results: Runs) -> list[str]:
    """Name the runs without results in one sentence; an empty list if there are none."""
    missing = _missing(results)
    return [f"Missing runs: {'; '.join(missing)}."] if missing else []


def _by_reason(excluded: Sequence[Skipped]) -> str:
    """List excluded metrics, grouped by the reason."""
    reasons = list(dict.fromkeys(s.reason for s in excluded))
    groups = {reason: [column_of(s.key).title for s in excluded if s.reason == reason] for reason in reasons}
    return "; ".join(f"{join_words(titles)} ({reason})" for reason, titles in groups.items())


def _summary(results: Runs, label: str, found: Sequence[Verdict], significant: set[tuple[str, str]]) -> str:
    """Summarize an agent's verdicts; differences that are not significant after the correction are listed apart."""
    titles: dict[str, list[str]] = {}
    weak: dict[str, list[str]] = {}
    for verdict in found:
        differs = verdict.gain.above_zero or verdict.gain.below_zero
        title = column_of(verdict.key).title
        if differs and (verdict.label, verdict.key) not in significant:
            weak.setdefault("worse" if verdict.outcome == "loss" else "better", []).append(title)
        else:
            titles.setdefault(verdict.outcome, []).append(title)
    one_seed = titles.get("one seed", [])
    compared = len(found) - len(one_seed)
    model, other = _models(results, label)
    if not found:
        return f"{model} and {other} have no metrics to compare."
    if not compared:
        return f"{model} and {other} have fewer than two seeds in common, too few to separate an effect from chance."
    better = sum(len(titles.get(outcome, [])) for outcome in ("gain", "control", "uncontrolled"))
    worse = titles.get("loss", [])
    metrics = f"{compared} metric{'s' * (compared != 1)}"
    if better or worse:
        text = (
            f"{model} is better than {other} on {better} of {metrics} and worse on {len(worse)}{_in_brackets(worse)}."
        )
    else:
        text = f"There is no significant difference between {model} and {other} on {metrics}."
    if "gain" in titles:
        text += f" It is also better than all its controls on {join_words(titles['gain'])}."
    if "control" in titles:
        certain = [v for v in found if v.outcome == "control" and (v.label, v.key) in significant]
        rivals = dict.fromkeys(rival for verdict in certain for rival in verdict.rivals)
        controls = join_words([describe(results, rival) for rival in rivals], "or")
        text += f" The gain on {join_words(titles['control'])} may not be its own: {controls} is better, or cannot be"
        text += " distinguished from it."
    if "uncontrolled" in titles:
        names = join_words(titles["uncontrolled"])
        text += f" The gain on {names} may not be its own: no control was run, or a control did not finish."
    if one_seed:
        text += f" Fewer than two seeds in common: {join_words(one_seed)}."
    if weak:
        parts = [f"{direction} on {join_words(names)}" for direction, names in sorted(weak.items())]
        text += f" Not significant after the correction for all tests: {', '.join(parts)}."
    return text


def _models(results: Runs, label: str) -> tuple[str, str]:
    """Name an agent and the baseline, with the agent's initial policy."""
    initial, baseline = results.begins_with(label), str(results.baseline)
    if initial == baseline:
        return label, f"its warm start {baseline}"
    return label + (f" (initial policy: {initial})" if initial else ""), baseline


def _in_brackets(titles: Sequence[str]) -> str:
    return f" ({join_words(titles)})" if titles else ""


def _missing(results: Runs) -> list[str]:
    """List each model's seeds without results, with the reason."""
    found = []
    for label in results.labels:
        runs = {run.seed: run for run in results.of(label)}
        expected = list(runs) if results.kind(label) == "reference" else results.seeds
        reasons = {
            "failed": [s for s in expected if s in runs and not runs[s].finished and runs[s].error is not None],
            "unfinished": [s for s in expected if s in runs and not runs[s].finished and runs[s].error is None],
            "not run": [s for s in expected if s not in runs],
        }
        for reason, seeds in reasons.items():
            if seeds:
                names = join_words([str(seed) for seed in seeds])
                found.append(f"{label}, seed{'s' * (len(seeds) != 1)} {names} ({reason})")
    return found


def _tests(results: Runs) -> list[Test]:
    return [] if results.baseline is None else against(results, results.baseline)


def _claims(results: Runs) -> Iterator[Claim]:
    """Yield a claim for each test of an agent."""
    tests = _tests(results)
    n_tests = sum(not math.isnan(test.p) for test in tests)
    for test in tests:
        if results.kind(test.label) == "agent" and column_of(test.key).better != "neither":
            yield Claim(results, str(results.baseline), column_of(test.key), test, n_tests)
