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
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

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
    has_checkpoint,
    load_checkpoint,
    pack_optimizer,
    read_state,
    save_checkpoint,
    tensors_of,
    unpack_optimizer,
)
from agents.common.generation import Writer
from agents.common.losses import weighted_nll
from agents.common.training import Callback, as_callback, checked_logs, open_logger, stop_on_interrupt
from text_gym.errors import OptionError, TrainingError
from text_gym.language_model import LanguageModel
from text_gym.sequences import Batch
from text_gym.validation import suggest, whole_number

AgentT = TypeVar("AgentT", bound="Agent")
QUICK, SAVING = 1.0, 0.1  # seconds that saving may always take, and the share of the time that it may take where longer
SAMPLING, LEARNING, GLOBAL = (
    1,
    2,
    3,
)  # streams of random numbers: what sample() draws after a step and in it, torch's own


@dataclass(frozen=True)
class NoSettings:
    """For learners without hyper-parameters."""


class Agent(Writer, ABC):
    """A learner: `Agent(env).learn().sample(8)`.

    A learner of your own says in build() what its policy and its optimiser are, and in one_step()
    how it learns; the rest of this class is then its interface.

    Args:
        env: A TextGen-v0 environment, scalar or vector; it says what the task and the reward are.
        seed: Decides everything random. If not given, that of the run in the folder, or a new one.
        preset: The name of a set of hyper-parameters.
        folder: Where the run is kept. If one of this agent is there already, it goes on from its last
            checkpoint: there is one after every step, or where saving takes longer than a second, so many
            that it takes a tenth of the time. CSV and JSON logs are written beside it.
        device: "cpu", "cuda", or "auto" for a GPU where there is one.
        threads: For torch on a CPU; as many as torch chooses if not given.
        progress: Whether learn() shows a progress bar.
        log: Where metrics go, as Stable-Baselines3's logger names them: "csv", "json", "stdout", "tensorboard".
        **hyper: Single hyper-parameters, over those of the preset.
    """

    name: ClassVar[str] = ""
    settings_type: ClassVar[type] = NoSettings
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    shown: ClassVar[tuple[str, ...]] = ()
    """The metrics that the progress bar shows; the first two if none are named."""
    settings: Any
    optimizer: torch.optim.Optimizer

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """A learner without a name of its own is called as its class."""
        super().__init_subclass__(**kwargs)
        cls.name = cls.__dict__.get("name", cls.__name__.lower())

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
        self.settings = self.choose_settings(preset, **hyper)
        self.folder = None if folder is None else Path(folder)
        going_on = self.folder is not None and has_checkpoint(self.folder)
        if seed is None and going_on and self.folder is not None:
            seed = read_state(self.folder, self.name).get("seed")
        self.seed = secrets.randbits(31) if seed is None else whole_number("seed", seed, least=0)
        super().__init__(env, self.seed, device)
        if threads is not None:
            torch.set_num_threads(whole_number("threads", threads, least=1))
        self.progress, self.log = progress, checked_logs(log, self.folder)
        self.steps_done = 0
        self.cost = {"seconds": 0.0, "sequences": 0.0}  # of learning: wall-clock time, and what it has drawn
        self.finished = False  # whether a step has said that it was the last
        self._next_save = 0.0  # on the clock of time.perf_counter(), where saving takes long
        self.logger = Logger(None, [])
        self._own_logger = True
        self._reseed_sampler(SAMPLING)
        with self.randomness(-1):
            self.build()
        if not isinstance(getattr(self, "policy", None), LanguageModel):
            raise OptionError(
                f"build() of {type(self).__name__} must set self.policy to a text_gym.language_model.LanguageModel"
            )
        if going_on and self.folder is not None:
            self._restore(self.folder)

    # What a learner must say.

    @abstractmethod
    def build(self) -> None:
        """Make the policy, its optimiser and whatever else is trained."""

    @abstractmethod
    def one_step(self, step: int) -> bool | None:
        """Learn once, and record what came of it in self.logger; False ends the run, anything else goes on."""

    @property
    def steps_of_preset(self) -> int:
        """How many steps learn() takes if it is not told."""
        raise OptionError(
            f"{self.name} has no number of steps of its own; say learn(steps), in `text-gym train` --steps, "
            f"and in `text-gym compare` how it is called with (steps=...) behind it"
        )

    def trained_parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """What learning changes: the parts whose tensors a checkpoint holds."""
        return {"policy": self.policy, "adam": self.optimizer}

    def trained_numbers(self) -> dict[str, Any]:
        """What else learning changes, as far as JSON can hold it."""
        return {}

    def restore_trained_numbers(self, numbers: Mapping[str, Any]) -> None:
        """Put back what trained_numbers() gave."""

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
        if self._own_logger:
            self.logger = open_logger(self.folder, self.log)
        try:
            with stop_on_interrupt() as interrupted:
                self.begin_learning(steps is not None and self.finished, interrupted)
                called.on_training_start(locals(), globals())
                self._learn_until(total_timesteps, called, interrupted)
            self.end_learning()
            self._next_save = 0.0
            self.checkpoint()
            called.on_training_end()
        finally:
            self.logger.close()
        if interrupted.is_set():
            kept = "" if self.folder is None else f" and saved in {self.folder}, from where the same command goes on"
            raise KeyboardInterrupt(f"{self.name} was stopped after step {self.steps_done}{kept}")
        return self

    @classmethod
    def choose_settings(cls, preset: str | None = None, **hyper: Any) -> Any:
        """All hyper-parameters: those given, over the preset's, over the defaults."""
        if preset is not None and preset not in cls.presets:
            raise OptionError(f"{cls.name} has no preset {preset!r}." + suggest(str(preset), cls.presets))
        known = {field.name for field in fields(cls.settings_type)}
        for option in hyper:
            if option not in known:
                raise OptionError(f"{cls.name} has no hyper-parameter {option!r}." + suggest(option, known))
        hyper = {k: v.item() if isinstance(v, np.generic) else v for k, v in hyper.items()}
        settings = cls.settings_type(**(cls.presets[preset] if preset else {}))
        return replace(settings, **hyper)

    def _learn_until(self, last: int, called: BaseCallback, interrupted: threading.Event) -> None:
        """Step after step, each with its row of metrics and its checkpoint."""
        with tqdm(total=last, initial=self.steps_done, desc=self.name, disable=not self.progress or None) as bar:
            while self.steps_done < last and not self.finished and not interrupted.is_set():
                self._reseed_sampler(LEARNING)
                with self.counted(), self.randomness(self.steps_done):
                    self.finished = self.one_step(self.steps_done) is False
                self.steps_done += 1
                self._reseed_sampler(SAMPLING)
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
        """Called when learn() begins.

        Args:
            anew: Whether the run had ended by itself, and is to go on nevertheless.
            interrupted: Set by Ctrl-C; what takes long here looks at it.
        """
        self.finished = self.finished and not anew

    def end_learning(self) -> None:
        """Called when learn() has made its steps; not after an error."""

    def descend(self, loss: Tensor) -> float:
        """One step of the optimiser down a loss; the norm of its gradient.

        What is not finite is refused before anything is learned from it, and so is never saved.
        """
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.policy.parameters(), getattr(self.settings, "clip", math.inf))
        if not (torch.isfinite(loss) and torch.isfinite(norm)):
            raise TrainingError(
                f"the loss is {float(loss.detach())} and its gradient's norm {float(norm)}: training has diverged. "
                "Lower the learning rate; the last checkpoint is from before."
            )
        self.optimizer.step()
        return float(norm)

    def likelihood_loss(self, batch: Batch, mean: bool = True, weights: npt.ArrayLike | None = None) -> Tensor:
        """The negative log-likelihood of a batch's tokens, with gradient.

        Args:
            batch: Real sequences, or written ones.
            mean: Whether to average over the tokens, or to sum.
            weights: A factor for each sequence, [n]; with advantages this is the loss of REINFORCE.
        """
        valid = self.tensor(batch.valid_mask)
        tokens, prompts = self.tensor(batch.tokens), self.prompt_rows(batch.examples)
        shares = valid / valid.sum() if mean else valid.float()  # [n, T]
        if weights is not None:
            shares = shares * self.tensor(np.asarray(weights, dtype=np.float32))[:, None]
        return weighted_nll(self.policy, tokens, shares, prompts, self.read_instead(tokens, prompts))[0]

    def read_instead(self, tokens: Tensor, prompts: Tensor | None) -> Tensor | None:
        """What the policy reads in place of real tokens [n, T] when their likelihood is raised, if anything."""

    def checkpoint(self) -> None:
        """Save the run in its folder, if it has one; where that takes long, only now and then."""
        begin = time.perf_counter()
        if self.folder is not None and begin >= self._next_save:
            self.save(self.folder)
            took = time.perf_counter() - begin
            self._next_save = begin + took / SAVING if took > QUICK else 0.0

    def save(self, folder: str | Path) -> None:
        """Save everything that learning goes on from."""
        tensors, groups = self._packed_parts()
        described = {"settings": _as_json(asdict(self.settings)), "seed": self.seed}
        described |= {"trained": self.trained_numbers(), "optimizers": groups}
        described |= {"frozen": self._frozen_digest()} if self._frozen_digest() else {}
        described |= {"finished": self.finished, "task": self._described_task(), "cost": self.cost}
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
    def randomness(self, step: int, *stream: int) -> Iterator[None]:
        """Torch's global random numbers, for dropout and initial weights, by seed and step; put back afterwards."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(int(self.numpy_random(step, GLOBAL, *stream).integers(2**63)))
            yield

    def numpy_random(self, step: int, *stream: int) -> np.random.Generator:
        """Random numbers of one step; more numbers name other streams of them."""
        return np.random.default_rng([self.seed, step + 1, *stream])

    def torch_random(self, random: np.random.Generator) -> torch.Generator:
        """A generator of torch's, where the policy is, seeded by one of numpy's."""
        return torch.Generator(self.device).manual_seed(int(random.integers(2**63)))

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Time, and sequences drawn, that count as learning; those of callbacks do not."""
        begin, before = time.perf_counter(), self.written
        yield
        self.cost["seconds"] += time.perf_counter() - begin
        self.cost["sequences"] += self.written - before

    def _restore(self, folder: Path) -> None:
        saved = load_checkpoint(folder, self.name, self.device)
        ours = {"settings": _as_json(asdict(self.settings)), "seed": self.seed, "task": self._described_task()}
        theirs = dict(saved.state)
        if isinstance(theirs.get("settings"), dict):  # what an earlier version did not know had what is now the default
            theirs["settings"] = _as_json(asdict(self.settings_type())) | theirs["settings"]
        for what, value in ours.items():
            if theirs.get(what) != value:
                different = _difference(theirs.get(what), value)
                raise CheckpointError(
                    f"the run in {folder} has other {what} than this agent: {different}. "
                    "Give another folder, or the same arguments and the same task."
                )
        frozen = theirs.get("frozen", self._frozen_digest())  # earlier versions did not save it
        if frozen != self._frozen_digest():
            name = getattr(self.settings, "model", "its model")
            raise CheckpointError(
                f"the run in {folder} was trained on top of other weights than {name!r} holds now; it saved only what "
                "it trained. Put that model back as it was, or begin anew in another folder."
            )
        try:
            self.restore_trained_numbers(saved.state["trained"])
            self._unpack_parts(saved.tensors, saved.state["optimizers"])
        except (KeyError, RuntimeError, TypeError, ValueError) as problem:
            raise CheckpointError(f"the checkpoint in {folder} is damaged: {problem}") from problem
        self.steps_done, self.finished = saved.step, bool(saved.state.get("finished"))
        self.cost |= saved.state.get("cost", {})
        self._reseed_sampler(SAMPLING)

    def _prepare_callback(self, callback: Callback) -> BaseCallback:
        model: Any = self
        prepared = as_callback(callback)
        prepared.init_callback(model)
        return prepared

    def _packed_parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors of all parts, and the settings of the optimisers among them."""
        tensors: dict[str, Tensor] = {}
        groups: dict[str, Any] = {}
        for name, part in self.trained_parts().items():
            if isinstance(part, nn.Module):
                tensors |= {f"{name}.{key}": value for key, value in part.state_dict().items()}
            else:
                packed, groups[name] = pack_optimizer(name, part)
                tensors |= packed
        return tensors, groups

    def _unpack_parts(self, tensors: Mapping[str, Tensor], groups: Mapping[str, Any]) -> None:
        for name, part in self.trained_parts().items():
            if isinstance(part, nn.Module):
                part.load_state_dict(tensors_of(name, tensors))
            else:
                unpack_optimizer(name, part, tensors, groups[name])

    def _reseed_sampler(self, stream: int) -> None:
        """Let what sample() draws depend on the seed and the steps learned alone, within a step and after it."""
        self._sampler.manual_seed(int(self.numpy_random(self.steps_done, stream).integers(2**63)))

    def _frozen_digest(self) -> str | None:
        """What tells the policy's weights that are not in checkpoints from others, where it has any."""
        return getattr(self.policy, "frozen_digest", None)

    def _described_task(self) -> dict[str, Any]:
        """What a policy cannot do without: the same tokens, and room for as many."""
        tokens = hashlib.blake2b("\0".join(self.task.vocab.tokens).encode("utf-8", "surrogatepass"), digest_size=8)
        return {"tokens": tokens.hexdigest(), "length": self.rules.limit, "prompt_length": self.task.prompt_length}

    def _shown(self) -> dict[str, str]:
        """What the progress bar says."""
        recorded = {k: v for k, v in self.logger.name_to_value.items() if isinstance(v, float) and "time" not in k}
        names = self.shown or tuple(recorded)[:2]
        return {name.split("/")[-1]: f"{recorded[name]:.4g}" for name in names if name in recorded}


def _difference(saved: Any, ours: Any) -> str:
    """What differs, and no more."""
    if isinstance(saved, dict) and isinstance(ours, dict):
        names = [name for name in {**saved, **ours} if saved.get(name) != ours.get(name)]
        return ", ".join(f"{name} was {saved.get(name)!r} and is {ours.get(name)!r}" for name in names)
    return f"{saved!r}, and not {ours!r}"


def _as_json(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as they look when read back: tuples are lists there."""
    return {k: [list(v) if isinstance(v, tuple) else v for v in value] if isinstance(value, tuple) else value
            for k, value in settings.items()}  # fmt: skip
