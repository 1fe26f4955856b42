"""How sure a comparison can be of a difference, given how few seeds there are.

Two things are settled here, and not left to whoever reads a table:

- No number stands without its number of seeds. A figure, a difference and a test each carry theirs; seeds that failed
  are never filled in, and fewer than two seeds, or a figure that is infinite, give no interval instead of a wide one.
- Every comparison counts. Who asks forty questions at the level of 5 % gets two answers by chance; so the p-values of
  all models, controls included, and all headline figures are corrected together, by Holm's method, which assumes
  nothing about how the figures depend on one another. Intervals are not corrected: each is what it is of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from agents.report.run_files import Runs
from text_gym.errors import OptionError
from text_gym.validation import suggest

RESAMPLES = 9_999
SIGNIFICANT = 0.05
_ROUNDING = 1e-12  # figures nearer than this share of their size differ by rounding alone


class Summary(NamedTuple):
    """A figure over seeds."""

    n: int
    """The number of seeds."""
    mean: float
    """Their mean; nan if there is none."""
    low: float | None
    """Lower end of the interval, if there is one."""
    high: float | None
    """Upper end of the interval."""


class Difference(NamedTuple):
    """A difference of two models over the seeds that both have."""

    n: int
    """The number of those seeds."""
    mean: float
    """The mean difference; nan if there is none."""
    low: float | None
    """Lower end of the interval, if there is one."""
    high: float | None
    """Upper end of the interval."""

    @property
    def above_zero(self) -> bool:
        """Whether all of the interval is above zero."""
        return self.low is not None and self.low > 0

    @property
    def below_zero(self) -> bool:
        """Whether all of the interval is below zero."""
        return self.high is not None and self.high < 0

    def __neg__(self) -> Difference:
        """Return the difference as the other model sees it."""
        low, high = (None if bound is None else -bound for bound in (self.high, self.low))
        return Difference(self.n, -self.mean, low, high)


class Test(NamedTuple):
    """One model against the baseline in one figure."""

    label: str
    """The model."""
    key: str
    """The figure's key."""
    n: int
    """The model's seeds."""
    n_baseline: int
    """The baseline's seeds."""
    difference: Difference
    """The model's figure less the baseline's, over the seeds that both have."""
    p: float
    """p-value of Welch's test, two-sided."""
    p_holm: float
    """p-value corrected for all comparisons of the report."""

    @property
    def significant(self) -> bool:
        """Whether it is significant after the correction."""
        return self.p_holm < SIGNIFICANT


Test.__test__ = False  # type: ignore[attr-defined]  # pytest takes classes of this name for its own


def summarize(values: Sequence[float], level: float = 0.95) -> Summary:
    """Mean and percentile bootstrap interval over seeds, for tables and charts.

    It shows how far seeds scatter, and always lies within what was seen. Claims rest on `paired`, not on this.

    >>> summarize([1.0, 1.0]), summarize([2.0])
    (Summary(n=2, mean=1.0, low=1.0, high=1.0), Summary(n=1, mean=2.0, low=None, high=None))
    """
    _check(level)
    n = len(values)
    if n < 2 or not _finite(values):
        return Summary(n, _mean(values), None, None)
    mean, spread = _moments(values)
    if spread == 0:
        return Summary(n, mean, mean, mean)
    found = stats.bootstrap(
        (np.asarray(values, float),),
        np.mean,
        n_resamples=RESAMPLES,
        vectorized=True,
        confidence_level=level,
        method="percentile",
        random_state=np.random.default_rng(0),  # the same numbers give the same report
    ).confidence_interval
    return Summary(n, mean, float(found.low), float(found.high))


