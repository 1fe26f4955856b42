"""Scheduled sampling: maximum likelihood that reads some of its own tokens in place of real ones.

It is `MLE` but for one thing. Before each token a coin is tossed: shall the policy read the real token
before it, or one that it drew itself there? What it has to predict is real in any case. The coin
favours real tokens at first, and less so from epoch to epoch (Bengio et al., arXiv:1506.03099).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from agents.common.settings import Presets
from agents.mle import MLE, MLESettings
from agents.mle import PRESETS as MLE_PRESETS
from text_gym.errors import OptionError
from text_gym.language_model import LanguageModel, draw_tokens
from text_gym.validation import finite_number

Decay = Literal["linear", "exponential", "inverse_sigmoid"]
DECAYS = ("linear", "exponential", "inverse_sigmoid")


@dataclass(frozen=True)
class ScheduledSamplingSettings(MLESettings):
    """The hyper-parameters of `ScheduledSampling`: those of `MLE`, and how the coin changes."""

    decay: Decay = "linear"
    """How the share of real tokens falls with the epoch e = 1, 2, ...: 1 - r e, or (1 - r)^e, or
    k / (k + exp(e / k)) with k = 1 / r."""
    decay_rate: float = 0.01
    """The r in it."""
    least_real: float = 0.0
    """The share of real tokens does not fall below this."""

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        super().__post_init__()
        if self.decay not in DECAYS:
            raise OptionError(f"decay={self.decay!r} must be one of {DECAYS}")
        if not 0 < finite_number("decay_rate", self.decay_rate) < 1:
            raise OptionError(f"decay_rate={self.decay_rate} must lie between 0 and 1")
        if not 0 <= finite_number("least_real", self.least_real) <= 1:
            raise OptionError(f"least_real={self.least_real} must lie in [0, 1]")

    def share_of_real(self, epoch: int) -> float:
        """How likely a real token is read, in an epoch counted from 0."""
        e, r = epoch + 1, self.decay_rate
        match self.decay:
            case "linear":
                share = 1 - r * e
            case "exponential":
                share = (1 - r) ** e
            case _:
                share = 1 / (1 + r * math.exp(min(e * r, 700.0)))
        return max(share, self.least_real)


PRESETS: dict[str, dict[str, object]] = {
    # The published share falls by 0.002 an epoch, there for 300 epochs, and here for the 120 of MLE. (There one
    # coin is tossed for all tokens of the whole run, when the graph is built; here each token has its own.)
    "paper": {**MLE_PRESETS["paper"], "decay_rate": 0.002},
    "fast": {**MLE_PRESETS["fast"], "decay_rate": 0.006},  # falls as far in a third of the epochs
    "strong": {},
    "demo": {**MLE_PRESETS["demo"], "decay_rate": 0.05},
    "finetune": {**MLE_PRESETS["finetune"], "decay_rate": 0.1},
}


class ScheduledSampling(MLE):
    """Scheduled sampling. A step of learn() is an epoch.

    >>> import gymnasium as gym, text_gym
    >>> env = gym.make("TextGen-v0", task=text_gym.make_task("grammar", train_size=256))
    >>> ScheduledSampling(env, seed=0, preset="demo", progress=False).learn(1).steps_done
    1
    """

    name = "scheduled_sampling"
    settings_type = ScheduledSamplingSettings
    presets: ClassVar[Presets] = PRESETS
    is_warm_start = False
    settings: ScheduledSamplingSettings

    def one_step(self, step: int) -> bool:
        """One epoch."""
        self.share_of_real = self.settings.share_of_real(step)
        self.coins = self.torch_random(self.numpy_random(step))
        self.logger.record("train/share_of_real", self.share_of_real)
        return super().one_step(step)

    def model_inputs(self, tokens: Tensor, prompts: Tensor | None) -> Tensor:
        """The tokens, some of them replaced as the coins fall, by what the policy writes."""
        self.policy.eval()  # it writes without dropout
        inputs = mixed_inputs(self.restricted(self.policy), tokens, self.share_of_real, self.coins, prompts)
        self.policy.train()
        return inputs


@torch.no_grad()
def mixed_inputs(
    model: LanguageModel,
    tokens: Tensor,
    share_of_real: float,
    generator: torch.Generator,
    prompts: Tensor | None = None,
) -> Tensor:
    """The tokens [n, T], each of them replaced, with probability 1 - share, by one that the model draws there.

    What it draws at a place follows what it has read before it, its own tokens among that.
    """
    inputs = tokens.clone()
    real = torch.rand(tokens.shape, generator=generator, device=tokens.device) < share_of_real  # [n, T]
    logits, state = model.start(len(tokens), prompts)
    for t in range(tokens.shape[1] - 1):  # nothing reads the last one
        drawn, _ = draw_tokens(logits, generator)
        inputs[:, t] = torch.where(real[:, t] | (tokens[:, t] >= logits.shape[1]), tokens[:, t], drawn)
        logits, state = model.step(inputs[:, t].clamp(max=logits.shape[1] - 1), state)
    return inputs
