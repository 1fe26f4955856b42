"""Maximum likelihood: the baseline that every other learner starts from, and has to beat.

For each epoch: shuffle the training sequences; for each batch, lower the negative log-likelihood
of its tokens by one step of Adam; then measure it on the validation split.
"""

from __future__ import annotations

import copy
import math
import threading
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from agents.common.agent import Agent
from agents.common.checkpoint import Json
from agents.common.settings import Presets
from agents.networks.policies import PolicySettings, make_policy
from text_gym.errors import OptionError
from text_gym.sequences import Batch
from text_gym.validation import check_positive, check_switch, check_whole, finite_number, whole_number


@dataclass(frozen=True)
class MLESettings(PolicySettings):
    """The hyper-parameters of `MLE`. The defaults regularise, and stop when validation does not improve."""

    dropout: float = 0.5
    """Share of values dropped before and after the LSTM, or in a Transformer, while training; not in policy="hf"."""
    batch_size: int = 64
    """Sequences in a batch."""
    schedule: tuple[tuple[int, float], ...] = ((30, 5e-3), (30, 2e-3))
    """So many epochs at this learning rate, then so many at that."""
    max_grad_norm: float = 5.0
    """Norm to which the gradient is clipped."""
    early_stopping: bool = True
    """Whether learn() ends with the weights of the lowest validation loss, and no later than `patience` epochs on."""
    patience: int = 10
    """Epochs without improvement after which an early-stopped run ends."""

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        super().__post_init__()
        try:
            object.__setattr__(self, "schedule", tuple((epochs, float(rate)) for epochs, rate in self.schedule))
        except (TypeError, ValueError) as problem:
            raise OptionError(f"schedule={self.schedule!r} must be pairs of epochs and a learning rate") from problem
        check_switch("early_stopping", self.early_stopping)
        if not 0 <= finite_number("dropout", self.dropout) < 1:
            raise OptionError(f"dropout={self.dropout} must lie in [0, 1)")
        check_whole(self, 1, "batch_size", "patience")
        check_positive(self, "max_grad_norm")
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


PRESETS: dict[str, dict[str, object]] = {
    # SeqGAN's pretraining: embedding and LSTM of 32, N(0, 0.1), Adam at 0.01, clip 5, batch 64, 120 epochs.
    # It goes through the data in the same order every epoch; here each epoch has an order of its own.
    "paper": {
        "embedding": 32,
        "hidden": 32,
        "dropout": 0.0,
        "schedule": ((120, 1e-2),),
        "early_stopping": False,
    },
    # The same for a third of the epochs: where the published code's learning curve has become flat.
    "fast": {
        "embedding": 32,
        "hidden": 32,
        "dropout": 0.0,
        "schedule": ((40, 1e-2),),
        "early_stopping": False,
    },
    "strong": {},
    # The grammar in well under a minute.
    "demo": {"dropout": 0.2, "schedule": ((4, 1e-2), (4, 3e-3)), "patience": 3},
    # A pretrained Hugging Face model, in small steps.
    "finetune": {"schedule": ((3, 5e-5),), "batch_size": 16, "patience": 1},
}


class MLE(Agent[MLESettings]):
    """Maximum likelihood. A step of learn() is an epoch.

    >>> import gymnasium as gym, text_gym
    >>> env = gym.make("TextGen-v0", task=text_gym.make_task("grammar", train_size=256))
    >>> agent = MLE(env, seed=0, preset="demo", progress=False).learn(1)
    >>> agent.sample(2).tokens.shape
    (2, 21)
    """

    name = "mle"
    settings_type = MLESettings
    presets: ClassVar[Presets] = PRESETS
    shown = ("train/nll", "valid/nll")
    takes_start = False
    is_warm_start = True
    learns_from_reward = False

    def build(self) -> None:
        """The LSTM, with Adam, and the data."""
        settings = self.settings
        self.policy = make_policy(settings, self.task.vocab, settings.dropout, self.device)
        self.best_policy = copy.deepcopy(self.policy)
        self.latest_policy = copy.deepcopy(self.policy)  # while `policy` is the best one
        self.optimizer = torch.optim.Adam(self.policy.parameters(), settings.learning_rate(0), fused=True)
        if not len(self.task.train.references):
            raise OptionError(f"the 'train' split of task {self.task.name!r} has no sequences to learn from")
        self.best_loss = math.inf
        self.best_epoch = self.epochs_waited = 0
        self.resting = False  # whether `policy` is the best one, and not the latest

    @classmethod
    def stopped_early(cls, settings: MLESettings, patience: int) -> dict[str, object] | None:
        """Return the hyper-parameters of early stopping, unless the run is stopped early already."""
        return None if settings.early_stopping else {"early_stopping": True, "patience": patience}

    @property
    def default_steps(self) -> int:
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
        self.descend(loss, self.settings.max_grad_norm)
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
            self.best_policy.load_state_dict(self.policy.state_dict())
        return self.epochs_waited < self.settings.patience

    def begin_learning(self, anew: bool, interrupted: threading.Event) -> None:
        """Go on from the latest weights, and wait again for an improvement if asked to go on."""
        super().begin_learning(anew, interrupted)
        if anew:
            self.epochs_waited = 0
        if self.resting:
            self.policy.load_state_dict(self.latest_policy.state_dict())
            self.resting = False

    def end_learning(self) -> None:
        """Give the policy the weights that were best in validation."""
        if self.best_loss < math.inf:
            self.latest_policy.load_state_dict(self.policy.state_dict())
            self.policy.load_state_dict(self.best_policy.state_dict())
            self.resting = True

    def nll(self, split: str = "test") -> float:
        """The mean negative log-likelihood of a split's tokens, EOS included, in nats."""
        batch = self.task.batch(split)
        if not len(batch):
            raise OptionError(f"the {split!r} split of task {self.task.name!r} is empty")
        return float(-self.log_prob(batch.tokens, batch.lengths, batch.examples).sum() / batch.lengths.sum())

    def trained_parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """The policy with Adam, and the best one and the latest one where they differ."""
        best = {"best": self.best_policy} if self.best_loss < math.inf else {}
        return super().trained_parts() | best | ({"latest": self.latest_policy} if self.resting else {})

    def trained_numbers(self) -> Json:
        """Where early stopping stands."""
        return {
            "best_loss": None if math.isinf(self.best_loss) else self.best_loss,
            "best_epoch": self.best_epoch,
            "epochs_waited": self.epochs_waited,
            "resting": self.resting,
        }

    def restore_trained_numbers(self, numbers: Json) -> None:
        """Put it back."""
        self.best_loss = math.inf if numbers["best_loss"] is None else float(numbers["best_loss"])
        self.best_epoch, self.epochs_waited = int(numbers["best_epoch"]), int(numbers["epochs_waited"])
        self.resting = bool(numbers["resting"])
