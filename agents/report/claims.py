"""Verdict on one claim: an agent compared with the baseline in one metric, with the agent's controls.

A gain over the baseline is the agent's own only if the agent is also better than each of its controls, for example the
same update rule with a constant reward. If a control gains as much, the information in the reward is not needed for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from agents.report.columns import Column
from agents.report.run_files import Runs
from agents.report.statistics import Difference, Test, paired

Outcome = Literal["gain", "control", "uncontrolled", "none", "loss", "one seed"]
REAL = "real"  # label of the reference model that samples real data
_DIVERSITY = {"self_bleu4", "coverage"}  # noise improves these metrics; low diversity improves the others


class Verdict(NamedTuple):
    """Verdict on one agent and one metric."""

    label: str
    """Label of the agent."""
    baseline: str
    """Label of the model that the agent is compared with."""
    key: str
    """Key of the metric."""
    outcome: Outcome
    """"gain": better than the baseline and than every control. "control": better than the baseline, but not
    distinguishable from a control. "uncontrolled": better, but no control was run. "none": no evidence of a difference.
    "loss": worse. "one seed": fewer than two seeds in common."""
    gain: Difference
    """Paired difference to the baseline; positive is better, also for metrics where lower is better."""
    controls: tuple[tuple[str, Difference], ...]
    """Label of each control, with its own gain over the baseline."""
    rivals: tuple[str, ...]
    """Labels of the controls that the agent is not better than."""
    text: str
    """Verdict in words."""


@dataclass(frozen=True)
class Claim:
    """One agent and one metric, compared with the baseline.

    Args:
        results: All runs.
        baseline: Label of the model that the agent is compared with.
        column: Metric.
        test: Welch's test of the agent against the baseline.
        n_tests: Number of tests that Holm's correction counts.
    """

    results: Runs
    baseline: str
    column: Column
    test: Test
    n_tests: int

    @property
    def label(self) -> str:
        """Label of the agent."""
        return self.test.label

    @property
    def problem(self) -> str:
        """Reason to exclude the metric, or "". Single infinite seeds are not dropped: they would be the worst ones."""
        ours, theirs = self.values(self.label), self.values(self.baseline)
        seeds = ours.keys() | theirs.keys()
        infinite = sum(not (math.isfinite(ours.get(seed, 0)) and math.isfinite(theirs.get(seed, 0))) for seed in seeds)
        return f"not finite in {infinite} of {len(seeds)} seed{'s' * (len(seeds) != 1)}" if infinite else ""

    def values(self, label: str) -> dict[int, float]:
        """Values of the metric by seed."""
        return self.results.values(label, self.column.key)

    def gain(self, ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference:
        """Compute the paired difference of two models; positive means that the first is better."""
        return paired(theirs, ours) if self.column.better == "lower" else paired(ours, theirs)

    def verdict(self) -> Verdict:
        """Return the verdict on the claim."""
        gain = self.gain(self.values(self.label), self.values(self.baseline))
        names = [c for c in self.results.controls_of(self.label) if c != self.baseline and self.values(c)]
        controls = {c: self.gain(self.values(c), self.values(self.baseline)) for c in names}
        rivals = [c for c in names if not self.exceeds(c)]
        outcome = self.outcome(gain, rivals)
        text = self.sentence(outcome, gain, controls, rivals)
        key, items = self.column.key, tuple(controls.items())
        return Verdict(self.label, self.baseline, key, outcome, gain, items, tuple(rivals), text)

    def outcome(self, gain: Difference, rivals: Sequence[str]) -> Outcome:
        """Classify the gain over the baseline, given the controls that the agent is not better than."""
        if gain.n < 2:
            return "one seed"
        if not gain.above_zero:
            return "loss" if gain.below_zero else "none"
        return "control" if rivals else "uncontrolled" if self.missing or not self.controlled else "gain"

    @property
    def informative(self) -> list[str]:
        """Controls of the agent, without trivial ones such as uniform tokens."""
        controls = [c for c in self.results.controls_of(self.label) if c != self.baseline]
        return [c for c in controls if not self.results.is_trivial(c)]

    @property
    def controlled(self) -> bool:
        """Whether an informative control has the metric."""
        return any(self.values(control) for control in self.informative)

    @property
    def missing(self) -> list[str]:
        """Informative controls that have finished in fewer than two of the agent's seeds."""
        ours = self.values(self.label)
        done = {c: {run.seed for run in self.results.of(c) if run.finished} for c in self.informative}
        return [control for control, seeds in done.items() if len(seeds & ours.keys()) < 2]

    def exceeds(self, control: str) -> bool:
        """Whether the agent is better than a control at 95 %; False with fewer than two seeds in common."""
        ours, theirs = self.values(self.label), self.values(control)
        shared = ours.keys() & theirs.keys()
        worst = math.inf if self.column.better == "lower" else -math.inf
        rest = {seed: value for seed, value in theirs.items() if seed in shared and value != worst}
        if not rest:  # the control is infinitely worse in all seeds
            return len(shared) >= 2
        return self.gain(ours, rest).above_zero

    def sentence(
        self, outcome: Outcome, gain: Difference, controls: Mapping[str, Difference], rivals: Sequence[str]
    ) -> str:
        """Put the verdict into words."""
        if outcome == "one seed":
            return self.too_few_seeds(gain)
        if outcome == "none":
            change = -gain if self.column.better == "lower" else gain
            amount = f"{self.amount(change.mean, True)}{self.interval(change)} {self.seeds(gain.n)}"
            return f"No evidence that {self.label} changes {self.column.title}: {amount}.{self.remark()}"
        interval = self.interval(-gain if outcome == "loss" else gain)
        effect = self.effect(self.label, self.column.title, gain)
        text = f"{effect}{interval} {self.seeds(gain.n)} ({self.significance()})"
        if outcome == "loss":
            text += ", which is worse" if self.test.significant else ", which is worse but may be chance"
        elif outcome == "uncontrolled":
            text += f". {self.lack_of_controls()}, so the cause of the gain is unknown"
        elif outcome == "gain":
            conclusion = " and do not explain this gain" if self.test.significant else ", but this gain may be chance"
            text += f". Its controls gain less ({self.gains(controls, gain.n)}){conclusion}"
        else:
            text += f", but {self.gains_of_rivals(controls, rivals, gain.n)}: {self.conclusion(gain, rivals)}"
        return f"{text}.{self.remark()}"

    def lack_of_controls(self) -> str:
        """Explain why no control can be compared with."""
        if not self.missing:
            return "No control was run for its update rule"
        names = join_words([self.words(control) for control in self.missing])
        return f"Its control{'s' * (len(self.missing) > 1)} ({names}) did not finish"

    def conclusion(self, gain: Difference, rivals: Sequence[str]) -> str:
        """Conclude from the controls that the agent is not better than."""
        ours = self.values(self.label)
        leads = [self.gain(ours, self.values(control)) for control in rivals]
        if any(lead.below_zero for lead in leads):
            return "a control is better, so there is no evidence that the gain is its own"
        if any(not lead.mean > gain.mean / 2 for lead in leads):  # a control has half of the gain or more
            return "there is no evidence that the gain is its own"
        return "there is not enough evidence that the gain is its own"

    def too_few_seeds(self, gain: Difference) -> str:
        """Describe the difference of one seed, or say that there is none to describe."""
        if not gain.n:
            return (
                f"{self.label} and {self.baseline} have no seed in common with {self.column.title}: "
                "they cannot be compared."
            )
        effect = self.effect(self.label, self.column.title, gain)
        return f"{effect} in one seed; at least two seeds are needed for a confidence interval."

    def effect(self, name: str, what: str, gain: Difference) -> str:
        """Describe a model's change of a metric, without its interval."""
        if gain.mean == 0:
            return f"{name} does not change {what}"
        if math.isnan(gain.mean):
            return f"{name} has no value of {what}"
        verb = "lowers" if (gain.mean > 0) == (self.column.better == "lower") else "raises"
        if math.isinf(gain.mean):
            return f"{name} {verb} {what} infinitely"
        return f"{name} {verb} {what} by {self.amount(abs(gain.mean))}"

    def gains(self, controls: Mapping[str, Difference], n: int) -> str:
        """List controls with their own gains over the baseline."""
        parts = []
        for name, gain in controls.items():
            amount = self.plain(gain.mean) if math.isfinite(gain.mean) else "infinitely worse"
            amount += "" if gain.n == n else f" {self.seeds(gain.n)}"
            parts.append(f"{self.words(name)}: {amount if gain.n else f'no seed in common with {self.baseline}'}")
        return ", ".join(parts)

    def gains_of_rivals(self, controls: Mapping[str, Difference], rivals: Sequence[str], n: int) -> str:
        """Describe the gains of the controls that the agent is not better than, the best of them first."""
        leads = {name: self.gain(self.values(self.label), self.values(name)) for name in rivals}
        best, *others = sorted(rivals, key=lambda name: (math.isnan(leads[name].mean), leads[name].mean))
        gain, lead = controls[best], leads[best]
        text = self.effect(self.words(best), "it", gain) + ("" if gain.n == n else f" {self.seeds(gain.n)}")
        if not gain.n:
            text = f"{self.words(best)} has no seed in common with {self.baseline}"
        same = [name for name in others if gain.mean > 0 and controls[name].mean > 0]
        also = [f"{self.words(name)} ({self.plain(controls[name].mean)})" for name in same]
        text += f", and so {'does' if len(also) == 1 else 'do'} {join_words(also)}" if also else ""
        rest = [self.words(name) for name in others if name not in same]
        text += f"; {join_words(rest)} cannot be distinguished from {self.label} either" if rest else ""
        if lead.n < 2:
            return f"{text}, with {'only one seed' if lead.n else 'no seed'} in common with {self.label}"
        if lead.low is None:
            return text
        size, extent = ("smaller", -lead) if lead.mean < 0 else ("larger", lead)
        return f"{text}; the gain of {self.label} is {size} by {self.plain(extent.mean)}{self.interval(extent)}"

    def significance(self) -> str:
        """Describe the corrected p-value."""
        p = self.test.p_holm
        if math.isnan(p):
            return "Welch's test is not applicable"
        tests = f"{self.n_tests} test{'s' * (self.n_tests != 1)}"
        return f"Welch {_p(p)} after Holm correction for {tests}{'' if self.test.significant else ', not significant'}"

    def remark(self) -> str:
        """Warn of an agent that exceeds real data; not for the reward, which the agent was to raise."""
        if self.column.key == "reward":
            return ""
        results, ours = self.results, self.values(self.label)
        if REAL not in results.labels or results.kind(REAL) != "reference":
            return ""
        real = self.values(REAL)
        alone = dict.fromkeys(ours, next(iter(real.values()))) if len(real) == 1 else real
        if not self.gain(ours, alone).above_zero:
            return ""
        mean = self.show(sum(real.values()) / len(real))
        cause = "unrealistic samples" if self.column.key in _DIVERSITY else "low diversity"
        return f" Real data have {mean}; a value beyond it is a sign of {cause}, not of quality."

    def words(self, label: str) -> str:
        """Name of a model in sentences."""
        return describe(self.results, label)

    def seeds(self, n: int) -> str:
        """Number of seeds, and of how many if some are missing."""
        total = len(self.results.seeds)
        if n == total:
            return f"over {n} seed{'s' * (n != 1)}"
        return f"over {n} of {total} seeds"

    def interval(self, gain: Difference) -> str:
        """Format the interval in brackets; "" without one."""
        if gain.low is None or gain.high is None:
            return ""
        return f" [{self.plain(gain.low)}, {self.plain(gain.high)}]"

    def amount(self, value: float, signed: bool = False) -> str:
        """Format a difference; a difference of shares is in percentage points."""
        text = self.show(value, signed)
        return f"{text.removesuffix(' %')} percentage points" if text.endswith(" %") else text

    def plain(self, value: float) -> str:
        """Format a value without its unit."""
        return self.show(value).removesuffix(" %")

    def show(self, value: float, signed: bool = False) -> str:
        """Format a value, with no minus before a zero."""
        text = self.column.show(value, signed)
        return text if any(digit in text for digit in "123456789inf") else text.replace("-", "+" if signed else "")


def _p(p: float) -> str:
    """Format a p-value.

    >>> _p(0.0312), _p(0.00004)
    ('p = 0.031', 'p < 0.001')
    """
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def describe(results: Runs, label: str) -> str:
    """Name of a model in sentences, for example "a constant reward"."""
    return str(results.of(label)[0].spec.get("words") or label)


def join_words(words: Sequence[str], conjunction: str = "and") -> str:
    """Join words by commas and a conjunction.

    >>> join_words(["a", "b", "c"]), join_words(["a", "b"], "or"), join_words(["a"])
    ('a, b and c', 'a or b', 'a')
    """
    return f" {conjunction} ".join([*([", ".join(words[:-1])] if len(words) > 1 else []), *words[-1:]])
