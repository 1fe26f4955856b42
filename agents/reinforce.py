"""REINFORCE with Monte-Carlo rollouts; with a BLEU reward this is PG-BLEU.

One update: sample a batch of sequences; estimate the value of every prefix by completing it many times; subtract a
baseline; raise the log-probability of each token in proportion to its advantage.
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
from text_gym.validation import check_not_negative, check_positive, check_switch, check_whole, finite_number

MOVING_AVERAGE = 0.9  # weight of the past in the moving average of rewards
SLOW_SCORING = 0.5  # seconds an update; a reward that takes less is never called slow
MIN_STD = 1e-4  # added to a group's standard deviation, so that a group of equal rewards teaches nothing


@dataclass(frozen=True)
class PolicyGradientSettings(PolicySettings):
    """Hyper-parameters of an update of the policy, which `Reinforce` makes, and `SeqGAN` in a loop."""

    rollouts: int = 16
    """Completions of each prefix; 0 credits every token with the reward of the whole sequence."""
    rollout_batch_size: int = 512
    """Prefixes completed together, which bounds the memory for logits."""
    rollout_ema_rate: float | None = None
    """Completions by an EMA of the policy with this rate; None for the policy itself."""
    baseline: Baseline = "leave_one_out"
    """Baseline: none; the moving_average of rewards; the batch's mean at each position, with the sequence itself
    (position_mean) or without (leave_one_out); the reward of the greedy sequence; the value of the prefix one token
    earlier; a learned critic; or the mean reward of the same prompt's sequences, without the sequence itself (rloo) or
    with it, and divided by their standard deviation (grpo)."""
    critic_learning_rate: float = 1e-3
    """Adam learning rate of the critic."""
    group_size: int = 1
    """Sequences sampled for each prompt. Without prompts the whole batch is one group."""
    normalize_advantage: bool = False
    """Whether to normalise advantages to mean 0 and standard deviation 1."""
    ent_coef: float = 0.0
    """Weight of the entropy bonus."""
    kl: KLSettings = field(default_factory=KLSettings)
    """KL penalty."""
    temperature: float = 1.0
    """Temperature at which the sequences and completions to learn from are sampled."""
    top_k: int = 0
    """Sample what to learn from among so many of the likeliest tokens; 0 for all."""
    top_p: float = 1.0
    """Sample what to learn from among the fewest likeliest tokens with this much probability together."""
    teacher_forcing: float = 0.0
    """Weight of the negative log-likelihood of as many real sequences in the loss."""
    loss: Literal["sum", "mean"] = "mean"
    """Sum over the tokens of a batch, as published, or mean."""
    batch_size: int = 64
    """Sequences in a batch."""
    learning_rate: float = 2e-3
    """Adam learning rate."""
    max_grad_norm: float = 5.0
    """Norm to which the gradient is clipped."""

    def __post_init__(self) -> None:
        """Check every value, and those that depend on each other."""
        super().__post_init__()
        check_switch("normalize_advantage", self.normalize_advantage)
        check_whole(self, 0, "rollouts", "top_k")
        check_whole(self, 1, "rollout_batch_size", "batch_size", "group_size")
        check_not_negative(self, "ent_coef", "teacher_forcing")
        check_positive(self, "learning_rate", "critic_learning_rate", "max_grad_norm", "temperature", "top_p")
        self.sampling.checked()
        rate = self.rollout_ema_rate
        if rate is not None and not 0 < finite_number("rollout_ema_rate", rate) <= 1:
            raise OptionError(f"rollout_ema_rate={rate} must lie in (0, 1], or be None")
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
        """How the sequences to learn from are sampled."""
        return Sampling(self.temperature, self.top_k, self.top_p)


@dataclass(frozen=True)
class ReinforceSettings(PolicyGradientSettings):
    """Hyper-parameters of `Reinforce`."""

    updates: int = 100
    """Updates that learn() makes if it is not told."""

    def __post_init__(self) -> None:
        """Check the number of updates too."""
        super().__post_init__()
        check_whole(self, 0, "updates")


# SeqGAN's generator update: 16 rollouts by the policy itself, no baseline, the sum over batch and time, batch 64,
# Adam at 0.01, gradient norm 5.
PUBLISHED_UPDATE = {"baseline": "none", "loss": "sum", "learning_rate": 1e-2, "embedding": 32, "hidden": 32}
PRESETS: dict[str, dict[str, object]] = {
    "paper": {**PUBLISHED_UPDATE, "updates": 200},  # one a round
    "fast": {**PUBLISHED_UPDATE, "updates": 60},
    # The grammar in well under a minute, from a policy that MLE has trained.
    "demo": {"updates": 40, "rollouts": 4},
    # A pretrained Hugging Face model, in small steps that stay near it.
    "finetune": {"updates": 200, "rollouts": 0, "batch_size": 32, "learning_rate": 1e-5, "kl": {"weight": 0.1}},
}


class Reinforce(Agent[PolicyGradientSettings]):
    """REINFORCE on the environment's reward. A step of learn() is one update of the policy.

    >>> import gymnasium as gym, text_gym
    >>> env = gym.make("TextGen-v0", task="oracle(vocab_size=9, max_length=4)", reward="likelihood")
    >>> agent = Reinforce(env, seed=0, rollouts=2, progress=False).learn(2)
    >>> agent.steps_done, agent.sample(3).tokens.shape
    (2, (3, 4))

    Args:
        env: A TextGen-v0 environment.
        **options: See `Agent` and `ReinforceSettings`; `start` is usually an agent that `MLE` has trained.
    """

    name = "reinforce"
    settings_type: ClassVar[type] = ReinforceSettings
    presets: ClassVar[Presets] = PRESETS
    shown = ("train/reward", "train/entropy")

    def build(self) -> None:
        """Create the policy with its optimiser, the copies of it that do not learn, and the critic."""
        settings = self.settings
        self.policy = make_policy(settings, self.task.vocab, device=self.device)
        self.optimizer = torch.optim.Adam(self.policy.parameters(), settings.learning_rate, fused=True)
        self.reference = frozen_copy(self.policy)
        self.kl = AdaptiveKL(settings.kl.weight, settings.kl.target)
        self.rollout_policy = frozen_copy(self.policy) if settings.rollout_ema_rate is not None else None
        self.average_reward = 0.0
        self._scored = (0, 0.0)  # sequences and seconds of this update
        self._warned = False  # of a slow reward
        self._check_groups()
        self.critic: Critic | None = None
        if settings.baseline == "critic":
            prompts = torch.zeros(1, self.task.prompt_length, dtype=torch.long, device=self.device)
            width = width_of_features(self.policy, prompts if self.task.conditional else None)
            self.critic = Critic(width, settings.critic_learning_rate, self.device)

    def load_policy(self, policy: LanguageModel) -> None:
        """Copy the weights of another policy into the policy and the copies that do not learn."""
        for mine in (self.policy, self.reference, self.rollout_policy):
            if mine is not None:
                mine.load_state_dict(policy.state_dict())

    @property
    def default_steps(self) -> int:
        """Number of updates in the settings."""
        return self.updates_in(self.settings)

    @classmethod
    def updates_in(cls, settings: PolicyGradientSettings, steps: int | None = None) -> int:
        """Return the updates of the policy in so many steps, or in as many as the settings say."""
        assert isinstance(settings, ReinforceSettings)
        return settings.updates if steps is None else steps

    def one_step(self, step: int) -> bool:
        """Make one update."""
        random = self.numpy_random(step)
        self.update(self.torch_random(random), random)
        return True

    def update(self, generator: torch.Generator, random: np.random.Generator) -> None:
        """Make one policy-gradient update."""
        settings = self.settings
        begin, self._scored = time.perf_counter(), (0, 0.0)
        # Sample sequences, and value each of them after each of its tokens.
        examples = self.sample_groups(generator) if self.task.conditional else None
        drawn, values = self.sample_and_value(settings.batch_size, generator, examples)  # values: [n, T + 1]
        # What the baseline, the entropy bonus and the KL penalty leave of the value of each token.
        advantages = self.advantages(drawn, values, examples)  # [n, T]
        # Minus the advantages times the log-probabilities.
        loss = self.loss(drawn, advantages, examples)
        if settings.teacher_forcing:
            loss = loss + settings.teacher_forcing * self._teacher_loss(random)
        norm = self.descend(loss, settings.max_grad_norm)
        self._update_rollout_policy()
        self.logger.record("train/reward", float(values[:, -1].mean()))
        self.logger.record("train/entropy", float(-drawn.log_probs.sum() / drawn.lengths.sum()))
        self.logger.record("train/gradient_norm", norm)
        self._warn_of_slow_reward(time.perf_counter() - begin)

    def sample_groups(self, generator: torch.Generator) -> list[Example]:
        """Sample the prompts of a batch, each `group_size` times in succession."""
        size = self.settings.group_size
        return [e for e in self.sample_examples(self.settings.batch_size // size, generator) for _ in range(size)]

    def sample_and_value(
        self, n: int, generator: torch.Generator, examples: list[Example] | None
    ) -> tuple[Drawn, Tensor]:
        """Sample sequences, and estimate the value of each before its first token and after each token, [n, T + 1]."""
        settings = self.settings
        drawn = self.draw(n, generator, examples, settings.sampling)
        values = rollout_values(
            self.restricted(self.policy if self.rollout_policy is None else self.rollout_policy),
            drawn.tokens,
            drawn.lengths,
            score_sequences(self._counted_rewards, self.task.vocab, examples),
            settings.rollouts,
            self.rules.eos,
            generator,
            self.prompt_tokens(examples),
            from_start=settings.baseline == "prefix",
            chunk=settings.rollout_batch_size,
            sampling=settings.sampling,
        )
        return drawn, values

    def _counted_rewards(self, batch: Batch) -> FloatArray:
        """Compute the rewards of sampled sequences, [m], and count them."""
        self.n_sampled += len(batch)
        begin = time.perf_counter()
        rewards = self.rewards(batch)
        count, seconds = self._scored
        self._scored = (count + len(batch), seconds + time.perf_counter() - begin)
        return rewards

    def _warn_of_slow_reward(self, seconds: float) -> None:
        """Warn once where the environment's reward takes longer than the rest of an update of so many seconds."""
        count, scoring = self._scored
        own_reward = type(self).rewards is not Agent.rewards
        if self._warned or own_reward or scoring < max(SLOW_SCORING, seconds - scoring):
            return
        self._warned = True
        names = " + ".join(self.rules.scorer.rewards)
        warnings.warn(
            f"the reward {names} took {scoring:.1f} of the {seconds:.1f} seconds of an update for {count:,} sequences. "
            f"Fewer rollouts (now {self.settings.rollouts}; 0 scores each sequence once) and a smaller batch_size (now "
            f"{self.settings.batch_size}) need fewer; a reward made with cached=True scores repeated ones once. "
            "See docs/rewards.md",
            SlowRewardWarning,
            stacklevel=2,
        )

    def advantages(self, drawn: Drawn, values: Tensor, examples: list[Example] | None) -> Tensor:
        """Compute the advantage of each token, [n, T]; 0 after the end."""
        settings, valid = self.settings, drawn.valid_mask  # [n, T]
        advantages = values[:, 1:] - self._baseline(drawn, values, examples)
        if settings.baseline == "grpo":
            std = group_mean_and_std(values[:, -1], self._group_size(values))[1]
            advantages = advantages / (std[:, None] + MIN_STD)
        # Entropy and KL are expectations over whole sequences: each token answers for what follows it.
        to_go = self._penalty(drawn, examples).flip(1).cumsum(dim=1).flip(1)
        advantages = advantages - (to_go - mean_of_others(to_go, valid))
        if settings.normalize_advantage:
            std = advantages[valid].std() if int(valid.sum()) > 1 else advantages.new_tensor(0.0)
            advantages = (advantages - advantages[valid].mean()) / (std + 1e-8)
        return torch.where(valid, advantages, 0.0)

    def _penalty(self, drawn: Drawn, examples: list[Example] | None) -> Tensor:
        """Compute the entropy and KL penalty of each token, [n, T], and adapt the KL weight."""
        penalty = drawn.log_probs * float(self.settings.ent_coef)
        prompts, sampling = self.prompt_tokens(examples), self.settings.sampling
        ratio = log_ratios(self.policy, self.reference, drawn, prompts, self.logit_mask, sampling)
        kl, weight = float(ratio.sum() / drawn.lengths.sum()), self.kl.weight
        self.kl.adapt(kl)  # for the next update
        self.logger.record("train/kl_to_start", kl)
        self.logger.record("train/kl_weight", weight)
        return penalty + ratio * weight if weight else penalty

    def _baseline(self, drawn: Drawn, values: Tensor, examples: list[Example] | None) -> Tensor:
        """Compute the baseline of each token, [n, T] or something that broadcasts to it."""
        after, rewards, valid = values[:, 1:], values[:, -1], drawn.valid_mask
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
                return self._critic_values(self.critic, drawn, after, examples)
            case "rloo":
                return group_mean_of_others(rewards, self._group_size(values))[:, None]
            case "grpo":
                return group_mean_and_std(rewards, self._group_size(values))[0][:, None]
            case _:
                return after.new_zeros(())

    def _group_size(self, values: Tensor) -> int:
        """Return how many sequences are compared: those of a prompt, or without prompts all."""
        return self.settings.group_size if self.task.conditional else len(values)

    def _check_groups(self) -> None:
        """Refuse groups without prompts, and groups of one where the baseline compares them."""
        size = self.settings.group_size
        if not self.task.conditional and size > 1:
            raise OptionError(
                f"group_size={size} is a number of sequences for each prompt, and {self.task!r} has no prompts: "
                "say group_size=1, and the whole batch is one group"
            )
        if self.task.conditional and size < 2 and self.settings.baseline in GROUPED:
            raise OptionError(
                f"the baseline {self.settings.baseline} compares the sequences of each prompt: say group_size=8, or "
                "another number of at least 2"
            )

    def _critic_values(self, critic: Critic, drawn: Drawn, after: Tensor, examples: list[Example] | None) -> Tensor:
        """Predict the value before each token, [n, T], and then train the critic on the values after it."""
        with torch.no_grad():
            features = self.policy.features(drawn.tokens, self.prompt_tokens(examples))
        predicted = critic.value(features).to(after.dtype)
        for name, value in critic.learn(features, after, drawn.valid_mask).items():
            self.logger.record(f"train/{name}", value)
        return predicted

    def _greedy_rewards(self, examples: list[Example] | None) -> Tensor:
        """Compute the reward of the greedy sequence: one for all rows, or one for each row's prompt."""
        count = 1 if examples is None else len(examples)
        model, generator = self.restricted(self.policy), torch.Generator(self.device)
        limit, eos, prompts = self.rules.limit, self.rules.eos, self.prompt_tokens(examples)
        greedy = generate(model, count, limit, eos, generator, Sampling(top_k=1), prompts)
        score = score_sequences(self._counted_rewards, self.task.vocab, examples)
        return score(greedy.tokens, greedy.lengths, torch.arange(count))

    def loss(self, drawn: Drawn, advantages: Tensor, examples: list[Example] | None) -> Tensor:
        """Compute the sum or mean over tokens of minus the advantage times the log-probability."""
        weights = advantages.float()
        if self.settings.loss == "mean":
            weights = weights / drawn.lengths.sum()
        prompts, mask, sampling = self.prompt_tokens(examples), self.logit_mask, self.settings.sampling
        return weighted_nll(self.policy, drawn.tokens, weights, prompts, logit_mask=mask, sampling=sampling)[0]

    def _teacher_loss(self, random: np.random.Generator) -> Tensor:
        """Compute the negative log-likelihood of a batch of real sequences, summed or averaged as the loss is."""
        pool = len(self.task.train.references)
        if not pool:
            raise OptionError(f"teacher_forcing needs sequences in the 'train' split of {self.task!r}")
        rows = random.integers(pool, size=self.settings.batch_size)
        return self.likelihood_loss(self.task.batch("train", rows), mean=self.settings.loss == "mean")

    @torch.no_grad()
    def _update_rollout_policy(self) -> None:
        """Move the EMA of the policy towards it."""
        rate = self.settings.rollout_ema_rate
        if self.rollout_policy is not None and rate is not None:
            for slow, live in zip(self.rollout_policy.parameters(), self.policy.parameters(), strict=True):
                slow.lerp_(live, rate)

    def trained_parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """Return the policies, the critic and the optimisers."""
        parts = super().trained_parts() | {"reference": self.reference}
        if self.rollout_policy is not None:
            parts["rollout_policy"] = self.rollout_policy
        if self.critic is not None:
            parts["critic"] = self.critic.network
            parts["critic_adam"] = self.critic.optimizer
        return parts

    def trained_numbers(self) -> Json:
        """Return the moving average of rewards and the KL weight."""
        return {"average_reward": self.average_reward, "kl_weight": self.kl.weight}

    def restore_trained_numbers(self, numbers: Json) -> None:
        """Restore the moving average of rewards and the KL weight."""
        self.average_reward = float(numbers["average_reward"])
        self.kl.weight = float(numbers["kl_weight"])

    @classmethod
    def relative_cost(cls, settings: PolicyGradientSettings, steps: int | None) -> float:
        """Count the sequences and completions of all updates, in batches."""
        return cls.updates_in(settings, steps) * (1.0 + settings.rollouts)

    @classmethod
    def same_updates(cls, settings: PolicyGradientSettings, steps: int | None, reward: str) -> Updates | None:
        """Return the updates as plain REINFORCE on the environment's reward; SeqGAN makes them in a loop."""
        own_loop = cls is not Reinforce and cls.rewards is Agent.rewards
        if own_loop:
            return super().same_updates(settings, steps, reward)
        architecture = {f.name for f in fields(PolicySettings)}  # comes with the warm start
        names = [f.name for f in fields(PolicyGradientSettings) if f.name not in architecture]
        options = {name: value for name, value in asdict(settings).items() if name in names}
        options["updates"] = cls.updates_in(settings, steps)
        if reward.startswith("constant") and settings.baseline != "prefix":
            options["rollouts"] = 0  # every completion would get the same reward
        return Updates(Reinforce.name, options)
