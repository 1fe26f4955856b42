"""Rewards: names, calls, weighted sums, errors, the cache, and the scores of the built-in rewards."""

import asyncio
import gc
import random
import time

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.translate.bleu_score import SmoothingFunction
from nltk.translate.bleu_score import sentence_bleu as nltk_bleu
from rouge_score.rouge_scorer import RougeScorer

import text_gym
from tests.helpers.batches import batch_of
from text_gym.bleu import Bleu
from text_gym.errors import OptionError, ResetNeededError, RewardError, RewardTimeoutError, UnknownNameError
from text_gym.rewards import CachedReward, Scorer, registered_rewards
from text_gym.rewards.builtin import longest_common_subsequence, rouge_l
from text_gym.sequences import make_batch


def score(spec, task, *texts, examples=None):
    return Scorer(spec, task)(batch_of(task, *texts, examples=examples)).total.tolist()


@pytest.fixture
def questions(write):
    """A task with two prompts, one of them with two references, and a column "level"."""
    path = write(
        "questions.jsonl",
        '{"prompt": "who is there", "references": ["it is me", "me"], "level": 1}\n'
        '{"prompt": "what is it", "reference": "it is a cat that is there", "level": 2}\n',
    )
    return text_gym.make_task(path, valid=0.0, test=0.0)


def both(task):
    return [task.train[0], task.train[1]]


def test_functions_get_the_columns_they_name(questions):
    seen = {}

    def watch(completions, prompts, references, completion_ids, tokens, lengths, level, absent=None, **others):
        seen.update(locals())
        return [0.0] * len(completions)

    score(watch, questions, "me", "a cat", examples=both(questions))
    assert seen["completions"] == ["me", "a cat"]
    assert seen["prompts"] == ["who is there", "what is it"]
    assert seen["references"] == [["it is me", "me"], ["it is a cat that is there"]]
    assert seen["completion_ids"] == [questions.encode("me"), questions.encode("a cat")]
    assert seen["tokens"].shape == (2, 3)
    assert seen["lengths"].tolist() == [2, 3]
    assert (seen["level"], seen["absent"], seen["others"]) == ([1, 2], None, {})

    def everything(**columns):
        seen["columns"] = set(columns)
        return torch.zeros(2)

    score(everything, questions, "me", "a cat", examples=both(questions))
    assert seen["columns"] == {"completions", "prompts", "references", "completion_ids", "tokens", "lengths", "level"}


def test_texts_are_decoded_only_if_asked_for(grammar, monkeypatch):
    monkeypatch.setattr(type(grammar.vocab), "decode_rows", lambda *_: pytest.fail("decoded"))
    assert score(lambda lengths: lengths, grammar, "the dogs run") == [4.0]
    assert score("bleu", grammar, "the dogs run")[0] > 0


def test_every_form_of_a_reward(grammar):
    class Twice(text_gym.Reward):
        def score(self, batch):
            return 2 * batch.content_lengths

    def ones(completions):
        return [1.0 for _ in completions]

    for spec, expected in [
        ("length", 3), ("length(target=5)", -2), (Twice, 6), (Twice(), 6), (ones, 1),
        ({"length": 2.0, ones: 0.5}, 6.5), (["length", ones], 4), (("length", Twice()), 9),
        ("tests.helpers.own_rewards:letters", 10), ("tests/helpers/own_rewards.py:letters", 10),
        ("tests/helpers/own_rewards.py:Letters(factor=3)", 30), ("tests.helpers.own_rewards:LETTERS", 10),
        ({"tests.helpers.own_rewards:letters": 2}, 20),
    ]:  # fmt: skip
        assert score(spec, grammar, "the dogs run") == [expected], spec


def test_terms_keep_their_names_and_weights(grammar):
    scorer = Scorer({"bleu(n=1)": 1, "bleu(n=2)": -1, "length": 0.5}, grammar)
    result = scorer(batch_of(grammar, "the dogs run"))
    assert list(result.terms) == ["bleu(n=1)", "bleu(n=2)", "length"]
    assert result.total[0] == pytest.approx(
        result.terms["bleu(n=1)"][0] - result.terms["bleu(n=2)"][0] + 0.5 * result.terms["length"][0]
    )
    assert list(Scorer(["length", "length"], grammar).rewards) == ["length", "length#2"]


