"""The textbook implementations of the benchmark compute the same results as the package."""

import pytest
import torch

from agents.bench import learning as bench_learning
from agents.bench import textbook
from agents.common.losses import weighted_nll
from agents.common.rollouts import rollout_values
from agents.networks.discriminators import CNN, DiscriminatorSettings
from tests.helpers.models import seeded, small_model


def test_the_discriminators_are_one():
    torch.manual_seed(0)
    ours = CNN(12, 10, 8, DiscriminatorSettings(embedding=6, filters=((1, 5), (3, 4), (8, 3)), dropout=0.0))
    theirs = textbook.TextbookCNN(ours)
    rows, classes = torch.randint(0, 10, (7, 8), generator=seeded(0)), torch.tensor([0, 1, 1, 0, 1, 0, 0])
    assert torch.allclose(ours(rows), theirs(rows), atol=1e-5)
    optimizer = torch.optim.SGD(theirs.parameters(), 0.1)
    weight = ours.output.weight.square().sum() + ours.output.bias.square().sum()
    loss = torch.nn.functional.cross_entropy(ours(rows), classes) + 0.1 * weight
    assert textbook.discriminator_step(theirs, optimizer, rows, classes).item() == pytest.approx(loss.item(), rel=1e-5)
    loss.backward()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter -= 0.1 * parameter.grad
    assert torch.allclose(ours(rows), theirs(rows), atol=1e-5)


def test_the_losses_are_one():
    model = small_model(5)
    tokens = torch.randint(0, 5, (6, 4), generator=seeded(0))
    ours, _ = weighted_nll(model, tokens, torch.full((6, 4), 1 / 24))
    assert ours.item() == pytest.approx(textbook.likelihood_loss(model, tokens).item(), rel=1e-5)


def test_the_rollouts_are_one():
    """Compare the means over many rollouts of a reward that counts zeros."""
    model = small_model(3)
    tokens = torch.tensor([[0, 1, 2], [2, 2, 0]])
    torch.manual_seed(0)
    theirs = textbook.rollout_rewards(model, tokens, lambda rows: (rows == 0).sum(dim=1).float(), 400)
    ours = rollout_values(
        model, tokens, torch.tensor([3, 3]), lambda rows, *_: (rows == 0).sum(dim=1).float(), 400, None, seeded(0)
    )
    assert torch.allclose(ours[:, 1:].float(), theirs, atol=0.15)
    assert torch.allclose(theirs[:, 2], torch.ones(2), atol=1e-4)


def test_every_work_can_be_measured(monkeypatch):
    sizes = {"VOCAB_SIZE": 30, "LENGTH": 4, "BATCH": 4, "SAMPLES": 8, "TEXTBOOK_SAMPLES": 4, "MLE_EPOCH": 8}
    for name, value in sizes.items():
        monkeypatch.setattr(bench_learning, name, value)
    monkeypatch.setattr(bench_learning, "BATCHES", 1)
    monkeypatch.setattr(bench_learning, "_memory_of", bench_learning.peak_memory)
    results = bench_learning.measure(lambda work: work() or 0.5)
    assert [r.name.split()[0] for r in results] == ["sample", "one", "rollout", "one"]
    assert all(r.ours > 0 and r.textbook > 0 and min(r.memory) >= 0 for r in results)
