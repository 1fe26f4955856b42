"""TextGenVectorEnv against scalar environments and Gymnasium's SyncVectorEnv."""

import pickle

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import DictInfoToList, RecordEpisodeStatistics
from hypothesis import given, settings
from hypothesis import strategies as st

import text_gym
from tests.helpers.constraints import until_a_seven
from text_gym.env import TextGenEnv
from text_gym.errors import InvalidActionError, MaskError, OptionError, ResetNeededError, RewardError
from text_gym.vector_env import TextGenVectorEnv

MODES = [mode.value for mode in AutoresetMode]
SETTINGS = {
    "free": {"max_length": 5, "reward": {"bleu(n=2)": 1.0, "random": 2.0}},
    "fixed": {"task": "oracle(vocab_size=12, max_length=3)", "reward": "random"},
    "asked": {"task": "answers", "reward": {"bleu": 1.0, "length": 0.5}},
    "bound": {"max_length": 6, "min_length": 3, "banned": ["the"], "reward": "random"},
    "valid": {"max_length": 7, "constraint": "valid", "reward": "validity"},
}


def assert_same(ours, theirs, where=""):
    """Assert that observations or infos are equal; values of an info outside its mask are ignored."""
    if isinstance(theirs, dict):
        assert set(ours) == set(theirs), where
        for key, value in theirs.items():
            here = theirs.get(f"_{key}")
            mine = ours[key]
            if here is not None and not isinstance(value, dict):
                value, mine = value[here], mine[here]
            assert_same(mine, value, f"{where}.{key}")
    elif isinstance(theirs, np.ndarray) and theirs.dtype == object:
        assert len(ours) == len(theirs), where
        for a, b in zip(ours, theirs, strict=True):
            assert_same(a, b, where)
    elif isinstance(theirs, np.ndarray):
        assert ours.dtype == theirs.dtype, where
        assert (ours == theirs).all(), where
    else:
        assert ours == theirs, where


def some_actions(envs, random, masks):
    """Sample random actions, most of them allowed, and many of them EOS."""
    actions = []
    for mask in masks:
        allowed = np.flatnonzero(mask)
        action = int(random.choice(allowed))
        if random.random() < 0.3 and mask[0]:
            action = 0
        if random.random() < 0.1:
            action = int(random.integers(envs.single_action_space.n))
        actions.append(action)
    return np.array(actions)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SETTINGS)
def test_it_equals_sync_vector_env(name, mode):
    """Observations, rewards and infos of every step are equal."""
    count = 5
    ours = gym.make_vec("TextGen-v0", num_envs=count, autoreset_mode=mode, **SETTINGS[name])
    theirs = SyncVectorEnv(
        [lambda: gym.make("TextGen-v0", **SETTINGS[name])] * count, autoreset_mode=AutoresetMode(mode)
    )
    assert ours.single_observation_space == theirs.single_observation_space
    assert ours.action_space == theirs.action_space
    result, expected = ours.reset(seed=3), theirs.reset(seed=3)
    assert_same(result[0], expected[0])
    assert_same(result[1], expected[1])
    random = np.random.default_rng(0)
    ends = 0
    for step in range(40):
        actions = some_actions(ours, random, result[1]["action_mask"])
        result, expected = ours.step(actions), theirs.step(actions)
        for mine, other, what in zip(result[:4], expected[:4], ("obs", "reward", "end", "cut"), strict=True):
            assert_same(mine, other, f"{step} {what}")
        assert_same(result[4], expected[4], f"{step} info")
        assert result[0] in ours.observation_space
        ends += int(result[2].sum())
        result = (result[0], result[4])
        ended = expected[2].copy()
        if mode == "Disabled" and ended.any():
            again = [e.reset(options={"reset_mask": ended.copy()}) for e in (ours, theirs)]
            assert_same(again[0][0], again[1][0])
            assert_same(again[0][1], again[1][1])
            result = again[0][0], {"action_mask": ours.unwrapped.action_masks()}
    assert ends > 10


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 6), data=st.data())
def test_environments_together_equal_environments_alone(count, data):
    """Every environment takes the same steps as a scalar twin, until the first episode ends."""
    envs = gym.make_vec("TextGen-v0", num_envs=count, max_length=5, reward="random", autoreset_mode="Disabled")
    envs.reset()
    rows = data.draw(st.lists(st.lists(st.integers(0, 208), min_size=5, max_size=5), min_size=count, max_size=count))
    twins = []
    for row in rows:
        env = gym.make("TextGen-v0", max_length=5, reward="random").unwrapped
        env.reset()
        twins.append([env.step(row[0])])
        for token in row[1:]:
            if twins[-1][-1][2]:
                break
            twins[-1].append(env.step(token))
    t, done = 0, np.zeros(count, dtype=bool)
    while not done.any():
        observations, rewards, done, _, infos = envs.step([row[t] for row in rows])
        for i, twin in enumerate(twins):
            assert observations[i].tolist() == twin[t][0].tolist()
            assert (rewards[i], done[i]) == twin[t][1:3]
            if done[i]:
                assert infos["text"][i] == twin[t][4]["text"]
        t += 1


