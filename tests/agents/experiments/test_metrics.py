"""Metrics compared with NLTK, enumeration, and values computed by hand."""

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from nltk.translate.bleu_score import SmoothingFunction
from nltk.translate.bleu_score import sentence_bleu as nltk_bleu

import text_gym
from agents import MLE, Reinforce
from agents.experiments.metrics import BLEU_ORDERS, Metrics, distinct, knows_temperature
from agents.experiments.reference_models import RealData, Uniform
from agents.experiments.settings import MetricSettings
from agents.report.columns import ALSO
from tests.helpers.gradients import SEQUENCES, WORTH, tiny_agent
from tests.helpers.models import probability
from tests.helpers.tasks import asked_twice, from_lists
from text_gym.errors import OptionError, UnknownNameError
from text_gym.sequences import Batch, Examples, Sequences
from text_gym.tasks import Task
from text_gym.tasks.grammar import Grammar

ORACLE = "oracle(vocab_size=12, max_length=5, train_size=96, valid_size=40, test_size=40)"
SMALL = MetricSettings(samples=60, references=30, temperatures=(0.5, 1.0, 2.0), sweep_samples=50, shown=2)
WRITTEN = [[1, 2, 1], [1, 2], [1, 2], [3], [2, 1, 3], []]
REAL = [[1, 2, 3], [2, 1], [1, 2, 1], [3, 3], [2, 2, 2], [1]]


class Fixed:
    """Model that generates given sequences."""

    def __init__(self, task, written):
        self.task, self.written = task, written

    def sample(self, n, seed=None, prompts=None):
        tokens, lengths = Sequences.from_lists(self.written).padded(
            self.task.max_length, self.task.vocab.pad, self.task.vocab.eos
        )
        return Batch(tokens, lengths, self.task.vocab, prompts)


def by_nltk(sentence, references, n):
    return float(nltk_bleu(references, sentence, [1 / n] * n, smoothing_function=SmoothingFunction().method1))


@pytest.fixture(scope="module")
def oracle():
    return text_gym.make_task(ORACLE)


@pytest.fixture(scope="module")
def learner():
    return MLE(gym.make("TextGen-v0", task=ORACLE), seed=0, progress=False, embedding=8, hidden=8, initial_std=1.0)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_bleu_and_self_bleu_are_nltks():
    metrics = Metrics(from_lists(REAL, [[1]], max_length=4), SMALL)
    figures = metrics.of_texts(Fixed(metrics.task, WRITTEN).sample(6))
    for n in BLEU_ORDERS:
        expected = np.mean([by_nltk(s, REAL, n) for s in WRITTEN])
        assert figures[f"bleu{n}"] == pytest.approx(expected, abs=1e-9)
        others = [WRITTEN[:i] + WRITTEN[i + 1 :] for i in range(6)]
        expected = np.mean([by_nltk(s, rest, n) for s, rest in zip(WRITTEN, others, strict=True)])
        assert figures[f"self_bleu{n}"] == pytest.approx(expected, abs=1e-9)
    assert 0 < figures["bleu2"] < 1
    assert 0 < figures["self_bleu2"] < 1


def test_variety_by_hand():
    task = from_lists(REAL, [[1]], train=[[1, 2], [3, 3]], max_length=4)
    figures = Metrics(task, SMALL).of_texts(Fixed(task, WRITTEN).sample(6))
    assert figures["distinct1"] == 3 / 11
    assert figures["distinct2"] == 3 / 6  # 12 21 | 12 | 12 | 21 13
    assert figures["distinct3"] == 1
    assert figures["distinct4"] == 0
    assert figures["duplicates"] == pytest.approx(1 / 6)
    assert figures["copies"] == 2 / 6
    assert figures["length"] == 11 / 6
    assert distinct([], 1) == distinct([(1,)], 2) == 0


