"""The base class of language models, functions that sample from them, and an LSTM.

This module imports torch; `import text_gym` does not import this module.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache, lru_cache
from typing import NamedTuple, TypeAlias, cast

import torch
from torch import Tensor, nn

from text_gym.arrays import outline
from text_gym.errors import OptionError, TrainingError

BLOCK = 128  # tokens per block of the two-level search, about sqrt(V) for V = 5000 to 50,000
LOGITS_AT_ONCE = (1 << 21, 1 << 27)
"""Maximum number of logits in memory while sampling: on a CPU (8 MiB, which fit in its cache), on a GPU (512 MiB)."""
CACHED_AT_ONCE = (1 << 25, 1 << 30)
"""Maximum size of the states of sequences that are sampled together: on a CPU (128 MiB), on a GPU (4 GiB)."""

State: TypeAlias = "Tensor | tuple[State, ...]"
"""The recurrent state or cache of a model after n prefixes: a tensor [n, ...], or a tuple of states."""


@cache
def tune_memory() -> None:
    """Tune memory allocation on a CPU, for the whole process.

    glibc returns large freed blocks to the system, and clearing their pages again in every step takes half as long as
    the arithmetic. Freeing one very large block raises the size from which it does so (`man mallopt`,
    M_MMAP_THRESHOLD). The block is never written, so it uses no memory.

    oneDNN, which runs LSTMs on a CPU, creates a kernel for every shape of a batch and caches 1,024 of them by default.
    The environment variable limits the cache; oneDNN reads it when it creates the first kernel.
    """
    torch.empty(30 << 20, dtype=torch.uint8)
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")


class LanguageModel(nn.Module, ABC):
    """Base class of language models, which predict the next token.

    start() and step() predict one token at a time with a recurrent state, for sampling. features() and
    `output` predict all tokens of given sequences at once (teacher forcing), for training.

    A subclass defines start(), step(), features() and `output`, which may be a layer, a method or a
    property. Prompts [n, P] precede the first token; they are right-padded with an id of at least V.
    """

    output: Callable[[Tensor], Tensor]
    """Output layer: maps features [..., H] to logits [..., V]."""

    @abstractmethod
    def start(self, n: int, prompts: Tensor | None = None) -> tuple[Tensor, State]:
        """Return the logits [n, V] of the first token of n sequences, and the state."""

    @abstractmethod
    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Append a token [n] to each prefix; return the logits [n, V] of the next token, and the new state."""

    @abstractmethod
    def features(self, tokens: Tensor, prompts: Tensor | None = None) -> Tensor:
        """Return features [n, T, H]; those at position t depend only on tokens before t, and predict token t."""

    def log_prob(self, tokens: Tensor, valid_mask: Tensor, prompts: Tensor | None = None) -> Tensor:
        """Compute the log-probability of each token given the preceding ones, [n, T]; 0 where valid_mask is False."""
        logits = self.output(self.features(tokens, prompts))  # [n, T, V]
        picked = logits.gather(2, tokens.clamp(max=logits.shape[2] - 1)[:, :, None])[:, :, 0]
        return (picked - logits.logsumexp(dim=2)).where(valid_mask, 0.0)

    def state_size(self, length: int) -> int:
        """Return the number of elements in the state of one sequence after `length` tokens; 1 if it is constant."""
        return 1


def map_state(function: Callable[[Tensor], Tensor], state: State) -> State:
    """Apply a function to each tensor of a state."""
    if isinstance(state, tuple):
        return tuple(map_state(function, part) for part in state)
    return function(state)


