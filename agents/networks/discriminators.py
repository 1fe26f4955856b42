"""Discriminators: networks that tell real sequences from written ones, and are rewards while they learn to.

The networks know nothing of rewards, and `Discriminator` nothing of how they look inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from text_gym.arrays import FloatArray
from text_gym.errors import OptionError, RewardError, TrainingError
from text_gym.rewards.reward import Reward
from text_gym.sequences import Batch
from text_gym.tasks.task import Task
from text_gym.validation import suggest

RewardForm = Literal["probability", "logit", "log_ratio"]
REWARD_FORMS = ("probability", "logit", "log_ratio")
KINDS = ("cnn", "recurrent", "transformer")
REAL, WRITTEN = 1, 0

# (width, filters) of the convolutions as published.
PAPER_FILTERS = (
    (1, 100), (2, 200), (3, 200), (4, 200), (5, 200), (6, 100), (7, 100), (8, 100), (9, 100), (10, 100), (15, 160),
    (20, 160),
)  # fmt: skip
HEADS = 4  # of the Transformer
SCORED_TOGETHER = 512  # rows, or fewer where they are long:
NUMBERS_AT_ONCE = 1 << 23  # of the largest tensor that a network makes of rows that are scored together


class CNN(nn.Module):
    """SeqGAN's: convolutions of many widths, the maximum over time, one highway layer.

    The highway layer begins as the published code leaves it to TensorFlow: Glorot's uniform weights, no bias.

    Args:
        ids: How many ids there are; `pad` is one of them.
        pad: Embedded as zeros, and stays so.
        length: How many ids a row has; wider convolutions are left out.
        embedding: Size of an id's embedding.
        filters: (width, number) of the convolutions.
        dropout: Share of features dropped in training.
    """

    def __init__(
        self,
        ids: int,
        pad: int,
        length: int,
        embedding: int = 64,
        filters: Sequence[tuple[int, int]] = PAPER_FILTERS,
        dropout: float = 0.25,
    ) -> None:
        """Draw the initial weights as published."""
        super().__init__()
        self.embed = _embedding(ids, embedding, pad)
        filters = [(width, count) for width, count in filters if width <= length]
        self.widths = [width for width, _ in filters]
        convolutions = [nn.Linear(width * embedding, count) for width, count in filters]
        for convolution in convolutions:
            nn.init.trunc_normal_(convolution.weight, std=0.1, a=-0.2, b=0.2)
            nn.init.constant_(convolution.bias, 0.1)
        self.convolutions = nn.ModuleList(convolutions)
        features = sum(count for _, count in filters)
        self.highway = nn.Linear(features, 2 * features)  # what is new, and how much of it
        for part in self.highway.weight.chunk(2):
            nn.init.xavier_uniform_(part.detach())
        nn.init.zeros_(self.highway.bias)
        self.dropout = nn.Dropout(dropout)
        self.output = _output(features)
        self.numbers_a_row = max(width * (length - width + 1) for width in self.widths) * embedding

    def forward(self, rows: Tensor) -> Tensor:
        """Rows of ids [n, L] to the logits of being written and being real, [n, 2]."""
        features = self._maxima(rows)  # [n, F]
        new, gate = self.highway(features).chunk(2, dim=1)
        mixed = torch.lerp(features, new.relu(), gate.sigmoid())
        return self.output(self.dropout(mixed))  # type: ignore[no-any-return]

    def _maxima(self, rows: Tensor) -> Tensor:
        """The maximum over time of every filter, [n, F].

        A convolution is a linear layer that reads windows, and written so it is faster on a CPU.
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