def test_coverage_and_validity_by_hand():
    rules = {"sentence": [(1.0, "a b")]}
    source = Grammar(0, max_length=4, rules=rules, lexicon={"a": ["x", "y"], "b": ["z", "w"]}, min_words=2)
    rows = [source.vocab.encode_tokens(words.split()) for words in ("x z", "x w", "y z")]
    splits = {split: Examples(Sequences.from_lists(rows)) for split in ("train", "valid", "test")}
    task = Task("four", source.vocab, 4, splits, source=source)
    metrics = Metrics(task, SMALL)
    for written, coverage, validity in [
        (["x z"], 4 / 6, 1.0), (["x w", "y w"], 4 / 6, 1.0), (["z x"], 0.0, 0.0), (["x x z", "x z"], 4 / 6, 0.5),
        (["y y"], 1 / 6, 0.0), (["x z", "y w"], 1.0, 1.0),
    ]:  # fmt: skip
        drawn = Fixed(task, [source.vocab.encode_tokens(words.split()) for words in written]).sample(2)
        figures = metrics.of_samples(object(), drawn, metrics.test)
        assert figures["coverage"] == pytest.approx(coverage), written
        assert figures["validity"] == validity
        assert figures["nll_oracle"] == pytest.approx(-source.log_prob(drawn.tokens).sum() / drawn.lengths.sum())


def test_every_model_meets_the_same_references_and_as_many(oracle, learner):
    first, second = Metrics(oracle, SMALL), Metrics(oracle, SMALL)
    assert first.size == 30
    assert first.references.sentences == second.references.sentences
    test = [tuple(s) for s in oracle.batch("test").sentences]
    assert sorted(map(tuple, first.references.sentences)) != sorted(test[:30])  # selected at random
    assert all(tuple(s) in test for s in first.references.sentences)
    assert Metrics(oracle, MetricSettings(references=999)).size == 40
    drawn = learner.sample(60, seed=0)
    assert first.of_texts(drawn) == first.of_texts(drawn.take(range(30)))
    assert first.of_texts(drawn) != first.of_texts(drawn.take(range(29)))
    assert first.signatures()["bleu3"] == "bleu|n:3|smoothing:method1|references:30"
    assert first.signatures()["self_bleu5"] == "self_bleu|n:5|smoothing:method1|sequences:30"


def test_the_share_of_unknown_words_is_that_of_each_split(oracle, write):
    lines = write("train.txt", "a b\na b\n"), write("test.txt", "a new\nb a\n")
    metrics = Metrics(text_gym.make_task(str(lines[0]), test=str(lines[1]), valid=0), SMALL)
    assert metrics.unknown() == {"train": 0.0, "test": 0.25}
    assert Metrics(oracle, SMALL).unknown() == {}  # the vocabulary has no unknown token


def test_figures_are_drawn_by_the_seed_and_no_fewer_than_the_references(oracle, learner, monkeypatch):
    asked, sample = [], learner.sample
    monkeypatch.setattr(learner, "sample", lambda n, **options: asked.append(n) or sample(n, **options))
    metrics = Metrics(oracle, MetricSettings(samples=10, references=30))
    assert metrics.figures(learner, 1) == metrics.figures(learner, 1)
    assert metrics.figures(learner, 1) != metrics.figures(learner, 2)
    assert set(asked) == {30}
    Metrics(oracle, SMALL).figures(learner, 0)
    assert asked[-1] == 60


def test_rewards_are_means_of_what_was_drawn(oracle):
    written = [[1] * k for k in (1, 2, 3)]
    task = from_lists(REAL, [[1]], max_length=5)
    model = Fixed(task, written)
    settings = MetricSettings(samples=3, references=3, also=("length(target=5)", "constant(value=0.25)"))
    figures = Metrics(task, settings, "constant(value=0.75)").figures(model, 0)
    assert figures["reward"] == 0.75
    assert figures[ALSO + "constant(value=0.25)"] == 0.25
    assert ALSO + "length(target=5)" in figures
    assert "reward" not in Metrics(task, settings).figures(model, 0)
    with pytest.raises(UnknownNameError, match="Did you mean 'length'"):
        Metrics(task, MetricSettings(also=("lenght",)))


