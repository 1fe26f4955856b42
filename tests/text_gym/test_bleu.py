"""BLEU against NLTK, sacreBLEU and hand-computed cases."""

import math

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.translate.bleu_score import SmoothingFunction
from nltk.translate.bleu_score import sentence_bleu as nltk_bleu

from text_gym.bleu import Bleu, self_bleu, sentence_bleu
from text_gym.errors import OptionError

METHODS = {"method1": SmoothingFunction().method1, None: None}
sentences = st.lists(st.integers(0, 4), max_size=9)


def by_nltk(hypothesis, references, n, smoothing):
    score = nltk_bleu(references, hypothesis, weights=[1 / n] * n, smoothing_function=METHODS[smoothing])
    return float(score)


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=300, deadline=None)
@given(
    references=st.lists(sentences, min_size=1, max_size=5),
    hypotheses=st.lists(sentences, min_size=1, max_size=4),
    n=st.integers(1, 5),
    smoothing=st.sampled_from(["method1", None]),
)
def test_equals_nltk(references, hypotheses, n, smoothing):
    expected = [by_nltk(h, references, n, smoothing) for h in hypotheses]
    assert Bleu(references, n, smoothing).score(hypotheses) == pytest.approx(expected, abs=1e-9)
    alone = [sentence_bleu(h, references, n, smoothing) for h in hypotheses]
    assert alone == pytest.approx(expected, abs=1e-9)


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=150, deadline=None)
@given(
    sentences=st.lists(sentences, min_size=2, max_size=7),
    n=st.integers(1, 4),
    smoothing=st.sampled_from(["method1", None]),
)
def test_self_bleu_leaves_the_sentence_itself_out(sentences, n, smoothing):
    expected = [by_nltk(s, sentences[:i] + sentences[i + 1 :], n, smoothing) for i, s in enumerate(sentences)]
    assert self_bleu(sentences, n, smoothing) == pytest.approx(expected, abs=1e-9)


def test_by_hand():
    # Precisions 3/4 and 1/3; no brevity penalty, because the nearest reference length is 3.
    score = Bleu([["a", "b", "c"], ["d"] * 9], n=2).score([["a", "b", "x", "c"]])
    assert score == pytest.approx([math.sqrt(3 / 4 * 1 / 3)])
    # The count is clipped by the reference, and the hypothesis is one token shorter than the reference.
    assert Bleu([["a", "a", "b"]], n=1).score([["a"] * 2, ["b"] * 2]) == pytest.approx(
        [math.exp(1 - 3 / 2), math.exp(1 - 3 / 2) / 2]
    )


def test_ids_words_and_padded_arrays_agree():
    rows = [[3, 1, 4, 1, 5], [9, 2, 6], [5, 3, 5, 8]]
    references = [[3, 1, 4, 1], [2, 6, 5, 3, 5], [9, 2, 6]]
    padded = np.array([row + [77] * (6 - len(row)) for row in rows])
    by_lists = Bleu(references).score(rows)
    assert by_lists.tolist() == Bleu(references).score(padded, [5, 3, 4]).tolist()
    as_words = [[str(i) for i in row] for row in rows]
    assert by_lists.tolist() == Bleu([[str(i) for i in r] for r in references]).score(as_words).tolist()
    huge = [[i + 10**12 for i in row] for row in rows]
    assert by_lists.tolist() == Bleu([[i + 10**12 for i in r] for r in references]).score(huge).tolist()
    assert by_lists.tolist() == [sentence_bleu(row, references) for row in rows]


def test_equals_sacrebleu_where_their_definitions_meet():
    """Both agree for hypotheses of at least four words with smoothing of zero counts by 0.1."""
    random = np.random.default_rng(5)
    references = [" ".join(random.choice(list("abcdef"), random.integers(4, 12))) for _ in range(6)]
    hypotheses = [" ".join(random.choice(list("abcdef"), random.integers(4, 12))) for _ in range(200)]
    ours = Bleu([r.split() for r in references]).score([h.split() for h in hypotheses])
    metric = sacrebleu.BLEU(tokenize="none", smooth_method="floor", smooth_value=0.1, effective_order=False)
    theirs = [metric.sentence_score(h, references).score / 100 for h in hypotheses]
    assert ours == pytest.approx(theirs, abs=1e-9)


def test_equals_nltk_on_captions(data):
    read = lambda name: [line.split() for line in (data / name).read_text(encoding="utf-8").splitlines()]  # noqa: E731
    references, hypotheses = read("coco_train.txt"), read("coco_test.txt")[:200]
    bleu = Bleu(references)
    scores = bleu.score(hypotheses)
    assert scores.mean() == pytest.approx(0.3721687, abs=5e-8)
    assert scores[:6] == pytest.approx([by_nltk(h, references, 4, "method1") for h in hypotheses[:6]], abs=1e-9)
    assert "references:10000" in bleu.signature


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("ids", [40, 3000, 10**6])
def test_thousands_of_different_n_grams(ids):
    """Enough n-grams for collisions in the hash tables; hypotheses are parts of references with some random tokens."""
    random = np.random.default_rng(0)
    references = random.integers(ids, size=(300, 16))
    pieces = references[random.integers(300, size=(40, 4)), :4].reshape(40, 16)
    pieces = np.where(random.random(pieces.shape) < 0.1, random.integers(ids, size=pieces.shape), pieces)
    expected = [by_nltk(row, references.tolist(), 4, "method1") for row in pieces.tolist()]
    assert np.std(expected) > 0.01
    assert Bleu(references).score(pieces) == pytest.approx(expected, abs=1e-9)


def test_mistakes_are_told():
    with pytest.raises(OptionError, match="at least one reference"):
        Bleu([])
    with pytest.raises(OptionError, match="at least 1"):
        Bleu([[1]], n=0)
    with pytest.raises(OptionError, match="method1"):
        Bleu([[1]], smoothing="method7")
    with pytest.raises(OptionError, match="not a string; split it"):
        Bleu(["a sentence"])
    with pytest.raises(OptionError, match="hypotheses must be ids too"):
        Bleu([[1, 2]]).score([["a", "b"]])
    for lengths in ([1], [-1, 1], [3, 3], [1.5, 1], [[1, 1]], "ab"):
        with pytest.raises(OptionError, match="lengths must"):
            Bleu([[1]]).score(np.ones((2, 2), dtype=int), lengths)
    with pytest.raises(OptionError, match="list of lists"):
        Bleu([1, 2])
    with pytest.raises(OptionError, match="n must be"):
        Bleu([[1]], n=True)
    with pytest.raises(OptionError, match="at least two"):
        self_bleu([[1, 2]])