def test_none_counts_for_nothing(grammar):
    sometimes = lambda completions: [None if "run" in c else 2.0 for c in completions]  # noqa: E731
    assert score({sometimes: 1.0, "constant": 1.0}, grammar, "the dogs run", "the dogs sleep") == [1.0, 3.0]


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda completions: [1.0], r"shape \(1,\) for 2 sequences"),
        (lambda completions: 1.0, r"shape \(\) for 2"),
        (lambda completions: [float("nan"), 1.0], "returned nan for 'the dogs run'"),
        (lambda completions: [1.0, float("-inf")], "returned -inf for 'mary sings'"),
        (lambda completions: ["a", "b"], "one number for each"),
        (lambda completions: None, "shape|number"),
        (lambda completions: [[1.0], [2.0]], r"shape \(2, 1\)"),
        (lambda completions: (c for c in completions), "one number for each"),
    ],
)
def test_bad_answers_name_the_reward(grammar, function, words):
    function.__name__ = "culprit"
    with pytest.raises(RewardError, match=words) as caught:
        score(function, grammar, "the dogs run", "mary sings")
    assert "'culprit'" in str(caught.value)


def test_a_reward_that_fails_is_named_and_its_error_kept(grammar):
    with pytest.raises(RewardError, match="'fails' failed with KeyError: 'no such word'") as caught:
        score("tests.helpers.own_rewards:fails", grammar, "the dogs run")
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(RewardError, match="the weighted sum"):
        score({"length": 1e308}, grammar, "the dogs run")


def test_tensors_with_gradients_are_scores(grammar):
    assert score(lambda completions: torch.ones(1, requires_grad=True) * 2, grammar, "the dogs run") == [2.0]


def test_rewards_cannot_change_what_they_look_at(grammar):
    def vandal(completions, tokens):
        completions[0] = "changed"
        tokens[0, 0] = 7
        return [0.0]

    env = gym.make("TextGen-v0", task=grammar, reward=vandal)
    env.reset()
    with pytest.raises(RewardError, match="read-only"):
        env.step(0)


def test_bad_rewards_are_refused_before_anything_is_played(grammar, answers):
    for spec, error, words in [
        ("blue", UnknownNameError, "Did you mean 'bleu'"),
        ("bleu(m=2)", OptionError, "no option 'm'"),
        ("bleu(n=0)", OptionError, "n must be a whole number"),
        ("bleu(n=two)", OptionError, "cannot read"),
        ("bleu(n=True)", OptionError, "n must be"),
        ("bleu(references=None)", OptionError, "references must be a finite number"),
        ("bleu(references=[5])", OptionError, "must contain texts"),
        ("length(target='a')", OptionError, "target must be"),
        ("random(seed='a')", OptionError, "seed must be"),
        ("likelihood(floor=None)", OptionError, "floor must be"),
        (text_gym.Reward, OptionError, "is abstract; define score"),
        ("json:dumps", RewardError, "has the parameter 'obj'"),
        ("bleu(2)", OptionError, "key=value"),
        ("bleu(references='tests')", OptionError, "is not a split"),
        ("nowhere:reward", UnknownNameError, "cannot import 'nowhere'"),
        ("tests.helpers.own_rewards:leters", UnknownNameError, "Did you mean 'letters'"),
        ("tests/absent.py:reward", UnknownNameError, "no file"),
        (3, OptionError, "is not a reward"),
        ({}, OptionError, "at least one"),
        ([], OptionError, "at least one"),
        ({"length": "much"}, OptionError, "weight of reward 'length'"),
        ({"length": float("inf")}, OptionError, "weight of reward 'length'"),
        (lambda completion: [1.0], RewardError, "has the parameter 'completion'.*Did you mean 'completions'"),
        (lambda completions, level: [1.0], RewardError, "has the parameter 'level'"),
        ("exact_match", RewardError, "has no prompts"),
        ("rouge_l", RewardError, "has no prompts"),
    ]:
        with pytest.raises(error, match=words):
            gym.make("TextGen-v0", task=grammar, reward=spec)
    for spec, words in [
        ("validity", "needs a task with a known language"),
        ("likelihood", "needs a task with a known source"),
    ]:
        with pytest.raises(RewardError, match=words):
            Scorer(spec, answers)
    with pytest.raises(OptionError, match="no effect in a task with prompts"):
        Scorer("bleu(references='test')", answers)


