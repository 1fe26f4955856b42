"""Scoring of rollouts. Their values are tested with the gradients of REINFORCE, and against a textbook solution."""

import numpy as np
import pytest
import torch

from agents.common.rollouts import score_sequences
from text_gym.sequences import Example
from text_gym.vocab import Vocabulary

VOCAB = Vocabulary(["a", "b", "<eos>"], eos=2)


def test_each_row_is_scored_with_its_own_example():
    seen = []

    def rewards(batch):
        seen.append(batch)
        return [len(text) for text in batch.texts]

    examples = [Example((0,), ((1,),), {}), Example((1,), ((0,),), {})]
    tokens, lengths = torch.tensor([[0, 1, 2], [1, 2, 3], [0, 0, 0]]), torch.tensor([3, 2, 3])
    scores = score_sequences(rewards, VOCAB, examples)(tokens, lengths, torch.tensor([1, 0, 1]))
    assert scores.dtype == torch.float64
    assert scores.tolist() == [len("a b"), len("b"), len("a a a")]
    (batch,) = seen
    assert [example.prompt for example in batch.examples] == [(1,), (0,), (1,)]
    assert batch.lengths.tolist() == [3, 2, 3]


def test_a_reward_cannot_change_what_it_scores():
    def spoil(batch):
        batch.tokens[:] = 0
        return np.zeros(len(batch))

    tokens = torch.tensor([[1, 1, 2]])
    with pytest.raises(ValueError, match="read-only"):
        score_sequences(spoil, VOCAB, None)(tokens, torch.tensor([3]), torch.tensor([0]))
    assert tokens.tolist() == [[1, 1, 2]]
