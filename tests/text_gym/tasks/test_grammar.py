"""The grammar against enumeration, NLTK's parser and samples."""

import itertools
import math

import nltk
import numpy as np
import pytest

import text_gym
from text_gym.errors import OptionError
from text_gym.tasks.grammar import Grammar

TINY_RULES = {
    "sentence": [(1.0, "actor/2 more")],
    "more": [(0.6, ""), (0.4, "and actor/1")],
    "actor/2": [(1.0, "the noun noted")],
    "noted": [(0.5, "act"), (0.5, "that actor/1 act")],
    "actor/1": [(1.0, "name act")],
    "act": [(0.7, "verb"), (0.3, "not verb")],
}
TINY_WORDS = {
    "the": ["the"],
    "that": ["that"],
    "and": ["and"],
    "not": ["not"],
    "name": ["ann"],
    "noun": ["cat", "dog"],
    "verb": ["sees"],
}


def enumerate_sentences(grammar):
    """Enumerate all sentences with their probabilities, by expanding the rules."""
    sentences = {}

    def expand(symbols, words, probability):
        if not symbols:
            sentences[words] = sentences.get(words, 0) + probability
            return
        first, rest = symbols[0], symbols[1:]
        for p, alternative in grammar.weighted_rules.get(first, []):
            expand(alternative + rest, words, probability * p)
        for p, word in grammar.word_weights.get(first, []) if first not in grammar.weighted_rules else []:
            expand(rest, (*words, word), probability * p)

    expand(("sentence",), (), 1.0)
    return sentences


@pytest.mark.parametrize(("least", "most"), [(3, 20), (4, 7), (6, 6)])
def test_every_probability_by_enumeration(least, most):
    grammar = Grammar(3, max_length=most + 1, rules=TINY_RULES, lexicon=TINY_WORDS, min_words=least)
    everything = enumerate_sentences(grammar)
    inside = {s: p for s, p in everything.items() if least <= len(s) <= most}
    total = sum(inside.values())
    assert len(inside) > 3
    for sentence, probability in everything.items():
        (score,) = grammar.log_prob([grammar.vocab.encode_tokens(sentence)])
        if sentence in inside:
            assert score == pytest.approx(math.log(probability / total), abs=1e-12)
        else:
            assert score == -math.inf
    entropy = -sum(p / total * math.log(p / total) for p in inside.values())
    assert grammar.entropy() == pytest.approx(entropy, abs=1e-12)
    assert grammar.mean_length() == pytest.approx(sum(p / total * (len(s) + 1) for s, p in inside.items()), abs=1e-12)


def test_probabilities_of_all_short_sequences_sum_to_those_of_sentences():
    """The probabilities of all sequences of words, valid or not, sum to 1."""
    rules = {"sentence": [(0.4, "a b"), (0.6, "b sentence")]}
    grammar = Grammar(0, max_length=6, rules=rules, lexicon={"a": ["x"], "b": ["y", "z"]}, min_words=2)
    rows = [row for n in range(1, 7) for row in itertools.product(range(1, 4), repeat=n)]
    scores = [float(grammar.log_prob([row])[0]) for row in rows]
    assert math.fsum(math.exp(s) for s in scores) == pytest.approx(1, abs=1e-12)


def length_distribution(grammar, symbol, longest):
    """Compute the probability of each number of words, 0 to `longest`, for a symbol of the unconditioned grammar."""
    nothing, one = np.eye(longest + 1)[:2]
    known = {word_class: sum(p for p, _ in words) * one for word_class, words in grammar.word_weights.items()}
    known |= dict.fromkeys(grammar.weighted_rules, 0 * one)
    for _ in range(200):  # enough iterations for derivations of every depth
        for name, alternatives in grammar.weighted_rules.items():
            known[name] = 0 * one
            for probability, body in alternatives:
                lengths = probability * nothing
                for part in body:
                    lengths = np.convolve(lengths, known[part])[: longest + 1]
                known[name] = known[name] + lengths
    return known[symbol]