def test_a_task_reward_serves_one_task(grammar, answers):
    reward = text_gym.make_reward("bleu")
    Scorer(reward, grammar)
    Scorer(reward, grammar)
    with pytest.raises(RewardError, match="already used with"):
        Scorer(reward, answers)


def test_registered_names(grammar):
    def vowels(completions):
        """Count the vowels of each text."""
        return [sum(c in "aeiou" for c in text) for text in completions]

    text_gym.register_reward("vowels", vowels)
    assert score("vowels", grammar, "the dogs run") == [3.0]
    assert registered_rewards()["vowels"] == "Count the vowels of each text."
    for name, reward, words in [("my reward", vowels, "identifier"), ("bleu", vowels, "already"), ("x", 5, "called")]:
        with pytest.raises(OptionError, match=words):
            text_gym.register_reward(name, reward)


def test_bleu_of_the_training_split(grammar):
    texts = ["the dogs run", "mary often sees the old tiger", "kite the run a"]
    bleu = Bleu([grammar.decode(r).split() for r in grammar.train.references.to_lists()])
    assert score("bleu", grammar, *texts) == pytest.approx(bleu.score([t.split() for t in texts]).tolist(), abs=1e-12)
    few = Bleu([["the", "dogs", "run"], ["a", "kite"]], n=2, smoothing=None)
    spec = "bleu(n=2, smoothing=None, references=['the dogs run', 'a kite'])"
    assert score(spec, grammar, *texts) == pytest.approx(few.score([t.split() for t in texts]).tolist(), abs=1e-12)


def test_bleu_of_a_share_of_the_training_split(grammar):
    """The reward of the published PG-BLEU: unsmoothed BLEU-3 with 40 % of the data as references."""
    spec = "bleu(n=3, smoothing=None, references=0.4)"
    reward = text_gym.make_reward(spec)
    reward.prepare(grammar)
    assert reward.table.signature == "bleu|n:3|smoothing:None|references:4000"
    assert score(spec, grammar, "the dogs run") == score(spec, grammar, "the dogs run")
    with pytest.raises(OptionError, match="asks for 20000 of 10000"):
        score("bleu(references=20000)", grammar, "the dogs run")


def test_conditional_rewards_use_the_samples_own_references(questions):
    texts = ["it is me there", "it is a cat"]
    smooth = SmoothingFunction().method1
    references = [[["it", "is", "me"], ["me"]], [["it", "is", "a", "cat", "that", "is", "there"]]]
    expected = [nltk_bleu(r, t.split(), smoothing_function=smooth) for r, t in zip(references, texts, strict=True)]
    assert score("bleu", questions, *texts, examples=both(questions)) == pytest.approx(expected, abs=1e-9)
    scorer = RougeScorer(["rougeL"])
    expected = [
        max(scorer.score(" ".join(r), text)["rougeL"].fmeasure for r in refs)
        for refs, text in zip(references, texts, strict=True)
    ]
    assert score("rouge_l", questions, *texts, examples=both(questions)) == pytest.approx(expected, abs=1e-9)
    assert score("exact_match", questions, "me", "it is me", examples=both(questions)) == [1.0, 0.0]
    assert score("exact_match", questions, "it is me", "it is", examples=both(questions)) == [1.0, 0.0]


@settings(deadline=None)
@given(a=st.lists(st.integers(0, 3), max_size=70), b=st.lists(st.integers(0, 3), max_size=70))
def test_the_longest_common_subsequence_by_its_table(a, b):
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    assert longest_common_subsequence(a, b) == table[-1][-1]
    assert rouge_l(a, b) == pytest.approx(2 * table[-1][-1] / max(len(a) + len(b), 1))


