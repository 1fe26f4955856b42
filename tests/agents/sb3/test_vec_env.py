"""TextGenVecEnv against a DummyVecEnv of scalar environments, and in the tools of Stable-Baselines3."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize

import text_gym
from agents.sb3.vec_env import TextGenVecEnv
from text_gym.errors import InvalidActionError, OptionError
from text_gym.rules import Rules
from text_gym.vector_env import TextGenVectorEnv

COUNT = 4
SETTINGS = {
    "free": {"max_length": 5, "reward": {"bleu(n=2)": 1.0, "random": 2.0}},
    "bound": {"max_length": 6, "min_length": 3, "banned": ["the"], "reward": "random"},
    "asked": {"task": "answers", "reward": {"exact_match": 1.0, "length": 0.5}},
    "valid": {"max_length": 7, "constraint": "valid", "reward": "validity"},
}
LAST_ONLY = {"text", "length", "reward_terms", "disallowed", "prompt", "terminal_observation", "episode"}
TINY = {"n_steps": 8, "batch_size": 8, "n_epochs": 1, "policy_kwargs": {"net_arch": [8]}}


def ours(count=COUNT, **options):
    return TextGenVecEnv(gym.make_vec("TextGen-v0", num_envs=count, autoreset_mode="SameStep", **options))


def theirs(count=COUNT, **options):
    return DummyVecEnv([lambda: Monitor(gym.make("TextGen-v0", **options))] * count)


def assert_same(mine, other):
    """Assert that arrays (with their dtype), dicts of arrays or other values are equal."""
    if isinstance(other, dict):
        assert set(mine) == set(other)
        for key, value in other.items():
            assert_same(mine[key], value)
    elif isinstance(other, np.ndarray):
        assert (mine.dtype, mine.shape) == (other.dtype, other.shape)
        assert (mine == other).all()
    else:
        assert mine == other


def assert_same_infos(mine, other):
    for one, two in zip(mine, other, strict=True):
        assert {k for k in one if k in LAST_ONLY} == {k for k in two if k in LAST_ONLY}
        for key in two.keys() - {"episode"}:
            assert_same(one[key], two[key])
            assert type(one[key]) is type(two[key]), key
        if "episode" in two:
            assert one["episode"]["r"] == pytest.approx(two["episode"]["r"], abs=2e-6)
            assert one["episode"]["l"] == two["episode"]["l"]
            assert one["episode"]["t"] >= 0


def walk(envs, pair, steps, seed=0):
    """Step both environments with the same actions, and return the lengths of the episodes that ended."""
    random, lengths = np.random.default_rng(seed), []
    for _ in range(steps):
        masks = envs.env_method("action_masks")
        assert_same(np.stack(masks), np.stack(pair.env_method("action_masks")))
        actions = np.array([random.choice(np.flatnonzero(mask)) for mask in masks])
        actions = np.where(random.random(COUNT) < 0.3, 0, actions)
        mine, other = envs.step(actions), pair.step(actions)
        for a, b in zip(mine[:3], other[:3], strict=True):
            assert_same(a, b)
        assert_same_infos(mine[3], other[3])
        assert_same_infos(envs.reset_infos, pair.reset_infos)
        lengths += [info["length"] for info in mine[3] if "episode" in info]
    return lengths


@pytest.mark.parametrize("name", SETTINGS)
def test_it_equals_a_dummy_vec_env(name):
    """With the same seeds and actions: observations, rewards, ends of episodes, infos and masks."""
    envs, pair = ours(**SETTINGS[name]), theirs(**SETTINGS[name])
    assert envs.observation_space == pair.observation_space
    assert envs.action_space == pair.action_space
    envs.seed(7), pair.seed(7)
    assert_same(envs.reset(), pair.reset())
    assert_same_infos(envs.reset_infos, pair.reset_infos)
    lengths = walk(envs, pair, 40)
    assert len(lengths) > 20
    assert len(set(lengths)) > 2
    assert_same(envs.reset(), pair.reset()) if name != "asked" else envs.reset()


def test_seeds_are_for_one_reset_and_count_up(answers):
    """Environment i starts with the prompt of a scalar environment that is reset with seed + i."""
    envs, pair = ours(task=answers), theirs(task=answers)
    for seed in (3, 11):
        envs.seed(seed), pair.seed(seed)
        prompts = envs.reset()["prompt"]
        assert_same(prompts, pair.reset()["prompt"])
        for i, prompt in enumerate(prompts):
            scalar = gym.make("TextGen-v0", task=answers).reset(seed=seed + i)[0]
            assert_same(prompt, scalar["prompt"])
        assert_same(envs.reset(), pair.reset())  # seed() affects only the next reset
    assert len({tuple(p) for p in prompts.tolist()}) > 1


def test_options_are_for_one_reset(answers, grammar):
    envs, pair = (make(task=grammar, reward="length", min_length=2) for make in (ours, theirs))
    given = [{"prefix": text} for text in ("", "the", "the dogs", "mary")]
    for options in ({"prefix": "the dogs"}, given):
        envs.set_options(options), pair.set_options(options)
        assert_same(envs.reset(), pair.reset())
        assert len(walk(envs, pair, 12)) > 5
    empty = envs.reset()
    assert (empty == len(grammar.vocab)).all()
    asked, pair = ours(task=answers), theirs(task=answers)
    asked.set_options({"prompt_index": 3}), pair.set_options({"prompt_index": 3})
    assert_same(asked.reset(), pair.reset())
    text = answers.decode(answers.train[5].prompt)
    asked.set_options({"prompt": text})
    assert [answers.decode(row) for row in asked.reset()["prompt"]] == [text] * COUNT


def test_options_that_not_all_environments_have_are_refused(grammar):
    envs = ours(task=grammar)
    envs.set_options([{"prefix": "the"}, {}, {}, {}])
    with pytest.raises(OptionError, match="give every environment the same names"):
        envs.reset()
    envs.set_options({"prefx": "the"})
    with pytest.raises(OptionError, match="Did you mean 'prefix'"):
        envs.reset()


def test_what_it_returns_is_the_callers():
    envs = ours(max_length=4, reward="random")
    kept = [envs.reset()]
    copies = [kept[0].copy()]
    for token in (1, 2, 3, 4, 5, 6):
        observations, rewards, done, _ = envs.step(np.array([token] * COUNT))
        kept += [observations, rewards, done]
        copies += [a.copy() for a in (observations, rewards, done)]
    assert all((a == b).all() for a, b in zip(kept, copies, strict=True))
    assert kept[-2].dtype == np.float32


def test_attributes_and_methods_of_some_environments(answers):
    envs = ours(task=answers, min_length=2)
    envs.reset()
    assert envs.get_attr("task") == [answers] * COUNT
    assert envs.get_attr("task", indices=1) == [answers]
    assert envs.get_attr("num_envs", indices=[0, 2]) == [COUNT] * 2
    with pytest.raises(AttributeError):
        envs.get_attr("no_such_thing")
    assert not envs.has_attr("no_such_thing")
    for actions in ([3, 0, 4, 4], [3, 3, 4, 4]):
        envs.step(np.array(actions))
    masks = envs.envs.action_masks()
    assert masks[:, 0].tolist() == [True, False, True, True]
    assert_same(np.stack(envs.env_method("action_masks", indices=[2, 1])), masks[[2, 1]])
    assert_same(envs.env_method("action_masks", indices=1)[0], masks[1])
    assert envs.env_method("render", indices=[1, 2]) == [None, None]
    envs.set_attr("note", "all")
    assert envs.get_attr("note") == ["all"] * COUNT
    with pytest.raises(OptionError, match="without indices"):
        envs.set_attr("note", "some", indices=[0])
    assert envs.env_is_wrapped(Monitor) == [True] * COUNT
    assert envs.env_is_wrapped(TimeLimit, indices=[0, 1]) == [False] * 2
    assert envs.get_images() == [None] * COUNT
    envs.close()


def test_masks_for_sb3_contrib():
    maskable = pytest.importorskip("sb3_contrib.common.maskable.utils")
    envs = ours(min_length=2, banned=["the"])
    envs.reset()
    assert maskable.is_masking_supported(envs)
    masks = maskable.get_action_masks(envs)
    assert_same(masks, np.stack([info["action_mask"] for info in envs.reset_infos]).astype(bool))
    assert not masks[:, 0].any()
    for token in (5, 6):
        infos = envs.step(np.array([token] * COUNT))[3]
        assert_same(maskable.get_action_masks(envs), np.stack([info["action_mask"] for info in infos]).astype(bool))
    assert maskable.get_action_masks(envs)[:, 0].all()


@pytest.mark.parametrize("bad", [[1, 2], [0, 1, 2, 209], [0.5] * COUNT, None])
def test_refused_actions_change_nothing(bad):
    envs = ours(reward="length")
    envs.reset()
    with pytest.raises(InvalidActionError, match="whole number"):
        envs.step(bad)
    assert envs.step(np.array([4] * COUNT))[0][:, :2].tolist() == [[4, 209]] * COUNT


# Tools of Stable-Baselines3.


def weights_of(model):
    return np.concatenate([p.detach().numpy().ravel() for p in model.policy.parameters()])


@pytest.mark.parametrize(("algorithm", "name"), [(PPO, "free"), (PPO, "asked"), (A2C, "free")])
def test_an_algorithm_learns_the_same_in_it_as_in_a_dummy_vec_env(algorithm, name):
    policy = "MultiInputPolicy" if name == "asked" else "MlpPolicy"
    options = TINY if algorithm is PPO else {"n_steps": 8, "policy_kwargs": TINY["policy_kwargs"]}
    models = []
    for envs in (ours, theirs):  # one after the other, because learn() seeds the global generators
        models.append(algorithm(policy, envs(**SETTINGS[name]), seed=0, **options))
        before = weights_of(models[-1])
        assert (weights_of(models[-1].learn(64)) != before).any()
    assert (weights_of(models[0]) == weights_of(models[1])).all()
    assert [e["l"] for e in models[0].ep_info_buffer] == [e["l"] for e in models[1].ep_info_buffer]


def test_maskable_ppo_learns_within_the_masks():
    contrib = pytest.importorskip("sb3_contrib")
    seen = []

    def keep(local, _):
        seen.extend(info["disallowed"] for info in local["infos"] if "episode" in info)
        return True

    model = contrib.MaskablePPO("MlpPolicy", ours(**SETTINGS["bound"]), seed=0, **TINY).learn(64, callback=keep)
    assert len(seen) > 5
    assert not any(seen)
    assert model.num_timesteps >= 64


@pytest.mark.filterwarnings("ignore:The environment is already wrapped with a `Monitor`")
def test_monitors_and_normalised_rewards():
    envs = VecMonitor(ours(max_length=4, reward="length"))
    envs.reset()
    infos = [envs.step(np.array([5, 5, 5, 0]))[3] for _ in range(4)][-1]
    assert [(i["episode"]["r"], i["episode"]["l"]) for i in infos] == [(4.0, 4)] * 3 + [(0.0, 1)]
    normal, pair = (VecNormalize(make(max_length=4, reward="length"), norm_obs=False) for make in (ours, theirs))
    normal.reset(), pair.reset()
    for _ in range(6):
        assert_same(normal.step(np.array([5] * COUNT))[1], pair.step(np.array([5] * COUNT))[1])
    assert normal.ret_rms.var == pair.ret_rms.var != 1
    PPO("MlpPolicy", normal, **TINY).learn(32)


def test_evaluation_without_a_warning():
    envs = ours(max_length=4, reward="length", min_length=2)
    model = PPO("MlpPolicy", ours(max_length=4), seed=0, **TINY)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rewards, lengths = evaluate_policy(model, envs, 8, return_episode_rewards=True)
        scored = EvalCallback(envs, n_eval_episodes=4, eval_freq=8, verbose=0)
        model.learn(32, callback=scored)
    assert len(rewards) == len(lengths) == 8
    assert all(length - 1 <= reward <= length for reward, length in zip(rewards, lengths, strict=True))
    assert scored.last_mean_reward >= 0


@pytest.mark.filterwarnings("ignore:.*Box observation space")
def test_plain_stable_baselines3_needs_no_adapter():
    for task, policy in (("grammar", "MlpPolicy"), ("answers", "MultiInputPolicy")):
        env = gym.make("TextGen-v0", task=task)
        check_env(env, warn=False)
        model = PPO(policy, env, **TINY).learn(16)
        observation, _ = env.reset()
        assert model.predict(observation)[0] in env.action_space


# Errors and construction.


def test_what_is_no_such_environment_is_refused():
    text = gym.make_vec("TextGen-v0", num_envs=2)
    with pytest.raises(OptionError, match="autoreset_mode='SameStep', not 'NextStep'"):
        TextGenVecEnv(text)
    with pytest.raises(OptionError, match="not 'Disabled'"):
        TextGenVecEnv(gym.make_vec("TextGen-v0", num_envs=2, autoreset_mode="Disabled"))
    same_step = SyncVectorEnv([lambda: gym.make("TextGen-v0")] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    for other in (gym.make_vec("CartPole-v1", num_envs=2), same_step, gym.make("TextGen-v0"), None):
        with pytest.raises(OptionError, match=r"gym.make_vec\('TextGen-v0'"):
            TextGenVecEnv(other)


def test_environments_with_the_rules_of_another_one():
    """Environments with the same rules share the task, the reward and the limits."""
    calls = []

    def count(completions):
        calls.append(len(completions))
        return [1.0] * len(completions)

    env = gym.make("TextGen-v0", max_length=4, min_length=2, reward=count, banned=["the"])
    rules = env.unwrapped.rules
    envs = TextGenVectorEnv(3, "SameStep", rules=rules)
    assert envs.rules is rules
    assert envs.task is env.unwrapped.task
    same = TextGenVectorEnv(3, "SameStep", max_length=4, min_length=2, reward=count, banned=["the"])
    assert (envs.single_observation_space, envs.action_space) == (same.single_observation_space, same.action_space)
    for one in (envs, same):
        one.reset(seed=0)
    for actions in ([5, 6, 7], [5, 0, 7], [0, 8, 9], [5, 8, 0], [5, 8, 9]):
        mine, other = envs.step(actions), same.step(actions)
        for a, b in zip(mine[:4], other[:4], strict=True):
            assert_same(a, b)
        assert_same(mine[4]["action_mask"], other[4]["action_mask"])
    assert sum(calls) > 4
    with pytest.raises(OptionError, match="rules already contain the task and the reward; remove task"):
        TextGenVectorEnv(3, rules=rules, task="grammar")
    assert isinstance(TextGenVectorEnv(2).rules, Rules)
    with pytest.raises(OptionError, match=r"rules='grammar' must be the rules.*give env.unwrapped.rules"):
        TextGenVectorEnv(2, rules="grammar")


def test_it_is_registered_without_stable_baselines3():
    assert "stable_baselines3" not in vars(text_gym)


def test_it_says_what_it_wraps():
    envs = TextGenVecEnv(gym.make_vec("TextGen-v0", num_envs=2, reward="length", autoreset_mode="SameStep"))
    assert repr(envs) == f"TextGenVecEnv({envs.envs!r})"
    assert "num_envs=2, task='grammar', reward=LengthReward()" in repr(envs)
