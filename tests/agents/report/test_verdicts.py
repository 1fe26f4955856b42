"""What is said of comparisons whose truth is known, because they are made up."""

import itertools
import math
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from agents.report.columns import COLUMNS
from agents.report.run_files import Run, Runs
from agents.report.statistics import Difference
from agents.report.verdicts import skipped, summaries, verdicts

NOISE = [0.01, -0.02, 0.0, 0.03, -0.02]  # adds to nothing
OTHER = [-0.01, 0.02, 0.01, -0.02, 0.0]  # too
LABELS = {"mle": "agent", "seqgan": "agent", "constant": "control", "random": "control", "real": "reference"}
WORDS = {"constant": "a constant reward", "random": "a random reward"}


def runs(model, values, key="nll_oracle", seeds=None, **spec):
    """One model's runs, of which those with a value of None failed and those with ... are not finished."""
    kind, order = LABELS[model], list(LABELS).index(model)
    spec = {"label": model, "kind": kind, "task": "t", "order": order, "baseline": "mle"} | spec
    if kind == "control":
        spec = {"controls_for": ["seqgan"], "words": WORDS[model]} | spec
    return [
        Run(
            Path("none"),
            spec | {"seed": seed},
            {} if value in (None, ...) else value if isinstance(value, dict) else {key: value},
            [],
            [],
            [],
            {},
            "out of memory" if value is None else None,
        )
        for seed, value in zip(seeds or range(len(values)), values, strict=True)
    ]


def results(key="nll_oracle", **models):
    return Runs([run for label, values in models.items() for run in runs(label, values, key)])


def around(mean, noise=NOISE, n=5):
    return [mean + x for x in noise[:n]]


def one(results):
    (verdict,) = verdicts(results)
    return verdict


def half_width(differences):
    return stats.t.ppf(0.975, len(differences) - 1) * stats.sem(differences)


def test_an_agent_whose_control_does_as_well_has_no_gain_of_its_own():
    mle, seqgan = around(9.1), [9.1 - 0.37 + x for x in OTHER]
    found = one(results(mle=mle, seqgan=seqgan, constant=around(9.1 - 0.36, OTHER[::-1])))
    half = half_width([a - b for a, b in zip(mle, seqgan, strict=True)])
    assert found[:4] == ("seqgan", "mle", "nll_oracle", "control")
    assert found.gain == (5, *map(pytest.approx, (0.37, 0.37 - half, 0.37 + half)))
    assert [(name, gain.n, round(gain.mean, 6)) for name, gain in found.controls] == [("constant", 5, 0.36)]
    assert found.rivals == ("constant",)
    half_rest = half_width([a - b for a, b in zip(OTHER, OTHER[::-1], strict=True)])
    assert found.text == (
        f"seqgan lowers NLL-oracle by 0.370 [{0.37 - half:.3f}, {0.37 + half:.3f}] over 5 seeds "
        "(Welch p < 0.001 after Holm correction for 2 tests), but a constant reward lowers it by 0.360; the gain of "
        f"seqgan is larger by 0.010 [{0.01 - half_rest:.3f}, {0.01 + half_rest:.3f}]: there is no evidence that the "
        "gain is its own."
    )


def test_an_agent_whose_controls_gain_little_has_a_gain_of_its_own():
    found = one(
        results(mle=around(9.1), seqgan=around(8.7, OTHER), constant=around(9.0, OTHER), random=around(9.12, OTHER))
    )
    assert found.outcome == "gain"
    assert found.text.endswith(
        ". Its controls gain less (a constant reward: 0.100, a random reward: -0.020) and do not explain this gain."
    )


def test_higher_is_better_where_it_is_and_shares_are_in_percent():
    found = one(results("validity", mle=around(0.5), seqgan=around(0.75, OTHER), constant=around(0.5, OTHER)))
    assert found.outcome == "gain"
    assert found.gain.mean == pytest.approx(0.25)
    assert re.match(
        r"seqgan raises validity by 25\.0 percentage points \[\d\d\.\d, \d\d\.\d\] over 5 seeds \(Welch", found.text
    )
    found = one(results("validity", mle=around(0.75), seqgan=around(0.5, OTHER)))
    assert found.outcome == "loss"
    assert found.text.startswith("seqgan lowers validity by 25.0 percentage points [")


