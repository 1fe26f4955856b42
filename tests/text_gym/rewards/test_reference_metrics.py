"""Rewards of sacreBLEU, rouge-score and NLTK: values, and errors for wrong tasks and missing libraries."""

import json
import sys

import gymnasium as gym
import numpy as np
import pytest
import sacrebleu
from nltk.stem.porter import PorterStemmer
from nltk.translate.meteor_score import meteor_score
from rouge_score.rouge_scorer import RougeScorer

import text_gym
from agents.experiments.reward_audit import audit_rewards
from tests.helpers.batches import batch_of
from text_gym.errors import DependencyError, OptionError, RewardError
from text_gym.rewards import Scorer

REFERENCES = ["The cat sat on the mat .", "A cat was sitting on a mat !"]
TEXTS = ["the cat sat on the mat .", "A cat sits", "mat the on sat cat The", "dogs run", "", "The cat sat on the mat ."]


@pytest.fixture
def cats(write):
    """A task with two prompts, one of them with two references, and all words of the texts."""
    lines = [
        {"prompt": "where is the cat ?", "references": REFERENCES},
        {"prompt": "and the dogs ?", "reference": "dogs run"},
        {"prompt": "words", "reference": " ".join(TEXTS)},
    ]
    return text_gym.make_task(write("cats.jsonl", "\n".join(map(json.dumps, lines))), valid=0.0, test=0.0)


def scores(spec, task, texts, number=0):
    """Compute the scores of texts for one prompt."""
    batch = batch_of(task, *texts, examples=[task.train[number]] * len(texts))
    return Scorer(spec, task)(batch).total.tolist()


def test_chrf_is_sacrebleus(cats):
    expected = [sacrebleu.sentence_chrf(text, REFERENCES).score / 100 for text in TEXTS]
    assert scores("chrf", cats, TEXTS) == pytest.approx(expected, abs=1e-12)
    assert scores("chrf", cats, TEXTS)[-1] == 1
    options = {"char_order": 4, "word_order": 2, "beta": 1, "lowercase": True}
    expected = [sacrebleu.CHRF(**options).sentence_score(text, REFERENCES).score / 100 for text in TEXTS]
    written = f"chrf({', '.join(f'{k}={v}' for k, v in options.items())})"
    assert scores(written, cats, TEXTS) == pytest.approx(expected, abs=1e-12)
    others = {"whitespace": True, "eps_smoothing": True}
    expected = [sacrebleu.CHRF(**others).sentence_score(text, REFERENCES).score / 100 for text in TEXTS]
    assert scores(text_gym.make_reward("chrf", **others), cats, TEXTS) == pytest.approx(expected, abs=1e-12)


def test_ter_is_one_minus_sacrebleus(cats):
    expected = [1 - sacrebleu.sentence_ter(text, REFERENCES).score / 100 for text in TEXTS]
    assert scores("ter", cats, TEXTS) == pytest.approx(expected, abs=1e-12)
    assert scores("ter", cats, ["dogs run", "dogs run cat", "dogs dogs dogs dogs dogs run"], 1) == [1, 0.5, -1]
    assert scores("ter(floor=-0.5)", cats, ["dogs dogs dogs dogs dogs run"], 1) == [-0.5]
    for option in ("normalized", "no_punct", "case_sensitive"):
        metric = sacrebleu.TER(**{option: True})
        expected = [1 - metric.sentence_score(text, REFERENCES).score / 100 for text in TEXTS]
        assert scores(f"ter({option}=True)", cats, TEXTS) == pytest.approx(expected, abs=1e-12), option


@pytest.mark.parametrize("variant", ["rougeL", "rouge1", "rouge2", "rougeLsum"])
@pytest.mark.parametrize("stemmer", [False, True])
def test_rouge_is_that_of_rouge_score_and_the_best_reference_counts(cats, variant, stemmer):
    scorer = RougeScorer([variant], use_stemmer=stemmer)
    expected = [max(scorer.score(r, text)[variant].fmeasure for r in REFERENCES) for text in TEXTS]
    assert scores(f"rouge(variant={variant!r}, use_stemmer={stemmer})", cats, TEXTS) == pytest.approx(expected)