def test_async_vector_env():
    envs = AsyncVectorEnv([lambda: gym.make("TextGen-v0", max_length=4, reward="random")] * 2)
    ours = gym.make_vec("TextGen-v0", num_envs=2, max_length=4, reward="random")
    try:
        assert_same(ours.reset(seed=0)[0], envs.reset(seed=0)[0])
        for _ in range(6):
            mine, other = ours.step([3, 4]), envs.step(np.array([3, 4]))
            assert_same(mine[0], other[0])
            assert_same(mine[1], other[1])
    finally:
        envs.close()


def test_returned_arrays_are_the_callers():
    envs = gym.make_vec("TextGen-v0", num_envs=3, max_length=4, reward="random")
    kept = [envs.reset(seed=0)[0]]
    copies = [kept[0].copy()]
    for t in range(6):
        observations, rewards, done, cut, _ = envs.step([t + 1] * 3)
        kept += [observations, rewards, done, cut]
        copies += [a.copy() for a in (observations, rewards, done, cut)]
    assert all((a == b).all() for a, b in zip(kept, copies, strict=True))
    kept[1][:] = 0
    assert envs.step([1] * 3)[0].max() == 209


def test_statistics_and_lists_of_infos():
    envs = RecordEpisodeStatistics(gym.make_vec("TextGen-v0", num_envs=2, reward="length"))
    envs.reset()
    envs.step([5, 5])
    infos = envs.step([0, 7])[4]
    assert infos["episode"]["r"].tolist() == [1.0, 0.0]
    assert infos["episode"]["l"].tolist() == [2, 0]
    envs = DictInfoToList(gym.make_vec("TextGen-v0", num_envs=2, reward="length"))
    envs.reset()
    infos = envs.step([0, 7])[4]
    assert [(info["text"], info["length"], info["reward_terms"]["length"]) for info in infos] == [
        ("", 1, 0),
        ("", 0, 0),
    ]


def test_starting_anywhere(answers, grammar):
    envs = gym.make_vec("TextGen-v0", num_envs=2, reward="length")
    vocab = grammar.vocab
    observations, _ = envs.reset(options={"prefix": "the dogs"})
    assert [vocab.decode(row) for row in observations] == ["the dogs"] * 2
    observations, _ = envs.reset(options={"prefix": ["the dogs", "mary"]})
    assert [vocab.decode(row) for row in observations] == ["the dogs", "mary"]
    snapshot = envs.unwrapped.snapshot()
    walked = [envs.step([5, 0])[:3] for _ in range(1)]
    observations, _ = envs.reset(options=snapshot)
    assert [vocab.decode(row) for row in observations] == ["the dogs", "mary"]
    assert str([envs.step([5, 0])[:3]]) == str(walked)

    asked = gym.make_vec("TextGen-v0", num_envs=2, task=answers)
    prompts = [answers.train[i].prompt for i in range(6)]
    for options, numbers in [
        ({"prompt_index": 3}, (3, 3)),
        ({"prompt_index": [3, 4]}, (3, 4)),
        ({"prompt_index": np.array([0, 4])}, (0, 4)),
        ({"prompt": answers.decode(prompts[5])}, (5, 5)),
        ({"prompt": list(prompts[2])}, (2, 2)),
        ({"prompt": [list(prompts[2]), answers.decode(prompts[3])]}, (2, 3)),
    ]:
        observations, _ = asked.reset(options=options)
        wanted = [answers.decode(answers.train[i].prompt) for i in numbers]
        assert [answers.decode(row) for row in observations["prompt"]] == wanted
    observations, _ = asked.reset(options=asked.unwrapped.snapshot())
    assert [answers.decode(row) for row in observations["prompt"]] == wanted


