"""How fast the learners' parts run, beside the same work as a textbook does it in PyTorch.

SeqGAN's sizes: batch 64, length 20, vocabulary 5000, embedding and LSTM of 32, 16 rollouts. The
textbook is what public ports do: torch.multinomial, a loop over positions and rollouts that reads
every prefix again, cross_entropy over all logits at once. It is measured on a part of the work, and
scaled up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from agents.objectives import weighted_nll
from agents.rollout import rollout_values
from text_gym.models import LSTM, generate

SIZE, LENGTH, BATCH, ROLLOUTS = 5000, 20, 64, 16
DRAWN = 10_000
EPOCH = 9_984


class Work(NamedTuple):
    """Seconds for the same work."""

    what: str
    ours: float
    textbook: float
    wanted: str


def _model() -> LSTM:
    model = LSTM(SIZE)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    return model


def measure(seconds_of: Callable[[Callable[[], Any]], float]) -> list[Work]:
    """All three comparisons; `seconds_of` runs a function a few times and gives its best time."""
    model, generator = _model(), torch.Generator().manual_seed(0)
    tokens = generate(model, BATCH, LENGTH, None, generator).tokens
    lengths = torch.full((BATCH,), LENGTH)

    def nothing(completed: Tensor, *_: Tensor) -> Tensor:
        return torch.zeros(len(completed))

    def draw() -> None:
        for _ in range(0, DRAWN, 500):
            generate(model, 500, LENGTH, None, generator)

    part = 500
    learners = [_Epoch(_model(), tokens, step) for step in (_our_step, _textbook_step)]
    return [
        Work(
            f"draw {DRAWN:,} sequences",
            seconds_of(draw),
            seconds_of(lambda: _textbook_completions(model, torch.zeros(part, 0, dtype=torch.long))) * DRAWN / part,
            "at least 20",
        ),
        Work(
            f"one MLE epoch of {EPOCH:,}",
            seconds_of(learners[0].part) * learners[0].parts,
            seconds_of(learners[1].part) * learners[1].parts,
            "at least 1.8",
        ),
        Work(
            f"complete every prefix {ROLLOUTS} times",
            seconds_of(lambda: rollout_values(model, tokens, lengths, nothing, ROLLOUTS, None, generator)),
            seconds_of(lambda: [_textbook_completions(model, tokens[:, :t]) for t in range(1, LENGTH)]) * ROLLOUTS,
            "at least 10",
        ),
    ]


@torch.no_grad()
def _textbook_completions(model: LSTM, prefixes: Tensor) -> Tensor:
    """Read the prefix, then draw token after token with torch.multinomial."""
    logits, state = model.start(len(prefixes))
    for column in prefixes.unbind(dim=1):
        logits, state = model.step(column, state)
    columns = list(prefixes.unbind(dim=1))
    while len(columns) < LENGTH:
        columns.append(torch.multinomial(logits.softmax(dim=1), 1)[:, 0])
        logits, state = model.step(columns[-1], state)
    return torch.stack(columns, dim=1)


class _Epoch:
    """A few batches of an epoch."""

    batches = 10
    parts = EPOCH / BATCH / batches

    def __init__(self, model: LSTM, tokens: Tensor, step: Callable[[LSTM, Tensor], Any]) -> None:
        self.model, self.tokens, self.step = model, tokens, step
        self.optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def part(self) -> None:
        for _ in range(self.batches):
            self.optimizer.zero_grad()
            self.step(self.model, self.tokens).backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
            self.optimizer.step()


def _our_step(model: LSTM, tokens: Tensor) -> Tensor:
    return weighted_nll(model, tokens, torch.full(tokens.shape, 1 / tokens.numel()))[0]


def _textbook_step(model: LSTM, tokens: Tensor) -> Tensor:
    logits = model.output(model.features(tokens))
    loss: Tensor = nn.functional.cross_entropy(logits.reshape(-1, SIZE), tokens.reshape(-1))
    return loss
