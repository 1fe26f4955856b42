"""What every learner has in common: a policy to sample from, and a run that can be stopped and resumed.

A learner's own file holds its settings, its losses and its loop. The loop calls `one_step` for
each step of learn(); everything random in step k comes from the seed and k, so that a run that
is resumed from the checkpoint after any step repeats the uninterrupted one bit for bit.
"""

from __future__ import annotations

import hashlib
import secrets
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback
from stable_baselines3.common.logger import Logger, make_output_format
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from torch import Tensor, nn
from tqdm import tqdm

from agents.checkpoint import (
    Checkpoint,
    CheckpointError,
    has_checkpoint,
    load_checkpoint,
    read_state,
    save_checkpoint,
)
from agents.objectives import weighted_nll
from text_gym.arrays import FloatArray, IntArray
from text_gym.errors import OptionError, TrainingError
from text_gym.models import Sampling, draw_tokens, generate
from text_gym.names import suggest, whole_number
from text_gym.rules import Rules
from text_gym.sequences import Batch, Example, make_batch

AgentT = TypeVar("AgentT", bound="Agent")
Callback = BaseCallback | Sequence[BaseCallback] | Callable[[dict[str, Any], dict[str, Any]], bool] | None
SAMPLE_CHUNK = 512  # sequences drawn at a time, which bounds the memory for logits
LOGITS_AT_ONCE = 1 << 21  # when sequences are scored: 8 MiB, which a CPU keeps near