class Recurrent(nn.Module):
    """A GRU in both directions, and the maximum over time."""

    def __init__(
        self, ids: int, pad: int, length: int, embedding: int = 64, hidden: int = 64, dropout: float = 0.25
    ) -> None:
        """Draw the initial weights; rows may have any length."""
        super().__init__()
        self.pad = pad
        self.embed = _embedding(ids, embedding, pad)
        self.gru = nn.GRU(embedding, hidden, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(dropout)
        self.output = _output(2 * hidden)
        self.numbers_a_row = length * (embedding + 8 * hidden)

    def forward(self, rows: Tensor) -> Tensor:
        """Rows of ids [n, L] to the logits of being written and being real, [n, 2]."""
        states, _ = self.gru(self.dropout(self.embed(rows)))  # [n, L, 2H]
        features = states.masked_fill((rows == self.pad)[:, :, None], -1.0).amax(dim=1)  # a state is above -1
        return self.output(self.dropout(features))  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """A Transformer that sees the whole row at once, and the mean over time."""

    def __init__(
        self, ids: int, pad: int, length: int, embedding: int = 64, hidden: int = 64, dropout: float = 0.25
    ) -> None:
        """Draw the initial weights."""
        super().__init__()
        self.pad = pad
        self.embed = _embedding(ids, embedding, pad)
        self.places = nn.Parameter(torch.randn(length, embedding) * 0.1)
        layer = nn.TransformerEncoderLayer(
            embedding, nhead=HEADS, dim_feedforward=4 * hidden, dropout=dropout, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
        self.output = _output(embedding)
        self.numbers_a_row = length * (4 * hidden + 4 * embedding) + HEADS * length**2

    def forward(self, rows: Tensor) -> Tensor:
        """Rows of ids [n, L] to the logits of being written and being real, [n, 2]."""
        padding = rows == self.pad
        states = self.encoder(self.embed(rows) + self.places, src_key_padding_mask=padding)  # [n, L, E]
        real = (~padding)[:, :, None]
        return self.output((states * real).sum(dim=1) / real.sum(dim=1))  # type: ignore[no-any-return]


class Discriminator(Reward):
    """A network that says how real a sequence looks; for tasks with prompts, as an answer to its prompt.

    It is a Reward like any other, and goes on being trained while it is one.

    Args:
        task: What it judges; sequences of other tasks with the same tokens will do too.
        length: The most tokens of a sequence.
        kind: The network: "cnn", "recurrent" or "transformer".
        form: The reward: the "probability" of being real; the "logit" of being real, before the softmax; or
            "log_ratio", the logarithm of the odds.
        embedding: Size of a token's embedding.
        hidden: Size of a recurrent network's state; a quarter of a Transformer's inner layers.
        filters: (width, number) of the convolutions.
        dropout: Share of features dropped in training.
        learning_rate: Of Adam.
        l2: The weight of the output layer's squared weights, halved, in the loss.
        bfloat16: Whether to multiply in bfloat16 where the device does so in hardware. Weights stay float32.
        device: Where the network is.
    """

    name = "discriminator"

    def __init__(
        self,
        task: Task,
        length: int,
        kind: str = "cnn",
        form: RewardForm = "probability",
        embedding: int = 64,
        hidden: int = 64,
        filters: Sequence[tuple[int, int]] = PAPER_FILTERS,
        dropout: float = 0.25,
        learning_rate: float = 1e-4,
        l2: float = 0.2,
        bfloat16: bool = True,
        device: str | torch.device = "cpu",
    ) -> None:
        """Make the network and its optimiser."""
        self.task, self.length, self.form, self.l2 = task, length, form, l2
        self.device = torch.device(device)
        self.width = length + (task.prompt_length + 1 if task.conditional else 0)
        ids, pad = len(task.vocab) + 2, task.vocab.pad  # the last one stands between prompt and answer
        network: nn.Module
        if kind == "cnn":
            network = CNN(ids, pad, self.width, embedding, filters, dropout)
        else:
            make = Recurrent if kind == "recurrent" else Encoder
            network = make(ids, pad, self.width, embedding, hidden, dropout)
        self.network = network.to(self.device)
        # Fused, Adam goes over the weights once; otherwise a dozen times, with new memory for most of them.
        self.optimizer = torch.optim.Adam(self.network.parameters(), learning_rate, fused=True)
        self.bfloat16 = bfloat16 and has_bfloat16(self.device)

    def prepare(self, task: Task) -> None:
        """Refuse a task of other tokens."""
        if task.vocab.tokens != self.task.vocab.tokens or task.prompt_length != self.task.prompt_length:
            raise RewardError(f"this discriminator was made for {self.task!r}, and cannot judge {task!r}")

    def begin_with(self, other: Discriminator) -> None:
        """Go on from another one of the same tokens, kind and size."""
        if not isinstance(other, Discriminator):
            raise OptionError(f"the discriminator to begin with is a Discriminator, and not {other!r}")
        self.prepare(other.task)
        try:
            self.network.load_state_dict(other.network.state_dict())
        except RuntimeError as problem:
            raise OptionError(f"the discriminator to begin with is of another kind or size: {problem}") from problem

    def rows(self, batch: Batch) -> Tensor:
        """What the network reads, [n, L]: the prompt up to its end, a mark, and the sequence, padded."""
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
        """Of being written and being real, [n, 2]."""
        self.network.eval()
        network: Any = self.network
        together = min(SCORED_TOGETHER, max(1, NUMBERS_AT_ONCE // network.numbers_a_row))
        parts = [self._judged(part) for part in torch.split(rows, together)]
        return torch.cat(parts)

    def _judged(self, rows: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            logits: Tensor = self.network(rows)
        return logits.float()

    def score(self, batch: Batch) -> FloatArray:
        """The reward, in the form that was chosen."""
        logits = self.logits(self.rows(batch)).double()
        if self.form == "logit":
            scores = logits[:, REAL]
        else:
            scores = logits[:, REAL] - logits[:, WRITTEN]
            scores = scores.sigmoid() if self.form == "probability" else scores
        result: FloatArray = scores.cpu().numpy()
        return result

    def judge(self, rows: Tensor) -> float:
        """The share of rows taken for real."""
        logits = self.logits(rows)
        return float((logits[:, REAL] > logits[:, WRITTEN]).double().mean())

    def train_epoch(self, real: Tensor, written: Tensor, batch_size: int, generator: torch.Generator) -> float:
        """Go once through the rows in random order; the mean loss."""
        rows = torch.cat([real, written])
        classes = torch.tensor([REAL, WRITTEN], device=self.device).repeat_interleave(
            torch.tensor([len(real), len(written)], device=self.device)
        )
        order = torch.randperm(len(rows), generator=generator, device=self.device)
        self.network.train()
        total = 0.0
        for chosen in torch.split(order, batch_size):
            total += self.train_step(rows[chosen], classes[chosen]) * len(chosen)
        return total / max(len(rows), 1)

    def train_step(self, rows: Tensor, classes: Tensor) -> float:
        """One step of Adam."""
        loss = self.loss(rows, classes)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        value = float(loss.detach())
        if not np.isfinite(value):
            raise TrainingError(f"the discriminator's loss is {value}: it has diverged; lower its learning rate")
        self.optimizer.step()
        return value

    def loss(self, rows: Tensor, classes: Tensor) -> Tensor:
        """The cross-entropy, and the weight of the output layer."""
        output: Any = self.network.output
        weight: Tensor = (output.weight.square().sum() + output.bias.square().sum()) / 2
        return nn.functional.cross_entropy(self._judged(rows), classes) + self.l2 * weight


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 in hardware; where it does not, torch imitates it slowly."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # torch's own check for a CPU is content with AVX-512 alone, with which bfloat16 is slower than float32.
    instructions = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return device.type == "cpu" and instructions is not None and bool(instructions())


def check_discriminator(kind: str, form: str, embedding: int) -> None:
    """Refuse names of networks and of rewards that there are not, and sizes that do not fit."""
    if kind not in KINDS:
        raise OptionError(f"there is no discriminator {kind!r}." + suggest(str(kind), KINDS))
    if kind == "transformer" and embedding % HEADS:
        raise OptionError(f"discriminator_embedding={embedding} must be a multiple of {HEADS} for a transformer")
    if form not in REWARD_FORMS:
        raise OptionError(f"there is no reward_form {form!r}." + suggest(str(form), REWARD_FORMS))


def _embedding(ids: int, size: int, pad: int) -> nn.Embedding:
    layer = nn.Embedding(ids, size, padding_idx=pad)
    with torch.no_grad():
        layer.weight.uniform_(-1, 1)
        layer.weight[pad] = 0
    return layer


def _output(features: int) -> nn.Linear:
    layer = nn.Linear(features, 2)
    nn.init.trunc_normal_(layer.weight, std=0.1, a=-0.2, b=0.2)
    nn.init.constant_(layer.bias, 0.1)
    return layer
