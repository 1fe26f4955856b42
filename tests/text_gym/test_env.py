"""TextGenEnv: Gymnasium's contract, reset options, masks, rendering and errors."""

import copy
import itertools
import json
import os
import pickle
import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.env_util import make_vec_env

import text_gym
from tests.helpers.constraints import until_a_seven
from tests.helpers.tasks import WITHOUT_FILES
from text_gym.env import TextGenEnv
from text_gym.errors import InvalidActionError, MaskError, OptionError, ResetNeededError, RewardError


def make(**arguments):
    return gym.make("TextGen-v0", **arguments)


def write_out(env, tokens):
    """Step with each token, and return the result of the last step."""
    for token in tokens:
        result = env.step(token)
    return result


def rhymes(write, **options):
    return text_gym.make_task(write("rhymes.txt", "a cat sat\na rat sat\n"), valid=0.0, test=0.0, **options)


@pytest.mark.parametrize("task", WITHOUT_FILES)
@pytest.mark.parametrize(
    "arguments", [{}, {"reward": "random"}, {"banned": (1,), "reward": "length"}], ids=["", "random", "banned"]
)
def test_the_standard_checkers_pass_on_every_task(task, arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(make(task=task, **arguments).unwrapped)
        warnings.filterwarnings("ignore", message=".*(MultiInputPolicy|CnnPolicy|flatten).*")
        sb3_check_env(make(task=task, **arguments))


def test_the_standard_checkers_pass_where_masks_bind():
    """The checkers sample tokens that the mask does not allow."""
    env = make(min_length=5, constraint="valid")
    check_env(env.unwrapped)
    sb3_check_env(env)


def test_an_episode_from_the_outside():
    env = make(reward={"length": 2.0, "validity": 10.0})
    observation, info = env.reset(seed=3)
    vocab = env.unwrapped.task.vocab
    assert observation.tolist() == [vocab.pad] * 21
    assert observation in env.observation_space
    assert (info["action_mask"].dtype, info["action_mask"].sum()) == (np.int8, len(vocab))
    words = vocab.encode("the dogs run")
    for i, word in enumerate(words):
        observation, reward, terminated, truncated, info = env.step(word)
        assert observation.tolist() == words[: i + 1] + [vocab.pad] * (20 - i)
        assert (reward, terminated, truncated, info["text"]) == (0.0, False, False, "")
    observation, reward, terminated, truncated, info = env.step(vocab.eos)
    assert observation.tolist() == [*words, vocab.eos] + [vocab.pad] * 17
    assert (reward, terminated, truncated) == (2 * 3 + 10 * 1, True, False)
    assert info["text"] == "the dogs run"
    assert info["length"] == 4
    assert info["reward_terms"] == {"length": 3.0, "validity": 1.0}
    assert info["disallowed"] == 0
    with pytest.raises(ResetNeededError, match="reset"):
        env.unwrapped.step(0)


def test_the_limit_terminates_and_pays():
    env = make(max_length=4, reward="length")
    env.reset()
    *_, reward, terminated, truncated, info = write_out(env, [5, 6, 7, 8])
    assert (reward, terminated, truncated, info["length"]) == (4.0, True, False, 4)


def test_a_fixed_length_task_has_no_end_token():
    env = make(task="oracle", vocab_size=10, max_length=3, reward="constant")
    env.reset()
    assert env.unwrapped.task.vocab.eos is None
    results = [env.step(0) for _ in range(3)]
    assert [r[2] for r in results] == [False, False, True]
    with pytest.raises(OptionError, match="no EOS"):
        make(task="oracle", min_length=3)


def test_prompts_are_observed_and_drawn_from_the_split(answers):
    env = make(task=answers, split="test")
    rows = {}
    for seed in range(300):
        observation, _ = env.reset(seed=seed)
        assert observation in env.observation_space
        rows[tuple(t for t in observation["prompt"].tolist() if t != answers.vocab.pad)] = True
    assert rows.keys() <= answers.test.by_prompt.keys()
    assert len(rows) > 100
    observation, _ = env.reset(options={"prompt_index": 7})
    example = answers.test[7]
    assert observation["prompt"].tolist()[: len(example.prompt)] == list(example.prompt)
    *_, reward, _, _, info = write_out(env, [*example.references[0], answers.vocab.eos])
    assert reward == 1.0
    assert info["prompt"] == answers.decode(example.prompt)
    env.reset(options={"prompt": answers.decode(example.prompt)})
    assert write_out(env, [*example.references[0], answers.vocab.eos])[1] == 1.0


def test_a_prompt_of_ones_own_has_no_references(answers):
    env = make(task=answers)
    env.reset(options={"prompt": "what is 9 9 plus 9 9 ?"})
    with pytest.raises(RewardError, match="needs references"):
        env.step(answers.vocab.eos)
    env = make(task=answers, reward=lambda completions, prompts: [float(p.startswith("what is 9 9")) for p in prompts])
    env.reset(options={"prompt": "what is 9 9 plus 9 9 ?"})
    assert env.step(answers.vocab.eos)[1] == 1.0


def test_starting_anywhere_equals_getting_there():
    """An environment that is reset to a snapshot continues like the environment of the snapshot."""
    for arguments in ({"reward": "bleu"}, {"task": "answers", "reward": "bleu"}):
        walked, jumped = make(**arguments).unwrapped, make(**arguments).unwrapped
        here, _ = walked.reset(seed=5)
        random = np.random.default_rng(0)
        for step in range(3):
            there, _ = jumped.reset(options=walked.snapshot())
            assert str(there) == str(here)
            token = int(random.integers(1, 30))
            result = walked.step(token)
            assert str(jumped.step(token)) == str(result), step
            here = result[0]


def test_a_snapshot_keeps_the_example_where_prompts_repeat(write):
    lines = [f'{{"prompt": "p", "reference": "{word}"}}' for word in "abcdef"]
    task = text_gym.make_task(write("asked.jsonl", "\n".join(lines)), valid=0.0, test=0.0)
    env = make(task=task, reward=lambda completions, references: [float(r == ["f"]) for r in references]).unwrapped
    for seed in range(20):
        env.reset(seed=seed)
        snapshot = env.snapshot()
        reward = env.step(0)[1]
        env.reset(options=snapshot)
        assert env.step(0)[1] == reward
    assert task.train[5].references == ((task.vocab.ids["f"],),)


def test_unknown_words_are_masked_unless_asked_for(write):
    path = write("some.txt", "a b\n")
    assert make(task=str(path)).reset()[1]["action_mask"].tolist() == [1, 0, 1, 1]
    assert make(task=str(path), banned=[]).reset()[1]["action_mask"].tolist() == [1, 1, 1, 1]
    assert make(task=str(path), banned="b").reset()[1]["action_mask"].tolist() == [1, 1, 1, 0]


def test_prefixes_of_every_kind(grammar):
    env = make()
    ids = grammar.encode("the dogs")
    for prefix in ("the dogs", ids, tuple(ids), np.array(ids), np.array([*ids, *[grammar.vocab.pad] * 19])):
        observation, _ = env.reset(options={"prefix": prefix})
        assert observation.tolist()[:3] == [*ids, grammar.vocab.pad]
    assert env.reset(options={"prefix": []})[0].tolist() == env.reset()[0].tolist()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prefix": [1, 209, 2]}, "has PAD"),
        ({"prefix": [1] * 21}, "no room within max_length=21"),
        ({"prefix": [1] * 22}, "the maximum is 21"),
        ({"prefix": [1, 0]}, "already finished"),
        ({"prefix": [1, 300]}, "must be in 0..208"),
        ({"prefix": [-1]}, "must be in 0..208"),
        ({"prefix": [1.5]}, "a text or a list of ids"),
        ({"prefix": 3}, "a text or a list of ids"),
        ({"prefix": "the unheardof"}, "'unheardof' is not in this vocabulary"),
        ({"prompt": "the dogs"}, "has no prompts"),
        ({"prefx": [1]}, "Did you mean 'prefix'"),
    ],
)
def test_a_refused_reset_changes_nothing(options, words):
    env = make(reward="length").unwrapped
    env.reset()
    env.step(5)
    with pytest.raises(text_gym.TextGymError, match=words):
        env.reset(options=options)
    assert env.step(env.task.vocab.eos)[4]["length"] == 2


