"""Monte-Carlo completions: what a sequence is worth after each of its tokens.

The state after a prefix is computed once, and N completions go on from it. Finished sequences are
scored in few large batches, whatever the reward.
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
    """The value of each sequence after each of its tokens, [n, T + 1]; column 0 is before the first token.

    After t tokens it is the mean reward of `rollouts` completions by the model; after the last token it
    is the sequence's own reward, scored once. Behind the end it stays what it is there. Without
    rollouts all columns are the sequence's own reward.

    Args:
        model: Completes prefixes.
        tokens: Finished sequences [n, T], PAD after the end.
        lengths: [n], EOS included.
        score: The reward.
        rollouts: Completions of each prefix.
        eos: The token that ends a sequence, if there is one.
        generator: Draws the completions.
        prompts: [n, P], read first.
        from_start: Whether column 0 is wanted too; else it is 0.
        chunk: Prefixes completed at a time, which bounds the memory for logits.
        scored_together: Completions kept until they are scored.
        sampling: How the completions are drawn; as the sequences were, for values of the policy that drew them.
    """
    n, width = tokens.shape
    own = score(tokens, lengths, torch.arange(n, device=tokens.device)).double()
    if not rollouts:
        return own[:, None].expand(n, width + 1).clone()
    totals = torch.zeros(n, width + 1, dtype=torch.float64, device=tokens.device)
    waiting = _Waiting(score, totals, scored_together)
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
            waiting.add(drawn.tokens, drawn.lengths, part, t)
    waiting.flush()
    values = totals / rollouts
    ended = torch.arange(width + 1, device=tokens.device) >= lengths[:, None]
    return torch.where(ended, own[:, None], values)


class _Waiting:
    """Completions until there are enough of them to be scored in one batch."""

    def __init__(self, score: Score, totals: Tensor, most: int) -> None:
        self._score, self._totals, self._most = score, totals, most
        self._parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self._count = 0

    def add(self, tokens: Tensor, lengths: Tensor, rows: Tensor, t: int) -> None:
        self._parts.append((tokens, lengths, rows, torch.full_like(rows, t)))
        self._count += len(rows)
        if self._count >= self._most:
            self.flush()

    def flush(self) -> None:
        """Score what is there, and add each reward to its sequence's total after its number of tokens."""
        if not self._parts:
            return
        tokens, lengths, rows, places = (torch.cat(column) for column in zip(*self._parts, strict=True))
        rewards = self._score(tokens, lengths, rows).to(self._totals.dtype)
        self._totals.index_put_((rows, places), rewards, accumulate=True)
        self._parts, self._count = [], 0
