"""REINFORCE with Monte-Carlo rollouts. With a BLEU reward, this is the PG-BLEU baseline of the SeqGAN paper.

One update has four steps:

1. Sample a batch of sequences from the policy.
2. Estimate the value of every prefix as the mean reward of its rollouts.
3. Compute the advantage of every token: its value minus the baseline, plus the entropy bonus, minus the KL penalty.
4. Take one Adam step on the policy-gradient loss: minus advantage times log-probability.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import asdict, dataclass, field, fields
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from agents.common.agent import Agent, Updates
from agents.common.baselines import (
    BASELINES,
    GROUPED,
    Baseline,
    Critic,
    group_mean_and_std,
    group_mean_of_others,
    leave_one_out,
    mean_of_others,
    position_mean,
)
from agents.common.checkpoint import Json
from agents.common.kl import AdaptiveKL, KLSettings, log_ratios
from agents.common.losses import weighted_nll
from agents.common.rollouts import rollout_values, score_sequences
from agents.common.settings import Presets
from agents.networks.policies import PolicySettings, frozen_copy, make_policy, width_of_features
from text_gym.arrays import FloatArray
from text_gym.errors import OptionError, SlowRewardWarning
from text_gym.language_model import Drawn, LanguageModel, Sampling, generate
from text_gym.sequences import Batch, Example
from text_gym.validation import check_not_negative, check_positive, check_switch, check_whole, finite_number, suggest

MOVING_AVERAGE = 0.9  # weight of the past in the moving average of rewards
SLOW_SCORING = 0.5  # seconds of reward computation per update; there is no warning below
MIN_STD = 1e-4  # added to the standard deviation of a group, which is 0 if all its rewards are equal


@dataclass(frozen=True)
class PolicyGradientSettings(PolicySettings):
    """Hyperparameters of a policy-gradient update, which `Reinforce` and `SeqGAN` share."""

    rollouts: int = 16
    """Number of Monte-Carlo rollouts per prefix; 0 gives every token the reward of the whole sequence."""
    rollout_batch_size: int = 512
    """Number of rollouts generated in parallel; limits the memory for logits."""
    rollout_ema_rate: float | None = None
    """Rate of an exponential moving average of the policy, which generates the rollouts; None for the policy itself."""
    baseline: Baseline = "leave_one_out"
    """Baseline that is subtracted from the value after each token:
    - none: no baseline
    - moving_average: moving average of the mean reward of each batch
    - position_mean: mean value at the same position over the batch
    - leave_one_out: position_mean without the sequence itself
    - greedy: reward of the greedily decoded sequence
    - prefix: value before the token; needs rollouts
    - critic: value predicted by a learned critic
    - rloo: mean reward of the other sequences of the group; needs rollouts=0
    - grpo: mean reward of the group; also divides by its standard deviation; needs rollouts=0"""
    critic_learning_rate: float = 1e-3
    """Adam learning rate of the critic. Used only with baseline="critic"."""
    group_size: int = 1
    """Number of sequences per prompt, which form a group. Without prompts, the whole batch is one group."""
    normalize_advantage: bool = False
    """Whether to normalise advantages to mean 0 and standard deviation 1."""
    ent_coef: float = 0.0
    """Coefficient of the entropy bonus."""
    kl: KLSettings = field(default_factory=KLSettings)
    """KL penalty, which keeps the policy close to the initial policy."""
    temperature: float = 1.0
    """Temperature for sampling sequences and rollouts during training."""
    top_k: int = 0
    """Top-k sampling during training: sample only from the k likeliest tokens; 0 for all."""
    top_p: float = 1.0
    """Nucleus sampling during training: sample only from the likeliest tokens with total probability p; 1 for all."""
    teacher_forcing: float = 0.0
    """Weight of the negative log-likelihood of a batch of real sequences, which is added to the loss."""
    loss: Literal["sum", "mean"] = "mean"
    """Whether the loss is the sum over the tokens of a batch, as in SeqGAN's published code, or the mean."""
    batch_size: int = 64
    """Number of sequences sampled per update."""
    learning_rate: float = 2e-3
    """Adam learning rate of the policy."""
    max_grad_norm: float = 5.0
    """Maximum norm for gradient clipping."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_switch("normalize_advantage", self.normalize_advantage)
        check_whole(self, 0, "rollouts", "top_k")
        check_whole(self, 1, "rollout_batch_size", "batch_size", "group_size")
        check_not_negative(self, "ent_coef", "teacher_forcing")
        check_positive(self, "learning_rate", "critic_learning_rate", "max_grad_norm", "temperature", "top_p")
        self.sampling.checked()
        rate = self.rollout_ema_rate
        if rate is not None and not 0 < finite_number("rollout_ema_rate", rate) <= 1:
            raise OptionError(f"rollout_ema_rate={rate} is out of range; give a number in (0, 1], or None for no EMA")
        if self.baseline not in BASELINES:
            raise OptionError(f"there is no baseline {self.baseline!r}." + suggest(str(self.baseline), BASELINES))
        if self.loss not in ("sum", "mean"):
            raise OptionError(f"there is no loss {self.loss!r}; give 'sum' or 'mean'")
        if self.baseline in ("leave_one_out", *GROUPED) and self.batch_size < 2:
            raise OptionError(
                f"baseline={self.baseline!r} needs other sequences to compare with, and batch_size={self.batch_size}; "
                "give a batch_size of at least 2"
            )
        if self.batch_size % self.group_size:
            raise OptionError(
                f"batch_size={self.batch_size} is not divisible by group_size={self.group_size}; change one of them"
            )
        if self.baseline == "prefix" and not self.rollouts:
            raise OptionError("baseline='prefix' needs the values of prefixes; give rollouts of at least 1")
        if self.baseline in GROUPED and self.rollouts:
            raise OptionError(f"baseline={self.baseline!r} compares rewards of whole sequences; give rollouts=0")

    @property
    def sampling(self) -> Sampling:
        """Temperature, top-k and top-p for sampling during training."""
        return Sampling(self.temperature, self.top_k, self.top_p)


@dataclass(frozen=True)
class ReinforceSettings(PolicyGradientSettings):
    """Hyperparameters of `Reinforce`."""

    updates: int = 100
    """Number of updates. Overridden by learn(steps) and --steps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, 0, "updates")


