"""Intervals and tests against enumeration, SciPy, textbook definitions and simulation."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from agents.report.run_files import Run, Runs
from agents.report.statistics import Difference, against, holm, paired, summarize, welch
from text_gym.errors import OptionError

numbers = st.floats(-1e6, 1e6).map(lambda x: round(x, 3))
samples = st.lists(numbers, min_size=2, max_size=8)
p_values = st.one_of(st.floats(0, 1), st.sampled_from([0.01, 0.05, 1.0]), st.just(math.nan))


def test_the_bootstrap_interval_is_that_of_every_possible_resample():
    values = [0.3, 1.1, 2.9, 3.0, 7.2]
    means = np.mean(list(itertools.product(values, repeat=5)), axis=1)
    for level in (0.95, 0.8):
        found = summarize(values, level)
        edge = 50 * (1 - level)
        assert (found.low, found.high) == pytest.approx(np.percentile(means, [edge, 100 - edge]), abs=0.15)
        assert (found.n, found.mean) == (5, pytest.approx(2.9))
    assert summarize([1.0, 3.0]) == (2, 2.0, 1.0, 3.0)  # both extremes are a quarter of the resamples
    assert summarize(values) == summarize(values)


@given(samples)
@settings(max_examples=25, deadline=None)
def test_a_bootstrap_interval_holds_the_mean_and_stays_within_the_values(values):
    found = summarize(values)
    slack = 1e-9 * (1 + max(map(abs, values)))
    assert found.mean == pytest.approx(float(np.mean(values)))
    assert min(values) - slack <= found.low <= found.mean + slack
    assert found.mean - slack <= found.high <= max(values) + slack


def test_where_there_is_no_interval_none_is_given():
    assert summarize([]) == (0, pytest.approx(math.nan, nan_ok=True), None, None)
    assert summarize([2.5]) == (1, 2.5, None, None)
    assert summarize([2.5, math.inf]) == (2, math.inf, None, None)
    found = summarize([math.inf, -math.inf])
    assert math.isnan(found.mean)
    assert found[2:] == (None, None)
    assert summarize([0.1] * 3) == (3, 0.1, 0.1, 0.1)
    assert paired({0: 1.0}, {1: 1.0})[2:] == (None, None)
    assert paired({0: 1.0, 1: 9.0}, {0: 3.0}) == (1, -2.0, None, None)
    assert paired({0: math.inf, 1: 1.0}, {0: 1.0, 1: 1.0}) == (2, math.inf, None, None)
    assert math.isnan(paired({0: math.inf, 1: 1.0}, {0: math.inf, 1: 1.0}).mean)


@pytest.mark.parametrize("level", [0, 1, 95, math.nan])
def test_a_level_is_a_share(level):
    with pytest.raises(OptionError, match="level"):
        summarize([1.0, 2.0], level)
    with pytest.raises(OptionError, match="level"):
        paired({0: 1.0, 1: 2.0}, {0: 0.0, 1: 0.0}, level)


def test_a_paired_interval_by_hand():
    found = paired({0: 2.0, 1: 4.0, 2: 6.0, 9: 50.0}, {2: 3.0, 1: 2.0, 0: 1.0, 7: 1.0})
    half = 4.302653 / math.sqrt(3)  # the differences are 1, 2, 3; t of 2 degrees from a printed table
    assert found == (3, 2.0, pytest.approx(2 - half, abs=1e-5), pytest.approx(2 + half, abs=1e-5))


@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=8), st.sampled_from([0.5, 0.95, 0.99]))
@settings(max_examples=60, deadline=None)
def test_a_paired_interval_is_scipys(pairs, level):
    a, b = np.array(pairs).T
    found = paired(dict(enumerate(a)), dict(enumerate(b)), level)
    assert found.n == len(pairs)
    if np.ptp(a - b) < 1e-3:  # SciPy warns of differences that are nearly equal
        assert (found.low, found.high) == pytest.approx((found.mean, found.mean), abs=1e-2)
    else:
        expected = stats.ttest_rel(a, b).confidence_interval(level)
        assert (found.low, found.high) == pytest.approx(tuple(expected), rel=1e-6, abs=1e-6)
    other = paired(dict(enumerate(b)), dict(enumerate(a)), level)
    assert -other == (found.n, *map(pytest.approx, found[1:]))


def test_above_and_below_zero():
    assert Difference(2, 1.0, 0.5, 1.5).above_zero
    assert Difference(2, -1.0, -1.5, -0.5).below_zero
    for unclear in [(1.0, 0.0, 2.0), (-1.0, -2.0, 0.0), (1.0, None, None), (0.0, 0.0, 0.0)]:
        assert not Difference(2, *unclear).above_zero
        assert not Difference(2, *unclear).below_zero
    assert -Difference(3, 1.0, None, None) == (3, -1.0, None, None)


def test_rounding_is_no_difference():
    a, b = {0: 0.1 + 0.2, 1: 0.7 + 0.1}, {0: 0.3, 1: 0.8}
    assert a != b
    assert paired(a, b) == (2, 0.0, 0.0, 0.0)
    assert math.isnan(welch([0.1 + 0.2, 0.3], [0.5, 0.5]))
    assert welch([0.1 + 0.2, 0.3], [0.3, 0.3]) == 1


def test_five_seeds_are_covered_by_students_t_and_not_by_the_percentile_bootstrap():
    rng = np.random.default_rng(1)
    covered = {"t": 0, "bootstrap": 0}
    x = rng.normal(size=(10_000, 5))
    half = stats.t.ppf(0.975, 4) * x.std(axis=1, ddof=1) / math.sqrt(5)
    mine = [paired(dict(enumerate(row)), dict.fromkeys(range(5), 0.0)) for row in x[:20]]
    assert [d.high - d.mean for d in mine] == pytest.approx(half[:20])  # so the vectorised one is the same
    covered["t"] = np.mean(np.abs(x.mean(axis=1)) <= half)
    resampled = x[:, rng.integers(5, size=(999, 5))].mean(axis=2)
    low, high = np.percentile(resampled, [2.5, 97.5], axis=1)
    covered["bootstrap"] = np.mean((low <= 0) & (high >= 0))
    assert covered["t"] == pytest.approx(0.95, abs=0.01)
    assert covered["bootstrap"] == pytest.approx(0.835, abs=0.015)
    for share in ("94.7 %", "83.5 %"):
        assert share in paired.__doc__


@given(samples, samples)
@settings(max_examples=60, deadline=None)
def test_welch_is_scipys(a, b):
    found = welch(a, b)
    if min(np.ptp(a), np.ptp(b)) < 1e-3:  # SciPy warns
        assert math.isnan(found) or 0 <= found <= 1
    else:
        assert found == pytest.approx(stats.ttest_ind(a, b, equal_var=False).pvalue, rel=1e-6, abs=1e-12)
        assert found == pytest.approx(welch(b, a))


def test_welch_where_there_is_little_to_test():
    for a, b in [([1.0], [1.0, 2.0]), ([1.0, 2.0], []), ([1.0, math.inf], [1.0, 2.0]), ([1.0, 1.0], [2.0, 2.0])]:
        assert math.isnan(welch(a, b))
    assert welch([1.0, 1.0], [1.0, 1.0, 1.0]) == 1
    # one without spread: a one-sample test of the other, here t = 2 with one degree of freedom
    assert welch([1.0, 3.0], [4.0, 4.0, 4.0]) == pytest.approx(1 - 2 * math.atan(2) / math.pi)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []
    assert holm([math.nan]) == pytest.approx([math.nan], nan_ok=True)


@given(st.lists(p_values, max_size=6))
@settings(max_examples=100, deadline=None)
def test_holm_is_bonferroni_in_every_set_of_hypotheses(p_values):
    """A hypothesis falls if every set that holds it falls, each by its smallest p times its size."""
    numbered = [i for i, p in enumerate(p_values) if not math.isnan(p)]
    expected = [math.nan] * len(p_values)
    for i in numbered:
        sets = [s for n in range(1, len(numbered) + 1) for s in itertools.combinations(numbered, n) if i in s]
        expected[i] = max(min(1.0, len(s) * min(p_values[j] for j in s)) for s in sets)
    assert holm(p_values) == pytest.approx(expected, nan_ok=True)


def run(label, seed, figures, kind="agent", **spec):
    spec = {"label": label, "kind": kind, "seed": seed, "task": "t", **spec}
    return Run(Path("none"), spec, figures, [], [], [], {}, None)


def test_against_compares_every_model_but_references_in_every_headline_figure_of_both():
    runs = [run("mle", s, {"nll_test": 1.0 + 0.1 * s, "bleu4": 0.1 * s, "length": 5.0}) for s in (0, 1, 2)]
    runs += [run("b", s, {"nll_test": 2.0 + 0.3 * s, "js": 0.1, "length": 9.0 + s}, order=1) for s in (1, 2, 3, 4)]
    runs += [run("c", s, {"nll_test": 1.2 + 0.1 * s, "bleu4": 0.3}, "control", order=2) for s in (0, 1, 2)]
    runs += [run("real", s, {"bleu4": 0.5}, "reference", order=3) for s in (0, 1)]
    tests = against(Runs(runs), "mle")
    assert [test[:4] for test in tests] == [("b", "nll_test", 4, 3), ("c", "nll_test", 3, 3), ("c", "bleu4", 3, 3)]
    assert tests[0].difference == paired({1: 2.3, 2: 2.6}, {1: 1.1, 2: 1.2})
    assert tests[0].difference.mean == pytest.approx(1.3)  # not turned round, though lower is better
    assert tests[0].p == pytest.approx(stats.ttest_ind([2.3, 2.6, 2.9, 3.2], [1, 1.1, 1.2], equal_var=False).pvalue)
    assert [test.p_holm for test in tests] == holm([test.p for test in tests])
    assert tests[0].p_holm == pytest.approx(3 * tests[0].p)


def test_figures_that_differ_by_a_constant_of_the_task_are_one_test():
    figures = {("mle", 0): 1.0, ("mle", 1): 1.5, ("b", 0): 2.0, ("b", 1): 4.0}
    both = [run(label, s, {"nll_test": x, "kl_data_model": x - 0.5}) for (label, s), x in figures.items()]
    (test,) = against(Runs(both), "mle")
    assert test.key == "nll_test"
    assert test.p_holm == test.p == welch([2.0, 4.0], [1.0, 1.5])
    alone = [run(label, s, {"kl_data_model": x}) for (label, s), x in figures.items()]
    assert [test.key for test in against(Runs(alone), "mle")] == ["kl_data_model"]


def test_against_an_unknown_model_names_the_known():
    with pytest.raises(OptionError, match=r"'ml'.*Did you mean 'mle'\? Known: b, mle\."):
        against(Runs([run("mle", 0, {"js": 0.1}), run("b", 0, {"js": 0.1})]), "ml")


def test_infinite_figures_have_no_test_and_do_not_count():
    figures = {("mle", 0): 1.0, ("mle", 1): 1.5, ("b", 0): 2.0, ("b", 1): 4.0}
    runs = [run(label, s, {"js": x, "kl_sum": math.inf}) for (label, s), x in figures.items()]
    one, other = sorted(against(Runs(runs), "mle"), key=lambda test: test.key)
    assert one.p_holm == one.p == welch([2.0, 4.0], [1.0, 1.5])
    assert math.isnan(other.p)
    assert math.isnan(other.p_holm)
    assert other.difference.low is None
