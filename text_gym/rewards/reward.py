"""Abstract base class of rewards: a score for each finished sequence."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Sequence

from text_gym.arrays import AnyArray
from text_gym.sequences import Batch
from text_gym.tasks.task import Task
from text_gym.validation import shown

Scores = Sequence[float | None] | AnyArray
"""A number for each row of a batch; None means that the reward does not apply to the row, and counts as 0."""
Answer = Scores | Awaitable[Scores]
"""Scores, or an awaitable of scores from an async reward."""


class Reward(ABC):
    """Base class of rewards. A subclass implements score(), which scores the finished sequences of a batch.

    Rewards are shared between environments and never copied: a reward with trainable weights, such as a
    discriminator, can be trained while environments use it.

    >>> class Shout(Reward):
    ...     name = "shout"
    ...     def score(self, batch):
    ...         return [text.count("!") for text in batch.texts]
    """

    name: str = ""
    """Key in info["reward_terms"], and the name in error messages; if empty, the name of the class."""

    def prepare(self, task: Task) -> None:  # noqa: B027 - most rewards need no preparation
        """Prepare for a task, and raise RewardError if score() cannot work with it.

        Called when an environment is created with the reward.
        """

    @abstractmethod
    def score(self, batch: Batch) -> Scores:
        """Return one number for each row of the batch; None or 0 if the reward does not apply to the row."""

    def start(self, batch: Batch) -> Answer:
        """Return the scores of the batch, or an awaitable of them; awaitables of several rewards run concurrently."""
        return self.score(batch)

    def hint(self, problem: Exception) -> str:
        """Return a text to append to the error message for an exception that score() raised."""
        return ""

    def __repr__(self) -> str:
        """Show the class with the options that differ from their defaults."""
        options = inspect.signature(type(self)).parameters.values()
        values = {option.name: getattr(self, option.name, option.default) for option in options}
        given = [o.name for o in options if values[o.name] is not o.empty and shown(values[o.name]) != shown(o.default)]
        return f"{type(self).__name__}({', '.join(f'{name}={shown(values[name])}' for name in given)})"

    def __deepcopy__(self, memo: dict[int, object]) -> Reward:
        """Return the reward itself: Gymnasium deep-copies the arguments in an EnvSpec, and rewards are shared."""
        return self
