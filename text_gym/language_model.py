"""The base class of language models, sampling from them, and an LSTM.

This module imports torch. `import text_gym` does not import it.
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

BLOCK = 128  # tokens in a block of the two-level search, about sqrt(V) for V = 5000 to 50,000
LOGITS_AT_ONCE = (1 << 21, 1 << 27)
"""Logits kept in memory while sampling, on a CPU and on a GPU: 8 MiB, which fit into a CPU's cache, and 512 MiB."""
CACHED_AT_ONCE = (1 << 25, 1 << 30)
"""Numbers in the states of the sequences that are sampled together, at most: 128 MiB on a CPU, 4 GiB on a GPU."""

State: TypeAlias = "Tensor | tuple[State, ...]"
"""What a model remembers of n prefixes: a tensor [n, ...], or a tuple of states."""


@cache
def tune_memory() -> None:
    """Set, for the whole process, what memory is kept for the next step and what is not.

    The C library of Linux keeps large freed blocks. Otherwise it returns them to the system, and clearing their pages
    anew in every step takes as long as half of the arithmetic. Freeing one block raises the size from which it does so
    (`man mallopt`, M_MMAP_THRESHOLD). The block is never written, so it costs nothing.

    oneDNN, which runs LSTMs on a CPU, keeps few kernels. It makes one for every shape, and batches of sequences have
    many; it would keep 1,024. It reads the number when the first one is made.
    """
    torch.empty(30 << 20, dtype=torch.uint8)
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")


