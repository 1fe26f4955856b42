"""The task "answers": generated questions, each with one correct answer.

what is 7 plus 5 ?                                                    ->  1 2
mary has a red kite . john has a blue ball . what does john have ?    ->  a blue ball
mary has a red kite . john has a blue ball . who has a red kite ?     ->  mary
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np

from text_gym.errors import OptionError
from text_gym.sequences import Examples, Sequences
from text_gym.tasks.task import Task
from text_gym.validation import LARGEST_SIZE, whole_number
from text_gym.vocab import EOS, Vocabulary

NAMES = ("mary", "john", "anna", "peter", "lucy", "david")
COLORS = ("red", "blue", "green", "yellow", "black")
THINGS = ("kite", "ball", "lamp", "book", "drum", "boat")
LARGEST = 20
SHARES = (("train", 0.8), ("valid", 0.1), ("test", 0.1))
LONGEST_ANSWER = 3

Question = tuple[str, str]


def answers_task(seed: int = 0, size: int = 2_000, max_length: int = 4) -> Task:
    """Questions about sums and small tables of facts, each with one correct answer.

    Args:
        seed: Seed for sampling the questions and the splits.
        size: Number of questions in all splits together.
        max_length: Maximum number of tokens of an answer, including EOS.
    """
    if whole_number("max_length", max_length, 1, LARGEST_SIZE) <= LONGEST_ANSWER:
        raise OptionError(
            f"max_length={max_length} is too small for answers of {LONGEST_ANSWER} words and EOS; "
            f"give at least {LONGEST_ANSWER + 1}"
        )
    vocab = vocabulary()
    splits = make_splits(vocab, size, seed)
    prompt_length = max(e.prompts.longest for e in splits.values() if e.prompts is not None)
    return Task("answers", vocab, max_length, splits, prompt_length, default_reward="exact_match")


def vocabulary() -> Vocabulary:
    """Return the vocabulary of all questions and answers."""
    words = ["what", "is", "plus", "minus", "?", "has", "a", ".", "does", "have", "who"]
    return Vocabulary([EOS, *sorted({*words, *NAMES, *COLORS, *THINGS, *"0123456789"})], eos=0)


def make_splits(vocab: Vocabulary, size: int = 2000, seed: int = 0) -> dict[str, Examples]:
    """Sample `size` distinct questions about sums and small tables of facts, and split them."""
    size = whole_number("size", size, 10, LARGEST_SIZE)
    random = np.random.default_rng(whole_number("seed", seed, least=0))
    sums = list(_sums())
    facts: dict[str, str] = {}
    wanted = max(size - size // 4, size - len(sums))
    while len(facts) < wanted:
        facts.update([_fact(random)])
    chosen = [sums[i] for i in random.permutation(len(sums))[: size - wanted]]
    questions = [*chosen, *facts.items()]
    order = random.permutation(len(questions))
    bounds = np.cumsum([0, *(round(share * len(questions)) for _, share in SHARES)])
    bounds[-1] = len(questions)
    parts = {name: order[a:b] for (name, _), a, b in zip(SHARES, bounds[:-1], bounds[1:], strict=True)}
    return {name: _examples(vocab, [questions[i] for i in part]) for name, part in parts.items()}


def _examples(vocab: Vocabulary, questions: list[Question]) -> Examples:
    prompts = Sequences.from_lists([vocab.encode(question) for question, _ in questions])
    return Examples(Sequences.from_lists([vocab.encode(answer) for _, answer in questions]), prompts)


def _spell(number: int) -> str:
    return " ".join(str(number))


def _sums() -> Iterator[Question]:
    """Yield all sums and non-negative differences of two numbers up to LARGEST."""
    for a, b in product(range(LARGEST + 1), repeat=2):
        yield f"what is {_spell(a)} plus {_spell(b)} ?", _spell(a + b)
        if a >= b:
            yield f"what is {_spell(a)} minus {_spell(b)} ?", _spell(a - b)


def _fact(random: np.random.Generator) -> Question:
    """Sample a table of two or three facts with distinct persons and things, and a question about one of them."""
    count = int(random.integers(2, 4))
    people = random.permutation(NAMES)[:count]
    objects = [f"a {c} {t}" for c, t in zip(random.choice(COLORS, count), random.permutation(THINGS), strict=False)]
    table = " ".join(f"{person} has {thing} ." for person, thing in zip(people, objects, strict=True))
    target = int(random.integers(count))
    if random.random() < 0.5:
        return f"{table} what does {people[target]} have ?", objects[target]
    return f"{table} who has {objects[target]} ?", str(people[target])
