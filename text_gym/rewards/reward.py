"""What a finished sequence is worth: the protocol."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from text_gym.arrays import AnyArray
from text_gym.sequences import Batch
from text_gym.tasks.task import Task

Scores = Sequence[float | None] | AnyArray
"""A number for each row of a batch; None where the reward does not apply, which counts as 0."""


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
    """What info["reward_terms"] and error messages call it; the class's name if empty."""

    def prepare(self, task: Task) -> None:  # noqa: B027 - most rewards need no preparation
        """Called once when an environment is made: refuse a task that lacks what score() needs."""

    @abstractmethod
    def score(self, batch: Batch) -> Scores:
        """One number for each row of the batch; None or 0 where the reward does not apply."""

    def __deepcopy__(self, memo: dict[int, object]) -> Reward:
        """Itself: Gymnasium copies what an EnvSpec holds, and a trained reward must stay one."""
        return self
