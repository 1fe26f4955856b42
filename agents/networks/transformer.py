"""A causal Transformer, which goes wherever the LSTM of text_gym.language_model does."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from text_gym.errors import OptionError
from text_gym.language_model import LanguageModel, State

Cache = tuple[Tensor, Tensor]
"""A layer's keys and values of all that was read, each [n, heads, L, width / heads]."""


class Transformer(LanguageModel):
    """A pre-norm Transformer with sinusoidal positions, reading sequences after a start token.

    The state of n prefixes is which of the L tokens read are real [n, L], and each layer's cache.
    Reading makes longer tensors and leaves those of the old state alone, so that several
    continuations may go on from one state, and none computes again what stands before it.

    >>> model = Transformer(vocab_size=10, width=8, inner=16)
    >>> logits, state = model.start(3)
    >>> logits.shape, model.log_prob(torch.tensor([[1, 2]]), torch.tensor([[True, True]])).shape
    (torch.Size([3, 10]), torch.Size([1, 2]))

    Args:
        vocab_size: Tokens.
        width: Size of a token's embedding, and of all that is added to it.
        inner: Size of the hidden layer after each attention.
        layers: Blocks of attention and hidden layer.
        heads: Attentions side by side in a block; they share the width.
        dropout: Share of values dropped from the embedding and from all that is added to it, in training only.
        start_token: What is read before the first token.
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
        """Create the layers with torch's own initial weights."""
        super().__init__()
        if min(width, inner, layers, heads) < 1 or width % heads or width % 2:
            raise OptionError(
                f"width={width}, inner={inner}, layers={layers} and heads={heads} must be at least 1, and width an "
                "even multiple of heads: choose width=64 with heads=4, or the like"
            )
        self.heads, self.inner, self.start_token = heads, inner, start_token
        self.embed = nn.Embedding(vocab_size, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(_Block(width, inner, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, vocab_size)

    def start(self, n: int, prompts: Tensor | None = None) -> tuple[Tensor, State]:
        """Logits and state of n empty prefixes, behind their prompts."""
        hidden, state = self._read(*self._beginning(n, prompts), self._nothing_read(n))
        return self.output(hidden[:, -1]), state

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """One token further: tokens [n] to logits [n, V]."""
        hidden, state = self._read(tokens[:, None], torch.ones_like(tokens[:, None], dtype=torch.bool), state)
        return self.output(hidden[:, -1]), state

    def features(self, tokens: Tensor, prompts: Tensor | None = None) -> Tensor:
        """What the output layer reads before each token: tokens [n, T] to [n, T, width]."""
        n, length = tokens.shape
        first, real = self._beginning(n, prompts)  # [n, 1 + P]
        rest = tokens[:, :-1].clamp(max=self.embed.num_embeddings - 1)
        real = torch.cat([real, torch.ones_like(rest, dtype=torch.bool)], dim=1)
        hidden, _ = self._read(torch.cat([first, rest], dim=1), real, self._nothing_read(n))
        return hidden[:, first.shape[1] - 1 :][:, :length]

    def state_size(self, length: int) -> int:
        """How many numbers the state of a sequence has, when so many tokens have been read."""
        return 2 * len(self.blocks) * (1 + length) * self.embed.embedding_dim

    def _beginning(self, n: int, prompts: Tensor | None) -> tuple[Tensor, Tensor]:
        """What stands before the first token, and which of it is real, each [n, 1 + P]; padding is moved to the front.

        So the last column is the last real token of every row, be it that of the prompt or the start.
        """
        first = torch.full((n, 1), self.start_token, device=self.embed.weight.device)
        real = torch.ones_like(first, dtype=torch.bool)
        if prompts is None:
            return first, real
        in_prompt = prompts < self.embed.num_embeddings
        tokens = torch.cat([first, prompts.where(in_prompt, 0)], dim=1)
        real = torch.cat([real, in_prompt], dim=1)
        order = real.int().argsort(dim=1, stable=True)
        return tokens.gather(1, order), real.gather(1, order)

    def _nothing_read(self, n: int) -> State:
        """The state before anything was read."""
        weight = self.embed.weight
        empty = weight.new_empty(n, self.heads, 0, weight.shape[1] // self.heads)
        return weight.new_ones(n, 0, dtype=torch.bool), ((empty, empty),) * len(self.blocks)

    def _read(self, tokens: Tensor, real: Tensor, state: State) -> tuple[Tensor, State]:
        """Read tokens [n, S], some of them padding, behind a state: hidden [n, S, width] and the new state."""
        before, caches = cast("tuple[Tensor, tuple[Cache, ...]]", state)
        seen = torch.cat([before, real], dim=1)  # [n, L]
        size, total = tokens.shape[1], seen.shape[1]
        places = seen.cumsum(dim=1)[:, total - size :] - 1  # [n, S], among the real tokens
        causal = seen.new_ones(size, total).tril(total - size)
        # Nobody looks at padding. Padding itself, at which nobody looks, may look at all before it.
        mask = (causal & (seen[:, None] | ~real[:, :, None]))[:, None]  # [n, 1, S, L]
        vectors = self.embed(tokens)  # [n, S, width]
        hidden = self.dropout(vectors + sinusoids(places, vectors.shape[2]).to(vectors.dtype))
        after = []
        for block, cache in zip(self.blocks, caches, strict=True):
            hidden, cache = block(hidden, mask, cache)
            after.append(cache)
        return self.norm(hidden), (seen, tuple(after))


class _Block(nn.Module):
    """Attention and a hidden layer, each of which reads normalised values and adds to them."""

    def __init__(self, width: int, inner: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.inner_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention_in, self.attention_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.inner_in, self.inner_out = nn.Linear(width, inner), nn.Linear(inner, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, mask: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """Tokens [n, S, width] further, reading the cache before them, where mask [n, 1, S, L] allows."""
        split = self.attention_in(self.attention_norm(hidden)).unflatten(2, (3, self.heads, -1))
        queries, keys, values = split.permute(2, 0, 3, 1, 4)  # each [n, heads, S, width / heads]
        keys, values = torch.cat([cache[0], keys], dim=2), torch.cat([cache[1], values], dim=2)  # [n, heads, L, ...]
        mixed = nn.functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        hidden = hidden + self.dropout(self.attention_out(mixed.transpose(1, 2).flatten(2)))
        inner = nn.functional.gelu(self.inner_in(self.inner_norm(hidden)))
        return hidden + self.dropout(self.inner_out(inner)), (keys, values)


def sinusoids(places: Tensor, width: int) -> Tensor:
    """The vectors [..., width] of positions: sines and cosines, of wavelengths from 2 pi to nearly 20,000 pi."""
    rates = torch.exp(torch.arange(width // 2, device=places.device) * (-2 * math.log(10_000) / width))
    angles = places[..., None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
