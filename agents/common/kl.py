"""KL penalty: its settings, a weight that adapts, and the estimate on what a policy has sampled."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from agents.common.losses import adjusted_logits, chunked_log_probs, weighted_nll
from agents.networks.policies import LogitMask
from text_gym.errors import OptionError
from text_gym.language_model import WHOLE_SOFTMAX, Drawn, LanguageModel, Sampling
from text_gym.validation import check_not_negative, finite_number

STEP = 0.1  # change of an adapted weight in one update, as a share of the error that it follows
MAX_ERROR = 0.2  # to which that error is clipped


@dataclass(frozen=True)
class KLSettings:
    """Hyper-parameters of the KL penalty."""

    weight: float = 0.0
    """Weight of KL(policy, initial policy) in the reward of each token; 0 for no penalty."""
    target: float | None = None
    """KL per token in nats that the weight is adapted to hold; None keeps the weight."""

    def __post_init__(self) -> None:
        """Check both values."""
        check_not_negative(self, "weight", group="kl.")
        if self.target is not None and (finite_number("kl.target", self.target) <= 0 or not self.weight):
            raise OptionError(
                f"kl.target={self.target} must be above 0, and needs a kl.weight above 0 to begin with; "
                "without a penalty, give kl.target=None"
            )


class AdaptiveKL:
    """Weight of a KL penalty: constant, or adapted after every update so that the KL divergence reaches a target.

    The weight grows by a tenth of the relative error of the divergence, by two percent at most, and shrinks likewise
    (Ziegler et al., arXiv:1909.08593).

    >>> kl = AdaptiveKL(weight=0.5, target=0.1)
    >>> [round(kl.adapt(divergence), 6) for divergence in (0.11, 3.0, 0.0)]
    [0.505, 0.5151, 0.504798]

    Args:
        weight: Initial weight.
        target: KL per token to hold; None keeps the weight.
    """

    def __init__(self, weight: float, target: float | None = None) -> None:
        """Take the initial weight."""
        self.weight = weight
        self.target = target

    def adapt(self, divergence: float) -> float:
        """Return the weight for the next update, after one whose sequences had this divergence."""
        if self.target is not None:
            error = (divergence - self.target) / self.target
            self.weight *= 1 + STEP * min(max(error, -MAX_ERROR), MAX_ERROR)
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
    """Compute the log-ratio of policy and reference for each sampled token, [n, T]; 0 after the end.

    The mean estimates KL(policy, reference) for both distributions as they are sampled from: at the same temperature
    and with the same mask. Under top-k and top-p the reference is restricted to the tokens that the policy could
    sample; so the divergence is finite, not negative in expectation, and 0 where both are equal.

    Args:
        policy: The language model that the sequences were sampled from; only used under top-k and top-p, to find the
            tokens that it could sample.
        reference: The language model to compare with.
        drawn: The sequences, and the log-probabilities that they were sampled with.
        prompts: [n, P], read first.
        logit_mask: Added to the logits of both.
        sampling: How the sequences were sampled.
    """
    if sampling.top_k or sampling.top_p < 1:
        return drawn.log_probs - _restricted_log_probs(policy, reference, drawn, prompts, logit_mask, sampling)
    weights = drawn.valid_mask.to(drawn.log_probs.dtype)
    nll = weighted_nll(reference, drawn.tokens, weights, prompts, logit_mask=logit_mask, sampling=sampling)[1]
    return drawn.log_probs + nll


def _restricted_log_probs(
    policy: LanguageModel,
    reference: LanguageModel,
    drawn: Drawn,
    prompts: Tensor | None,
    logit_mask: LogitMask | None,
    sampling: Sampling,
) -> Tensor:
    """Compute the reference's log-probabilities among the tokens that the policy could sample, [n, T]."""
    valid = drawn.valid_mask
    features = policy.features(drawn.tokens, prompts)[valid]  # [N, H]
    reference_features = reference.features(drawn.tokens, prompts)[valid]  # [N, H]
    targets = drawn.tokens[valid]  # [N]
    positions = valid.nonzero()[:, 1]  # [N]

    def restrict(reference_logits: Tensor, part: slice) -> Tensor:
        mask = 0.0 if logit_mask is None else logit_mask.at(positions[part])
        logits = policy.output(features[part]).to(torch.promote_types(features.dtype, torch.float32)) + mask
        possible = adjusted_logits(logits, targets[part], sampling) > -torch.inf
        return ((reference_logits + mask) / sampling.temperature).masked_fill(~possible, -torch.inf)

    log_probs = torch.zeros_like(drawn.log_probs)
    log_probs[valid] = chunked_log_probs(reference.output, reference_features, targets, restrict).to(log_probs.dtype)
    return log_probs