def test_validity_and_likelihood(grammar):
    texts = ["the dogs run", "the dogs runs"]
    assert score("validity", grammar, *texts) == [1.0, 0.0]
    exact = grammar.log_prob(grammar.encode(texts[0]))[0] / 4
    assert score("likelihood", grammar, *texts) == [pytest.approx(exact), -20.0]
    assert score("likelihood(floor=-99)", grammar, *texts)[1] == -99.0
    oracle = text_gym.make_task("oracle", vocab_size=9, max_length=3)
    batch = oracle.sample(5, seed=0)
    assert Scorer("likelihood", oracle)(batch).total == pytest.approx(oracle.log_prob(batch.tokens) / 3)


def test_simple_rewards(grammar):
    texts = ["the dogs run", "the the the dogs", "dogs the dogs the"]
    assert score("length", grammar, *texts) == [3.0, 4.0, 4.0]
    assert score("length(target=5)", grammar, *texts) == [-2.0, -1.0, -1.0]
    assert score("repetition", grammar, *texts) == [0.0, -0.5, -0.5]
    assert score("repetition(n=2)", grammar, *texts) == [0.0, pytest.approx(-1 / 3), pytest.approx(-1 / 3)]
    assert score("constant(value=0.5)", grammar, *texts) == [0.5] * 3


