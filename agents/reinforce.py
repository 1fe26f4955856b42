"""REINFORCE with Monte-Carlo rollouts; on a BLEU reward this is PG-BLEU.

For each update: write a batch of sequences; value each of them after each of its tokens by
completing it many times; subtract a baseline; raise the log-probability of each token in
proportion to what is left.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from agents.agent import Agent
from agents.objectives import weighted_nll
from agents.policies import PolicySettings, Restricted, architecture_of, make_policy
from agents.rollout import rollout_values
from agents.writer import rules_of
from text_gym.errors import OptionError
from text_gym.models import Drawn, Sampling, generate
from text_gym.names import finite_number, whole_number
from text_gym.sequences import Batch, Example

Baseline = Literal["none", "moving_average", "position_mean", "leave_one_out", "greedy", "prefix"]
BASELINES = ("none", "moving_average", "position_mean", "leave_one_out", "greedy", "prefix")
MEMORY = 0.9  # of the moving average, from one update to the next


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
    or without the sequence itself; the reward of the likeliest sequence; the value one token earlier."""
    normalize: bool = False
    """Whether advantages are brought to mean 0 and standard deviation 1."""
    entropy_weight: float = 0.0
    """The weight of the policy's entropy, to be raised."""
    kl_weight: float = 0.0
    """The weight of the divergence from the policy at the start, to be kept low."""
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
        for name, least in (("rollouts", 0), ("rollout_chunk", 1), ("batch_size", 1)):
            whole_number(name, getattr(self, name), least)
        for name in ("entropy_weight", "kl_weight", "teacher_forcing"):
            if finite_number(name, getattr(self, name)) < 0:
                raise OptionError(f"{name} must not be negative, and is {getattr(self, name)}")
        if finite_number("learning_rate", self.learning_rate) <= 0 or finite_number("clip", self.clip) <= 0:
            raise OptionError(f"learning_rate={self.learning_rate} and clip={self.clip} must be above 0")
        if self.rollout_rate is not None and not 0 < finite_number("rollout_rate", self.rollout_rate) <= 1:
            raise OptionError(f"rollout_rate={self.rollout_rate} must lie in (0, 1], or be None")
        if self.baseline not in BASELINES or self.loss not in ("sum", "mean"):
            raise OptionError(f"baseline={self.baseline!r} must be one of {BASELINES}, loss={self.loss!r} sum or mean")
        if self.baseline == "leave_one_out" and self.batch_size < 2:
            raise OptionError("the baseline leave_one_out needs a batch_size of at least 2")
        if self.baseline == "prefix" and not self.rollouts:
            raise OptionError("the baseline prefix compares values of prefixes, which needs rollouts")


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
}


