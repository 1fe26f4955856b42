"""Discriminators: networks that tell real sequences from generated ones, and are rewards while they learn to.

The networks know nothing of rewards, and `Discriminator` nothing of what is inside them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from text_gym.arrays import FloatArray
from text_gym.errors import OptionError, RewardError, TrainingError
from text_gym.rewards.reward import Reward
from text_gym.sequences import Batch
from text_gym.tasks.task import Task
from text_gym.validation import (
    check_not_negative,
    check_positive,
    check_switch,
    check_whole,
    finite_number,
    suggest,
    whole_number,
)

RewardForm = Literal["probability", "logit", "log_ratio"]
REWARD_FORMS = ("probability", "logit", "log_ratio")
REAL, GENERATED = 1, 0

# (width, filters) of the published convolutions.
PAPER_FILTERS = (
    (1, 100), (2, 200), (3, 200), (4, 200), (5, 200), (6, 100), (7, 100), (8, 100), (9, 100), (10, 100), (15, 160),
    (20, 160),
)  # fmt: skip
HEADS = 4  # of the Transformer
MAX_BATCH = 512  # rows that are scored together, or fewer where they are long:
MAX_NUMBERS = 1 << 23  # in the largest tensor that a network computes for rows that are scored together


@dataclass(frozen=True)
class DiscriminatorSettings:
    """Hyper-parameters of a `Discriminator`."""

    kind: str = "cnn"
    """Network: "cnn" (the published one), "recurrent" (a bidirectional GRU) or "transformer"."""
    reward: RewardForm = "probability"
    """Reward that it gives: the "probability" of being real, its "logit", or the "log_ratio" (log-odds)."""
    embedding: int = 64
    """Size of the token embeddings."""
    hidden: int = 64
    """Hidden size of the recurrent network; a quarter of the Transformer's feed-forward size."""
    filters: tuple[tuple[int, int], ...] = PAPER_FILTERS
    """(width, number) of each convolution of the CNN."""
    dropout: float = 0.25
    """Dropout rate in training."""
    batch_size: int = 64
    """Sequences in a minibatch, real and generated ones mixed."""
    learning_rate: float = 1e-4
    """Adam learning rate."""
    l2: float = 0.2
    """Weight of the L2 penalty on the output layer (half the sum of squares)."""
    bfloat16: bool = True
    """Whether to multiply in bfloat16 where the device has it in hardware; weights stay float32."""

    def __post_init__(self) -> None:
        """Check every value."""
        if self.kind not in NETWORKS:
            raise OptionError(f"there is no discriminator {self.kind!r}." + suggest(str(self.kind), NETWORKS))
        if self.reward not in REWARD_FORMS:
            raise OptionError(
                f"there is no discriminator.reward {self.reward!r}." + suggest(str(self.reward), REWARD_FORMS)
            )
        check_whole(self, 1, "embedding", "hidden", "batch_size", group="discriminator.")
        check_positive(self, "learning_rate", group="discriminator.")
        check_not_negative(self, "l2", group="discriminator.")
        if self.kind == "transformer" and self.embedding % HEADS:
            raise OptionError(
                f"discriminator.embedding={self.embedding} must be a multiple of {HEADS} for a transformer"
            )
        if not 0 <= finite_number("discriminator.dropout", self.dropout) < 1:
            raise OptionError(f"discriminator.dropout={self.dropout} must lie in [0, 1)")
        check_switch("discriminator.bfloat16", self.bfloat16)
        self._check_filters()

    def _check_filters(self) -> None:
        what = f"discriminator.filters={self.filters!r}"
        try:
            filters = tuple((whole_number("a width", w, 1), whole_number("filters", n, 1)) for w, n in self.filters)
        except (TypeError, ValueError) as problem:
            raise OptionError(f"{what} must be pairs of a width and a number") from problem
        if not filters or min(width for width, _ in filters) > 1:
            raise OptionError(f"{what} need some of width 1, which fit any length")
        object.__setattr__(self, "filters", filters)


