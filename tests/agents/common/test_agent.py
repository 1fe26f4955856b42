"""What an agent says of itself."""

import re

import gymnasium as gym
import pytest

import text_gym  # noqa: F401
from agents import MLE, PPO, Agent, Reinforce, ScheduledSampling, SeqGAN

TINY = {"schedule": ((1, 1e-2),), "embedding": 8, "hidden": 8}


@pytest.fixture(scope="module")
def env():
    return gym.make("TextGen-v0", task="oracle", vocab_size=9, max_length=4, train_size=32, valid_size=8, test_size=8)


def test_an_agent_says_what_it_is_before_and_after_it_learned(env, tmp_path):
    agent = MLE(env, seed=3, folder=tmp_path / "mle", progress=False, device="cpu", **TINY)
    size = 9 * 8 + 4 * 8 * (8 + 8 + 2) + (8 + 1) * 9  # embedding, gates with two biases each, output
    before = (
        f"MLE(task='oracle', steps_done=0, seed=3, policy=LSTM with {size} parameters, folder={str(agent.folder)!r})"
    )
    assert repr(agent) == before
    agent.learn()
    assert repr(agent) == before.replace("steps_done=0", "steps_done=1")
    loaded = MLE.load(tmp_path / "mle", env, progress=False)
    assert repr(loaded) == before.replace("steps_done=0", "steps_done=1").partition(", folder=")[0] + ")"


@pytest.mark.parametrize("agent_class", [ScheduledSampling, Reinforce, SeqGAN, PPO])
def test_an_agent_names_its_preset(env, agent_class):
    name, policy = agent_class.__name__, r"policy=\w+ with [\d,]+ parameters"
    shown = repr(agent_class(env, seed=0, preset="demo", device="cpu"))
    assert re.fullmatch(rf"{name}\(task='oracle', steps_done=0, seed=0, {policy}, preset='demo'\)", shown)


def test_an_agent_that_is_being_built_can_be_shown(env):
    class Asks(Agent):
        def build(self):
            seen.append(repr(self))
            raise RuntimeError("enough")

        def one_step(self, step):
            """Never called."""

    seen = []
    with pytest.raises(RuntimeError, match="enough"):
        Asks(env, seed=1, device="cpu")
    assert seen == ["Asks(task='oracle', steps_done=0, seed=1)"]


def test_a_discriminator_says_what_it_reads(env):
    agent = SeqGAN(env, seed=0, preset="demo", device="cpu")
    assert repr(agent.discriminator) == "Discriminator('cnn', task='oracle')"
