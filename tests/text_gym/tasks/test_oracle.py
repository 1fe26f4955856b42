"""The oracle against an LSTM in numpy, published figures and malicious files."""

import io
import math
import os
import pickle
import zipfile

import numpy as np
import pytest

import text_gym
from text_gym.errors import DataError, OptionError, TaskError
from text_gym.tasks.oracle import NAMES, Oracle, load_parameters


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def by_hand(p, rows):
    """Compute the log-probability of each sequence by LSTM steps in numpy."""
    p = {k: v.astype(np.float64) for k, v in p.items()}
    totals = []
    for row in rows:
        h = c = np.zeros(len(p["bi"]))
        token, total = 0, 0.0
        for following in row:
            x = p["embedding"][token]
            i, f, o = (sigmoid(x @ p[f"W{g}"] + h @ p[f"U{g}"] + p[f"b{g}"]) for g in "ifo")
            c = f * c + i * np.tanh(x @ p["Wc"] + h @ p["Uc"] + p["bc"])
            h = o * np.tanh(c)
            logits = h @ p["W_out"] + p["b_out"]
            total += logits[following] - logits.max() - math.log(np.exp(logits - logits.max()).sum())
            token = following
        totals.append(total)
    return totals


@pytest.fixture(scope="module")
def small():
    return Oracle(vocab_size=7, max_length=4, embedding=3, hidden=5, seed=2)


def test_log_prob_by_hand(small):
    rows = np.random.default_rng(0).integers(0, 7, (20, 4))
    assert small.log_prob(rows) == pytest.approx(by_hand(small.parameters, rows), abs=1e-4)


def test_probabilities_sum_to_one(small):
    every = np.stack(np.meshgrid(*[range(7)] * 4), -1).reshape(-1, 4)
    assert np.exp(small.log_prob(every)).sum() == pytest.approx(1, abs=1e-5)


def test_samples_have_the_probabilities(small):
    n = 50_000
    tokens = small.sample(n, seed=1).tokens
    numbers = tokens @ 7 ** np.arange(4)
    counts = np.bincount(numbers, minlength=7**4)
    every = np.arange(7**4)[:, None] // 7 ** np.arange(4) % 7
    expected = n * np.exp(small.log_prob(every))
    often = expected >= 5
    rest = counts[~often].sum(), expected[~often].sum()
    statistic = ((counts - expected) ** 2 / expected)[often].sum() + (rest[0] - rest[1]) ** 2 / rest[1]
    assert statistic < often.sum() + 5 * math.sqrt(2 * often.sum())


def test_scoring_a_sample_gives_the_likelihood_it_was_drawn_with(small):
    batch = small.sample(600, seed=3)
    assert small.log_prob(batch.tokens) == pytest.approx(by_hand(small.parameters, batch.tokens), abs=1e-4)
    assert small.log_prob(batch.tokens[:, :2], [2] * 600) == pytest.approx(
        by_hand(small.parameters, batch.tokens[:, :2]), abs=1e-4
    )
    assert len(small.sample(0, seed=0)) == len(small.log_prob(np.zeros((0, 4), dtype=int))) == 0


def test_seeds(small):
    again = Oracle(vocab_size=7, max_length=4, embedding=3, hidden=5, seed=2)
    other = Oracle(vocab_size=7, max_length=4, embedding=3, hidden=5, seed=3)
    assert (small.sample(5, seed=9).tokens == again.sample(5, seed=9).tokens).all()
    assert (small.sample(50, seed=9).tokens != other.sample(50, seed=9).tokens).any()
    assert (small.sample(50, seed=9).tokens != small.sample(50, seed=8).tokens).any()


def test_published_parameters(data):
    task = text_gym.make_task("oracle", path=str(data / "seqgan_target_params.pkl"))
    batch = task.sample(5_000, seed=0)
    assert -task.log_prob(batch.tokens).mean() / 20 == pytest.approx(5.755, abs=0.03)
    random = np.random.default_rng(0).integers(0, 5000, (2_000, 20))
    assert -task.log_prob(random).mean() / 20 == pytest.approx(11.43, abs=0.05)
    rows = batch.tokens[:3]
    assert task.log_prob(rows) == pytest.approx(by_hand(task.source.parameters, rows), abs=2e-3)


def test_npz_round_trip(small, tmp_path):
    np.savez(tmp_path / "oracle.npz", **small.parameters)
    loaded = Oracle.load(tmp_path / "oracle.npz", max_length=4)
    rows = small.sample(5, seed=0).tokens
    assert (loaded.log_prob(rows) == small.log_prob(rows)).all()
    task = text_gym.make_task("oracle", path=str(tmp_path / "oracle.npz"), max_length=4)
    assert len(task.vocab) == 7
    with pytest.raises(OptionError, match="7 tokens; leave vocab_size out"):
        text_gym.make_task("oracle", path=str(tmp_path / "oracle.npz"), vocab_size=5000)


@pytest.mark.parametrize("kind", [">f4", "<f8", ">f8"])
def test_the_order_of_bytes_is_read(small, tmp_path, kind):
    path = tmp_path / "oracle.pkl"
    path.write_bytes(pickle.dumps([np.asfortranarray(small.parameters[n]).astype(kind) for n in NAMES], protocol=2))
    loaded = load_parameters(path)
    assert all((loaded[name] == small.parameters[name]).all() for name in NAMES)


