"""Small models with random weights, and what they are tested against."""

import math

import torch

from text_gym.language_model import LSTM


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def small_model(size=4, seed=0, scale=1.5):
    """A random LSTM whose distributions are far from uniform."""
    model = LSTM(size, embedding=3, hidden=5)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=seeded(1000 * seed + number)) * scale)
    return model.eval()


def assert_counts_fit(counts, expected):
    """Pearson's chi-square within five standard deviations; what cannot happen has not."""
    assert counts[expected == 0].sum() == 0
    often = expected >= 5
    rest_counted, rest_expected = counts[~often].sum(), expected[~often].sum()
    statistic = ((counts - expected)[often] ** 2 / expected[often]).sum()
    if rest_expected >= 5:
        statistic += (rest_counted - rest_expected) ** 2 / rest_expected
    assert statistic < often.sum() + 1 + 5 * math.sqrt(2 * often.sum() + 2)


def probability(model, sequence):
    """The log-probability of a sequence, one step after another."""
    logits, state = model.start(1)
    total = 0.0
    for token in sequence:
        total += logits.log_softmax(1)[0, token].item()
        logits, state = model.step(torch.tensor([token]), state)
    return total


def smallest_nucleus(probabilities, top_p, kept):
    """The likeliest tokens, one after another, until they have the mass and are enough."""
    chosen, mass = set(), 0.0
    for token in sorted(range(len(probabilities)), key=lambda t: (-probabilities[t], t)):
        if mass >= top_p and len(chosen) >= kept:
            break
        chosen.add(token)
        mass += probabilities[token]
    return chosen
