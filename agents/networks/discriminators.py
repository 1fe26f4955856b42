"""Discriminators: binary classifiers of real and generated sequences, which can be used as a reward.

`Discriminator` is the reward and trains the classifier. The classifier is a `Network`: a CNN, a bidirectional GRU or a
Transformer encoder.
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

Kind = Literal["cnn", "recurrent", "transformer"]
RewardForm = Literal["probability", "logit", "log_ratio"]
REWARD_FORMS = ("probability", "logit", "log_ratio")
REAL, GENERATED = 1, 0  # indices of the logits

# (width, number of filters) of each convolution in SeqGAN's published code.
PAPER_FILTERS = (
    (1, 100), (2, 200), (3, 200), (4, 200), (5, 200), (6, 100), (7, 100), (8, 100), (9, 100), (10, 100), (15, 160),
    (20, 160),
)  # fmt: skip
HEADS = 4  # attention heads of the Transformer
MAX_BATCH = 512  # maximum number of rows in a forward pass without gradient
MAX_NUMBERS = 1 << 23  # maximum size of the largest tensor in this forward pass; long rows need smaller batches


@dataclass(frozen=True)
class DiscriminatorSettings:
    """Hyperparameters of a `Discriminator`."""

    kind: Kind = "cnn"
    """Network architecture:
    - cnn: the CNN of SeqGAN's published code
    - recurrent: a bidirectional GRU
    - transformer: a Transformer encoder with two layers"""
    reward: RewardForm = "probability"
    """Reward of a sequence:
    - probability: the predicted probability that the sequence is real
    - logit: the logit of the class "real"
    - log_ratio: the predicted log-odds that the sequence is real"""
    embedding: int = 64
    """Size of the token embeddings."""
    hidden: int = 64
    """Hidden size of the GRU, or a quarter of the size of the Transformer's feed-forward layers."""
    filters: tuple[tuple[int, int], ...] = PAPER_FILTERS
    """Convolutions of the CNN: pairs (width, number of filters). Filters wider than a sequence are left out."""
    dropout: float = 0.25
    """Dropout rate."""
    batch_size: int = 64
    """Minibatch size, in sequences. Real and generated sequences are mixed."""
    learning_rate: float = 1e-4
    """Adam learning rate of the discriminator."""
    l2: float = 0.2
    """Weight of the L2 penalty on the output layer: half the sum of its squared weights and biases."""
    bfloat16: bool = True
    """Whether to use bfloat16 autocast on devices with bfloat16 instructions. The weights stay float32."""

    def __post_init__(self) -> None:
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
                f"discriminator.embedding={self.embedding} is not divisible by the {HEADS} attention heads; give a "
                f"multiple of {HEADS}"
            )
        if not 0 <= finite_number("discriminator.dropout", self.dropout) < 1:
            raise OptionError(f"discriminator.dropout={self.dropout} is out of range; give a number in [0, 1)")
        check_switch("discriminator.bfloat16", self.bfloat16)
        self._check_filters()

    def _check_filters(self) -> None:
        given = f"discriminator.filters={self.filters!r}"
        try:
            filters = tuple((whole_number("a width", w, 1), whole_number("filters", n, 1)) for w, n in self.filters)
        except (TypeError, ValueError) as problem:
            raise OptionError(
                f"{given} is not a sequence of (width, number of filters); give for example ((1, 32), (2, 32))"
            ) from problem
        if not filters or min(width for width, _ in filters) > 1:
            raise OptionError(
                f"{given} has no filters of width 1; add some, because only they fit sequences of length 1"
            )
        object.__setattr__(self, "filters", filters)