def test_a_loss_is_called_worse_with_or_without_controls():
    for controls in ({}, {"constant": around(9.5)}):
        found = one(results("nll_test", mle=around(7.0), seqgan=around(7.23, OTHER), **controls))
        assert found.outcome == "loss"
        assert found.gain.mean == pytest.approx(-0.23)
        low, high = re.fullmatch(
            r"seqgan raises NLL-test by 0\.230 \[(.*), (.*)\] over 5 seeds \(Welch p < .*\), which is worse\.",
            found.text,
        ).groups()
        assert 0 < float(low) < 0.23 < float(high)


def test_a_difference_that_chance_can_make_is_none():
    found = one(results("bleu4", mle=around(0.3), seqgan=around(0.31, OTHER), constant=around(0.5)))
    assert found.outcome == "none"
    half = half_width([b - a for a, b in zip(NOISE, OTHER, strict=True)])
    low, high = f"{0.01 - half:.3f}", f"{0.01 + half:.3f}"
    assert found.text == f"No evidence that seqgan changes BLEU-4: +0.010 [{low}, {high}] over 5 seeds."
    lower = one(results("nll_test", mle=around(7.0), seqgan=around(6.99, OTHER)))
    assert "NLL-test: -0.010 [" in lower.text  # the change itself, although lower is better
    assert lower.gain.mean == pytest.approx(0.01)


def test_no_change_has_no_minus():
    found = one(results(mle=[9.0, 9.0, 9.0], seqgan=[9.0, 8.9999, 9.00005]))
    assert found.outcome == "none"
    assert ": +0.000 [0.000, 0.000] over" in found.text


def test_one_seed_says_nothing_about_chance():
    found = one(results(mle=[9.0], seqgan=[8.0], constant=[9.0]))
    assert found.outcome == "one seed"
    assert found.text == (
        "seqgan lowers NLL-oracle by 1.000 in one seed; at least two seeds are needed for a confidence interval."
    )
    none = one(results(mle=[9.0, 9.1, None, None], seqgan=[None, None, 8.0, 8.1]))
    assert (none.outcome, none.gain.n) == ("one seed", 0)
    assert none.text == "seqgan and mle have no seed in common with NLL-oracle: they cannot be compared."
    same = one(results(mle=[9.0], seqgan=[9.0]))
    assert same.text.startswith("seqgan does not change NLL-oracle in one seed; at least")


def test_a_control_that_failed_leaves_a_gain_nobodys():
    """A control that could have refuted the agent, and did not finish, has not been beaten."""
    models = [*runs("mle", around(9.0)), *runs("seqgan", around(8.0, OTHER)), *runs("random", around(9.0, OTHER))]
    assert one(Runs([*models, *runs("constant", around(9.0))])).outcome == "gain"
    for values in ([None] * 5, [...] * 5, [9.0, None, None, ..., ...]):
        found = one(Runs([*models, *runs("constant", values)]))
        assert found.outcome in ("uncontrolled", "control")
        assert "explain this gain" not in found.text
    found = one(Runs([*models, *runs("constant", [None] * 5)]))
    assert ". Its control (a constant reward) did not finish, so the cause of the gain is unknown." in found.text


@pytest.mark.parametrize(
    ("control", "conclusion"),
    [
        ([8.01, 8.05, 7.95, 8.0, 8.02], ": there is no evidence that the gain is its own"),  # as much
        ([9.5, 7.5, 9.0, 9.6, 8.2], ": there is not enough evidence that the gain is its own"),  # less
        ([7.5, 7.51, 7.49, 7.5, 7.52], ": a control is better, so there is no evidence that the gain"),  # more
    ],
)
def test_a_control_that_cannot_be_told_apart_is_not_said_to_do_as_well(control, conclusion):
    found = one(results(mle=around(9.0), seqgan=around(8.0, OTHER), constant=control))
    assert found.outcome == "control"
    assert conclusion in found.text


def test_what_each_agent_began_with_is_told():
    begun = runs("seqgan", around(8.0, OTHER), begins_with="mle")
    alone = runs("random", around(8.5, OTHER), kind="agent", begins_with="random weights")
    models = [*runs("mle", around(9.0)), *begun, *alone]
    seqgan, random = summaries(Runs(models))
    assert seqgan.startswith("seqgan is better than its warm start mle on 1 of 1 metric and ")
    assert random.startswith("random (initial policy: random weights) is better than mle on 1 of 1 metric and ")


