"""Maximum likelihood: the baseline that every other learner starts from, and has to beat.

For each epoch: shuffle the training sequences; for each batch, lower the negative log-likelihood
of its tokens by one step of Adam; then measure it on the validation split.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from agents.agent import Agent
from agents.checkpoint import pack_optimizer, tensors_of, unpack_optimizer
from text_gym.errors import OptionError
from text_gym.models import LSTM
from text_gym.names import finite_number, whole_number
from text_gym.sequences import Batch


@dataclass(frozen=True)
class MLESettings:
    """The hyper-parameters of `MLE`. The defaults regularise, and stop when validation does not improve."""

    embedding: int = 64
    """Size of a token's embedding."""
    hidden: int = 64
    """Size of the LSTM."""
    dropout: float = 0.5
    """Share of values dropped before and after the LSTM while training."""
    initial_std: float | None = 0.1
    """Standard deviation of all initial weights; torch's own initial weights if None."""
    batch_size: int = 64
    """Sequences in a batch."""
    schedule: tuple[tuple[int, float], ...] = ((30, 5e-3), (30, 2e-3))
    """So many epochs at this learning rate, then so many at that."""
    clip: float = 5.0
    """The largest norm of the gradient."""
    early_stopping: bool = True
    """Whether learn() ends with the weights of the lowest validation loss, and no later than `patience` epochs on."""
    patience: int = 10
    """Epochs without improvement after which an early-stopped run ends."""

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        try:
            object.__setattr__(self, "schedule", tuple((epochs, float(rate)) for epochs, rate in self.schedule))
        except (TypeError, ValueError) as problem:
            raise OptionError(f"schedule={self.schedule!r} must be pairs of epochs and a learning rate") from problem
        if not isinstance(self.early_stopping, bool):
            raise OptionError(f"early_stopping must be True or False, not {self.early_stopping!r}")
        if self.initial_std is not None and finite_number("initial_std", self.initial_std) < 0:
            raise OptionError(f"initial_std must not be negative, and is {self.initial_std}")
        for name in ("embedding", "hidden", "batch_size", "patience"):
            whole_number(name, getattr(self, name), least=1)
        if not 0 <= finite_number("dropout", self.dropout) < 1 or finite_number("clip", self.clip) <= 0:
            raise OptionError(f"dropout={self.dropout} must lie in [0, 1), and clip={self.clip} above 0")
        if not self.schedule or any(whole_number("epochs", n, 1) and not lr > 0 for n, lr in self.schedule):
            raise OptionError(f"schedule={self.schedule!r} must be pairs of epochs and a learning rate above 0")

    @property
    def epochs(self) -> int:
        """All epochs of the schedule."""
        return sum(epochs for epochs, _ in self.schedule)

    def learning_rate(self, epoch: int) -> float:
        """That of one epoch; the last one's goes on beyond the schedule."""
        for epochs, rate in self.schedule:
            if epoch < epochs:
                return rate
            epoch -= epochs
        return self.schedule[-1][1]


PRESETS: dict[str, dict[str, Any]] = {
    # SeqGAN's pretraining: embedding and LSTM of 32, N(0, 0.1), Adam at 0.01, clip 5, batch 64, 120 epochs.
    # It goes through the data in the same order every epoch; here each epoch has an order of its own.
    "paper": {
        "embedding": 32,
        "hidden": 32,
        "dropout": 0.0,
        "schedule": ((120, 1e-2),),
        "early_stopping": False,
    },
    "strong": {},
    # The grammar in well under a minute.
    "demo": {"dropout": 0.2, "schedule": ((4, 1e-2), (4, 3e-3)), "patience": 3},
}