def randomness(env):
    return env.np_random.bit_generator.state, env.np_random_seed


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize(("token", "error"), [(7, MaskError), (8, MaskError)])
@pytest.mark.parametrize("task", ["answers", "grammar"])
def test_a_reset_that_the_constraint_refuses_changes_nothing(task, token, error, seed):
    """After the failed reset, the episode and later prompts equal those of a twin without that reset."""
    arguments = {"task": task, "constraint": until_a_seven, "reward": "length", "render_mode": "ansi"}
    env, twin = make(**arguments).unwrapped, make(**arguments).unwrapped
    for e in (env, twin):
        e.reset(seed=11)
        e.step(5)
    generator = env.np_random
    with pytest.raises(error):
        env.reset(seed=seed, options={"prefix": [token]})
    assert env.np_random is generator
    assert randomness(env) == randomness(twin)
    assert env.render() == twin.render()
    assert str(env.snapshot()) == str(twin.snapshot())
    assert (env.action_masks() == twin.action_masks()).all()
    assert str(env.step(6)) == str(twin.step(6))
    for _ in range(20):
        assert str(env.reset()) == str(twin.reset())
    assert randomness(env) == randomness(twin)


def test_a_refused_first_reset_leaves_no_episode_and_its_random_numbers_unused(answers):
    env = make(task=answers, constraint=until_a_seven, reward="length").unwrapped
    env.np_random, twin = np.random.default_rng(4), np.random.default_rng(4)
    with pytest.raises(MaskError):
        env.reset(options={"prefix": [7]})
    assert randomness(env) == (twin.bit_generator.state, -1)
    with pytest.raises(ResetNeededError):
        env.step(5)
    env.reset()
    assert env.np_random.bit_generator.state != twin.bit_generator.state