def test_the_sweep_is_of_each_temperature(oracle, learner):
    metrics = Metrics(oracle, SMALL)
    rows = metrics.sweep(learner, 4)
    assert [row["temperature"] for row in rows] == [0.5, 1.0, 2.0]
    assert rows[0]["entropy"] < rows[1]["entropy"] < rows[2]["entropy"] < np.log(12)
    for row in rows:
        temperature = row["temperature"]
        drawn = learner.sample(50, seed=4, temperature=temperature)
        own = learner.log_prob(drawn.tokens, temperature=temperature)
        assert row["entropy"] == pytest.approx(-own.mean() / 5)
        of_real = learner.log_prob(oracle.batch("test").tokens, temperature=temperature)
        assert row["nll_test"] == pytest.approx(-of_real.mean() / 5)
        assert row["nll_oracle"] == pytest.approx(-oracle.log_prob(drawn.tokens).mean() / 5)
        assert row["self_bleu4"] == metrics.of_texts(drawn)["self_bleu4"]
        assert row["bleu4"] == metrics.of_texts(drawn)["bleu4"]
    few = Metrics(oracle, replace(SMALL, sweep_samples=2)).sweep(learner, 4)  # at least as many samples as references
    assert few[1]["self_bleu4"] == metrics.of_texts(learner.sample(30, seed=4))["self_bleu4"]
    env = gym.make("TextGen-v0", task=ORACLE)
    flat = metrics.sweep(Uniform(env), 0)
    assert {round(row["nll_test"], 6) for row in flat} == {round(np.log(12), 6)}
    assert metrics.sweep(RealData(env), 0) == []  # real data has no temperature
    assert [knows_temperature(m) for m in (learner, Uniform(env), RealData(env), Fixed(oracle, []))] == [
        True, True, False, False,
    ]  # fmt: skip


def test_credit_is_the_expected_reward_of_what_follows():
    """Compare the value of every prefix with an enumeration of all sequences of a tiny policy."""
    agent = tiny_agent()
    metrics = Metrics(agent.task, MetricSettings(samples=2, references=2, shown=3, credit_rollouts=3000), None)
    model = agent.policy.eval()
    chances = {s: np.exp(probability(model, s)) for s in SEQUENCES}
    assert sum(chances.values()) == pytest.approx(1, abs=1e-5)
    error = 5 * np.std(list(WORTH.values())) / np.sqrt(3000)
    shown = metrics.samples(agent, 7)
    assert len(shown) == 3
    for sample, sequence in zip(shown, agent.sample(3, seed=7).tokens.tolist(), strict=True):
        written = tuple(t for t in sequence if t != 3)
        assert len(sample["values"]) == len(written) + 1
        assert sample["tokens"] == [agent.task.vocab.tokens[t] for t in written]
        assert sample["values"][-1] == pytest.approx(WORTH[written], abs=1e-5)
        assert sample["reward"] == pytest.approx(WORTH[written])
        for t in range(len(written)):
            after = {s: p for s, p in chances.items() if s[:t] == written[:t]}
            expected = sum(p * WORTH[s] for s, p in after.items()) / sum(after.values())
            assert sample["values"][t] == pytest.approx(expected, abs=error), (written, t)
    assert max(abs(s["values"][0] - s["values"][-1]) for s in shown) > 2 * error


