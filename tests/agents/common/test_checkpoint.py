"""Checkpoints: complete at every moment, and refused if they are damaged."""

import itertools
import json
import threading

import gymnasium as gym
import pytest
import torch

from agents import MLE
from agents.common import agent
from agents.common.checkpoint import (
    FORMAT,
    Checkpoint,
    CheckpointError,
    has_checkpoint,
    load_checkpoint,
    pack_optimizer,
    read_state,
    save_checkpoint,
    unpack_optimizer,
)


def some(step=1, value=1.0):
    return Checkpoint("mle", step, {"a": [1, None]}, {"w": torch.full((3, 2), value), "step": torch.tensor(4)})


def test_what_was_saved_is_loaded(tmp_path):
    for step in (1, 2, 2, 3):
        save_checkpoint(tmp_path / "run", some(step, float(step)))
        loaded = load_checkpoint(tmp_path / "run", "mle")
        assert (loaded.kind, loaded.step, loaded.state) == ("mle", step, {"a": [1, None]})
        assert (loaded.tensors["w"] == step).all()
        assert loaded.tensors["step"].item() == 4
    assert len(list((tmp_path / "run").iterdir())) == 2


@pytest.mark.parametrize("moment", ["save_file", "_write"])
def test_a_save_that_dies_leaves_the_one_before(tmp_path, monkeypatch, moment):
    save_checkpoint(tmp_path, some(1, 1.0))

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"agents.common.checkpoint.{moment}", die)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path, some(2, 2.0))
    assert load_checkpoint(tmp_path, "mle").step == 1
    save_checkpoint(tmp_path, some(2, 2.0))
    assert load_checkpoint(tmp_path, "mle").step == 2