@pytest.mark.parametrize("bits", [np.random.PCG64, np.random.MT19937, np.random.Philox, np.random.SFC64])
def test_a_constraint_does_not_change_what_is_drawn(answers, bits):
    """With the generator of the caller, and with a seed."""
    free, bound = (make(task=answers, **options).unwrapped for options in ({}, {"constraint": until_a_seven}))
    for env in (free, bound):
        env.np_random = np.random.Generator(bits(2))
    for seed in (None, None, 5, None):
        assert str(free.reset(seed=seed)[0]) == str(bound.reset(seed=seed)[0])
        assert str(randomness(free)) == str(randomness(bound))


@pytest.mark.parametrize(
    "options",
    [
        {"prompt_index": 10**6}, {"prompt_index": -1}, {"prompt_index": "a"}, {"prompt": [1] * 99}, {"prompt": 1.5},
        {"prompt": [[1], [1, 2]]}, {"prompt": "what is 1 plus 1 ?", "prompt_index": 0}, {"prompt": 3}, "prompt",
    ],
)  # fmt: skip
def test_refused_prompts(answers, options):
    with pytest.raises(OptionError):
        make(task=answers).reset(options=options)


@pytest.mark.parametrize("action", [-1, 209, 10**30, 1.0, "the", None, [1], np.array([1, 2]), np.float64(3)])
def test_a_refused_action_changes_nothing(action):
    env = make(reward="length").unwrapped
    env.reset()
    env.step(5)
    with pytest.raises(InvalidActionError, match=r"whole number in 0\.\.208"):
        env.step(action)
    assert env.step(0)[4]["length"] == 2
    with pytest.raises(ResetNeededError):
        make().unwrapped.step(0)


