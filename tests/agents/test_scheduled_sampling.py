"""Scheduled sampling: the mixed inputs, and its equality with MLE if all inputs are real."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch

import text_gym
from agents.mle import MLE
from agents.scheduled_sampling import ScheduledSampling, ScheduledSamplingSettings, mixed_inputs
from tests.helpers.models import seeded
from text_gym.errors import OptionError

SMALL = {"embedding": 8, "hidden": 8, "dropout": 0.2, "schedule": ((6, 1e-2),), "progress": False}


@pytest.fixture(scope="module")
def env():
    return gym.make("TextGen-v0", task=text_gym.make_task("grammar", train_size=300, valid_size=100, test_size=100))


def weights_of(agent):
    return torch.cat([p.detach().flatten() for p in agent.policy.parameters()])


class Counter:
    """A model that always continues with the last token plus one, and starts with 0."""

    def start(self, n, prompts=None):
        return self._certain(torch.zeros(n, dtype=torch.long)), torch.zeros(n, 1)

    def step(self, tokens, state):
        return self._certain((tokens + 1) % 1000), state

    def _certain(self, tokens):
        return torch.full((len(tokens), 1000), -torch.inf).scatter(1, tokens[:, None], 0.0)


def test_every_token_has_its_own_coin_and_what_is_drawn_follows_what_was_read():
    tokens = torch.randint(500, 1000, (2000, 12), generator=seeded(0))
    mixed = mixed_inputs(Counter(), tokens, 0.3, seeded(1))
    assert (mixed[:, -1] == tokens[:, -1]).all()  # the last token is never an input
    inputs, real = mixed[:, :-1], tokens[:, :-1]
    before = torch.cat([torch.full((2000, 1), -1), inputs[:, :-1]], dim=1)
    kept = inputs == real
    assert (kept | (inputs == (before + 1) % 1000)).all()
    assert torch.allclose(kept.double().mean(dim=0), torch.tensor(0.3).double(), atol=0.05)  # at every position
    counts = kept.sum(dim=1).double()
    assert counts.var() == pytest.approx(11 * 0.3 * 0.7, rel=0.15)  # independent within a row
    assert (mixed_inputs(Counter(), tokens, 1.0, seeded(1)) == tokens).all()
    own = mixed_inputs(Counter(), tokens, 0.0, seeded(1))[:, :-1]
    assert (own == torch.arange(11)).all()


def test_padding_stays():
    tokens = torch.tensor([[5, 1000, 1000], [7, 8, 9]])
    assert mixed_inputs(Counter(), tokens, 0.0, seeded(0)).tolist() == [[0, 1000, 1000], [0, 1, 9]]


def test_the_share_of_real_tokens_falls_as_it_is_told():
    def shares(decay, rate, least=0.0):
        settings = ScheduledSamplingSettings(decay=decay, decay_rate=rate, least_real=least)
        return [settings.share_of_real(epoch) for epoch in range(4)]

    assert shares("linear", 0.3) == pytest.approx([0.7, 0.4, 0.1, 0.0])
    assert shares("linear", 0.3, 0.25) == pytest.approx([0.7, 0.4, 0.25, 0.25])
    assert shares("exponential", 0.5) == pytest.approx([0.5, 0.25, 0.125, 0.0625])
    assert shares("inverse_sigmoid", 0.1) == pytest.approx([10 / (10 + math.exp(e / 10)) for e in (1, 2, 3, 4)])
    assert ScheduledSamplingSettings(decay="inverse_sigmoid", decay_rate=0.9).share_of_real(10_000) < 1e-300


def test_with_real_tokens_only_it_is_maximum_likelihood(env):
    ours = ScheduledSampling(env, seed=0, least_real=1.0, **SMALL).learn(2)
    assert (weights_of(ours) == weights_of(MLE(env, seed=0, **SMALL).learn(2))).all()
    other = ScheduledSampling(env, seed=0, least_real=0.5, decay_rate=0.5, **SMALL).learn(2)
    assert (weights_of(ours) != weights_of(other)).any()


def test_it_learns_even_from_its_own_tokens(env):
    agent = ScheduledSampling(env, seed=0, decay_rate=0.3, **SMALL)
    before = agent.nll("test")
    agent.learn()
    assert agent.nll("test") < before - 0.5


def test_the_loss_is_of_the_real_tokens_given_the_mixed_ones(env):
    agent = ScheduledSampling(env, seed=0, **(SMALL | {"dropout": 0.0}))
    agent.share_of_real, agent.input_generator = 0.4, seeded(3)
    batch = agent.task.batch("train", np.arange(20))
    tokens, valid = torch.tensor(batch.tokens), torch.tensor(batch.valid_mask)
    inputs = mixed_inputs(agent.policy, tokens, 0.4, seeded(3))
    logits = agent.policy.output(agent.policy.features(inputs)).log_softmax(dim=2)
    picked = logits.gather(2, tokens.clamp(max=logits.shape[2] - 1)[:, :, None])[:, :, 0]
    assert agent.likelihood_loss(batch).item() == pytest.approx(-picked[valid].mean().item(), rel=1e-5)


def test_a_resumed_run_equals_an_uninterrupted_one(env, tmp_path):
    whole = ScheduledSampling(env, seed=1, folder=tmp_path / "whole", **SMALL).learn()
    for _ in range(6):
        parts = ScheduledSampling(env, seed=1, folder=tmp_path / "parts", **SMALL).learn(1)
    assert (weights_of(parts) == weights_of(whole)).all()


def test_it_answers_prompts_and_refuses_mistakes():
    env = gym.make("TextGen-v0", task="answers")
    agent = ScheduledSampling(env, seed=0, **SMALL)
    before = agent.nll("train")
    assert agent.learn(1).nll("train") < before
    for settings, words in [
        ({"decay": "cosine"}, "there is no decay 'cosine'"),
        ({"decay_rate": 0}, "between 0 and 1"),
        ({"least_real": 2}, "least_real"),
    ]:
        with pytest.raises(OptionError, match=words):
            ScheduledSamplingSettings(**settings)
