"""A causal Transformer as a language model."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from text_gym.errors import OptionError
from text_gym.language_model import LanguageModel, State

Cache = tuple[Tensor, Tensor]
"""Keys and values of one layer for the L tokens read so far, each [n, heads, L, width / heads]."""


class Transformer(LanguageModel):
    """Causal pre-norm Transformer with sinusoidal positions. It reads a start token before each sequence.

    The state of n prefixes is the valid mask [n, L] of the L tokens read so far, and the cache of every layer. step()
    does not modify the tensors of the old state, so several continuations can start from the same state.

    >>> model = Transformer(vocab_size=10, width=8, inner=16)
    >>> logits, state = model.start(3)
    >>> logits.shape, model.log_prob(torch.tensor([[1, 2]]), torch.tensor([[True, True]])).shape
    (torch.Size([3, 10]), torch.Size([1, 2]))

    Args:
        vocab_size: Number of tokens V.
        width: Model width: size of the embeddings and of the hidden states.
        inner: Hidden size of the feed-forward networks.
        layers: Number of blocks, each with attention and a feed-forward network.
        heads: Number of attention heads per block; each has the size width / heads.
        dropout: Dropout rate of the embeddings and of the output of each attention and feed-forward network.
        start_token: Token that is read before each sequence.
    """

    output: nn.Linear

    def __init__(
        self,
        vocab_size: int,
        width: int = 64,
        inner: int = 256,
        layers: int = 2,
        heads: int = 4,
        dropout: float = 0.0,
        start_token: int = 0,
    ) -> None:
        super().__init__()
        if min(width, inner, layers, heads) < 1 or width % heads or width % 2:
            raise OptionError(
                f"width={width}, inner={inner}, layers={layers} and heads={heads} do not fit together: all must be at "
                "least 1, and width must be even and divisible by heads; give for example width=64 and heads=4"
            )
        self.heads, self.inner, self.start_token = heads, inner, start_token
        self.embed = nn.Embedding(vocab_size, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(_Block(width, inner, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, vocab_size)

    def start(self, n: int, prompts: Tensor | None = None) -> tuple[Tensor, State]:
        """Compute the logits [n, V] of the first tokens of n sequences, and their state."""
        first, real = self._start_and_prompt(n, prompts)
        hidden, state = self._read(first, real, self._empty_state(n))
        return self.output(hidden[:, -1]), state

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Compute the logits [n, V] after one more token of each prefix, [n], and the new state."""
        column = tokens[:, None]
        hidden, state = self._read(column, torch.ones_like(column, dtype=torch.bool), state)
        return self.output(hidden[:, -1]), state

    def features(self, tokens: Tensor, prompts: Tensor | None = None) -> Tensor:
        """Compute the normalised hidden states [n, T, width] before each of the tokens [n, T]."""
        n, length = tokens.shape
        first, valid = self._start_and_prompt(n, prompts)  # each [n, 1 + P]
        rest = tokens[:, :-1].clamp(max=self.embed.num_embeddings - 1)
        valid = torch.cat([valid, torch.ones_like(rest, dtype=torch.bool)], dim=1)
        hidden, _ = self._read(torch.cat([first, rest], dim=1), valid, self._empty_state(n))
        return hidden[:, first.shape[1] - 1 :][:, :length]

    def state_size(self, length: int) -> int:
        """Return how many numbers the state of one sequence of `length` tokens has."""
        return 2 * len(self.blocks) * (1 + length) * self.embed.embedding_dim

    def _start_and_prompt(self, n: int, prompts: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return start token and prompt, and their valid mask, each [n, 1 + P].

        Padding is moved to the front, so that the last column has the last token of every prompt.
        """
        first = torch.full((n, 1), self.start_token, device=self.embed.weight.device)
        valid = torch.ones_like(first, dtype=torch.bool)
        if prompts is None:
            return first, valid
        in_prompt = prompts < self.embed.num_embeddings
        tokens = torch.cat([first, prompts.where(in_prompt, 0)], dim=1)
        valid = torch.cat([valid, in_prompt], dim=1)
        order = valid.int().argsort(dim=1, stable=True)
        return tokens.gather(1, order), valid.gather(1, order)

    def _empty_state(self, n: int) -> State:
        """Return the state of n sequences before the first token is read."""
        weight = self.embed.weight
        empty = weight.new_empty(n, self.heads, 0, weight.shape[1] // self.heads)
        return weight.new_ones(n, 0, dtype=torch.bool), ((empty, empty),) * len(self.blocks)

    def _read(self, tokens: Tensor, valid: Tensor, state: State) -> tuple[Tensor, State]:
        """Read tokens [n, S] with valid mask [n, S] after a state; return hidden states [n, S, width] and new state."""
        valid_before, caches = cast("tuple[Tensor, tuple[Cache, ...]]", state)
        all_valid = torch.cat([valid_before, valid], dim=1)  # [n, L]
        size, total = tokens.shape[1], all_valid.shape[1]
        positions = all_valid.cumsum(dim=1)[:, total - size :] - 1  # [n, S], counted without padding
        causal = all_valid.new_ones(size, total).tril(total - size)
        # Tokens do not attend to padding. Padding attends to everything before it, so that no row of the mask is empty.
        mask = (causal & (all_valid[:, None] | ~valid[:, :, None]))[:, None]  # [n, 1, S, L]
        vectors = self.embed(tokens)  # [n, S, width]
        hidden = self.dropout(vectors + sinusoids(positions, vectors.shape[2]).to(vectors.dtype))
        new_caches = []
        for block, cache in zip(self.blocks, caches, strict=True):
            hidden, cache = block(hidden, mask, cache)
            new_caches.append(cache)
        return self.norm(hidden), (all_valid, tuple(new_caches))


class _Block(nn.Module):
    """Attention and a feed-forward network, each with a preceding layer normalisation and a residual connection."""

    def __init__(self, width: int, inner: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.inner_norm = nn.LayerNorm(width)
        self.attention_in = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.inner_in = nn.Linear(width, inner)
        self.inner_out = nn.Linear(inner, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, mask: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """Map hidden states [n, S, width] to those of the next layer, and extend the cache; mask is [n, 1, S, L]."""
        split = self.attention_in(self.attention_norm(hidden)).unflatten(2, (3, self.heads, -1))
        queries, keys, values = split.permute(2, 0, 3, 1, 4)  # each [n, heads, S, width / heads]
        keys = torch.cat([cache[0], keys], dim=2)  # [n, heads, L, width / heads]
        values = torch.cat([cache[1], values], dim=2)
        mixed = nn.functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        hidden = hidden + self.dropout(self.attention_out(mixed.transpose(1, 2).flatten(2)))
        inner = nn.functional.gelu(self.inner_in(self.inner_norm(hidden)))
        return hidden + self.dropout(self.inner_out(inner)), (keys, values)


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """Encode positions [...] as sines and cosines [..., width] of wavelengths from 2 pi to nearly 20,000 pi."""
    rates = torch.exp(torch.arange(width // 2, device=positions.device) * (-2 * math.log(10_000) / width))
    angles = positions[..., None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
