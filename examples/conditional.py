"""Prompts and answers: learn a little from right answers, then from being told right or wrong. About a minute."""

import argparse

import gymnasium as gym

import text_gym
from agents import MLE, Reinforce


def main(epochs: int, updates: int, size: int, seed: int) -> None:
    """Supervised first, then REINFORCE on exact_match, and what each answers."""
    task = text_gym.make_task("answers", size=size)
    env = gym.make("TextGen-v0", task=task, reward="exact_match")
    start = MLE(
        env, seed=seed, policy="transformer", hidden=128, dropout=0.0, schedule=((epochs, 2e-3),), early_stopping=False
    ).learn()
    agent = Reinforce(
        env, seed=seed, start=start, rollouts=0, batch_size=256, learning_rate=1e-3, updates=updates
    ).learn()
    for name, model in (("supervised", start), ("after REINFORCE", agent)):
        for split in ("train", "test"):
            questions = [task.split(split)[i] for i in range(len(task.split(split)))]
            batch = model.sample(prompts=questions, seed=1)
            print(f"{name}: {model.rewards(batch).mean():.0%} of {len(batch)} questions of {split!r} answered right")
        for prompt, text in list(zip(batch.prompts, batch.texts, strict=True))[:3]:
            print(f"    {prompt} -> {text}")
    own = "mary has a red kite . john has a blue ball . what does john have ?"
    print(f"your own: {own} -> {agent.sample(prompts=[own]).texts[0]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--updates", type=int, default=500)
    parser.add_argument("--size", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    main(arguments.epochs, arguments.updates, arguments.size, arguments.seed)
