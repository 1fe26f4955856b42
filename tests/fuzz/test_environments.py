"""Random calls with hostile arguments: the package's own error and nothing changed, or what any call returns.

Each case has a vector environment, as many scalar ones, and twins of all of them that no hostile call reaches. After
each call the environments, scalar, vector and twins, are in the same state.
"""

import contextlib
import fractions
import io

import gymnasium as gym
import numpy as np
import pytest
import torch

import text_gym
from tests.helpers.constraints import until_a_seven
from tests.helpers.fuzzing import cases
from text_gym.errors import LONGEST_MESSAGE, TextGymError

pytestmark = pytest.mark.slow


class NoWords:
    """What cannot be shown."""

    def __repr__(self):
        raise ValueError("no words")


def fails_at_five(tokens):
    """A reward with a bug."""
    if (tokens == 5).any():
        raise ZeroDivisionError("x" * 10_000)
    return tokens[:, 0]


def hostile(random):
    """A value that almost no argument takes."""
    deep = [1]
    for _ in range(50):
        deep = [deep]
    values = [
        0, 1, 2, -1, 2**31, 2**63, 2**64, -(2**63) - 1, 10**30, 10**5000, -(10**5000), True, None, 0.0, 1.5, -0.5,
        1e300, float("nan"), float("inf"), 1j, fractions.Fraction(1, 3), "", "the", "the dogs", "a" * 10_000, "\0",
        "\ud800", b"ab", [], [[]], [1, [2]], [None], [10**30], ["the", 1], [1, 2], [1.5], [True], (3, 4), {}, {"a": 1},
        {1, 2}, range(3), deep, object(), NoWords(), [NoWords()], len, np.array(3), np.array([1]), np.array([1.5, 2.5]),
        np.zeros((2, 2)), np.zeros((2, 2), int), np.arange(1000), np.array("a"), np.array([object()]), np.array([]),
        np.array([2**63 - 1]), np.array([2**64 - 1], dtype=np.uint64), np.array([-1]), np.array([True, False]),
        np.array([["a"]]), np.int64(2), np.uint64(2**64 - 1), np.float32(1), np.bool_(True), np.ma.masked,
        np.datetime64("2020-01-01"), torch.tensor(1), torch.tensor([1, 2]), torch.zeros(2, 2),
        torch.ones(1, requires_grad=True), torch.tensor([1], dtype=torch.bfloat16),
    ]  # fmt: skip
    return values[random.integers(len(values))]


def some_settings(random):
    """A small environment of any kind."""
    task = random.choice(["grammar", "answers(size=60)", "oracle(vocab_size=9, max_length=3, train_size=9)"])
    settings = {"task": str(task), "max_length": 3 if "oracle" in task else 4}
    settings["reward"] = [fails_at_five, "random", {"length": 1.0, "random": 0.5}][random.integers(3)]
    settings["observation"] = str(random.choice(["tokens", "tokens", "float", "one_hot"]))
    settings["render_mode"] = str(random.choice(["ansi", "rgb_array"]))
    if random.random() < 0.4:
        settings["constraint"] = until_a_seven
    if random.random() < 0.3 and "oracle" not in task:
        settings["min_length"] = 1
    return settings


class Same:
    """A vector environment, scalar ones, and twins of both; a failed call leaves all of them without an episode."""

    def __init__(self, random):
        self.n = int(random.integers(1, 4))
        settings = some_settings(random)
        self.vector, self.vector_twin = (
            gym.make_vec("TextGen-v0", num_envs=self.n, autoreset_mode="Disabled", **settings).unwrapped
            for _ in range(2)
        )
        self.scalars, self.twins = (
            [gym.make("TextGen-v0", **settings).unwrapped for _ in range(self.n)] for _ in range(2)
        )
        for env in (self.vector, self.vector_twin, *self.scalars, *self.twins):
            env.np_random = np.random.default_rng(0)
        self.keys = None

    def call(self, name, of_vector, of_scalars):
        """Call all of them with arguments that are fine; how each of them answers, the same everywhere."""
        vector = answer(self.vector, name, of_vector)
        assert same(vector, answer(self.vector_twin, name, of_vector))
        scalars = [answer(env, name, given) for env, given in zip(self.scalars, of_scalars, strict=True)]
        assert same(scalars, [answer(env, name, given) for env, given in zip(self.twins, of_scalars, strict=True)])
        failed = [got for got in scalars if isinstance(got, TextGymError)]
        if failed:
            assert type(vector) in map(type, failed), (vector, failed)
            return None
        self.check_alike(vector, scalars)
        return vector

    def check_alike(self, vector, scalars):
        """Observations, rewards, ends and infos, row for row, all in their spaces."""
        self.check_valid(self.vector, vector)
        for i, (env, scalar) in enumerate(zip(self.scalars, scalars, strict=True)):
            self.check_valid(env, scalar)
            for mine, other in zip(vector[:-1], scalar[:-1], strict=True):
                assert same(row(mine, i), other)
            for key, value in scalar[-1].items():
                if vector[-1][f"_{key}"][i]:
                    assert same(row(vector[-1][key], i, value), value)

    def check_valid(self, env, result):
        assert result[0] in env.observation_space
        keys = {key for key in result[-1] if not key.startswith("_")}
        assert keys == (self.keys or keys)
        self.keys = keys


