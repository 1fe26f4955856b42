"""Scheduled sampling: maximum likelihood where some of the input tokens are sampled from the policy.

The paper is Bengio et al., "Scheduled Sampling for Sequence Prediction with Recurrent Neural Networks"
(arXiv:1506.03099). The only difference from `MLE` is the input of the policy: each previous token is the real one with
probability epsilon, and a token sampled from the policy otherwise. The targets are always the real tokens. Epsilon
decreases from epoch to epoch (section 2.4 of the paper).
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
from text_gym.validation import finite_number, suggest

Decay = Literal["linear", "exponential", "inverse_sigmoid"]
DECAYS = ("linear", "exponential", "inverse_sigmoid")


@dataclass(frozen=True)
class ScheduledSamplingSettings(MLESettings):
    """Hyperparameters of `ScheduledSampling`."""

    decay: Decay = "linear"
    """Decay of the probability of reading a real token, for epoch e = 1, 2, ... and r = decay_rate:
    - linear: 1 - r e
    - exponential: (1 - r)^e
    - inverse_sigmoid: k / (k + exp(e / k)), where k = 1 / r"""
    decay_rate: float = 0.01
    """Decay rate r, between 0 and 1."""
    least_real: float = 0.0
    """Lower bound of the probability of reading a real token."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decay not in DECAYS:
            raise OptionError(f"there is no decay {self.decay!r}." + suggest(str(self.decay), DECAYS))
        if not 0 < finite_number("decay_rate", self.decay_rate) < 1:
            raise OptionError(f"decay_rate={self.decay_rate} is out of range; give a number between 0 and 1")
        if not 0 <= finite_number("least_real", self.least_real) <= 1:
            raise OptionError(f"least_real={self.least_real} is out of range; give a number in [0, 1]")

    def share_of_real(self, epoch: int) -> float:
        """Return the probability of reading a real token (epsilon) in an epoch, counted from 0."""
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
    # In SeqGAN's published code, epsilon decreases by 0.002 per epoch. Two differences: training takes
    # the 120 epochs of MLE, not 300; and every token has its own random choice, whereas the published code makes one
    # choice for the whole run when it builds the graph.
    "paper": {**MLE_PRESETS["paper"], "decay_rate": 0.002},
    "fast": {**MLE_PRESETS["fast"], "decay_rate": 0.006},  # the same final epsilon in a third of the epochs
    "strong": {},
    "demo": {**MLE_PRESETS["demo"], "decay_rate": 0.05},
    "finetune": {**MLE_PRESETS["finetune"], "decay_rate": 0.1},
}


class ScheduledSampling(MLE):
    """Scheduled sampling. One step of learn() is one epoch.

    >>> import gymnasium as gym, text_gym
    >>> env = gym.make("TextGen-v0", task=text_gym.make_task("grammar", train_size=256))
    >>> ScheduledSampling(env, seed=0, preset="demo", progress=False).learn(1).steps_done
    1

    Args:
        env: A TextGen-v0 environment. Its reward is not used.
        **options: See `Agent` and `ScheduledSamplingSettings`.
    """

    name = "scheduled_sampling"
    settings_type = ScheduledSamplingSettings
    presets: ClassVar[Presets] = PRESETS
    is_warm_start = False
    settings: ScheduledSamplingSettings

    def one_step(self, step: int) -> bool:
        """Train for one epoch with this epoch's epsilon."""
        self.share_of_real = self.settings.share_of_real(step)
        self.input_generator = self.torch_random(self.numpy_random(step))
        self.logger.record("train/share_of_real", self.share_of_real)
        return super().one_step(step)

    def model_inputs(self, tokens: Tensor, prompts: Tensor | None) -> Tensor:
        """Return the input tokens [n, T]: real ones, and tokens sampled from the policy without dropout."""
        self.policy.eval()
        model = self.restricted(self.policy)
        inputs = mixed_inputs(model, tokens, self.share_of_real, self.input_generator, prompts)
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
    """Replace each token, with probability 1 - share_of_real, by a token sampled from the model.

    A sampled token is conditioned on the inputs before it, which include earlier sampled tokens.

    Args:
        model: Language model to sample from.
        tokens: Real tokens [n, T]; padding is kept.
        share_of_real: Probability of keeping a real token (epsilon).
        generator: Source of random numbers.
        prompts: Prompts [n, P].

    Returns:
        Input tokens [n, T].
    """
    inputs = tokens.clone()
    real = torch.rand(tokens.shape, generator=generator, device=tokens.device) < share_of_real  # [n, T]
    logits, state = model.start(len(tokens), prompts)
    for t in range(tokens.shape[1] - 1):  # the last token is never an input
        sampled, _ = draw_tokens(logits, generator)
        inputs[:, t] = torch.where(real[:, t] | (tokens[:, t] >= logits.shape[1]), tokens[:, t], sampled)
        logits, state = model.step(inputs[:, t].clamp(max=logits.shape[1] - 1), state)
    return inputs