def test_masks_of_environments_at_different_places():
    envs = gym.make_vec("TextGen-v0", num_envs=3, min_length=2, reward="length").unwrapped
    _, infos = envs.reset(options={"prefix": ["", "the", "the dogs"]})
    assert infos["action_mask"][:, 0].tolist() == [0, 0, 1]
    assert infos["action_mask"].sum() == 3 * 209 - 2
    infos = envs.step([5, 5, 5])[4]
    assert infos["action_mask"][:, 0].tolist() == [0, 1, 1]
    assert envs.action_masks()[:, 0].tolist() == [False, True, True]
    with pytest.raises(ValueError, match="read-only"):
        infos["action_mask"][0, 0] = 1
    infos = envs.step([0, 0, 0])[4]
    assert infos["disallowed"].tolist() == [1, 0, 0]
    envs.reset()
    assert envs.step([0, 5, 5])[4]["disallowed"].tolist() == [1, 0, 0]


def test_a_reset_with_no_seed_for_some_environments_leaves_their_random_numbers(answers):
    theirs = SyncVectorEnv([lambda: gym.make("TextGen-v0", task=answers)] * 3)
    ours = gym.make_vec("TextGen-v0", num_envs=3, task=answers)
    for seed in ([4, 5, 6], [None, 9, None], None, [1, None, 2]):
        assert_same(ours.reset(seed=seed)[0], theirs.reset(seed=seed)[0])


def test_an_action_for_an_environment_that_waits_does_not_matter():
    envs = gym.make_vec("TextGen-v0", num_envs=2, reward="length")
    envs.reset()
    envs.step([0, 5])
    observations, rewards, done, _, _ = envs.step([-1, 6])
    assert (observations[0] == 209).all()
    assert (rewards.tolist(), done.tolist()) == ([0.0, 0.0], [False, False])


def test_a_failed_step_asks_for_a_reset():
    envs = gym.make_vec("TextGen-v0", num_envs=2, reward=lambda completions: [float("nan")] * len(completions))
    envs.reset()
    with pytest.raises(RewardError):
        envs.step([0, 5])
    with pytest.raises(ResetNeededError):
        envs.step([5, 5])
    with pytest.raises(OptionError, match="after an error"):
        envs.reset(options={"reset_mask": np.array([True, False])})
    assert (envs.reset()[0] == 209).all()
    assert envs.step([5, 5])[0][:, 0].tolist() == [5, 5]


def test_a_snapshot_needs_a_running_episode_in_every_environment():
    envs = gym.make_vec("TextGen-v0", num_envs=2, reward="length").unwrapped
    envs.reset()
    envs.step([0, 5])
    with pytest.raises(ResetNeededError, match=r"no episode is running in environments \[0\].*before snapshot\(\)"):
        envs.snapshot()


def test_pickles_and_renders():
    envs = gym.make_vec("TextGen-v0", num_envs=2, render_mode="ansi", reward="random", min_length=1).unwrapped
    envs.reset(seed=0, options={"prefix": ["the dogs", "mary"]})
    assert envs.render() == ("the dogs", "mary")
    other = pickle.loads(pickle.dumps(envs))
    assert str(other.step([4, 0])) == str(envs.step([4, 0]))


