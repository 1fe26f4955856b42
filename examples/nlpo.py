"""Do NLPO's masks help? Compare NLPO with PPO, equal in everything but the masks, over several seeds."""

import argparse

import gymnasium as gym

import text_gym
from agents import MLE, NLPO, PPO
from agents.report.statistics import paired
from text_gym.rewards import Scorer

# Settings of both agents, and the two ways of sampling for the evaluation.
SHARED = {"kl": {"weight": 0.1, "target": 0.1}, "n_envs": 64, "progress": False}
SAMPLING = {"all tokens": {}, "top-p 0.9": {"top_p": 0.9}}


def main(seeds: int, iterations: int, vocab_size: int, train_size: int, **masks: float) -> None:
    """Train both from the same initial policy in each seed; print the mean rewards and the mean difference."""
    task = text_gym.make_task("oracle", vocab_size=vocab_size, train_size=train_size, test_size=2000)
    env = gym.make("TextGen-v0", task=task, reward="likelihood")
    found: dict[str, dict[str, dict[int, float]]] = {how: {"mle": {}, "ppo": {}, "nlpo": {}} for how in SAMPLING}
    for seed in range(seeds):
        start = MLE(env, seed=seed, preset="demo", progress=False).learn()
        ppo = PPO(env, seed=seed, start=start, **SHARED).learn(iterations)
        nlpo = NLPO(env, seed=seed, start=start, **masks, **SHARED).learn(iterations)
        for how, options in SAMPLING.items():
            for agent in (start, ppo, nlpo):
                batch = agent.sample(2000, seed=1, **options)
                found[how][agent.name][seed] = float(Scorer("likelihood", task)(batch).total.mean())
        print(
            f"seed {seed}:", {how: {name: round(of[seed], 3) for name, of in by.items()} for how, by in found.items()}
        )
    for how, by in found.items():
        print(f"Sampling from {how}: mean log-probability per token under the oracle")
        for name, values in by.items():
            print(f"  {name:5} {sum(values.values()) / len(values):.3f}")
        gap = paired(by["nlpo"], by["ppo"])
        interval = "" if gap.low is None else f" [{gap.low:+.3f}, {gap.high:+.3f}]"
        print(f"  NLPO - PPO {gap.mean:+.3f}{interval} over {gap.n} seeds")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--vocab-size", type=int, default=5000)
    parser.add_argument("--train-size", type=int, default=9984)
    parser.add_argument("--mask-top-p", type=float, default=0.9)
    parser.add_argument("--mask-min-tokens", type=int, default=5)
    arguments = parser.parse_args()
    main(**vars(arguments))
