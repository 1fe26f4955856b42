"""Reprs show arrays by type and shape, so that they are short for any size of data."""

import numpy as np
import pytest
import torch

import text_gym
from text_gym.arrays import outline
from text_gym.bleu import Bleu
from text_gym.language_model import Drawn
from text_gym.rewards import Scorer
from text_gym.rewards.trl import trl_reward
from text_gym.sequences import Batch, Example, Examples, Sequences

LONGEST = 300


def test_arrays_and_tensors_are_shown_by_type_and_shape():
    drawn = Drawn(torch.zeros(64, 20, dtype=torch.int64), torch.ones(64, dtype=torch.int64), torch.zeros(64, 20))
    assert repr(drawn) == outline(drawn) == "Drawn(tokens=int64[64, 20], lengths=int64[64], log_probs=float32[64, 20])"


def test_a_batch_and_its_score_are_shown_in_a_line(grammar):
    batch = grammar.batch("train")
    assert repr(batch) == "Batch(tokens=int64[10000, 21], lengths=int64[10000])"
    assert repr(batch.take([])) == "Batch(tokens=int64[0, 21], lengths=int64[0])"
    score = Scorer({"length": 1.0, "repetition": 0.5}, grammar)(batch.take(range(500)))
    assert repr(score) == "Score(total=float64[500], terms={'length': float64[500], 'repetition': float64[500]})"


def test_a_long_example_is_shortened():
    example = Example(tuple(range(5000)), (tuple(range(900)),) * 50, {"document": "word " * 5000})
    assert repr(example).startswith("Example(prompt=(0, 1, 2, 3, 4, 5, ...), references=((0, 1, ")
    assert len(repr(example)) < LONGEST


@pytest.mark.parametrize("name", ["grammar", "oracle", "answers"])
def test_tasks_and_their_parts_are_shown_in_a_line(name):
    task = text_gym.make_task(name, **({"vocab_size": 99, "test_size": 9} if name == "oracle" else {}))
    for part in (task, task.vocab, task.source, task.test, task.test.references, task.test[0]):
        assert len(repr(part)) < LONGEST
        assert " object at " not in repr(part)
    assert repr(task).startswith(f"Task({name!r}, ")


def test_the_numbers_of_sequences_are_told():
    sequences = Sequences.from_lists([[1, 2], [], [3]])
    assert repr(sequences) == "Sequences(3 sequences, 3 tokens)"
    assert repr(Examples(sequences)) == "Examples(3 sequences)"
    prompts = Sequences.from_lists([[4], [5]])
    assert repr(Examples(sequences, prompts, [2, 1])) == "Examples(2 prompts, 3 references)"
    assert repr(Bleu([["a"], ["b"]], n=2)) == "Bleu(n=2, smoothing='method1')"


def test_a_batch_of_texts_is_shown_as_short(grammar):
    class Seen(text_gym.Reward):
        def score(self, batch):
            assert isinstance(batch, Batch)
            shown.append(repr(batch))
            return np.zeros(len(batch))

    shown = []
    trl_reward(Seen())(["a word"] * 500, prompts=["why"] * 500)
    assert len(shown[0]) < LONGEST
    assert "tokens=int64[500" in shown[0]
