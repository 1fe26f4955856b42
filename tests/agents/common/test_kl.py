"""The KL divergence of two tiny policies against enumeration, with temperature, masks, top-k and top-p."""

import math

import pytest
import torch

from agents.common import losses as objectives
from agents.common.kl import AdaptiveKL, log_ratios
from agents.networks.policies import LogitMask, Restricted
from agents.networks.transformer import Transformer
from tests.helpers.models import seeded, small_model
from text_gym.language_model import Drawn, Sampling, generate

SIZE, LENGTH, EOS = 5, 3, 0
SAMPLINGS = [
    Sampling(),
    Sampling(0.7),
    Sampling(1.3),
    Sampling(top_k=3),
    Sampling(0.7, top_k=3),
    Sampling(top_p=0.8),
    Sampling(1.3, top_p=0.8),
    Sampling(1.3, 3, 0.8),
]


def limited(model, min_length=0, banned=()):
    """Return the model with its mask, and the mask."""
    later = torch.zeros(SIZE, dtype=torch.bool)
    later[list(banned)] = True
    early = later.clone()
    early[EOS] = True
    mask = LogitMask.of_banned(early, later, min_length)
    return Restricted(model, mask), mask


def likely(logits, place, sampling, min_length, banned):
    """Apply top-k and top-p by hand; return the logits of the tokens that can be sampled, by token."""
    scaled = {
        token: value / sampling.temperature
        for token, value in enumerate(logits)
        if token not in banned and not (token == EOS and place < min_length)
    }
    order = sorted(scaled, key=scaled.get, reverse=True)[: sampling.top_k or SIZE]
    total, mass, kept = sum(math.exp(scaled[token]) for token in order), 0.0, []
    for token in order:
        if mass < sampling.top_p:
            kept.append(token)
        mass += math.exp(scaled[token]) / total
    return {token: scaled[token] for token in kept}


def log_softmax(logits):
    total = math.log(sum(math.exp(value) for value in logits.values()))
    return {token: value - total for token, value in logits.items()}


def logits_after(model, prefix):
    logits, state = model.start(1)
    for token in prefix:
        logits, state = model.step(torch.tensor([token]), state)
    return logits[0].tolist()


def steps_of(policy, reference, prefix, sampling, min_length, banned):
    """Compute the log-probabilities of policy and reference for each token that can follow a prefix, by hand."""
    place = len(prefix)
    ours = likely(logits_after(policy, prefix), place, sampling, min_length, banned)
    theirs = logits_after(reference, prefix)
    return log_softmax(ours), log_softmax({token: theirs[token] / sampling.temperature for token in ours})


def exact_divergence(policy, reference, sampling, min_length=0, banned=(), prefix=()):
    """Compute the KL divergence of whole sequences, by recursion over all prefixes."""
    if len(prefix) == LENGTH or EOS in prefix:
        return 0.0
    ours, theirs = steps_of(policy, reference, prefix, sampling, min_length, banned)
    return sum(
        math.exp(log_p)
        * (log_p - theirs[t] + exact_divergence(policy, reference, sampling, min_length, banned, (*prefix, t)))
        for t, log_p in ours.items()
    )


@pytest.mark.parametrize("chunk_bytes", [1, 1 << 20])
@pytest.mark.parametrize("limits", [{}, {"min_length": 2, "banned": (3,)}])
@pytest.mark.parametrize("sampling", SAMPLINGS)
@torch.no_grad()
def test_it_is_the_exact_one(monkeypatch, sampling, limits, chunk_bytes):
    """Token by token exactly, and the mean over many sequences within four standard errors."""
    monkeypatch.setattr(objectives, "CHUNK_BYTES", (chunk_bytes, chunk_bytes))
    policy, reference = small_model(SIZE, seed=1, scale=0.8), small_model(SIZE, seed=2, scale=0.8)
    restricted, mask = limited(policy, **limits)
    drawn = generate(restricted, 2000, LENGTH, EOS, seeded(0), sampling)
    ratios = log_ratios(policy, reference, drawn, None, mask, sampling)
    assert (ratios[torch.arange(LENGTH) >= drawn.lengths[:, None]] == 0).all()
    known = {}
    for row, tokens in enumerate(drawn.tokens[:200].tolist()):
        for place in range(int(drawn.lengths[row])):
            prefix = tuple(tokens[:place])
            if prefix not in known:
                bounds = limits.get("min_length", 0), limits.get("banned", ())
                known[prefix] = steps_of(policy, reference, prefix, sampling, *bounds)
            ours, theirs = known[prefix]
            expected = ours[tokens[place]] - theirs[tokens[place]]
            assert ratios[row, place].item() == pytest.approx(expected, abs=2e-6)
    exact = exact_divergence(policy, reference, sampling, **limits)
    sums = ratios.sum(dim=1)
    assert exact > 0.02
    assert abs(sums.mean().item() - exact) < 4 * sums.std().item() / math.sqrt(len(sums))


