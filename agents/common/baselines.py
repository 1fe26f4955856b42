"""What is expected of a token before it is drawn: the baselines that policy gradients subtract."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Baseline = Literal[
    "none", "moving_average", "position_mean", "leave_one_out", "greedy", "prefix", "critic", "rloo", "grpo"
]
BASELINES: tuple[Baseline, ...] = (
    "none",
    "moving_average",
    "position_mean",
    "leave_one_out",
    "greedy",
    "prefix",
    "critic",
    "rloo",
    "grpo",
)
GROUPED = ("rloo", "grpo")  # compare whole sequences with the others of the same prompt


def position_mean(values: Tensor, valid: Tensor) -> Tensor:
    """At each position the mean over the sequences that reach it, [T]."""
    return values.where(valid, 0.0).sum(dim=0) / valid.sum(dim=0).clamp(min=1)


def mean_of_others(values: Tensor, valid: Tensor, alone: Tensor | float = 0.0) -> Tensor:
    """At each position the mean over the other sequences that reach it, [n, T]; `alone` where there is none."""
    counted = values.where(valid, 0.0)
    others = valid.sum(dim=0) - valid.long()
    mean = (counted.sum(dim=0) - counted) / others.clamp(min=1)
    return torch.where(others > 0, mean, alone)


def leave_one_out(values: Tensor, valid: Tensor, rewards: Tensor) -> Tensor:
    """At each position the mean over the other sequences that reach it, [n, T]; of all others where none does."""
    alone = (rewards.sum() - rewards) / max(len(rewards) - 1, 1)  # where no other sequence is as long
    return mean_of_others(values, valid, alone[:, None])


def group_mean_of_others(rewards: Tensor, size: int) -> Tensor:
    """For each of the rewards [n], in groups of so many that follow each other, the mean of its group's others, [n]."""
    groups = rewards.view(-1, size)
    return ((groups.sum(dim=1, keepdim=True) - groups) / (size - 1)).flatten()


def group_mean_and_std(rewards: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """For each of the rewards [n], the mean and the standard deviation (of a sample) of its group, each [n]."""
    groups = rewards.view(-1, size)
    mean, spread = groups.mean(dim=1), groups.std(dim=1)
    return mean.repeat_interleave(size), spread.repeat_interleave(size)


class Critic:
    """A learned value of each prefix, from what the policy's output layer reads of it.

    A token's advantage is the value of the prefix that ends with it, less that of the prefix before it. So the
    critic reads the features before the token, and learns what came after: the mean over the tokens that the policy
    may draw there is the value before. It learns in units of the first batch's spread around its mean, so
    that a reward in hundreds is learned as soon as one below 1.

    Args:
        width: Of the features.
        learning_rate: Of its own Adam.
        device: Where the features are.
    """

    def __init__(self, width: int, learning_rate: float, device: torch.device | str = "cpu") -> None:
        """Create the network with torch's own initial weights."""
        self.network = _ValueNetwork(width).to(device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), learning_rate, fused=True)

    @torch.no_grad()
    def value(self, features: Tensor) -> Tensor:
        """Predict the values [n, T] of prefixes with features [n, T, H]."""
        return self.network.normalized(features) * self.network.spread + self.network.centre

    def learn(self, features: Tensor, values: Tensor, valid: Tensor) -> dict[str, float]:
        """Take one Adam step towards values [n, T], where valid, and say how well they were known before it.

        Returns:
            The mean squared error as `critic_loss`, and where values differ, `explained_variance`.
        """
        network = self.network
        wanted = values[valid].float()
        figures = _figures(self.value(features[valid]), wanted)
        if not network.spread:
            spread = wanted.std(correction=0)
            network.centre.copy_(wanted.mean())
            network.spread.copy_(spread if spread > 1e-6 else torch.ones_like(spread))
        self.optimizer.zero_grad()
        predicted = network.normalized(features[valid])
        loss = nn.functional.mse_loss(predicted, (wanted - network.centre) / network.spread)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return figures


class _ValueNetwork(nn.Sequential):
    """Two layers from features to a value, in units of the first batch's standard deviation around its mean."""

    centre: Tensor
    spread: Tensor

    def __init__(self, width: int) -> None:
        super().__init__(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))
        self.register_buffer("centre", torch.zeros(()))
        self.register_buffer("spread", torch.zeros(()))  # 0: nothing seen yet

    def normalized(self, features: Tensor) -> Tensor:
        """Predict the values [n, T] in these units."""
        values: Tensor = self(features.detach().float())
        return values[..., 0]


def _figures(values: Tensor, wanted: Tensor) -> dict[str, float]:
    error, variance = (values - wanted).square().mean(), wanted.var(correction=0)
    figures = {"critic_loss": float(error)}
    if variance > 0:
        figures["explained_variance"] = float(1 - (wanted - values).var(correction=0) / variance)
    return figures
