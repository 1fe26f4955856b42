"""One claim of a comparison: an agent against the baseline in one figure, judged and put into words.

A gain is an agent's own only if the controls that were run for it do not have it: an agent with a reward that means
nothing, whose success would show that something else did it. What cannot be told from a control is not a gain.
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
REAL = "real"  # the reference that is the data themselves
_SPREAD = {"self_bleu4", "coverage"}  # figures that noise betters; the others are bettered by saying less


class Verdict(NamedTuple):
    """The verdict on one agent in one figure."""

    label: str
    """The agent."""
    baseline: str
    """The model that it is measured against."""
    key: str
    """The figure's key."""
    outcome: Outcome
    """"control": better, but a control does as well; "uncontrolled": better, and no control was run."""
    gain: Difference
    """Over the baseline; positive is better, whichever way the figure runs."""
    controls: tuple[tuple[str, Difference], ...]
    """Each control's own gain over the baseline; positive is better."""
    text: str
    """The sentence."""


@dataclass(frozen=True)
class Claim:
    """One agent and one figure, about to be judged."""

    results: Runs
    baseline: str
    column: Column
    test: Test
    family: int  # how many comparisons are corrected together

    @property
    def label(self) -> str:
        """The agent."""
        return self.test.label

    @property
    def trouble(self) -> str:
        """Reason why nothing can be said; infinities are not left out, because they would be the worst seeds."""
        ours, theirs = self.values(self.label), self.values(self.baseline)
        seeds = ours.keys() | theirs.keys()
        odd = sum(not (math.isfinite(ours.get(seed, 0)) and math.isfinite(theirs.get(seed, 0))) for seed in seeds)
        return f"not finite in {odd} of {len(seeds)} seed{'s' * (len(seeds) != 1)}" if odd else ""

    def values(self, label: str) -> dict[int, float]:
        """A model's values of the figure, by seed."""
        return self.results.values(label, self.column.key)

    def gain(self, ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference:
        """Compute how much better some values are than others; positive is better."""
        return paired(theirs, ours) if self.column.better == "lower" else paired(ours, theirs)

    def verdict(self) -> Verdict:
        """Judge the claim."""
        gain = self.gain(self.values(self.label), self.values(self.baseline))
        names = [c for c in self.results.controls_of(self.label) if c != self.baseline and self.values(c)]
        controls = {c: self.gain(self.values(c), self.values(self.baseline)) for c in names}
        rivals = [c for c in names if not self.beats(c)]
        outcome = self.outcome(gain, rivals)
        text = self.sentence(outcome, gain, controls, rivals)
        return Verdict(self.label, self.baseline, self.column.key, outcome, gain, tuple(controls.items()), text)

    def outcome(self, gain: Difference, rivals: Sequence[str]) -> Outcome:
        """Decide what the gain over the baseline shows, given the controls that do as well."""
        if gain.n < 2:
            return "one seed"
        if not gain.above_zero:
            return "loss" if gain.below_zero else "none"
        return "control" if rivals else "uncontrolled" if self.missing or not self.tested else "gain"

    @property
    def telling(self) -> list[str]:
        """Controls of the agent, without the trivial ones."""
        controls = [c for c in self.results.controls_of(self.label) if c != self.baseline]
        return [c for c in controls if not self.results.is_trivial(c)]

    @property
    def tested(self) -> bool:
        """Whether a telling control has the figure."""
        return any(self.values(control) for control in self.telling)

    @property
    def missing(self) -> list[str]:
        """Telling controls that failed, or have not finished, in all seeds but one."""
        ours = self.values(self.label)
        done = {c: {run.seed for run in self.results.of(c) if run.finished} for c in self.telling}
        return [control for control, seeds in done.items() if len(seeds & ours.keys()) < 2]

    def beats(self, control: str) -> bool:
        """Whether it is surely better than a control; with fewer than two seeds in common, it is not."""
        ours, theirs = self.values(self.label), self.values(control)
        shared = ours.keys() & theirs.keys()
        worst = math.inf if self.column.better == "lower" else -math.inf
        rest = {seed: value for seed, value in theirs.items() if seed in shared and value != worst}
        if not rest:  # infinitely worse in all of them
            return len(shared) >= 2
        return self.gain(ours, rest).above_zero

    def sentence(
        self, outcome: Outcome, gain: Difference, controls: Mapping[str, Difference], rivals: Sequence[str]
    ) -> str:
        """Put the verdict into words."""
        if outcome == "one seed":
            return self.too_few(gain)
        if outcome == "none":
            change = -gain if self.column.better == "lower" else gain
            amount = f"{self.show(change.mean, True)}{self.interval(change)} {self.seeds(gain.n)}"
            return f"no evidence that {self.label} changes {self.column.title}: {amount}.{self.remark()}"
        size = self.interval(-gain if outcome == "loss" else gain)
        text = f"{self.effect(self.label, self.column.title, gain)}{size} {self.seeds(gain.n)}{self.correction()}"
        if outcome == "loss":
            text += ", which is worse" if self.test.significant else ", which is perhaps worse"
        elif outcome == "uncontrolled":
            why = "no control of its way of learning was run"
            if self.missing:
                why = f"{join_words([self.words(c) for c in self.missing])} did not finish, to compare with"
            text += f"; {why}: what did it is not known"
        elif outcome == "gain":
            own = "a gain of its own" if self.test.significant else "perhaps a gain of its own"
            text += f"; and more than its controls ({self.beaten(controls, gain.n)}): {own}"
        else:
            text += f"; {self.rivals(controls, rivals, gain.n)}: {self.conclusion(gain, rivals)}"
        return f"{text}.{self.remark()}"

    def conclusion(self, gain: Difference, rivals: Sequence[str]) -> str:
        """Conclude from the control that comes nearest, or further."""
        ours = self.values(self.label)
        leads = [self.gain(ours, self.values(control)) for control in rivals]
        if any(lead.below_zero for lead in leads):
            return f"less than without any information, and no evidence that this is {self.label}'s own doing"
        if any(not lead.mean > gain.mean / 2 for lead in leads):  # most of it is a control's too
            return f"no evidence that this is {self.label}'s own doing"
        return f"not enough to tell that this is {self.label}'s own doing"

    def too_few(self, gain: Difference) -> str:
        """Say what can be said with fewer than two seeds."""
        if not gain.n:
            return f"{self.label} and {self.baseline} have {self.column.title} in no common seed: nothing can be said."
        return f"in one seed {self.effect(self.label, self.column.title, gain)}: one seed says nothing about chance."

    def effect(self, name: str, what: str, gain: Difference) -> str:
        """Say what a model does to a figure, without interval."""
        if gain.mean == 0:
            return f"{name} does not change {what}"
        if math.isnan(gain.mean):
            return f"{name} gives no number for {what}"
        lowers = (gain.mean > 0) == (self.column.better == "lower")
        if math.isinf(gain.mean):
            return f"{name} {'lowers' if lowers else 'raises'} {what} without bound"
        return f"{name} {'lowers' if lowers else 'raises'} {what} by {self.show(abs(gain.mean))}"

    def beaten(self, controls: Mapping[str, Difference], n: int) -> str:
        """Name the controls that an agent is better than, with their own gains."""
        parts = []
        for name, gain in controls.items():
            amount = self.show(gain.mean) if math.isfinite(gain.mean) else "infinitely worse"
            amount += "" if gain.n == n else f" {self.seeds(gain.n)}"
            parts.append(f"{self.words(name)} {amount if gain.n else f'in no seed of {self.baseline}'}")
        return ", ".join(parts)

    def rivals(self, controls: Mapping[str, Difference], rivals: Sequence[str], n: int) -> str:
        """Name the control that does as well, the best of them if several do, and the others."""
        leads = {name: self.gain(self.values(self.label), self.values(name)) for name in rivals}
        best, *others = sorted(rivals, key=lambda name: (math.isnan(leads[name].mean), leads[name].mean))
        gain, lead = controls[best], leads[best]
        text = self.effect(self.words(best), "it", gain) + ("" if gain.n == n else f" {self.seeds(gain.n)}")
        if not gain.n:
            text = f"{self.words(best)} has no seed in common with {self.baseline}"
        same = [name for name in others if gain.mean > 0 and controls[name].mean > 0]
        too = [f"{self.words(name)} ({self.show(controls[name].mean)})" for name in same]
        text += f", so {'does' if len(too) == 1 else 'do'} {join_words(too)}" if too else ""
        rest = [self.words(name) for name in others if name not in same]
        text += f", {join_words(rest)} cannot be told from {self.label} either" if rest else ""
        if lead.n < 2:
            return f"{text}, with {'one seed' if lead.n else 'no seed'} to compare"
        return f"{text}, which leaves {self.show(lead.mean)}{self.interval(lead)}" if lead.low is not None else text

    def correction(self) -> str:
        """Say what is left of the claim when all comparisons are counted."""
        p = self.test.p_holm
        if math.isnan(p):
            return " (Welch's test does not apply)"
        fails = "" if self.test.significant else ": it does not survive the correction"
        return f" (Welch {_p(p)} after Holm over {self.family} comparison{'s' * (self.family != 1)}{fails})"

    def remark(self) -> str:
        """Remark on an agent that is better than real data, unless it is a reward that was to be raised."""
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
        sign = "straying from them" if self.column.key in _SPREAD else "saying less"
        amount = f"only {mean}" if self.column.better == "higher" else f"as much as {mean}"
        return f" Real data have {amount}: going beyond the data is a sign of {sign}, not of writing better."

    def words(self, label: str) -> str:
        """Name of a model in sentences."""
        return str(self.results.of(label)[0].spec.get("words") or label)

    def seeds(self, n: int) -> str:
        """Say over how many seeds, and of how many."""
        total = len(self.results.seeds)
        if n == total:
            return f"over {n} seed{'s' * (n != 1)}"
        return f"over {n} of {total} seeds"

    def interval(self, gain: Difference) -> str:
        """Write the interval in brackets, if there is one."""
        if gain.low is None or gain.high is None:
            return ""
        return f" [{self.show(gain.low)}, {self.show(gain.high)}]"

    def show(self, value: float, signed: bool = False) -> str:
        """Write a value, and zero without a minus."""
        text = self.column.show(value, signed)
        return text if any(digit in text for digit in "123456789inf") else text.replace("-", "+" if signed else "")


def _p(p: float) -> str:
    """Write a p-value.

    >>> _p(0.0312), _p(0.00004)
    ('p = 0.031', 'p < 0.001')
    """
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def join_words(words: Sequence[str]) -> str:
    """Join words by commas and "and".

    >>> join_words(["a", "b", "c"]), join_words(["a"])
    ('a, b and c', 'a')
    """
    return " and ".join([*([", ".join(words[:-1])] if len(words) > 1 else []), *words[-1:]])
