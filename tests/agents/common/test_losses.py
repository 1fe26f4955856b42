"""Losses and their gradients against torch's own."""

import pytest
import torch

from agents.common import losses as objectives
from agents.common.losses import weighted_nll
from text_gym.language_model import LSTM, Sampling, draw_tokens


@pytest.mark.parametrize("chunk_bytes", [1, 4 * 11 * 3, 4 << 20])
@pytest.mark.parametrize("with_prompts", [False, True])
def test_the_loss_and_its_gradient_are_those_of_cross_entropy(monkeypatch, chunk_bytes, with_prompts):
    monkeypatch.setattr(objectives, "CHUNK_BYTES", (chunk_bytes, chunk_bytes))
    torch.manual_seed(0)
    model = LSTM(11, 5, 6).double()
    tokens = torch.randint(0, 11, (4, 7))
    weights = torch.randn(4, 7, dtype=torch.float64)
    weights[1, 3:] = 0
    weights[2] = 0
    tokens[1, 3:] = 11
    prompts = torch.tensor([[1, 2], [3, 11], [11, 11], [4, 5]]) if with_prompts else None

    loss, each = weighted_nll(model, tokens, weights, prompts)
    (3 * loss).backward()
    ours = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()

    logits = model.output(model.features(tokens, prompts))
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), tokens.clamp(max=10), reduction="none")
    expected = (losses * weights).sum()
    (3 * expected).backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    assert torch.allclose(each, losses.detach() * (weights != 0), atol=1e-12)
    for mine, theirs in zip(ours, [p.grad for p in model.parameters()], strict=True):
        assert torch.allclose(mine, theirs, atol=1e-12)


@pytest.mark.parametrize("linear", [True, False])
def test_what_was_drawn_sharpened_and_shortened_has_the_probability_that_it_was_drawn_with(linear):
    torch.manual_seed(0)
    model, sampling = LSTM(11, 5, 6).double(), Sampling(temperature=0.7, top_k=4)
    if not linear:
        layer = model.output
        del model.output
        model.output = lambda features: layer(features)
    logits, _ = model.start(6)
    tokens, log_prob = draw_tokens(logits, torch.Generator().manual_seed(0), sampling)
    weights = torch.randn(6, 1, dtype=torch.float64)
    loss, each = weighted_nll(model, tokens[:, None], weights, sampling=sampling)
    loss.backward()
    assert torch.allclose(each[:, 0].double(), -log_prob, atol=1e-6)

    ours = [p.grad.clone() for p in model.lstm.parameters()]
    model.zero_grad()
    kept = (logits / 0.7).detach().topk(4).values[:, -1:]
    scaled = (logits / 0.7).masked_fill((logits / 0.7) < kept, -torch.inf)
    (torch.nn.functional.cross_entropy(scaled, tokens, reduction="none") * weights[:, 0]).sum().backward()
    for mine, theirs in zip(ours, [p.grad for p in model.lstm.parameters()], strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)


@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("sampling", [Sampling(0.7, top_k=2), Sampling(top_p=0.3)])
def test_a_token_just_beyond_the_limits_has_a_finite_loss(sampling, linear):
    """A sampled token was in the top k; rounding may move it out afterwards."""
    torch.manual_seed(0)
    model = LSTM(11, 5, 6).double()
    layer = model.output
    if not linear:
        del model.output
        model.output = lambda features: layer(features)
    logits, _ = model.start(1)
    beyond = logits.argmin(dim=1, keepdim=True)
    loss, each = weighted_nll(model, beyond, torch.ones(1, 1), sampling=sampling)
    loss.backward()
    possible = sampling.adjust(logits)[0]
    assert possible[beyond[0]] == -torch.inf
    among = torch.cat([possible[possible > -torch.inf], logits[0, beyond[0]] / sampling.temperature])
    assert each.item() == pytest.approx((among.logsumexp(0) - among[-1]).item(), abs=1e-6)
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_without_a_gradient_the_losses_are_the_same():
    model = LSTM(11, 5, 6)
    tokens, weights = torch.randint(0, 11, (4, 7)), torch.ones(4, 7)
    _, each = weighted_nll(model, tokens, weights)
    loss, fixed = weighted_nll(model.requires_grad_(False), tokens, weights)
    assert (each == fixed).all()
    assert not loss.requires_grad


def test_nothing_to_learn_is_no_loss():
    model = LSTM(5)
    loss, each = weighted_nll(model, torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 3))
    assert (loss.item(), each.abs().sum().item()) == (0.0, 0.0)
    loss.backward()