class Network(nn.Module, ABC):
    """A binary classifier of rows of ids.

    Args:
        ids: Number of ids; `pad` is one of them.
        pad: Padding id.
        length: Ids in a row.
        settings: Sizes and dropout.
    """

    output: nn.Linear
    """Last layer, from features to two logits."""
    numbers_per_row: int
    """Numbers in the largest tensor that forward() computes for one row."""

    def __init__(self, ids: int, pad: int, length: int, settings: DiscriminatorSettings) -> None:
        """Draw the embeddings from U(-1, 1); the padding id's are zeros and stay so."""
        super().__init__()
        self.pad = pad
        self.embed = nn.Embedding(ids, settings.embedding, padding_idx=pad)
        with torch.no_grad():
            self.embed.weight.uniform_(-1, 1)
            self.embed.weight[pad] = 0
        self.dropout = nn.Dropout(settings.dropout)

    @abstractmethod
    def features(self, rows: Tensor) -> Tensor:
        """Compute the features [n, F] of rows of ids [n, L]."""

    def forward(self, rows: Tensor) -> Tensor:
        """Compute the logits [n, 2] of generated and real for rows of ids [n, L]."""
        return self.output(self.dropout(self.features(rows)))  # type: ignore[no-any-return]

    def _make_output(self, features: int) -> nn.Linear:
        layer = nn.Linear(features, 2)
        nn.init.trunc_normal_(layer.weight, std=0.1, a=-0.2, b=0.2)
        nn.init.constant_(layer.bias, 0.1)
        return layer


class CNN(Network):
    """The published CNN: convolutions of many widths, max over time, one highway layer.

    Convolutions wider than a row are left out. The highway layer starts with Glorot-uniform weights and zero bias,
    which is what the published code leaves to TensorFlow.
    """

    def __init__(self, ids: int, pad: int, length: int, settings: DiscriminatorSettings) -> None:
        """Draw the initial weights as published."""
        super().__init__(ids, pad, length, settings)
        filters = [(width, count) for width, count in settings.filters if width <= length]
        self.widths = [width for width, _ in filters]
        convolutions = [nn.Linear(width * settings.embedding, count) for width, count in filters]
        for convolution in convolutions:
            nn.init.trunc_normal_(convolution.weight, std=0.1, a=-0.2, b=0.2)
            nn.init.constant_(convolution.bias, 0.1)
        self.convolutions = nn.ModuleList(convolutions)
        features = sum(count for _, count in filters)
        self.highway = nn.Linear(features, 2 * features)  # transform and gate
        for part in self.highway.weight.chunk(2):
            nn.init.xavier_uniform_(part.detach())
        nn.init.zeros_(self.highway.bias)
        self.output = self._make_output(features)
        self.numbers_per_row = max(width * (length - width + 1) for width in self.widths) * settings.embedding

    def features(self, rows: Tensor) -> Tensor:
        """Compute the features [n, F] of rows of ids [n, L]."""
        features = self._max_over_time(rows)  # [n, F]
        new, gate = self.highway(features).chunk(2, dim=1)
        return torch.lerp(features, new.relu(), gate.sigmoid())

    def _max_over_time(self, rows: Tensor) -> Tensor:
        """Compute the maximum over time of every filter, [n, F].

        A convolution is written as a linear layer on windows, which is faster on a CPU.
        """
        embedded = self.embed(rows)  # [n, L, E]
        if torch.is_autocast_enabled(rows.device.type):
            embedded = embedded.to(torch.get_autocast_dtype(rows.device.type))
        maxima = []
        for width, convolution in zip(self.widths, self.convolutions, strict=True):
            places = rows.shape[1] - width + 1
            windows = torch.cat([embedded[:, o : o + places] for o in range(width)], dim=2)  # [n, places, width * E]
            maxima.append(convolution(windows).amax(dim=1))
        return torch.cat(maxima, dim=1).relu()  # the maximum of relu is the relu of the maximum