def test_being_better_than_noise_shows_nothing():
    models = [*runs("mle", around(9.0)), *runs("seqgan", around(8.0, OTHER))]
    noise = runs("constant", around(11.0), trivial=True)
    assert one(Runs([*models, *noise])).outcome == "uncontrolled"
    assert one(Runs([*models, *noise, *runs("random", around(9.0, OTHER))])).outcome == "gain"
    assert one(Runs([*models, *runs("constant", around(7.9, OTHER), trivial=True)])).outcome == "control"


def test_a_reward_that_was_to_be_raised_may_go_beyond_the_data():
    models = {"mle": around(0.3), "seqgan": around(0.9, OTHER), "random": around(0.3), "real": around(0.35)}
    assert "Real data" not in one(results("reward", **models)).text
    assert "Real data" in one(results("bleu4", **models)).text
    assert verdicts(results("also:length", **models)) == []  # which way is better is not known


def test_without_controls_a_gain_is_nobodys():
    found = one(results(mle=around(9.0), seqgan=around(8.0, OTHER)))
    assert found.outcome == "uncontrolled"
    assert found.controls == ()
    assert ". No control was run for its update rule, so the cause of the gain is unknown." in found.text
    models = {label: runs(label, around(x, OTHER)) for label, x in [("mle", 9.0), ("seqgan", 8.0)]}
    for other in (
        runs("constant", around(8.0), controls_for=["another"]),
        runs("constant", [None] * 5),
        runs("constant", around(8.0), "js"),
    ):
        assert one(Runs([*models["mle"], *models["seqgan"], *other])).outcome == "uncontrolled"
    itself = runs("mle", around(9.0, OTHER), controls_for=["seqgan"])  # the baseline is no control of itself
    assert one(Runs([*itself, *models["seqgan"]])).outcome == "uncontrolled"


def test_a_control_counts_with_the_seeds_that_it_has():
    models = {"mle": around(9.0), "seqgan": around(8.0, OTHER)}
    some = one(results(**models, constant=[9.0, None, 9.01, 8.99, ...]))
    assert some.outcome == "gain"
    assert re.search(r"\(a constant reward: 0\.0\d\d over 3 of 5 seeds\)", some.text)
    single = one(results(**models, constant=[9.0, None, None, ..., None]))
    assert single.outcome == "control"  # clearly worse, but who knows
    assert (
        ", but a constant reward lowers it by 0.010 over 1 of 5 seeds, with only one seed in common with seqgan: "
        in single.text
    )
    assert one(results(**models, constant=around(8.0, OTHER, 2) + [None] * 3)).outcome == "control"


def test_a_control_without_a_common_seed_excludes_nothing():
    parts = [runs(label, around(x, n=2)) for label, x in [("mle", 9.0), ("seqgan", 8.0)]]
    found = one(Runs(itertools.chain(*parts, runs("constant", [9.0, 9.1], seeds=[7, 8]))))
    assert found.outcome == "control"
    assert ", but a constant reward has no seed in common with mle, with no seed in common with seqgan:" in found.text
    beaten = runs("constant", [9.0, 9.01], seeds=[3, 4])
    seqgan = runs("seqgan", [8.0, 8.01, 8.0, 8.01], seeds=[0, 1, 3, 4])
    assert "(a constant reward: no seed in common with mle)" in one(Runs([*parts[0], *seqgan, *beaten])).text
    same = runs("constant", [8.0, 8.0], seeds=[3, 4])
    found = one(Runs([*parts[0], *seqgan, *same, *runs("random", [8.0, 8.02])]))
    assert "a constant reward has no seed in common with mle; a random reward cannot be distinguished" in found.text
    worse = runs("constant", [9.5, 9.51], seeds=[1, 2])  # worse than the baseline, and yet in one seed of the agent
    found = one(Runs([*runs("mle", around(9.0)), *runs("seqgan", [8.0, 8.01]), *worse]))
    assert found.outcome == "control"


