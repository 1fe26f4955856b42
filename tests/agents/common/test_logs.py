"""Metrics files: one of each kind, with one row per step, however often a run is interrupted."""

import csv
import gc
import json
import math
import threading

import gymnasium as gym
import numpy as np
import pytest
import torch

from agents.common.agent import Agent
from agents.common.checkpoint import CheckpointError
from agents.common.logs import keep_rows, open_logger, rows_of
from agents.mle import MLE
from tests.helpers.programs import Program
from text_gym.errors import DataError, OptionError
from text_gym.language_model import LSTM

KINDS = ("csv", "json", "tensorboard")


class Counting(Agent):
    """An agent that logs the step, and another metric from step 2 on."""

    default_steps = 6

    def build(self):
        self.policy = LSTM(len(self.task.vocab), 4, 4)
        self.optimizer = torch.optim.SGD(self.policy.parameters(), 1.0)

    def one_step(self, step):
        self.logger.record("train/value", np.float32(step))
        if step > 1:
            self.logger.record("train/later", step * 10)


@pytest.fixture
def env():
    return gym.make("TextGen-v0", task="oracle(vocab_size=9, max_length=4, train_size=64, valid_size=9)")


def agent_in(folder, env, **options):
    return Counting(env, folder=folder, progress=False, log=KINDS, device="cpu", **options)


def table(folder):
    with (folder / "progress.csv").open(newline="") as file:
        return [(row["train/value"], row.get("train/later", "")) for row in csv.DictReader(file)]


def lines(folder):
    return [json.loads(line) for line in (folder / "progress.json").read_text().splitlines()]