@pytest.mark.parametrize("actions", [[1], [1, 2, 3], [0.5, 1.0], [[1, 2]], ["a", "b"], [1, 209], [-1, 0], [None, 1], 3])
def test_refused_actions_change_nothing(actions):
    envs = gym.make_vec("TextGen-v0", num_envs=2, reward="length").unwrapped
    envs.reset()
    with pytest.raises(InvalidActionError, match="whole number"):
        envs.step(actions)
    assert envs.step([4, 4])[0][:, :2].tolist() == [[4, 209]] * 2


def test_mistakes_are_told(answers):
    for arguments, words in [
        ({"num_envs": 0}, "num_envs must be a whole number of at least 1"),
        ({"autoreset_mode": "Sometimes"}, "'NextStep', 'SameStep', 'Disabled'"),
        ({"render_mode": "human"}, "render_mode must be 'ansi', 'rgb_array' or None, not 'human'"),
        ({"max_episode_steps": 4}, "unexpected keyword argument 'max_episode_steps'"),
    ]:
        with pytest.raises(OptionError, match=words):
            TextGenVectorEnv(**{"num_envs": 2, **arguments})
    envs = TextGenVectorEnv(3, reward="length", autoreset_mode="Disabled")
    with pytest.raises(ResetNeededError):
        envs.step([0, 0, 0])
    with pytest.raises(OptionError, match="must include all environments"):
        envs.reset(options={"reset_mask": np.array([True, False, False])})
    envs.reset()
    envs.step([0, 5, 0])
    with pytest.raises(
        ResetNeededError, match=r"no episode is running in environments \[0, 2\].*reset_mask.*before step\(\)"
    ):
        envs.step([1, 1, 1])
    for reset_mask, words in [
        ([True, False, False], "numpy array of 3 booleans"),
        (np.zeros(3, bool), "selects no environment"),
        (np.ones(2, bool), "numpy array of 3 booleans"),
    ]:
        with pytest.raises(OptionError, match=words):
            envs.reset(options={"reset_mask": reset_mask})
    with pytest.raises(OptionError, match="2 seeds for 3 environments"):
        envs.reset(seed=[1, 2])
    with pytest.raises(OptionError, match="2 values of 'prefix' for 3 environments"):
        envs.reset(options={"prefix": ["the", "the"]})
    assert envs.reset(options={"reset_mask": np.array([True, False, True])})[1]["_action_mask"].tolist() == [
        True, False, True,
    ]  # fmt: skip
    assert envs.step([1, 1, 1])[0][1].tolist()[:3] == [5, 1, 209]


def test_a_dead_end_in_one_environment_is_told():
    def no_way_after_three(prefixes, lengths):
        mask = np.ones((len(prefixes), 209), bool)
        mask[(prefixes == 3).any(axis=1)] = False
        return mask

    envs = TextGenVectorEnv(3, constraint=no_way_after_three, reward="length")
    envs.reset()
    with pytest.raises(MaskError, match=r"^environment 1: nothing may follow"):
        envs.step([4, 3, 4])


def refusal(call, *args, **kwargs):
    """Return the type and the message of the error that a call raises."""
    with pytest.raises(text_gym.TextGymError) as caught:
        call(*args, **kwargs)
    return type(caught.value), str(caught.value)


