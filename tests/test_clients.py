"""Other people's libraries with the environment unchanged, each where it is installed: the table of docs/clients.md."""

import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import FlattenObservation, HumanRendering, RecordEpisodeStatistics, RecordVideo
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.vec_env import VecVideoRecorder

import agents
from agents.sb3.actor_critic import TextPolicy
from agents.sb3.vec_env import TextGenVecEnv
from text_gym.errors import OptionError

TASK = "oracle(vocab_size=9, max_length=4, train_size=64, valid_size=9)"
ASKED = "answers(size=60)"
FORMS = ("tokens", "float", "one_hot")


def make(**options):
    return gym.make("TextGen-v0", **{"task": TASK, "reward": "random", **options})


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("task", [TASK, ASKED])
def test_gymnasiums_and_stable_baselines3s_checkers(task, form, recwarn):
    for mode in (None, "ansi", "rgb_array"):
        env = make(task=task, observation=form, render_mode=mode)
        check_env(env.unwrapped)
        sb3_check_env(env)


def test_gymnasiums_wrappers():
    env = RecordEpisodeStatistics(FlattenObservation(make(task=ASKED, observation="float")))
    observation, _ = env.reset(seed=0)
    assert observation in env.observation_space
    assert observation.ndim == 1
    done = False
    while not done:
        _, _, done, _, info = env.step(1)
    assert info["episode"]["l"] == info["length"]


def test_videos_are_recorded(tmp_path, recwarn):
    pytest.importorskip("moviepy")
    env = RecordVideo(make(render_mode="rgb_array"), str(tmp_path), episode_trigger=lambda _: True)
    env.reset(seed=0)
    for _ in range(4):
        env.step(1)
    env.close()
    (video,) = tmp_path.glob("*.mp4")
    assert video.stat().st_size > 0


def test_windows_show_frames(monkeypatch, recwarn):
    pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    env = HumanRendering(make(render_mode="rgb_array"))
    env.reset(seed=0)
    env.step(1)
    env.close()


def test_a_frame_without_pillow_says_what_to_install(monkeypatch):
    env = make(render_mode="rgb_array")
    env.reset()
    monkeypatch.setitem(sys.modules, "PIL.ImageDraw", None)
    with pytest.raises(ImportError, match=r"pip install 'text-gym\[render\]'"):
        env.render()


class QNetwork(torch.nn.Module):
    """CleanRL's, of dqn.py and c51.py."""

    def __init__(self, envs):
        super().__init__()
        size = int(np.array(envs.single_observation_space.shape).prod())
        actions = int(envs.single_action_space.n)
        self.network = torch.nn.Sequential(torch.nn.Linear(size, 8), torch.nn.Linear(8, actions))

    def forward(self, x):
        return self.network(x)


