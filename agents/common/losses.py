"""Log-probabilities of tokens and weighted losses, in chunks: the logits of a whole batch are never in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from agents.networks.huggingface import LinearOutput
from agents.networks.policies import LogitMask
from text_gym.language_model import WHOLE_SOFTMAX, LanguageModel, Sampling

CHUNK_BYTES = (8 << 20, 1 << 30)
"""Size of a chunk of logits in bytes, on a CPU (fits its cache) and on a GPU."""


class _WeightedNLL(torch.autograd.Function):
    """Compute sum_i weight_i * -log softmax(hidden_i @ W.T + b)[target_i], and its gradient in the forward pass.

    The logits of a batch are much larger than the cache of a CPU. The forward pass therefore computes logits and
    gradients of a few rows at a time, and never stores a tensor of size [N, V].
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
            # logsumexp, by means of the likeliest token: its probability is at least 1 / V, so its logarithm is finite.
            logsumexp = logits.amax(dim=1) - grad_logits.amax(dim=1).log()
            losses[part] = logsumexp - logits.gather(1, targets[part, None])[:, 0]
            if not with_gradient:
                continue
            scale = row_weights[part, None] / sampling.temperature
            grad_logits.mul_(scale).scatter_add_(1, targets[part, None], -scale)
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
        scaled = (None if gradient is None else grads[0] * gradient for gradient in ctx.saved_tensors)
        return *scaled, None, None, None, None, None


def weighted_nll(
    model: LanguageModel,
    tokens: Tensor,
    weights: Tensor,
    prompts: Tensor | None = None,
    inputs: Tensor | None = None,
    logit_mask: LogitMask | None = None,
    sampling: Sampling = WHOLE_SOFTMAX,
) -> tuple[Tensor, Tensor]:
    """Compute the weighted sum of the negative log-likelihoods (NLL) of tokens.

    Args:
        model: Language model. If its `output` is not a linear layer, all logits are in memory at once.
        tokens: Target tokens [n, T]; ignored where the weight is 0.
        weights: Weights [n, T] without gradient.
        prompts: Prompts [n, P].
        inputs: Input tokens [n, T] of the model, if they are not the target tokens.
        logit_mask: Mask that is added to the logits.
        sampling: Temperature, top-k and top-p of the distribution in which the NLL is computed.

    Returns:
        The weighted sum, with gradient, and the NLL of each token [n, T], without gradient and 0 where the weight is 0.
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
    """Apply temperature, top-k and top-p to logits [N, V], but never remove the sampled tokens [N].

    The logits of a whole batch differ by rounding from the logits of single steps, with which the tokens were sampled.
    A sampled token could otherwise be just outside the top k, and its loss would be infinite.
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
    """Compute the log-probabilities of tokens, [N], with the logits of one chunk in memory at a time.

    Args:
        output: Maps features [n, H] to logits [n, V].
        features: Features [N, H] before each token.
        targets: Tokens [N].
        adjust: Maps the logits [n, V] of a chunk, and its slice of the N rows, to the logits to use.
    """
    chunk = max(1, CHUNK_BYTES[features.is_cuda] // (4 * output(features[:1]).shape[1]))
    log_probs = [torch.zeros(0, dtype=torch.float64, device=features.device)]
    for begin in range(0, len(targets), chunk):
        part = slice(begin, begin + chunk)
        logits = adjust(output(features[part]), part).double()
        log_probs.append(-nn.functional.cross_entropy(logits, targets[part], reduction="none"))
    return torch.cat(log_probs)
