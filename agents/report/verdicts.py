"""What a comparison shows, in words: which agent does better than the baseline, and whether a control does as well.

The number of seeds stands in every sentence, "3 of 5" where some are missing. The sentences rest on paired differences,
each at 95 %; each that claims something also says what is left of it when all comparisons are counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from agents.report.claims import Claim, Verdict, join_words
from agents.report.columns import column_of
from agents.report.run_files import Runs
from agents.report.statistics import Test, against


class Skipped(NamedTuple):
    """A figure of which nothing is said."""

    label: str
    """The agent."""
    key: str
    """The figure's key."""
    reason: str
    """Why: where a figure is infinite, there is no difference to measure."""


def verdicts(results: Runs) -> list[Verdict]:
    """A verdict on every agent but the baseline, in every headline figure that both have."""
    return [claim.verdict() for claim in _claims(results) if not claim.trouble]


def skipped(results: Runs) -> list[Skipped]:
    """The figures that would have had a verdict, were they finite."""
    return [Skipped(claim.label, claim.column.key, claim.trouble) for claim in _claims(results) if claim.trouble]


def summaries(results: Runs) -> list[str]:
    """A line for every agent but the baseline, and one for the seeds that are missing."""
    agents = [label for label in results.labels if results.kind(label) == "agent" and label != results.baseline]
    said, left_out = verdicts(results), skipped(results)
    lines = []
    strong = {(test.label, test.key) for test in _tests(results) if test.significant}
    for label in agents:
        its = [verdict for verdict in said if verdict.label == label]
        without = _by_reason([s for s in left_out if s.label == label])
        also = f"; left out: {without}" if without else ""
        lines.append(f"{label}{_origin(results, label)} against {results.baseline}: {_count(its, strong)}{also}.")
    if len(results.seeds) == 2 and agents:
        lines.append("Two seeds show next to nothing about chance; five are a beginning.")
    return [*lines, *missing_seeds(results)]


def missing_seeds(results: Runs) -> list[str]:
    """Name the seeds without results, in one line; no line if there are none."""
    missing = _missing(results)
    return [f"Missing: {'; '.join(missing)}."] if missing else []


def _origin(results: Runs, label: str) -> str:
    """Say what an agent began with."""
    begun = results.begins_with(label)
    return f" (from {begun})" if begun else ""


def _by_reason(left_out: Sequence[Skipped]) -> str:
    """The figures of which nothing is said, and why."""
    reasons = list(dict.fromkeys(s.reason for s in left_out))
    groups = {reason: [column_of(s.key).title for s in left_out if s.reason == reason] for reason in reasons}
    return "; ".join(f"{join_words(titles)} ({reason})" for reason, titles in groups.items())


def _count(its: Sequence[Verdict], strong: set[tuple[str, str]]) -> str:
    """An agent's verdicts, each counted once; those that do not survive the correction stand apart."""
    by: dict[str, list[str]] = {}
    weak: dict[str, list[str]] = {}
    for verdict in its:
        differs = verdict.gain.above_zero or verdict.gain.below_zero
        title = column_of(verdict.key).title
        if differs and (verdict.label, verdict.key) not in strong:
            weak.setdefault("worse" if verdict.outcome == "loss" else "better", []).append(title)
        else:
            by.setdefault(verdict.outcome, []).append(title)
    n = {outcome: len(titles) for outcome, titles in by.items()}
    judged = len(its) - n.get("one seed", 0)
    if not judged:
        return "fewer than two seeds in common, which says nothing about chance" if its else "no figures to compare"
    better = sum(n.get(outcome, 0) for outcome in ("gain", "control", "uncontrolled"))
    text = f"better on {better} of {judged} figure{'s' * (judged != 1)}"
    text += f", of which {n['control']} cannot be told from a control's" if "control" in n else ""
    text += f", of which no control was run on {n['uncontrolled']}" if "uncontrolled" in n else ""
    text += f"; worse on {n.get('loss', 0)}"
    text += f"; fewer than two seeds in common on {n['one seed']}" if "one seed" in n else ""
    text += f"; more than its controls on {join_words(by['gain'])}" if "gain" in by else ""
    for how, titles in sorted(weak.items()):
        text += f"; {how}, but not after the correction for all comparisons: {join_words(titles)}"
    return text


def _missing(results: Runs) -> list[str]:
    """Each agent's and control's seeds without results, and why."""
    found = []
    for label in results.labels:
        runs = {run.seed: run for run in results.of(label)}
        due = list(runs) if results.kind(label) == "reference" else results.seeds
        state = {
            "failed": [s for s in due if s in runs and not runs[s].finished and runs[s].error is not None],
            "unfinished": [s for s in due if s in runs and not runs[s].finished and runs[s].error is None],
            "not run": [s for s in due if s not in runs],
        }
        for why, seeds in state.items():
            if seeds:
                found.append(f"{label}, seed{'s' * (len(seeds) != 1)} {join_words([str(s) for s in seeds])} ({why})")
    return found


def _tests(results: Runs) -> list[Test]:
    return [] if results.baseline is None else against(results, results.baseline)


def _claims(results: Runs) -> Iterator[Claim]:
    """Yield what there is to judge."""
    tests = _tests(results)
    family = sum(not math.isnan(test.p) for test in tests)
    for test in tests:
        if results.kind(test.label) == "agent" and column_of(test.key).better != "neither":
            yield Claim(results, str(results.baseline), column_of(test.key), test, family)