def test_validity_and_probability_by_nltks_parser(grammar):
    """NLTK parses sampled sentences with the same probability, and parses no invalid sentence."""
    source = grammar.source
    symbol = {name: nltk.Nonterminal(name) for name in [*source.weighted_rules, *source.lexicon]}
    weight = {
        (symbol[name], tuple(symbol[s] for s in body)): p
        for name, alternatives in source.weighted_rules.items()
        for p, body in alternatives
    }
    weight |= {(symbol[name], (word,)): p for name, words in source.word_weights.items() for p, word in words}
    parser = nltk.parse.EarleyChartParser(nltk.CFG(symbol["sentence"], [nltk.Production(*rule) for rule in weight]))
    drawn = [text for text in grammar.sample(30, seed=4).texts if len(text.split()) <= 9]
    spoiled = ["the dog run", "the dogs that mary see run", "every dogs run", "mary says that", "dog the runs"]
    spoiled += [" ".join(text.split()[:-1]) for text in drawn] + [" ".join(reversed(text.split())) for text in drawn]
    assert len(drawn) > 10
    inside = math.log(length_distribution(source, "sentence", longest=20)[3:].sum())
    for text in [*drawn, *spoiled]:
        trees = list(parser.parse(text.split()))
        (score,) = grammar.log_prob([grammar.encode(text)])
        enough = len(text.split()) >= 3
        assert bool(trees and enough) == np.isfinite(score), text
        assert len(trees) <= 1
        if trees and enough:
            logs = [math.log(weight[(p.lhs(), p.rhs())]) for p in trees[0].productions()]
            assert score == pytest.approx(math.fsum(logs) - inside, abs=1e-9)


def test_samples_match_the_exact_figures(grammar):
    n = 40_000
    batch = grammar.sample(n, seed=11)
    scores = grammar.log_prob(batch.tokens, batch.lengths)
    assert np.isfinite(scores).all()
    assert -scores.mean() == pytest.approx(grammar.entropy(), abs=4 * scores.std() / math.sqrt(n))
    mean = grammar.source.mean_length()
    assert batch.lengths.mean() == pytest.approx(mean, abs=4 * batch.lengths.std() / math.sqrt(n))
    words = batch.content_lengths
    assert (words.min(), words.max()) == (3, 20)
    assert (batch.tokens[np.arange(n), batch.lengths - 1] == grammar.vocab.eos).all()


def test_sample_frequencies_are_the_probabilities():
    grammar = Grammar(3, rules=TINY_RULES, lexicon=TINY_WORDS)
    n = 100_000
    texts, counts = np.unique(grammar.sample(n, seed=0).texts, return_counts=True)
    expected = n * np.exp([grammar.log_prob([grammar.vocab.encode(t)])[0] for t in texts])
    assert expected.sum() == pytest.approx(n)
    assert ((counts - expected) ** 2 / expected).sum() < len(texts) + 5 * math.sqrt(2 * len(texts))


def test_log_prob_reads_eos_padding_and_lengths_alike(grammar):
    words = list(grammar.train[0].references[0])
    plain = grammar.log_prob(words)[0]
    pad = grammar.vocab.pad
    assert grammar.log_prob([[*words, 0]])[0] == plain
    assert grammar.log_prob([[*words, 0, pad, pad]])[0] == plain
    assert grammar.log_prob([[*words, 5, 5]], [len(words)])[0] == plain
    assert grammar.log_prob([[*words, 5, 5]])[0] != plain
    assert grammar.log_prob([[0]])[0] == -np.inf
    assert grammar.log_prob([words[:2]])[0] == -np.inf


def test_allowed_is_exactly_what_sentences_do():
    """A token is allowed after a prefix if and only if a sentence begins with both."""
    grammar = Grammar(3, max_length=8, rules=TINY_RULES, lexicon=TINY_WORDS)
    inside = [s for s in enumerate_sentences(grammar) if 3 <= len(s) <= 7]
    encoded = [[*grammar.vocab.encode_tokens(s), 0] for s in inside]
    prefixes = {tuple(s[:k]) for s in encoded for k in range(len(s))}
    for prefix in prefixes:
        row = np.array([[*prefix, *[len(grammar.vocab)] * (8 - len(prefix))]])
        allowed = np.flatnonzero(grammar.allowed(row, np.array([len(prefix)]))[0])
        assert set(allowed) == {s[len(prefix)] for s in encoded if tuple(s[: len(prefix)]) == prefix}
    lost = np.array([[1, 1, len(grammar.vocab)]])
    assert not grammar.allowed(lost, np.array([2])).any()