class LanguageModel(nn.Module, ABC):
    """Predicts the next token of prefixes, step by step with a state, or at all positions of sequences at once.

    A subclass defines start(), step(), features() and `output`: a layer, a method or a property.
    Prompts [n, P] are read before the first token; they are right-padded with an id of at least V.
    """

    output: Callable[[Tensor], Tensor]
    """Maps features [..., H] to logits [..., V]."""

    @abstractmethod
    def start(self, n: int, prompts: Tensor | None = None) -> tuple[Tensor, State]:
        """Logits [n, V] of the first tokens of n sequences, and their state."""

    @abstractmethod
    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Logits [n, V] after reading one more token of each prefix [n], and the new state."""

    @abstractmethod
    def features(self, tokens: Tensor, prompts: Tensor | None = None) -> Tensor:
        """Features [n, T, H] from which `output` predicts each of the tokens [n, T]; they see only those before it."""

    def log_prob(self, tokens: Tensor, valid_mask: Tensor, prompts: Tensor | None = None) -> Tensor:
        """Log-probability of each token given those before it, [n, T]; 0 where valid_mask is False."""
        logits = self.output(self.features(tokens, prompts))  # [n, T, V]
        picked = logits.gather(2, tokens.clamp(max=logits.shape[2] - 1)[:, :, None])[:, :, 0]
        return (picked - logits.logsumexp(dim=2)).where(valid_mask, 0.0)

    def state_size(self, length: int) -> int:
        """Numbers in the state of one sequence after `length` tokens; 1 for a state that does not grow."""
        return 1


def map_state(function: Callable[[Tensor], Tensor], state: State) -> State:
    """Apply a function to each tensor of a state."""
    if isinstance(state, tuple):
        return tuple(map_state(function, part) for part in state)
    return function(state)


class LSTM(LanguageModel):
    """An embedding, one LSTM layer and a linear output layer, which read sequences after a start token.

    >>> model = LSTM(vocab_size=10)
    >>> logits, state = model.start(3)
    >>> logits.shape, model.log_prob(torch.tensor([[1, 2]]), torch.tensor([[True, True]])).shape
    (torch.Size([3, 10]), torch.Size([1, 2]))

    Args:
        vocab_size: Number of tokens.
        embedding: Size of the embeddings.
        hidden: Size of the LSTM.
        dropout: Dropout before and after the LSTM.
        start_token: Token that is read first; SeqGAN reads token 0.
    """

    output: nn.Linear

    def __init__(
        self, vocab_size: int, embedding: int = 32, hidden: int = 32, dropout: float = 0.0, start_token: int = 0
    ) -> None:
        """Create the layers with torch's default initial weights."""
        super().__init__()
        self.start_token = start_token
        self.embed = nn.Embedding(vocab_size, embedding)
        self.lstm = nn.LSTM(embedding, hidden, batch_first=True)
        self.output = nn.Linear(hidden, vocab_size)
        self.dropout = nn.Dropout(dropout)

    def start(self, n: int, prompts: Tensor | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Logits [n, V] of the first tokens of n sequences, and the hidden and cell state, each [n, H]."""
        weight = self.embed.weight
        zeros = weight.new_zeros(n, self.lstm.hidden_size)  # [n, H]
        state = self._read(torch.full((n,), self.start_token, device=weight.device), (zeros, zeros))
        for column in () if prompts is None else prompts.unbind(dim=1):
            real = (column < self.embed.num_embeddings)[:, None]  # [n, 1]
            hidden, cell = self._read(column.where(real[:, 0], torch.zeros_like(column)), state)
            state = hidden.where(real, state[0]), cell.where(real, state[1])
        return self.output(self.dropout(state[0])), state

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Logits [n, V] after reading one more token of each prefix [n], and the new state."""
        hidden, cell = self._read(tokens, cast("tuple[Tensor, Tensor]", state))
        return self.output(self.dropout(hidden)), (hidden, cell)

    def _read(self, tokens: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Read tokens [n], and return the hidden and cell state, each [n, H]."""
        return torch.lstm_cell(self.dropout(self.embed(tokens)), state, *self.lstm.all_weights[0])

    def features(self, tokens: Tensor, prompts: Tensor | None = None) -> Tensor:
        """Hidden states [n, T, H] before each of the tokens [n, T]."""
        real = tokens.clamp(max=self.embed.num_embeddings - 1)
        if prompts is None:
            first = torch.full_like(real[:, :1], self.start_token)
            hidden, _ = self.lstm(self.dropout(self.embed(torch.cat([first, real[:, :-1]], dim=1))))
        else:
            _, (last, cell) = self.start(len(tokens), prompts)  # after the prompt, each [n, H]
            hidden = last[:, None][:, : tokens.shape[1]]
            if tokens.shape[1] > 1:  # torch's LSTM refuses to read nothing
                after, _ = self.lstm(self.dropout(self.embed(real[:, :-1])), (last[None], cell[None]))
                hidden = torch.cat([hidden, after], dim=1)
        return self.dropout(hidden)  # type: ignore[no-any-return]


class Sampling(NamedTuple):
    """How tokens are sampled from logits."""

    temperature: float = 1.0
    """Divides the logits; below 1, likely tokens become likelier."""
    top_k: int = 0
    """Sample from so many of the likeliest tokens; 0 for all."""
    top_p: float = 1.0
    """Nucleus sampling: sample from the fewest likeliest tokens with this much probability together."""

    def checked(self) -> Sampling:
        """Return itself, or raise an error if a value is out of range."""
        if not self.temperature >= 1e-3 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise OptionError(
                f"{self} needs temperature of at least 0.001, top_k >= 0 and 0 < top_p <= 1; "
                "top_k=1 takes the likeliest token"
            )
        return self

    def adjust(self, logits: Tensor) -> Tensor:
        """Return the logits [n, V] of the distribution that tokens are sampled from."""
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
    """True at the fewest likeliest tokens with at least this much probability together, [n, V].

    Of equally likely tokens, those with smaller ids come first.

    >>> nucleus_mask(torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log(), top_p=0.7)
    tensor([[ True,  True, False, False]])

    Args:
        logits: [n, V].
        top_p: The probability; 1 for all tokens.
        min_tokens: At least so many of the likeliest tokens are True.
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
    """The number nearest to BLOCK that divides the size of a vocabulary; BLOCK where none is near."""
    near = sorted(range(BLOCK // 2, 2 * BLOCK + 1), key=lambda width: abs(width - BLOCK))
    return next((width for width in near if size % width == 0), BLOCK)


@torch.no_grad()
def draw_tokens(
    logits: Tensor, generator: torch.Generator | None = None, sampling: Sampling = WHOLE_SOFTMAX
) -> tuple[Tensor, Tensor]:
    """Sample a token [n] from each row of logits [n, V], and return its log-probability [n] too.

    The log-probability is that under the adjusted logits. Without a generator, torch's global one is used.

    The cumulative sum is inverted in two levels: sums over blocks tell which block a uniform number falls in, and only
    that block is summed up token by token. This is exact, and on a CPU many times faster than torch.multinomial, which
    normalises and searches the whole row.
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
        raise TrainingError("the model's logits are not finite; it cannot be sampled from")
    uniform = torch.rand(n, 1, generator=generator, dtype=torch.float64, device=logits.device)
    target = uniform * block_sums[:, -1:]
    block = torch.searchsorted(block_sums, target, right=True).clamp_(max=blocks - 1)  # [n, 1]
    before = nn.functional.pad(block_sums, (1, 0)).gather(1, block)
    inside = weights.gather(1, block[:, :, None].expand(n, 1, width))[:, 0]  # [n, width]
    sums = inside.double().cumsum(dim=1)
    place = torch.searchsorted(sums, target - before, right=True)
    # Rounding may put the target at the very end of a block: take the last token with a probability.
    last = width - 1 - (inside > 0).flip(1).int().argmax(dim=1, keepdim=True)
    place = torch.minimum(place, last)
    log_prob = (inside.gather(1, place).double() / block_sums[:, -1:]).log()[:, 0]
    return (block * width + place)[:, 0], log_prob


class Drawn(NamedTuple):
    """Sampled sequences."""

    tokens: Tensor
    """[n, T], PAD = V after the end."""
    lengths: Tensor
    """[n], EOS included."""
    log_probs: Tensor
    """[n, T], of each token under the distribution that it was sampled from; 0 after the end."""

    def __repr__(self) -> str:
        return outline(self)

    @property
    def valid_mask(self) -> Tensor:
        """True at real tokens, and False after the end, [n, T]."""
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
    """Sample the rest of sequences of at most `length` tokens.

    Args:
        model: The language model.
        prefixes: [n, k], without an end.
        logits: The model's logits [n, V] after the prefixes.
        state: The model's state after the prefixes.
        length: Maximal length.
        eos: The token that ends a sequence; None for sequences of exactly this length.
        generator: Source of random numbers.
        sampling: How tokens are sampled.
    """
    n, pad = len(prefixes), logits.shape[1]
    tokens = torch.full((n, length), pad, dtype=torch.long, device=logits.device)
    tokens[:, : prefixes.shape[1]] = prefixes
    log_probs = torch.zeros(n, length, dtype=torch.float64, device=logits.device)
    lengths = torch.full((n,), length, device=logits.device)
    alive = torch.arange(n, device=logits.device)
    for t in range(prefixes.shape[1], length):
        drawn, log_prob = draw_tokens(logits, generator, sampling)
        tokens[alive, t] = drawn
        log_probs[alive, t] = log_prob
        if eos is not None:
            ended = drawn == eos
            lengths[alive[ended]] = t + 1
            if ended.any():
                going = (~ended).nonzero()[:, 0]
                alive = alive[going]
                drawn = drawn[going]
                state = map_state(lambda part: part[going], state)  # noqa: B023 - called at once
                if not len(alive):
                    break
        if t + 1 < length:
            logits, state = model.step(drawn, state)
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
    """Sample n sequences of at most `length` tokens, with prompts [n, P] if there are any.

    Memory is bounded: only as many sequences are sampled together as LOGITS_AT_ONCE and CACHED_AT_ONCE allow.
    """
    none, _ = model.start(0, None if prompts is None else prompts[:0])  # [0, V], on the model's device
    read = length + (0 if prompts is None else prompts.shape[1])
    states = CACHED_AT_ONCE[none.is_cuda] // model.state_size(read)
    rows = max(1, min(LOGITS_AT_ONCE[none.is_cuda] // none.shape[1], states))
    parts = []
    for begin in range(0, max(n, 1), rows):
        count = min(rows, n - begin)
        logits, state = model.start(count, None if prompts is None else prompts[begin : begin + count])
        nothing = torch.zeros(count, 0, dtype=torch.long, device=logits.device)
        parts.append(complete(model, nothing, logits, state, length, eos, generator, sampling))
    return Drawn(*(torch.cat(column) for column in zip(*parts, strict=True)))
