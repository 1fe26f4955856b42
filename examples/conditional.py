"""Answer questions: supervised pretraining, then reinforcement learning, evaluated on held-out questions."""

import argparse
import time

import gymnasium as gym

import text_gym
from agents import MLE, PPO, Agent, Reinforce, SeqGAN
from text_gym.rewards import Scorer
from text_gym.sequences import Example

# A Transformer attends to the prompt for every token; a small LSTM has to keep the prompt in its state.
POLICY = {"policy": "transformer", "embedding": 64, "hidden": 256, "layers": 2}
SUPERVISED = {"dropout": 0.0, "early_stopping": False, "batch_size": 32}
LEARNERS = {
    "reinforce": (Reinforce, {"rollouts": 0, "batch_size": 256, "learning_rate": 1e-3}),
    "ppo": (
        PPO,
        {"n_envs": 256, "batch_size": 128, "learning_rate": 3e-4, "n_epochs": 3, "ent_coef": 0.01},
    ),
    "seqgan": (
        SeqGAN,
        {
            "rollouts": 0, "batch_size": 64, "learning_rate": 7e-4, "g_steps": 200, "teacher_forcing": 1.0,
            "discriminator": {"kind": "transformer", "learning_rate": 1e-3, "l2": 0.0},
            "d_samples": 2000, "pretrain_d_steps": 3,
        },
    ),
}  # fmt: skip


def accuracy(agent: Agent, examples: list[Example]) -> float:
    """Compute the share of correct answers, sampled at temperature 1."""
    return float(Scorer("exact_match", agent.task)(agent.sample(prompts=examples, seed=1)).total.mean())


def main(task: str, shown: str, learner: str, epochs: int, steps: int, every: int, reward: str, seed: int) -> None:
    """Pretrain on the questions and answers of the task `shown`, then train the learner on the questions of `task`."""
    made = text_gym.make_task(task)
    unseen = [made.test[i] for i in range(min(1000, len(made.test)))]
    env = gym.make("TextGen-v0", task=made, reward=reward)
    start = MLE(
        gym.make("TextGen-v0", task=shown or task, reward=reward),
        seed=seed, schedule=((epochs, 1e-3),), progress=False, **POLICY, **SUPERVISED,
    )  # fmt: skip
    start.learn()
    print(f"supervised: {accuracy(start, unseen):.1%} of {len(unseen)} held-out questions correct", flush=True)
    kind, options = LEARNERS[learner]
    agent, started = kind(env, seed=seed, start=start, progress=False, **options), time.perf_counter()
    while agent.steps_done < steps:
        agent.learn(min(every, steps - agent.steps_done))
        seconds = time.perf_counter() - started
        print(
            f"{agent.name} step {agent.steps_done}, {seconds:.0f} s: {accuracy(agent, unseen):.1%} correct", flush=True
        )
    batch = agent.sample(prompts=unseen[:3], seed=1)
    for prompt, text in zip(batch.prompts, batch.texts, strict=True):
        print(f"    {prompt} -> {text}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="answers(size=2000)", help="task, or a .jsonl file of prompts and references")
    parser.add_argument("--shown", default="", help="task of supervised pretraining; by default the same task")
    parser.add_argument("--learner", choices=LEARNERS, default="reinforce")
    parser.add_argument("--epochs", type=int, default=20, help="epochs of supervised pretraining")
    parser.add_argument("--steps", type=int, default=100, help="steps of reinforcement learning")
    parser.add_argument("--every", type=int, default=20, help="steps between evaluations")
    parser.add_argument("--reward", default="exact_match")
    parser.add_argument("--seed", type=int, default=0)
    main(**vars(parser.parse_args()))