def test_of_several_controls_that_do_as_well_the_best_is_named_first():
    models = {"mle": around(9.0), "seqgan": around(8.0, OTHER)}
    both = one(results(**models, constant=around(8.01, NOISE[::-1]), random=around(7.9, NOISE[::-1])))
    assert (
        ", but a random reward lowers it by 1.100, and so does a constant reward (0.990); the gain of seqgan is "
        "smaller by 0.1" in both.text
    )
    apart = itertools.chain(
        *(runs(label, around(x)) for label, x in [("mle", 9.0), ("seqgan", 8.0)]),
        runs("constant", [8.0, 8.1], seeds=[7, 8]),
        runs("random", around(8.0, NOISE[::-1])),
    )
    text = one(Runs(apart)).text
    assert ", but a random reward lowers it by 1.000; a constant reward cannot be distinguished from seqgan" in text
    wild = one(results(**models, constant=[8.0, 8.1, 8.0, 7.9, 8.0], random=[20, 7, 12, 3, 5]))
    assert wild.outcome == "control"
    assert "a constant reward lowers it by 1.000; a random reward cannot be distinguished from seqgan" in wild.text


def test_a_control_that_is_infinitely_bad_does_not_do_as_well():
    models = {"mle": around(9.0), "seqgan": around(8.0, OTHER)}
    found = one(results(**models, constant=[math.inf] * 5))
    assert found.outcome == "gain"
    assert "(a constant reward: infinitely worse)" in found.text
    assert one(results(**models, constant=[math.inf, 9.0, 9.01, 9.02, math.inf])).outcome == "gain"
    assert one(results(**models, constant=[math.inf, 8.0, 8.01, 8.0, math.inf])).outcome == "control"
    assert one(results(**models, constant=[math.inf, None, None, None, None])).outcome == "control"
    assert one(results(**models, constant=[-math.inf] * 5)).outcome == "control"
    assert one(results(**models, constant=[math.nan] * 5)).outcome == "control"


def test_infinite_figures_have_no_verdict_but_are_counted():
    mle = [{"kl_sum": 1.0 + x, "js": 0.3 + x} for x in NOISE]
    seqgan = [{"kl_sum": math.inf if x > 0.005 else 0.5 + x, "js": 0.1 + x} for x in OTHER]
    found = results(mle=mle, seqgan=seqgan)
    assert [verdict.key for verdict in verdicts(found)] == ["js"]
    assert skipped(found) == [("seqgan", "kl_sum", "not finite in 2 of 5 seeds")]
    assert "after Holm correction for 1 test)" in verdicts(found)[0].text  # the infinite metric has no test
    (line,) = summaries(found)
    assert " and worse on 0. " in line
    assert line.endswith(" Excluded: KL sum (not finite in 2 of 5 seeds).")
    # a seed that the baseline lacks is no excuse either
    assert skipped(results(mle=[9.0, 9.1, None], seqgan=[8.0, 8.1, math.inf]))[0].reason == "not finite in 1 of 3 seeds"


@pytest.mark.parametrize(
    ("key", "mle", "seqgan", "real", "remark"),
    [
        ("nll_oracle", 9.0, 8.0, [8.5], "8.500; a value beyond it is a sign of low diversity"),
        ("nll_oracle", 9.0, 8.0, [8.5, 8.6, 8.4], "8.500; a value beyond it is a sign of low diversity"),
        ("nll_oracle", 9.0, 8.0, [7.5], None),
        ("nll_oracle", 9.0, 8.0, [15.0, 7.9, 3.0], None),  # a chance difference
        ("nll_oracle", 9.0, 8.0, [8.001], None),  # within the agent's own spread
        ("bleu4", 0.3, 0.6, [0.5], "0.500; a value beyond it is a sign of low diversity"),
        ("bleu4", 0.3, 0.4, [0.5], None),
        ("self_bleu4", 0.6, 0.3, [0.5], "0.500; a value beyond it is a sign of unrealistic samples"),
        ("nll_oracle", 7.0, 8.0, [8.5], "8.500; a value beyond"),  # a loss may be beyond the data too
        ("nll_oracle", 8.0, 8.0, [8.5], "8.500; a value beyond"),
        ("nll_oracle", 9.0, 8.0, [math.inf], None),
    ],
)
def test_better_than_real_data_is_remarked(key, mle, seqgan, real, remark):
    found = one(results(key, mle=around(mle), seqgan=around(seqgan, OTHER), real=real))
    if remark:
        assert f". Real data have {remark}" in found.text
        assert found.text.endswith(", not of quality.")
    else:
        assert "Real data" not in found.text


