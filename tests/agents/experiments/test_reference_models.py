"""Reference models compared with their exact metrics."""

import itertools
import math

import gymnasium as gym
import numpy as np
import pytest
import torch

import text_gym
from agents.experiments.metrics import Metrics
from agents.experiments.reference_models import RealData, Uniform, knows_real_data
from agents.experiments.settings import MetricSettings
from tests.helpers.tasks import asked_twice, from_lists
from text_gym.errors import OptionError
from text_gym.sequences import Example

ORACLE = "oracle(vocab_size=12, max_length=5, train_size=96, valid_size=40, test_size=40)"
SETTINGS = MetricSettings(samples=60, references=30, temperatures=(0.5,), sweep_samples=40)


def test_uniform_tokens_cost_log_v_each():
    model = Uniform(gym.make("TextGen-v0", task=ORACLE), seed=0)
    figures = Metrics(model.task, SETTINGS).figures(model, 0)
    assert figures["nll_test"] == pytest.approx(math.log(12), abs=1e-6)
    assert figures["entropy"] == pytest.approx(math.log(12), abs=1e-6)
    assert figures["kl_model_data"] == pytest.approx(figures["nll_oracle"] - math.log(12), abs=1e-6)


def test_uniform_probabilities_of_all_sequences_sum_to_one():
    model = Uniform(gym.make("TextGen-v0", task=from_lists([[1], [2]], [[1]])), seed=0)
    everything = [s for k in (1, 2, 3) for s in itertools.product(range(4), repeat=k)]
    everything = [s for s in everything if 0 not in s[:-1] and (len(s) == 3 or s[-1] == 0)]
    rows = [[*s, *[4] * (3 - len(s))] for s in everything]
    log_probs = model.log_prob(rows, [len(s) for s in everything])
    assert np.exp(log_probs).sum() == pytest.approx(1)
    assert log_probs == pytest.approx([-math.log(4) * len(s) for s in everything])
    drawn = model.sample(20_000, seed=1)
    for k, share in ((1, 1 / 4), (2, 3 / 16), (3, 9 / 16)):
        assert (drawn.lengths == k).mean() == pytest.approx(share, abs=0.02)
    assert np.bincount(drawn.tokens[:, 0]) / 20_000 == pytest.approx([0.25] * 4, abs=0.02)


def test_uniform_step_by_step_is_uniform_at_once():
    policy = Uniform(gym.make("TextGen-v0", task=ORACLE), seed=0).policy
    tokens = torch.tensor([[1, 2, 3], [4, 5, 6]])
    logits, state = policy.start(2)
    assert torch.equal(policy.step(tokens[:, 0], state)[0], logits)
    assert torch.equal(logits, torch.zeros(2, 12))
    assert policy.output(policy.features(tokens)).shape == (2, 3, 12)
    assert policy.log_prob(tokens, tokens < 6).flatten().tolist()[-2:] == pytest.approx([-math.log(12), 0.0])


def test_real_data_diverge_from_nothing_and_are_drawn_anew():
    model = RealData(gym.make("TextGen-v0", task=ORACLE), seed=3)
    figures = Metrics(model.task, SETTINGS).figures(model, 0)
    assert figures["kl_model_data"] == figures["kl_data_model"] == figures["kl_sum"] == 0
    assert figures["js"] == pytest.approx(0, abs=1e-12)
    assert figures["nll_oracle"] == figures["entropy"]
    batch = model.sample(500, seed=1)
    assert len(batch) == 500  # more than any split has
    assert (model.sample(500, seed=1).tokens == batch.tokens).all()
    assert (model.sample(500, seed=2).tokens != batch.tokens).any()
    assert (model.sample(500).tokens == model.sample(500, seed=3).tokens).all()
    assert model.log_prob(batch.tokens) == pytest.approx(model.task.log_prob(batch.tokens), abs=0)


def test_real_data_of_a_corpus_are_its_validation_split():
    valid = [[1, 2], [2], [3, 3], [1]]
    model = RealData(gym.make("TextGen-v0", task=from_lists([[2, 2], [3]], valid)), seed=0)
    assert not hasattr(model, "log_prob")
    assert sorted(model.sample(9, seed=0).sentences) == sorted(valid)  # each once, without repetition
    firsts = {tuple(model.sample(1, seed=seed).sentences[0]) for seed in range(40)}
    assert len(firsts) == 4
    nothing = from_lists([[2, 2], [3]], [])
    with pytest.raises(OptionError, match=r"'valid' split .* is empty"):
        RealData(gym.make("TextGen-v0", task=nothing)).sample(1)
    assert [knows_real_data(task) for task in (nothing, model.task, text_gym.make_task(ORACLE), asked_twice())] == [
        False, True, True, True,
    ]  # fmt: skip


def test_real_data_answer_prompts_with_their_first_reference():
    task = asked_twice()
    model = RealData(gym.make("TextGen-v0", task=task), seed=0)
    batch = model.sample(prompts=[task.test[1], task.test[0], task.test[0]])
    assert batch.sentences == [[2], [1, 2], [1, 2]]
    assert [e.number for e in batch.examples] == [1, 0, 0]
    assert model.sample(prompts=[task.train[0], "b c"]).sentences == [[3, 3], [1]]  # references of the training split
    assert model.sample(prompts=[[1], Example((1,), ((2, 2),), {})]).sentences == [[3, 3], [2, 2]]
    with pytest.raises(OptionError, match="the prompt 'c' has no reference"):
        model.sample(prompts=["c"])


def test_reference_models_say_what_they_are():
    env = gym.make("TextGen-v0")
    assert repr(RealData(env, seed=3)) == "RealData(task='grammar', seed=3)"
    assert repr(Uniform(env, seed=0, device="cpu")) == (
        "Uniform(task='grammar', steps_done=0, seed=0, policy=UniformPolicy with 0 parameters)"
    )
