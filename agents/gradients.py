"""The hyper-parameters of an update of the policy, which `Reinforce` makes, and `SeqGAN` in a loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from agents.common.baselines import BASELINES, GROUPED, Baseline
from agents.common.kl import check_target
from agents.networks.policies import PolicySettings
from text_gym.errors import OptionError
from text_gym.language_model import Sampling
from text_gym.validation import check_switch, finite_number, whole_number


@dataclass(frozen=True)
class GradientSettings(PolicySettings):
    """The hyper-parameters of an update of the policy."""

    rollouts: int = 16
    """Completions of each prefix; 0 credits every token with the whole sequence's reward."""
    rollout_chunk: int = 512
    """Completions made at a time; logits of so many rows are the most memory that rollouts take."""
    rollout_rate: float | None = None
    """None: the live policy completes. Else one that moves towards it by this share after every update."""
    baseline: Baseline = "leave_one_out"
    """What is subtracted: nothing; a moving average of rewards; the batch's mean at each position, with
    or without the sequence itself; the reward of the likeliest sequence; the value one token earlier; what a critic
    has learned of the prefix; or the mean of the same prompt's rewards, without the sequence itself (rloo), or
    with it, and then divided by their standard deviation (grpo)."""
    critic_learning_rate: float = 1e-3
    """Of the critic's own Adam."""
    group_size: int = 1
    """Sequences written for each prompt. Without prompts the whole batch is one group."""
    normalize: bool = False
    """Whether advantages are brought to mean 0 and standard deviation 1."""
    entropy_weight: float = 0.0
    """The weight of the policy's entropy, to be raised."""
    kl_weight: float = 0.0
    """The weight of the divergence from the policy at the start, to be kept low."""
    kl_target: float | None = None
    """The divergence per token that kl_weight is adapted to hold; None for a weight that stays as it is."""
    temperature: float = 1.0
    """Of what is learned from: below 1, sequences and completions are drawn sharper."""
    top_k: int = 0
    """What is learned from has only so many of the likeliest tokens at each place; 0 for all."""
    top_p: float = 1.0
    """What is learned from has only the fewest likeliest tokens with this much probability together."""
    teacher_forcing: float = 0.0
    """The weight of the likelihood of as many real sequences."""
    loss: Literal["sum", "mean"] = "mean"
    """Over the tokens of a batch: their sum, as published, or their mean."""
    batch_size: int = 64
    """Sequences in a batch."""
    learning_rate: float = 2e-3
    """Of Adam."""
    clip: float = 5.0
    """The largest norm of the gradient."""

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        super().__post_init__()
        check_switch("normalize", self.normalize)
        for name, least in (("rollouts", 0), ("rollout_chunk", 1), ("batch_size", 1), ("group_size", 1), ("top_k", 0)):
            whole_number(name, getattr(self, name), least)
        for name in ("entropy_weight", "kl_weight", "teacher_forcing"):
            if finite_number(name, getattr(self, name)) < 0:
                raise OptionError(f"{name} must not be negative, and is {getattr(self, name)}")
        for name in ("learning_rate", "critic_learning_rate", "clip", "temperature", "top_p"):
            if finite_number(name, getattr(self, name)) <= 0:
                raise OptionError(f"{name}={getattr(self, name)} must be above 0")
        self.sampling.checked()
        check_target(self.kl_weight, self.kl_target)
        if self.rollout_rate is not None and not 0 < finite_number("rollout_rate", self.rollout_rate) <= 1:
            raise OptionError(f"rollout_rate={self.rollout_rate} must lie in (0, 1], or be None")
        if self.baseline not in BASELINES or self.loss not in ("sum", "mean"):
            raise OptionError(f"baseline={self.baseline!r} must be one of {BASELINES}, loss={self.loss!r} sum or mean")
        if self.baseline in ("leave_one_out", *GROUPED) and self.batch_size < 2:
            raise OptionError(f"the baseline {self.baseline} needs a batch_size of at least 2")
        if self.batch_size % self.group_size:
            raise OptionError(f"batch_size={self.batch_size} is no multiple of group_size={self.group_size}")
        if self.baseline == "prefix" and not self.rollouts:
            raise OptionError("the baseline prefix compares values of prefixes, which needs rollouts")
        if self.baseline in GROUPED and self.rollouts:
            raise OptionError(f"the baseline {self.baseline} compares whole sequences: say rollouts=0")

    @property
    def sampling(self) -> Sampling:
        """How the sequences that are learned from are drawn."""
        return Sampling(self.temperature, self.top_k, self.top_p)