@pytest.mark.parametrize("action", [5, np.int64(5), np.int32(5), np.array(5), np.uint8(5)])
def test_whole_numbers_of_any_kind_are_actions(action):
    env = make()
    env.reset()
    assert env.step(action)[0][0] == 5


def test_masks_say_what_is_allowed():
    env = make(min_length=3, banned=["the", 7]).unwrapped
    vocab = env.task.vocab
    _, info = env.reset()
    for step in range(3):
        banned = set(np.flatnonzero(info["action_mask"] == 0).tolist())
        assert banned == {vocab.ids["the"], 7, vocab.eos}, step
        assert (env.action_masks() == (info["action_mask"] == 1)).all()
        info = env.step(20)[4]
    assert info["action_mask"][vocab.eos] == 1
    assert write_out(env, [7, vocab.eos])[4]["disallowed"] == 1


def test_min_length_is_the_shortest_a_masked_agent_writes():
    env = make(min_length=6, reward="length")
    env.action_space.seed(0)
    shortest = 99
    for seed in range(60):
        _, info = env.reset(seed=seed)
        done = False
        while not done:
            _, _, done, _, info = env.step(env.action_space.sample(info["action_mask"]))
        shortest = min(shortest, info["length"])
    assert shortest >= 7


def test_a_masked_agent_stays_in_the_language():
    env = make(constraint="valid", reward="validity")
    env.action_space.seed(1)
    for seed in range(30):
        _, info = env.reset(seed=seed)
        done = False
        while not done:
            _, reward, done, _, info = env.step(env.action_space.sample(info["action_mask"]))
        assert reward == 1.0, info["text"]
    assert (info["disallowed"], info["length"] <= 21) == (0, True)


def test_a_constraint_is_asked_about_every_prefix():
    asked = []

    def rising(prefixes, lengths, prompts):
        asked.append((prefixes.copy(), lengths.tolist(), prompts))
        last = np.where(lengths > 0, prefixes[np.arange(len(prefixes)), lengths - 1], 0)
        return np.arange(6) >= last[:, None]

    env = make(task="oracle(vocab_size=6, max_length=4)", constraint=rising, reward="constant")
    _, info = env.reset()
    assert info["action_mask"].tolist() == [1] * 6
    info = env.step(3)[4]
    assert info["action_mask"].tolist() == [0, 0, 0, 1, 1, 1]
    assert asked[-1][0].tolist() == [[3, 6, 6, 6]]
    assert asked[-1][1:] == ([1], [[]])
    info = env.step(1)[4]
    assert info["action_mask"].tolist() == [0, 1, 1, 1, 1, 1]
    info = write_out(env, [0, 5])[4]
    assert info["disallowed"] == 2
    assert info["action_mask"].tolist() == [1] * 6
    assert len(asked) == 4


def test_after_straying_a_constraint_that_allows_nothing_is_dropped():
    env = make(constraint="valid", reward="validity", banned=[7]).unwrapped
    vocab = env.task.vocab
    env.reset()
    info = write_out(env, [vocab.ids["dog"], vocab.ids["the"]])[4]
    assert np.flatnonzero(info["action_mask"] == 0).tolist() == [7]
    snapshot = env.snapshot()
    twin = make(constraint="valid", reward="validity", banned=[7]).unwrapped
    assert twin.reset(options=snapshot)[1]["action_mask"].tolist() == info["action_mask"].tolist()
    assert str(twin.step(0)) == str(env.step(0))


def test_a_failed_step_ends_the_episode_and_a_failed_reset_does_not():
    def until_a_seven(prefixes):
        return np.repeat(~(prefixes == 7).any(axis=1)[:, None], 209, axis=1)

    env = make(constraint=until_a_seven, reward=lambda completions: [float("nan")]).unwrapped
    env.reset()
    env.step(5)
    with pytest.raises(MaskError, match="nothing may follow"):
        env.reset(options={"prefix": [7]})
    env.step(6)
    with pytest.raises(MaskError, match="nothing may follow"):
        env.step(7)
    with pytest.raises(ResetNeededError):
        env.step(5)
    env.reset()
    with pytest.raises(RewardError, match="returned nan"):
        env.step(0)
    with pytest.raises(ResetNeededError):
        env.step(5)
    with pytest.raises(ResetNeededError, match="snapshot"):
        env.snapshot()


