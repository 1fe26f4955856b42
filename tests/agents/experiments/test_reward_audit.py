"""Reward audits on real, shuffled and random sequences."""

import pytest

from agents.experiments.reward_audit import audit_rewards


def test_the_audit_keeps_words_or_replaces_them(grammar, answers):
    means = audit_rewards(grammar, ["bleu(n=1)", "length"], n=300)
    assert means["length"][0] == means["length"][1] == means["length"][2]
    assert means["bleu(n=1)"][0] == pytest.approx(means["bleu(n=1)"][1], abs=1e-9)
    assert audit_rewards(grammar, ["tests.helpers.own_rewards:words_only"], n=1000) == {
        "tests.helpers.own_rewards:words_only": (1.0, 1.0, 1.0)
    }
    assert audit_rewards(answers, n=50)["exact_match"][0] == 1.0
