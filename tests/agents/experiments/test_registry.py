"""Registered agents."""

from agents.experiments.registry import registered_agents


def test_each_name_has_a_line_about_it():
    described = registered_agents()
    assert list(described) == [
        *("mle", "ss", "reinforce", "pg-bleu", "seqgan", "ppo", "a2c", "maskable-ppo", "nlpo", "uniform", "real"),
    ]
    assert all(described.values())
    assert "BLEU" in described["pg-bleu"] != described["reinforce"]
