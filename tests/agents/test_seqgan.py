"""SeqGAN: its generator update equals Reinforce, its loop follows Algorithm 1, and it resumes from any checkpoint."""

import csv
import json
import os
import signal
import time

import gymnasium as gym
import numpy as np
import pytest
import torch

import text_gym
from agents import MLE, Reinforce, SeqGAN
from agents.common.checkpoint import CheckpointError
from agents.mle import PRESETS as MLE_PRESETS
from agents.networks.discriminators import Discriminator
from tests.helpers.programs import Program, run
from text_gym.errors import OptionError
from text_gym.sequences import Batch, Sequences

SMALL = {
    "embedding": 8,
    "hidden": 8,
    "rollouts": 2,
    "batch_size": 8,
    "discriminator": {"filters": ((1, 4), (2, 4)), "embedding": 4},
    "pretrain_d_steps": 2,
    "pretrain_epochs": 1,
    "d_samples": 64,
    "rounds": 3,
    "progress": False,
}


@pytest.fixture(scope="module")
def env():
    return gym.make("TextGen-v0", task=text_gym.make_task("grammar", train_size=200, valid_size=50, test_size=50))


def numbers_of(agent):
    parts = [p.detach().flatten() for p in agent.policy.parameters()]
    return torch.cat(parts + [p.detach().flatten() for p in agent.discriminator.network.parameters()])


def test_without_its_loop_it_is_reinforce_on_the_discriminator(env):
    start = MLE(env, seed=0, embedding=8, hidden=8, progress=False).learn(1)
    judge = SeqGAN(env, seed=1, **SMALL).learn(0).discriminator
    options = {"seed": 2, "start": start, "rollouts": 2, "batch_size": 8, "progress": False}
    ours = SeqGAN(env, **(SMALL | options), start_discriminator=judge, d_steps=0).learn(3)
    rewarded = gym.make("TextGen-v0", task=env.unwrapped.task, reward=judge)
    theirs = Reinforce(rewarded, **options).learn(3)
    for mine, other in zip(ours.policy.parameters(), theirs.policy.parameters(), strict=True):
        assert (mine == other).all()


def test_a_round_updates_and_passes_as_often_as_told(env, monkeypatch):
    calls = []
    agent = SeqGAN(env, seed=0, **(SMALL | {"g_steps": 3, "d_steps": 2, "d_epochs": 4}))
    train = Discriminator.train_epoch
    monkeypatch.setattr(agent, "update", lambda *_: calls.append("update"))

    def epoch(self, real, written, generator):
        calls.append((len(real), len(written), hash(written.numpy().tobytes())))
        return train(self, real, written, generator)

    monkeypatch.setattr(Discriminator, "train_epoch", epoch)
    agent.learn(0)
    assert len(calls) == 2 * 4
    calls.clear()
    agent.learn(1)
    assert calls[:3] == ["update"] * 3
    assert [c[:2] for c in calls[3:]] == [(64, 64)] * 8
    assert len({c[2] for c in calls[3:]}) == 2  # newly generated for each update


def test_what_is_given_is_not_trained_again(env, tmp_path):
    start = MLE(env, seed=0, embedding=8, hidden=8, progress=False).learn(1)
    agent = SeqGAN(env, seed=1, start=start, folder=tmp_path, **SMALL).learn(0)
    assert not (tmp_path / "pretraining").exists()
    assert (agent.sample(9, seed=0).tokens == start.sample(9, seed=0).tokens).all()
    again = SeqGAN(env, seed=2, start=start, start_discriminator=agent.discriminator, **SMALL)
    before = numbers_of(again)
    assert (numbers_of(again.learn(0)) == before).all()
    assert (numbers_of(again.learn(1)) != before).any()
    assert (numbers_of(again) != numbers_of(agent)).any()
    assert agent.discriminator.score(agent.sample(3)).shape == (3,)


