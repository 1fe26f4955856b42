"""Monte-Carlo rollouts: estimates of the value of every prefix of a sequence.

A rollout completes a prefix by sampling, and the value of the prefix is the mean reward of its rollouts. The model's
state after a prefix is computed once for all of its rollouts. Completions are scored in a few large batches.
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
"""Maps finished sequences [m, T], their lengths [m] and their rows in the batch of sequences [m] to rewards [m]."""


def score_sequences(
    rewards: Callable[[Batch], FloatArray], vocab: Vocabulary, examples: Sequence[Example] | None
) -> Score:
    """Create a scoring function of tensors from a reward of batches.

    Args:
        rewards: Computes the rewards [m] of a batch. The arrays of the batch are read-only.
        vocab: Vocabulary of the sequences.
        examples: Prompt and references of each row, in tasks with prompts.
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
    """Estimate the value of sequences before their first token and after each token.

    The value after t tokens is the mean reward of `rollouts` completions of these tokens. From the last token on, it is
    the reward of the sequence itself. With rollouts=0, it is this reward everywhere.

    Args:
        model: Language model that completes the prefixes.
        tokens: Finished sequences [n, T], padded with PAD.
        lengths: Lengths [n], EOS included.
        score: Reward of finished sequences.
        rollouts: Number of rollouts per prefix.
        eos: EOS; None in tasks without EOS.
        generator: Source of random numbers.
        prompts: Prompts [n, P].
        from_start: Whether to estimate the value before the first token too; otherwise it is 0.
        chunk: Number of rollouts generated at a time; limits the memory for logits.
        scored_together: Number of completions that are collected before they are scored.
        sampling: Temperature, top-k and top-p of the rollouts. They should equal those of the sequences.

    Returns:
        Values [n, T + 1].
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
        unfinished = (lengths > t).nonzero()[:, 0]
        rows = unfinished.repeat_interleave(rollouts)
        for part in torch.split(rows, chunk):
            part_state = map_state(lambda tensor: tensor[part], state)  # noqa: B023 - used at once
            completed = complete(model, tokens[part, :t], logits[part], part_state, width, eos, generator, sampling)
            pending.add(completed.tokens, completed.lengths, part, t)
    pending.flush()
    values = totals / rollouts
    ended = torch.arange(width + 1, device=tokens.device) >= lengths[:, None]
    return torch.where(ended, own[:, None], values)


class _Pending:
    """Completions to be scored, in batches of at least `batch_size`; adds their rewards to `totals` [n, T + 1]."""

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
        """Score all pending completions, and add each reward to the total of its prefix."""
        if not self._parts:
            return
        tokens, lengths, rows, positions = (torch.cat(column) for column in zip(*self._parts, strict=True))
        rewards = self._score(tokens, lengths, rows).to(self._totals.dtype)
        self._totals.index_put_((rows, positions), rewards, accumulate=True)
        self._parts = []
        self._count = 0
