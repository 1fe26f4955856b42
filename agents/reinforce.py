"""REINFORCE with Monte-Carlo rollouts; on a BLEU reward this is PG-BLEU.

For each update: write a batch of sequences; value each of them after each of its tokens by
completing it many times; subtract a baseline; raise the log-probability of each token in
proportion to what is left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from agents.common.baselines import (
    GROUPED,
    Critic,
    leave_one_out,
    mean_and_spread_of_group,
    mean_of_others,
    mean_of_rest_of_group,
    position_mean,
)
from agents.common.kl import AdaptiveKL, log_ratios
from agents.common.losses import weighted_nll
from agents.common.rollouts import rollout_values
from agents.common.starting import StartingAgent
from agents.gradients import GradientSettings
from agents.networks.policies import frozen_copy, make_policy, width_of_features
from text_gym.errors import OptionError
from text_gym.language_model import Drawn, Sampling, generate
from text_gym.sequences import Batch, Example
from text_gym.validation import whole_number

MEMORY = 0.9  # of the moving average, from one update to the next
LEAST_SPREAD = 1e-4  # is added to that of a group, so that a group whose rewards are equal teaches nothing


@dataclass(frozen=True)
class ReinforceSettings(GradientSettings):
    """The hyper-parameters of `Reinforce`."""

    updates: int = 100
    """Updates of the policy that learn() makes if it is not told."""

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        super().__post_init__()
        whole_number("updates", self.updates, least=0)


# SeqGAN's generator update: 16 rollouts by the live policy, no baseline, the sum over batch and time,
# batch 64, Adam at 0.01, clip 5.
PUBLISHED_UPDATE = {"baseline": "none", "loss": "sum", "learning_rate": 1e-2, "embedding": 32, "hidden": 32}
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {**PUBLISHED_UPDATE, "updates": 200},  # one a round
    "fast": {**PUBLISHED_UPDATE, "updates": 60},
    # The grammar in well under a minute, from a policy that MLE has trained.
    "demo": {"updates": 40, "rollouts": 4},
    # A pretrained Hugging Face model, in small steps that stay near it.
    "finetune": {"updates": 200, "rollouts": 0, "batch_size": 32, "learning_rate": 1e-5, "kl_weight": 0.1},
}


class Reinforce(StartingAgent):
    """REINFORCE on the environment's reward. A step of learn() is one update of the policy.

    >>> import gymnasium as gym, text_gym
    >>> env = gym.make("TextGen-v0", task="oracle(vocab_size=9, max_length=4)", reward="likelihood")
    >>> agent = Reinforce(env, seed=0, rollouts=2, progress=False).learn(2)
    >>> agent.steps_done, agent.sample(3).tokens.shape
    (2, (3, 4))

    Args:
        env: The environment.
        start: An agent whose policy is where this one begins; usually one that `MLE` has trained.
        **options: See `Agent` and `ReinforceSettings`.
    """

    name = "reinforce"
    settings_type: ClassVar[type] = ReinforceSettings
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS
    shown = ("train/reward", "train/entropy")
    settings: Any  # ReinforceSettings

    def build(self) -> None:
        """The policy and its optimiser, and the policies that do not learn by themselves."""
        self.policy = make_policy(self.settings, self.task.vocab, device=self.device)
        self.optimizer = torch.optim.Adam(self.policy.parameters(), self.settings.learning_rate, fused=True)
        self.at_start = frozen_copy(self.policy)
        self.kl = AdaptiveKL(self.settings.kl_weight, self.settings.kl_target)
        self.completer = frozen_copy(self.policy) if self.settings.rollout_rate is not None else None
        self.average_reward = 0.0
        self._check_groups()
        self.critic: Critic | None = None
        if self.settings.baseline == "critic":
            prompts = torch.zeros(1, self.task.prompt_length, dtype=torch.long, device=self.device)
            width = width_of_features(self.policy, prompts if self.task.conditional else None)
            self.critic = Critic(width, self.settings.critic_learning_rate, self.device)
        self.begin_from_start()

    def begin_with(self, policy: nn.Module) -> None:
        """Give the policy, and those that do not learn by themselves, the weights of another."""
        for mine in (self.policy, self.at_start, self.completer):
            if mine is not None:
                mine.load_state_dict(policy.state_dict())

    def _check_groups(self) -> None:
        """Refuse groups that the task has no prompts for, and groups of one where the baseline compares."""
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

    @property
    def steps_of_preset(self) -> int:
        """The updates of the settings."""
        updates: int = self.settings.updates
        return updates

    def one_step(self, step: int) -> bool:
        """One update."""
        random = self.numpy_random(step)
        self.update(self.torch_random(random), random)
        return True

    def update(self, generator: torch.Generator, random: np.random.Generator) -> None:
        """Write a batch, value it, and make what was better than expected likelier."""
        examples = self.draw_groups(generator) if self.task.conditional else None
        drawn, values = self.write_and_value(self.settings.batch_size, generator, examples)
        advantages = self.advantages(drawn, values, examples)
        loss = self.loss(drawn, advantages, examples)
        if self.settings.teacher_forcing:
            loss = loss + self.settings.teacher_forcing * self._teacher_loss(random)
        norm = self.descend(loss)
        self._follow()
        self.logger.record("train/reward", float(values[:, -1].mean()))
        self.logger.record("train/entropy", float(-drawn.log_probs.sum() / drawn.lengths.sum()))
        self.logger.record("train/gradient_norm", norm)

    def draw_groups(self, generator: torch.Generator) -> list[Example]:
        """The prompts of a batch, each `group_size` times in succession."""
        size = self.settings.group_size
        return [e for e in self.draw_examples(self.settings.batch_size // size, generator) for _ in range(size)]

    def write_and_value(
        self, n: int, generator: torch.Generator, examples: list[Example] | None
    ) -> tuple[Drawn, Tensor]:
        """A batch of sequences, and the value of each after each of its tokens, [n, T + 1]."""
        self.policy.eval()
        prompts = self.prompt_rows(examples)
        policy = self.restricted(self.policy)
        sampling = self.settings.sampling
        drawn = generate(policy, n, self.rules.limit, self.rules.eos, generator, sampling, prompts)
        values = rollout_values(
            policy if self.completer is None else self.restricted(self.completer),
            drawn.tokens,
            drawn.lengths,
            lambda tokens, lengths, rows: self.score(tokens, lengths, _those(examples, rows)),
            self.settings.rollouts,
            self.rules.eos,
            generator,
            prompts,
            from_start=self.settings.baseline == "prefix",
            chunk=self.settings.rollout_chunk,
            sampling=sampling,
        )
        return drawn, values

    def score(self, tokens: Tensor, lengths: Tensor, examples: list[Example] | None) -> Tensor:
        """The rewards of finished sequences, [m]."""
        self.written += len(tokens)
        arrays = [tensor.cpu().numpy().copy() for tensor in (tokens, lengths)]
        for array in arrays:
            array.flags.writeable = False  # rewards look, and do not touch
        return self.tensor(self.rewards(Batch(arrays[0], arrays[1], self.task.vocab, examples)))

    def advantages(self, drawn: Drawn, values: Tensor, examples: list[Example] | None) -> Tensor:
        """How much better each token made its sequence than the baseline expected, [n, T]; 0 after the end."""
        settings = self.settings
        valid = drawn.valid_mask
        advantages = values[:, 1:] - self._baseline(drawn, values, valid, examples)
        if settings.baseline == "grpo":
            spread = mean_and_spread_of_group(values[:, -1], self._group_size(values))[1]
            advantages = advantages / (spread[:, None] + LEAST_SPREAD)
        # Entropy and divergence are expectations over whole sequences: each token answers for what follows it.
        to_go = self._penalty(drawn, examples).flip(1).cumsum(dim=1).flip(1)
        advantages = advantages - (to_go - mean_of_others(to_go, valid))
        if settings.normalize:
            spread = advantages[valid].std() if int(valid.sum()) > 1 else advantages.new_tensor(0.0)
            advantages = (advantages - advantages[valid].mean()) / (spread + 1e-8)
        return torch.where(valid, advantages, 0.0)

    def _penalty(self, drawn: Drawn, examples: list[Example] | None) -> Tensor:
        """What each token costs: being expected, and being more likely than at the start, [n, T]."""
        penalty = drawn.log_probs * float(self.settings.entropy_weight)
        prompts, places = self.prompt_rows(examples), self.penalty_of_places()
        ratio = log_ratios(self.policy, self.at_start, drawn, prompts, places, self.settings.sampling)
        divergence, weight = float(ratio.sum() / drawn.lengths.sum()), self.kl.weight
        self.kl.adapt(divergence)  # for the next update
        self.logger.record("train/kl_to_start", divergence)
        self.logger.record("train/kl_weight", weight)
        return penalty + ratio * weight if weight else penalty

    def _baseline(self, drawn: Drawn, values: Tensor, valid: Tensor, examples: list[Example] | None) -> Tensor:
        """What is expected of each token, [n, T] or something that broadcasts to it."""
        after, own = values[:, 1:], values[:, -1]
        match self.settings.baseline:
            case "moving_average":
                expected = self.average_reward
                mean = float(own.mean())
                self.average_reward = MEMORY * expected + (1 - MEMORY) * mean if expected else mean
                return after.new_tensor(expected)
            case "position_mean":
                return position_mean(after, valid)
            case "leave_one_out":
                return leave_one_out(after, valid, own)
            case "greedy":
                return self._greedy_rewards(examples)[:, None].to(after.dtype)
            case "prefix":
                return values[:, :-1]
            case "critic" if self.critic is not None:
                return self._expected_by(self.critic, drawn, after, valid, examples)
            case "rloo":
                return mean_of_rest_of_group(own, self._group_size(values))[:, None]
            case "grpo":
                return mean_and_spread_of_group(own, self._group_size(values))[0][:, None]
            case _:
                return after.new_zeros(())

    def _group_size(self, values: Tensor) -> int:
        """How many sequences are compared with each other: those of a prompt, or where there is none, all."""
        return int(self.settings.group_size) if self.task.conditional else len(values)

    def _expected_by(
        self, critic: Critic, drawn: Drawn, after: Tensor, valid: Tensor, examples: list[Example] | None
    ) -> Tensor:
        """What the critic expected before each token, [n, T]; then it learns what came after."""
        policy: Any = self.policy
        with torch.no_grad():
            features = policy.features(drawn.tokens, self.prompt_rows(examples))
        expected = critic.value(features).to(after.dtype)
        for name, value in critic.learn(features, after, valid).items():
            self.logger.record(f"train/{name}", value)
        return expected

    def _greedy_rewards(self, examples: list[Example] | None) -> Tensor:
        """The reward of the likeliest sequence: one for all rows, or one for each row's prompt."""
        prompts = self.prompt_rows(examples)
        count, generator = (1 if examples is None else len(examples)), torch.Generator(self.device)
        likeliest = generate(
            self.restricted(self.policy), count, self.rules.limit, self.rules.eos, generator, Sampling(top_k=1), prompts
        )
        return self.score(likeliest.tokens, likeliest.lengths, examples)

    def loss(self, drawn: Drawn, advantages: Tensor, examples: list[Example] | None) -> Tensor:
        """Minus the advantages times the log-probabilities, summed or averaged over the batch's tokens."""
        weights = advantages.float()
        if self.settings.loss == "mean":
            weights = weights / drawn.lengths.sum()
        prompts = self.prompt_rows(examples)
        penalty, sampling = self.penalty_of_places(), self.settings.sampling
        return weighted_nll(self.policy, drawn.tokens, weights, prompts, penalty=penalty, sampling=sampling)[0]

    def _teacher_loss(self, random: np.random.Generator) -> Tensor:
        """The negative log-likelihood of a batch of real sequences, summed or averaged as the loss is."""
        pool = len(self.task.train.references)
        if not pool:
            raise OptionError(f"teacher_forcing needs sequences in the 'train' split of {self.task!r}")
        rows = random.integers(pool, size=self.settings.batch_size)
        return self.likelihood_loss(self.task.batch("train", rows), mean=self.settings.loss == "mean")

    @torch.no_grad()
    def _follow(self) -> None:
        """Let the policy that completes move towards the live one."""
        rate = self.settings.rollout_rate
        if self.completer is not None and rate is not None:
            for slow, live in zip(self.completer.parameters(), self.policy.parameters(), strict=True):
                slow.lerp_(live, rate)

    def trained_parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """All policies, the critic, and Adam."""
        parts: dict[str, Any] = {"at_start": self.at_start}
        if self.completer is not None:
            parts["completer"] = self.completer
        if self.critic is not None:
            parts |= {"critic": self.critic.network, "critic_adam": self.critic.optimizer}
        return super().trained_parts() | parts

    def trained_numbers(self) -> dict[str, Any]:
        """The moving average, and the weight of the divergence."""
        return {"average_reward": self.average_reward, "kl_weight": self.kl.weight}

    def restore_trained_numbers(self, numbers: Mapping[str, Any]) -> None:
        """Put them back."""
        self.average_reward, self.kl.weight = float(numbers["average_reward"]), float(numbers["kl_weight"])


def _those(examples: list[Example] | None, rows: Tensor) -> list[Example] | None:
    return None if examples is None else [examples[i] for i in rows.tolist()]
