"""How far a policy has gone from another, on what it draws itself, and the weight that holds it near."""

from __future__ import annotations

import torch
from torch import Tensor

from agents.common.losses import as_drawn, log_probs_after, weighted_nll
from text_gym.errors import OptionError
from text_gym.language_model import WHOLE_SOFTMAX, Drawn, LanguageModel, Sampling
from text_gym.validation import finite_number

STEP, MOST = 0.1, 0.2  # of an adapted weight, and of the error that it follows, in one update


class AdaptiveKL:
    """The weight of a divergence: held, or adapted after every update until the divergence is as wanted.

    The weight grows by a tenth of the share that the divergence is above the target, by two percent at most,
    and shrinks likewise (Ziegler et al., arXiv:1909.08593).

    >>> kl = AdaptiveKL(weight=0.5, target=0.1)
    >>> [round(kl.adapt(divergence), 6) for divergence in (0.11, 3.0, 0.0)]
    [0.505, 0.5151, 0.504798]

    Args:
        weight: Where it begins.
        target: The divergence to be held; None for a weight that stays as it is.
    """

    def __init__(self, weight: float, target: float | None = None) -> None:
        """Begin with a weight."""
        self.weight, self.target = weight, target

    def adapt(self, divergence: float) -> float:
        """The weight for the next update, after one whose sequences had this divergence."""
        if self.target is not None:
            error = (divergence - self.target) / self.target
            self.weight *= 1 + STEP * min(max(error, -MOST), MOST)
        return self.weight


def check_target(weight: float, target: float | None) -> None:
    """Refuse a divergence to be held that is not above 0, or that no weight is to hold."""
    if target is not None and (finite_number("kl_target", target) <= 0 or not weight):
        raise OptionError(f"kl_target={target} must be above 0, and needs a kl_weight above 0 to begin with")


@torch.no_grad()
def log_ratios(
    policy: LanguageModel,
    reference: LanguageModel,
    drawn: Drawn,
    prompts: Tensor | None = None,
    penalty: Tensor | None = None,
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
        penalty: [T, V], added to the logits of both at each place.
        sampling: How the sequences were drawn.
    """
    valid = drawn.valid_mask
    if sampling.top_k or sampling.top_p < 1:
        return drawn.log_probs - _among_what_could_be_drawn(policy, reference, drawn, valid, prompts, penalty, sampling)
    weights = valid.to(drawn.log_probs.dtype)
    nll = weighted_nll(reference, drawn.tokens, weights, prompts, penalty=penalty, sampling=sampling)[1]
    return drawn.log_probs + nll


def _among_what_could_be_drawn(
    policy: LanguageModel,
    reference: LanguageModel,
    drawn: Drawn,
    valid: Tensor,
    prompts: Tensor | None,
    penalty: Tensor | None,
    sampling: Sampling,
) -> Tensor:
    """The reference's log-probability of each token among those that the policy could draw there, [n, T]."""
    ours, theirs = (model.features(drawn.tokens, prompts)[valid] for model in (policy, reference))  # each [N, H]
    targets, places = drawn.tokens[valid], valid.nonzero()[:, 1]

    def among_them(others: Tensor, part: slice) -> Tensor:
        limits = 0.0 if penalty is None else penalty[places[part]]
        logits = policy.output(ours[part]).to(torch.promote_types(ours.dtype, torch.float32)) + limits
        possible = as_drawn(logits, targets[part], sampling) > -torch.inf
        return ((others + limits) / sampling.temperature).masked_fill(~possible, -torch.inf)

    log_probs = torch.zeros_like(drawn.log_probs)
    log_probs[valid] = log_probs_after(reference.output, theirs, targets, among_them).to(log_probs.dtype)
    return log_probs