def test_rouge_by_hand(cats):
    assert scores("rouge", cats, ["dogs", "run dogs", "cat"], 1) == pytest.approx([2 / 3, 1 / 2, 0])
    assert scores("rouge(variant='rouge1')", cats, ["run dogs"], 1) == [1]


class NoSynonyms:
    def synsets(self, word):
        return []


def test_meteor_is_nltks_without_synonyms(cats):
    references = [r.split() for r in REFERENCES]
    expected = [meteor_score(references, text.split(), wordnet=NoSynonyms()) for text in TEXTS]
    assert scores("meteor", cats, TEXTS) == pytest.approx(expected, abs=1e-12)
    options = {"alpha": 0.5, "beta": 2.0, "gamma": 0.3}
    expected = [meteor_score(references, text.split(), wordnet=NoSynonyms(), **options) for text in TEXTS]
    assert scores("meteor(alpha=0.5, beta=2.0, gamma=0.3)", cats, TEXTS) == pytest.approx(expected, abs=1e-12)


def test_meteor_by_hand(cats):
    # "dogs run" against itself: one chunk of two matches, penalty 0.5 * (1 / 2) ** 3
    # "run dogs": two chunks of two matches; "dog": one match of stems, precision 1, recall 1/2
    half = 0.5 / (0.9 * 1 + 0.1 * 0.5)
    assert PorterStemmer().stem("dogs") == "dog"
    assert scores("meteor", cats, ["dogs run", "run dogs", "cat"], 1) == pytest.approx([1 - 0.5 / 8, 0.5, 0])
    assert text_gym.make_reward("meteor").compare("dog", ["dogs run"]) == pytest.approx(half * 0.5)


@pytest.mark.parametrize(("alpha", "mean"), [(0.0, 1.0), (0.5, 2 / 3), (1.0, 0.5)])
def test_meteors_alpha_is_the_share_of_recall(alpha, mean):
    # One word of two: precision 1, recall 1/2, penalty 0.5 for one chunk of one match.
    assert text_gym.make_reward("meteor", alpha=alpha).compare("dogs", ["dogs run"]) == pytest.approx(mean * 0.5)


def test_meteor_tells_words_from_punctuation():
    meteor = text_gym.make_reward("meteor")
    assert meteor.compare("The dogs run.", ["the dogs run ."]) == meteor.compare("the dogs run .", ["the dogs run ."])


def test_the_token_for_unknown_words_is_one_word_of_a_reference(write):
    lines = [{"prompt": "who ?", "reference": "dogs run"}] * 3 + [
        {"prompt": "what ?", "reference": "dogs sometimes run"}
    ]
    path = write("rare.jsonl", "\n".join(map(json.dumps, lines)))
    task = text_gym.make_task(path, min_count=2, valid=0.0, test=0.0)
    batch = batch_of(task, "dogs run", examples=[task.train[3]])
    assert batch.references == [["dogs <unk> run"]]
    # Two words of three, in two chunks: precision 1, recall 2/3, penalty 0.5.
    expected = (2 / 3) / (0.9 + 0.1 * 2 / 3) * 0.5
    assert Scorer("meteor", task)(batch).total == pytest.approx(expected)


def test_synonyms_are_wordnets_where_it_is(monkeypatch):
    import nltk.corpus

    class Lemma:
        def name(self):
            return "hound"

    class Synset:
        def lemmas(self):
            return [Lemma()]

    class WordNet:
        def ensure_loaded(self):
            pass

        def synsets(self, word):
            return [Synset()] if word == "dog" else []

    monkeypatch.setattr(nltk.corpus, "wordnet", WordNet())  # NLTK looks up stems in it
    assert text_gym.make_reward("meteor", synonyms=True).compare("dogs", ["hounds"]) == 0.5
    assert text_gym.make_reward("meteor").compare("dogs", ["hounds"]) == 0


def test_without_wordnet_synonyms_are_an_error_that_says_how_to_get_them(monkeypatch, tmp_path):
    monkeypatch.setattr("nltk.data.path", [str(tmp_path)])
    with pytest.raises(DependencyError, match=r"python -m nltk\.downloader wordnet"):
        text_gym.make_reward("meteor(synonyms=True)")