def test_bad_constraints_are_told(answers):
    def check(constraint, error, words, **arguments):
        with pytest.raises(error, match=words):
            make(constraint=constraint, **arguments).reset()

    check(lambda prefixes: np.zeros((1, 209)), MaskError, "true or false")
    check(lambda prefixes: np.ones((1, 5), bool), MaskError, r"\(1, 209\)")
    check(lambda prefixes: np.zeros((1, 209), bool), MaskError, "nothing may follow ''")
    check(lambda prefix: 1, OptionError, "unknown parameter 'prefix'.*Did you mean 'prefixes'")
    check("valid", OptionError, "knows its language", task=answers)
    check("vald", OptionError, "give 'valid'")
    check(3, OptionError, "not callable")
    with pytest.raises(MaskError, match="allow no token"):
        make(task="oracle(vocab_size=2)", banned=[0, 1])
    with pytest.raises(OptionError, match="'zebra' is not in the vocabulary"):
        make(banned=["zebra"])


def test_arguments_are_checked():
    for arguments, words in [
        ({"max_length": 0}, "max_length"),
        ({"min_length": 21}, "min_length=21"),
        ({"split": "tset", "task": "answers"}, "Did you mean 'test'"),
        ({"render_mode": "html"}, "render_mode must be 'ansi', 'rgb_array', 'human' or None, not 'html'"),
        ({"sead": 1}, "unexpected keyword argument 'sead'.*Did you mean 'seed'"),
        ({"task": "gramar"}, "Did you mean 'grammar'"),
        ({"reward": "blue"}, "Did you mean 'bleu'"),
        ({"task": 3}, "a name, a path"),
        ({"rewards": "bleu"}, "unexpected keyword argument 'rewards'.*Did you mean 'reward'"),
        ({"task": "some.csv"}, "give a file that ends in .txt"),
        ({"task": "some.txt", "tokeniser": "char"}, "Did you mean 'tokenizer'"),
    ]:
        with pytest.raises(text_gym.TextGymError, match=words):
            TextGenEnv(**arguments)


def test_a_spec_of_strings_and_numbers_survives_json(answers):
    arguments = {
        "task": "grammar", "reward": {"bleu(n=2)": 1.0, "length": 0.1}, "max_length": 9, "min_length": 2,
        "constraint": "valid", "banned": ["never"], "seed": 4, "split": "train",
    }  # fmt: skip
    env = make(**arguments)
    again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert again.unwrapped.task.train.references.flat.tolist() == env.unwrapped.task.train.references.flat.tolist()
    for e in (env, again):
        e.action_space.seed(0)
        e.reset(seed=0)
    actions = [0, 1]
    assert [again.step(a)[1] for a in actions[:1]] == [env.step(a)[1] for a in actions[:1]]
    assert json.loads(env.spec.to_json())["kwargs"]["reward"] == {"bleu(n=2)": 1.0, "length": 0.1}


def test_live_objects_stay_themselves(answers):
    class Counting(text_gym.Reward):
        calls = 0

        def score(self, batch):
            self.calls += 1
            return [1.0] * len(batch)

    reward = Counting()
    env = make(task=answers, reward=reward)
    again = gym.make(env.spec)
    for e in (env, again):
        e.reset()
        write_out(e, [answers.vocab.eos])
        assert e.unwrapped.task is answers
    assert reward.calls == 2


def test_copies_and_pickles_go_on_as_the_original():
    env = make(reward="bleu(n=2)", min_length=2).unwrapped
    env.reset(seed=1)
    env.step(4)
    for other in (pickle.loads(pickle.dumps(env)), copy.deepcopy(env)):
        assert str(other.step(9)[:4]) == str(copy.deepcopy(env).step(9)[:4])
        assert str(other.step(0)) == str(write_out(copy.deepcopy(env), [9, 0]))


