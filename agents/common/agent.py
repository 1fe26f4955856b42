"""Base class of all agents: hyperparameters, sampling, the training loop and checkpoints.

The module of an algorithm has its hyperparameters, its losses and its `one_step()`, which learn() calls for every
step. The random numbers of step k depend only on the seed and on k. A run that is resumed from a checkpoint therefore
equals an uninterrupted run bit for bit.
"""

from __future__ import annotations

import hashlib
import math
import secrets
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from enum import IntEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from torch import Tensor, nn
from tqdm import tqdm

from agents.common.checkpoint import (
    Checkpoint,
    CheckpointError,
    Json,
    has_checkpoint,
    load_checkpoint,
    pack_parts,
    read_state,
    save_checkpoint,
    unpack_parts,
    version_of,
)
from agents.common.generation import Env, find_device, next_logits, rules_of, sequence_log_probs, to_tensor
from agents.common.logs import WRITERS, checked_logs, keep_rows, open_logger, rows_of
from agents.common.losses import weighted_nll
from agents.common.settings import NoSettings, Presets, as_json, changed, describe_difference, filled
from agents.common.training import Callback, alone_in, as_callback, stop_on_interrupt
from agents.networks.policies import LogitMask, Restricted, Tempered, architecture_of
from text_gym.arrays import AnyArray, FloatArray, IntArray
from text_gym.errors import OptionError, TrainingError
from text_gym.language_model import Drawn, LanguageModel, Sampling, draw_tokens, generate, tune_memory
from text_gym.rules import Rules
from text_gym.sequences import Batch, Example, make_batch
from text_gym.tasks.task import Task
from text_gym.validation import suggest, whole_number

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

AgentT = TypeVar("AgentT", bound="Agent[Any]")
S = TypeVar("S", bound="DataclassInstance")

# A checkpoint that takes at most QUICK seconds is saved after every step. Slower ones take a share SAVING of the time.
QUICK = 1.0
SAVING = 0.1


class Stream(IntEnum):
    """Independent streams of random numbers within a step."""

    SAMPLING = 1  # sample() between steps
    LEARNING = 2  # sample() within a step
    TORCH = 3  # torch's global generator: initial weights, dropout
    PRETRAINING = 4  # SeqGAN's pretraining of the discriminator


RANDOM_WEIGHTS = "random weights"  # initial policy of an agent without pretraining and without a warm start


class Updates(NamedTuple):
    """Agent and hyperparameters with which a control makes the same updates as another agent."""

    agent: str | None
    """Registered name of the agent that makes the updates; None for the same agent."""
    settings: dict[str, object]
    """Hyperparameters of this agent."""