def test_random_is_repeatable_uniform_and_blind_to_padding(grammar):
    one = score("random", grammar, "the dogs run", "the dogs sleep")
    assert one == score("random", grammar, "the dogs run", "the dogs sleep")
    assert one[::-1] == score("random", grammar, "the dogs sleep", "the dogs run")
    assert one != score("random(seed=1)", grammar, "the dogs run", "the dogs sleep")
    assert one[0] == score("random", grammar, "the dogs run", "mary often sees the old tiger and the dogs run")[0]
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 209, (20_000, 6))
    values = Scorer("random", grammar)(make_batch(tokens, None, grammar.vocab)).total
    assert abs(values.mean() - 0.5) < 5 * np.sqrt(1 / 12 / 20_000)
    counts = np.histogram(values, 20, (0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 19 + 5 * np.sqrt(38)
    assert abs(np.corrcoef(values, tokens[:, 0])[0, 1]) < 5 / np.sqrt(20_000)


def test_a_batch_is_scored_once_for_all_that_ended(grammar):
    calls = []

    def count(completions):
        calls.append(len(completions))
        return [0.0] * len(completions)

    envs = gym.make_vec("TextGen-v0", num_envs=4, task=grammar, reward=count)
    envs.reset()
    envs.step([0, 0, 5, 0])
    envs.step([5, 5, 0, 5])
    assert calls == [3, 1]


def test_order_in_a_batch_does_not_matter(grammar):
    texts = [grammar.decode(grammar.train[i].references[0]) for i in range(50)]
    names = ("bleu", "validity", "likelihood", "length", "repetition", "constant", "random")
    spec = dict.fromkeys(names, 1.0)
    together = Scorer(spec, grammar)(batch_of(grammar, *texts))
    order = list(range(50))
    random.Random(0).shuffle(order)
    shuffled = Scorer(spec, grammar)(batch_of(grammar, *(texts[i] for i in order)))
    for name, scores in together.terms.items():
        assert scores[order] == pytest.approx(shuffled.terms[name], abs=1e-12), name


@pytest.mark.parametrize(
    "scores",
    [
        torch.ones(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.float16), torch.ones(2).to_sparse(),
        torch.ones(2) > 0, [torch.tensor(1.0), torch.tensor(1.0, requires_grad=True)], [None, 1],
        (torch.tensor(1, dtype=torch.bfloat16), 1),
    ],
    ids=str,
)  # fmt: skip
def test_tensors_of_every_kind_are_scores(grammar, scores):
    expected = [0.0, 1.0] if isinstance(scores, list) and scores[0] is None else [1.0, 1.0]
    assert score(lambda completions: scores, grammar, "the dogs run", "mary sings") == expected


@pytest.mark.parametrize(
    "scores",
    [
        torch.ones(2, dtype=torch.complex64), [torch.ones(1), torch.ones(1)], [torch.ones(2), 1],
        torch.ones(2, device="meta"), np.ones(2, dtype="datetime64[s]"), ["1", "2"],
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_number_is_refused_by_name(grammar, scores):
    def culprit(completions):
        return scores

    with pytest.raises(RewardError, match=r"reward 'culprit' (must return one number|returned scores of shape)"):
        score(culprit, grammar, "the dogs run", "mary sings")


def test_a_reward_has_a_time_limit(grammar):
    def stuck(completions):
        time.sleep(0.5)
        return [1.0] * len(completions)

    async def hangs(completions):
        await asyncio.sleep(60)

    for made in (gym.make, lambda *args, **kwargs: gym.make_vec(*args, num_envs=1, **kwargs)):
        for reward, name in ((stuck, "stuck"), (hangs, "hangs")):
            env = made("TextGen-v0", task=grammar, reward=["length", reward], reward_timeout=0.05).unwrapped
            env.reset()
            begin = time.monotonic()
            words = f"reward '{name}' took longer than reward_timeout=0.05 seconds for 1 sequences"
            with pytest.raises(RewardTimeoutError, match=words) as caught:
                env.step([0] if env.metadata.get("autoreset_mode") else 0)
            assert isinstance(caught.value, TimeoutError)
            assert time.monotonic() - begin < 0.45
            with pytest.raises(ResetNeededError):
                env.step([0] if env.metadata.get("autoreset_mode") else 0)
            env.reset()
    patient = Scorer({stuck: 1.0, "length": 1.0}, grammar, timeout=30)
    assert patient(batch_of(grammar, "the dogs run")).total.tolist() == [4.0]

    def raises(completions):
        raise TimeoutError("its own")

    with pytest.raises(RewardError, match="'raises' failed with TimeoutError: its own") as caught:
        Scorer(raises, grammar, timeout=30)(batch_of(grammar, "the dogs run"))
    assert not isinstance(caught.value, RewardTimeoutError)


@pytest.mark.parametrize("form", ["name", "option", "instance", "function"])
def test_a_cached_reward_scores_a_sequence_once(grammar, form):
    seen = []

    class Lengths(text_gym.Reward):
        name = "lengths"

        def score(self, batch):
            seen.extend(batch.texts)
            return batch.content_lengths

    def lengths(completions, lengths):
        seen.extend(completions)
        return [None if n > 3 else n - 1 for n in lengths]

    text_gym.register_reward("lengths", Lengths, replace=True)
    reward = {
        "name": lambda: text_gym.make_reward("lengths(cached=True)"),
        "option": lambda: text_gym.make_reward(Lengths, cached=True),
        "instance": lambda: CachedReward(Lengths()),
        "function": lambda: text_gym.make_reward(lengths, cached=True),
    }[form]()
    scorer = Scorer(reward, grammar)
    assert list(scorer.rewards) == ["lengths"]
    three = 0 if form == "function" else 3  # None counts as 0
    texts = ["mary sings", "the dogs run", "mary sings"]
    assert scorer(batch_of(grammar, *texts)).total.tolist() == [2, three, 2]
    assert scorer(batch_of(grammar, "the dogs run", "peter sings")).total.tolist() == [three, 2]
    assert scorer(batch_of(grammar, "peter sings")).total.tolist() == [2]
    assert seen == ["mary sings", "the dogs run", "peter sings"]
    reward.clear()
    scorer(batch_of(grammar, "peter sings"))
    assert seen[3:] == ["peter sings"]


def test_a_cache_forgets_what_was_used_longest_ago(grammar):
    seen = []
    reward = CachedReward(lambda completions: [seen.append(text) or 1.0 for text in completions], size=2)
    scorer = Scorer(reward, grammar)
    for text in ("mary sings", "peter sings", "mary sings", "the dogs run", "mary sings", "peter sings"):
        scorer(batch_of(grammar, text))
    assert seen == ["mary sings", "peter sings", "the dogs run", "peter sings"]
    many = [grammar.decode(r) for r in grammar.train.references.to_lists()[:9]]
    assert scorer(batch_of(grammar, *many)).total.tolist() == [1.0] * 9


def test_a_cache_tells_prompts_and_tasks_apart(questions, grammar):
    seen = []

    def right(completions, prompts, references, level):
        seen.extend(zip(completions, prompts, level, strict=True))
        return [float(c in r) for c, r in zip(completions, references, strict=True)]

    reward = text_gym.make_reward(right, cached=True)
    for _ in range(2):
        assert score(reward, questions, "me", "me", examples=both(questions)) == [1.0, 0.0]
    assert seen == [("me", "who is there", 1), ("me", "what is it", 2)]
    cached = text_gym.make_reward("length(cached=True)")
    Scorer(cached, grammar)
    with pytest.raises(RewardError, match="'length' reward is already used with another task"):
        Scorer(cached, questions)


def test_cached_mistakes_are_told(grammar):
    with pytest.raises(OptionError, match="cached=3 must be True or False"):
        text_gym.make_reward("length(cached=3)")
    with pytest.raises(OptionError, match="takes no options but cached"):
        text_gym.make_reward("tests.helpers.own_rewards:letters(n=2)")
    with pytest.raises(RewardError, match="reward 'letters' returned scores of shape"):
        score(CachedReward(named("letters", lambda completions: [1.0])), grammar, "mary sings", "peter sings")


def named(name, function):
    function.__name__ = name
    return function


def test_async_rewards_run_concurrently_in_one_event_loop(grammar):
    """Each reward waits for the other, so that they would never end one after the other."""
    loops, arrived = set(), []

    def meets(name):
        async def meet(completions, **columns):
            loops.add(id(asyncio.get_running_loop()))
            arrived.append(name)
            while len(arrived) < 3:
                await asyncio.sleep(0)
            return [len(text) for text in completions]

        return named(name, meet)

    class Meets(text_gym.Reward):
        name = "c"

        async def score(self, batch):
            return await meets("c")(batch.texts)

    spec = {meets("a"): 1.0, CachedReward(meets("b")): 10.0, Meets(): 100.0, "length": 1000.0}
    assert score(spec, grammar, "mary sings") == [111 * 10 + 2000]
    assert sorted(arrived) == ["a", "b", "c"]
    assert len(loops) == 1


def test_an_async_reward_is_let_go_where_another_one_fails(grammar):
    """There is no warning that the coroutine was never awaited."""

    async def fine(completions):
        return [1.0] * len(completions)

    with pytest.raises(RewardError, match="'fails' failed"):
        score([fine, "tests.helpers.own_rewards:fails"], grammar, "mary sings")
    gc.collect()


class Odd(text_gym.Reward):
    """Keeps its options under other names, and one that is an array."""

    def __init__(self, scale, table=None, *rest, **more):
        self.factor, self.table = scale, np.arange(10_000) if table is None else table

    def score(self, batch):
        return np.zeros(len(batch))


def polite(completions):
    return [0.0] * len(completions)


@pytest.mark.parametrize(
    ("reward", "shown"),
    [
        (text_gym.make_reward("bleu(n=3)"), "BleuReward(n=3)"),
        (text_gym.make_reward("bleu"), "BleuReward()"),
        (text_gym.make_reward("bleu", references=0.5, smoothing=None), "BleuReward(references=0.5, smoothing=None)"),
        (text_gym.make_reward("constant", value=0.5), "ConstantReward(value=0.5)"),
        (text_gym.make_reward("validity"), "ValidityReward()"),
        (text_gym.make_reward("classifier", model="a/b"), "ClassifierReward(model='a/b')"),
        (text_gym.make_reward(polite), "FunctionReward('polite')"),
        (text_gym.make_reward(lambda completions: completions), "FunctionReward('<lambda>')"),
        (text_gym.make_reward("length", target=9, cached=True), "CachedReward(reward=LengthReward(target=9))"),
    ],
)
def test_a_reward_says_its_options(reward, shown):
    assert repr(reward) == shown


def test_a_reward_of_ones_own_says_what_it_keeps():
    assert len(repr(Odd(2.0))) < 120
    assert repr(Odd(2.0, "a table")) == "Odd(table='a table')"


def test_a_weighted_sum_says_its_weights(grammar):
    assert repr(Scorer({"bleu": 1.0, "repetition": 0.5}, grammar)) == "Scorer(BleuReward() + 0.5 * RepetitionReward())"
    assert str(Scorer("bleu(n=2)", grammar)) == "BleuReward(n=2)"
