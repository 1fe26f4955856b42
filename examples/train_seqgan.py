"""SeqGAN on the synthetic oracle, compared with a constant reward as a control. Takes about a minute."""

import argparse

import gymnasium as gym

import text_gym
from agents import MLE, Reinforce, SeqGAN
from agents.common.evaluation import Evaluation

# The published update: no baseline, loss summed over a batch of 64, a high learning rate, no teacher forcing.
PUBLISHED = {"baseline": "none", "loss": "sum", "batch_size": 64, "learning_rate": 1e-2, "teacher_forcing": 0.0}
COLUMNS = ("nll_oracle", "nll_test", "entropy", "kl_model_data", "kl_data_model")


class Watch(Evaluation):
    """Evaluates the policy and prints a row of metrics."""

    def _on_training_start(self) -> None:
        print(f"{'step':>6}", *(f"{name:>14}" for name in COLUMNS))
        super()._on_training_start()

    def _evaluate(self) -> None:
        super()._evaluate()
        row = self.history[-1]
        print(f"{row['step']:6.0f}", *(f"{row[name]:14.3f}" for name in COLUMNS))


def main(rounds: int, vocab_size: int, train_size: int, seed: int) -> None:
    """Pretrain by maximum likelihood; from this initial policy, train SeqGAN and a control with a constant reward."""
    task = text_gym.make_task("oracle", vocab_size=vocab_size, train_size=train_size, test_size=2000)
    env = gym.make("TextGen-v0", task=task)
    start = MLE(env, seed=seed, preset="demo").learn()
    print("SeqGAN, in nats per token; step 0 is the pretrained policy:")
    seqgan = SeqGAN(
        env, seed=seed, preset="demo", start=start, progress=False,
        g_steps=1, discriminator={"reward": "probability"}, **PUBLISHED,
    )  # fmt: skip
    seqgan.learn(rounds, callback=Watch(every=max(1, rounds // 5), n=2000))
    print("Control: the same number of updates with the constant reward 0.5:")
    blind = gym.make("TextGen-v0", task=task, reward="constant(value=0.5)")
    control = Reinforce(blind, seed=seed, preset="demo", start=start, progress=False, rollouts=0, **PUBLISHED)
    control.learn(rounds, callback=Watch(every=max(1, rounds // 5), n=2000))
    print("A lower nll_oracle alone proves nothing. Did a divergence decrease, and less in the control?")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--vocab-size", type=int, default=500)
    parser.add_argument("--train-size", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    main(arguments.rounds, arguments.vocab_size, arguments.train_size, arguments.seed)
