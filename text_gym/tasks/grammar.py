"""The task "grammar": English-like sentences from a seeded probabilistic grammar with exact likelihoods.

The language has long-range structure. Relative clauses are nested, verbs agree in number with
subjects before nested clauses, and verbs fit the kind of their subject:

    the teacher who three dogs follow often says that a red kite falls

The grammar is unambiguous: the next word determines the rule. Each sentence therefore has one
derivation, and the rules compile to a deterministic finite automaton, which gives exact
likelihoods, the exact entropy and a validity test. The distribution is that of the grammar,
conditioned on the bounds on the sentence length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from text_gym.arrays import BoolArray, FloatArray, IntArray
from text_gym.errors import OptionError
from text_gym.sequences import Batch, make_batch
from text_gym.tasks.english import english_lexicon, english_rules
from text_gym.tasks.task import Task, sampled_task
from text_gym.validation import LARGEST_SIZE, whole_number
from text_gym.vocab import EOS, Vocabulary

Rules = Mapping[str, Sequence[tuple[float, str]]]
"""For each nonterminal its alternatives: a weight, and symbols separated by spaces."""
Lexicon = Mapping[str, Sequence[str]]
"""For each category its words; the seed chooses their frequencies."""

FEWEST_WORDS = 3
MOST_WORDS = 20


class Grammar:
    """A source of sentences with exact log-probabilities.

    >>> english = Grammar(seed=0)
    >>> batch = english.sample(2, seed=1)
    >>> bool((english.log_prob(batch.tokens) > -80).all()), english.is_valid(batch.tokens).tolist()
    (True, [True, True])

    Args:
        seed: Seed of the probabilities of rules and words; it does not change the set of valid sentences.
        max_length: Maximum number of tokens, including EOS.
        rules: Rules of another grammar, with the start symbol "sentence".
        lexicon: Words of the categories of these rules.
        min_words: Minimum number of words of a sentence.
    """

    def __init__(
        self,
        seed: int = 0,
        max_length: int = MOST_WORDS + 1,
        rules: Rules | None = None,
        lexicon: Lexicon | None = None,
        min_words: int = FEWEST_WORDS,
    ) -> None:
        """Create the vocabulary; the automaton is compiled on first use."""
        if whole_number("max_length", max_length, 1, LARGEST_SIZE) <= min_words:
            raise OptionError(
                f"max_length={max_length} leaves no room for {min_words} words and EOS; give at least {min_words + 1}"
            )
        self.seed = whole_number("seed", seed, least=0)
        self.max_length = max_length
        self.min_words = min_words
        self.rules: Rules = rules if rules is not None else english_rules()
        self.lexicon: Lexicon = lexicon if lexicon is not None else english_lexicon()
        used = {symbol for body in self.rules.values() for _, text in body for symbol in text.split()}
        for symbol in sorted({"sentence", *used} - self.rules.keys() - self.lexicon.keys()):
            raise OptionError(f"the symbol {symbol!r} is neither in rules nor in lexicon; add it to one of them")
        words = dict.fromkeys(word for category in self.lexicon.values() for word in category)
        self.vocab = Vocabulary((EOS, *sorted(words)), eos=0)

    def __repr__(self) -> str:
        return f"Grammar({len(self.vocab)} tokens, max_length={self.max_length}, seed={self.seed})"

    @cached_property
    def automaton(self) -> Automaton:
        """The automaton of the grammar with this seed and these bounds on the length."""
        return Automaton(self.weighted_rules, self.word_weights, self.vocab, self.min_words, self.max_length - 1)

    @cached_property
    def weighted_rules(self) -> dict[str, list[tuple[float, tuple[str, ...]]]]:
        """The rules with the probabilities of this seed, which sum to 1 for each nonterminal."""
        random = np.random.default_rng([self.seed, 0])
        weighted = {}
        for name, alternatives in self.rules.items():
            weights = np.array([w for w, _ in alternatives]) * np.exp(random.normal(0, 0.3, len(alternatives)))
            weighted[name] = [
                (float(p), tuple(text.split()))
                for p, (_, text) in zip(weights / weights.sum(), alternatives, strict=True)
            ]
        return weighted

    @cached_property
    def word_weights(self) -> dict[str, list[tuple[float, str]]]:
        """The words of each category with the probabilities of this seed: Zipf's law over a random permutation."""
        random = np.random.default_rng([self.seed, 1])
        weighted = {}
        for name, words in self.lexicon.items():
            weights = 1 / (1.0 + random.permutation(len(words)))
            weighted[name] = list(zip((weights / weights.sum()).tolist(), words, strict=True))
        return weighted

    def sample(self, n: int, seed: int | np.random.Generator | None = None) -> Batch:
        """Sample n sentences."""
        tokens, lengths = self.automaton.sample(n, np.random.default_rng(seed), self.max_length)
        return Batch(tokens, lengths, self.vocab)

    def log_prob(self, tokens: npt.ArrayLike, lengths: npt.ArrayLike | None = None) -> FloatArray:
        """Compute the log-probability of each sentence in nats, [n], including EOS; -inf outside the language.

        A row with or without a final EOS is scored as a complete sentence.
        """
        batch = make_batch(tokens, lengths, self.vocab)
        return self.automaton.log_prob(batch.tokens, batch.content_lengths)

    def is_valid(self, tokens: npt.ArrayLike, lengths: npt.ArrayLike | None = None) -> BoolArray:
        """Return whether each sentence belongs to the language, [n]."""
        return self.log_prob(tokens, lengths) > -np.inf

    def allowed(self, prefixes: IntArray, lengths: IntArray) -> BoolArray:
        """Return which tokens can follow each prefix in a sentence of the language, [n, V]."""
        return self.automaton.allowed(prefixes, lengths, len(self.vocab))

    def steps(self, tokens: npt.ArrayLike, lengths: npt.ArrayLike | None = None) -> IntArray:
        """Return the arc of the automaton that each word takes, [n, T]; -1 from the first invalid word on, and for EOS.

        >>> english = Grammar(seed=0)
        >>> some = english.sample(100, seed=1)
        >>> bool(((english.steps(some.tokens) >= 0).sum(axis=1) == some.content_lengths).all())
        True
        """
        batch = make_batch(tokens, lengths, self.vocab)
        return self.automaton.arcs(batch.tokens, batch.content_lengths)

    def entropy(self) -> float:
        """Return the exact entropy in nats per sentence."""
        return self.automaton.entropy

    def mean_length(self) -> float:
        """Return the exact expected number of tokens of a sentence, including EOS."""
        return self.automaton.mean_words + 1


