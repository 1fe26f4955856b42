"""Small models with random weights, and independent implementations to test sampling against."""

import math

import torch

from text_gym.language_model import LSTM


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def small_model(size=4, seed=0, scale=1.5):
    """Create a random LSTM with distributions far from uniform."""
    model = LSTM(size, embedding=3, hidden=5)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=seeded(1000 * seed + number)) * scale)
    return model.eval()


def assert_counts_fit(counts, expected):
    """Assert that Pearson's chi-square is within five standard deviations, and impossible outcomes have no counts."""
    assert counts[expected == 0].sum() == 0
    often = expected >= 5
    rest_counted, rest_expected = counts[~often].sum(), expected[~often].sum()
    statistic = ((counts - expected)[often] ** 2 / expected[often]).sum()
    if rest_expected >= 5:
        statistic += (rest_counted - rest_expected) ** 2 / rest_expected
    assert statistic < often.sum() + 1 + 5 * math.sqrt(2 * often.sum() + 2)


def probability(model, sequence):
    """Compute the log-probability of a sequence step by step."""
    logits, state = model.start(1)
    total = 0.0
    for token in sequence:
        total += logits.log_softmax(1)[0, token].item()
        logits, state = model.step(torch.tensor([token]), state)
    return total


def smallest_nucleus(probabilities, top_p, kept):
    """Add the most likely tokens one by one until they have the probability `top_p` and are at least `kept`."""
    chosen, mass = set(), 0.0
    for token in sorted(range(len(probabilities)), key=lambda t: (-probabilities[t], t)):
        if mass >= top_p and len(chosen) >= kept:
            break
        chosen.add(token)
        mass += probabilities[token]
    return chosen