class Agent(ABC):
    """A learner: `Agent(env).learn().sample(8)`.

    Args:
        env: A TextGen-v0 environment, scalar or vector; it says what the task and the reward are.
        seed: Decides everything random. If not given, that of the run in the folder, or a new one.
        preset: The name of a set of hyper-parameters.
        folder: Where the run is kept. If one of this agent is there already, it goes on from its last
            step. CSV and JSON logs are written beside the checkpoint.
        device: "cpu", "cuda", or "auto" for a GPU where there is one.
        threads: For torch on a CPU; as many as torch chooses if not given.
        progress: Whether learn() shows a progress bar.
        log: Where metrics go, as Stable-Baselines3's logger names them: "csv", "json", "stdout", "tensorboard".
        **hyper: Single hyper-parameters, over those of the preset.
    """

    name: ClassVar[str]
    settings_type: ClassVar[type]
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    settings: Any
    policy: nn.Module
    optimizer: torch.optim.Optimizer

    def __init__(
        self,
        env: gym.Env[Any, Any] | gym.vector.VectorEnv[Any, Any, Any],
        seed: int | None = None,
        preset: str | None = None,
        folder: str | Path | None = None,
        device: str = "auto",
        threads: int | None = None,
        progress: bool = True,
        log: Sequence[str] = ("csv", "json"),
        **hyper: Any,
    ) -> None:
        """Set the agent up; nothing is learned yet."""
        self.env = env
        self.rules: Rules = rules_of(env)
        self.task = self.rules.task
        self.settings = self._choose_settings(preset, hyper)
        self.folder = None if folder is None else Path(folder)
        going_on = self.folder is not None and has_checkpoint(self.folder)
        if seed is None and going_on and self.folder is not None:
            seed = read_state(self.folder, self.name).get("seed")
        self.seed = secrets.randbits(31) if seed is None else whole_number("seed", seed, least=0)
        if threads is not None:
            torch.set_num_threads(whole_number("threads", threads, least=1))
        self.device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        self.progress, self.log = progress, tuple(log)
        self.steps_done = 0
        self.finished = False  # whether a step has said that it was the last
        self.logger = Logger(None, [])
        self._own_logger = True
        self._sampler = torch.Generator(self.device)
        self._reseed_sampler()
        with self.randomness(-1):
            self.build()
        if going_on and self.folder is not None:
            self._restore(self.folder)

    # What a learner must say.

    @abstractmethod
    def build(self) -> None:
        """Make the policy, its optimiser and whatever else is trained."""

    @abstractmethod
    def one_step(self, step: int) -> bool:
        """Learn once, and record what came of it in self.logger; False to end the run."""

    @property
    @abstractmethod
    def steps_of_preset(self) -> int:
        """How many steps learn() takes if it is not told."""

    @abstractmethod
    def trained_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that learning changes: tensors, and what JSON can hold."""

    @abstractmethod
    def restore_trained_state(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Put back what trained_state() gave."""

    # What every learner can do.

    def learn(self: AgentT, steps: int | None = None, callback: Callback = None) -> AgentT:
        """Learn for so many steps more, or up to the number that the settings give.

        Ctrl-C ends the run after the step that is under way; a second one ends it at once.

        Args:
            steps: How many; if not given, as many as are left of the settings' own number.
            callback: As in Stable-Baselines3; on_step() is called after every step.
        """
        last = self.steps_of_preset if steps is None else self.steps_done + whole_number("steps", steps, least=0)
        total_timesteps = last  # a name that callbacks look for
        called = self._prepare_callback(callback)
        self.logger = self._open_logger()
        try:
            called.on_training_start(locals(), globals())
            self.begin_learning(anew=steps is not None and self.finished)
            with _stop_on_interrupt() as interrupted:
                self._learn_until(total_timesteps, called, interrupted)
            self.end_learning()
            self.checkpoint()
            called.on_training_end()
        finally:
            self.logger.close()
        if interrupted.is_set():
            raise KeyboardInterrupt
        return self

    def _learn_until(self, last: int, called: BaseCallback, interrupted: threading.Event) -> None:
        """Step after step, each with its row of metrics and its checkpoint."""
        with tqdm(total=last, initial=self.steps_done, desc=self.name, disable=not self.progress or None) as bar:
            while self.steps_done < last and not self.finished and not interrupted.is_set():
                with self.randomness(self.steps_done):
                    self.finished = not self.one_step(self.steps_done)
                self.steps_done += 1
                self._reseed_sampler()
                bar.update()
                bar.set_postfix({key.split("/")[-1]: f"{value:.4g}" for key, value in self._recorded().items()})
                called.update_locals(locals())
                goes_on = called.on_step()
                self.logger.record("time/step", self.steps_done)
                self.logger.dump(self.steps_done)
                self.checkpoint()
                if not goes_on:
                    break

    def begin_learning(self, anew: bool) -> None:
        """Called when learn() begins; `anew` if the run had ended by itself and is to go on nevertheless."""
        self.finished = self.finished and not anew

    def end_learning(self) -> None:  # noqa: B027 - most learners have nothing to do
        """Called when learn() ends, however it does."""

    def descend(self, loss: Tensor) -> float:
        """One step of the optimiser down a loss; the norm of its gradient.

        What is not finite is refused before anything is learned from it, and so is never saved.
        """
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.policy.parameters(), self.settings.clip)
        if not (torch.isfinite(loss) and torch.isfinite(norm)):
            raise TrainingError(
                f"the loss is {float(loss.detach())} and its gradient's norm {float(norm)}: training has diverged. "
                "Lower the learning rate; the last checkpoint is from before."
            )
        self.optimizer.step()
        return float(norm)

    def likelihood_loss(self, batch: Batch, mean: bool = True) -> Tensor:
        """The negative log-likelihood of a batch's tokens, averaged or summed."""
        valid = self._tensor(batch.valid_mask)
        prompts = None if batch.examples is None else self._prompt_rows(list(batch.examples))
        weights = valid / valid.sum() if mean else valid.float()
        return weighted_nll(self.policy, self._tensor(batch.tokens), weights, prompts)[0]

    def sample(
        self, n: int, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, seed: int | None = None
    ) -> Batch:
        """Write n sequences; with prompts, for prompts drawn from the environment's split."""
        whole_number("n", n, least=0)
        sampling = Sampling(temperature, top_k, top_p).checked()
        generator = self._sampler if seed is None else torch.Generator(self.device).manual_seed(seed)
        examples = self._draw_examples(n, generator) if self.task.conditional else None
        tokens = np.full((n, self.rules.limit), self.task.vocab.pad, dtype=np.int64)
        lengths = np.zeros(n, dtype=np.int64)
        self.policy.eval()
        for begin in range(0, n, SAMPLE_CHUNK):
            rows = slice(begin, min(begin + SAMPLE_CHUNK, n))
            prompts = None if examples is None else self._prompt_rows(examples[rows])
            model: Any = self.policy
            drawn = generate(model, rows.stop - begin, self.rules.limit, self.rules.eos, generator, sampling, prompts)
            tokens[rows], lengths[rows] = drawn.tokens.cpu().numpy(), drawn.lengths.cpu().numpy()
        return Batch(tokens, lengths, self.task.vocab, examples)

    @torch.no_grad()
    def log_prob(
        self, tokens: npt.ArrayLike, lengths: npt.ArrayLike | None = None, examples: list[Example] | None = None
    ) -> FloatArray:
        """The log-probability of each sequence in nats, [n]; with prompts, given those of the examples."""
        batch = make_batch(tokens, lengths, self.task.vocab)
        if self.task.conditional and (examples is None or len(examples) != len(batch)):
            raise OptionError(f"task {self.task.name!r} has prompts: give log_prob() the example of each sequence")
        self.policy.eval()
        model: Any = self.policy
        scores = np.zeros(len(batch))
        chunk = max(1, LOGITS_AT_ONCE // max(1, batch.tokens.shape[1] * len(self.task.vocab)))
        for begin in range(0, len(batch), chunk):
            rows = slice(begin, begin + chunk)
            prompts = None if examples is None else self._prompt_rows(examples[rows])
            inputs = (self._tensor(batch.tokens[rows]), self._tensor(batch.valid_mask[rows]))
            scores[rows] = model.log_prob(*inputs, prompts).double().sum(dim=1).cpu().numpy()
        return scores

    @torch.no_grad()
    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[Any, Any]:
        """The next token of each prefix, as in Stable-Baselines3: the likeliest one, or one drawn."""
        single = np.ndim(observation["prefix"] if isinstance(observation, dict) else observation) == 1
        parts = observation if isinstance(observation, dict) else {"prefix": observation}
        prefix = np.atleast_2d(np.asarray(parts["prefix"], dtype=np.int64))
        prompts = self._tensor(np.atleast_2d(parts["prompt"]).astype(np.int64)) if "prompt" in parts else None
        logits = self._logits_after(prefix, prompts)
        if self.rules.restricts:  # by banned tokens and min_length; a constraint is the environment's affair
            short = (prefix != self.task.vocab.pad).sum(axis=1) < self.rules.min_length
            mask = np.where(short[:, None], self.rules.early_mask, self.rules.later_mask)
            logits = logits.masked_fill(self._tensor(mask == 0), -torch.inf)
        if deterministic:
            actions = logits.argmax(dim=1)
        else:
            actions, _ = draw_tokens(logits, self._sampler)
        chosen: IntArray = actions.cpu().numpy()
        return (chosen[0] if single else chosen), state

    def _logits_after(self, prefix: IntArray, prompts: Tensor | None) -> Tensor:
        """The logits of what follows each prefix [n, T], padded as observations are."""
        model: Any = self.policy
        self.policy.eval()
        tokens = self._tensor(prefix)
        real = tokens != self.task.vocab.pad
        logits, state = model.start(len(tokens), prompts)
        for t in range(int(real.sum(dim=1).max()) if len(tokens) else 0):
            after, state = model.step(tokens[:, t].where(real[:, t], torch.zeros_like(tokens[:, t])), state)
            logits = after.where(real[:, t, None], logits)
        return logits  # type: ignore[no-any-return]

    def checkpoint(self) -> None:
        """Save the run in its folder, if it has one."""
        if self.folder is not None:
            self.save(self.folder)

    def save(self, folder: str | Path) -> None:
        """Save everything that learning goes on from."""
        tensors, state = self.trained_state()
        described = {"settings": _as_json(asdict(self.settings)), "seed": self.seed, "trained": state}
        described |= {"finished": self.finished, "task": self._described_task()}
        save_checkpoint(folder, Checkpoint(self.name, self.steps_done, described, tensors))

    @classmethod
    def load(
        cls: type[AgentT],
        folder: str | Path,
        env: gym.Env[Any, Any] | gym.vector.VectorEnv[Any, Any, Any],
        **options: Any,
    ) -> AgentT:
        """An agent that was saved, for the same task; options are folder, device, threads, progress and log."""
        state = read_state(folder, cls.name)
        settings, seed = state.get("settings"), state.get("seed")
        if not isinstance(settings, dict) or not isinstance(seed, int):
            raise CheckpointError(f"the checkpoint in {folder} is damaged: it lacks its settings")
        agent = cls(env, seed=seed, **options, **settings)
        agent._restore(Path(folder))
        return agent

    def get_env(self) -> VecEnv | None:
        """The environment as Stable-Baselines3's callbacks want it, where it is a scalar one."""
        env: Any = self.env
        return DummyVecEnv([lambda: env]) if isinstance(env, gym.Env) else None

    def get_vec_normalize_env(self) -> None:
        """No environment here is normalised; callbacks ask."""
        return

    def set_logger(self, logger: Logger) -> None:
        """Record metrics with this logger from now on, as in Stable-Baselines3."""
        self.logger, self._own_logger = logger, False

    @property
    def num_timesteps(self) -> int:
        """Steps learned; the name that callbacks look for."""
        return self.steps_done

    @contextmanager
    def randomness(self, step: int) -> Iterator[None]:
        """Torch's global random numbers, for dropout and initial weights, by seed and step; put back afterwards."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(int(self.numpy_random(step).integers(2**63)))
            yield

    def numpy_random(self, step: int) -> np.random.Generator:
        """Random numbers of one step."""
        return np.random.default_rng([self.seed, step + 1])

    def _restore(self, folder: Path) -> None:
        saved = load_checkpoint(folder, self.name, self.device)
        ours = {"settings": _as_json(asdict(self.settings)), "seed": self.seed, "task": self._described_task()}
        for what, value in ours.items():
            if saved.state.get(what) != value:
                raise CheckpointError(
                    f"the run in {folder} has other {what} than this agent: {saved.state.get(what)!r}, and not "
                    f"{value!r}. Give another folder, or the same arguments."
                )
        try:
            self.restore_trained_state(saved.tensors, saved.state["trained"])
        except (KeyError, RuntimeError, TypeError, ValueError) as problem:
            raise CheckpointError(f"the checkpoint in {folder} is damaged: {problem}") from problem
        self.steps_done, self.finished = saved.step, bool(saved.state.get("finished"))
        self._reseed_sampler()

    def _choose_settings(self, preset: str | None, hyper: dict[str, Any]) -> Any:
        if preset is not None and preset not in self.presets:
            raise OptionError(f"{self.name} has no preset {preset!r}." + suggest(str(preset), self.presets))
        known = {field.name for field in fields(self.settings_type)}
        for option in hyper:
            if option not in known:
                raise OptionError(f"{self.name} has no hyper-parameter {option!r}." + suggest(option, known))
        hyper = {k: v.item() if isinstance(v, np.generic) else v for k, v in hyper.items()}
        settings = self.settings_type(**(self.presets[preset] if preset else {}))
        return replace(settings, **hyper)

    def _prepare_callback(self, callback: Callback) -> BaseCallback:
        if isinstance(callback, Sequence):
            callback = CallbackList(list(callback))
        if not isinstance(callback, BaseCallback):
            callback = ConvertCallback(callback)
        model: Any = self
        callback.init_callback(model)
        return callback

    def _reseed_sampler(self) -> None:
        """Let what sample() draws depend on the seed and the steps learned alone."""
        self._sampler.manual_seed(int(np.random.default_rng([self.seed, self.steps_done, 1]).integers(2**63)))

    def _described_task(self) -> dict[str, Any]:
        """What a policy cannot do without: the same tokens, and room for as many."""
        tokens = hashlib.blake2b("\0".join(self.task.vocab.tokens).encode("utf-8", "surrogatepass"), digest_size=8)
        return {"tokens": tokens.hexdigest(), "length": self.rules.limit, "prompt_length": self.task.prompt_length}

    def _open_logger(self) -> Logger:
        """Files in the folder; a run that goes on writes new ones, named after its first step."""
        if not self._own_logger:
            return self.logger
        if self.folder is None:
            return Logger(None, [make_output_format(kind, "") for kind in self.log if kind == "stdout"])
        self.folder.mkdir(parents=True, exist_ok=True)
        suffix = f"-{self.steps_done:06d}" if self.steps_done else ""
        return Logger(str(self.folder), [make_output_format(kind, str(self.folder), suffix) for kind in self.log])

    def _recorded(self) -> dict[str, float]:
        return {k: v for k, v in self.logger.name_to_value.items() if isinstance(v, float) and "time" not in k}

    def _draw_examples(self, n: int, generator: torch.Generator) -> list[Example]:
        pool = self.task.split(self.rules.split)
        chosen = torch.randint(len(pool), (n,), generator=generator, device=self.device)
        return [pool[i] for i in chosen.tolist()]

    def _prompt_rows(self, examples: list[Example]) -> Tensor:
        return self._tensor(np.stack([self.rules.prompt_row(example) for example in examples]))

    def _tensor(self, array: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)


def rules_of(env: Any) -> Rules:
    """The rules of a TextGen-v0 environment, scalar or vector."""
    rules = getattr(env.unwrapped, "rules", None)
    if not isinstance(rules, Rules):
        raise OptionError(
            f"an agent learns in a TextGen-v0 environment, scalar or from gym.make_vec without vectorization_mode, "
            f"and not in {env!r}"
        )
    return rules


def _as_json(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as they look when read back: tuples are lists there."""
    return {k: [list(v) if isinstance(v, tuple) else v for v in value] if isinstance(value, tuple) else value
            for k, value in settings.items()}  # fmt: skip


@contextmanager
def _stop_on_interrupt() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets; the second Ctrl-C interrupts as usual."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return
    before = signal.getsignal(signal.SIGINT)

    def stop(*_: object) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, stop)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)