@pytest.mark.parametrize("form", ["float", "one_hot"])
def test_a_loop_as_cleanrls_dqn(form):
    """Observations go from a replay buffer into a linear layer, as they are."""
    envs = gym.vector.SyncVectorEnv(
        [lambda: RecordEpisodeStatistics(make(observation=form))], autoreset_mode=gym.vector.AutoresetMode.SAME_STEP
    )
    network = QNetwork(envs)
    buffer = ReplayBuffer(20, envs.single_observation_space, envs.single_action_space, "cpu")
    observations, _ = envs.reset(seed=1)
    for _ in range(20):
        actions = torch.argmax(network(torch.Tensor(observations)), dim=1).numpy()
        following, rewards, terminated, _, infos = envs.step(actions)
        real = following.copy()
        for i in np.flatnonzero(terminated):
            real[i] = infos["final_obs"][i]
        buffer.add(observations, real, actions[:, None], rewards, terminated, [infos])
        observations = following
    data = buffer.sample(8)
    values = network(data.observations).gather(1, data.actions)[:, 0]
    loss = (network(data.next_observations).max(dim=1).values - values).sum()
    loss.backward()
    assert network.network[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("form", FORMS)
def test_stable_baselines3(form, tmp_path, recwarn):
    model = DQN("MlpPolicy", make(observation=form), learning_starts=4, buffer_size=64, batch_size=4, device="cpu")
    assert model.learn(12).num_timesteps == 12
    options = {"task": TASK, "reward": "random", "observation": form, "autoreset_mode": "SameStep"}
    envs = gym.make_vec("TextGen-v0", num_envs=2, **options)
    model = PPO("MlpPolicy", TextGenVecEnv(envs), n_steps=4, batch_size=8, n_epochs=1, device="cpu")
    assert model.learn(8).num_timesteps == 8


def test_stable_baselines3s_videos(tmp_path, recwarn):
    options = {"task": TASK, "reward": "random", "render_mode": "rgb_array", "autoreset_mode": "SameStep"}
    envs = TextGenVecEnv(gym.make_vec("TextGen-v0", num_envs=2, **options))
    envs.reset()
    assert [image.shape for image in envs.get_images()] == [(240, 640, 3)] * 2
    pytest.importorskip("moviepy")
    recorder = VecVideoRecorder(envs, str(tmp_path), record_video_trigger=lambda step: step == 0, video_length=3)
    recorder.reset()
    for _ in range(4):
        recorder.step(np.array([1, 2]))
    recorder.close()
    assert list(tmp_path.glob("*.mp4"))


def test_sb3_contrib():
    contrib = pytest.importorskip("sb3_contrib")
    model = contrib.MaskablePPO(
        "MlpPolicy", make(banned=[3], observation="one_hot"), n_steps=8, batch_size=8, n_epochs=1, device="cpu"
    )
    assert model.learn(8).num_timesteps == 8


@pytest.mark.filterwarnings("ignore")
def test_torchrl():
    envs = pytest.importorskip("torchrl.envs")
    check_env_specs = pytest.importorskip("torchrl.envs.utils").check_env_specs
    for options in ({}, {"task": ASKED}, {"observation": "one_hot"}):
        env = envs.GymEnv("TextGen-v0", **{"task": TASK, "reward": "random", **options})
        check_env_specs(env)
        assert env.rollout(4)["next", "done"][-1].all()
    several = envs.SerialEnv(2, lambda: envs.GymEnv("TextGen-v0", task=TASK, reward="random"))
    assert several.rollout(4).shape == (2, 4)


@pytest.mark.filterwarnings("ignore")
def test_tianshou():
    """What its buffer keeps of the infos is of one type at every step."""
    data, env = pytest.importorskip("tianshou.data"), pytest.importorskip("tianshou.env")
    dqn = pytest.importorskip("tianshou.algorithm.modelfree.dqn")
    common = pytest.importorskip("tianshou.utils.net.common")
    envs = env.DummyVectorEnv([lambda: make(observation="float")] * 2)
    spaces = {"action_space": envs.action_space[0], "observation_space": envs.observation_space[0]}
    policy = dqn.DiscreteQLearningPolicy(
        model=common.Net(state_shape=spaces["observation_space"].shape, action_shape=9, hidden_sizes=[8]), **spaces
    )
    buffer = data.VectorReplayBuffer(40, 2)
    collector = data.Collector(policy, envs, buffer)
    collector.reset()
    collector.collect(n_step=16)
    kept, _ = buffer.sample(0)  # all of it
    infos, ends = kept.info, kept.terminated
    assert infos.length.dtype.kind == "i"
    assert all(isinstance(text, str) for text in infos.text)
    assert (infos.length[ends] == 4).all()
    assert not infos.length[~ends].any()
    assert np.isfinite(infos.reward_terms.random.astype(float)).all()


@pytest.mark.filterwarnings("ignore")
def test_skrl():
    wrap_env = pytest.importorskip("skrl.envs.wrappers.torch").wrap_env
    for env in (
        wrap_env(make(observation="one_hot")),
        wrap_env(gym.make_vec("TextGen-v0", num_envs=3, task=TASK, reward="random", observation="one_hot")),
    ):
        observations, _ = env.reset()
        assert observations.shape == (env.num_envs, 4 * 9)
        for _ in range(4):
            observations, rewards, terminated, _, _ = env.step(torch.ones(env.num_envs, 1, dtype=torch.long))
        assert terminated.all()
        assert rewards.shape == (env.num_envs, 1)


def test_the_agents_here_learn_from_tokens_whatever_the_observations_are():
    env = make(observation="one_hot")
    agent = agents.PPO(env, seed=0, n_envs=4, progress=False, embedding=4, hidden=4).learn(1)
    other = agents.PPO(make(), seed=0, n_envs=4, progress=False, embedding=4, hidden=4).learn(1)
    assert agent.sample(3, seed=0).tokens.tolist() == other.sample(3, seed=0).tokens.tolist()
    with pytest.raises(OptionError, match="observation='tokens'"):
        agent.predict(env.reset()[0])
    mle = agents.MLE(make(), seed=0, progress=False)
    ids, floats = (
        mle.predict(make(observation=form).reset()[0], deterministic=True)[0] for form in ("tokens", "float")
    )
    assert ids == floats
    envs = gym.make_vec("TextGen-v0", num_envs=2, task=TASK, observation="one_hot", autoreset_mode="SameStep")
    with pytest.raises(OptionError, match="observation='tokens'"):
        PPO(TextPolicy, TextGenVecEnv(envs), n_steps=4, batch_size=8)
