"""A task whose sequences can be enumerated, for exact gradients of expectations over them."""

import itertools
import math

import gymnasium as gym
import numpy as np
import torch

from agents.reinforce import Reinforce
from tests.helpers.models import seeded, small_model
from text_gym.sequences import Examples, Sequences
from text_gym.tasks import Task
from text_gym.vocab import Vocabulary

EOS = 2
PAD = 3
SEQUENCES = [s for k in (1, 2, 3) for s in itertools.product(range(3), repeat=k)]
SEQUENCES = [s for s in SEQUENCES if EOS not in s[:-1] and (len(s) == 3 or s[-1] == EOS)]
WORTH = {s: math.sin(3.1 * i) + 2 for i, s in enumerate(SEQUENCES)}


def worth(tokens):
    """Reward of each sequence, unrelated to that of similar sequences."""
    return [WORTH[tuple(t for t in row if t != PAD)] for row in np.asarray(tokens).tolist()]


def tiny_env(reward=worth):
    vocab = Vocabulary(["a", "b", "<eos>"], eos=EOS)
    task = Task(
        "tiny", vocab, 3, {s: Examples(Sequences.from_lists([[0], [1, 0]])) for s in ("train", "valid", "test")}
    )
    return gym.make("TextGen-v0", task=task, reward=reward)


def tiny_agent(**settings):
    agent = Reinforce(tiny_env(), seed=0, progress=False, embedding=3, hidden=5, **settings)
    agent.policy.load_state_dict(small_model(3, seed=1).state_dict())
    return agent.__class__(agent.env, seed=0, progress=False, start=agent, **settings)


def padded(sequences):
    return torch.tensor([[*s, *[PAD] * (3 - len(s))] for s in sequences])


def exact_gradient(agent, objective):
    """Compute the gradient of the expectation of `objective` by enumerating all sequences."""
    model = agent.policy.double()
    tokens = padded(SEQUENCES)
    valid = tokens != PAD
    logs = model.log_prob(tokens, valid).sum(1)
    loss = (logs.exp() * objective(tokens, valid, logs)).sum()
    gradient = torch.autograd.grad(loss, list(model.parameters()))
    agent.policy.float()
    return torch.cat([g.flatten() for g in gradient])


def estimated_gradients(agent, batches, size):
    """Compute the gradient of minus the loss per sequence, for each of many batches."""
    gradients = []
    for batch in range(batches):
        samples, values = agent.sample_and_value(size, seeded(batch), None)
        loss = agent.loss(samples, agent.advantages(samples, values, None), None) / size
        gradient = torch.autograd.grad(-loss, list(agent.policy.parameters()))
        gradients.append(torch.cat([g.flatten() for g in gradient]).double())
    return torch.stack(gradients)


def assert_within_standard_error(estimates, exact):
    error = estimates.std(0) / math.sqrt(len(estimates))
    assert exact.abs().max() > 8 * error.max(), "the standard error is too large to detect a wrong gradient"
    assert ((estimates.mean(0) - exact).abs() <= 5 * error + 1e-6).all()