def test_samples_say_what_is_nearest_and_what_they_are_worth():
    task = from_lists(REAL, [[1]], train=[[3, 3], [1, 2, 2], [2]], max_length=4)
    shown = Metrics(task, SMALL, "constant(value=0.5)").samples(Fixed(task, [[1, 2], [3]]), 0)
    assert [(s["text"], s["prompt"], s["tokens"]) for s in shown] == [
        ("a b", "", ["a", "b", "<eos>"]), ("c", "", ["c", "<eos>"]),
    ]  # fmt: skip
    assert [s["nearest"] for s in shown] == [
        {"text": "a b b", "similarity": 0.8}, {"text": "c c", "similarity": round(2 / 3, 4)},
    ]  # fmt: skip
    assert [(s["reward"], s["values"]) for s in shown] == [(0.5, None)] * 2
    assert Metrics(task, SMALL).samples(Fixed(task, [[1]]), 0)[0]["reward"] is None
    assert Metrics(task, MetricSettings(shown=0)).samples(Fixed(task, [[1]]), 0) == []
    nothing = from_lists(REAL, [[1]], train=[])
    assert Metrics(nothing, SMALL).samples(Fixed(nothing, [[1]]), 0)[0]["nearest"] == {"text": "", "similarity": 0.0}


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_answers_are_compared_with_their_own_references():
    task = asked_twice()
    metrics = Metrics(task, MetricSettings(samples=4, references=4))
    assert metrics.size == 3  # three references of two prompts
    written, asked = [[3], [2, 2], [1, 1, 2]], [task.test[0], task.test[1], task.test[0]]
    figures = metrics.of_texts(Fixed(task, written).sample(3, prompts=asked))
    assert figures["exact_match"] == 1 / 3  # the second reference counts too
    assert figures["rouge_l"] == pytest.approx((1 + 2 / 3 + 4 / 5) / 3)
    for n in BLEU_ORDERS:
        expected = np.mean([by_nltk(s, e.references, n) for s, e in zip(written, asked, strict=True)])
        assert figures[f"bleu{n}"] == pytest.approx(expected, abs=1e-9)
    assert not [name for name in metrics.signatures() if name.startswith("bleu")]


def test_real_answers_are_not_compared_with_themselves(answers):
    env = gym.make("TextGen-v0", task=answers)
    metrics = Metrics(answers, SMALL)
    figures = metrics.figures(RealData(env), 0)
    assert not {"exact_match", "rouge_l", "bleu4", "reward"} & set(figures)  # each prompt has one reference
    assert "nll_test" not in figures
    wrong = metrics.figures(Uniform(env), 0)
    assert "reward" in wrong  # the task's default reward
    assert wrong["exact_match"] < 0.1
    assert wrong["nll_test"] == pytest.approx(np.log(len(answers.vocab)), abs=1e-6)
    test = {answers.test[i].prompt for i in range(len(answers.test))}
    shown = metrics.samples(RealData(env), 0)
    assert {tuple(answers.encode(s["prompt"])) for s in shown} <= test


def test_credit_of_answers_is_given_their_prompts(answers):
    agent = Reinforce(gym.make("TextGen-v0", task=answers, reward="exact_match"), seed=0, progress=False)
    shown = Metrics(answers, MetricSettings(shown=2, credit_rollouts=2)).samples(agent, 0)
    assert all(len(s["values"]) == len(s["tokens"]) + 1 for s in shown)
    assert all(s["values"][-1] == s["reward"] for s in shown)
    assert Metrics(answers, MetricSettings(shown=1, credit_rollouts=0)).samples(agent, 0)[0]["values"] is None


@pytest.mark.parametrize(
    "changes",
    [
        {"samples": 1}, {"references": 1}, {"sweep_samples": 0}, {"curve_samples": 1}, {"shown": -1}, {"points": -1},
        {"credit_rollouts": -1}, {"temperatures": (0.5, 0.0)}, {"temperatures": (float("nan"),)}, {"samples": 2.5},
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(changes):
    with pytest.raises(OptionError, match=next(iter(changes))):
        MetricSettings(**changes)


@pytest.mark.parametrize("test", [[], [[1]]])
def test_a_test_split_of_less_than_two_is_refused(test):
    with pytest.raises(OptionError, match=rf"has {len(test)} sequences; it needs at least 2"):
        Metrics(from_lists(test, [[1]]), SMALL)