class LSTM(LanguageModel):
    """Language model with an embedding, one LSTM layer and a linear output layer.

    >>> model = LSTM(vocab_size=10)
    >>> logits, state = model.start(3)
    >>> logits.shape, model.log_prob(torch.tensor([[1, 2]]), torch.tensor([[True, True]])).shape
    (torch.Size([3, 10]), torch.Size([1, 2]))

    Args:
        vocab_size: Number of tokens V.
        embedding: Size of the embeddings.
        hidden: Size of the LSTM.
        dropout: Dropout probability before and after the LSTM.
        start_token: Input of the first step; 0 as in SeqGAN.
    """

    output: nn.Linear

    def __init__(
        self, vocab_size: int, embedding: int = 32, hidden: int = 32, dropout: float = 0.0, start_token: int = 0
    ) -> None:
        """Create the layers with PyTorch's default initialization."""
        super().__init__()
        self.start_token = start_token
        self.embed = nn.Embedding(vocab_size, embedding)
        self.lstm = nn.LSTM(embedding, hidden, batch_first=True)
        self.output = nn.Linear(hidden, vocab_size)
        self.dropout = nn.Dropout(dropout)

    def start(self, n: int, prompts: Tensor | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the logits [n, V] of the first token of n sequences, and the hidden and cell state, each [n, H]."""
        weight = self.embed.weight
        zeros = weight.new_zeros(n, self.lstm.hidden_size)  # [n, H]
        state = self._read(torch.full((n,), self.start_token, device=weight.device), (zeros, zeros))
        for column in () if prompts is None else prompts.unbind(dim=1):
            real = (column < self.embed.num_embeddings)[:, None]  # [n, 1]
            hidden, cell = self._read(column.where(real[:, 0], torch.zeros_like(column)), state)
            state = hidden.where(real, state[0]), cell.where(real, state[1])
        return self.output(self.dropout(state[0])), state

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Append a token [n] to each prefix; return the logits [n, V] of the next token, and the new state."""
        hidden, cell = self._read(tokens, cast("tuple[Tensor, Tensor]", state))
        return self.output(self.dropout(hidden)), (hidden, cell)

    def _read(self, tokens: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Run one step of the LSTM on tokens [n]; return the hidden and cell state, each [n, H]."""
        return torch.lstm_cell(self.dropout(self.embed(tokens)), state, *self.lstm.all_weights[0])

    def features(self, tokens: Tensor, prompts: Tensor | None = None) -> Tensor:
        """Return the hidden states [n, T, H] before each of the tokens [n, T]."""
        real = tokens.clamp(max=self.embed.num_embeddings - 1)
        if prompts is None:
            first = torch.full_like(real[:, :1], self.start_token)
            hidden, _ = self.lstm(self.dropout(self.embed(torch.cat([first, real[:, :-1]], dim=1))))
        else:
            _, (last, cell) = self.start(len(tokens), prompts)  # after the prompt, each [n, H]
            hidden = last[:, None][:, : tokens.shape[1]]
            if tokens.shape[1] > 1:  # nn.LSTM does not accept empty sequences
                after, _ = self.lstm(self.dropout(self.embed(real[:, :-1])), (last[None], cell[None]))
                hidden = torch.cat([hidden, after], dim=1)
        return self.dropout(hidden)  # type: ignore[no-any-return]


class Sampling(NamedTuple):
    """Options for sampling tokens from logits."""

    temperature: float = 1.0
    """Divisor of the logits; values below 1 make likely tokens more likely."""
    top_k: int = 0
    """Sample from the k most likely tokens only; 0 means all tokens."""
    top_p: float = 1.0
    """Nucleus sampling: sample from the smallest set of most likely tokens with at least this total probability."""

    def checked(self) -> Sampling:
        """Return the options; OptionError if a value is out of range."""
        if not self.temperature >= 1e-3 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise OptionError(
                f"{self} needs temperature >= 0.001, top_k >= 0 and 0 < top_p <= 1; for greedy decoding, give top_k=1"
            )
        return self

    def adjust(self, logits: Tensor) -> Tensor:
        """Apply temperature, top_k and top_p to logits [n, V]; removed tokens get -inf."""
        if self.temperature != 1:
            logits = logits / self.temperature
        if 0 < self.top_k < logits.shape[1]:
            least = logits.topk(self.top_k, dim=1).values[:, -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        if self.top_p < 1:
            logits = logits.masked_fill(~nucleus_mask(logits, self.top_p), -torch.inf)
        return logits


WHOLE_SOFTMAX = Sampling()


def nucleus_mask(logits: Tensor, top_p: float, min_tokens: int = 1) -> Tensor:
    """Return the nucleus: the smallest set of most likely tokens with a total probability of at least `top_p`.

    Among equally likely tokens, smaller ids come first.

    >>> nucleus_mask(torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log(), top_p=0.7)
    tensor([[ True,  True, False, False]])

    Args:
        logits: Logits, [n, V].
        top_p: Total probability; 1 selects all tokens.
        min_tokens: Minimum number of tokens in the nucleus.

    Returns:
        A boolean mask, True at the tokens of the nucleus, [n, V].
    """
    if top_p >= 1:
        return torch.ones_like(logits, dtype=torch.bool)
    probabilities, order = logits.softmax(dim=1).sort(dim=1, descending=True, stable=True)
    before = probabilities.cumsum(dim=1) - probabilities
    kept = before < top_p
    kept[:, :min_tokens] = True
    return torch.zeros_like(kept).scatter(1, order, kept)


@lru_cache(maxsize=64)
def _block_width(size: int) -> int:
    """Return the divisor of a vocabulary size that is nearest to BLOCK; BLOCK if there is none in its range."""
    near = sorted(range(BLOCK // 2, 2 * BLOCK + 1), key=lambda width: abs(width - BLOCK))
    return next((width for width in near if size % width == 0), BLOCK)


@torch.no_grad()
def draw_tokens(
    logits: Tensor, generator: torch.Generator | None = None, sampling: Sampling = WHOLE_SOFTMAX
) -> tuple[Tensor, Tensor]:
    """Sample a token from each row of logits.

    The inverse of the cumulative distribution is computed in two levels. The sums of blocks of tokens determine the
    block of a uniform random number, and only this block is summed token by token. This is exact, and on a CPU many
    times faster than torch.multinomial, which normalises and searches the whole row.

    Args:
        logits: Logits, [n, V].
        generator: Random number generator; None uses PyTorch's global generator.
        sampling: Temperature, top_k and top_p, which adjust the logits.

    Returns:
        The tokens [n], and their log-probabilities [n] under the adjusted logits.
    """
    logits = sampling.adjust(logits)
    n, size = logits.shape
    width = _block_width(size)
    blocks = -(-size // width)
    if size % width:
        logits = nn.functional.pad(logits, (0, blocks * width - size), value=-torch.inf)
    weights = logits.softmax(dim=1).view(n, blocks, width)
    block_sums = weights.sum(dim=2).double().cumsum(dim=1)  # [n, blocks]
    if not block_sums[:, -1:].isfinite().all():
        raise TrainingError(
            "the model's logits are not finite, probably because training has diverged; lower the learning rate"
        )
    uniform = torch.rand(n, 1, generator=generator, dtype=torch.float64, device=logits.device)
    target = uniform * block_sums[:, -1:]
    block = torch.searchsorted(block_sums, target, right=True).clamp_(max=blocks - 1)  # [n, 1]
    before = nn.functional.pad(block_sums, (1, 0)).gather(1, block)
    inside = weights.gather(1, block[:, :, None].expand(n, 1, width))[:, 0]  # [n, width]
    sums = inside.double().cumsum(dim=1)
    place = torch.searchsorted(sums, target - before, right=True)
    # Rounding may put the target at the end of the block: take its last token with a positive probability.
    last = width - 1 - (inside > 0).flip(1).int().argmax(dim=1, keepdim=True)
    place = torch.minimum(place, last)
    log_prob = (inside.gather(1, place).double() / block_sums[:, -1:]).log()[:, 0]
    return (block * width + place)[:, 0], log_prob


class Drawn(NamedTuple):
    """Sampled sequences."""

    tokens: Tensor
    """Token ids, right-padded with PAD = V, [n, T]."""
    lengths: Tensor
    """Lengths including EOS, [n]."""
    log_probs: Tensor
    """Log-probability of each sampled token under the adjusted logits, [n, T]; 0 for prefixes and PAD."""

    def __repr__(self) -> str:
        return outline(self)

    @property
    def valid_mask(self) -> Tensor:
        """True at real tokens, False at PAD, [n, T]."""
        return torch.arange(self.tokens.shape[1], device=self.tokens.device) < self.lengths[:, None]


@torch.no_grad()
def complete(
    model: LanguageModel,
    prefixes: Tensor,
    logits: Tensor,
    state: State,
    length: int,
    eos: int | None,
    generator: torch.Generator,
    sampling: Sampling = WHOLE_SOFTMAX,
) -> Drawn:
    """Sample completions of prefixes.

    Args:
        model: The language model.
        prefixes: Token ids without EOS, [n, k].
        logits: The model's logits after the prefixes, [n, V].
        state: The model's state after the prefixes.
        length: Maximum length of prefix and completion together.
        eos: Id of EOS; None samples sequences of exactly `length` tokens.
        generator: Random number generator.
        sampling: Temperature, top_k and top_p.
    """
    n, pad = len(prefixes), logits.shape[1]
    tokens = torch.full((n, length), pad, dtype=torch.long, device=logits.device)
    tokens[:, : prefixes.shape[1]] = prefixes
    log_probs = torch.zeros(n, length, dtype=torch.float64, device=logits.device)
    lengths = torch.full((n,), length, device=logits.device)
    alive = torch.arange(n, device=logits.device)
    for t in range(prefixes.shape[1], length):
        sampled, log_prob = draw_tokens(logits, generator, sampling)
        tokens[alive, t] = sampled
        log_probs[alive, t] = log_prob
        if eos is not None:
            ended = sampled == eos
            lengths[alive[ended]] = t + 1
            if ended.any():
                unfinished = (~ended).nonzero()[:, 0]
                alive = alive[unfinished]
                sampled = sampled[unfinished]
                state = map_state(lambda part: part[unfinished], state)  # noqa: B023 - called at once
                if not len(alive):
                    break
        if t + 1 < length:
            logits, state = model.step(sampled, state)
    return Drawn(tokens, lengths, log_probs)


@torch.no_grad()
def generate(
    model: LanguageModel,
    n: int,
    length: int,
    eos: int | None,
    generator: torch.Generator,
    sampling: Sampling = WHOLE_SOFTMAX,
    prompts: Tensor | None = None,
) -> Drawn:
    """Sample sequences, in batches that are limited by LOGITS_AT_ONCE and CACHED_AT_ONCE.

    Args:
        model: The language model.
        n: Number of sequences.
        length: Maximum length.
        eos: Id of EOS; None samples sequences of exactly `length` tokens.
        generator: Random number generator.
        sampling: Temperature, top_k and top_p.
        prompts: Prompt of each sequence, [n, P]; None in tasks without prompts.
    """
    empty, _ = model.start(0, None if prompts is None else prompts[:0])  # [0, V], on the model's device
    read = length + (0 if prompts is None else prompts.shape[1])
    states = CACHED_AT_ONCE[empty.is_cuda] // model.state_size(read)
    rows = max(1, min(LOGITS_AT_ONCE[empty.is_cuda] // empty.shape[1], states))
    parts = []
    for begin in range(0, max(n, 1), rows):
        count = min(rows, n - begin)
        logits, state = model.start(count, None if prompts is None else prompts[begin : begin + count])
        no_prefix = torch.zeros(count, 0, dtype=torch.long, device=logits.device)
        parts.append(complete(model, no_prefix, logits, state, length, eos, generator, sampling))
    return Drawn(*(torch.cat(column) for column in zip(*parts, strict=True)))
