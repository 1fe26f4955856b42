"""A custom agent: sample many sequences, and train on the best by maximum likelihood. Takes about ten seconds."""

import argparse

import gymnasium as gym
import numpy as np
import torch

import text_gym  # noqa: F401 - registers TextGen-v0
from agents import Agent
from agents.networks.policies import PolicySettings, make_policy


class BestOfMany(Agent[PolicySettings]):
    """In each step, samples 256 sequences and increases the likelihood of the best 32.

    learn(), sample(), save() and all other methods are inherited from Agent.
    """

    settings_type = PolicySettings

    def build(self) -> None:
        """Create the policy, with the architecture of the initial policy if there is one, and the optimizer."""
        self.policy = make_policy(self.settings, self.task.vocab, device=self.device)
        self.optimizer = torch.optim.Adam(self.policy.parameters(), lr=1e-2)

    def one_step(self, step: int) -> bool:
        """Make one update; return True to continue training."""
        batch = self.sample(256)
        rewards = self.rewards(batch)
        best = batch.take(np.argsort(-rewards)[:32])
        self.policy.train()
        self.descend(self.likelihood_loss(best))
        self.logger.record("train/reward", float(rewards.mean()))
        return True


def main(steps: int, seed: int) -> None:
    """Train the agent on a weighted reward, and print samples before and after."""
    env = gym.make("TextGen-v0", reward={"bleu": 1.0, "repetition": 0.5})
    agent = BestOfMany(env, seed=seed)
    for when in ("before", "after"):
        batch = agent.sample(500, seed=0)
        print(f"{when}: reward {agent.rewards(batch).mean():.3f}")
        print("   ", "\n    ".join(batch.texts[:3]))
        if when == "before":
            agent.learn(steps)
    print("The samples have collapsed to a few sentences, because the reward does not ask for diversity.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    main(arguments.steps, arguments.seed)