def paired(a: Mapping[int, float], b: Mapping[int, float], level: float = 0.95) -> Difference:
    """The mean of a - b over the seeds that both have, with Student's t interval.

    By seed, because all models of a seed begin with the same pretrained model: what that one happens to be like
    cancels. Student's t and no bootstrap, because verdicts rest on this: of so few seeds a percentile bootstrap
    interval is too narrow. On normal values an interval of 95 % holds the truth, by measurement, in:

        seeds   Student's t   percentile bootstrap
            3      95.1 %                 75.1 %
            5      94.7 %                 83.5 %
           10      94.9 %                 90.0 %

    >>> paired({0: 2.0, 1: 3.0, 2: 9.0}, {0: 1.5, 1: 2.5})
    Difference(n=2, mean=0.5, low=0.5, high=0.5)
    """
    _check(level)
    gaps = [_gap(a[seed], b[seed]) for seed in sorted(a.keys() & b.keys())]
    n = len(gaps)
    if n < 2 or not _finite(gaps):
        return Difference(n, _mean(gaps), None, None)
    mean, spread = _moments(gaps)
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * spread / math.sqrt(n)
    return Difference(n, mean, mean - half, mean + half)


def welch(a: Sequence[float], b: Sequence[float]) -> float:
    """Two-sided p of Welch's t-test: models differ in spread too, and need not have the same seeds.

    nan where there is nothing to test: fewer than two values, values that are not finite, or two models without any
    spread and different means. There t would be infinite and p zero, a certainty that no handful of seeds can give.
    Two models without spread and with the same mean have p = 1.

    >>> welch([1.0, 2.0], [1.0, 2.0]), welch([1.0], [1.0, 2.0])
    (1.0, nan)
    """
    if min(len(a), len(b)) < 2 or not _finite([*a, *b]):
        return math.nan
    (mean_a, spread_a), (mean_b, spread_b) = _moments(a), _moments(b)
    if spread_a == 0 and spread_b == 0:
        return 1.0 if _gap(mean_a, mean_b) == 0 else math.nan
    # from means and spreads, because ttest_ind warns of values that are nearly equal
    test = stats.ttest_ind_from_stats(mean_a, spread_a, len(a), mean_b, spread_b, len(b), equal_var=False)
    return float(test.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given; nan stay nan and do not count.

    Below 0.05 are those that may all be called significant with at most 5 % risk of even one false among them.

    >>> holm([0.25, 0.5, float("nan"), 0.125])
    [0.5, 0.5, nan, 0.375]
    """
    ordered = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    adjusted = [math.nan] * len(p_values)
    so_far = 0.0
    for rank, (p, i) in enumerate(ordered):
        so_far = max(so_far, min(1.0, (len(ordered) - rank) * p))
        adjusted[i] = so_far
    return adjusted


def against(results: Runs, baseline: str) -> list[Test]:
    """Every other agent and control against the baseline, in every headline figure that can be better and both have.

    Two figures that differ by a constant of the task are one test. Holm's correction is over all tests together.
    """
    if baseline not in results.labels:
        raise OptionError(f"no model {baseline!r} in these results." + suggest(baseline, results.labels))
    tests = []
    for label in results.labels:
        if label == baseline or results.kind(label) == "reference":
            continue
        in_both = {c.key for c in results.columns if all(results.values(model, c.key) for model in (label, baseline))}
        for column in results.columns:
            if column.key not in in_both or column.same_as in in_both:
                continue
            if column.headline and column.better != "neither":
                mine, other = results.values(label, column.key), results.values(baseline, column.key)
                p = welch(list(mine.values()), list(other.values()))
                tests.append(Test(label, column.key, len(mine), len(other), paired(mine, other), p, math.nan))
    corrected = holm([test.p for test in tests])
    return [test._replace(p_holm=p) for test, p in zip(tests, corrected, strict=True)]


def _check(level: float) -> None:
    if not 0 < level < 1:
        raise OptionError(f"level must be between 0 and 1, such as 0.95, not {level!r}")


def _finite(values: Sequence[float]) -> bool:
    return all(map(math.isfinite, values))


def _mean(values: Sequence[float]) -> float:
    """Without numpy's warnings about nothing and about infinities."""
    return float(sum(values) / len(values)) if values else math.nan


def _gap(a: float, b: float) -> float:
    """The difference; rounding alone counts as none, or two equal models would "differ" in every seed."""
    return 0.0 if math.isfinite(a) and math.isclose(a, b, rel_tol=_ROUNDING) else a - b


def _moments(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation; of values that are equal but for rounding, the first and zero."""
    if _gap(min(values), max(values)) == 0:
        return float(values[0]), 0.0
    return float(np.mean(values)), float(np.std(values, ddof=1))
