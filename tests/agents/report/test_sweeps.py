"""Temperature sweeps: their axes, and round numbers, which are those that matplotlib puts on an axis."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.ticker import MaxNLocator

from agents.report.results import Results
from agents.report.sweeps import far_end, plane_axes, round_numbers
from tests.helpers.fake_runs import write_fake_runs


@given(st.floats(0.01, 100), st.floats(0.05, 20))
@settings(max_examples=200, deadline=None)
def test_round_numbers_are_those_of_an_axis(lowest, width):
    highest = lowest + width
    for intervals in (5, 6, 7, 8):
        ticks = MaxNLocator(intervals, steps=[1, 2, 2.5, 5, 10]).tick_values(lowest, highest)
        rounding = 1e-9 * (ticks[1] - ticks[0])
        expected = [tick for tick in ticks if lowest - rounding <= tick <= highest + rounding]
        if len(expected) >= 4:
            break
    assert round_numbers(lowest, highest) == pytest.approx(expected, abs=1e-6)


def test_the_plane_is_of_metrics_that_are_finite_at_most_points(tmp_path):
    folder = write_fake_runs(tmp_path, seeds=(0, 1), labels=["mle", "pg-bleu", "uniform"])
    assert plane_axes(Results.load(folder)) == ("nll_oracle", "nll_test")  # infinite for uniform tokens alone
    for path in folder.rglob("results.json"):
        done = json.loads(path.read_text(encoding="utf-8"))
        for row in done["sweep"][1:]:
            row["nll_oracle"] = "inf"
        path.write_text(json.dumps(done), encoding="utf-8")
    assert plane_axes(Results.load(folder)) == ("bleu4", "self_bleu4")


def test_a_range_of_one_number_is_that_number():
    assert round_numbers(6.3, 6.3) == [6.3]


def test_the_far_end_leaves_out_what_is_far_off():
    assert far_end([]) == 0
    assert far_end([1.0, 9.0]) == 9
    assert far_end([*range(1, 21), 1000]) < 100
    assert far_end([1.0, 2.0, 3.0, 4.0, 5.0]) == 5
