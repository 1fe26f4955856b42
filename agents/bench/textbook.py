"""Textbook implementations of the parts of learning, for comparison of speed and results.

They use torch.multinomial over the whole softmax, a loop over positions and rollouts that reads every prefix again,
cross_entropy over all logits at once, convolutions in float32, and Adam with its defaults.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from agents.networks.discriminators import CNN
from text_gym.language_model import LSTM


@torch.no_grad()
def complete(model: LSTM, prefixes: Tensor, length: int) -> Tensor:
    """Complete prefixes [n, k] token by token; return sequences [n, length]."""
    logits, state = model.start(len(prefixes))
    columns = list(prefixes.unbind(dim=1))
    for column in columns:
        logits, state = model.step(column, state)
    while len(columns) < length:
        columns.append(torch.multinomial(logits.softmax(dim=1), 1)[:, 0])
        logits, state = model.step(columns[-1], state)
    return torch.stack(columns, dim=1)


def rollout_rewards(model: LSTM, tokens: Tensor, score: Callable[[Tensor], Tensor], rollouts: int) -> Tensor:
    """Compute the mean reward of completions after each token, [n, T]; after the last token, that of the sequence."""
    length = tokens.shape[1]
    rewards = torch.zeros(tokens.shape, device=tokens.device)
    for _ in range(rollouts):
        for t in range(1, length):
            rewards[:, t - 1] += score(complete(model, tokens[:, :t], length)) / rollouts
        rewards[:, length - 1] += score(tokens) / rollouts
    return rewards


def likelihood_loss(model: LSTM, tokens: Tensor) -> Tensor:
    """Compute the mean negative log-likelihood of tokens [n, T]."""
    logits = model.output(model.features(tokens))
    return nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())


class TextbookCNN(nn.Module):
    """The published discriminator of SeqGAN, with the weights of a `CNN`."""

    def __init__(self, ours: CNN) -> None:
        """Copy the weights of a CNN."""
        super().__init__()
        size = ours.embed.embedding_dim
        self.embed = nn.Embedding(*ours.embed.weight.shape)
        self.embed.load_state_dict(ours.embed.state_dict())
        self.convolutions = nn.ModuleList(
            nn.Conv2d(1, linear.out_features, (width, size))  # type: ignore[arg-type]
            for width, linear in zip(ours.widths, ours.convolutions, strict=True)
        )
        features = ours.output.in_features
        self.new, self.gate = nn.Linear(features, features), nn.Linear(features, features)
        self.dropout, self.output = nn.Dropout(ours.dropout.p), nn.Linear(features, 2)
        with torch.no_grad():
            for mine, theirs in zip(self.convolutions, ours.convolutions, strict=True):
                mine.weight.copy_(theirs.weight.view_as(mine.weight))  # type: ignore[operator, arg-type]
                mine.bias.copy_(theirs.bias)  # type: ignore[operator, arg-type]
            for layer, part in ((self.new, 0), (self.gate, 1)):
                layer.weight.copy_(ours.highway.weight.chunk(2)[part])
                layer.bias.copy_(ours.highway.bias.chunk(2)[part])
        self.output.load_state_dict(ours.output.state_dict())

    def forward(self, rows: Tensor) -> Tensor:
        """Compute logits [n, 2] of token ids [n, L]."""
        embedded = self.embed(rows)[:, None]  # [n, 1, L, E]
        maps = [convolution(embedded).relu().squeeze(3) for convolution in self.convolutions]  # each [n, F, places]
        features = torch.cat([nn.functional.max_pool1d(m, m.shape[2]).squeeze(2) for m in maps], dim=1)
        gate = self.gate(features).sigmoid()
        mixed = gate * self.new(features).relu() + (1 - gate) * features
        return self.output(self.dropout(mixed))  # type: ignore[no-any-return]


def discriminator_step(network: TextbookCNN, optimizer: torch.optim.Optimizer, rows: Tensor, classes: Tensor) -> Tensor:
    """Make one optimiser step on the cross-entropy plus the L2 penalty of the output layer; return the loss."""
    optimizer.zero_grad()
    weight = network.output.weight.square().sum() + network.output.bias.square().sum()
    loss: Tensor = nn.functional.cross_entropy(network(rows), classes) + 0.2 / 2 * weight
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.detach()