def events(folder):
    """Read step and value of each event with TensorBoard."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    loaded = accumulator.EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in loaded.Scalars(tag)] for tag in loaded.Tags()["scalars"]}


WHOLE = [("0.0", ""), ("1.0", ""), ("2.0", "20"), ("3.0", "30"), ("4.0", "40"), ("5.0", "50")]


def check_whole(folder):
    assert table(folder) == WHOLE
    assert [row["time/step"] for row in lines(folder)] == [1, 2, 3, 4, 5, 6]
    assert events(folder)["train/value"] == [(i + 1, i) for i in range(6)]
    assert events(folder)["train/later"] == [(i + 1, i * 10) for i in range(2, 6)]
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    assert names == [".lock", "events.out.tfevents.0", "latest.json", "progress.csv", "progress.json"]


def test_many_calls_of_learn_write_the_same_files_as_one(env, tmp_path):
    agent = agent_in(tmp_path / "calls", env)
    for _ in range(6):
        agent.learn(1)
    check_whole(tmp_path / "calls")
    for steps in (2, 4):
        agent_in(tmp_path / "agents", env).learn(steps)
    check_whole(tmp_path / "agents")


@pytest.mark.parametrize("saved", [0, 1, 3])
def test_rows_of_steps_that_are_repeated_are_not_there_twice(env, tmp_path, saved, monkeypatch):
    """Imitate a process that is killed after logging a step and before saving its checkpoint."""
    agent = agent_in(tmp_path, env, seed=0)
    save = agent.checkpoint
    monkeypatch.setattr(agent, "checkpoint", lambda: save() if agent.steps_done <= saved else None)
    monkeypatch.setattr(agent, "end_learning", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        agent.learn(5)
    for name in ("progress.csv", "progress.json", "events.out.tfevents.0"):
        with (tmp_path / name).open("ab") as file:
            file.write(b"\x05\x00\x00")  # an incomplete row
    agent_in(tmp_path, env, seed=0).learn()
    check_whole(tmp_path)


def test_rows_of_a_log_that_was_not_written_before_begin_where_it_was_asked_for(env, tmp_path):
    Counting(env, folder=tmp_path, progress=False, log="json").learn(2)
    agent_in(tmp_path, env).learn()
    assert table(tmp_path) == WHOLE[2:]
    assert len(lines(tmp_path)) == 6


def test_json_lines_are_json_and_text_stays_on_its_line(tmp_path):
    logger = open_logger(tmp_path, KINDS, {})
    logger.record("a", math.nan)
    logger.record("b", -math.inf)
    logger.record("c", 'two\nlines, "quoted"')
    logger.record("hidden", 1.0, exclude=("json", "csv"))
    logger.record("d", np.array([1.0, np.nan]), exclude=("csv",))
    logger.dump(1)
    counted = rows_of(logger)
    logger.close()
    (row,) = [
        json.loads(line, parse_constant=pytest.fail) for line in (tmp_path / "progress.json").read_text().splitlines()
    ]
    assert row == {"a": "nan", "b": "-inf", "c": 'two\nlines, "quoted"', "d": [1.0, "nan"]}
    with (tmp_path / "progress.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["a", "b", "c"], ["nan", "-inf", 'two lines, "quoted"']]
    assert keep_rows(tmp_path, {}) == counted == {"progress.csv": 2, "progress.json": 1, "events.out.tfevents.0": 2}


def test_a_second_agent_that_learns_in_the_folder_is_refused(env, tmp_path):
    """Try to learn in a second thread while the first one learns."""

    class Intruded(Counting):
        name = "counting"

        def one_step(self, step):
            super().one_step(step)

            def intrude():
                try:
                    other.learn(1)
                except OptionError as problem:
                    refused.append(str(problem))

            thread = threading.Thread(target=intrude)
            thread.start()
            thread.join()

    refused = []
    other = agent_in(tmp_path, env)
    Intruded(env, folder=tmp_path, progress=False).learn(2)
    assert refused == [f"another run is using {tmp_path}; wait until it ends, or give another folder"] * 2
    assert other.steps_done == 0


PROGRAM = """
import sys, gymnasium as gym, text_gym
from agents.mle import MLE
env = gym.make("TextGen-v0", task="oracle(vocab_size=9, max_length=4, train_size=64, valid_size=9)")
MLE(env, seed=0, folder=sys.argv[1], progress=False, early_stopping=False).learn(100_000)
"""


def test_a_second_process_that_learns_in_the_folder_is_refused(env, tmp_path):
    program = Program(PROGRAM, tmp_path)
    program.until(lambda: (tmp_path / "latest.json").exists())
    try:
        with pytest.raises(OptionError, match="another run is using"):
            MLE(env, seed=0, folder=tmp_path, progress=False, early_stopping=False).learn(1)
    finally:
        program.kill()
    MLE(env, seed=0, folder=tmp_path, progress=False, early_stopping=False).learn(1)


def test_an_agent_that_others_have_overtaken_is_refused(env, tmp_path):
    early = agent_in(tmp_path, env, seed=0)
    late = agent_in(tmp_path, env, seed=0).learn(2)
    before = (tmp_path / "latest.json").read_bytes(), table(tmp_path)
    with pytest.raises(CheckpointError, match=r"another agent has saved a checkpoint in .*create the agent again"):
        early.learn(1)
    assert ((tmp_path / "latest.json").read_bytes(), table(tmp_path)) == before
    agent_in(tmp_path, env).learn(1)
    with pytest.raises(CheckpointError, match="create the agent again"):
        late.learn(1)
    assert agent_in(tmp_path, env).learn().steps_done == 6
    check_whole(tmp_path)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "events.out.tfevents.0").mkdir(), "directory"),
        (lambda folder: (folder / "progress.csv").write_bytes(b"a" * 200_000 + b"\n"), "move it away"),
    ],
)
def test_a_log_that_cannot_be_written_is_told_and_leaves_no_file_open(damage, said, tmp_path):
    damage(tmp_path)
    with pytest.raises((OSError, DataError), match=said):
        open_logger(tmp_path, ("json", "csv", "tensorboard"), {})
    gc.collect()  # an unclosed file raises a warning, which the tests turn into an error


def test_a_table_in_another_encoding_goes_on(tmp_path):
    (tmp_path / "progress.csv").write_bytes(b"caf\xe9\n1\n")
    logger = open_logger(tmp_path, ("csv",), {"progress.csv": 2})
    logger.record("b", 2)
    logger.dump(1)
    logger.close()
    assert (tmp_path / "progress.csv").read_text(encoding="utf-8") == "caf\ufffd,b\n1,\n,2\n"