@pytest.mark.parametrize("kind", ["lstm", "transformer"])
@pytest.mark.parametrize("limits", [{}, {"min_length": 2, "banned": (3,)}])
@pytest.mark.parametrize("sampling", SAMPLINGS)
@torch.no_grad()
def test_a_policy_does_not_diverge_from_itself(sampling, limits, kind):
    """With all kinds of sampling, and also with prompts."""
    torch.manual_seed(0)
    model = small_model(SIZE, seed=1) if kind == "lstm" else Transformer(SIZE, width=8, inner=8).eval()
    model = model.double()
    restricted, mask = limited(model, **limits)
    prompts = torch.randint(SIZE + 1, (300, 2), generator=seeded(1))
    for asked in (None, prompts):
        drawn = generate(restricted, 300, LENGTH, EOS, seeded(0), sampling, asked)
        assert (drawn.log_probs < -0.01).any(), "the test would see nothing"
        assert log_ratios(model, model, drawn, asked, mask, sampling).abs().max() < 1e-12


def test_in_single_precision_it_is_zero_but_for_rounding():
    model = small_model(SIZE, seed=1)
    for sampling in SAMPLINGS:
        drawn = generate(model, 1000, LENGTH, EOS, seeded(0), sampling)
        ratios = log_ratios(model, model, drawn, sampling=sampling)
        assert abs(ratios.sum() / drawn.lengths.sum()) < 1e-7
        assert ratios.abs().max() < 2e-6


def test_the_reference_may_find_unlikely_what_the_policy_draws():
    """The reference's own top k may lack a sampled token, and the divergence would be infinite."""
    policy, reference = small_model(SIZE, seed=1), small_model(SIZE, seed=2)
    sampling = Sampling(top_k=1)
    with torch.no_grad():
        drawn = generate(policy, 1, LENGTH, None, seeded(0), sampling)
        apart = [logits_after(m, drawn.tokens[0, :1].tolist()) for m in (policy, reference)]
    assert max(range(SIZE), key=apart[0].__getitem__) != max(range(SIZE), key=apart[1].__getitem__)
    assert (log_ratios(policy, reference, drawn, sampling=sampling) == 0).all()  # only one token is possible


def test_a_token_drawn_at_the_edge_of_the_top_k_is_possible():
    """Rounding may move a sampled token out of the top k. Here a changed policy has the same effect."""
    policy, reference = small_model(SIZE, seed=1), small_model(SIZE, seed=2)
    unlikely = torch.tensor([[policy.start(1)[0].argmin().item()]])
    drawn = Drawn(unlikely, torch.tensor([1]), torch.tensor([[-1.0]], dtype=torch.float64))
    assert log_ratios(policy, reference, drawn, sampling=Sampling(top_k=2)).isfinite().all()


@pytest.mark.parametrize(
    ("divergence_seen", "factor"),
    [(0.2, 1.0), (0.21, 1.005), (0.24, 1.02), (9.0, 1.02), (0.18, 0.99), (0.0, 0.98), (-1.0, 0.98)],
)
def test_an_adapted_weight_rises_and_falls_as_published(divergence_seen, factor):
    kl = AdaptiveKL(0.5, target=0.2)
    assert kl.adapt(divergence_seen) == pytest.approx(0.5 * factor)
    assert kl.adapt(divergence_seen) == pytest.approx(0.5 * factor**2)


def test_a_weight_without_a_target_stays():
    kl = AdaptiveKL(0.5)
    assert (kl.adapt(9.0), kl.adapt(0.0), kl.weight) == (0.5, 0.5, 0.5)
