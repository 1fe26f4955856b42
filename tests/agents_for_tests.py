"""Agents that comparisons are tried with: some that work, and some that do not."""

import os
from pathlib import Path

import numpy as np
import torch

from agents import Agent
from text_gym.models import LSTM
from text_gym.sequences import Batch


class Plain(Agent):
    """REINFORCE without anything."""

    def build(self):
        self.policy = LSTM(len(self.task.vocab), embedding=8, hidden=8).to(self.device)
        self.optimizer = torch.optim.Adam(self.policy.parameters(), lr=1e-2)

    @property
    def steps_of_preset(self):
        return 3

    def one_step(self, step):
        batch = self.sample(16)
        rewards = self.rewards(batch)
        self.descend(self.likelihood_loss(batch, weights=rewards - rewards.mean()))


class OnlySamples:
    """The least that an agent is: it repeats the first training sequence."""

    def __init__(self, env, seed=0, times=1):
        self.task = env.unwrapped.task

    def sample(self, n, seed=None):
        return self.task.batch("train", np.zeros(n, dtype=int))


class Fails:
    """Raises while it learns."""

    def __init__(self, env):
        self.env = env

    def learn(self):
        raise RuntimeError("out of luck")

    def sample(self, n, seed=None):
        return Batch(np.zeros((n, 1), dtype=int), np.ones(n, dtype=int), self.env.unwrapped.task.vocab)


class FailsUntilMended(OnlySamples):
    """Raises until there is a file that it looks for."""

    def learn(self):
        if not Path(os.environ["MENDED"]).exists():
            raise RuntimeError("not mended")


class Dies(Fails):
    """Takes its process with it."""

    def learn(self):
        os._exit(7)


def no_agent(env):
    """Makes something that is no agent."""
    return 5
