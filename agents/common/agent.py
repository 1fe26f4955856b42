"""What every learner has in common: settings, a run that can be stopped and resumed, and a policy at work.

A learner's own file holds its settings, its losses and its loop. The loop calls `one_step` for
each step of learn(); everything random in step k comes from the seed and k, so that a run that
is resumed from the checkpoint after any step repeats the uninterrupted one bit for bit.
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

# Saving may always take QUICK seconds; where it takes longer, SAVING is the share of the time that it may take.
QUICK = 1.0
SAVING = 0.1


class Stream(IntEnum):
    """Independent streams of random numbers of one step."""

    SAMPLING = 1  # sample() between steps
    LEARNING = 2  # sample() within a step
    TORCH = 3  # torch's global generator: initial weights, dropout
    PRETRAINING = 4  # SeqGAN's pretraining of the discriminator


RANDOM_WEIGHTS = "random weights"  # what a policy begins with that is neither pretrained nor another agent's


class Updates(NamedTuple):
    """Updates of one kind, under any reward: what a control runs."""

    agent: str | None
    """Registered name of the agent that makes them; None for the agent itself."""
    settings: dict[str, object]
    """Its hyper-parameters."""


class Agent(ABC, Generic[S]):
    """An agent that learns: `Agent(env).learn().sample(8)`.

    An agent of your own creates its policy and its optimiser in build(), and learns in one_step(); everything else
    is written here.

    Args:
        env: A TextGen-v0 environment, scalar or vector, which defines the task and the reward.
        seed: Seed of everything random. If not given, the seed of the run in the folder, or a new one.
        preset: Name of a set of hyper-parameters.
        folder: Folder of the run. If one of this agent is there already, it resumes from its last checkpoint: there
            is one after every step, or where saving takes longer than a second, so many that it takes a tenth of the
            time. CSV and JSON logs are written beside it.
        device: "cpu", "cuda", or "auto" for a GPU where there is one.
        threads: Threads of torch on a CPU; torch's choice if not given.
        progress: Whether learn() shows a progress bar.
        log: Where metrics go, in the words of Stable-Baselines3's logger: "csv", "json", "stdout", "tensorboard".
        start: Warm start: a trained agent whose policy this one starts from, for agents with `takes_start`.
        **hyper: Hyper-parameters, which override those of the preset. A group takes a dict.
    """

    name: ClassVar[str] = ""
    """Name in checkpoints, logs and error messages; the class's name if empty."""
    settings_type: ClassVar[type] = NoSettings
    """Dataclass of the hyper-parameters."""
    presets: ClassVar[Presets] = {}
    """Named sets of hyper-parameters."""
    shown: ClassVar[tuple[str, ...]] = ()
    """Metrics in the progress bar; the first two if none are named."""
    takes_start: ClassVar[bool] = True
    """Whether it can start from another agent's policy, as all agents of a comparison do that can."""
    is_warm_start: ClassVar[bool] = False
    """Whether the other agents of a comparison start from its policy."""
    learns: ClassVar[bool] = True
    """Whether it learns at all."""
    learns_from_reward: ClassVar[bool] = True
    """Whether a reward has any part in what it learns."""

    settings: S
    policy: LanguageModel
    optimizer: torch.optim.Optimizer

    def __init_subclass__(cls, **kwargs: object) -> None:
        """Name an agent after its class unless it has a name of its own."""
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
        """Create the policy; nothing is learned yet."""
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
        self.n_sampled = 0  # sequences, completions of prefixes included
        if threads is not None:
            torch.set_num_threads(whole_number("threads", threads, least=1))
        self.progress = progress
        self.log = checked_logs(log, self.folder)
        self.steps_done = 0
        self.cost = {"seconds": 0.0, "sequences": 0.0}  # of learning: wall-clock time, and sequences sampled
        self.finished = False  # whether a step has said that it was the last
        self._next_save = 0.0  # on the clock of time.perf_counter(), where saving takes long
        self.logger = Logger(None, [])
        self._own_logger = True
        self._log_rows = dict.fromkeys((writer.name for writer in WRITERS.values()), 0)  # of each file of metrics
        self._checked_rows = False  # whether the files have as many
        self._version: object = None  # of the checkpoint in the folder that this agent saved or loaded
        self._reseed_sampler(Stream.SAMPLING)
        with self.randomness(-1):
            self.build()
        if not isinstance(getattr(self, "policy", None), LanguageModel):
            raise OptionError(
                f"build() of {type(self).__name__} must set self.policy to a text_gym.language_model.LanguageModel"
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
        """Check an agent to start from, and set the hyper-parameters of its architecture."""
        if not cls.takes_start:
            raise OptionError(f"{cls.name} does not start from another agent's policy; leave start out")
        if not hasattr(start, "policy"):
            raise OptionError(f"start must be an agent, as MLE.load(folder, env) gives one, and not {start!r}")
        known = {field.name for field in fields(cls.settings_type)}
        for name, value in architecture_of(start.policy).items():
            if name in known and hyper.setdefault(name, value) != value:
                raise OptionError(f"{name}={hyper[name]!r}, but the policy to start from has {value!r}")
        if start.task.vocab.tokens != rules_of(env).vocab.tokens:
            raise OptionError(f"start was made for the tokens of {start.task!r}, which are not those of {env!r}")
        return start.policy

    # What an agent of your own defines.

    @abstractmethod
    def build(self) -> None:
        """Create the policy, its optimiser and whatever else is trained."""

    @abstractmethod
    def one_step(self, step: int) -> bool | None:
        """Learn once, and record metrics in self.logger; returning False ends the run."""

    @property
    def default_steps(self) -> int:
        """Number of steps that learn() takes if it is not told."""
        raise OptionError(
            f"{self.name} has no number of steps of its own; say learn(steps), in `text-gym train` --steps, "
            f"and in `text-gym compare` how it is called with (steps=...) behind it"
        )

    def load_policy(self, policy: LanguageModel) -> None:
        """Copy the weights of another policy; called for a warm start."""
        try:
            self.policy.load_state_dict(policy.state_dict())
        except RuntimeError as problem:
            raise OptionError(
                f"build() of {type(self).__name__} makes another policy than the one to start from. "
                "Make it by make_policy(self.settings, ...), with settings that derive from PolicySettings, "
                "or say takes_start = False to begin with random weights"
            ) from problem

    def trained_parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """Return the modules and optimisers that learning changes, whose tensors a checkpoint holds."""
        return {"policy": self.policy, "adam": self.optimizer}

    def trained_numbers(self) -> Json:
        """Return what else learning changes, as JSON can hold it."""
        return {}

    def restore_trained_numbers(self, numbers: Json) -> None:
        """Restore what trained_numbers() returned."""

    @classmethod
    def same_updates(cls, settings: S, steps: int | None, reward: str) -> Updates | None:
        """Return the updates that this agent makes, so that a control can make them under another reward.

        Args:
            settings: Hyper-parameters of the agent.
            steps: Number of steps that it learns; the settings' own if None.
            reward: Reward of the control.

        Returns:
            None for an agent that learns from no reward, or only from a reward of its own.
        """
        own_reward = cls.rewards is not Agent.rewards
        return Updates(None, {}) if cls.learns_from_reward and not own_reward else None

    @classmethod
    def stopped_early(cls, settings: S, patience: int) -> dict[str, object] | None:
        """Return the hyper-parameters that end learning at the best validation loss; None if it does so, or cannot."""
        return None

    @classmethod
    def begins_with(cls, settings: S) -> str:
        """Describe what the policy begins with where it has no warm start, for reports; "" if nothing is learned."""
        if not cls.learns:
            return ""
        model = getattr(settings, "model", "")
        return f"pretrained {model}" if model else RANDOM_WEIGHTS

    @classmethod
    def relative_cost(cls, settings: S, steps: int | None) -> float:
        """Estimate the cost of learning, for the order in which a comparison starts its runs."""
        return 0.0

    @classmethod
    def check_task(cls, task: Task) -> None:
        """Refuse a task that the agent cannot be used with."""

    # Generation.

    @property
    def restricts(self) -> bool:
        """Whether the environment bans tokens, or EOS before min_length."""
        return not self.rules.later_mask.all() or self.rules.min_length > 0

    def restricted(self, policy: LanguageModel) -> LanguageModel:
        """Return the policy as it samples: without banned tokens, and without EOS before min_length."""
        return policy if self.logit_mask is None else Restricted(policy, self.logit_mask)

    @cached_property
    def logit_mask(self) -> LogitMask | None:
        """The mask added to the policy's logits when it samples; None if nothing is banned."""
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
        """Sample sequences, within the environment's banned tokens and min_length.

        Args:
            n: Number of sequences; 1, or one for each prompt, if not given.
            temperature: Divides the logits; below 1, likely tokens become likelier.
            top_k: Sample from so many of the likeliest tokens; 0 for all.
            top_p: Nucleus sampling: sample from the fewest likeliest tokens with this much probability together.
            seed: Seed; if not given, each call samples other sequences.
            prompts: Prompts as texts, ids or Examples; sampled from the environment's split if not given.
        """
        if isinstance(prompts, str):
            prompts = [prompts]
        examples = None if prompts is None else [self._example(prompt) for prompt in prompts]
        n = whole_number("n", (1 if examples is None else len(examples)) if n is None else n, least=0)
        if examples is not None and len(examples) != n:
            raise OptionError(f"n={n}, but there are {len(examples)} prompts; leave n out")
        sampling = Sampling(temperature, top_k, top_p).checked()
        generator = self._sampler if seed is None else torch.Generator(self.device).manual_seed(seed)
        if examples is None and self.task.conditional:
            examples = self.sample_examples(n, generator)
        return self.generate(n, generator, examples, sampling)

    def generate(
        self, n: int, generator: torch.Generator, examples: Sequence[Example] | None, sampling: Sampling | None = None
    ) -> Batch:
        """Sample n sequences, one for each of the examples if there are any."""
        drawn = self.draw(n, generator, examples, sampling or Sampling())
        self.n_sampled += n
        return Batch(drawn.tokens.cpu().numpy(), drawn.lengths.cpu().numpy(), self.task.vocab, examples)

    def draw(self, n: int, generator: torch.Generator, examples: Sequence[Example] | None, sampling: Sampling) -> Drawn:
        """Sample n sequences as tensors, with the log-probability of each token."""
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
            examples: The prompt of each sequence, in tasks with prompts.
            as_sampled: Whether banned tokens have probability 0, as in sample(). Otherwise the probability is the
                policy's own, because real sequences may contain what the environment bans.
            temperature: Divides the logits, as in sample().
        """
        batch = make_batch(tokens, lengths, self.task.vocab)
        if self.task.conditional and (examples is None or len(examples) != len(batch)):
            raise OptionError(f"task {self.task.name!r} has prompts: give log_prob() the example of each sequence")
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
        """Choose the next token of each prefix, as in Stable-Baselines3: the likeliest one, or a sampled one."""
        parts = observation if isinstance(observation, Mapping) else {"prefix": observation}
        single = np.ndim(parts["prefix"]) == 1
        prefix = np.atleast_2d(np.asarray(parts["prefix"], dtype=np.int64))
        if prefix.shape[1] > self.rules.limit:
            raise OptionError(
                f"predict() takes prefixes of at most {self.rules.limit} ids, not of {prefix.shape[1]} numbers; "
                "make the environment with observation='tokens'"
            )
        prompts = self.tensor(np.atleast_2d(parts["prompt"]).astype(np.int64)) if "prompt" in parts else None
        self.policy.eval()
        logits = next_logits(self.restricted(self.policy), self.tensor(prefix), prompts, self.task.vocab.pad)
        actions = logits.argmax(dim=1) if deterministic else draw_tokens(logits, self._sampler)[0]
        chosen: IntArray = actions.cpu().numpy()
        return (chosen[0] if single else chosen), state

    def sample_examples(self, n: int, generator: torch.Generator) -> list[Example]:
        """Sample prompts of the environment's split, uniformly."""
        pool = self.task.split(self.rules.split)
        chosen = torch.randint(len(pool), (n,), generator=generator, device=self.device)
        return [pool[i] for i in chosen.tolist()]

    def prompt_tokens(self, examples: Sequence[Example] | None) -> Tensor | None:
        """Return the prompts of examples as the policy reads them, [n, P]."""
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
        """Learn for some more steps, or up to the number in the settings.

        Ctrl-C ends the run after the current step; a second one ends it at once.

        Args:
            steps: Number of steps; if not given, those that are left of the settings' own number.
            callback: As in Stable-Baselines3; on_step() is called after every step.
        """
        last = self.default_steps if steps is None else self.steps_done + whole_number("steps", steps, least=0)
        total_timesteps = last  # a name that callbacks look for
        called = self._prepare_callback(callback)
        with alone_in(self.folder), self._logging():
            with stop_on_interrupt() as interrupted:
                self.begin_learning(steps is not None and self.finished, interrupted)
                called.on_training_start(locals(), globals())
                self._learn_until(total_timesteps, called, interrupted)
            self.end_learning()
            self._next_save = 0.0
            self.checkpoint()
            called.on_training_end()
        if interrupted.is_set():
            kept = "" if self.folder is None else f" and saved in {self.folder}, from where the same command goes on"
            raise KeyboardInterrupt(f"{self.name} was stopped after step {self.steps_done}{kept}")
        return self

    @contextmanager
    def _logging(self) -> Iterator[None]:
        """Open the files of metrics, whose rows are those up to the checkpoint, and close them."""
        if self.folder is not None:
            if version_of(self.folder) != self._version:
                raise CheckpointError(
                    f"another agent has learned in {self.folder} since this one was made there; "
                    "make it again to go on from its checkpoint, or give another folder"
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
        """Return all hyper-parameters: those given, over the preset's, over the defaults."""
        if preset is not None and preset not in cls.presets:
            raise OptionError(f"{cls.name} has no preset {preset!r}." + suggest(str(preset), cls.presets))
        settings: S = cls.settings_type()
        if preset is not None:
            settings = changed(settings, cls.presets[preset], cls.name)
        return changed(settings, hyper, cls.name)

    def _learn_until(self, last: int, called: BaseCallback, interrupted: threading.Event) -> None:
        """Run step after step, each with its row of metrics and its checkpoint."""
        with tqdm(total=last, initial=self.steps_done, desc=self.name, disable=not self.progress or None) as bar:
            while self.steps_done < last and not self.finished and not interrupted.is_set():
                self._reseed_sampler(Stream.LEARNING)
                with self.counted(), self.randomness(self.steps_done):
                    self.finished = self.one_step(self.steps_done) is False
                self.steps_done += 1
                self._reseed_sampler(Stream.SAMPLING)
                bar.update()
                bar.set_postfix(self._shown())
                called.update_locals(locals())
                goes_on = called.on_step()
                self.logger.record("time/step", self.steps_done)
                for name, value in self.cost.items():
                    self.logger.record(f"time/{name}", round(value, 3))
                self.logger.dump(self.steps_done)
                self.checkpoint()
                if not goes_on:
                    break

    def begin_learning(self, anew: bool, interrupted: threading.Event) -> None:
        """Prepare learn(), before its first step.

        Args:
            anew: Whether the run had ended by itself, and is to go on nevertheless.
            interrupted: Set by Ctrl-C; long preparations check it.
        """
        self.finished = self.finished and not anew

    def end_learning(self) -> None:
        """Finish learn(), after its last step; not called after an error."""

    def descend(self, loss: Tensor, max_grad_norm: float = math.inf) -> float:
        """Take one step of the optimiser, and return the norm of the gradient before clipping.

        A loss or a gradient that is not finite is an error, so that nothing is learned from it or saved.
        """
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.policy.parameters(), max_grad_norm)
        if not (torch.isfinite(loss) and torch.isfinite(norm)):
            raise TrainingError(
                f"the loss is {float(loss.detach())} and its gradient's norm {float(norm)}: training has diverged. "
                "Lower the learning rate; the last checkpoint is from before."
            )
        self.optimizer.step()
        return float(norm)

    def likelihood_loss(self, batch: Batch, mean: bool = True, weights: npt.ArrayLike | None = None) -> Tensor:
        """Compute the negative log-likelihood of a batch's tokens, with gradient.

        Args:
            batch: Real or sampled sequences.
            mean: Whether to average over the tokens, or to sum.
            weights: A factor for each sequence, [n]; with advantages this is the loss of REINFORCE.
        """
        valid = self.tensor(batch.valid_mask)
        tokens = self.tensor(batch.tokens)
        prompts = self.prompt_tokens(batch.examples)
        shares = valid / valid.sum() if mean else valid.float()  # [n, T]
        if weights is not None:
            shares = shares * self.tensor(np.asarray(weights, dtype=np.float32))[:, None]
        return weighted_nll(self.policy, tokens, shares, prompts, self.model_inputs(tokens, prompts))[0]

    def model_inputs(self, tokens: Tensor, prompts: Tensor | None) -> Tensor | None:
        """Return what likelihood_loss() feeds the policy in place of the real tokens [n, T]; None for the tokens."""

    # Randomness, metrics, and what Stable-Baselines3's callbacks ask for.

    def get_env(self) -> VecEnv | None:
        """Return the environment as Stable-Baselines3's callbacks want it, where it is a scalar one."""
        env = self.env
        return DummyVecEnv([lambda: env]) if isinstance(env, gym.Env) else None

    def get_vec_normalize_env(self) -> None:
        """Return None: no environment here is normalised. Stable-Baselines3's callbacks ask."""
        return

    def set_logger(self, logger: Logger) -> None:
        """Record metrics with this logger from now on, as in Stable-Baselines3."""
        self.logger = logger
        self._own_logger = False

    @property
    def num_timesteps(self) -> int:
        """Steps learned; the name that Stable-Baselines3's callbacks look for."""
        return self.steps_done

    @contextmanager
    def randomness(self, step: int, *stream: int) -> Iterator[None]:
        """Seed torch's global generator, for dropout and initial weights, by seed and step; restore it afterwards."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(int(self.numpy_random(step, Stream.TORCH, *stream).integers(2**63)))
            yield

    def numpy_random(self, step: int, *stream: int) -> np.random.Generator:
        """Create the generator of one step; more numbers name further streams."""
        return np.random.default_rng([self.seed, step + 1, *stream])

    def torch_random(self, random: np.random.Generator) -> torch.Generator:
        """Create a torch generator on the policy's device, seeded by a numpy generator."""
        return torch.Generator(self.device).manual_seed(int(random.integers(2**63)))

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count time and sampled sequences as learning; those of callbacks do not count."""
        begin = time.perf_counter()
        before = self.n_sampled
        yield
        self.cost["seconds"] += time.perf_counter() - begin
        self.cost["sequences"] += self.n_sampled - before

    def _prepare_callback(self, callback: Callback) -> BaseCallback:
        model: Any = self  # callbacks are typed for Stable-Baselines3's algorithms
        prepared = as_callback(callback)
        prepared.init_callback(model)
        return prepared

    def _reseed_sampler(self, stream: Stream) -> None:
        """Let what sample() draws depend on the seed and the number of steps alone, within a step and after it."""
        self._sampler.manual_seed(int(self.numpy_random(self.steps_done, stream).integers(2**63)))

    def _shown(self) -> dict[str, str]:
        """Return the metrics of the progress bar."""
        recorded = {k: v for k, v in self.logger.name_to_value.items() if isinstance(v, float) and "time" not in k}
        names = self.shown or tuple(recorded)[:2]
        return {name.split("/")[-1]: f"{recorded[name]:.4g}" for name in names if name in recorded}

    # Checkpoints.

    def checkpoint(self) -> None:
        """Save the run in its folder, if it has one; where saving takes long, only now and then."""
        begin = time.perf_counter()
        if self.folder is not None and begin >= self._next_save:
            self.save(self.folder)
            took = time.perf_counter() - begin
            self._next_save = begin + took / SAVING if took > QUICK else 0.0

    def save(self, folder: str | Path) -> None:
        """Save everything that learning resumes from."""
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
        """Load a saved agent for the same task; options are folder, device, threads, progress and log."""
        state = read_state(folder, cls.name)
        settings, seed = state.get("settings"), state.get("seed")
        if not isinstance(settings, dict) or not isinstance(seed, int):
            raise CheckpointError(f"the checkpoint in {folder} is damaged: it lacks its settings")
        agent = cls(env, seed=seed, **options, **settings)
        agent._restore(Path(folder))
        return agent

    def _restore(self, folder: Path) -> None:
        version = version_of(folder)  # before it is read: a run that is under way may replace it
        saved = load_checkpoint(folder, self.name, self.device)
        ours = {"settings": as_json(self.settings), "seed": self.seed, "task": self._described_task()}
        theirs = dict(saved.state)
        if isinstance(theirs.get("settings"), dict):  # a setting that was added since had what is now the default
            theirs["settings"] = filled(theirs["settings"], as_json(self.settings_type()))
        for what, value in ours.items():
            if theirs.get(what) != value:
                different = describe_difference(theirs.get(what), value)
                raise CheckpointError(
                    f"the run in {folder} has other {what} than this agent: {different}. "
                    "Give another folder, or the same arguments and the same task."
                )
        if saved.state.get("frozen") != self._frozen_digest():
            name = getattr(self.settings, "model", "its model")
            raise CheckpointError(
                f"the run in {folder} was trained on top of other weights than {name!r} holds now; it saved only what "
                "it trained. Put that model back as it was, or begin anew in another folder."
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
        """Return a digest of the policy's weights that are not in checkpoints, where it has any."""
        return getattr(self.policy, "frozen_digest", None)

    def _described_task(self) -> Json:
        """Describe what a policy depends on: the tokens, and the lengths."""
        tokens = hashlib.blake2b("\0".join(self.task.vocab.tokens).encode("utf-8", "surrogatepass"), digest_size=8)
        return {"tokens": tokens.hexdigest(), "length": self.rules.limit, "prompt_length": self.task.prompt_length}