class Reinforce(Agent):
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

    def __init__(
        self,
        env: Any,
        seed: int | None = None,
        preset: str | None = None,
        *,
        start: Agent | None = None,
        **options: Any,
    ) -> None:
        """Begin with a copy of start's policy, or with a random one."""
        self._start_policy: Any = None
        if start is not None:
            if not hasattr(start, "policy"):
                raise OptionError(f"start must be an agent, as MLE.load(folder, env) gives one, and not {start!r}")
            self._start_policy = start.policy
            for name, value in architecture_of(start.policy).items():
                if options.setdefault(name, value) != value:
                    raise OptionError(f"{name}={options[name]!r}, but the policy to start from has {value!r}")
            if start.task.vocab.tokens != rules_of(env).vocab.tokens:
                raise OptionError(f"start was made for the tokens of {start.task!r}, which are not those of {env!r}")
        super().__init__(env, seed=seed, preset=preset, **options)

    def build(self) -> None:
        """The policy and its optimiser, and the policies that do not learn by themselves."""
        self.policy = make_policy(self.settings, len(self.task.vocab)).to(self.device)
        self.optimizer = torch.optim.Adam(self.policy.parameters(), self.settings.learning_rate, fused=True)
        self.at_start = _frozen(self.policy) if self.settings.kl_weight else None
        self.completer = _frozen(self.policy) if self.settings.rollout_rate is not None else None
        self.average_reward = 0.0
        if self._start_policy is not None:
            self.begin_with(self._start_policy)

    def begin_with(self, policy: nn.Module) -> None:
        """Give the policy, and those that do not learn by themselves, the weights of another."""
        for mine in (self.policy, self.at_start, self.completer):
            if mine is not None:
                mine.load_state_dict(policy.state_dict())

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
        examples = self.draw_examples(self.settings.batch_size, generator) if self.task.conditional else None
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

    def write_and_value(
        self, n: int, generator: torch.Generator, examples: list[Example] | None
    ) -> tuple[Drawn, Tensor]:
        """A batch of sequences, and the value of each after each of its tokens, [n, T + 1]."""
        self.policy.eval()
        prompts = self.prompt_rows(examples)
        policy = self.restricted(self.policy)
        drawn = generate(policy, n, self.rules.limit, self.rules.eos, generator, prompts=prompts)
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
        valid = torch.arange(values.shape[1] - 1, device=values.device) < drawn.lengths[:, None]  # [n, T]
        advantages = values[:, 1:] - self._baseline(values, valid, examples)
        # Entropy and divergence are expectations over whole sequences: each token answers for what follows it.
        to_go = self._penalty(drawn, valid, examples).flip(1).cumsum(dim=1).flip(1)
        advantages = advantages - (to_go - _mean_of_others(to_go, valid))
        if settings.normalize:
            spread = advantages[valid].std() if int(valid.sum()) > 1 else advantages.new_tensor(0.0)
            advantages = (advantages - advantages[valid].mean()) / (spread + 1e-8)
        return torch.where(valid, advantages, 0.0)

    def _penalty(self, drawn: Drawn, valid: Tensor, examples: list[Example] | None) -> Tensor:
        """What each token costs: being expected, and being more likely than at the start, [n, T]."""
        penalty = drawn.log_probs * float(self.settings.entropy_weight)
        if self.at_start is None:
            return penalty
        prompts = self.prompt_rows(examples)
        with torch.no_grad():
            penalty_of_places = self._penalty_of_places()
            weights = valid.to(drawn.log_probs.dtype)
            nll: Tensor = weighted_nll(self.at_start, drawn.tokens, weights, prompts, penalty=penalty_of_places)[1]
        ratio = drawn.log_probs + nll
        self.logger.record("train/kl_to_start", float(ratio.sum() / drawn.lengths.sum()))
        return penalty + ratio * float(self.settings.kl_weight)

    def _baseline(self, values: Tensor, valid: Tensor, examples: list[Example] | None) -> Tensor:
        """What is expected of each token, [n, T] or something that broadcasts to it."""
        after = values[:, 1:]
        match self.settings.baseline:
            case "moving_average":
                expected = self.average_reward
                mean = float(values[:, -1].mean())
                self.average_reward = MEMORY * expected + (1 - MEMORY) * mean if expected else mean
                return after.new_tensor(expected)
            case "position_mean":
                counted = after.where(valid, 0.0)
                return counted.sum(dim=0) / valid.sum(dim=0).clamp(min=1)
            case "leave_one_out":
                own = values[:, -1]
                alone = (own.sum() - own) / max(len(own) - 1, 1)  # where no other sequence is as long
                return _mean_of_others(after, valid, alone[:, None])
            case "greedy":
                return self._greedy_rewards(examples)[:, None].to(after.dtype)
            case "prefix":
                return values[:, :-1]
            case _:
                return after.new_zeros(())

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
        return weighted_nll(self.policy, drawn.tokens, weights, prompts, penalty=self._penalty_of_places())[0]

    def _penalty_of_places(self) -> Tensor | None:
        """What keeps the policy from writing what is banned, [T, V], where anything is."""
        restricted = self.restricted(self.policy)
        return restricted.penalty(self.rules.limit) if isinstance(restricted, Restricted) else None

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
        """All policies, and Adam."""
        policies = {"at_start": self.at_start, "completer": self.completer}
        return super().trained_parts() | {name: policy for name, policy in policies.items() if policy is not None}

    def trained_numbers(self) -> dict[str, Any]:
        """The moving average."""
        return {"average_reward": self.average_reward}

    def restore_trained_numbers(self, numbers: Mapping[str, Any]) -> None:
        """Put it back."""
        self.average_reward = float(numbers["average_reward"])


def _mean_of_others(values: Tensor, valid: Tensor, alone: Tensor | float = 0.0) -> Tensor:
    """At each position the mean over the other sequences that reach it, [n, T]; `alone` where there is none."""
    counted = values.where(valid, 0.0)
    others = valid.sum(dim=0) - valid.long()
    mean = (counted.sum(dim=0) - counted) / others.clamp(min=1)
    return torch.where(others > 0, mean, alone)


def _frozen(policy: Any) -> Any:
    return copy.deepcopy(policy).requires_grad_(False).eval()


def _those(examples: list[Example] | None, rows: Tensor) -> list[Example] | None:
    return None if examples is None else [examples[i] for i in rows.tolist()]
