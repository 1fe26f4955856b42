"""The reward protocol: a score for each finished sequence."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Sequence

from text_gym.arrays import AnyArray
from text_gym.sequences import Batch
from text_gym.tasks.task import Task

Scores = Sequence[float | None] | AnyArray
"""A number for each row of a batch; None where the reward does not apply, which counts as 0."""
Answer = Scores | Awaitable[Scores]
"""Scores, or those of an async function."""


class Reward(ABC):
    """A score for each finished sequence of a batch. Subclass it and write score().

    A reward is shared and never copied, so that one which learns (a discriminator) may go on
    being trained while environments use it.

    >>> class Shout(Reward):
    ...     name = "shout"
    ...     def score(self, batch):
    ...         return [text.count("!") for text in batch.texts]
    """

    name: str = ""
    """The name in info["reward_terms"] and error messages; the class's name if empty."""

    def prepare(self, task: Task) -> None:  # noqa: B027 - most rewards need no preparation
        """Refuse a task that lacks what score() needs; called once when an environment is made."""

    @abstractmethod
    def score(self, batch: Batch) -> Scores:
        """Return one number for each row of the batch; None or 0 where the reward does not apply."""

    def start(self, batch: Batch) -> Answer:
        """Return the scores of the batch; of an async reward something to await, so that several run concurrently."""
        return self.score(batch)

    def hint(self, problem: Exception) -> str:
        """Return what to add to the error message of an exception that score() raised."""
        return ""

    def __deepcopy__(self, memo: dict[int, object]) -> Reward:
        """Return the reward itself: Gymnasium copies what an EnvSpec holds, and a trained reward must stay one."""
        return self