@pytest.mark.parametrize(
    ("options", "bad"),
    [
        ({"prefix": [1, 209, 2]}, "prefix"),
        ({"prefix": [1] * 21}, "prefix"),
        ({"prefix": [1, 300]}, "prefix"),
        ({"prefix": [1, 0]}, "prefix"),
        ({"prefix": 3}, "prefix"),
        ({"prefix": "the unheardof"}, "prefix"),
        ({"prefix": [7]}, "prefix"),
        ({"prompt": "the dogs"}, "prompt"),
        ({"prompt_index": 2}, "prompt_index"),
        ({"disallowed": -1}, "disallowed"),
        ({"prompt": [1], "prompt_index": 1}, None),
        ("prefix", None),
    ],
)
def test_a_refused_option_is_told_in_the_words_of_the_scalar_environment(options, bad):
    arguments = {"constraint": until_a_seven, "reward": "length"}
    kind, words = refusal(gym.make("TextGen-v0", **arguments).reset, options=options)
    envs = gym.make_vec("TextGen-v0", num_envs=3, **arguments)
    named = f"environment 0: {words}" if "nothing may follow" in words else words
    assert refusal(envs.reset, options=options) == (kind, named)
    if bad:
        envs.reset()
        fine = {"prefix": "the", "prompt": "the", "prompt_index": 0, "disallowed": 0}[bad]
        first, second = (0, 0) if "has no prompts" in words else (1, 2)  # no prompt is fine in this task
        several = {bad: [fine, options[bad], fine]}
        assert refusal(envs.reset, options=several) == (kind, f"environment {first}: {words}")
        several = {bad: [fine, options[bad]], "reset_mask": np.array([True, False, True])}
        assert refusal(envs.reset, options=several) == (kind, f"environment {second}: {words}")
    alone = gym.make_vec("TextGen-v0", num_envs=1, **arguments)
    assert refusal(alone.reset, options=options) == (kind, words)


def test_an_unknown_option_is_told_beside_the_known_ones():
    kind, words = refusal(gym.make("TextGen-v0").reset, options={"prefx": [1]})
    assert (
        words
        == "reset() has no option 'prefx'. Did you mean 'prefix'? Known: disallowed, prefix, prompt, prompt_index."
    )
    envs = gym.make_vec("TextGen-v0", num_envs=2)
    assert refusal(envs.reset, options={"prefx": [1]}) == (kind, words[:-1] + ", reset_mask.")


def test_refused_prompts_seeds_and_actions_are_told_in_the_words_of_the_scalar_environment(answers):
    env = gym.make("TextGen-v0", task=answers).unwrapped
    envs = gym.make_vec("TextGen-v0", num_envs=3, task=answers, autoreset_mode="Disabled").unwrapped
    kind, words = refusal(env.step, 0)
    assert refusal(envs.step, [0] * 3) == (kind, words)
    assert words == "no episode is running; call reset() before step()"
    kind, words = refusal(env.snapshot)
    assert refusal(envs.snapshot) == (kind, words)
    assert words == "no episode is running; call reset() before snapshot()"
    for options in ({"prompt": [1, 99]}, {"prompt": 1.5}, {"prompt_index": 10**6}, {"prompt_index": "a"}):
        assert refusal(envs.reset, options=options) == refusal(env.reset, options=options)
    for seed in (-1, "a", 1.5, True):
        kind, words = refusal(env.reset, seed=seed)
        assert (kind, words) == (OptionError, f"seed must be a whole number of at least 0, not {seed!r}")
        assert refusal(envs.reset, seed=[None, seed, 2]) == (kind, f"environment 1: {words}")
        if seed != "a":  # a string is a sequence of seeds
            assert refusal(envs.reset, seed=seed) == (kind, words)
    for e in (env, envs):
        e.reset(seed=0)
    for action in (-1, 39, 10**9):
        kind, words = refusal(env.step, action)
        assert refusal(envs.step, [0, 0, action]) == (kind, f"environment 2: {words}")
    kind, words = refusal(TextGenEnv, render_mode="html")
    assert words == "render_mode must be 'ansi', 'rgb_array', 'human' or None, not 'html'"
    vector_words = words.replace(", 'human'", "")
    assert refusal(TextGenVectorEnv, 2, render_mode="html") == (kind, vector_words)


