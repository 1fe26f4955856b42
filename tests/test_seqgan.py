"""SeqGAN: that it is Reinforce inside a loop, that the loop does what it says, and that it can be stopped anywhere."""

import os
import signal
import subprocess
import sys
import time

import gymnasium as gym
import numpy as np
import pytest
import torch

import text_gym
from agents import MLE, Reinforce, SeqGAN
from agents.discriminators import Discriminator
from agents.seqgan import PRESETS, SeqGANSettings
from text_gym.errors import OptionError

SMALL = {
    "embedding": 8,
    "hidden": 8,
    "rollouts": 2,
    "batch_size": 8,
    "filters": ((1, 4), (2, 4)),
    "discriminator_embedding": 4,
    "pretraining_passes": 2,
    "pretraining_epochs": 1,
    "pass_size": 64,
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
    ours = SeqGAN(env, **(SMALL | options), judge=judge, discriminator_passes=0).learn(3)
    rewarded = gym.make("TextGen-v0", task=env.unwrapped.task, reward=judge)
    theirs = Reinforce(rewarded, **options).learn(3)
    for mine, other in zip(ours.policy.parameters(), theirs.policy.parameters(), strict=True):
        assert (mine == other).all()


def test_a_round_updates_and_passes_as_often_as_told(env, monkeypatch):
    calls = []
    agent = SeqGAN(
        env, seed=0, **(SMALL | {"generator_steps": 3, "discriminator_passes": 2, "discriminator_epochs": 4})
    )
    train = Discriminator.train_epoch
    monkeypatch.setattr(agent, "update", lambda *_: calls.append("update"))

    def epoch(self, real, written, batch_size, generator):
        calls.append((len(real), len(written), hash(written.numpy().tobytes())))
        return train(self, real, written, batch_size, generator)

    monkeypatch.setattr(Discriminator, "train_epoch", epoch)
    agent.learn(0)
    assert len(calls) == 2 * 4
    calls.clear()
    agent.learn(1)
    assert calls[:3] == ["update"] * 3
    assert [c[:2] for c in calls[3:]] == [(64, 64)] * 8
    assert len({c[2] for c in calls[3:]}) == 2  # written anew for each pass


def test_what_is_given_is_not_trained_again(env, tmp_path):
    start = MLE(env, seed=0, embedding=8, hidden=8, progress=False).learn(1)
    agent = SeqGAN(env, seed=1, start=start, folder=tmp_path, **SMALL).learn(0)
    assert not (tmp_path / "pretraining").exists()
    assert (agent.sample(9, seed=0).tokens == start.sample(9, seed=0).tokens).all()
    again = SeqGAN(env, seed=2, start=start, judge=agent.discriminator, **SMALL)
    before = numbers_of(again)
    assert (numbers_of(again.learn(0)) == before).all()
    assert (numbers_of(again.learn(1)) != before).any()
    assert (numbers_of(again) != numbers_of(agent)).any()
    assert agent.discriminator.score(agent.sample(3)).shape == (3,)


def test_it_reports_how_the_discriminator_does_on_sequences_it_has_not_learned_from(env):
    agent, seen = SeqGAN(env, seed=0, **SMALL), {}
    agent.learn(2, callback=lambda variables, _: seen.update(agent.logger.name_to_value) or True)
    task = env.unwrapped.task
    right = agent.discriminator.judge(agent.discriminator.rows(task.batch("valid")))
    assert seen["discriminator/right_on_real"] == pytest.approx(right)
    assert seen["discriminator/accuracy"] == pytest.approx((right + seen["discriminator/right_on_written"]) / 2)
    assert {"train/reward", "train/entropy", "discriminator/loss"} <= seen.keys()


@pytest.mark.parametrize("settings", [{}, {"kl_weight": 0.1, "rollout_rate": 0.5, "discriminator": "recurrent"}])
def test_a_resumed_run_equals_an_uninterrupted_one(env, tmp_path, settings):
    whole = SeqGAN(env, seed=3, folder=tmp_path / "whole", **SMALL, **settings).learn()
    SeqGAN(env, seed=3, folder=tmp_path / "parts", **SMALL, **settings).learn(0)
    for _ in range(3):
        parts = SeqGAN(env, seed=3, folder=tmp_path / "parts", **SMALL, **settings).learn(1)
    assert (numbers_of(parts) == numbers_of(whole)).all()
    loaded = SeqGAN.load(tmp_path / "whole", env)
    assert (numbers_of(loaded.learn(1)) == numbers_of(parts.learn(1))).all()


PROGRAM = """
import sys, gymnasium as gym, text_gym
from agents.seqgan import SeqGAN
env = gym.make("TextGen-v0", task=text_gym.make_task("grammar", train_size=400, valid_size=100, test_size=100))
agent = SeqGAN(env, seed=5, preset="demo", folder=sys.argv[1], progress=False, embedding=8, hidden=8, threads=1,
               rounds=3, pretraining_passes=3, pretraining_epochs=3, rollouts=1, batch_size=16).learn()
print(agent.steps_done, repr(float(agent.log_prob(agent.sample(9, seed=0).tokens).sum())), agent.sample(3).texts)
"""


def test_a_run_that_is_killed_in_every_phase_comes_to_the_same_numbers(tmp_path):
    """SIGKILL whenever something new has been saved: by the pretraining, by a pass, or by a round."""
    command = [sys.executable, "-c", PROGRAM]
    whole = subprocess.run([*command, tmp_path / "whole"], capture_output=True, text=True, check=True).stdout
    folder = tmp_path / "killed"
    marks = [folder / "pretraining" / "latest.json", folder / "latest.json"]

    def seen():
        return [mark.read_text() if mark.exists() else "" for mark in marks]

    phases = []
    for kill in range(5):
        before = seen()
        process = subprocess.Popen([*command, folder], stdout=subprocess.PIPE, text=True)
        while process.poll() is None and seen() == before:
            time.sleep(0.001)
        time.sleep(0.02 * kill)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        phases.append([now != old for now, old in zip(seen(), before, strict=True)])
    assert any(first for first, _ in phases)
    assert any(second for _, second in phases)
    done = subprocess.run([*command, folder], capture_output=True, text=True, check=True)
    assert done.stdout == whole


def test_conditional_seqgan_raises_what_its_discriminator_says():
    """Prompts and answers: the discriminator sees both, and a fixed one is an optimum to climb to."""
    env = gym.make("TextGen-v0", task=text_gym.make_task("answers", size=100))
    agent = SeqGAN(
        env, seed=0, progress=False, embedding=16, hidden=32, rollouts=0, batch_size=64, learning_rate=1e-2,
        filters=((1, 32), (2, 32), (4, 32)), discriminator_learning_rate=3e-3, pretraining_epochs=10,
        pretraining_passes=5, generator_steps=40, discriminator_passes=0, discriminator_l2=0.0,
    )  # fmt: skip
    agent.learn(0)
    before = agent.discriminator.score(agent.sample(400, seed=0))
    agent.learn(1)
    after = agent.discriminator.score(agent.sample(400, seed=0))
    assert after.mean() - before.mean() > 5 * (before.std() + after.std()) / 20


def test_the_published_schedule():
    settings = SeqGANSettings(**PRESETS["paper"])
    assert (settings.rounds, settings.generator_steps, settings.discriminator_passes) == (200, 1, 5)
    assert (settings.discriminator_epochs, settings.pretraining_passes, settings.rollouts) == (3, 50, 16)
    assert (settings.baseline, settings.loss, settings.batch_size, settings.learning_rate) == ("none", "sum", 64, 0.01)
    assert (settings.embedding, settings.hidden, settings.rollout_rate) == (32, 32, None)
    assert (settings.discriminator_learning_rate, settings.discriminator_l2) == (1e-4, 0.2)
    assert (settings.discriminator_dropout, settings.discriminator_embedding) == (0.25, 64)
    assert sum(count for _, count in settings.filters) == 1720


def test_mistakes_are_told(env):
    for settings, words in [
        ({"discriminator": "cmn"}, "Did you mean 'cnn'"),
        ({"reward_form": "odds"}, "reward_form 'odds'"),
        ({"pretraining": "papre"}, "Did you mean 'paper'"),
        ({"filters": ((2, 3),)}, "width 1"),
        ({"filters": 3}, "pairs of a width"),
        ({"discriminator_dropout": 1}, "discriminator_dropout"),
        ({"discriminator_learning_rate": 0}, "discriminator_learning_rate"),
        ({"discriminator_l2": -1}, "discriminator_l2"),
        ({"pass_size": 0}, "pass_size"),
        ({"pretraining_epochs": -1}, "pretraining_epochs"),
    ]:
        with pytest.raises(OptionError, match=words):
            SeqGANSettings(**settings)
    with pytest.raises(OptionError, match="no sequences for the discriminator"):
        SeqGAN(gym.make("TextGen-v0", task="grammar(train_size=0)"), reward_form="logit")
    judge = SeqGAN(env, seed=0, **SMALL).discriminator
    with pytest.raises(OptionError, match="another kind or size"):
        SeqGAN(env, seed=0, **(SMALL | {"filters": ((1, 9),)}), judge=judge)


@pytest.mark.parametrize("policy", ["lstm", "transformer"])
def test_any_policy_and_any_discriminator_go_together(env, policy):
    for kind in ("cnn", "recurrent", "transformer"):
        settings = SMALL | {"policy": policy, "discriminator": kind, "discriminator_hidden": 4, "embedding": 8}
        agent = SeqGAN(env, seed=0, **settings).learn(1)
        assert np.isfinite(agent.log_prob(agent.sample(4).tokens)).all()
