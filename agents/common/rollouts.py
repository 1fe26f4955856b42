"""Monte-Carlo rollouts: the value of a sequence after each of its tokens.

The state after a prefix is computed once, and all completions start from it. Finished sequences are scored in few large
batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from text_gym.arrays import FloatArray
from text_gym.language_model import WHOLE_SOFTMAX, LanguageModel, Sampling, complete, map_state
from text_gym.sequences import Batch, Example
from text_gym.vocab import Vocabulary

Score = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Maps finished tokens [m, T], their lengths [m] and the rows of the batch that they belong to [m] to rewards [m]."""


def score_sequences(
    rewards: Callable[[Batch], FloatArray], vocab: Vocabulary, examples: Sequence[Example] | None
) -> Score:
    """Make a score of a reward.

    Args:
        rewards: Computes the rewards [m] of a batch, whose arrays are read-only.
        vocab: The vocabulary of the tokens.
        examples: The prompt and references of each row, in tasks with prompts.
    """

    def score(tokens: Tensor, lengths: Tensor, rows: Tensor) -> Tensor:
        arrays = [tensor.cpu().numpy().copy() for tensor in (tokens, lengths)]
        for array in arrays:
            array.flags.writeable = False
        chosen = None if examples is None else [examples[i] for i in rows.tolist()]
        values = rewards(Batch(arrays[0], arrays[1], vocab, chosen))
        return torch.from_numpy(np.asarray(values, dtype=np.float64)).to(tokens.device)

    return score


@torch.no_grad()
def rollout_values(
    model: LanguageModel,
    tokens: Tensor,
    lengths: Tensor,
    score: Score,
    rollouts: int,
    eos: int | None,
    generator: torch.Generator,
    prompts: Tensor | None = None,
    from_start: bool = False,
    chunk: int = 256,
    scored_together: int = 4096,
    sampling: Sampling = WHOLE_SOFTMAX,
) -> Tensor:
    """Estimate the value of sequences before their first token and after each token, [n, T + 1].

    After t tokens the value is the mean reward of `rollouts` completions of these tokens. At the end and after it, it
    is the sequence's own reward. Without rollouts it is that everywhere.

    Args:
        model: Completes prefixes.
        tokens: Finished sequences [n, T], PAD after the end.
        lengths: [n], EOS included.
        score: The reward.
        rollouts: Completions of each prefix.
        eos: The token that ends a sequence, if there is one.
        generator: Source of random numbers.
        prompts: [n, P], read first.
        from_start: Whether to estimate the value before the first token; otherwise it is 0.
        chunk: Prefixes completed at a time, which bounds the memory for logits.
        scored_together: Completions kept until they are scored.
        sampling: How completions are sampled. For the values of a policy, as it sampled the sequences.
    """
    n, width = tokens.shape
    own = score(tokens, lengths, torch.arange(n, device=tokens.device)).double()
    if not rollouts:
        return own[:, None].expand(n, width + 1).clone()
    totals = torch.zeros(n, width + 1, dtype=torch.float64, device=tokens.device)
    pending = _Pending(score, totals, scored_together)
    logits, state = model.start(n, prompts)
    for t in range(width):
        if t:
            logits, state = model.step(tokens[:, t - 1].clamp(max=logits.shape[1] - 1), state)
        if not t and not from_start:
            continue
        alive = (lengths > t).nonzero()[:, 0]
        rows = alive.repeat_interleave(rollouts)
        for part in torch.split(rows, chunk):
            inner = map_state(lambda tensor: tensor[part], state)  # noqa: B023 - used at once
            drawn = complete(model, tokens[part, :t], logits[part], inner, width, eos, generator, sampling)
            pending.add(drawn.tokens, drawn.lengths, part, t)
    pending.flush()
    values = totals / rollouts
    ended = torch.arange(width + 1, device=tokens.device) >= lengths[:, None]
    return torch.where(ended, own[:, None], values)


class _Pending:
    """Completions that wait until there are enough of them for a batch."""

    def __init__(self, score: Score, totals: Tensor, batch_size: int) -> None:
        self._score = score
        self._totals = totals
        self._batch_size = batch_size
        self._parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self._count = 0

    def add(self, tokens: Tensor, lengths: Tensor, rows: Tensor, t: int) -> None:
        self._parts.append((tokens, lengths, rows, torch.full_like(rows, t)))
        self._count += len(rows)
        if self._count >= self._batch_size:
            self.flush()

    def flush(self) -> None:
        """Score all completions, and add each reward to the total of its sequence and number of tokens."""
        if not self._parts:
            return
        tokens, lengths, rows, places = (torch.cat(column) for column in zip(*self._parts, strict=True))
        rewards = self._score(tokens, lengths, rows).to(self._totals.dtype)
        self._totals.index_put_((rows, places), rewards, accumulate=True)
        self._parts = []
        self._count = 0