def answer(env, name, given):
    """What a call returns, or the package's own error that it raises; anything else is a bug."""
    arguments, options = given
    try:
        return getattr(env, name)(*arguments, **options)
    except TextGymError as problem:
        error = problem
    assert 0 < len(str(error)) <= LONGEST_MESSAGE
    return error


def attack(random):
    """The name of a method and hostile arguments of it."""
    name = str(random.choice(["reset", "reset", "reset", "step"]))
    if name == "step":
        actions = hostile(random) if random.random() < 0.5 else [hostile(random) for _ in range(random.integers(4))]
        return name, ((actions,), {})
    if random.random() < 0.2:
        return name, ((), {"seed": hostile(random), "options": None})
    if random.random() < 0.1:
        return name, ((), {"options": hostile(random)})
    names = ["prefix", "prompt", "prompt_index", "disallowed", "reset_mask", "prefx", 7, None, "x" * 1000]
    options = {names[i]: hostile(random) for i in random.choice(len(names), random.integers(1, 3), replace=False)}
    return name, ((), {"options": options, "seed": None})


def row(value, i, like=None):
    """One environment's part of what the vector environment returns."""
    if isinstance(value, dict):
        names = value if like is None else like
        return {key: row(value[key], i) for key in names}
    return value[i]


def same(one, two):
    """Whether two results say the same, errors by their words."""
    if isinstance(one, BaseException) or isinstance(two, BaseException):
        return type(one) is type(two) and str(one) == str(two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    if isinstance(one, np.ndarray) and one.dtype == object:
        return isinstance(two, np.ndarray) and same(list(one), list(two))
    return not isinstance(two, list | tuple | dict) and np.array_equal(one, two)


def is_for_both(argument):
    """Whether scalar and vector environments read an argument of reset() alike: no mask, and no value for each."""
    options = argument[1].get("options")
    options = options if isinstance(options, dict) else {}
    values = [argument[1].get("seed"), *options.values()]
    return "reset_mask" not in options and not any(isinstance(v, list | tuple | range | np.ndarray) for v in values)


@pytest.fixture(autouse=True)
def quiet(recwarn):
    """numpy and torch warn of some conversions, which are refused afterwards."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


@pytest.mark.filterwarnings("ignore")
def test_no_call_gets_past_the_packages_own_errors():
    refused = accepted = steps = 0
    for case, generator in cases("environments"):
        random = np.random.default_rng(generator.getrandbits(64))
        envs = Same(random)
        running = False
        for _ in range(30):
            try:
                if random.random() < 0.5:
                    name, argument = attack(random)
                    pairs = [(envs.vector, envs.vector_twin), *zip(envs.scalars, envs.twins, strict=True)]
                    # A call that one of them accepts moves only that one, so all start anew after it.
                    moved = False
                    kinds = []
                    for env, twin in pairs:
                        result = answer(env, name, argument)
                        kinds.append(result)
                        if not isinstance(result, TextGymError):
                            moved = True
                            envs.check_valid(env, result)
                            assert same(result, answer(twin, name, argument))
                        elif name == "step" and not is_refusal(result):
                            moved = True  # the reward or the constraint failed in a step that was fine
                            answer(twin, name, argument)
                    if name == "reset" and is_for_both(argument):
                        assert len({isinstance(kind, TextGymError) for kind in kinds}) == 1, kinds
                    refused += not moved
                    accepted += moved
                    running = running and not moved
                elif not running or random.random() < 0.2:
                    seed = int(random.integers(2**63))
                    scalars = [((), {"seed": seed + i}) for i in range(envs.n)]
                    running = envs.call("reset", ((), {"seed": seed}), scalars) is not None
                else:
                    size = int(envs.vector.single_action_space.n)
                    tokens = random.integers(min(size, 9), size=envs.n)
                    result = envs.call("step", ((tokens,), {}), [((token,), {}) for token in tokens])
                    steps += 1
                    running = result is not None and not result[2].any()
                for env in (envs.vector, envs.scalars[0]):
                    check_look(env)
                for env, twin in [(envs.vector, envs.vector_twin), *zip(envs.scalars, envs.twins, strict=True)]:
                    assert same(answer(env, "snapshot", ((), {})), answer(twin, "snapshot", ((), {})))
            except AssertionError as problem:
                raise AssertionError(f"case {case}: {problem}") from problem
    assert min(refused, accepted, steps) > 0, (refused, accepted, steps)


def is_refusal(error):
    """Whether an error came before anything changed."""
    return isinstance(
        error, text_gym.errors.InvalidActionError | text_gym.errors.OptionError | text_gym.errors.ResetNeededError
    )


def check_look(env):
    """render() and snapshot() work, or say what to do, and snapshot() leads back."""
    shown = env.render()
    frames = shown if isinstance(shown, tuple) else (shown,)
    assert all(isinstance(frame, str) or frame.dtype == np.uint8 for frame in frames)
    options = answer(env, "snapshot", ((), {}))
    if not isinstance(options, TextGymError):
        before = env.action_masks().copy()
        assert env.reset(options=options)[0] in env.observation_space
        assert (env.action_masks() == before).all()
        assert same(env.snapshot(), options)