def grammar_task(
    seed: int = 0,
    max_length: int = MOST_WORDS + 1,
    train_size: int = 10_000,
    valid_size: int = 1_000,
    test_size: int = 1_000,
) -> Task:
    """English-like sentences of 3 to 20 words, with exact likelihood, entropy and validity.

    Args:
        seed: Seed of the language's probabilities and of the splits.
        max_length: Maximum number of tokens of a sentence, including EOS.
        train_size: Number of training sentences.
        valid_size: Number of validation sentences.
        test_size: Number of test sentences.
    """
    source = Grammar(seed, max_length)
    return sampled_task("grammar", source, max_length, seed, (train_size, valid_size, test_size))


class Automaton:
    """A grammar compiled to a deterministic finite automaton; an arc is a word with its probability.

    A state is the tuple of symbols that remain to be expanded. `_mass[state, t]` is the probability
    that a sentence that is in this state after t words ends within the bounds on the length. It
    conditions the probabilities of the grammar on these bounds.
    """

    def __init__(
        self,
        rules: Mapping[str, Sequence[tuple[float, tuple[str, ...]]]],
        words: Mapping[str, Sequence[tuple[float, str]]],
        vocab: Vocabulary,
        fewest: int,
        most: int,
    ) -> None:
        """Expand the rules to all states that are reachable from "sentence"."""
        self._rules = rules
        self._words = words
        self._ids = vocab.ids
        numbers: dict[tuple[str, ...], int] = {("sentence",): 0}
        todo: list[tuple[str, ...]] = [("sentence",)]
        stops: list[float] = []
        arcs: list[tuple[int, int, float, int]] = []
        for number, state in enumerate(todo):  # `todo` grows during the loop
            stop, nexts = self._expand(state)
            stops.append(stop)
            for word, probability, after in nexts:
                if after not in numbers:
                    numbers[after] = len(numbers)
                    todo.append(after)
                arcs.append((number, word, probability, numbers[after]))
        source, word_ids, probabilities, target = zip(*arcs, strict=True)
        self._stop = np.array(stops)
        self._source: IntArray = np.array(source)
        self._word: IntArray = np.array(word_ids)
        self._probability: FloatArray = np.array(probabilities)
        self._target: IntArray = np.array(target)
        self._arc_of = np.full((len(stops) + 1, len(vocab) + 1), -1, dtype=np.int32)
        self._arc_of[self._source, self._word] = np.arange(len(arcs))
        self._fewest = fewest
        self._most = most
        self._fill_mass()
        if self._mass[0, 0] == 0:
            raise OptionError(
                f"the grammar has no sentence of {fewest} to {most} words; change max_length or min_words"
            )

    def _expand(self, state: tuple[str, ...]) -> tuple[float, list[tuple[int, float, tuple[str, ...]]]]:
        """Return the probability of stopping in a state, and its arcs: (word id, probability, next state)."""
        stop = 0.0
        nexts: dict[int, tuple[float, tuple[str, ...]]] = {}
        open_ = [(1.0, state)]
        while open_:
            probability, stack = open_.pop()
            if not stack:
                stop += probability
            elif stack[0] in self._rules:
                rest = stack[1:]
                open_ += [(probability * p, symbols + rest) for p, symbols in self._rules[stack[0]]]
            else:
                for p, word in self._words[stack[0]]:
                    if self._ids[word] in nexts:
                        raise OptionError(
                            f"the grammar is ambiguous: in the state {' '.join(state)!r} the word {word!r} fits two "
                            "rules; the next word must determine the rule"
                        )
                    nexts[self._ids[word]] = (probability * p, stack[1:])
        return stop, [(word, *nexts[word]) for word in sorted(nexts)]

    def _arcs_with_mass(self, words_before: int) -> FloatArray:
        """Multiply the probability of each arc by the mass of its target state."""
        ahead: FloatArray = self._mass[self._target, words_before + 1]
        return self._probability * ahead

    def _per_state(self, values: FloatArray) -> FloatArray:
        """Sum values of arcs over the arcs of each state."""
        return np.bincount(self._source, weights=values, minlength=len(self._stop)).astype(np.float64)

    def _fill_mass(self) -> None:
        """Compute the mass of every state, backwards from the longest sentences."""
        self._mass: FloatArray = np.zeros((len(self._stop) + 1, self._most + 2))
        for t in range(self._most, -1, -1):
            self._mass[:-1, t] = self._per_state(self._arcs_with_mass(t))
            self._mass[:-1, t] += self._stop * (t >= self._fewest)

    def sample(self, n: int, random: np.random.Generator, width: int) -> tuple[IntArray, IntArray]:
        """Sample n sentences: `tokens` [n, width] and `lengths` [n], including EOS (id 0)."""
        tokens = np.full((n, width), self._arc_of.shape[1] - 1, dtype=np.int64)
        lengths = np.zeros(n, dtype=np.int64)
        alive = np.arange(n)
        state = np.zeros(n, dtype=np.int64)
        starts = np.searchsorted(self._source, np.arange(len(self._stop)))
        for t in range(self._most + 1):
            total = np.concatenate(([0.0], np.cumsum(self._arcs_with_mass(t))))
            stop = self._stop[state] * (t >= self._fewest)
            draw = random.random(len(state)) * self._mass[state, t] - stop
            stops = draw < 0
            lengths[alive] = t + 1
            tokens[alive[stops], t] = 0
            alive = alive[~stops]
            state = state[~stops]
            draw = draw[~stops]
            arc = np.searchsorted(total, total[starts[state]] + draw, side="right") - 1
            arc = self._nearest_possible(arc, state, starts, total)
            tokens[alive, t] = self._word[arc]
            state = self._target[arc]
        return tokens, lengths

    def _nearest_possible(self, arc: IntArray, state: IntArray, starts: IntArray, total: FloatArray) -> IntArray:
        """Clip each arc to the last arc of its state with a positive probability, against rounding errors."""
        ends = np.append(starts[1:], len(self._source))
        weights = np.diff(total)
        last = np.maximum.accumulate(np.where(weights > 0, np.arange(len(weights)), 0))
        furthest: IntArray = last[np.maximum(ends[state] - 1, 0)]
        return np.minimum(arc, furthest)

    def log_prob(self, tokens: IntArray, words: IntArray) -> FloatArray:
        """Compute the log-probability of the sentence of the first `words` [n] tokens of each row, [n]."""
        with np.errstate(divide="ignore"):
            steps = np.log(self._probability)
            stop = np.log(self._stop)
            start = np.log(self._mass[0, 0])
        result = np.full(len(tokens), -start)
        state = np.zeros(len(tokens), dtype=np.int64)
        for t in range(int(words.max(initial=0))):
            arc = self._arc_of[state, tokens[:, t]]
            inside = t < words
            result[inside] += np.where(arc >= 0, steps[arc], -np.inf)[inside]
            state = np.where(inside, np.where(arc >= 0, self._target[arc], len(self._stop)), state)
        dead = (state == len(self._stop)) | (words < self._fewest) | (words > self._most)
        return np.where(dead, -np.inf, result + stop[np.minimum(state, len(stop) - 1)])

    def arcs(self, tokens: IntArray, words: IntArray) -> IntArray:
        """Return the arc of each of the first `words` [n] tokens of each row, [n, T]; -1 if there is none."""
        state = np.zeros(len(tokens), dtype=np.int64)
        arcs = np.full(tokens.shape, -1, dtype=np.int64)
        for t in range(int(words.max(initial=0))):
            arcs[:, t] = np.where(t < words, self._arc_of[state, tokens[:, t]], -1)
            state = np.where(arcs[:, t] >= 0, self._target[arcs[:, t]], len(self._stop))
        return arcs

    def allowed(self, prefixes: IntArray, lengths: IntArray, size: int) -> BoolArray:
        """Return which words, and EOS (id 0), can follow each prefix in a sentence, [n, size]."""
        state = np.zeros(len(prefixes), dtype=np.int64)
        for t in range(int(lengths.max(initial=0))):
            arc = self._arc_of[state, prefixes[:, t]]
            after = np.where(arc >= 0, self._target[arc], len(self._stop))
            state = np.where(t < lengths, after, state)
        arcs = self._arc_of[state, :size]
        ahead = self._mass[self._target[arcs], np.minimum(lengths, self._most)[:, None] + 1]
        mask: BoolArray = (arcs >= 0) & (ahead > 0)
        can_stop = np.append(self._stop, 0.0)[state] > 0
        mask[:, 0] = can_stop & (lengths >= self._fewest)
        return mask

    @cached_property
    def entropy(self) -> float:
        """Entropy in nats per sentence."""
        return self._expected(lambda p: -np.log(p))

    @cached_property
    def mean_words(self) -> float:
        """Expected number of words: the expected number of choices without the final one, EOS."""
        return self._expected(np.ones_like) - 1

    def _expected(self, cost: Callable[[FloatArray], FloatArray]) -> float:
        """Compute the expected cost of a sentence, the sum of cost(p) over its choices of probability p."""
        value = np.zeros(len(self._stop))
        for t in range(self._most, -1, -1):
            mass = np.maximum(self._mass[:-1, t], np.finfo(float).tiny)
            going = np.maximum(self._arcs_with_mass(t) / mass[self._source], np.finfo(float).tiny)
            stopping = np.maximum(self._stop * (t >= self._fewest) / mass, np.finfo(float).tiny)
            ahead = self._per_state(going * (cost(going) + value[self._target]))
            value = ahead + stopping * cost(stopping)
        return float(value[0])
