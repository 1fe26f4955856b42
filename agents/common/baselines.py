"""Baselines of the policy gradient: estimates of the value of a token that do not depend on this token."""

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
GROUPED = ("rloo", "grpo")  # baselines that are computed over the sequences of the same prompt


def position_mean(values: Tensor, valid: Tensor) -> Tensor:
    """Compute the mean of values [n, T] at each position, over the sequences that reach it, [T]."""
    return values.where(valid, 0.0).sum(dim=0) / valid.sum(dim=0).clamp(min=1)


def mean_of_others(values: Tensor, valid: Tensor, alone: Tensor | float = 0.0) -> Tensor:
    """Compute the mean of values [n, T] at each position, over the other sequences that reach it.

    Args:
        values: Values [n, T].
        valid: Valid mask [n, T].
        alone: Result where no other sequence reaches the position; a number, or a tensor that broadcasts to [n, T].

    Returns:
        Means [n, T].
    """
    counted = values.where(valid, 0.0)
    others = valid.sum(dim=0) - valid.long()
    mean = (counted.sum(dim=0) - counted) / others.clamp(min=1)
    return torch.where(others > 0, mean, alone)


def leave_one_out(values: Tensor, valid: Tensor, rewards: Tensor) -> Tensor:
    """Compute the mean of values [n, T] at each position, over the other sequences that reach it, [n, T].

    Where no other sequence reaches a position, it is the mean of the rewards [n] of all other sequences.
    """
    alone = (rewards.sum() - rewards) / max(len(rewards) - 1, 1)
    return mean_of_others(values, valid, alone[:, None])


def group_mean_of_others(rewards: Tensor, size: int) -> Tensor:
    """Compute the mean of the other rewards in the group of each reward, [n]; groups are `size` consecutive rewards."""
    groups = rewards.view(-1, size)
    return ((groups.sum(dim=1, keepdim=True) - groups) / (size - 1)).flatten()


def group_mean_and_std(rewards: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Compute the mean and the sample standard deviation of the group of each reward, each [n]."""
    groups = rewards.view(-1, size)
    mean, std = groups.mean(dim=1), groups.std(dim=1)
    return mean.repeat_interleave(size), std.repeat_interleave(size)


class Critic:
    """Value function that is learned from the policy's features.

    The baseline of a token is the value of the prefix before it. The critic therefore reads the features before the
    token, and its regression target is the value after the token; the mean of this target over the policy's next tokens
    is the value before the token. Targets are standardised by the mean and the standard deviation of the first batch,
    so that the scale of the reward does not matter.

    Args:
        width: Size of the features.
        learning_rate: Adam learning rate.
        device: Device of the features.
    """

    def __init__(self, width: int, learning_rate: float, device: torch.device | str = "cpu") -> None:
        self.network = _ValueNetwork(width).to(device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), learning_rate, fused=True)

    @torch.no_grad()
    def value(self, features: Tensor) -> Tensor:
        """Predict the values [n, T] of prefixes with features [n, T, H]."""
        return self.network.normalized(features) * self.network.spread + self.network.centre

    def learn(self, features: Tensor, values: Tensor, valid: Tensor) -> dict[str, float]:
        """Take one Adam step on the mean squared error.

        Args:
            features: Features [n, T, H] before each token.
            values: Regression targets [n, T], the values after each token.
            valid: Valid mask [n, T].

        Returns:
            Metrics before the step: the mean squared error `critic_loss` and, if the targets differ,
            `explained_variance`.
        """
        network = self.network
        targets = values[valid].float()
        metrics = _metrics(self.value(features[valid]), targets)
        if not network.spread:
            std = targets.std(correction=0)
            network.centre.copy_(targets.mean())
            network.spread.copy_(std if std > 1e-6 else torch.ones_like(std))
        self.optimizer.zero_grad()
        predicted = network.normalized(features[valid])
        loss = nn.functional.mse_loss(predicted, (targets - network.centre) / network.spread)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return metrics


class _ValueNetwork(nn.Sequential):
    """Two layers from features to standardised values. The buffers are mean and standard deviation of the targets."""

    centre: Tensor
    spread: Tensor

    def __init__(self, width: int) -> None:
        super().__init__(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))
        self.register_buffer("centre", torch.zeros(()))
        self.register_buffer("spread", torch.zeros(()))  # 0 before the first batch

    def normalized(self, features: Tensor) -> Tensor:
        """Predict the standardised values [n, T]."""
        values: Tensor = self(features.detach().float())
        return values[..., 0]


def _metrics(values: Tensor, targets: Tensor) -> dict[str, float]:
    error, variance = (values - targets).square().mean(), targets.var(correction=0)
    metrics = {"critic_loss": float(error)}
    if variance > 0:
        metrics["explained_variance"] = float(1 - (targets - values).var(correction=0) / variance)
    return metrics