def test_seeds_change_the_language_and_nothing_else_does():
    one, same, other = (text_gym.make_task("grammar", seed=s) for s in (1, 1, 2))
    assert one.train.references.flat.tolist() == same.train.references.flat.tolist()
    assert one.vocab.tokens == other.vocab.tokens
    assert one.entropy() != other.entropy()
    assert one.train[0] != one.valid[0] != one.test[0]
    assert (len(one.train), len(one.valid), len(one.test)) == (10_000, 1_000, 1_000)


def test_it_agrees_and_nests(grammar):
    """Verbs agree with subjects across relative clauses, and clauses are nested two levels deep."""
    right = [
        "the teacher who three dogs follow often says that a red kite falls",
        "the dogs that mary sees run",
        "the teacher who the dogs that mary likes follow sings",
    ]
    wrong = [
        "the teacher who three dogs follow often say that a red kite falls",
        "the dogs that mary sees runs",
        "the teacher who the dogs that mary likes follow sing",
        "a kites fall",
        "the kite sings",
    ]
    assert grammar.is_valid([grammar.encode(right[0])]).all()
    assert [bool(grammar.is_valid(grammar.encode(t))[0]) for t in right + wrong] == [True] * 3 + [False] * 5
    assert 100 <= len(grammar.vocab) <= 300


def test_shorter_limits_condition_the_language():
    short = text_gym.make_task("grammar", max_length=6)
    batch = short.sample(500, seed=0)
    assert batch.tokens.shape == (500, 6)
    assert batch.content_lengths.max() == 5
    long = text_gym.make_task("grammar")
    words = short.sample(1, seed=1).sentences[0]
    assert short.log_prob(words)[0] > long.log_prob(words)[0]
    with pytest.raises(OptionError, match="at least 4"):
        text_gym.make_task("grammar", max_length=3)


def test_an_impossible_grammar_is_refused():
    with pytest.raises(OptionError, match="'c' is neither"):
        Grammar(rules={"sentence": [(1.0, "a c")]}, lexicon={"a": ["x"]})
    with pytest.raises(OptionError, match="no sentence of 3 to 20 words"):
        Grammar(rules={"sentence": [(1.0, "a a")]}, lexicon={"a": ["x"]}).sample(1)


def test_an_ambiguous_grammar_is_refused():
    rules = {"sentence": [(1.0, "a b"), (1.0, "c b")]}
    grammar = Grammar(rules=rules, lexicon={"a": ["x"], "c": ["x"], "b": ["y"]}, min_words=1)
    with pytest.raises(OptionError, match="'x' fits two rules"):
        grammar.sample(1)


def test_steps_number_what_the_rules_do():
    """Sentences take the same steps in a common prefix; another word or another state is a different step."""
    grammar = Grammar(0, max_length=8, rules=TINY_RULES, lexicon=TINY_WORDS)
    encode = grammar.vocab.encode_tokens
    sentences = enumerate_sentences(grammar)
    inside = [s for s in sentences if 3 <= len(s) <= 7]
    seen = {}
    for sentence in inside:
        steps = grammar.steps([encode(sentence)])[0].tolist()
        assert len(steps) == len(sentence)
        for t, step in enumerate(steps):
            assert step >= 0
            assert seen.setdefault(step, sentence[t]) == sentence[t]  # each step belongs to one word
        assert grammar.log_prob([encode(sentence)])[0] > -np.inf
    rows = [encode(s) for s in (["the", "cat", "sees"], ["the", "dog", "sees"], ["the", "cat", "not", "sees"])]
    cat, dog, negated = (grammar.steps([row])[0].tolist() for row in rows)
    assert cat[0] == dog[0] == negated[0]
    assert cat[1] == negated[1] != dog[1]
    assert cat[2] == dog[2] != negated[2]  # the state does not depend on the noun
    assert negated[3] != cat[2]  # the state after "not" is different


def test_steps_end_where_a_sentence_is_wrong():
    grammar = Grammar(0, max_length=8, rules=TINY_RULES, lexicon=TINY_WORDS)
    rows = ["the the cat", "cat the the", "the cat sees", "the cat sees sees"]
    pad = len(grammar.vocab)
    batch = np.array([[*grammar.vocab.encode_tokens(row.split()), 0, pad, pad][:5] for row in rows])
    found = grammar.steps(batch) >= 0
    assert found.tolist() == [
        [True, False, False, False, False],
        [False] * 5,
        [True, True, True, False, False],  # EOS has no step
        [True, True, True, False, False],
    ]