class Agent(ABC, Generic[S]):
    """Base class of agents: `Agent(env).learn().sample(8)`.

    A subclass implements build(), which creates the policy and the optimiser, and one_step(), which learns.

    Args:
        env: TextGen-v0 environment, scalar or vector. It defines the task and the reward.
        seed: Seed of all random numbers. If None, the seed of the run in the folder, or else a random seed.
        preset: Name of a set of hyperparameters.
        folder: Run folder for checkpoints and metrics. If it has a run of this agent, the agent resumes from its last
            checkpoint. Checkpoints are saved after every step, or less often if saving takes more than a second.
        device: "cpu", "cuda", or "auto" for the GPU if there is one.
        threads: Number of threads that torch uses on a CPU; None for torch's default.
        progress: Whether learn() shows a progress bar.
        log: Outputs for metrics, as in Stable-Baselines3's logger: "csv", "json", "log", "stdout", "tensorboard".
        start: Warm start: a trained agent whose policy is copied.
        **hyper: Hyperparameters, which override the preset. Give a group as a dict: `kl={"weight": 0.1}`.
    """

    name: ClassVar[str] = ""
    """Name in checkpoints, logs and error messages. The default is the name of the class in lower case."""
    settings_type: ClassVar[type] = NoSettings
    """Dataclass of the hyperparameters."""
    presets: ClassVar[Presets] = {}
    """Named sets of hyperparameters."""
    shown: ClassVar[tuple[str, ...]] = ()
    """Metrics in the progress bar. By default, these are the first two that are recorded."""
    takes_start: ClassVar[bool] = True
    """Whether the agent supports a warm start. In a comparison, it then starts from the common warm start."""
    is_warm_start: ClassVar[bool] = False
    """Whether the agent can be the common warm start of a comparison."""
    learns: ClassVar[bool] = True
    """Whether the agent learns at all."""
    learns_from_reward: ClassVar[bool] = True
    """Whether the agent learns from a reward."""

    settings: S
    policy: LanguageModel
    optimizer: torch.optim.Optimizer

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        cls.name = cls.__dict__.get("name", cls.__name__.lower())

    def __init__(
        self,
        env: Env,
        seed: int | None = None,
        preset: str | None = None,
        folder: str | Path | None = None,
        device: str = "auto",
        threads: int | None = None,
        progress: bool = True,
        log: Sequence[str] = ("csv", "json"),
        start: Agent[Any] | None = None,
        **hyper: object,
    ) -> None:
        self._initial_policy = None if start is None else self._policy_of(start, env, hyper)
        self.settings = self.choose_settings(preset, **hyper)
        self.folder = None if folder is None else Path(folder)
        resumed = self.folder if self.folder is not None and has_checkpoint(self.folder) else None
        if seed is None and resumed is not None:
            seed = read_state(resumed, self.name).get("seed")
        self.seed = secrets.randbits(31) if seed is None else whole_number("seed", seed, least=0)
        tune_memory()
        self.env = env
        self.rules: Rules = rules_of(env)
        self.task = self.rules.task
        self.device = find_device(device)
        self._sampler = torch.Generator(self.device)
        self.n_sampled = 0  # number of sampled sequences, including rollouts
        if threads is not None:
            torch.set_num_threads(whole_number("threads", threads, least=1))
        self.progress = progress
        self.log = checked_logs(log, self.folder)
        self.steps_done = 0
        self.cost = {"seconds": 0.0, "sequences": 0.0}  # wall-clock time and sampled sequences of all steps
        self.finished = False  # whether one_step() has returned False
        self._next_save = 0.0  # earliest time of the next checkpoint, on the clock of time.perf_counter()
        self.logger = Logger(None, [])
        self._own_logger = True
        self._log_rows = dict.fromkeys((writer.name for writer in WRITERS.values()), 0)  # rows in each metrics file
        self._checked_rows = False  # whether the metrics files have been truncated to these rows
        self._version: object = None  # version of the checkpoint in the folder that this agent last saved or loaded
        self._reseed_sampler(Stream.SAMPLING)
        with self.randomness(-1):
            self.build()
        if not isinstance(getattr(self, "policy", None), LanguageModel):
            raise OptionError(
                f"build() of {type(self).__name__} has not created a policy; set self.policy to a "
                "text_gym.language_model.LanguageModel"
            )
        if self._initial_policy is not None:
            self.load_policy(self._initial_policy)
        if resumed is not None:
            self._restore(resumed)

    def __repr__(self) -> str:
        parts = [f"task={self.task.name!r}", f"steps_done={self.steps_done}", f"seed={self.seed}"]
        if policy := getattr(self, "policy", None):  # which build() sets
            size = sum(parameter.numel() for parameter in policy.parameters())
            parts.append(f"policy={type(policy).__name__} with {size:,} parameters")
        if preset := next((name for name in self.presets if self.choose_settings(name) == self.settings), None):
            parts.append(f"preset={preset!r}")
        if self.folder is not None:
            parts.append(f"folder={str(self.folder)!r}")
        return f"{type(self).__name__}({', '.join(parts)})"

    @classmethod
    def _policy_of(cls, start: Agent[Any], env: Env, hyper: dict[str, object]) -> LanguageModel:
        """Return the policy of a warm start, and add its architecture to the hyperparameters."""
        if not cls.takes_start:
            raise OptionError(f"{cls.name} does not support a warm start; leave start out")
        if not hasattr(start, "policy"):
            raise OptionError(f"start={start!r} is not an agent; give for example MLE.load(folder, env)")
        known = {field.name for field in fields(cls.settings_type)}
        for name, value in architecture_of(start.policy).items():
            if name in known and hyper.setdefault(name, value) != value:
                raise OptionError(
                    f"{name}={hyper[name]!r} differs from the policy of the warm start, which has {value!r}; leave "
                    f"{name} out"
                )
        if start.task.vocab.tokens != rules_of(env).vocab.tokens:
            raise OptionError(
                f"the warm start was trained on {start.task!r}, whose tokens differ from those of {env!r}; train it on "
                "the same task"
            )
        return start.policy

    # Methods to override in an algorithm.

    @abstractmethod
    def build(self) -> None:
        """Create the policy (self.policy), its optimiser (self.optimizer) and all other parts that are trained."""

    @abstractmethod
    def one_step(self, step: int) -> bool | None:
        """Run one step of learn(), and record its metrics in self.logger. Return False to end the run."""

    @property
    def default_steps(self) -> int:
        """Number of steps of a whole run, which learn() takes if no number is given."""
        raise OptionError(
            f"{self.name} has no default number of steps; give learn(steps), `text-gym train --steps`, or in "
            f"`text-gym compare` an agent with (steps=...) behind its name"
        )

    def load_policy(self, policy: LanguageModel) -> None:
        """Copy the weights of another policy, for a warm start."""
        try:
            self.policy.load_state_dict(policy.state_dict())
        except RuntimeError as problem:
            raise OptionError(
                f"build() of {type(self).__name__} creates a policy of another architecture than the warm start; "
                "create it with make_policy(self.settings, ...) and settings that derive from PolicySettings, or set "
                "takes_start = False for random initial weights"
            ) from problem

    def trained_parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """Return all modules and optimisers whose tensors belong in a checkpoint, by name."""
        return {"policy": self.policy, "adam": self.optimizer}

    def trained_numbers(self) -> Json:
        """Return all other state that belongs in a checkpoint, in types of JSON."""
        return {}

    def restore_trained_numbers(self, numbers: Json) -> None:
        """Restore the state that trained_numbers() returned."""

    @classmethod
    def same_updates(cls, settings: S, steps: int | None, reward: str) -> Updates | None:
        """Return how a control can make the updates of this agent under another reward.

        Args:
            settings: Hyperparameters of the agent.
            steps: Number of steps of the run; None for the default number.
            reward: Reward of the control.

        Returns:
            Agent and hyperparameters of the control; None if the agent does not learn from the environment's reward.
        """
        own_reward = cls.rewards is not Agent.rewards
        return Updates(None, {}) if cls.learns_from_reward and not own_reward else None

    @classmethod
    def stopped_early(cls, settings: S, patience: int) -> dict[str, object] | None:
        """Return the hyperparameters that turn on early stopping; None if it is on already or not supported."""
        return None

    @classmethod
    def begins_with(cls, settings: S) -> str:
        """Describe the initial policy of a run without a warm start, for reports; "" if the agent does not learn."""
        if not cls.learns:
            return ""
        model = getattr(settings, "model", "")
        return f"pretrained {model}" if model else RANDOM_WEIGHTS

    @classmethod
    def relative_cost(cls, settings: S, steps: int | None) -> float:
        """Estimate the cost of a run in arbitrary units. A comparison starts its most expensive runs first."""
        return 0.0

    @classmethod
    def check_task(cls, task: Task) -> None:
        """Raise an error if the agent does not support the task."""

    # Sampling and log-probabilities.

    @property
    def restricts(self) -> bool:
        """Whether the environment bans tokens, or EOS before min_length."""
        return not self.rules.later_mask.all() or self.rules.min_length > 0

    def restricted(self, policy: LanguageModel) -> LanguageModel:
        """Return the policy with banned tokens masked, and with EOS masked before min_length."""
        return policy if self.logit_mask is None else Restricted(policy, self.logit_mask)

    @cached_property
    def logit_mask(self) -> LogitMask | None:
        """Mask that is added to the policy's logits for sampling; None if no tokens are banned."""
        if not self.restricts:
            return None
        early = self.tensor(self.rules.early_mask == 0)
        later = self.tensor(self.rules.later_mask == 0)
        return LogitMask.of_banned(early, later, self.rules.min_length)

    def sample(
        self,
        n: int | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = None,
        prompts: Sequence[str | Sequence[int] | Example] | None = None,
    ) -> Batch:
        """Sample sequences. Tokens that the environment bans are never sampled, nor is EOS before min_length.

        Args:
            n: Number of sequences. If None, one for each prompt, or 1 without prompts.
            temperature: Divisor of the logits; below 1, likely tokens become more likely.
            top_k: Sample only from the k likeliest tokens; 0 for all.
            top_p: Sample only from the likeliest tokens with total probability p (nucleus sampling); 1 for all.
            seed: Seed. If None, every call returns different sequences.
            prompts: Prompts as texts, token ids or Examples. If None, they are sampled from the environment's split.

        Returns:
            Batch of n sequences.
        """
        if isinstance(prompts, str):
            prompts = [prompts]
        examples = None if prompts is None else [self._example(prompt) for prompt in prompts]
        n = whole_number("n", (1 if examples is None else len(examples)) if n is None else n, least=0)
        if examples is not None and len(examples) != n:
            raise OptionError(f"n={n} differs from the number of prompts, {len(examples)}; leave n out")
        sampling = Sampling(temperature, top_k, top_p).checked()
        generator = self._sampler if seed is None else torch.Generator(self.device).manual_seed(seed)
        if examples is None and self.task.conditional:
            examples = self.sample_examples(n, generator)
        return self.generate(n, generator, examples, sampling)

    def generate(
        self, n: int, generator: torch.Generator, examples: Sequence[Example] | None, sampling: Sampling | None = None
    ) -> Batch:
        """Sample n sequences as a batch; in tasks with prompts, one for each of the n examples."""
        sampled = self.draw(n, generator, examples, sampling or Sampling())
        self.n_sampled += n
        return Batch(sampled.tokens.cpu().numpy(), sampled.lengths.cpu().numpy(), self.task.vocab, examples)

    def draw(self, n: int, generator: torch.Generator, examples: Sequence[Example] | None, sampling: Sampling) -> Drawn:
        """Sample n sequences as tensors, with the log-probability of each token; does not count them in n_sampled."""
        self.policy.eval()
        model = self.restricted(self.policy)
        prompts = self.prompt_tokens(examples)
        return generate(model, n, self.rules.limit, self.rules.eos, generator, sampling, prompts)

    def rewards(self, batch: Batch) -> FloatArray:
        """Score finished sequences with the environment's reward, [n]."""
        return self.rules.scorer(batch).total

    @torch.no_grad()
    def log_prob(
        self,
        tokens: npt.ArrayLike,
        lengths: npt.ArrayLike | None = None,
        examples: Sequence[Example] | None = None,
        as_sampled: bool = False,
        temperature: float = 1.0,
    ) -> FloatArray:
        """Compute the log-probability of each sequence in nats, [n].

        Args:
            tokens: Sequences [n, T].
            lengths: Lengths [n], EOS included.
            examples: Examples with the prompts [n], in tasks with prompts.
            as_sampled: Whether banned tokens have probability 0, as in sample(). The default is the policy without the
                environment's mask, because real sequences may contain banned tokens.
            temperature: Divisor of the logits, as in sample().
        """
        batch = make_batch(tokens, lengths, self.task.vocab)
        if self.task.conditional and (examples is None or len(examples) != len(batch)):
            raise OptionError(
                f"task {self.task.name!r} has prompts, and log_prob() did not get one for each sequence; give examples="
            )
        self.policy.eval()
        model = self.policy
        if temperature != 1:
            model = Tempered(model, Sampling(temperature).checked().temperature)
        if as_sampled:
            model = self.restricted(model)
        return sequence_log_probs(model, batch, self.prompt_tokens(examples), self.device)

    @torch.no_grad()
    def predict(
        self,
        observation: IntArray | Mapping[str, IntArray],
        state: object = None,
        episode_start: object = None,
        deterministic: bool = False,
    ) -> tuple[IntArray, object]:
        """Choose the next token of each prefix; the interface is that of Stable-Baselines3.

        Args:
            observation: One observation of TextGen-v0, or a batch of observations.
            state: Returned unchanged.
            episode_start: Not used.
            deterministic: Whether to choose the likeliest token instead of sampling.

        Returns:
            Actions, and `state`.
        """
        parts = observation if isinstance(observation, Mapping) else {"prefix": observation}
        single = np.ndim(parts["prefix"]) == 1
        prefix = np.atleast_2d(np.asarray(parts["prefix"], dtype=np.int64))
        if prefix.shape[1] > self.rules.limit:
            raise OptionError(
                f"predict() takes prefixes of at most {self.rules.limit} token ids, and the observation has "
                f"{prefix.shape[1]} numbers; make the environment with observation='tokens'"
            )
        prompts = self.tensor(np.atleast_2d(parts["prompt"]).astype(np.int64)) if "prompt" in parts else None
        self.policy.eval()
        logits = next_logits(self.restricted(self.policy), self.tensor(prefix), prompts, self.task.vocab.pad)
        actions = logits.argmax(dim=1) if deterministic else draw_tokens(logits, self._sampler)[0]
        chosen: IntArray = actions.cpu().numpy()
        return (chosen[0] if single else chosen), state

    def sample_examples(self, n: int, generator: torch.Generator) -> list[Example]:
        """Sample n examples, with their prompts, uniformly from the environment's split."""
        pool = self.task.split(self.rules.split)
        chosen = torch.randint(len(pool), (n,), generator=generator, device=self.device)
        return [pool[i] for i in chosen.tolist()]

    def prompt_tokens(self, examples: Sequence[Example] | None) -> Tensor | None:
        """Return the prompts of examples as padded token ids, [n, P]; None without examples."""
        if examples is None:
            return None
        rows = [self.rules.prompt_row(example) for example in examples]
        return self.tensor(np.stack(rows) if rows else np.zeros((0, self.task.prompt_length), dtype=np.int64))

    def tensor(self, array: AnyArray) -> Tensor:
        """Copy an array to the policy's device."""
        return to_tensor(array, self.device)

    def _example(self, prompt: str | Sequence[int] | Example) -> Example:
        return prompt if isinstance(prompt, Example) else self.rules.find_example(prompt)

    # Learning.

    def learn(self: AgentT, steps: int | None = None, callback: Callback = None) -> AgentT:
        """Learn for `steps` more steps, or up to the default number of steps.

        The first Ctrl-C stops the run after the current step, the second one at once.

        Args:
            steps: Number of further steps. If None, the remaining steps of a whole run, see `default_steps`.
            callback: Callback of Stable-Baselines3, a list of callbacks, or a function. It is called after every step.

        Returns:
            The agent itself.

        Raises:
            KeyboardInterrupt: After Ctrl-C, when the checkpoint is saved.
            TrainingError: If training has diverged.
        """
        last = self.default_steps if steps is None else self.steps_done + whole_number("steps", steps, least=0)
        total_timesteps = last  # callbacks read this name from locals()
        prepared = self._prepare_callback(callback)
        with alone_in(self.folder), self._logging():
            with stop_on_interrupt() as interrupted:
                self.begin_learning(steps is not None and self.finished, interrupted)
                prepared.on_training_start(locals(), globals())
                self._learn_until(total_timesteps, prepared, interrupted)
            self.end_learning()
            self._next_save = 0.0
            self.checkpoint()
            prepared.on_training_end()
        if interrupted.is_set():
            saved = "" if self.folder is None else f" and saved in {self.folder}; run the same command to resume it"
            raise KeyboardInterrupt(f"{self.name} was stopped after step {self.steps_done}{saved}")
        return self

    @contextmanager
    def _logging(self) -> Iterator[None]:
        """Truncate the metrics files to the rows of the checkpoint, open them, and close them on exit."""
        if self.folder is not None:
            if version_of(self.folder) != self._version:
                raise CheckpointError(
                    f"another agent has saved a checkpoint in {self.folder} since this agent was created; create the "
                    "agent again to resume from that checkpoint, or give another folder"
                )
            if not self._checked_rows:
                self._log_rows, self._checked_rows = keep_rows(self.folder, self._log_rows), True
        if self._own_logger:
            self.logger = open_logger(self.folder, self.log, self._log_rows)
        try:
            yield
        finally:
            self._log_rows |= rows_of(self.logger)
            self.logger.close()

    @classmethod
    def choose_settings(cls, preset: str | None = None, **hyper: object) -> S:
        """Return the hyperparameters: `hyper` overrides the preset, which overrides the defaults."""
        if preset is not None and preset not in cls.presets:
            raise OptionError(f"{cls.name} has no preset {preset!r}." + suggest(str(preset), cls.presets))
        settings: S = cls.settings_type()
        if preset is not None:
            settings = changed(settings, cls.presets[preset], cls.name)
        return changed(settings, hyper, cls.name)

    def _learn_until(self, last: int, callback: BaseCallback, interrupted: threading.Event) -> None:
        """Run all steps up to `last`; after each step, call the callback, log the metrics and save a checkpoint."""
        with tqdm(total=last, initial=self.steps_done, desc=self.name, disable=not self.progress or None) as bar:
            while self.steps_done < last and not self.finished and not interrupted.is_set():
                self._reseed_sampler(Stream.LEARNING)
                with self.counted(), self.randomness(self.steps_done):
                    self.finished = self.one_step(self.steps_done) is False
                self.steps_done += 1
                self._reseed_sampler(Stream.SAMPLING)
                bar.update()
                bar.set_postfix(self._shown())
                callback.update_locals(locals())
                goes_on = callback.on_step()
                self.logger.record("time/step", self.steps_done)
                for name, value in self.cost.items():
                    self.logger.record(f"time/{name}", round(value, 3))
                self.logger.dump(self.steps_done)
                self.checkpoint()
                if not goes_on:
                    break

    def begin_learning(self, anew: bool, interrupted: threading.Event) -> None:
        """Prepare for learning; learn() calls this before its first step.

        Args:
            anew: Whether to continue a run that has ended by itself, for example by early stopping.
            interrupted: Event that Ctrl-C sets; long preparations should check it.
        """
        self.finished = self.finished and not anew

    def end_learning(self) -> None:
        """Finish learning; learn() calls this after its last step, but not after an error."""

    def descend(self, loss: Tensor, max_grad_norm: float = math.inf) -> float:
        """Clip the gradient of the loss and take one step of the optimiser.

        Returns:
            Norm of the gradient before clipping.

        Raises:
            TrainingError: If the loss or the norm is not finite. The weights are then unchanged.
        """
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.policy.parameters(), max_grad_norm)
        if not (torch.isfinite(loss) and torch.isfinite(norm)):
            raise TrainingError(
                f"training has diverged: the loss is {float(loss.detach())} and its gradient norm {float(norm)}; lower "
                "the learning rate and resume, because the last checkpoint was saved before this update"
            )
        self.optimizer.step()
        return float(norm)

    def likelihood_loss(self, batch: Batch, mean: bool = True, weights: npt.ArrayLike | None = None) -> Tensor:
        """Compute the negative log-likelihood of the tokens of a batch, with gradient.

        Args:
            batch: Real or sampled sequences.
            mean: Whether to compute the mean over the tokens instead of the sum.
            weights: Weight of each sequence, [n]. With advantages as weights, this is the loss of REINFORCE.
        """
        valid = self.tensor(batch.valid_mask)
        tokens = self.tensor(batch.tokens)
        prompts = self.prompt_tokens(batch.examples)
        token_weights = valid / valid.sum() if mean else valid.float()  # [n, T]
        if weights is not None:
            token_weights = token_weights * self.tensor(np.asarray(weights, dtype=np.float32))[:, None]
        return weighted_nll(self.policy, tokens, token_weights, prompts, self.model_inputs(tokens, prompts))[0]

    def model_inputs(self, tokens: Tensor, prompts: Tensor | None) -> Tensor | None:
        """Return the input tokens [n, T] of the policy in likelihood_loss(); None for teacher forcing."""

    # Interface for Stable-Baselines3's callbacks.

    def get_env(self) -> VecEnv | None:
        """Return a scalar environment as a VecEnv; None for a vector environment."""
        env = self.env
        return DummyVecEnv([lambda: env]) if isinstance(env, gym.Env) else None

    def get_vec_normalize_env(self) -> None:
        """Return None, because no environment is wrapped in VecNormalize."""
        return

    def set_logger(self, logger: Logger) -> None:
        """Set the logger, which then replaces the logger of the run folder."""
        self.logger = logger
        self._own_logger = False

    @property
    def num_timesteps(self) -> int:
        """Number of steps learned so far."""
        return self.steps_done

    def _prepare_callback(self, callback: Callback) -> BaseCallback:
        model: Any = self  # callbacks are typed for Stable-Baselines3's algorithms
        prepared = as_callback(callback)
        prepared.init_callback(model)
        return prepared

    # Random numbers and metrics.

    @contextmanager
    def randomness(self, step: int, *stream: int) -> Iterator[None]:
        """Seed torch's global generator, for initial weights and dropout, by seed and step; restore it on exit."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(int(self.numpy_random(step, Stream.TORCH, *stream).integers(2**63)))
            yield

    def numpy_random(self, step: int, *stream: int) -> np.random.Generator:
        """Create the numpy generator of a step; `stream` selects an independent stream."""
        return np.random.default_rng([self.seed, step + 1, *stream])

    def torch_random(self, random: np.random.Generator) -> torch.Generator:
        """Create a torch generator on the policy's device, and seed it from a numpy generator."""
        return torch.Generator(self.device).manual_seed(int(random.integers(2**63)))

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Add time and sampled sequences to `cost`. Used around steps, so that callbacks do not count."""
        begin = time.perf_counter()
        before = self.n_sampled
        yield
        self.cost["seconds"] += time.perf_counter() - begin
        self.cost["sequences"] += self.n_sampled - before

    def _reseed_sampler(self, stream: Stream) -> None:
        """Seed the generator of sample() by the seed and the number of steps."""
        self._sampler.manual_seed(int(self.numpy_random(self.steps_done, stream).integers(2**63)))

    def _shown(self) -> dict[str, str]:
        """Return the metrics in the progress bar."""
        recorded = {k: v for k, v in self.logger.name_to_value.items() if isinstance(v, float) and "time" not in k}
        names = self.shown or tuple(recorded)[:2]
        return {name.split("/")[-1]: f"{recorded[name]:.4g}" for name in names if name in recorded}

    # Checkpoints.

    def checkpoint(self) -> None:
        """Save a checkpoint in the run folder, if there is one. If saving is slow, most calls do nothing."""
        begin = time.perf_counter()
        if self.folder is not None and begin >= self._next_save:
            self.save(self.folder)
            seconds = time.perf_counter() - begin
            self._next_save = begin + seconds / SAVING if seconds > QUICK else 0.0

    def save(self, folder: str | Path) -> None:
        """Save a checkpoint, from which the agent can be loaded and resumed."""
        tensors, groups = pack_parts(self.trained_parts())
        state = {
            "settings": as_json(self.settings),
            "seed": self.seed,
            "trained": self.trained_numbers(),
            "optimizers": groups,
            "finished": self.finished,
            "task": self._described_task(),
            "cost": self.cost,
            "log_rows": self._log_rows | rows_of(self.logger),
        }
        if self._frozen_digest() is not None:
            state["frozen"] = self._frozen_digest()
        save_checkpoint(folder, Checkpoint(self.name, self.steps_done, state, tensors))
        if Path(folder) == self.folder:
            self._version = version_of(folder)

    @classmethod
    def load(cls: type[AgentT], folder: str | Path, env: Env, **options: Any) -> AgentT:
        """Load a saved agent.

        Args:
            folder: Folder of the checkpoint.
            env: Environment with the task that the agent was trained on.
            **options: Arguments of `Agent`: folder, device, threads, progress and log.
        """
        state = read_state(folder, cls.name)
        settings, seed = state.get("settings"), state.get("seed")
        if not isinstance(settings, dict) or not isinstance(seed, int):
            raise CheckpointError(f"the checkpoint in {folder} is damaged: it lacks the settings; train again")
        agent = cls(env, seed=seed, **options, **settings)
        agent._restore(Path(folder))
        return agent

    def _restore(self, folder: Path) -> None:
        """Load the newest checkpoint of a folder; raise CheckpointError if it does not fit this agent."""
        version = version_of(folder)  # read first, because another process may replace the checkpoint
        saved = load_checkpoint(folder, self.name, self.device)
        current = {"settings": as_json(self.settings), "seed": self.seed, "task": self._described_task()}
        previous = dict(saved.state)
        if isinstance(previous.get("settings"), dict):  # settings of later versions have their defaults
            previous["settings"] = filled(previous["settings"], as_json(self.settings_type()))
        for name, value in current.items():
            if previous.get(name) != value:
                raise CheckpointError(
                    f"the {name} of the run in {folder} differs from this agent's: "
                    f"{describe_difference(previous.get(name), value)}; give the same arguments, or another folder"
                )
        if saved.state.get("frozen") != self._frozen_digest():
            name = getattr(self.settings, "model", "its model")
            raise CheckpointError(
                f"the weights of {name!r} have changed since the run in {folder}, which saved only the weights that it "
                "trained; restore the model, or start a new run in another folder"
            )
        try:
            self.restore_trained_numbers(saved.state["trained"])
            unpack_parts(self.trained_parts(), saved.tensors, saved.state["optimizers"])
            self.cost |= {name: float(value) for name, value in saved.state.get("cost", {}).items()}
            rows = saved.state.get("log_rows", {})
            self._log_rows = {name: whole_number(name, count, least=0) for name, count in rows.items()}
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as problem:
            raise CheckpointError(f"the checkpoint in {folder} is damaged: {problem}") from problem
        self.steps_done = saved.step
        self.finished = bool(saved.state.get("finished"))
        if folder == self.folder:
            self._version = version
        self._reseed_sampler(Stream.SAMPLING)

    def _frozen_digest(self) -> str | None:
        """Return a hash of the policy's frozen weights, which are not in checkpoints; None if there are none."""
        return getattr(self.policy, "frozen_digest", None)

    def _described_task(self) -> Json:
        """Describe the task as far as the policy depends on it: tokens and lengths."""
        tokens = hashlib.blake2b("\0".join(self.task.vocab.tokens).encode("utf-8", "surrogatepass"), digest_size=8)
        return {"tokens": tokens.hexdigest(), "length": self.rules.limit, "prompt_length": self.task.prompt_length}