@pytest.mark.parametrize("name", ["chrf", "ter", "rouge", "meteor"])
def test_rewards_that_compare_need_references(name, grammar, cats):
    with pytest.raises(RewardError, match=f"'{name}' compares with the references of a prompt"):
        gym.make("TextGen-v0", task=grammar, reward=name)
    env = gym.make("TextGen-v0", task=cats, reward=name)
    env.reset(options={"prompt": "the cat"})
    with pytest.raises(RewardError, match=f"reward '{name}' needs references"):
        env.step(cats.vocab.eos)


def test_an_environment_pays_them(cats):
    env = gym.make("TextGen-v0", task=cats, reward={"rouge": 1.0, "chrf": 0.5, "ter": 0.25, "meteor": 2.0})
    env.reset(options={"prompt_index": 1})
    for token in [*cats.encode("dogs run"), cats.vocab.eos]:
        _, reward, _, _, info = env.step(token)
    assert info["reward_terms"] == {"rouge": 1, "chrf": 1, "ter": 1, "meteor": pytest.approx(0.9375)}
    assert reward == pytest.approx(1 + 0.5 + 0.25 + 2 * 0.9375)


def test_equal_rows_are_computed_once_and_rows_keep_their_own_references(cats):
    rouge = text_gym.make_reward("rouge")
    seen = []
    compare = rouge.compare
    rouge.compare = lambda text, references: seen.append((text, references)) or compare(text, references)
    numbers = [1, 0, 1, 1, 0]
    texts = ["dogs run", "dogs run", "dogs run", "dogs", "dogs run"]
    batch = batch_of(cats, *texts, examples=[cats.train[i] for i in numbers])
    assert rouge.score(batch) == pytest.approx([1, 0, 1, 2 / 3, 0])
    assert seen == [("dogs run", ["dogs run"]), ("dogs run", REFERENCES), ("dogs", ["dogs run"])]
    assert rouge.score(batch.take([])).shape == (0,)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("rouge(variant='rouge_l')", "'rougeL', 'rougeLsum'"),
        ("rouge(variant=1)", "unknown variant=1"),
        ("chrf(char_order=0)", "char_order must be a whole number of at least 1"),
        ("chrf(word_order=-1)", "word_order"),
        ("chrf(beta=0)", "beta"),
        ("ter(floor='zero')", "floor must be a finite number"),
        ("meteor(alpha=None)", "alpha must be a finite number"),
        ("chrf(n=2)", "no option 'n'"),
    ],
)
def test_options_that_make_no_sense(spec, words):
    with pytest.raises(OptionError, match=words):
        text_gym.make_reward(spec)


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [
        ("chrf", "sacrebleu.metrics", "sacrebleu"), ("ter", "sacrebleu.metrics", "sacrebleu"),
        ("rouge", "rouge_score.rouge_scorer", "rouge-score"), ("meteor", "nltk.translate.meteor_score", "nltk"),
    ],
)  # fmt: skip
def test_a_library_that_is_missing_is_named_when_the_reward_is_made(monkeypatch, name, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DependencyError, match=rf"reward '{name}' needs {package}: pip install 'text-gym\[metrics\]'"):
        text_gym.make_reward(name)


def test_all_are_registered_with_a_line_about_them():
    lines = text_gym.rewards.registered_rewards()
    assert all(len(lines[name]) > 20 for name in ("chrf", "ter", "rouge", "meteor", "classifier"))
    assert np.isfinite(text_gym.make_reward("chrf").compare("", [""]))


def test_an_audit_of_all_rewards_leaves_out_what_cannot_be_made_as_it_is(monkeypatch, answers):
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    audited = audit_rewards(answers, n=5)
    assert audited["meteor"][0] > audited["meteor"][2]
    assert {"rouge", "meteor", "exact_match"} <= set(audited)
    assert not {"chrf", "ter", "classifier", "validity"} & set(audited)
    with pytest.raises(DependencyError, match="sacrebleu"):
        audit_rewards(answers, ["chrf"], n=5)
