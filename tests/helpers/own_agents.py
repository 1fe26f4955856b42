"""Custom agents for tests of comparisons; some of them fail."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from agents import Agent, SeqGAN
from text_gym.language_model import LSTM
from text_gym.sequences import Batch


class Plain(Agent):
    """REINFORCE without rollouts and options."""

    def build(self):
        self.policy = LSTM(len(self.task.vocab), embedding=8, hidden=8).to(self.device)
        self.optimizer = torch.optim.Adam(self.policy.parameters(), lr=1e-2)

    @property
    def default_steps(self):
        return 3

    def one_step(self, step):
        batch = self.sample(16)
        rewards = self.rewards(batch)
        self.descend(self.likelihood_loss(batch, weights=rewards - rewards.mean()))


class BreaksAtOnce(Plain):
    """Raises in build()."""

    def build(self):
        raise RuntimeError("nothing to build with")


class FromScratch(Plain):
    """Always starts from random weights."""

    takes_start = False


@dataclass(frozen=True)
class LikeFlags:
    """Hyperparameters with the names of flags."""

    steps: int = 4
    samples: int = 5


class Clashing(Plain):
    """Its hyperparameters have the names of flags."""

    settings_type = LikeFlags


@dataclass(frozen=True)
class Taken:
    """A hyperparameter with the name of an argument of all agents."""

    seed: int = 1


class Seeded(Plain):
    """Its hyperparameter has the name of an argument of all agents."""

    settings_type = Taken


class OnlySamples:
    """A minimal agent, which samples the first training sequence."""

    def __init__(self, env, seed=0, times=1):
        self.task = env.unwrapped.task

    def sample(self, n, seed=None):
        return self.task.batch("train", np.zeros(n, dtype=int))


class Fails:
    """Raises in learn()."""

    def __init__(self, env):
        self.env = env

    def learn(self):
        raise RuntimeError("out of luck")

    def sample(self, n, seed=None):
        return Batch(np.zeros((n, 1), dtype=int), np.ones(n, dtype=int), self.env.unwrapped.task.vocab)


class Forgets(OnlySamples):
    """Learns, and saves nothing."""

    def learn(self, steps=2):
        self.steps = steps


class Keeps(OnlySamples):
    """Saves its number of steps in its folder."""

    def __init__(self, env, folder):
        super().__init__(env)
        self.path = folder / "steps.txt"
        self.steps = int(self.path.read_text(encoding="utf-8")) if self.path.exists() else 0

    def learn(self, steps=2):
        self.path.write_text(str(steps), encoding="utf-8")


class FailsUntilMended(OnlySamples):
    """Raises until the file $MENDED exists."""

    def learn(self):
        if not Path(os.environ["MENDED"]).exists():
            raise RuntimeError("not mended")


class Dies(Fails):
    """Exits the process in learn()."""

    def learn(self):
        os._exit(7)


def no_agent(env):
    """Return something that is not an agent."""
    return 5


class Global(OnlySamples):
    """Samples from the global generators of torch and numpy."""

    def learn(self):
        self.rows = torch.randint(40, (500,)).numpy() + np.random.randint(2)  # noqa: NPY002

    def sample(self, n, seed=None):
        return self.task.batch("train", self.rows[:n])


class OwnGAN(SeqGAN):
    """A subclass of SeqGAN without changes."""


class OwnReward(Plain):
    """Overrides rewards(), and ignores the environment's reward."""

    def rewards(self, batch):
        return batch.lengths.astype(float)