def test_damaged_truncated_and_foreign_ones_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        load_checkpoint(tmp_path / "absent", "mle")
    save_checkpoint(tmp_path, some())
    with pytest.raises(CheckpointError, match="of 'mle', not of 'seqgan'"):
        load_checkpoint(tmp_path, "seqgan")
    state, latest = tmp_path / "step-000001" / "state.json", tmp_path / "latest.json"
    tensors = tmp_path / "step-000001" / "tensors.safetensors"
    for path in (state, latest, tensors):
        whole = path.read_bytes()
        for damage in (b"", whole[: len(whole) // 2], b"null", b"\x80\x04N."):
            path.write_bytes(damage)
            with pytest.raises(CheckpointError):
                load_checkpoint(tmp_path, "mle")
        path.unlink()
        if path != latest:
            with pytest.raises(CheckpointError):
                load_checkpoint(tmp_path, "mle")
        path.write_bytes(whole)
    for name in ("../elsewhere", "absent", 3, None):
        latest.write_text(json.dumps({"format": FORMAT, "name": name}))
        with pytest.raises(CheckpointError, match="which does not exist"):
            load_checkpoint(tmp_path, "mle")
    latest.write_text(json.dumps({"format": "text_gym checkpoint 1", "name": "step-000001"}))
    with pytest.raises(CheckpointError, match=r"its format is .*, and this version of text_gym reads .*; train again"):
        load_checkpoint(tmp_path, "mle")
    latest.write_text(json.dumps({"format": FORMAT, "name": "step-000001"}))
    assert has_checkpoint(tmp_path)


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    save_checkpoint(tmp_path, some(value=float("nan")))
    with pytest.raises(CheckpointError, match=r"is damaged: w has NaN values$"):
        load_checkpoint(tmp_path, "mle")


@pytest.mark.parametrize("name", ["latest.json", "step-000001/state.json"])
@pytest.mark.parametrize(
    "content", ["[" * 100_000, "[" * 90 + "]" * 90, '{"a": "\\ud800"}', '{"a": ' + "1" * 5000 + "}"]
)
def test_json_that_overflows_something_is_refused(tmp_path, name, content):
    save_checkpoint(tmp_path, some())
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=f"cannot read .*{name}: "):
        load_checkpoint(tmp_path, "mle")


def test_a_run_of_another_kind_is_not_written_over(tmp_path):
    save_checkpoint(tmp_path, some())
    with pytest.raises(CheckpointError, match="has a run of 'mle'"):
        save_checkpoint(tmp_path, some()._replace(kind="reinforce"))
    (tmp_path / "step-000099").mkdir()
    (tmp_path / "latest.json.01234567.part").touch()
    save_checkpoint(tmp_path, some(2))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest.json", "step-000002"]


def test_an_optimiser_goes_on_where_it_was():
    def trained(steps, optimizer_state=None, start=None):
        weight = torch.nn.Parameter(torch.ones(3) if start is None else start.clone())
        optimizer = torch.optim.Adam([weight], lr=0.5)
        if optimizer_state is not None:
            unpack_optimizer("adam", optimizer, *optimizer_state)
        for _ in range(steps):
            optimizer.zero_grad()
            (weight**4).sum().backward()
            optimizer.step()
        return weight.detach(), pack_optimizer("adam", optimizer)

    whole, _ = trained(5)
    half, state = trained(3)
    assert (trained(2, state, half)[0] == whole).all()
    assert (trained(2, None, half)[0] != whole).any()


class Clock:
    """A clock that the test advances."""

    now = 100.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def slow_saving(monkeypatch):
    """Let a step take 2 seconds, and saving takes["seconds"]; return the saved steps with their times, and `takes`."""
    clock, saved, takes, step = Clock(), [], {"seconds": 3.0}, MLE.one_step

    def save(folder, checkpoint):
        clock.now += takes["seconds"]
        saved.append((checkpoint.step, clock.now))
        save_checkpoint(folder, checkpoint)

    def take(self, number):
        clock.now += 2.0
        return step(self, number)

    monkeypatch.setattr(agent, "time", clock)
    monkeypatch.setattr(agent, "save_checkpoint", save)
    monkeypatch.setattr(MLE, "one_step", take)
    return saved, takes


def tiny_run(folder, **options):
    env = gym.make("TextGen-v0", task="oracle(vocab_size=5, max_length=3, train_size=20, valid_size=5)")
    settings = {"embedding": 3, "hidden": 3, "schedule": ((100, 1e-2),), "early_stopping": False}
    return MLE(env, seed=0, folder=folder, progress=False, log=(), **settings, **options)


def test_saving_that_takes_long_takes_a_tenth_of_the_time(tmp_path, slow_saving):
    saved, takes = slow_saving
    tiny_run(tmp_path / "slow").learn(100)
    steps = [step for step, _ in saved]
    assert steps == [1, 15, 29, 43, 57, 71, 85, 99, 100]  # every 28 seconds of steps, and after the last step
    assert load_checkpoint(tmp_path / "slow", "mle").step == 100
    del saved[:]
    takes["seconds"] = 0.9
    tiny_run(tmp_path / "quick").learn(4)
    assert [step for step, _ in saved] == [1, 2, 3, 4, 4]


@pytest.mark.usefixtures("slow_saving")
def test_a_run_that_dies_between_slow_savings_goes_on_from_the_last_one(tmp_path):
    whole = tiny_run(tmp_path / "whole").learn(20)

    def die(local, _):
        if local["self"].steps_done == 18:
            raise MemoryError("enough")
        return True

    with pytest.raises(MemoryError):
        tiny_run(tmp_path / "died").learn(20, callback=die)
    again = tiny_run(tmp_path / "died")
    assert again.steps_done == 15
    again.learn(5)
    for mine, theirs in zip(again.policy.parameters(), whole.policy.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_checkpoint_is_read_while_a_run_replaces_it(tmp_path):
    """`text-gym sample` reads complete checkpoints of a run that is in progress."""
    stop = threading.Event()

    def write():
        for step in itertools.count(1):
            if stop.is_set():
                return
            save_checkpoint(tmp_path, Checkpoint("mine", step, {"step": step}, {"x": torch.full((9,), float(step))}))

    save_checkpoint(tmp_path, Checkpoint("mine", 0, {"step": 0}, {"x": torch.zeros(9)}))
    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(200):
            found = load_checkpoint(tmp_path, "mine")
            assert found.state == {"step": found.step}
            assert (found.tensors["x"] == found.step).all()
            read_state(tmp_path, "mine")
    finally:
        stop.set()
        writer.join()
    assert found.step > 0


@pytest.mark.parametrize("rows", [[1], {"progress.csv": -1}, {"progress.csv": "many"}, 7])
def test_a_damaged_number_of_rows_is_told(rows, tmp_path):
    env = gym.make("TextGen-v0", task="oracle(vocab_size=9, max_length=4, train_size=64, valid_size=9)")
    MLE(env, seed=0, folder=tmp_path, progress=False, hidden=4, embedding=4).learn(1)
    path = tmp_path / json.loads((tmp_path / "latest.json").read_text())["name"] / "state.json"
    saved = json.loads(path.read_text())
    saved["state"]["log_rows"] = rows
    path.write_text(json.dumps(saved))
    with pytest.raises(CheckpointError, match="damaged"):
        MLE(env, folder=tmp_path, progress=False, hidden=4, embedding=4)
