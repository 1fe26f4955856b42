"""Evaluation against the enumeration of all sequences of a tiny source and a tiny policy."""

import itertools
import math

import gymnasium as gym
import numpy as np
import pytest
import torch

import text_gym
from agents import MLE
from agents.common.evaluation import Evaluation, draw, evaluate, likelihoods
from text_gym.errors import OptionError


@pytest.fixture(scope="module")
def agent():
    env = gym.make("TextGen-v0", task="oracle(vocab_size=3, max_length=3, train_size=50, test_size=20000)")
    return MLE(env, seed=0, progress=False, embedding=4, hidden=4, initial_std=1.0)


def test_every_figure_equals_enumeration(agent):
    sequences = np.array(list(itertools.product(range(3), repeat=3)))
    task = agent.task
    p, q = np.exp(agent.log_prob(sequences)), np.exp(task.log_prob(sequences))
    assert p.sum() == pytest.approx(1, abs=1e-5)
    m = (p + q) / 2
    expected = {
        "nll_test": -(q * np.log(p)).sum() / 3,
        "entropy": -(p * np.log(p)).sum() / 3,
        "nll_oracle": -(p * np.log(q)).sum() / 3,
        "data_entropy": -(q * np.log(q)).sum() / 3,
        "kl_model_data": (p * np.log(p / q)).sum() / 3,
        "kl_data_model": (q * np.log(q / p)).sum() / 3,
        "kl_sum": (p * np.log(p / q)).sum() / 3 + (q * np.log(q / p)).sum() / 3,
        "js": ((p * np.log(p / m)).sum() + (q * np.log(q / m)).sum()) / 2,
    }
    results = evaluate(agent, n=20_000, seed=3)
    assert results.keys() == expected.keys()
    for name, value in expected.items():
        assert results[name] == pytest.approx(value, abs=0.03), name
    assert 0 < results["js"] < math.log(2)


def test_impossible_sentences_leave_the_js_divergence_finite():
    env = gym.make("TextGen-v0", task="grammar(train_size=20, test_size=50)")
    results = evaluate(MLE(env, seed=0, progress=False), n=50)
    assert results["nll_oracle"] == math.inf
    assert results["js"] == pytest.approx(math.log(2), abs=1e-3)
    assert results["validity"] == 0


def test_where_tokens_are_banned_the_entropy_is_that_of_what_is_written():
    task = text_gym.make_task("oracle(vocab_size=4, max_length=3, train_size=50, test_size=500)")
    env = gym.make("TextGen-v0", task=task, banned=[1, 2, 3])
    results = evaluate(MLE(env, seed=0, progress=False), n=50)
    assert results["entropy"] == 0
    assert results["kl_model_data"] == results["nll_oracle"] > 0
    assert results["nll_test"] < 10
    assert not {"js", "kl_data_model"} & results.keys()


def test_a_shorter_environment_is_another_language():
    task = text_gym.make_task("oracle(vocab_size=4, max_length=3, train_size=50, test_size=500)")
    agent = MLE(gym.make("TextGen-v0", task=task, max_length=2), seed=0, progress=False)
    assert evaluate(agent, n=50).keys() == {"nll_test", "entropy"}


def test_prompts_are_those_of_the_split(monkeypatch):
    agent = MLE(gym.make("TextGen-v0", task="answers"), seed=0, progress=False)
    asked, sample = [], agent.sample
    monkeypatch.setattr(agent, "sample", lambda n, **options: asked.extend(options["prompts"]) or sample(n, **options))
    assert evaluate(agent, n=30).keys() == {"nll_test", "entropy"}
    test = {agent.task.test[i].prompt for i in range(len(agent.task.test))}
    assert len(asked) == 30
    assert {example.prompt for example in asked} <= test


def test_a_callback_records_it_while_learning(tmp_path):
    env = gym.make("TextGen-v0", task="oracle(vocab_size=5, max_length=3, train_size=50, test_size=50)")
    settings = {"seed": 0, "progress": False, "embedding": 4, "hidden": 4}
    watched = Evaluation(every=2, n=50)
    agent = MLE(env, folder=tmp_path, **settings).learn(5, callback=watched)
    assert [row["step"] for row in watched.history] == [0, 2, 4]
    assert "eval/nll_oracle" in (tmp_path / "progress.csv").read_text()
    unwatched = MLE(env, **settings).learn(5)
    for mine, other in zip(agent.policy.parameters(), unwatched.policy.parameters(), strict=True):
        assert torch.equal(mine, other)
    with pytest.raises(OptionError, match="every"):
        Evaluation(every=0)


def test_every_figure_at_a_temperature_equals_enumeration(agent):
    sequences = np.array(list(itertools.product(range(3), repeat=3)))
    p = np.exp(agent.log_prob(sequences, temperature=0.5))
    q = np.exp(agent.task.log_prob(sequences))
    assert p.sum() == pytest.approx(1, abs=1e-5)
    drawn = draw(agent, 20_000, 3, "test", temperature=0.5)
    results = likelihoods(agent, drawn, agent.task.batch("test"), 0.5)
    m = (p + q) / 2
    for name, value in {
        "nll_test": -(q * np.log(p)).sum() / 3,
        "entropy": -(p * np.log(p)).sum() / 3,
        "nll_oracle": -(p * np.log(q)).sum() / 3,
        "js": ((p * np.log(p / m)).sum() + (q * np.log(q / m)).sum()) / 2,
    }.items():
        assert results[name] == pytest.approx(value, abs=0.03), name
    assert results["entropy"] < likelihoods(agent, draw(agent, 20_000, 3, "test"), agent.task.batch("test"))["entropy"]


def test_draws_are_by_the_seed_and_prompts_too():
    agent = MLE(gym.make("TextGen-v0", task="answers(size=200)"), seed=0, progress=False)
    first, again, other = (draw(agent, 20, seed, "test") for seed in (1, 1, 2))
    assert (first.tokens == again.tokens).all()
    assert [e.number for e in first.examples] == [e.number for e in again.examples]
    assert [e.number for e in first.examples] != [e.number for e in other.examples]