def test_it_reports_how_the_discriminator_does_on_sequences_it_has_not_learned_from(env):
    agent, seen = SeqGAN(env, seed=0, **SMALL), {}
    agent.learn(2, callback=lambda *_: seen.update(agent.logger.name_to_value) or True)
    task = env.unwrapped.task
    right = agent.discriminator.share_real(agent.discriminator.rows(task.batch("valid")))
    assert seen["discriminator/right_on_real"] == pytest.approx(right)
    assert seen["discriminator/accuracy"] == pytest.approx((right + seen["discriminator/right_on_written"]) / 2)
    assert {"train/reward", "train/entropy", "discriminator/loss"} <= seen.keys()
    assert seen["train/kl_to_start"] > 0  # the divergence from the pretrained policy, in the second round
    assert seen["train/kl_weight"] == 0


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {
            "kl": {"weight": 0.1, "target": 0.01},
            "rollout_ema_rate": 0.5,
            "discriminator": {"kind": "recurrent", "embedding": 4},
            "baseline": "critic",
        },
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(env, tmp_path, settings):
    whole = SeqGAN(env, seed=3, folder=tmp_path / "whole", **(SMALL | settings)).learn()
    SeqGAN(env, seed=3, folder=tmp_path / "parts", **(SMALL | settings)).learn(0)
    for _ in range(3):
        parts = SeqGAN(env, seed=3, folder=tmp_path / "parts", **(SMALL | settings)).learn(1)
    assert (numbers_of(parts) == numbers_of(whole)).all()
    loaded = SeqGAN.load(tmp_path / "whole", env)
    assert (numbers_of(loaded.learn(1)) == numbers_of(parts.learn(1))).all()


PROGRAM = """
import sys, gymnasium as gym, text_gym
from agents.seqgan import SeqGAN
env = gym.make("TextGen-v0", task=text_gym.make_task("grammar", train_size=400, valid_size=100, test_size=100))
agent = SeqGAN(env, seed=5, preset="demo", folder=sys.argv[1], progress=False, embedding=8, hidden=8, threads=1,
               pretrain_epochs=3, pretrain_d_steps=3, d_samples=400,
               rounds=3, g_steps=1, rollouts=1, batch_size=16).learn()
print(agent.steps_done, repr(float(agent.log_prob(agent.sample(9, seed=0).tokens).sum())), agent.sample(3).texts)
"""


def how_far(folder):
    """Return the numbers of saved pretraining epochs, discriminator updates and rounds."""
    epochs, passes, rounds = 0, 0, 0
    for part in (folder / "pretraining", folder):
        if (part / "latest.json").exists():
            name = json.loads((part / "latest.json").read_text())["name"]
            try:
                saved = json.loads((part / name / "state.json").read_text())
            except FileNotFoundError:  # the run replaced it in the meantime
                return how_far(folder)
            if part == folder:
                passes, rounds = saved["state"]["trained"]["d_steps_pretrained"], saved["step"]
            else:
                epochs = saved["step"]
    return epochs, passes, rounds


def test_a_run_that_is_killed_in_every_phase_comes_to_the_same_numbers(tmp_path):
    """Kill the run after each new checkpoint of a pretraining epoch, a discriminator update or a round."""
    whole = run(PROGRAM, tmp_path / "whole")
    folder, kills = tmp_path / "killed", []
    while len(kills) < 6:
        before = how_far(folder)
        process = Program(PROGRAM, folder)
        while process.poll() is None and how_far(folder) == before:
            time.sleep(0.005)
        time.sleep(0.02 * (len(kills) % 3))
        process.kill()
        kills.append(how_far(folder))
    assert {tuple(number > 0 for number in kill) for kill in kills} >= {(True, False, False), (True, True, False)}
    assert run(PROGRAM, folder) == whole


def same_run(env, folder, **settings):
    return SeqGAN(env, seed=4, folder=folder, **(SMALL | settings))


def test_a_pretraining_that_ended_early_and_was_killed_then_still_gives_the_best_weights(env, tmp_path, monkeypatch):
    settings = {"pretrain_preset": "demo", "pretrain_epochs": 40, "hidden": 16, "embedding": 16}
    monkeypatch.setitem(MLE_PRESETS, "demo", {"schedule": ((40, 0.1),), "patience": 2, "dropout": 0.0})
    whole = same_run(env, tmp_path / "whole", **settings).learn(1)

    def killed(self):
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(MLE, "end_learning", killed)
        with pytest.raises(MemoryError):
            same_run(env, tmp_path / "killed", **settings).learn(1)
    resumed = same_run(env, tmp_path / "killed", **settings).learn(1)
    epochs = [MLE.load(tmp_path / name / "pretraining", env).steps_done for name in ("whole", "killed")]
    assert epochs[0] == epochs[1] < 40
    assert (numbers_of(resumed) == numbers_of(whole)).all()


def test_without_a_seed_a_run_killed_in_its_pretraining_goes_on_all_the_same(env, tmp_path, monkeypatch):
    def killed(self):
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(MLE, "end_learning", killed)
        with pytest.raises(MemoryError):
            SeqGAN(env, folder=tmp_path, **SMALL).learn()
    assert SeqGAN(env, folder=tmp_path, **SMALL).learn().steps_done == 3
    with pytest.raises(CheckpointError, match="the settings of the run"):
        SeqGAN(env, folder=tmp_path, **(SMALL | {"rollouts": 5}))