@pytest.mark.parametrize("protocol", range(6))
def test_pickled_lists_of_arrays_are_read(small, tmp_path, protocol):
    path = tmp_path / "oracle.pkl"
    path.write_bytes(pickle.dumps([small.parameters[name] for name in NAMES], protocol=protocol))
    if protocol == 5:  # numpy uses another function in protocol 5, which is not supported
        with pytest.raises(DataError, match=r"opcode BYTEARRAY8.*npz"):
            load_parameters(path)
        return
    loaded = load_parameters(path)
    assert all((loaded[name] == small.parameters[name]).all() for name in NAMES)


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def hostile_pickles(folder):
    yield pickle.dumps(Touch(str(folder / "ran")))
    yield pickle.dumps([Touch(str(folder / "ran"))] * 15)
    yield b"cbuiltins\neval\n(S'__import__(\"os\").mkdir(%r)'\ntR." % str(folder / "ran").encode()
    yield b"cnumpy\nload\n."
    yield b"cnumpy.core.multiarray\nscalar\n."
    yield pickle.dumps(np.array([Touch(str(folder / "ran"))], dtype=object), protocol=2)
    yield b""
    yield b"not a pickle at all"
    yield pickle.dumps({"a": 1})
    yield pickle.dumps([1.0] * 15)
    yield b"\x80\x02})" + b"\x85" * 200_000 + b"Ns."  # nested so deeply that hashing overflows the stack
    yield b"Np134217728\n0."  # needs gigabytes of memory for the memo
    yield b"\x80\x02Nr\x00\x00\x00\x10."
    yield pickle.dumps([np.zeros(3, dtype="i8")] * 15, protocol=2)
    yield pickle.dumps([np.zeros(3)] * 14, protocol=2)
    yield pickle.dumps([np.zeros(3, dtype="f4")] * 15, protocol=2).replace(b"K\x03\x85", b"K\x07\x85", 1)


def test_hostile_pickles_are_refused_and_run_nothing(tmp_path):
    for number, content in enumerate(hostile_pickles(tmp_path)):
        path = tmp_path / f"{number}.pkl"
        path.write_bytes(content)
        with pytest.raises(DataError):
            load_parameters(path)
    assert not (tmp_path / "ran").exists()


def test_a_pickle_inside_an_npz_is_refused(tmp_path):
    buffer = io.BytesIO()
    np.savez(buffer, **{name: np.array([Touch(str(tmp_path / "ran"))], dtype=object) for name in NAMES})
    (tmp_path / "oracle.npz").write_bytes(buffer.getvalue())
    with pytest.raises(DataError):
        load_parameters(tmp_path / "oracle.npz")
    assert not (tmp_path / "ran").exists()


def test_an_npz_of_other_things_is_refused(small, tmp_path):
    with zipfile.ZipFile(tmp_path / "oracle.npz", "w") as archive:
        for name in NAMES:
            archive.writestr(f"{name}.npy", b"hello")
    with pytest.raises(DataError):
        load_parameters(tmp_path / "oracle.npz")
    np.savez(tmp_path / "more.npz", **small.parameters, junk=np.zeros(5))
    assert set(load_parameters(tmp_path / "more.npz")) == set(NAMES)


def test_wrong_arrays_are_named(small, tmp_path):
    arrays = dict(small.parameters)
    np.savez(tmp_path / "short.npz", **{k: v for k, v in arrays.items() if k != "bf"})
    with pytest.raises(DataError, match="lacks the arrays bf"):
        load_parameters(tmp_path / "short.npz")
    np.savez(tmp_path / "shape.npz", **{**arrays, "W_out": np.zeros((5, 8), np.float32)})
    with pytest.raises(DataError, match=r"W_out must be an array \(5, 7\)"):
        load_parameters(tmp_path / "shape.npz")
    np.savez(tmp_path / "nan.npz", **{**arrays, "bo": np.full(5, np.nan, np.float32)})
    with pytest.raises(DataError, match="bo must be an array"):
        load_parameters(tmp_path / "nan.npz")
    with pytest.raises(DataError, match="no file"):
        load_parameters(tmp_path / "absent.npz")


def test_an_oracle_must_fit_the_vocabulary(small, grammar):
    with pytest.raises(TaskError, match="7 tokens and the task has 209"):
        text_gym.Task("mixed", grammar.vocab, 4, {}, source=small)
    with pytest.raises(OptionError, match="hidden must be"):
        text_gym.make_task("oracle", hidden=0)


@pytest.mark.parametrize("value", [1e300, -1e39, np.nan, np.inf])
def test_parameters_are_finite_in_float32(small, tmp_path, value):
    """1e300 is finite in float64, but not in float32."""
    arrays = {name: array.astype(np.float64) for name, array in small.parameters.items()}
    arrays["Wf"][0, 0] = value
    np.savez(tmp_path / "oracle.npz", **arrays)
    with pytest.raises(DataError, match=r"Wf must be .* finite in float32"):
        load_parameters(tmp_path / "oracle.npz")
    with pytest.raises(DataError, match=r"parameters: Wf must be .* finite in float32"):
        Oracle(7, 4, 3, 5, parameters=arrays)


def test_parameters_have_the_sizes_of_the_oracle(small):
    again = Oracle(7, 4, 3, 5, parameters=small.parameters)
    rows = again.sample(5, seed=0).tokens
    assert again.log_prob(rows).tolist() == small.log_prob(rows).tolist()
    with pytest.raises(DataError, match=r"embedding must be an array \(8, 3\)"):
        Oracle(8, 4, 3, 5, parameters=small.parameters)
    with pytest.raises(DataError, match="parameters lacks the arrays embedding"):
        Oracle(7, 4, 3, 5, parameters={})
