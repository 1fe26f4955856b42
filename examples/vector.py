"""Step a thousand environments in one process with random tokens, and score finished sequences by BLEU."""

import time

import gymnasium as gym
import numpy as np

import text_gym  # noqa: F401 - registers TextGen-v0


def main(num_envs: int = 1000, steps: int = 60) -> None:
    """Step all environments, and print the speed and the mean reward."""
    envs = gym.make_vec("TextGen-v0", num_envs=num_envs, reward="bleu(n=2)", autoreset_mode="SameStep")
    envs.action_space.seed(0)
    _, infos = envs.reset(seed=0)
    scores: list[float] = []
    started = time.perf_counter()
    for _ in range(steps):
        actions = envs.action_space.sample(tuple(infos["action_mask"]))  # MultiDiscrete takes a tuple of masks
        _, rewards, terminated, _, infos = envs.step(actions)
        scores += rewards[terminated].tolist()
    seconds = time.perf_counter() - started
    print(f"{num_envs * steps / seconds:,.0f} steps per second, including sampling and BLEU")
    print(f"{len(scores):,} sequences finished, with a mean BLEU-2 of {np.mean(scores):.3f}")


if __name__ == "__main__":
    main()