@pytest.mark.parametrize("seed", [5, np.int64(5), np.uint8(5)])
def test_a_seed_is_a_whole_number_of_any_kind(answers, seed):
    expected = gym.make("TextGen-v0", task=answers).reset(seed=5)[0]["prompt"]
    env = gym.make("TextGen-v0", task=answers).unwrapped
    envs = gym.make_vec("TextGen-v0", num_envs=2, task=answers).unwrapped
    assert (env.reset(seed=seed)[0]["prompt"] == expected).all()
    assert (envs.reset(seed=seed)[0]["prompt"][0] == expected).all()
    assert env.np_random_seed == envs.np_random_seed == 5


def assert_same_future(envs, twin, mode, steps=30):
    """Assert that two environments return the same observations and infos from now on, and have equal generators."""
    random = np.random.default_rng(0)
    for _ in range(steps):
        actions = random.choice([0, 4, 5, 6], size=envs.num_envs)
        result, expected = envs.step(actions), twin.step(actions)
        assert str(result) == str(expected)
        ended = result[2]
        if mode == "Disabled" and ended.any():
            again = [e.reset(options={"reset_mask": ended}) for e in (envs, twin)]
            assert str(again[0]) == str(again[1])
    assert str(envs.reset()) == str(twin.reset())
    assert envs.np_random.bit_generator.state == twin.np_random.bit_generator.state
    assert envs.np_random_seed == twin.np_random_seed


@pytest.mark.parametrize("seed", [None, 5, [6, None, 8]])
@pytest.mark.parametrize(("token", "error"), [(7, MaskError), (8, MaskError)])
@pytest.mark.parametrize("mode", MODES)
def test_a_reset_that_the_constraint_refuses_keeps_the_running_episodes(mode, token, error, seed):
    """After the failed reset, episodes and random numbers equal those of a twin without that reset."""
    envs, twin = (
        gym.make_vec(
            "TextGen-v0", num_envs=3, task="answers", reward="length", constraint=until_a_seven, autoreset_mode=mode
        ).unwrapped
        for _ in range(2)
    )
    for e in (envs, twin):
        e.reset(seed=1)
        e.step([5, 5, 0])  # the third episode ends: it is reset in this step, in the next step, or by reset()
    with pytest.raises(error):
        envs.reset(seed=seed, options={"prefix": [[], [token], [4]]})
    with pytest.raises(error):
        envs.reset(seed=seed, options={"prefix": [token], "reset_mask": np.array([False, False, True])})
    with pytest.raises(OptionError, match="whole number"):
        envs.reset(seed=seed, options={"disallowed": "many"})
    if mode == "Disabled":
        for e in (envs, twin):
            e.reset(options={"reset_mask": np.array([False, False, True])})
    assert_same_future(envs, twin, mode)


def test_a_refused_first_reset_leaves_no_episode_and_its_random_numbers_unused(answers):
    envs, twin = (TextGenVectorEnv(2, task=answers, reward="length", constraint=until_a_seven) for _ in range(2))
    for e in (envs, twin):
        e.np_random = np.random.default_rng(4)
    with pytest.raises(MaskError):
        envs.reset(options={"prefix": [[], [7]]})
    assert envs.np_random.bit_generator.state == twin.np_random.bit_generator.state
    with pytest.raises(ResetNeededError):
        envs.step([5, 5])
    with pytest.raises(OptionError, match="first reset"):
        envs.reset(options={"reset_mask": np.array([True, False])})
    assert str(envs.reset()) == str(twin.reset())
    assert_same_future(envs, twin, "NextStep")


@pytest.mark.parametrize("mode", MODES)
def test_a_step_that_the_constraint_fails_ends_all_episodes_and_a_refused_reset_does_not_bring_them_back(mode):
    envs = TextGenVectorEnv(2, mode, task="answers", reward="length", constraint=until_a_seven)
    envs.reset(seed=0)
    with pytest.raises(MaskError):
        envs.step([4, 7])
    with pytest.raises(ResetNeededError):
        envs.step([4, 4])
    with pytest.raises(MaskError):
        envs.reset(options={"prefix": [7]})
    with pytest.raises(ResetNeededError):
        envs.step([4, 4])
    envs.reset()
    assert envs.step([4, 5])[0]["prefix"][:, 0].tolist() == [4, 5]