def test_only_the_reference_called_real_is_real():
    models = [*runs("mle", around(9.0)), *runs("seqgan", around(8.0, OTHER))]
    assert "Real" not in one(Runs([*models, *runs("real", [8.5], label="ngram")])).text
    assert "Real" not in one(Runs([*models, *runs("real", [8.5], "js")])).text
    agents = verdicts(Runs([*models, *runs("seqgan", around(8.5), label="real")]))
    assert {verdict.label for verdict in agents} == {"seqgan", "real"}
    assert not [verdict for verdict in agents if "Real" in verdict.text]


def test_what_does_not_survive_the_correction_is_said():
    mle = [9.0, 9.4, 8.7, 9.2, 8.9]
    found = results(mle=mle, seqgan=[x - 0.1 + 0.1 * e for x, e in zip(mle, NOISE, strict=True)])
    p = stats.ttest_ind(mle, [x - 0.1 for x in mle], equal_var=False).pvalue
    assert f"(Welch p = {p:.3f} after Holm correction for 1 test, not significant)" in one(found).text
    assert one(found).outcome == "uncontrolled"
    assert summaries(found) == [
        "There is no significant difference between seqgan and mle on 1 metric. Not significant after the correction "
        "for all tests: better on NLL-oracle."
    ]
    worse = results(mle=mle, seqgan=[x + 0.1 + 0.1 * e for x, e in zip(mle, NOISE, strict=True)])
    assert one(worse).outcome == "loss"
    assert one(worse).text.endswith(", not significant), which is worse but may be chance.")
    assert summaries(worse) == [
        "There is no significant difference between seqgan and mle on 1 metric. Not significant after the correction "
        "for all tests: worse on NLL-oracle."
    ]
    flat = one(results(mle=[9.0, 9.0], seqgan=[8.0, 8.0]))
    assert "by 1.000 [1.000, 1.000] over 2 seeds (Welch's test is not applicable). No control" in flat.text


def test_the_correction_counts_all_models_and_figures():
    both = [{"nll_test": 7.0 + x, "js": 0.3 + y} for x, y in zip(NOISE, OTHER, strict=True)]
    other = [{"nll_test": 7.06 + x, "js": 0.3 + y} for x, y in zip(OTHER, NOISE, strict=True)]
    found = verdicts(results(mle=both, seqgan=other, constant=both, random=other))
    assert [verdict.key for verdict in found] == ["nll_test", "js"]
    p = stats.ttest_ind(around(7.0), around(7.06, OTHER), equal_var=False).pvalue
    assert f"(Welch p = {6 * p:.3f} after Holm correction for 6 tests)" in found[0].text  # one of the two smallest


def test_a_gain_that_is_one_of_many_comparisons_is_said_to_be_so():
    mle = [{"nll_test": 7.0 + x, "js": 0.3 + y} for x, y in zip(NOISE, OTHER, strict=True)]
    near = [{"nll_test": 6.968 + x + 0.1 * y, "js": 0.3 + y} for x, y in zip(NOISE, OTHER, strict=True)]
    p = stats.ttest_ind(around(7.0), [row["nll_test"] for row in near], equal_var=False).pvalue
    assert p < 0.05 < 6 * p
    found = results(mle=mle, seqgan=near, constant=mle, random=mle)
    text = verdicts(found)[0].text
    assert f"(Welch p = {6 * p:.3f} after Holm correction for 6 tests, not significant). Its controls" in text
    assert text.endswith(", but this gain may be chance.")
    assert " Not significant after the correction for all tests: better on NLL-test." in summaries(found)[0]


