"""Maximum likelihood estimation (MLE) with teacher forcing: the usual warm start and the usual baseline.

Each epoch shuffles the training sequences, takes one Adam step per minibatch on the mean negative log-likelihood (NLL)
of the tokens, and then computes the NLL on the validation split.
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
    """Hyperparameters of `MLE`. The defaults use dropout and early stopping."""

    dropout: float = 0.5
    """Dropout rate before and after the LSTM, or inside the Transformer. Has no effect on a Hugging Face model."""
    batch_size: int = 64
    """Minibatch size, in sequences."""
    schedule: tuple[tuple[int, float], ...] = ((30, 5e-3), (30, 2e-3))
    """Learning rate schedule: pairs of a number of epochs and the Adam learning rate during these epochs."""
    max_grad_norm: float = 5.0
    """Maximum norm for gradient clipping."""
    early_stopping: bool = True
    """Whether to stop when the validation loss no longer improves, and to keep the weights of the best epoch."""
    patience: int = 10
    """Number of epochs without improvement of the validation loss before early stopping."""

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            object.__setattr__(self, "schedule", tuple((epochs, float(rate)) for epochs, rate in self.schedule))
        except (TypeError, ValueError) as problem:
            raise OptionError(
                f"schedule={self.schedule!r} is not a sequence of (epochs, learning rate); give for example "
                "((30, 0.005), (30, 0.002))"
            ) from problem
        check_switch("early_stopping", self.early_stopping)
        if not 0 <= finite_number("dropout", self.dropout) < 1:
            raise OptionError(f"dropout={self.dropout} is out of range; give a number in [0, 1)")
        check_whole(self, 1, "batch_size", "patience")
        check_positive(self, "max_grad_norm")
        if not self.schedule or any(whole_number("epochs", n, 1) and not lr > 0 for n, lr in self.schedule):
            raise OptionError(
                f"schedule={self.schedule!r} is empty or has a learning rate that is not positive; give for example "
                "((30, 0.005), (30, 0.002))"
            )

    @property
    def epochs(self) -> int:
        """Total number of epochs in the schedule."""
        return sum(epochs for epochs, _ in self.schedule)

    def learning_rate(self, epoch: int) -> float:
        """Return the learning rate of an epoch, counted from 0; after the schedule, its last learning rate."""
        for epochs, rate in self.schedule:
            if epoch < epochs:
                return rate
            epoch -= epochs
        return self.schedule[-1][1]


PRESETS: dict[str, dict[str, object]] = {
    # Generator pretraining of SeqGAN: embedding and LSTM of size 32, initial weights N(0, 0.1), Adam at 0.01, gradient
    # norm 5, batch size 64, 120 epochs. Difference: the published code uses one order of the training sequences for
    # all epochs; here every epoch shuffles them.
    "paper": {
        "embedding": 32,
        "hidden": 32,
        "dropout": 0.0,
        "schedule": ((120, 1e-2),),
        "early_stopping": False,
    },
    # "paper" with a third of the epochs, where the learning curve of the published code is already flat.
    "fast": {
        "embedding": 32,
        "hidden": 32,
        "dropout": 0.0,
        "schedule": ((40, 1e-2),),
        "early_stopping": False,
    },
    "strong": {},
    # Trains on the built-in grammar in well under a minute.
    "demo": {"dropout": 0.2, "schedule": ((4, 1e-2), (4, 3e-3)), "patience": 3},
    # Fine-tuning of a pretrained Hugging Face model: a small learning rate and few epochs.
    "finetune": {"schedule": ((3, 5e-5),), "batch_size": 16, "patience": 1},
}


class MLE(Agent[MLESettings]):
    """Maximum likelihood estimation on the training split. One step of learn() is one epoch.

    >>> import gymnasium as gym, text_gym
    >>> env = gym.make("TextGen-v0", task=text_gym.make_task("grammar", train_size=256))
    >>> agent = MLE(env, seed=0, preset="demo", progress=False).learn(1)
    >>> agent.sample(2).tokens.shape
    (2, 21)

    Args:
        env: A TextGen-v0 environment. Its reward is not used.
        **options: See `Agent` and `MLESettings`.
    """

    name = "mle"
    settings_type = MLESettings
    presets: ClassVar[Presets] = PRESETS
    shown = ("train/nll", "valid/nll")
    takes_start = False
    is_warm_start = True
    learns_from_reward = False

    def build(self) -> None:
        """Create the policy, its optimiser and the state of early stopping."""
        settings = self.settings
        self.policy = make_policy(settings, self.task.vocab, settings.dropout, self.device)
        self.best_policy = copy.deepcopy(self.policy)
        self.latest_policy = copy.deepcopy(self.policy)  # used while `resting`
        self.optimizer = torch.optim.Adam(self.policy.parameters(), settings.learning_rate(0), fused=True)
        if not len(self.task.train.references):
            raise OptionError(
                f"the 'train' split of task {self.task.name!r} is empty; give a task with training sequences"
            )
        self.best_loss = math.inf
        self.best_epoch = self.epochs_waited = 0
        self.resting = False  # whether `policy` has the best weights, and `latest_policy` those of the last epoch

    @classmethod
    def stopped_early(cls, settings: MLESettings, patience: int) -> dict[str, object] | None:
        """Return the hyperparameters that turn on early stopping; None if it is on already."""
        return None if settings.early_stopping else {"early_stopping": True, "patience": patience}

    @property
    def default_steps(self) -> int:
        """Number of epochs in the schedule."""
        return self.settings.epochs

    def one_step(self, step: int) -> bool:
        """Train for one epoch, then validate; return False to stop early."""
        # 1. Shuffle the training sequences, and set the learning rate of the epoch.
        order = self.numpy_random(step).permutation(len(self.task.train.references))
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate(step)
        # 2. Take one Adam step per minibatch.
        self.policy.train()
        total = tokens = 0.0
        for begin in range(0, len(order), self.settings.batch_size):
            rows = order[begin : begin + self.settings.batch_size]
            loss, count = self._update(self.task.batch("train", rows))
            total, tokens = total + loss * count, tokens + count
        self.logger.record("train/nll", total / max(tokens, 1))
        # 3. Compute the validation loss.
        return self._validate(step)

    def _update(self, batch: Batch) -> tuple[float, int]:
        """Take one Adam step on a minibatch; return its mean NLL per token and its number of tokens."""
        loss = self.likelihood_loss(batch)
        self.descend(loss, self.settings.max_grad_norm)
        return float(loss.detach()), int(batch.lengths.sum())

    def _validate(self, step: int) -> bool:
        """Compute the validation loss and, with early stopping, keep the best weights; return False to stop."""
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
        """Continue from the weights of the last epoch; with `anew`, start to count `patience` again."""
        super().begin_learning(anew, interrupted)
        if anew:
            self.epochs_waited = 0
        if self.resting:
            self.policy.load_state_dict(self.latest_policy.state_dict())
            self.resting = False

    def end_learning(self) -> None:
        """Load the weights with the lowest validation loss into the policy."""
        if self.best_loss < math.inf:
            self.latest_policy.load_state_dict(self.policy.state_dict())
            self.policy.load_state_dict(self.best_policy.state_dict())
            self.resting = True

    def nll(self, split: str = "test") -> float:
        """Compute the mean negative log-likelihood per token of a split, in nats, EOS included."""
        batch = self.task.batch(split)
        if not len(batch):
            raise OptionError(f"the {split!r} split of task {self.task.name!r} is empty; name another split")
        return float(-self.log_prob(batch.tokens, batch.lengths, batch.examples).sum() / batch.lengths.sum())

    def trained_parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """Return the policy and its optimiser, and with early stopping the best and the latest weights."""
        best = {"best": self.best_policy} if self.best_loss < math.inf else {}
        return super().trained_parts() | best | ({"latest": self.latest_policy} if self.resting else {})

    def trained_numbers(self) -> Json:
        """Return the state of early stopping."""
        return {
            "best_loss": None if math.isinf(self.best_loss) else self.best_loss,
            "best_epoch": self.best_epoch,
            "epochs_waited": self.epochs_waited,
            "resting": self.resting,
        }

    def restore_trained_numbers(self, numbers: Json) -> None:
        """Restore the state of early stopping."""
        self.best_loss = math.inf if numbers["best_loss"] is None else float(numbers["best_loss"])
        self.best_epoch, self.epochs_waited = int(numbers["best_epoch"]), int(numbers["epochs_waited"])
        self.resting = bool(numbers["resting"])