def test_ctrl_c_in_the_discriminators_pretraining_ends_after_the_pass(env, tmp_path, monkeypatch):
    whole = same_run(env, tmp_path / "whole").learn()
    agent = same_run(env, tmp_path / "parts")
    train = Discriminator.train_epoch

    def interrupt(self, *arguments):
        if not agent.d_steps_pretrained:
            os.kill(os.getpid(), signal.SIGINT)
        return train(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Discriminator, "train_epoch", interrupt)
        with pytest.raises(KeyboardInterrupt):
            agent.learn()
    assert (agent.d_steps_pretrained, agent.steps_done) == (1, 0)
    assert (numbers_of(agent.learn()) == numbers_of(whole)).all()
    assert (numbers_of(same_run(env, tmp_path / "parts")) == numbers_of(whole)).all()


def test_its_pretraining_is_logged_apart_from_its_rounds(env, tmp_path):
    same_run(env, tmp_path, d_steps=0).learn(1)
    with (tmp_path / "progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["pretraining/pass"] for row in rows] == ["1", "2", ""]
    assert all(row["pretraining/accuracy"] for row in rows[:2])
    assert "discriminator/accuracy" not in rows[0]
    assert (tmp_path / "pretraining" / "progress.csv").exists()


def test_a_run_that_goes_on_keeps_the_curves_it_had(env, tmp_path, monkeypatch):
    agent = same_run(env, tmp_path)
    save = agent.checkpoint
    monkeypatch.setattr(agent, "checkpoint", lambda: save() if agent.d_steps_pretrained < 2 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        agent.learn()
    same_run(env, tmp_path).learn()
    with (tmp_path / "progress.csv").open() as file:
        assert [row["pretraining/pass"] for row in csv.DictReader(file)] == ["1", "2", "", "", ""]


def test_over_several_passes_all_real_sequences_are_seen(env, monkeypatch):
    seen, seeds, train = set(), [], Discriminator.train_epoch

    def watch(self, real, *arguments):
        seen.update(map(tuple, real.tolist()))
        seeds.append(torch.initial_seed())
        return train(self, real, *arguments)

    monkeypatch.setattr(Discriminator, "train_epoch", watch)
    agent = SeqGAN(env, seed=0, **(SMALL | {"pretrain_d_steps": 20})).learn(0)
    everything = set(map(tuple, agent.discriminator.rows(env.unwrapped.task.batch("train")).tolist()))
    assert len(seen) > 0.95 * len(everything)
    assert len(set(seeds)) == 20  # and dropout differs


def test_a_perfect_policy_leaves_the_discriminator_nothing_to_learn(write):
    """Real and generated sequences have the same prompts, however many references a prompt has."""
    lines = [{"prompt": f"q{i}", "references": [f"r{j}" for j in range(8 if i < 4 else 1)]} for i in range(12)]
    path = write("uneven.jsonl", "\n".join(map(json.dumps, lines)))
    env = gym.make("TextGen-v0", task=str(path), valid=0.0, test=0.0, min_count=1)
    filters = {"filters": ((1, 16), (3, 32))}
    agent = SeqGAN(env, seed=0, pretrain_epochs=0, pretrain_d_steps=0, discriminator=filters, progress=False)
    random = np.random.default_rng(0)

    def perfect(n, generator, examples):
        chosen = [list(e.references[random.integers(len(e.references))]) for e in examples]
        tokens, lengths = Sequences.from_lists(chosen).padded(agent.rules.limit, agent.task.vocab.pad, agent.rules.eos)
        return Batch(tokens, lengths, agent.task.vocab, examples)

    agent.generate = perfect
    for step in range(150):
        agent.update_discriminator(np.random.default_rng(step))
    real = agent.task.batch("train")
    scores, many = agent.discriminator.score(real), np.array([len(e.references) > 1 for e in real.examples])
    assert abs(scores[many].mean() - scores[~many].mean()) < 0.15


def test_prompts_without_a_validation_split(write):
    lines = [{"prompt": f"q{i}", "references": [f"r{i}"]} for i in range(12)]
    path = write("few.jsonl", "\n".join(map(json.dumps, lines)))
    env = gym.make("TextGen-v0", task=str(path), valid=0.0, test=0.0)
    agent, seen = SeqGAN(env, seed=0, **SMALL), {}
    agent.learn(1, callback=lambda *_: seen.update(agent.logger.name_to_value) or True)
    assert "discriminator/right_on_written" in seen
    assert "discriminator/accuracy" not in seen


def test_conditional_seqgan_raises_what_its_discriminator_says():
    """The discriminator reads prompt and answer, and the policy can maximise the reward of a fixed discriminator."""
    env = gym.make("TextGen-v0", task=text_gym.make_task("answers", size=100))
    agent = SeqGAN(
        env, seed=0, progress=False, embedding=16, hidden=32, rollouts=0, batch_size=64, learning_rate=1e-2,
        discriminator={"filters": ((1, 32), (2, 32), (4, 32)), "learning_rate": 3e-3, "l2": 0.0},
        pretrain_epochs=10, pretrain_d_steps=5, g_steps=40, d_steps=0,
    )  # fmt: skip
    agent.learn(0)
    before = agent.discriminator.score(agent.sample(400, seed=0))
    agent.learn(1)
    after = agent.discriminator.score(agent.sample(400, seed=0))
    assert after.mean() - before.mean() > 5 * (before.std() + after.std()) / 20


def test_the_published_schedule():
    settings = SeqGAN.choose_settings("paper")
    discriminator = settings.discriminator
    assert (settings.rounds, settings.g_steps, settings.d_steps) == (200, 1, 5)
    assert (settings.d_epochs, settings.pretrain_d_steps, settings.rollouts) == (3, 50, 16)
    assert (settings.baseline, settings.loss, settings.batch_size, settings.learning_rate) == ("none", "sum", 64, 0.01)
    assert (settings.embedding, settings.hidden, settings.rollout_ema_rate) == (32, 32, None)
    assert (discriminator.learning_rate, discriminator.l2) == (1e-4, 0.2)
    assert (discriminator.dropout, discriminator.embedding) == (0.25, 64)
    assert sum(count for _, count in discriminator.filters) == 1720


def test_mistakes_are_told(env):
    for settings, words in [
        ({"discriminator": "cmn"}, "Did you mean 'cnn'"),
        ({"discriminator": {"reward": "odds"}}, "discriminator.reward 'odds'"),
        ({"pretrain_preset": "papre"}, "Did you mean 'paper'"),
        ({"discriminator": {"filters": ((2, 3),)}}, "width 1"),
        ({"discriminator": {"filters": 3}}, "is not a sequence of"),
        ({"pretrain_preset": 3}, "not a preset of mle"),
        ({"discriminator": {"bfloat16": "no"}}, "discriminator.bfloat16"),
        ({"discriminator": {"kind": "transformer", "embedding": 6}}, "multiple of 4"),
        ({"discriminator": {"dropout": 1}}, "discriminator.dropout"),
        ({"discriminator": {"learning_rate": 0}}, "discriminator.learning_rate"),
        ({"discriminator": {"l2": -1}}, "discriminator.l2"),
        ({"d_samples": 0}, "d_samples"),
        ({"discriminator": {"droput": 0}}, "no hyperparameter 'discriminator.droput'. Did you mean 'dropout'"),
        ({"discriminator": 3}, "group of hyperparameters discriminator, and 3 is not a dict"),
        ({"pretrain_epochs": -1}, "pretrain_epochs"),
    ]:
        with pytest.raises(OptionError, match=words):
            SeqGAN.choose_settings(**settings)
    with pytest.raises(OptionError, match=r"the discriminator needs real sequences.*'train' split"):
        SeqGAN(gym.make("TextGen-v0", task="grammar(train_size=0)"))
    with pytest.raises(OptionError, match=r"give max_length=5 to make_task\(\)"):
        SeqGAN(gym.make("TextGen-v0", task=env.unwrapped.task, max_length=5), seed=0, **SMALL)
    with pytest.raises(OptionError, match="start='mle' is not an agent"):
        SeqGAN(env, start="mle")
    judge = SeqGAN(env, seed=0, **SMALL).discriminator
    with pytest.raises(OptionError, match="another kind or size"):
        SeqGAN(env, seed=0, **(SMALL | {"discriminator": {"filters": ((1, 9),)}}), start_discriminator=judge)


@pytest.mark.parametrize("policy", ["lstm", "transformer"])
def test_any_policy_and_any_discriminator_go_together(env, policy):
    for kind in ("cnn", "recurrent", "transformer"):
        settings = SMALL | {"policy": policy, "discriminator": {"kind": kind, "embedding": 4, "hidden": 4}}
        agent = SeqGAN(env, seed=0, **settings).learn(1)
        assert np.isfinite(agent.log_prob(agent.sample(4).tokens)).all()
