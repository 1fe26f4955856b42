"""Minibatches of whole environments, and the sequences of a rollout, both with labelled values."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback

from agents.sb3.buffers import DictSequenceRolloutBuffer, SequenceRolloutBuffer, rollout_sequences
from agents.sb3.vec_env import TextGenVecEnv

STEPS, NUM_ENVS, SIZE, LENGTH = 5, 4, 9, 3
PREFIX = spaces.Box(0, SIZE, (LENGTH,), np.int64)
ORACLE = "oracle(vocab_size=9, max_length=4)"


def envs_of(**options):
    return TextGenVecEnv(gym.make_vec("TextGen-v0", num_envs=NUM_ENVS, autoreset_mode="SameStep", **options))


# Minibatches.


def buffers(prompted, masked):
    """Buffer classes of text_gym and of Stable-Baselines3, and their kind of observations."""
    space = spaces.Dict({"prompt": PREFIX, "prefix": PREFIX}) if prompted else PREFIX
    if not masked:
        if prompted:
            return DictSequenceRolloutBuffer, DictRolloutBuffer, space
        return SequenceRolloutBuffer, RolloutBuffer, space
    theirs = pytest.importorskip("sb3_contrib.common.maskable.buffers")
    from agents.sb3 import maskable as ours

    if prompted:
        return ours.MaskableDictSequenceRolloutBuffer, theirs.MaskableDictRolloutBuffer, space
    return ours.MaskableSequenceRolloutBuffer, theirs.MaskableRolloutBuffer, space


def filled(kind, space):
    """A buffer with labelled values: environment and step before the decimal point, the field after it."""
    buffer = kind(STEPS, space, spaces.Discrete(SIZE), n_envs=NUM_ENVS)
    buffer.reset()
    for step in range(STEPS):
        label = 10 * np.arange(NUM_ENVS) + step
        rows = np.repeat(label[:, None], LENGTH, axis=1)
        observation = {"prompt": rows + 1000, "prefix": rows} if isinstance(space, spaces.Dict) else rows
        masks = {"action_masks": np.repeat(label[:, None] % 2, SIZE, axis=1)} if "Mask" in str(kind.__mro__) else {}
        floats = torch.tensor(label, dtype=torch.float32)
        buffer.add(observation, label[:, None], label + 0.25, np.zeros(NUM_ENVS), floats + 0.5, floats + 0.125, **masks)
    buffer.compute_returns_and_advantage(torch.zeros(NUM_ENVS), np.ones(NUM_ENVS))
    buffer.advantages[:] = buffer.values + 2000
    buffer.returns[:] = buffer.values + 3000
    return buffer


def rows_of(sample):
    """Return one row per transition, with all of its fields as numbers."""
    parts = [sample.observations] if torch.is_tensor(sample.observations) else [*sample.observations.values()]
    parts += sample[1:]
    return [tuple(row) for row in torch.cat([part.reshape(len(part), -1).double() for part in parts], dim=1).tolist()]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("prompted", [False, True])
@pytest.mark.parametrize(("size", "envs_each"), [(None, [4]), (1, [1] * 4), (10, [2, 2]), (19, [3, 1]), (64, [4])])
def test_minibatches_hold_whole_environments_and_each_transition_once(prompted, masked, size, envs_each):
    ours, theirs, space = buffers(prompted, masked)
    everything = sorted(row for sample in filled(theirs, space).get(7) for row in rows_of(sample))
    assert len(set(everything)) == STEPS * NUM_ENVS
    buffer = filled(ours, space)
    orders = []
    for _ in range(4):  # epochs
        samples = list(buffer.get(size))
        assert sorted(row for sample in samples for row in rows_of(sample)) == everything
        assert [len(sample.actions) // STEPS for sample in samples] == envs_each
        for sample in samples:
            of_envs = sample.actions[:, 0].long().view(-1, STEPS)
            assert (of_envs % 10 == torch.arange(STEPS)).all()
            assert (of_envs // 10 == of_envs[:, :1] // 10).all()
        orders.append([row for sample in samples for row in rows_of(sample)])
    assert any(order != orders[0] for order in orders)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("prompted", [False, True])
def test_a_buffer_that_is_filled_again_gives_what_is_new(prompted, masked):
    ours, _, space = buffers(prompted, masked)
    buffer = filled(ours, space)
    list(buffer.get(10))
    buffer.reset()
    with pytest.raises(AssertionError):
        list(buffer.get(10))


# The sequences of a rollout.


class Told(BaseCallback):
    """Record the tokens of each environment, and compare them with rollout_sequences()."""

    def __init__(self, pad):
        super().__init__()
        self.pad, self.episodes, self.begins, self.cut, self.old = pad, None, [], 0, 0

    def _on_rollout_start(self):
        if self.episodes is None:
            self.episodes = [[[]] for _ in range(NUM_ENVS)]  # a list of episodes per environment, each a list of tokens
            self.prompts = [[] for _ in range(NUM_ENVS)]
        self.at = []

    def _on_step(self):
        now = []
        observation = self.locals["obs_tensor"]
        for env, (action, done) in enumerate(zip(self.locals["actions"], self.locals["dones"], strict=True)):
            episode = self.episodes[env][-1]
            prompt = observation["prompt"][env].numpy() if isinstance(observation, dict) else None
            now.append((episode, len(episode), prompt))
            episode.append(int(action))
            if done:
                self.episodes[env].append([])
        self.at.append(now)
        return True

    def _on_rollout_end(self):
        found = rollout_sequences(self.model.rollout_buffer, self.pad)
        assert found.rows.shape == found.positions.shape == (len(self.at), NUM_ENVS)
        assert found.tokens.dtype == np.int64
        assert (found.prompts is None) == (self.at[0][0][2] is None)
        assert sorted(set(found.rows.ravel().tolist())) == list(range(len(found.tokens)))
        for step, envs in enumerate(self.at):
            for env, (episode, place, prompt) in enumerate(envs):
                row = found.rows[step, env]
                assert [t for t in found.tokens[row].tolist() if t != self.pad] == episode
                assert (found.tokens[row, len(episode) :] == self.pad).all()
                assert found.positions[step, env] == place
                if prompt is not None:
                    assert (found.prompts[row] == prompt).all()
        self.old += sum(place > 0 for _, place, _ in self.at[0])
        self.cut += sum(bool(episodes[-1]) for episodes in self.episodes)


@pytest.mark.parametrize("task", ["grammar", "answers"])
def test_rollout_sequences_are_what_each_environment_generated(task):
    """Episodes of different lengths, some of which start before the rollout or end after it."""
    size = len(gym.make("TextGen-v0", task=task).unwrapped.task.vocab)
    envs = envs_of(task=task)
    policy = "MlpPolicy" if task == "grammar" else "MultiInputPolicy"
    model = PPO(policy, envs, seed=0, n_steps=11, batch_size=44, n_epochs=1)
    with torch.no_grad():
        model.policy.action_net.bias[0] = math.log(size / 4)  # EOS has probability 1/5
    told = Told(size)
    model.learn(44 * 4, callback=told)
    lengths = {len(episode) for envs in told.episodes for episode in envs[:-1]}
    assert len(lengths) > 3
    assert told.cut > 3
    assert told.old > 3