def test_summaries_count_verdicts():
    def rows(noise, *means):
        return [
            dict(zip(("nll_oracle", "nll_test", "bleu4", "js"), (m + e for m in means), strict=True)) for e in noise
        ]

    found = results(
        mle=rows(NOISE, 9.0, 7.0, 0.3, 0.5),
        seqgan=rows(OTHER, 8.0, 7.5, 0.8, 0.5),
        constant=rows(OTHER, 8, 7, 0.3, 0.5),
    )
    assert summaries(found) == [
        "seqgan is better than mle on 2 of 4 metrics and worse on 1 (NLL-test). It is also better than all its "
        "controls on BLEU-4. The gain on NLL-oracle may not be its own: a constant reward is better, or "
        "cannot be distinguished from it."
    ]
    alone = results(mle=around(9.0), seqgan=around(8.0, OTHER))
    assert summaries(alone) == [
        "seqgan is better than mle on 1 of 1 metric and worse on 0. The gain on NLL-oracle may not be its own: no "
        "control was run, or a control did not finish."
    ]
    assert summaries(results(mle=[9.0], seqgan=[8.0])) == [
        "seqgan and mle have fewer than two seeds in common, too few to separate an effect from chance."
    ]
    mixed = results(
        mle=[{"js": 0.5, "bleu4": 0.1}, {"js": 0.6}], seqgan=[{"js": 0.5, "bleu4": 0.1}, {"js": 0.6, "bleu4": 0.1}]
    )
    assert summaries(mixed)[0].endswith(" on 1 metric. Fewer than two seeds in common: BLEU-4.")


def test_missing_seeds_are_named():
    found = results(mle=around(9.0), seqgan=[8.0, None, 8.1, ..., ...], constant=[9.0, 9.1], real=[8.0])
    (*_, last) = summaries(found)
    assert last == (
        "Missing runs: seqgan, seed 1 (failed); seqgan, seeds 3 and 4 (unfinished); constant, seeds 2, 3 and 4 "
        "(not run)."
    )
    assert "over 2 of 5 seeds" in one(found).text
    assert summaries(results(mle=[9.0, None])) == ["Missing runs: mle, seed 1 (failed)."]
    assert summaries(results(mle=[9.0, 9.1], real=[8.0])) == []


def test_where_there_is_nothing_to_compare_nothing_is_said():
    assert verdicts(results(real=[8.0])) == summaries(results(real=[8.0])) == []
    assert verdicts(results(mle=around(9.0))) == []
    assert verdicts(results("length", mle=around(9.0), seqgan=around(8.0))) == []  # neither way is better
    assert verdicts(results("bleu2", mle=around(9.0), seqgan=around(8.0))) == []  # no headline
    assert summaries(results("length", mle=around(9.0), seqgan=around(8.0))) == [
        "seqgan and mle have no metrics to compare."
    ]
    apart = Runs([*runs("mle", around(9.0)), *runs("seqgan", around(0.1), "js")])
    assert verdicts(apart) == []


@pytest.mark.parametrize("label", ["se{q}gan", "%s", "a\\nb", "mle 2 <b>", "séq(β=1)", ""])
def test_odd_labels_are_only_copied(label):
    models = [*runs("mle", around(9.0)), *runs("seqgan", around(8.0, OTHER), label=label)]
    found = Runs([*models, *runs("constant", around(8.0, OTHER), controls_for=[label], words=None)])
    assert one(found).text.startswith(f"{label} lowers NLL-oracle by 1.000")
    assert ", but constant lowers it" in one(found).text
    assert summaries(found)[0].startswith(f"{label} is better than mle on ")


figures = st.dictionaries(
    st.sampled_from(["nll_oracle", "kl_sum", "bleu4", "validity", "length", "also:mine"]),
    st.one_of(st.sampled_from([0.0, 1.0, math.inf, -math.inf, math.nan]), st.floats(-10, 10)),
    max_size=4,
)
values = st.lists(st.one_of(figures, st.none()), max_size=4)


@given(st.dictionaries(st.sampled_from(list(LABELS)), values, min_size=1).filter(lambda m: any(m.values())))
@settings(max_examples=150, deadline=None)
def test_any_results_have_verdicts_that_agree_with_themselves(models):
    found = results(**models)
    summaries(found)
    for verdict in verdicts(found):
        gain: Difference = verdict.gain
        assert gain.above_zero == (verdict.outcome in ("gain", "control", "uncontrolled"))
        assert gain.below_zero == (verdict.outcome == "loss")
        assert (gain.n < 2) == (verdict.outcome == "one seed")
        assert verdict.label != verdict.baseline == found.baseline
        assert verdict.key in COLUMNS or verdict.key.startswith("also:")
        assert not re.search(r"\bnan\b|None|  |\[\]|\.\.", verdict.text), verdict.text
    assert not {s[:2] for s in skipped(found)} & {(v.label, v.key) for v in verdicts(found)}