def test_wrappers():
    env = gym.wrappers.RecordEpisodeStatistics(gym.wrappers.TransformReward(make(reward="length"), lambda r: 10 * r))
    env.reset()
    info = write_out(env, [4, 5, 0])[4]
    assert (info["episode"]["r"], info["episode"]["l"]) == (20.0, 3)
    env = make(max_episode_steps=2, reward="length")
    env.reset()
    assert write_out(env, [4, 5])[1:4] == (0.0, False, True)


def test_rendering(capsys, answers):
    env = make(render_mode="ansi")
    env.reset(options={"prefix": "the dogs"})
    assert env.render() == "the dogs"
    env.step(env.unwrapped.task.vocab.ids["run"])
    assert env.render() == "the dogs run"
    capsys.readouterr()
    env = make(render_mode="human", task=answers, reward={"length": 0.5, "exact_match": 1.0})
    env.reset(options={"prompt": "what is 7 plus 5 ?"})
    assert env.render() is None
    assert capsys.readouterr().out == "what is 7 plus 5 ? -> "
    env.step(answers.vocab.ids["1"])
    assert capsys.readouterr().out == "1"
    write_out(env, [answers.vocab.ids["2"], answers.vocab.eos])
    out = capsys.readouterr().out
    assert out.startswith(" 2\n  reward ")
    assert "length 2" in out
    assert "exact_match" in out


def test_one_seed_one_episode_in_any_process():
    code = (
        "import gymnasium as gym, text_gym\n"
        "for task in ('grammar', 'answers', 'oracle(vocab_size=50, train_size=100, valid_size=9, test_size=9)'):\n"
        "    env = gym.make('TextGen-v0', task=task, reward={'random': 1, 'length': 1})\n"
        "    observation, info = env.reset(seed=7); env.action_space.seed(7); print(observation)\n"
        "    done = False\n"
        "    while not done:\n"
        "        observation, reward, done, _, info = env.step(env.action_space.sample())\n"
        "    print(reward, info['text'], env.unwrapped.task.train[3])\n"
    )
    outputs = set()
    for hash_seed in ("0", "1234"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        outputs.add(done.stdout)
    assert len(outputs) == 1
    assert "references" in outputs.pop()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.integers(2, 30),
    limit=st.integers(1, 8),
    actions=st.lists(st.integers(0, 10**6), min_size=8, max_size=8),
    banned=st.sets(st.integers(0, 29), max_size=4),
)
def test_any_episode_of_any_size(size, limit, actions, banned):
    """Observations contain the actions, the mask is that of the banned tokens, and episodes have the right length."""
    banned = {b for b in banned if b < size}
    task = text_gym.make_task("oracle", vocab_size=size, max_length=limit)
    if len(banned) == size:
        return
    env = make(task=task, banned=sorted(banned), reward="length").unwrapped
    observation, info = env.reset()
    for t in range(limit):
        assert set(np.flatnonzero(info["action_mask"] == 0).tolist()) == banned
        action = actions[t] % size
        observation, reward, terminated, _, info = env.step(action)
        assert observation[: t + 1].tolist() == [a % size for a in actions[: t + 1]]
        assert (observation[t + 1 :] == size).all()
        assert (terminated, reward) == ((True, float(limit)) if t == limit - 1 else (False, 0.0))
    assert info["disallowed"] == sum(a % size in banned for a in actions[:limit])


@pytest.mark.parametrize("task", ["grammar", "answers"])
def test_plain_sb3_learns_without_an_adapter(task):
    policy = "MultiInputPolicy" if task == "answers" else "MlpPolicy"
    model = PPO(policy, make(task=task, reward="length"), n_steps=32, batch_size=16, n_epochs=1, seed=0, device="cpu")
    assert model.learn(64).num_timesteps == 64