class Recurrent(Network):
    """A bidirectional GRU and max over time."""

    def __init__(self, ids: int, pad: int, length: int, settings: DiscriminatorSettings) -> None:
        """Use torch's initial weights for the GRU; rows may have any length."""
        super().__init__(ids, pad, length, settings)
        self.gru = nn.GRU(settings.embedding, settings.hidden, batch_first=True, bidirectional=True)
        self.output = self._make_output(2 * settings.hidden)
        self.numbers_per_row = length * (settings.embedding + 8 * settings.hidden)

    def features(self, rows: Tensor) -> Tensor:
        """Compute the features [n, F] of rows of ids [n, L]."""
        states: Tensor = self.gru(self.dropout(self.embed(rows)))[0]  # [n, L, 2H]
        return states.masked_fill((rows == self.pad)[:, :, None], -1.0).amax(dim=1)  # a state is above -1


class Encoder(Network):
    """A Transformer encoder and mean over time."""

    def __init__(self, ids: int, pad: int, length: int, settings: DiscriminatorSettings) -> None:
        """Draw the position embeddings from N(0, 0.1)."""
        super().__init__(ids, pad, length, settings)
        width, inner = settings.embedding, 4 * settings.hidden
        self.places = nn.Parameter(torch.randn(length, width) * 0.1)
        layer = nn.TransformerEncoderLayer(
            width, nhead=HEADS, dim_feedforward=inner, dropout=settings.dropout, batch_first=True, norm_first=True
        )
        self.dropout = nn.Dropout(0.0)  # there is dropout in every layer
        self.encoder = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
        self.output = self._make_output(width)
        self.numbers_per_row = length * (inner + 4 * width) + HEADS * length**2

    def features(self, rows: Tensor) -> Tensor:
        """Compute the features [n, F] of rows of ids [n, L]."""
        padding = rows == self.pad
        states: Tensor = self.encoder(self.embed(rows) + self.places, src_key_padding_mask=padding)  # [n, L, E]
        real = (~padding)[:, :, None]
        return (states * real).sum(dim=1) / real.sum(dim=1)


NETWORKS: dict[str, type[Network]] = {"cnn": CNN, "recurrent": Recurrent, "transformer": Encoder}


