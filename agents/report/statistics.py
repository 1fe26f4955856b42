"""Confidence intervals and significance tests over few seeds.

- Every summary, difference and test has its number of seeds. Failed seeds are not replaced. There is no interval for
  fewer than two seeds or for infinite values.
- The p-values of all tests of a report are corrected together: all agents and controls, all headline metrics. Holm's
  method makes no assumption about the dependence between metrics. Intervals are not corrected.
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
_ROUNDING = 1e-12  # relative difference of values that are equal up to rounding


class Summary(NamedTuple):
    """Mean of a metric over seeds, with its interval."""

    n: int
    """Number of seeds."""
    mean: float
    """Mean over seeds; nan without seeds."""
    low: float | None
    """Lower bound of the interval; None without an interval."""
    high: float | None
    """Upper bound of the interval; None without an interval."""


class Difference(NamedTuple):
    """Mean paired difference of two models over the seeds that both have, with its interval."""

    n: int
    """Number of seeds in common."""
    mean: float
    """Mean difference; nan without seeds in common."""
    low: float | None
    """Lower bound of the interval; None without an interval."""
    high: float | None
    """Upper bound of the interval; None without an interval."""

    @property
    def above_zero(self) -> bool:
        """Whether the whole interval is above zero."""
        return self.low is not None and self.low > 0

    @property
    def below_zero(self) -> bool:
        """Whether the whole interval is below zero."""
        return self.high is not None and self.high < 0

    def __neg__(self) -> Difference:
        """Return the difference with the two models exchanged."""
        low, high = (None if bound is None else -bound for bound in (self.high, self.low))
        return Difference(self.n, -self.mean, low, high)


class Test(NamedTuple):
    """Test of one model against the baseline in one metric."""

    label: str
    """Label of the model."""
    key: str
    """Key of the metric."""
    n: int
    """Number of the model's seeds."""
    n_baseline: int
    """Number of the baseline's seeds."""
    difference: Difference
    """Paired difference: the model's metric minus the baseline's."""
    p: float
    """Two-sided p-value of Welch's t-test; nan where the test is not applicable."""
    p_holm: float
    """p-value after Holm's correction for all tests of the report; nan where the test is not applicable."""

    @property
    def significant(self) -> bool:
        """Whether the corrected p-value is below 0.05."""
        return self.p_holm < SIGNIFICANT


Test.__test__ = False  # type: ignore[attr-defined]  # pytest would collect a class with this name


def summarize(values: Sequence[float], level: float = 0.95) -> Summary:
    """Compute the mean over seeds and its percentile bootstrap interval, for tables.

    The interval shows the spread of the seeds and never exceeds their range. Verdicts use `paired` instead.

    Args:
        values: One value per seed.
        level: Confidence level.

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
        random_state=np.random.default_rng(0),  # fixed, so that equal values give equal reports
    ).confidence_interval
    return Summary(n, mean, float(found.low), float(found.high))


def paired(a: Mapping[int, float], b: Mapping[int, float], level: float = 0.95) -> Difference:
    """Compute the mean of a - b over the seeds that both have, with Student's t interval.

    The differences are paired by seed because all models of a seed share one warm start, whose quality cancels out.
    Student's t replaces the bootstrap because percentile bootstrap intervals of few seeds are too narrow. Measured
    coverage of 95 % intervals on normal data:

        seeds   Student's t   percentile bootstrap
            3      95.1 %                 75.1 %
            5      94.7 %                 83.5 %
           10      94.9 %                 90.0 %

    Args:
        a: Values of the first model by seed.
        b: Values of the second model by seed.
        level: Confidence level.

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
    """Compute the two-sided p-value of Welch's t-test, which allows different variances and different seeds.

    Returns:
        The p-value. nan if the test is not applicable: fewer than two values, infinite values, or two constant samples
        with different means, for which p would be 0. 1 for two constant samples with the same mean.

    >>> welch([1.0, 2.0], [1.0, 2.0]), welch([1.0], [1.0, 2.0])
    (1.0, nan)
    """
    if min(len(a), len(b)) < 2 or not _finite([*a, *b]):
        return math.nan
    (mean_a, spread_a), (mean_b, spread_b) = _moments(a), _moments(b)
    if spread_a == 0 and spread_b == 0:
        return 1.0 if _gap(mean_a, mean_b) == 0 else math.nan
    # from means and standard deviations, because ttest_ind warns about nearly equal values
    test = stats.ttest_ind_from_stats(mean_a, spread_a, len(a), mean_b, spread_b, len(b), equal_var=False)
    return float(test.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values by Holm's step-down method; nan stays nan and is not counted as a test.

    If tests with an adjusted p-value below 0.05 are called significant, the probability of even one false positive is
    at most 5 %.

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
    """Test all other agents and controls against the baseline, in all headline metrics with a direction.

    Two metrics that differ only by a constant of the task are tested as one. Holm's correction covers all tests.

    Raises:
        OptionError: If there is no model with the baseline's label.
    """
    if baseline not in results.labels:
        raise OptionError(f"there is no model {baseline!r} in these results." + suggest(baseline, results.labels))
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
    """Mean without numpy's warnings about empty and infinite values."""
    return float(sum(values) / len(values)) if values else math.nan


def _gap(a: float, b: float) -> float:
    """Difference of two values; 0 if they are equal up to rounding."""
    return 0.0 if math.isfinite(a) and math.isclose(a, b, rel_tol=_ROUNDING) else a - b


def _moments(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation; the first value and 0 if all values are equal up to rounding."""
    if _gap(min(values), max(values)) == 0:
        return float(values[0]), 0.0
    return float(np.mean(values)), float(np.std(values, ddof=1))