def test_sb3_makes_it_by_name():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert PPO("MlpPolicy", "TextGen-v0", n_steps=8, batch_size=8, device="cpu").n_envs == 1
        assert make_vec_env("TextGen-v0", n_envs=2, env_kwargs={"reward": "length"}).num_envs == 2


def test_a_corpus_as_a_task(write):
    env = make(task=str(write("rhymes.txt", "a cat sat\na rat sat\n")), reward="bleu(n=2)", valid=0.0, test=0.0)
    vocab = env.unwrapped.task.vocab
    env.reset()
    *_, reward, _, _, info = write_out(env, [*vocab.encode("a rat sat"), vocab.eos])
    assert (reward, info["text"]) == (pytest.approx(1.0), "a rat sat")
    assert rhymes(write).max_length == 4


@pytest.mark.parametrize("task", ["answers", "grammar"])
def test_infos_have_the_same_keys_at_every_step(task):
    """Values that describe the finished sequence are empty before the end, and of the same type as at the end."""
    env = make(task=task, reward={"length": 1.0, "random": 0.5}, max_length=4).unwrapped
    _, first = env.reset(seed=0)
    infos = [first, *(env.step(5)[4] for _ in range(4))]
    assert {tuple(sorted(info)) for info in infos} == {tuple(sorted(first))}
    assert {tuple(map(type, map(info.get, sorted(info)))) for info in infos} == {
        tuple(map(type, map(first.get, sorted(first))))
    }
    for info in infos[:-1]:
        assert (info["text"], info["length"], info["disallowed"], info.get("prompt", "")) == ("", 0, 0, "")
        assert info["reward_terms"] == {"length": 0.0, "random": 0.0}
    assert (infos[-1]["length"], infos[-1]["reward_terms"]["length"]) == (4, 4.0)
    infos[0]["reward_terms"]["length"] = 7.0
    assert env.reset()[1]["reward_terms"]["length"] == 0.0


def test_observations_as_floats_and_one_hot_vectors(answers):
    tokens, floats, vectors = (make(max_length=4, observation=form) for form in ("tokens", "float", "one_hot"))
    for env in (floats, vectors):
        check_env(env.unwrapped)
        assert env.observation_space.dtype == np.float32
    for env in (tokens, floats, vectors):
        env.reset(options={"prefix": "the"})
    ids, same, vector = (env.step(7)[0] for env in (tokens, floats, vectors))
    assert (same.dtype, same.tolist()) == (np.float32, ids.tolist())
    assert vector.shape == (4 * 209,)
    assert np.flatnonzero(vector).tolist() == [ids[0], 209 + 7]  # zeros for PAD
    asked = make(task=answers, observation="one_hot")
    observation, _ = asked.reset(seed=3)
    ids, _ = make(task=answers).reset(seed=3)
    assert observation in asked.observation_space
    assert np.flatnonzero(observation["prompt"]).tolist() == [
        i * 39 + token for i, token in enumerate(ids["prompt"].tolist()) if token < 39
    ]
    assert not observation["prefix"].any()
    with pytest.raises(OptionError, match="observation must be one of 'tokens', 'float', 'one_hot', not 'ids'"):
        make(observation="ids")


def test_frames_show_the_text_and_its_reward():
    env = make(render_mode="rgb_array", max_length=4, reward="length").unwrapped
    env.reset()
    frames = [env.render()]
    for token in (5, 6, 0):
        env.step(token)
        frames.append(env.render())
    assert {(frame.shape, frame.dtype) for frame in frames} == {(frames[0].shape, np.dtype(np.uint8))}
    changed = [np.flatnonzero((a != b).any(axis=(1, 2))) for a, b in itertools.pairwise(frames)]
    assert all(len(rows) for rows in changed)
    assert changed[0].min() < 60  # the text is at the top
    assert changed[2].min() > 180  # EOS adds no text; the reward is at the bottom
    env.reset()
    assert (env.render() == frames[0]).all()
    long = make(render_mode="rgb_array", max_length=400, task="oracle(vocab_size=9, max_length=400, train_size=9)")
    long.reset(options={"prefix": [1] * 399})
    assert long.render().shape == frames[0].shape