# Generator update of SeqGAN: 16 rollouts by the policy itself, no baseline, loss summed over batch and time, batch
# size 64, Adam at 0.01, gradient norm 5.
PUBLISHED_UPDATE = {"baseline": "none", "loss": "sum", "learning_rate": 1e-2, "embedding": 32, "hidden": 32}
PRESETS: dict[str, dict[str, object]] = {
    "paper": {**PUBLISHED_UPDATE, "updates": 200},  # one generator update in each of SeqGAN's 200 rounds
    "fast": {**PUBLISHED_UPDATE, "updates": 60},
    # Trains on the built-in grammar in well under a minute, with a warm start from MLE.
    "demo": {"updates": 40, "rollouts": 4},
    # Fine-tuning of a Hugging Face model: a small learning rate and a KL penalty keep the policy close to it.
    "finetune": {"updates": 200, "rollouts": 0, "batch_size": 32, "learning_rate": 1e-5, "kl": {"weight": 0.1}},
}


class Reinforce(Agent[PolicyGradientSettings]):
    """REINFORCE on the environment's reward. One step of learn() is one update of the policy.

    >>> import gymnasium as gym, text_gym
    >>> env = gym.make("TextGen-v0", task="oracle(vocab_size=9, max_length=4)", reward="likelihood")
    >>> agent = Reinforce(env, seed=0, rollouts=2, progress=False).learn(2)
    >>> agent.steps_done, agent.sample(3).tokens.shape
    (2, (3, 4))

    Args:
        env: A TextGen-v0 environment.
        **options: See `Agent` and `ReinforceSettings`. `start` is usually an `MLE` agent.
    """

    name = "reinforce"
    settings_type: ClassVar[type] = ReinforceSettings
    presets: ClassVar[Presets] = PRESETS
    shown = ("train/reward", "train/entropy")

    def build(self) -> None:
        """Create the policy and its optimiser, the reference policy, the EMA of the policy and the critic."""
        settings = self.settings
        self.policy = make_policy(settings, self.task.vocab, device=self.device)
        self.optimizer = torch.optim.Adam(self.policy.parameters(), settings.learning_rate, fused=True)
        self.reference = frozen_copy(self.policy)
        self.kl = AdaptiveKL(settings.kl.weight, settings.kl.target)
        self.rollout_policy = frozen_copy(self.policy) if settings.rollout_ema_rate is not None else None
        self.average_reward = 0.0
        self._scored = (0, 0.0)  # number of scored sequences, and seconds of scoring, in the current update
        self._warned = False  # whether there was a warning of a slow reward
        self._check_groups()
        self.critic: Critic | None = None
        if settings.baseline == "critic":
            prompts = torch.zeros(1, self.task.prompt_length, dtype=torch.long, device=self.device)
            width = width_of_features(self.policy, prompts if self.task.conditional else None)
            self.critic = Critic(width, settings.critic_learning_rate, self.device)

    def load_policy(self, policy: LanguageModel) -> None:
        """Copy the weights of another policy to the policy, the reference policy and the EMA of the policy."""
        for own in (self.policy, self.reference, self.rollout_policy):
            if own is not None:
                own.load_state_dict(policy.state_dict())

    @property
    def default_steps(self) -> int:
        """Number of updates in the settings."""
        return self.updates_in(self.settings)

    @classmethod
    def updates_in(cls, settings: PolicyGradientSettings, steps: int | None = None) -> int:
        """Return the number of policy updates in `steps` steps of learn(), or in a whole run if None."""
        assert isinstance(settings, ReinforceSettings)
        return settings.updates if steps is None else steps

    def one_step(self, step: int) -> bool:
        """Run one update."""
        random = self.numpy_random(step)
        self.update(self.torch_random(random), random)
        return True

    def update(self, generator: torch.Generator, random: np.random.Generator) -> None:
        """Run one policy-gradient update.

        Args:
            generator: Source of random numbers for prompts, sequences and rollouts.
            random: Source of random numbers for the real sequences of `teacher_forcing`.
        """
        settings = self.settings
        begin, self._scored = time.perf_counter(), (0, 0.0)
        # 1. and 2. Sample sequences, and estimate the value after each token by rollouts.
        examples = self.sample_groups(generator) if self.task.conditional else None
        sampled, values = self.sample_and_value(settings.batch_size, generator, examples)  # values: [n, T + 1]
        # 3. Compute the advantages: value minus baseline, plus entropy bonus, minus KL penalty.
        advantages = self.advantages(sampled, values, examples)  # [n, T]
        # 4. Take one Adam step on minus the advantages times the log-probabilities.
        loss = self.loss(sampled, advantages, examples)
        if settings.teacher_forcing:
            loss = loss + settings.teacher_forcing * self._teacher_loss(random)
        norm = self.descend(loss, settings.max_grad_norm)
        self._update_rollout_policy()
        self.logger.record("train/reward", float(values[:, -1].mean()))
        self.logger.record("train/entropy", float(-sampled.log_probs.sum() / sampled.lengths.sum()))
        self.logger.record("train/gradient_norm", norm)
        self._warn_of_slow_reward(time.perf_counter() - begin)

    def sample_groups(self, generator: torch.Generator) -> list[Example]:
        """Sample the prompts of a batch, and repeat each prompt `group_size` times in succession."""
        size = self.settings.group_size
        return [e for e in self.sample_examples(self.settings.batch_size // size, generator) for _ in range(size)]

    def sample_and_value(
        self, n: int, generator: torch.Generator, examples: list[Example] | None
    ) -> tuple[Drawn, Tensor]:
        """Sample n sequences and estimate the values of their prefixes.

        Returns:
            The sequences, and the values [n, T + 1] before the first token and after each token.
        """
        settings = self.settings
        sampled = self.draw(n, generator, examples, settings.sampling)
        values = rollout_values(
            self.restricted(self.policy if self.rollout_policy is None else self.rollout_policy),
            sampled.tokens,
            sampled.lengths,
            score_sequences(self._counted_rewards, self.task.vocab, examples),
            settings.rollouts,
            self.rules.eos,
            generator,
            self.prompt_tokens(examples),
            from_start=settings.baseline == "prefix",
            chunk=settings.rollout_batch_size,
            sampling=settings.sampling,
        )
        return sampled, values

    def _counted_rewards(self, batch: Batch) -> FloatArray:
        """Compute the rewards [m] of sampled sequences; count the sequences and the time for `_warn_of_slow_reward`."""
        self.n_sampled += len(batch)
        begin = time.perf_counter()
        rewards = self.rewards(batch)
        count, seconds = self._scored
        self._scored = (count + len(batch), seconds + time.perf_counter() - begin)
        return rewards

    def _warn_of_slow_reward(self, seconds: float) -> None:
        """Warn once if the environment's reward takes more than half of the `seconds` of an update."""
        count, scoring = self._scored
        own_reward = type(self).rewards is not Agent.rewards
        if self._warned or own_reward or scoring < max(SLOW_SCORING, seconds - scoring):
            return
        self._warned = True
        names = " + ".join(self.rules.scorer.rewards)
        warnings.warn(
            f"the reward {names} took {scoring:.1f} of the {seconds:.1f} seconds of an update for {count:,} sequences; "
            f"use fewer rollouts (now {self.settings.rollouts}; 0 scores each sequence once), a smaller batch_size "
            f"(now {self.settings.batch_size}), or cached=True, which scores repeated sequences once. "
            "See docs/rewards.md",
            SlowRewardWarning,
            stacklevel=2,
        )

    def advantages(self, sampled: Drawn, values: Tensor, examples: list[Example] | None) -> Tensor:
        """Compute the advantage of each token from the values [n, T + 1].

        Returns:
            Advantages [n, T]; 0 at padding.
        """
        settings, valid = self.settings, sampled.valid_mask  # [n, T]
        advantages = values[:, 1:] - self._baseline(sampled, values, examples)
        if settings.baseline == "grpo":
            std = group_mean_and_std(values[:, -1], self._group_size(values))[1]
            advantages = advantages / (std[:, None] + MIN_STD)
        # Entropy and KL are sums over the tokens of a sequence, so each token gets the sum from there to the end, minus
        # its mean over the other sequences.
        to_go = self._penalty(sampled, examples).flip(1).cumsum(dim=1).flip(1)
        advantages = advantages - (to_go - mean_of_others(to_go, valid))
        if settings.normalize_advantage:
            std = advantages[valid].std() if int(valid.sum()) > 1 else advantages.new_tensor(0.0)
            advantages = (advantages - advantages[valid].mean()) / (std + 1e-8)
        return torch.where(valid, advantages, 0.0)

    def _penalty(self, sampled: Drawn, examples: list[Example] | None) -> Tensor:
        """Compute the KL penalty minus the entropy bonus of each token, [n, T], and adapt the KL weight."""
        penalty = sampled.log_probs * float(self.settings.ent_coef)
        prompts, sampling = self.prompt_tokens(examples), self.settings.sampling
        ratio = log_ratios(self.policy, self.reference, sampled, prompts, self.logit_mask, sampling)
        kl, weight = float(ratio.sum() / sampled.lengths.sum()), self.kl.weight
        self.kl.adapt(kl)  # for the next update
        self.logger.record("train/kl_to_start", kl)
        self.logger.record("train/kl_weight", weight)
        return penalty + ratio * weight if weight else penalty

    def _baseline(self, sampled: Drawn, values: Tensor, examples: list[Example] | None) -> Tensor:
        """Compute the baseline of each token, [n, T], [n, 1], [T] or a scalar."""
        after, rewards, valid = values[:, 1:], values[:, -1], sampled.valid_mask
        match self.settings.baseline:
            case "moving_average":
                average, mean = self.average_reward, float(rewards.mean())
                self.average_reward = MOVING_AVERAGE * average + (1 - MOVING_AVERAGE) * mean if average else mean
                return after.new_tensor(average)
            case "position_mean":
                return position_mean(after, valid)
            case "leave_one_out":
                return leave_one_out(after, valid, rewards)
            case "greedy":
                return self._greedy_rewards(examples)[:, None].to(after.dtype)
            case "prefix":
                return values[:, :-1]
            case "critic" if self.critic is not None:
                return self._critic_values(self.critic, sampled, after, examples)
            case "rloo":
                return group_mean_of_others(rewards, self._group_size(values))[:, None]
            case "grpo":
                return group_mean_and_std(rewards, self._group_size(values))[0][:, None]
            case _:
                return after.new_zeros(())

    def _group_size(self, values: Tensor) -> int:
        """Return the number of sequences per group: those of one prompt, or without prompts the whole batch."""
        return self.settings.group_size if self.task.conditional else len(values)

    def _check_groups(self) -> None:
        """Raise OptionError if `group_size` does not fit the task or the baseline."""
        size = self.settings.group_size
        if not self.task.conditional and size > 1:
            raise OptionError(
                f"group_size={size} is a number of sequences per prompt, and {self.task!r} has no prompts; "
                "give group_size=1, which makes the whole batch one group"
            )
        if self.task.conditional and size < 2 and self.settings.baseline in GROUPED:
            raise OptionError(
                f"baseline={self.settings.baseline!r} compares the sequences of each prompt, and group_size={size}; "
                "give a group_size of at least 2, for example 8"
            )

    def _critic_values(self, critic: Critic, sampled: Drawn, after: Tensor, examples: list[Example] | None) -> Tensor:
        """Predict the value before each token, [n, T]; then train the critic on the values after each token."""
        with torch.no_grad():
            features = self.policy.features(sampled.tokens, self.prompt_tokens(examples))
        predicted = critic.value(features).to(after.dtype)
        for name, value in critic.learn(features, after, sampled.valid_mask).items():
            self.logger.record(f"train/{name}", value)
        return predicted

    def _greedy_rewards(self, examples: list[Example] | None) -> Tensor:
        """Compute the rewards of greedily decoded sequences: [n] for n prompts, [1] without prompts."""
        count = 1 if examples is None else len(examples)
        model, generator = self.restricted(self.policy), torch.Generator(self.device)
        limit, eos, prompts = self.rules.limit, self.rules.eos, self.prompt_tokens(examples)
        greedy = generate(model, count, limit, eos, generator, Sampling(top_k=1), prompts)
        score = score_sequences(self._counted_rewards, self.task.vocab, examples)
        return score(greedy.tokens, greedy.lengths, torch.arange(count))

    def loss(self, sampled: Drawn, advantages: Tensor, examples: list[Example] | None) -> Tensor:
        """Compute the policy-gradient loss: the sum or mean over tokens of minus advantage times log-probability."""
        weights = advantages.float()
        if self.settings.loss == "mean":
            weights = weights / sampled.lengths.sum()
        prompts, mask, sampling = self.prompt_tokens(examples), self.logit_mask, self.settings.sampling
        return weighted_nll(self.policy, sampled.tokens, weights, prompts, logit_mask=mask, sampling=sampling)[0]

    def _teacher_loss(self, random: np.random.Generator) -> Tensor:
        """Compute the negative log-likelihood of a batch of real sequences, as a sum or mean like the loss."""
        pool = len(self.task.train.references)
        if not pool:
            raise OptionError(
                f"teacher_forcing needs real sequences, and the 'train' split of {self.task!r} is empty; "
                "give teacher_forcing=0"
            )
        rows = random.integers(pool, size=self.settings.batch_size)
        return self.likelihood_loss(self.task.batch("train", rows), mean=self.settings.loss == "mean")

    @torch.no_grad()
    def _update_rollout_policy(self) -> None:
        """Update the EMA of the policy: (1 - rate) * EMA + rate * policy."""
        rate = self.settings.rollout_ema_rate
        if self.rollout_policy is not None and rate is not None:
            for average, current in zip(self.rollout_policy.parameters(), self.policy.parameters(), strict=True):
                average.lerp_(current, rate)

    def trained_parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """Return the policy, the reference policy, the EMA of the policy, the critic and the optimisers."""
        parts = super().trained_parts() | {"reference": self.reference}
        if self.rollout_policy is not None:
            parts["rollout_policy"] = self.rollout_policy
        if self.critic is not None:
            parts["critic"] = self.critic.network
            parts["critic_adam"] = self.critic.optimizer
        return parts

    def trained_numbers(self) -> Json:
        """Return the moving average of rewards (the baseline) and the KL weight."""
        return {"average_reward": self.average_reward, "kl_weight": self.kl.weight}

    def restore_trained_numbers(self, numbers: Json) -> None:
        """Restore the moving average of rewards and the KL weight."""
        self.average_reward = float(numbers["average_reward"])
        self.kl.weight = float(numbers["kl_weight"])

    @classmethod
    def relative_cost(cls, settings: PolicyGradientSettings, steps: int | None) -> float:
        """Return the number of batches of sequences and rollouts that all updates generate."""
        return cls.updates_in(settings, steps) * (1.0 + settings.rollouts)

    @classmethod
    def same_updates(cls, settings: PolicyGradientSettings, steps: int | None, reward: str) -> Updates | None:
        """Return the same policy updates, made by plain REINFORCE under another reward; see `Agent.same_updates`."""
        own_loop = cls is not Reinforce and cls.rewards is Agent.rewards
        if own_loop:
            return super().same_updates(settings, steps, reward)
        architecture = {f.name for f in fields(PolicySettings)}  # the warm start determines it
        names = [f.name for f in fields(PolicyGradientSettings) if f.name not in architecture]
        options = {name: value for name, value in asdict(settings).items() if name in names}
        options["updates"] = cls.updates_in(settings, steps)
        if reward.startswith("constant") and settings.baseline != "prefix":
            options["rollouts"] = 0  # every rollout would get the same reward
        return Updates(Reinforce.name, options)
