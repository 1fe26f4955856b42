"""Custom rewards, which tests refer to as module:attribute and as file:attribute."""

import text_gym
from text_gym.rewards import FunctionReward


def letters(completions):
    return [len(text.replace(" ", "")) for text in completions]


class Letters(text_gym.Reward):
    def __init__(self, factor=1):
        self.factor = factor

    def score(self, batch):
        return [self.factor * n for n in letters(batch.texts)]


LETTERS = FunctionReward(letters)


def fails(completions):
    raise KeyError("no such word")


def words_only(completion_ids):
    return [float(0 not in ids) for ids in completion_ids]
