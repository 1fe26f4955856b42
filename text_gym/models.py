"""The language-model protocol, exact fast sampling, and the LSTM that SeqGAN's oracle is.

This module imports torch; nothing imports it until a model is used.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

BLOCK = 128  # tokens in a block of the two-level search; a power of two near sqrt(V) for V = 5000 to 50,000


class LanguageModel(Protocol):
    """Anything that says what token comes next. A state is whatever the model makes of a prefix."""

    def start(self, n: int) -> tuple[Tensor, Any]:
        """The logits [n, V] of the first tokens of n sequences, and their state."""

    def step(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Read tokens [n]: the logits [n, V] of those that follow, and the new state."""


class LSTM(nn.Module):
    """Embedding, one LSTM layer and a linear output, reading sequences after a start token."""

    def __init__(self, vocab_size: int, embedding: int = 32, hidden: int = 32, start_token: int = 0) -> None:
        """Create the layers with torch's own initial weights."""
        super().__init__()
        self.start_token = start_token
        self.embed = nn.Embedding(vocab_size, embedding)
        self.lstm = nn.LSTM(embedding, hidden, batch_first=True)
        self.output = nn.Linear(hidden, vocab_size)

    def start(self, n: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Logits and state of n empty prefixes."""
        weight = self.embed.weight
        zeros = weight.new_zeros(n, self.lstm.hidden_size)  # [n, H]
        tokens = torch.full((n,), self.start_token, device=weight.device)
        return self.step(tokens, (zeros, zeros))

    def step(self, tokens: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """One token further: tokens [n] to logits [n, V]."""
        hidden, cell = torch.lstm_cell(self.embed(tokens), state, *self.lstm.all_weights[0])
        return self.output(hidden), (hidden, cell)

    def forward(self, tokens: Tensor) -> Tensor:
        """The logits before each token: tokens [n, T] to [n, T, V]."""
        first = torch.full_like(tokens[:, :1], self.start_token)
        inputs = torch.cat([first, tokens[:, :-1]], dim=1)
        hidden, _ = self.lstm(self.embed(inputs))  # [n, T, H]
        logits: Tensor = self.output(hidden)
        return logits

    def log_prob(self, tokens: Tensor, valid_mask: Tensor) -> Tensor:
        """The summed log-probability of the tokens where valid_mask is True, [n]."""
        real = tokens.where(valid_mask, torch.zeros_like(tokens))
        logits: Tensor = self(real)  # [n, T, V]
        picked = logits.gather(2, real[:, :, None])[:, :, 0]
        per_token = picked - logits.logsumexp(dim=2)  # [n, T]
        return per_token.double().where(valid_mask, 0.0).sum(dim=1)


@torch.no_grad()
def draw_tokens(logits: Tensor, generator: torch.Generator) -> Tensor:
    """One token from each row's softmax: [n, V] to [n], by inverting its cumulative sum in two levels.

    The sums over blocks tell which block a uniform number falls in, and only that block is
    summed up token by token. The draw is exact, and on a CPU many times faster than
    torch.multinomial, which normalises and searches the whole row.
    """
    n, size = logits.shape
    blocks = -(-size // BLOCK)
    weights = logits.new_empty(n, blocks * BLOCK)
    weights[:, size:] = 0
    torch.sub(logits, logits.amax(dim=1, keepdim=True), out=weights[:, :size]).exp_()
    weights = weights.view(n, blocks, BLOCK)
    block_sums = weights.sum(dim=2).double().cumsum(dim=1)  # [n, blocks]
    uniform = torch.rand(n, 1, generator=generator, dtype=torch.float64, device=logits.device)
    target = uniform * block_sums[:, -1:]
    block = torch.searchsorted(block_sums, target, right=True).clamp_(max=blocks - 1)  # [n, 1]
    before = nn.functional.pad(block_sums, (1, 0)).gather(1, block)
    inside = weights.gather(1, block[:, :, None].expand(n, 1, BLOCK))[:, 0]  # [n, BLOCK]
    sums = inside.double().cumsum(dim=1)
    place = torch.searchsorted(sums, target - before, right=True)
    # Rounding may put the target at the very end of a block: take its last possible token.
    last = BLOCK - 1 - (inside > 0).flip(1).int().argmax(dim=1, keepdim=True)
    return (block * BLOCK + torch.minimum(place, last))[:, 0]


@torch.no_grad()
def draw_sequences(model: LanguageModel, n: int, length: int, generator: torch.Generator) -> Tensor:
    """Draw n sequences of exactly `length` tokens, [n, length]."""
    logits, state = model.start(n)
    columns = []
    for _ in range(length - 1):
        columns.append(draw_tokens(logits, generator))
        logits, state = model.step(columns[-1], state)
    columns.append(draw_tokens(logits, generator))
    return torch.stack(columns, dim=1)
