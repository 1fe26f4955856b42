"""Log-probabilities of tokens as losses, without keeping the logits of a whole batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from agents.networks.huggingface import LinearOutput
from agents.networks.policies import LogitMask
from text_gym.language_model import WHOLE_SOFTMAX, LanguageModel, Sampling

CHUNK_BYTES = (8 << 20, 1 << 30)
"""Bytes of logits computed at a time on a CPU, which keeps so many in its cache, and on a GPU."""


class _WeightedNLL(torch.autograd.Function):
    """sum_i weight_i * -log softmax(hidden_i @ W.T + b)[target_i], and its gradient in the same pass.

    The logits of all tokens of a batch are far larger than a CPU's cache. The forward pass takes a few rows at a time
    from logits to gradients, and keeps nothing of size [N, V].
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        targets: Tensor,
        row_weights: Tensor,
        logit_mask: LogitMask | None,
        positions: Tensor,
        sampling: Sampling,
    ) -> tuple[Tensor, Tensor]:
        rows, size = hidden.shape[0], weight.shape[0]
        chunk = max(1, CHUNK_BYTES[hidden.is_cuda] // (4 * size))
        losses = hidden.new_empty(rows)
        with_gradient = any(ctx.needs_input_grad)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None  # None where it is frozen
        grad_bias = torch.zeros_like(bias) if ctx.needs_input_grad[2] else None
        columns = weight.T
        buffers = hidden.new_empty(2, min(chunk, rows), size)  # logits and gradients of a chunk
        for begin in range(0, rows, chunk):
            part = slice(begin, begin + chunk)
            logits, grad_logits = buffers[:, : len(hidden[part])]
            torch.addmm(bias, hidden[part], columns, out=logits)  # [chunk, V]
            if logit_mask is not None:
                logits += logit_mask.at(positions[part])
            logits = adjusted_logits(logits, targets[part], sampling)
            torch.softmax(logits, dim=1, out=grad_logits)
            # The likeliest token's probability is at least 1 / V, so its logarithm is safe.
            total = logits.amax(dim=1) - grad_logits.amax(dim=1).log()
            losses[part] = total - logits.gather(1, targets[part, None])[:, 0]
            if not with_gradient:
                continue
            share = row_weights[part, None] / sampling.temperature
            grad_logits.mul_(share).scatter_add_(1, targets[part, None], -share)
            grad_hidden[part] = grad_logits @ weight
            if grad_weight is not None:
                grad_weight.addmm_(grad_logits.T, hidden[part])
            if grad_bias is not None:
                grad_bias += grad_logits.sum(dim=0)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.mark_non_differentiable(losses)
        return (losses * row_weights).sum(), losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        wanted = (None if gradient is None else grads[0] * gradient for gradient in ctx.saved_tensors)
        return *wanted, None, None, None, None, None


def weighted_nll(
    model: LanguageModel,
    tokens: Tensor,
    weights: Tensor,
    prompts: Tensor | None = None,
    inputs: Tensor | None = None,
    logit_mask: LogitMask | None = None,
    sampling: Sampling = WHOLE_SOFTMAX,
) -> tuple[Tensor, Tensor]:
    """Weighted sum of the negative log-probabilities of tokens, with gradient; and each of them, without.

    Args:
        model: A language model. All logits are kept in memory where its `output` is not a linear layer.
        tokens: [n, T]; any value where the weight is 0.
        weights: [n, T], constants.
        prompts: [n, P], read first.
        inputs: [n, T], read by the model instead of the tokens.
        logit_mask: Added to the logits.
        sampling: How the tokens were sampled; their probabilities are those that they were sampled with.

    Returns:
        The sum, and the negative log-probabilities [n, T]; 0 where the weight is 0.
    """
    counted = weights != 0
    hidden = model.features(tokens if inputs is None else inputs, prompts)[counted]  # [N, H]
    targets = tokens[counted]  # [N]
    row_weights = weights[counted]  # [N]
    positions = counted.nonzero()[:, 1]  # [N]
    output = model.output
    linear = output if isinstance(output, (nn.Linear, LinearOutput)) else None
    if linear is not None and hidden.dtype == linear.weight.dtype and hidden.dtype in (torch.float32, torch.float64):
        weight = linear.weight
        bias = weight.new_zeros(len(weight)) if linear.bias is None else linear.bias
        loss, each = _WeightedNLL.apply(  # type: ignore[no-untyped-call]
            hidden, weight, bias, targets, row_weights.to(hidden.dtype), logit_mask, positions, sampling
        )
    else:
        logits = output(hidden).float()
        if logit_mask is not None:
            logits = logits + logit_mask.at(positions)
        each = nn.functional.cross_entropy(adjusted_logits(logits, targets, sampling), targets, reduction="none")
        loss = (each * row_weights.to(each.dtype)).sum()
    losses = weights.new_zeros(weights.shape, dtype=each.dtype)
    losses[counted] = each.detach()
    return loss, losses


def adjusted_logits(logits: Tensor, targets: Tensor, sampling: Sampling) -> Tensor:
    """Adjust logits [N, V] as sampling does, and never remove the tokens [N] that were sampled.

    The logits of a whole batch differ in their last digits from those of single steps. A token that was sampled with
    nearly the probability of another may now be just outside the top k, and its loss would be infinite.
    """
    adjusted = sampling.adjust(logits)
    if sampling.top_k or sampling.top_p < 1:
        own = logits.gather(1, targets[:, None]) / sampling.temperature
        adjusted = adjusted.scatter(1, targets[:, None], own)
    return adjusted


@torch.no_grad()
def chunked_log_probs(
    output: Callable[[Tensor], Tensor], features: Tensor, targets: Tensor, adjust: Callable[[Tensor, slice], Tensor]
) -> Tensor:
    """Log-probabilities of tokens [N], without keeping all logits in memory.

    Args:
        output: Maps features [n, H] to logits [n, V].
        features: [N, H].
        targets: The tokens [N].
        adjust: Adjusts the logits [n, V] of a slice of the rows.
    """
    chunk = max(1, CHUNK_BYTES[features.is_cuda] // (4 * output(features[:1]).shape[1]))
    found = [torch.zeros(0, dtype=torch.float64, device=features.device)]
    for begin in range(0, len(targets), chunk):
        part = slice(begin, begin + chunk)
        logits = adjust(output(features[part]), part).double()
        found.append(-nn.functional.cross_entropy(logits, targets[part], reduction="none"))
    return torch.cat(found)
