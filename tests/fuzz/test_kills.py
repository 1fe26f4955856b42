"""SIGKILL at random moments: a run that is begun again after each comes to the same numbers, bit for bit, and files."""

import json
import time

import pytest

from agents.report.run_files import read_log
from tests.helpers.fuzzing import SECONDS, cases
from tests.helpers.programs import Program, run

pytestmark = pytest.mark.slow

LEARNER = """
import json, sys, gymnasium as gym, text_gym, torch
from agents.experiments.registry import AGENTS
torch.set_num_threads(1)
folder, name, steps, options = sys.argv[1], sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4])
env = gym.make("TextGen-v0", task="grammar(train_size=400, valid_size=60, test_size=60)", reward="bleu")
agent = AGENTS.find(name)(env, seed=5, folder=folder, progress=False, log=("csv", "json", "tensorboard"), **options)
agent.learn(steps - agent.steps_done)
weights = sum(p.double().sum().item() for p in agent.policy.parameters())
print(agent.steps_done, agent.cost["sequences"], repr(weights), agent.sample(3).texts)
"""
SMALL = {"embedding": 8, "hidden": 8}
SEQGAN = {"preset": "demo", "pretrain_epochs": 3, "pretrain_d_steps": 3, "d_samples": 200, "rollouts": 1}
LEARNERS = {
    "mle": (12, SMALL | {"schedule": ((100, 1e-2),), "early_stopping": False}),
    "reinforce": (20, SMALL | {"rollouts": 2, "batch_size": 16, "kl": {"weight": 0.1, "target": 0.05}}),
    "seqgan": (4, SMALL | SEQGAN | {"batch_size": 16}),
    "ppo": (10, SMALL | {"n_envs": 16, "kl": {"weight": 0.4, "target": 0.05}}),
}
COMPARISON = """
import sys
from agents.experiments.comparison import run_comparison
from tests.helpers.comparisons import figures, small
if __name__ == "__main__":
    results = run_comparison(small(sys.argv[1]))
    for name, found in sorted(figures(results).items()):
        print(name, sorted(found.items()), results.runs[name].curve)
"""


def killed(random, longest, until, program, *arguments):
    """Kill a program at random moments until it ends before, or the time is over; get its output and how many kills."""
    kills = 0
    while time.monotonic() < until:
        process = Program(program, *arguments)
        end = time.monotonic() + random.uniform(0, longest)
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.001)
        if process.poll() is not None:
            assert process.wait() == 0, process.errors
            return process.output, kills
        process.kill()
        kills += 1
    return run(program, *arguments), kills


def rows(folder):
    """The metrics of every step, but those of the clock."""
    return [{k: v for k, v in row.items() if k != "time/seconds"} for row in read_log(folder)]


def check(name, tmp_path, program, *arguments):
    """Kill one run after another, and compare each with the first, which was let alone."""
    begin = time.monotonic()
    whole = run(program, tmp_path / "whole", *arguments)
    took, kills = time.monotonic() - begin, 0
    until = time.monotonic() + SECONDS
    for number, random in cases(f"kills of {name}"):
        folder = tmp_path / str(number)
        output, more = killed(random, 0.7 * took, until, program, folder, *arguments)
        kills += more
        assert output == whole, f"TEXT_GYM_FUZZ_CASE={number}"
        for log in (tmp_path / "whole").rglob("progress.json"):
            there = folder / log.parent.relative_to(tmp_path / "whole")
            assert rows(there) == rows(log.parent), there
            assert len(list(there.glob("step-*"))) <= 1
            assert not list(there.glob("*.part"))
    print(f"{name}: {number + 1} runs, {kills} kills")


@pytest.mark.parametrize("name", LEARNERS)
def test_a_learner(name, tmp_path):
    steps, options = LEARNERS[name]
    check(name, tmp_path, LEARNER, name, steps, json.dumps(options))


def test_a_comparison(tmp_path):
    check("compare", tmp_path, COMPARISON)
