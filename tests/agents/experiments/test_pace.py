"""Estimated time left, with times given by the tests."""

import pytest

from agents.experiments.pace import Pace, State


def test_nothing_is_expected_before_anything_was_seen():
    pace = Pace()
    assert pace.left(["mle", "seqgan"], 2, now=0.0) is None
    pace.begin("mle", 0, now=0.0)
    # One step, or steps within half a second, give no estimate.
    for state, now in [(State("starting"), 4.0), (State("learning", 3, 10), 5.0), (State("learning", 4, 10), 5.5)]:
        pace.running["mle", 0].see(state, now)
        assert pace.left(["seqgan"], 2, now) is None


def test_the_first_steps_tell_how_long_a_run_takes():
    pace = Pace()
    pace.begin("mle", 0, now=0.0)
    pace.running["mle", 0].see(State("learning", 1, 11), now=4.0)  # the time before the first step is not extrapolated
    pace.running["mle", 0].see(State("learning", 3, 11), now=6.0)
    assert pace.left([], 1, now=6.0) == (8.0, 0)
    assert pace.left([], 1, now=9.0) == (5.0, 0)
    assert pace.left(["mle", "mle"], 1, now=6.0) == (8.0 + 2 * 14.0, 0)
    assert pace.left(["mle", "mle"], 2, now=6.0) == ((8.0 + 2 * 14.0) / 2, 0)
    assert pace.left(["mle"], 8, now=6.0) == (14.0, 0)  # at least the longest run
    assert pace.left(["seqgan"], 1, now=6.0) == (8.0 + 14.0, 1)  # no estimate for seqgan: the mean of the others


def test_runs_that_ended_tell_it_best_and_those_that_failed_nothing():
    pace = Pace()
    for seed, begin, end in [(0, 0.0, 10.0), (1, 10.0, 22.0)]:
        pace.begin("mle", seed, begin)
        pace.running["mle", seed].see(State("learning", 1, 100), begin)
        pace.running["mle", seed].see(State("learning", 2, 100), begin + 1)  # then it stops early
        pace.running["mle", seed].see(State("measuring"), end - 4)
        pace.end("mle", seed, end, well=True)
    assert pace.left(["mle"], 1, now=22.0) == (11.0, 0)
    pace.begin("seqgan", 0, now=22.0)
    pace.running["seqgan", 0].see(State("learning", 1, 21), now=22.0)
    pace.running["seqgan", 0].see(State("learning", 11, 21), now=32.0)
    assert pace.left([], 1, now=32.0) == (10.0 + 4.0, 0)  # plus the evaluation, which took 4 s for mle
    pace.end("seqgan", 0, now=33.0, well=False)
    assert pace.left(["seqgan"], 1, now=33.0) == (11.0, 1)


def test_nothing_left_takes_no_time():
    pace = Pace({"mle": [3.0]})
    assert pace.left([], 2, now=0.0).seconds == pytest.approx(0.0)