class Discriminator(Reward):
    """A network that predicts whether a sequence is real; with prompts, whether it is a real answer to its prompt.

    It is a Reward like any other, and goes on being trained while it is one.

    Args:
        task: Task whose sequences it reads; other tasks with the same tokens will do too.
        length: Tokens of a sequence at most.
        settings: Network, reward form and training.
        device: Device of the network.
    """

    name = "discriminator"

    def __init__(
        self,
        task: Task,
        length: int,
        settings: DiscriminatorSettings | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        """Create the network and its optimiser."""
        self.task, self.length = task, length
        self.settings = DiscriminatorSettings() if settings is None else settings
        self.device = torch.device(device)
        self.width = length + (task.prompt_length + 1 if task.conditional else 0)
        ids, pad = len(task.vocab) + 2, task.vocab.pad  # the last id separates prompt and answer
        self.network = NETWORKS[self.settings.kind](ids, pad, self.width, self.settings).to(self.device)
        # Fused Adam goes over the weights once; otherwise a dozen times, with new memory for most of them.
        self.optimizer = torch.optim.Adam(self.network.parameters(), self.settings.learning_rate, fused=True)
        self.bfloat16 = self.settings.bfloat16 and has_bfloat16(self.device)

    def prepare(self, task: Task) -> None:
        """Refuse a task with other tokens."""
        if task.vocab.tokens != self.task.vocab.tokens or task.prompt_length != self.task.prompt_length:
            raise RewardError(f"this discriminator was made for {self.task!r}, and cannot judge {task!r}")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.settings.kind!r}, task={self.task.name!r})"

    def load_weights(self, other: Discriminator) -> None:
        """Copy the weights of another discriminator of the same tokens, kind and size."""
        if not isinstance(other, Discriminator):
            raise OptionError(f"the discriminator to begin with is a Discriminator, and not {other!r}")
        self.prepare(other.task)
        try:
            self.network.load_state_dict(other.network.state_dict())
        except RuntimeError as problem:
            raise OptionError(f"the discriminator to begin with is of another kind or size: {problem}") from problem

    def rows(self, batch: Batch) -> Tensor:
        """Encode a batch as the network reads it, [n, L]: prompt, separator, sequence, padding."""
        pad = self.task.vocab.pad
        tokens = batch.tokens[:, : self.length]
        if int(batch.lengths.max(initial=0)) > self.length:
            raise RewardError(
                f"this discriminator judges sequences of at most {self.length} tokens, and there are longer ones; "
                "make the environment, the task and the discriminator with one max_length"
            )
        rows = np.full((len(batch), self.width), pad, dtype=np.int64)
        begin = self.width - self.length
        rows[:, begin : begin + tokens.shape[1]] = tokens
        if self.task.conditional:
            rows[:, begin - 1] = pad + 1
            for row, example in zip(rows, batch.examples or (), strict=True):
                row[begin - 1 - len(example.prompt) : begin - 1] = example.prompt
        return torch.from_numpy(rows).to(self.device)

    @torch.no_grad()
    def logits(self, rows: Tensor) -> Tensor:
        """Predict the logits [n, 2] of generated and real, without dropout."""
        self.network.eval()
        batch_size = min(MAX_BATCH, max(1, MAX_NUMBERS // self.network.numbers_per_row))
        return torch.cat([self._forward(part) for part in torch.split(rows, batch_size)])

    def _forward(self, rows: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            logits: Tensor = self.network(rows)
        return logits.float()

    def score(self, batch: Batch) -> FloatArray:
        """Compute the reward of each sequence, in the form that the settings name."""
        logits = self.logits(self.rows(batch)).double()
        log_ratio = logits[:, REAL] - logits[:, GENERATED]
        scores = {"probability": log_ratio.sigmoid(), "logit": logits[:, REAL], "log_ratio": log_ratio}
        return np.asarray(scores[self.settings.reward].cpu(), dtype=np.float64)

    def share_real(self, rows: Tensor) -> float:
        """Compute the share of rows that are predicted to be real."""
        logits = self.logits(rows)
        return float((logits[:, REAL] > logits[:, GENERATED]).double().mean())

    def train_epoch(self, real: Tensor, generated: Tensor, generator: torch.Generator) -> float:
        """Train on all rows once, in random order.

        Returns:
            The mean loss.
        """
        rows = torch.cat([real, generated])
        classes = torch.tensor([REAL, GENERATED], device=self.device).repeat_interleave(
            torch.tensor([len(real), len(generated)], device=self.device)
        )
        order = torch.randperm(len(rows), generator=generator, device=self.device)
        self.network.train()
        total = 0.0
        for chosen in torch.split(order, self.settings.batch_size):
            total += self.train_step(rows[chosen], classes[chosen]) * len(chosen)
        return total / max(len(rows), 1)

    def train_step(self, rows: Tensor, classes: Tensor) -> float:
        """Take one Adam step.

        Returns:
            The loss.
        """
        loss = self.loss(rows, classes)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        value = float(loss.detach())
        if not np.isfinite(value):
            raise TrainingError(f"the discriminator's loss is {value}: it has diverged; lower its learning rate")
        self.optimizer.step()
        return value

    def loss(self, rows: Tensor, classes: Tensor) -> Tensor:
        """Compute the cross-entropy plus the L2 penalty on the output layer."""
        output = self.network.output
        penalty = (output.weight.square().sum() + output.bias.square().sum()) / 2
        return nn.functional.cross_entropy(self._forward(rows), classes) + self.settings.l2 * penalty


def has_bfloat16(device: torch.device) -> bool:
    """Return whether a device multiplies bfloat16 in hardware; where it does not, torch emulates it slowly."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # torch's own check for a CPU is content with AVX-512 alone, with which bfloat16 is slower than float32.
    instructions = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return device.type == "cpu" and instructions is not None and bool(instructions())