def test_a_constraint_that_fails_is_named_and_its_error_kept():
    def clumsy(prefixes):
        raise KeyError("no such word")

    with pytest.raises(MaskError, match="the constraint 'clumsy' failed with KeyError: 'no such word'") as caught:
        make(constraint=clumsy).reset()
    assert isinstance(caught.value.__cause__, KeyError)

    def ragged(prefixes):
        return [[1], [1, 2]]

    with pytest.raises(MaskError, match="the constraint 'ragged' returned"):
        make(constraint=ragged).reset()


HUGE = 10**5000  # too long for str()


@pytest.mark.parametrize(
    "arguments",
    [
        {name: value}
        for name in ("task", "reward", "max_length", "min_length", "split", "constraint", "render_mode", "observation")
        for value in (np.array([1, 2]), np.array(["a", "b"]), HUGE, [["x"]])
    ]
    + [{"banned": np.array(400)}, {"banned": [np.array([1, 2])]}, {"reward_timeout": 0}, {"reward_timeout": HUGE}],
    ids=lambda arguments: next(iter(arguments)),
)
def test_arrays_and_huge_numbers_are_refused_in_few_words(arguments):
    for made in (TextGenEnv, text_gym.TextGenVectorEnv):
        with pytest.raises(text_gym.TextGymError) as caught:
            made(**arguments)
        assert len(str(caught.value)) <= 500


def test_no_message_is_longer_than_500_characters():
    def fails(completions):
        raise ValueError("x" * 10_000)

    env = make(reward=fails)
    env.reset()
    with pytest.raises(RewardError, match=r"^reward 'fails' failed with ValueError: x") as caught:
        env.step(0)
    assert len(str(caught.value)) == 500
    with pytest.raises(OptionError) as caught:
        make().reset(options={"prefix": [*range(10**6), "end"]})
    assert len(str(caught.value)) < 500
    with pytest.raises(OptionError, match="is out of range"):
        make(task="answers").reset(options={"prompt_index": HUGE})


def test_a_prefix_has_no_more_disallowed_tokens_than_tokens():
    for disallowed in (3, 2**63, HUGE):
        for made in (make(), gym.make_vec("TextGen-v0", num_envs=2)):
            with pytest.raises(OptionError, match="is more than the 2 tokens of the prefix"):
                made.reset(options={"prefix": [5, 6], "disallowed": disallowed})
    env = make().unwrapped
    env.reset(options={"prefix": [5, 6], "disallowed": 2})
    assert env.step(0)[4]["disallowed"] == 2


def test_an_unknown_argument_is_the_type_error_that_libraries_expect():
    for made in (make, lambda **arguments: gym.make_vec("TextGen-v0", num_envs=2, **arguments)):
        with pytest.raises(TypeError, match="unexpected keyword argument 'frameskip'") as caught:
            made(frameskip=1)
        assert isinstance(caught.value, OptionError)


def test_an_environment_says_its_task_and_its_reward():
    own = "<TextGenEnv<TextGen-v0, task='grammar', reward=BleuReward(n=3)>>"
    env = make(reward="bleu(n=3)")
    assert repr(env.unwrapped) == str(env.unwrapped) == own
    assert repr(env) == f"<OrderEnforcing<PassiveEnvChecker{own}>>"
    env.reset()
    env.step(0)
    env.close()
    assert repr(env.unwrapped) == own
    alone = TextGenEnv(task="answers", reward={"exact_match": 1.0, "length": -0.1})
    assert repr(alone) == "<TextGenEnv<task='answers', reward=ExactMatchReward() + -0.1 * LengthReward()>>"
    envs = gym.make_vec("TextGen-v0", num_envs=3, reward="constant")
    assert repr(envs) == "TextGenVectorEnv(TextGen-v0, num_envs=3, task='grammar', reward=ConstantReward())"
    assert repr(env.unwrapped.rules).startswith("Rules(Task('grammar', ")