@pytest.mark.parametrize("mode", MODES)
def test_infos_have_the_same_keys_at_every_step(mode):
    envs = gym.make_vec("TextGen-v0", num_envs=2, task="answers", autoreset_mode=mode)
    keys = set(envs.reset(seed=0)[1])
    for actions in ([5, 5], [0, 5], [5, 0]):
        _, _, done, _, infos = envs.step(actions)
        assert {key for key in infos if "final" not in key} == keys
        assert infos["_text"].all()
        for i in np.flatnonzero(~done):
            assert (infos["text"][i], infos["length"][i], infos["prompt"][i]) == ("", 0, "")
        if mode == "Disabled" and done.any():
            assert set(envs.reset(options={"reset_mask": done})[1]) == keys


@pytest.mark.parametrize("form", ["float", "one_hot"])
@pytest.mark.parametrize("task", ["answers", "grammar"])
def test_every_form_of_observations_equals_the_scalar_environments(task, form):
    ours = gym.make_vec("TextGen-v0", num_envs=2, task=task, observation=form, autoreset_mode="SameStep")
    theirs = SyncVectorEnv(
        [lambda: gym.make("TextGen-v0", task=task, observation=form)] * 2, autoreset_mode=AutoresetMode.SAME_STEP
    )
    assert ours.observation_space == theirs.observation_space
    assert_same(ours.reset(seed=1)[0], theirs.reset(seed=1)[0])
    for actions in ([5, 6], [0, 7]):
        mine, other = ours.step(np.array(actions)), theirs.step(np.array(actions))
        assert mine[0] in ours.observation_space
        assert_same(mine[0], other[0])
        assert_same(mine[4], other[4])


def test_frames_are_those_of_the_scalar_environments(answers):
    arguments = {"task": answers, "render_mode": "rgb_array", "reward": {"length": 1.0, "random": 1.0}}
    envs = gym.make_vec("TextGen-v0", num_envs=2, autoreset_mode="Disabled", **arguments)
    scalars = [gym.make("TextGen-v0", **arguments) for _ in range(2)]
    envs.reset(seed=4)
    for i, env in enumerate(scalars):
        env.reset(seed=4 + i)
    for tokens in ([5, 6], [7, 0]):
        envs.step(tokens)
        for env, token in zip(scalars, tokens, strict=True):
            env.step(token)
        assert all((mine == env.render()).all() for mine, env in zip(envs.render(), scalars, strict=True))
    envs.reset(options={"reset_mask": np.array([False, True])})
    scalars[1].reset()
    assert all((mine == env.render()).all() for mine, env in zip(envs.render(), scalars, strict=True))


def test_seeds_that_are_no_list_of_numbers(answers):
    envs = gym.make_vec("TextGen-v0", num_envs=2, task=answers)
    for seed in ("ab", 1.5, np.array(1.5), {1, 2}, -1):
        assert refusal(envs.reset, seed=seed) == refusal(gym.make("TextGen-v0", task=answers).reset, seed=seed)
    for seed in ([1, [2]], [1.0, 2.0], np.array([1.0, 2.0]), np.zeros((2, 2), int)):
        assert refusal(envs.reset, seed=seed)[1].startswith("environment ")
    assert_same(envs.reset(seed=np.array(7))[0], envs.reset(seed=7)[0])
    huge = gym.make("TextGen-v0", task=answers)
    assert_same(envs.reset(seed=2**200)[0]["prompt"][1], huge.reset(seed=2**200 + 1)[0]["prompt"])


def test_an_invalid_action_is_told_before_that_a_reset_is_needed():
    envs = gym.make_vec("TextGen-v0", num_envs=2, autoreset_mode="Disabled")
    for _ in range(2):
        assert refusal(envs.step, [-1, 0])[0] is InvalidActionError
        assert refusal(gym.make("TextGen-v0").unwrapped.step, -1)[0] is InvalidActionError
        envs.reset()
        envs.step([0, 5])
