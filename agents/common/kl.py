"""How far a policy has gone from another, on what it draws itself, and the weight that holds it near."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from agents.common.losses import adjusted_logits, chunked_log_probs, weighted_nll
from agents.networks.policies import LogitMask
from text_gym.errors import OptionError
from text_gym.language_model import WHOLE_SOFTMAX, Drawn, LanguageModel, Sampling
from text_gym.validation import finite_number

STEP, MOST = 0.1, 0.2  # of an adapted weight, and of the error that it follows, in one update


@dataclass(frozen=True)
class KLSettings:
    """Hyper-parameters of the penalty on the KL divergence from the initial policy."""

    weight: float = 0.0
    """Weight of KL(policy, initial policy) in the reward of each token; 0 for no penalty."""
    target: float | None = None
    """KL per token in nats that the weight is adapted to hold; None keeps the weight."""

    def __post_init__(self) -> None:
        """Check both values."""
        if finite_number("kl.weight", self.weight) < 0:
            raise OptionError(f"kl.weight must not be negative, and is {self.weight}")
        if self.target is not None and (finite_number("kl.target", self.target) <= 0 or not self.weight):
            raise OptionError(
                f"kl.target={self.target} must be above 0, and needs a kl.weight above 0 to begin with; "
                "without a penalty, give kl.target=None"
            )


class AdaptiveKL:
    """The weight of a divergence: held, or adapted after every update until the divergence is as wanted.

    The weight grows by a tenth of the share that the divergence is above the target, by two percent at most,
    and shrinks likewise (Ziegler et al., arXiv:1909.08593).

    >>> kl = AdaptiveKL(weight=0.5, target=0.1)
    >>> [round(kl.adapt(divergence), 6) for divergence in (0.11, 3.0, 0.0)]
    [0.505, 0.5151, 0.504798]

    Args:
        weight: Initial weight.
        target: KL per token to hold; None keeps the weight.
    """

    def __init__(self, weight: float, target: float | None = None) -> None:
        """Start with a weight."""
        self.weight = weight
        self.target = target

    def adapt(self, divergence: float) -> float:
        """The weight for the next update, after one whose sequences had this divergence."""
        if self.target is not None:
            error = (divergence - self.target) / self.target
            self.weight *= 1 + STEP * min(max(error, -MOST), MOST)
        return self.weight


@torch.no_grad()
def log_ratios(
    policy: LanguageModel,
    reference: LanguageModel,
    drawn: Drawn,
    prompts: Tensor | None = None,
    logit_mask: LogitMask | None = None,
    sampling: Sampling = WHOLE_SOFTMAX,
) -> Tensor:
    """How much likelier each token was than the reference would have drawn it, as a logarithm, [n, T]; 0 after the end.

    The mean estimates KL(policy, reference) between what both draw in the same way: at the same temperature and
    within the same limits. Where only the likeliest tokens may be drawn, the reference chooses among those
    that the policy could draw; so the divergence is finite, never below 0 but by chance, and 0 where both are equal.

    Args:
        policy: The language model that the sequences were sampled from; only used where `sampling` is limited
            to the likeliest tokens, to see which these were.
        reference: The language model to compare with.
        drawn: The sequences, and their log-probabilities in what they were really drawn from.
        prompts: [n, P], read first.
        logit_mask: Added to the logits of both.
        sampling: How the sequences were drawn.
    """
    if sampling.top_k or sampling.top_p < 1:
        return drawn.log_probs - _among_what_could_be_drawn(policy, reference, drawn, prompts, logit_mask, sampling)
    weights = drawn.valid_mask.to(drawn.log_probs.dtype)
    nll = weighted_nll(reference, drawn.tokens, weights, prompts, logit_mask=logit_mask, sampling=sampling)[1]
    return drawn.log_probs + nll


def _among_what_could_be_drawn(
    policy: LanguageModel,
    reference: LanguageModel,
    drawn: Drawn,
    prompts: Tensor | None,
    logit_mask: LogitMask | None,
    sampling: Sampling,
) -> Tensor:
    """The reference's log-probability of each token among those that the policy could draw there, [n, T]."""
    valid = drawn.valid_mask
    ours, theirs = (model.features(drawn.tokens, prompts)[valid] for model in (policy, reference))  # each [N, H]
    targets = drawn.tokens[valid]  # [N]
    positions = valid.nonzero()[:, 1]  # [N]

    def among_them(others: Tensor, part: slice) -> Tensor:
        mask = 0.0 if logit_mask is None else logit_mask.at(positions[part])
        logits = policy.output(ours[part]).to(torch.promote_types(ours.dtype, torch.float32)) + mask
        possible = adjusted_logits(logits, targets[part], sampling) > -torch.inf
        return ((others + mask) / sampling.temperature).masked_fill(~possible, -torch.inf)

    log_probs = torch.zeros_like(drawn.log_probs)
    log_probs[valid] = chunked_log_probs(reference.output, theirs, targets, among_them).to(log_probs.dtype)
    return log_probs
