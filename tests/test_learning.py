"""What the learners gain on the grammar, over five seeds, beside controls that should not gain it. Takes minutes."""

import json
import multiprocessing
import statistics
from concurrent.futures import ProcessPoolExecutor

import gymnasium as gym
import pytest
import torch

from agents import MLE, Reinforce, SeqGAN
from agents.common.evaluation import evaluate
from text_gym.rewards import Scorer

SEEDS = range(5)
T_OF_4 = 2.776  # the 97.5 % point of Student's t with four degrees of freedom


def study(seed):
    """Figures of every model of one seed, all of them from the same maximum likelihood."""
    torch.set_num_threads(1)
    env = gym.make("TextGen-v0", test_size=10_000, reward="bleu")
    constant = gym.make("TextGen-v0", test_size=10_000, reward="constant")
    quiet = {"seed": seed, "progress": False}
    start = MLE(env, preset="demo", **quiet).learn()
    seqgan = SeqGAN(env, preset="demo", start=start, **quiet).learn()
    alike = {name: getattr(seqgan.settings, name) for name in ("batch_size", "learning_rate", "teacher_forcing")}
    updates = seqgan.settings.rounds * seqgan.settings.g_steps
    models = {
        "mle": start,
        "pg-bleu": Reinforce(env, preset="demo", start=start, **quiet).learn(),
        "seqgan": seqgan,
        # As many updates of the same kind without a discriminator: likelihood goes on, and nothing else.
        "seqgan without reward": Reinforce(
            constant, start=start, rollouts=0, updates=updates, **alike, **quiet
        ).learn(),
    }
    bleu = Scorer("bleu", env.unwrapped.task)
    figures = {}
    for name, model in models.items():
        figures[name] = evaluate(model, n=10_000) | {"bleu": float(bleu(model.sample(4000, seed=1)).total.mean())}
    return figures


@pytest.fixture(scope="module")
def figures():
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(study, SEEDS))


def interval(figures, name, other, figure):
    """The mean over seeds of how much one model has more than another, and its 95 % interval."""
    gains = [seed[name][figure] - seed[other][figure] for seed in figures]
    mean, error = statistics.mean(gains), T_OF_4 * statistics.stdev(gains) / len(gains) ** 0.5
    return mean, mean - error, mean + error


def table(figures):
    """For the records: every figure's mean over seeds, and the gains with their intervals."""
    columns = ("bleu", "validity", "js", "nll_test", "entropy")
    lines = ["model: " + ", ".join(columns)]
    means = {name: [statistics.mean(f[name][c] for f in figures) for c in columns] for name in figures[0]}
    lines += [f"{name}: " + ", ".join(f"{value:.4f}" for value in values) for name, values in means.items()]
    for name, other in (("pg-bleu", "mle"), ("seqgan", "mle"), ("seqgan", "seqgan without reward")):
        gains = [(c, *interval(figures, name, other, c)) for c in columns]
        lines.append(f"{name} - {other}: " + ", ".join(f"{c} {m:+.4f} [{a:+.4f}, {b:+.4f}]" for c, m, a, b in gains))
    return "\n".join(lines)


@pytest.mark.slow
def test_pg_bleu_gains_bleu_and_seqgan_gains_validity(figures, record_property):
    record_property("figures", json.dumps(figures))
    print(table(figures))
    assert interval(figures, "pg-bleu", "mle", "bleu")[1] > 0.2
    assert interval(figures, "seqgan", "mle", "validity")[1] > 0
    assert interval(figures, "seqgan", "seqgan without reward", "validity")[1] > 0


@pytest.mark.slow
def test_seqgan_comes_nearer_to_the_data_by_the_divergence_that_is_finite(figures):
    """Whatever is invalid makes KL(model, data) infinite, before and after; Jensen and Shannon's is finite."""
    assert interval(figures, "seqgan", "mle", "js")[2] < 0
    assert all(seed[name]["kl_model_data"] == float("inf") for seed in figures for name in ("mle", "seqgan"))
