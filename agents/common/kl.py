"""KL penalty: settings, adaptive weight, and the log-ratios of policy and reference policy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from agents.common.losses import adjusted_logits, chunked_log_probs, weighted_nll
from agents.networks.policies import LogitMask
from text_gym.errors import OptionError
from text_gym.language_model import WHOLE_SOFTMAX, Drawn, LanguageModel, Sampling
from text_gym.validation import check_not_negative, finite_number

STEP = 0.1  # relative change of the weight per update, as a share of the relative error of the divergence
MAX_ERROR = 0.2  # the relative error is clipped to [-MAX_ERROR, MAX_ERROR]


@dataclass(frozen=True)
class KLSettings:
    """Hyperparameters of the KL penalty."""

    weight: float = 0.0
    """Weight of the penalty KL(policy, initial policy) on the reward of each token; 0 for no penalty."""
    target: float | None = None
    """Target KL divergence per token, in nats, which the weight is adapted to reach; None keeps the weight constant."""

    def __post_init__(self) -> None:
        check_not_negative(self, "weight", group="kl.")
        if self.target is not None and (finite_number("kl.target", self.target) <= 0 or not self.weight):
            raise OptionError(
                f"kl.target={self.target} with kl.weight={self.weight}: both must be above 0; "
                "give kl.target=None for a constant weight"
            )


class AdaptiveKL:
    """Weight of a KL penalty: constant, or adapted after every update to reach a target divergence.

    Each update changes the weight by 10 % of the relative error of the divergence, and by at most 2 %
    (Ziegler et al., arXiv:1909.08593, section 2.2).

    >>> kl = AdaptiveKL(weight=0.5, target=0.1)
    >>> [round(kl.adapt(divergence), 6) for divergence in (0.11, 3.0, 0.0)]
    [0.505, 0.5151, 0.504798]

    Args:
        weight: Initial weight.
        target: Target KL divergence per token, in nats; None keeps the weight constant.
    """

    def __init__(self, weight: float, target: float | None = None) -> None:
        self.weight = weight
        self.target = target

    def adapt(self, divergence: float) -> float:
        """Adapt the weight to the divergence of the sequences of an update; return the weight for the next update."""
        if self.target is not None:
            error = (divergence - self.target) / self.target
            self.weight *= 1 + STEP * min(max(error, -MAX_ERROR), MAX_ERROR)
        return self.weight


@torch.no_grad()
def log_ratios(
    policy: LanguageModel,
    reference: LanguageModel,
    sampled: Drawn,
    prompts: Tensor | None = None,
    logit_mask: LogitMask | None = None,
    sampling: Sampling = WHOLE_SOFTMAX,
) -> Tensor:
    """Compute log policy(token) - log reference(token) for each sampled token.

    The mean over tokens estimates KL(policy, reference) of the distributions that are sampled from, that is, with the
    same temperature and the same mask. With top-k or top-p, the reference is restricted to the tokens that the policy
    can sample. The divergence is then finite, not negative in expectation, and 0 if both models are equal.

    Args:
        policy: Language model that the sequences were sampled from. Used only with top-k or top-p, to find the tokens
            that it can sample.
        reference: Reference policy.
        sampled: Sequences, with the log-probability of each token.
        prompts: Prompts [n, P].
        logit_mask: Mask that is added to the logits of both models.
        sampling: Temperature, top-k and top-p that the sequences were sampled with.

    Returns:
        Log-ratios [n, T]; 0 at padding.
    """
    if sampling.top_k or sampling.top_p < 1:
        return sampled.log_probs - _restricted_log_probs(policy, reference, sampled, prompts, logit_mask, sampling)
    weights = sampled.valid_mask.to(sampled.log_probs.dtype)
    nll = weighted_nll(reference, sampled.tokens, weights, prompts, logit_mask=logit_mask, sampling=sampling)[1]
    return sampled.log_probs + nll


def _restricted_log_probs(
    policy: LanguageModel,
    reference: LanguageModel,
    sampled: Drawn,
    prompts: Tensor | None,
    logit_mask: LogitMask | None,
    sampling: Sampling,
) -> Tensor:
    """Compute the reference's log-probabilities, normalised over the tokens that the policy can sample, [n, T]."""
    valid = sampled.valid_mask
    features = policy.features(sampled.tokens, prompts)[valid]  # [N, H]
    reference_features = reference.features(sampled.tokens, prompts)[valid]  # [N, H]
    targets = sampled.tokens[valid]  # [N]
    positions = valid.nonzero()[:, 1]  # [N]

    def restrict(reference_logits: Tensor, part: slice) -> Tensor:
        mask = 0.0 if logit_mask is None else logit_mask.at(positions[part])
        logits = policy.output(features[part]).to(torch.promote_types(features.dtype, torch.float32)) + mask
        possible = adjusted_logits(logits, targets[part], sampling) > -torch.inf
        return ((reference_logits + mask) / sampling.temperature).masked_fill(~possible, -torch.inf)

    log_probs = torch.zeros_like(sampled.log_probs)
    log_probs[valid] = chunked_log_probs(reference.output, reference_features, targets, restrict).to(log_probs.dtype)
    return log_probs
