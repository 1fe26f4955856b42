"""PG-BLEU: maximum-likelihood pretraining, then REINFORCE with BLEU as the reward. Takes half a minute on two cores."""

import argparse

import gymnasium as gym

import text_gym  # noqa: F401 - registers TextGen-v0
from agents import MLE, Reinforce
from agents.common.evaluation import evaluate
from text_gym.rewards import Scorer


def main(updates: int, train_size: int, seed: int) -> None:
    """Train both agents, and compare their BLEU with their validity, entropy and NLL."""
    env = gym.make("TextGen-v0", task="grammar", train_size=train_size, reward="bleu")
    start = MLE(env, seed=seed, preset="demo").learn()
    agent = Reinforce(env, seed=seed, preset="demo", start=start, updates=updates).learn()
    bleu = Scorer("bleu", env.unwrapped.task)
    for name, model in (("MLE", start), ("PG-BLEU", agent)):
        batch, figures = model.sample(4000, seed=1), evaluate(model, n=4000)
        print(
            f"{name}: BLEU {bleu(batch).total.mean():.3f}, valid {figures['validity']:.0%}, "
            f"entropy {figures['entropy']:.2f}, NLL-test {figures['nll_test']:.2f} nats per token"
        )
        print("   ", "\n    ".join(batch.texts[:3]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=40)
    parser.add_argument("--train-size", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    main(arguments.updates, arguments.train_size, arguments.seed)