class MLE(Agent):
    """Maximum likelihood. A step of learn() is an epoch.

    >>> import gymnasium as gym, text_gym
    >>> env = gym.make("TextGen-v0", task=text_gym.make_task("grammar", train_size=256))
    >>> agent = MLE(env, seed=0, preset="demo", progress=False).learn(1)
    >>> agent.sample(2).tokens.shape
    (2, 21)
    """

    name = "mle"
    settings_type = MLESettings
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS
    settings: MLESettings
    policy: LSTM

    def build(self) -> None:
        """The LSTM, with Adam, and the data."""
        settings = self.settings
        policy = LSTM(len(self.task.vocab), settings.embedding, settings.hidden, settings.dropout)
        if settings.initial_std is not None:
            for parameter in policy.parameters():
                nn.init.normal_(parameter, 0.0, settings.initial_std)
        self.policy = policy.to(self.device)
        self.optimizer = torch.optim.Adam(self.policy.parameters(), settings.learning_rate(0))
        if not len(self.task.train.references):
            raise OptionError(f"the 'train' split of task {self.task.name!r} has no sequences to learn from")
        self.best_loss = float("inf")
        self.best_epoch = self.epochs_waited = 0
        self.best_weights: dict[str, Tensor] = {}
        self.latest_weights: dict[str, Tensor] = {}  # while the policy has the best ones

    @property
    def steps_of_preset(self) -> int:
        """The epochs of the schedule."""
        return self.settings.epochs

    def one_step(self, step: int) -> bool:
        """One epoch."""
        order = self.numpy_random(step).permutation(len(self.task.train.references))
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate(step)
        self.policy.train()
        total = tokens = 0.0
        for begin in range(0, len(order), self.settings.batch_size):
            rows = order[begin : begin + self.settings.batch_size]
            loss, count = self._update(self.task.batch("train", rows))
            total, tokens = total + loss * count, tokens + count
        self.logger.record("train/nll", total / max(tokens, 1))
        return self._validate(step)

    def _update(self, batch: Batch) -> tuple[float, int]:
        """One step of Adam on the mean negative log-likelihood of the batch's tokens."""
        loss = self.likelihood_loss(batch)
        self.descend(loss)
        return float(loss.detach()), int(batch.lengths.sum())

    def _validate(self, step: int) -> bool:
        """Measure on the validation split; when stopping early, keep the best weights, and say when to end."""
        if not len(self.task.valid.references):
            return True
        loss = self.nll("valid")
        self.logger.record("valid/nll", loss)
        if not self.settings.early_stopping:
            return True
        self.epochs_waited += 1
        if loss < self.best_loss:
            self.best_loss, self.best_epoch, self.epochs_waited = loss, step, 0
            self.best_weights = self._weights()
        return self.epochs_waited < self.settings.patience

    def _weights(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.policy.state_dict().items()}

    def begin_learning(self, anew: bool) -> None:
        """Go on from the latest weights, and wait again for an improvement if asked to go on."""
        super().begin_learning(anew)
        if anew:
            self.epochs_waited = 0
        if self.latest_weights:
            self.policy.load_state_dict(self.latest_weights)
            self.latest_weights = {}

    def end_learning(self) -> None:
        """Give the policy the weights that were best in validation."""
        if self.best_weights:
            self.latest_weights = self._weights()
            self.policy.load_state_dict(self.best_weights)

    def nll(self, split: str = "test") -> float:
        """The mean negative log-likelihood of a split's tokens, EOS included, in nats."""
        batch = self.task.batch(split)
        if not len(batch):
            raise OptionError(f"the {split!r} split of task {self.task.name!r} is empty")
        examples = None if batch.examples is None else list(batch.examples)
        return float(-self.log_prob(batch.tokens, batch.lengths, examples).sum() / batch.lengths.sum())

    def trained_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Weights, the best ones so far, and Adam's state."""
        tensors = {f"policy.{name}": value for name, value in self.policy.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in self.best_weights.items()}
        tensors |= {f"latest.{name}": value for name, value in self.latest_weights.items()}
        adam, groups = pack_optimizer("adam", self.optimizer)
        best = None if np.isinf(self.best_loss) else self.best_loss
        counts = {"best_epoch": self.best_epoch, "epochs_waited": self.epochs_waited}
        return tensors | adam, {"groups": groups, "best_loss": best} | counts

    def restore_trained_state(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Put them back."""
        self.policy.load_state_dict(tensors_of("policy", tensors))
        self.best_weights, self.latest_weights = tensors_of("best", tensors), tensors_of("latest", tensors)
        unpack_optimizer("adam", self.optimizer, tensors, state["groups"])
        self.best_loss = float("inf") if state["best_loss"] is None else float(state["best_loss"])
        self.best_epoch, self.epochs_waited = int(state["best_epoch"]), int(state["epochs_waited"])
