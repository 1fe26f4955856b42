"""A small comparison, which takes seconds."""

from dataclasses import replace
from pathlib import Path

import text_gym  # noqa: F401
from agents.experiments.settings import Comparison, MetricSettings, split_label

TASK = "oracle(vocab_size=12, max_length=5, train_size=96, valid_size=40, test_size=40)"
SMALL = MetricSettings(
    samples=60, references=30, temperatures=(0.7, 1.0), sweep_samples=40, shown=2, points=2, curve_samples=20
)
DISCRIMINATOR = {
    "pretrain_d_steps": 1,
    "d_samples": 32,
    "discriminator": {"filters": ((1, 4), (2, 4)), "batch_size": 16},
}
OPTIONS = {
    "mle": {"schedule": ((3, 1e-2),), "embedding": 8, "hidden": 8, "dropout": 0.0, "early_stopping": False},
    "pg-bleu": {"updates": 4, "rollouts": 2, "batch_size": 8},
    "seqgan": {"rounds": 3, "rollouts": 2, "batch_size": 8, **DISCRIMINATOR},
}
MINE = "tests.helpers.own_agents:"


def small(out, agents=("mle", "pg-bleu", "seqgan"), **changes):
    options = {label: OPTIONS[label] for label, _ in map(split_label, agents) if label in OPTIONS}
    asked = Comparison(agents, TASK, seeds=1, out=Path(out), options=options, metrics=SMALL, jobs=2, device="cpu")
    return replace(asked, **changes)


def figures(results):
    """All figures except times."""
    return {
        name: {key: value for key, value in run.figures.items() if key != "seconds"}
        for name, run in results.runs.items()
    }