class Network(nn.Module, ABC):
    """Base class of binary classifiers of rows of token ids.

    Args:
        ids: Number of ids, including `pad`.
        pad: Padding id.
        length: Number of ids per row.
        settings: Sizes and dropout rate.
    """

    output: nn.Linear
    """Output layer, from features [n, F] to logits [n, 2]."""
    numbers_per_row: int
    """Size of the largest tensor that forward() computes, per row."""

    def __init__(self, ids: int, pad: int, length: int, settings: DiscriminatorSettings) -> None:
        super().__init__()
        self.pad = pad
        self.embed = nn.Embedding(ids, settings.embedding, padding_idx=pad)
        with torch.no_grad():  # U(-1, 1); the embedding of the padding id stays 0
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
    """CNN of SeqGAN's published code: convolutions of several widths, max-over-time pooling and one highway layer.

    Convolutions wider than a row are left out. The initial weights are as published. For the highway layer these are
    Glorot-uniform weights and zero biases, the defaults of TensorFlow.
    """

    def __init__(self, ids: int, pad: int, length: int, settings: DiscriminatorSettings) -> None:
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

        The convolutions are linear layers on sliding windows, which is faster than nn.Conv1d on a CPU.
        """
        embedded = self.embed(rows)  # [n, L, E]
        if torch.is_autocast_enabled(rows.device.type):
            embedded = embedded.to(torch.get_autocast_dtype(rows.device.type))
        maxima = []
        for width, convolution in zip(self.widths, self.convolutions, strict=True):
            count = rows.shape[1] - width + 1  # of windows
            windows = torch.cat([embedded[:, o : o + count] for o in range(width)], dim=2)  # [n, count, width * E]
            maxima.append(convolution(windows).amax(dim=1))
        return torch.cat(maxima, dim=1).relu()  # the maximum of relu is the relu of the maximum


class Recurrent(Network):
    """Bidirectional GRU and max-over-time pooling. Rows may have any length."""

    def __init__(self, ids: int, pad: int, length: int, settings: DiscriminatorSettings) -> None:
        super().__init__(ids, pad, length, settings)
        self.gru = nn.GRU(settings.embedding, settings.hidden, batch_first=True, bidirectional=True)
        self.output = self._make_output(2 * settings.hidden)
        self.numbers_per_row = length * (settings.embedding + 8 * settings.hidden)

    def features(self, rows: Tensor) -> Tensor:
        """Compute the features [n, F] of rows of ids [n, L]."""
        states: Tensor = self.gru(self.dropout(self.embed(rows)))[0]  # [n, L, 2H]
        return states.masked_fill((rows == self.pad)[:, :, None], -1.0).amax(dim=1)  # GRU states are above -1


class Encoder(Network):
    """Transformer encoder and mean-over-time pooling."""

    def __init__(self, ids: int, pad: int, length: int, settings: DiscriminatorSettings) -> None:
        super().__init__(ids, pad, length, settings)
        width, inner = settings.embedding, 4 * settings.hidden
        self.places = nn.Parameter(torch.randn(length, width) * 0.1)
        layer = nn.TransformerEncoderLayer(
            width, nhead=HEADS, dim_feedforward=inner, dropout=settings.dropout, batch_first=True, norm_first=True
        )
        self.dropout = nn.Dropout(0.0)  # the encoder layers have dropout already
        self.encoder = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
        self.output = self._make_output(width)
        self.numbers_per_row = length * (inner + 4 * width) + HEADS * length**2

    def features(self, rows: Tensor) -> Tensor:
        """Compute the features [n, F] of rows of ids [n, L]."""
        padding = rows == self.pad
        states: Tensor = self.encoder(self.embed(rows) + self.places, src_key_padding_mask=padding)  # [n, L, E]
        real = (~padding)[:, :, None]
        return (states * real).sum(dim=1) / real.sum(dim=1)


NETWORKS: dict[Kind, type[Network]] = {"cnn": CNN, "recurrent": Recurrent, "transformer": Encoder}


class Discriminator(Reward):
    """Reward that predicts whether a sequence is real or generated. With prompts, it reads prompt and sequence.

    The network can be trained while an environment uses it as its reward.

    Args:
        task: Task of the sequences. Other tasks with the same tokens can be scored too.
        length: Maximum length of a sequence.
        settings: Network, reward and training.
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
        self.task, self.length = task, length
        self.settings = DiscriminatorSettings() if settings is None else settings
        self.device = torch.device(device)
        self.width = length + (task.prompt_length + 1 if task.conditional else 0)
        ids, pad = len(task.vocab) + 2, task.vocab.pad  # the last id is the separator of prompt and sequence
        self.network = NETWORKS[self.settings.kind](ids, pad, self.width, self.settings).to(self.device)
        # Fused Adam reads the weights once per step, and not once per elementwise operation.
        self.optimizer = torch.optim.Adam(self.network.parameters(), self.settings.learning_rate, fused=True)
        self.bfloat16 = self.settings.bfloat16 and has_bfloat16(self.device)

    def prepare(self, task: Task) -> None:
        """Raise RewardError for a task with other tokens or another prompt length."""
        if task.vocab.tokens != self.task.vocab.tokens or task.prompt_length != self.task.prompt_length:
            raise RewardError(
                f"the discriminator was made for {self.task!r}; {task!r} has other tokens or another prompt length, so "
                "make a discriminator for it"
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.settings.kind!r}, task={self.task.name!r})"

    def load_weights(self, other: Discriminator) -> None:
        """Copy the weights of another discriminator of the same tokens, kind and size."""
        if not isinstance(other, Discriminator):
            raise OptionError(f"cannot copy weights from {other!r}; give a Discriminator")
        self.prepare(other.task)
        try:
            self.network.load_state_dict(other.network.state_dict())
        except RuntimeError as problem:
            raise OptionError(
                "cannot copy the weights of a discriminator of another kind or size; give both the same settings "
                f"({problem})"
            ) from problem

    def rows(self, batch: Batch) -> Tensor:
        """Encode a batch as input of the network, [n, L]: prompt, separator, sequence, padding."""
        pad = self.task.vocab.pad
        tokens = batch.tokens[:, : self.length]
        if int(batch.lengths.max(initial=0)) > self.length:
            raise RewardError(
                f"the discriminator takes sequences of at most {self.length} tokens, and the batch has longer ones; "
                "give the task, the environment and the discriminator the same max_length"
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
        """Compute the logits [n, 2] of generated and real in evaluation mode, in batches of bounded size."""
        self.network.eval()
        batch_size = min(MAX_BATCH, max(1, MAX_NUMBERS // self.network.numbers_per_row))
        return torch.cat([self._forward(part) for part in torch.split(rows, batch_size)])

    def _forward(self, rows: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            logits: Tensor = self.network(rows)
        return logits.float()

    def score(self, batch: Batch) -> FloatArray:
        """Compute the reward of each sequence, [n]; see `DiscriminatorSettings.reward`."""
        logits = self.logits(self.rows(batch)).double()
        log_ratio = logits[:, REAL] - logits[:, GENERATED]
        scores = {"probability": log_ratio.sigmoid(), "logit": logits[:, REAL], "log_ratio": log_ratio}
        return np.asarray(scores[self.settings.reward].cpu(), dtype=np.float64)

    def share_real(self, rows: Tensor) -> float:
        """Compute the share of rows that the network predicts to be real."""
        logits = self.logits(rows)
        return float((logits[:, REAL] > logits[:, GENERATED]).double().mean())

    def train_epoch(self, real: Tensor, generated: Tensor, generator: torch.Generator) -> float:
        """Train for one epoch on real and generated rows, each [n, L], in random order.

        Returns:
            Mean loss.
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
        """Take one Adam step on rows [n, L] with classes [n], and return the loss."""
        loss = self.loss(rows, classes)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        value = float(loss.detach())
        if not np.isfinite(value):
            raise TrainingError(
                f"the discriminator has diverged: its loss is {value}; lower discriminator.learning_rate"
            )
        self.optimizer.step()
        return value

    def loss(self, rows: Tensor, classes: Tensor) -> Tensor:
        """Compute the cross-entropy plus the L2 penalty on the output layer."""
        output = self.network.output
        penalty = (output.weight.square().sum() + output.bias.square().sum()) / 2
        return nn.functional.cross_entropy(self._forward(rows), classes) + self.settings.l2 * penalty


def has_bfloat16(device: torch.device) -> bool:
    """Return whether a device has bfloat16 instructions. On other devices, torch emulates bfloat16 slowly."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # torch's public check accepts any CPU with AVX-512. Without AVX512_BF16, bfloat16 is slower there than float32.
    instructions = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return device.type == "cpu" and instructions is not None and bool(instructions())
