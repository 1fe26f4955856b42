"""A cache of scores around a reward."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Hashable, Sequence

from text_gym.errors import RewardError
from text_gym.rewards.calls import checked_scores, finished
from text_gym.rewards.functions import FunctionReward, RewardFunction
from text_gym.rewards.reward import Answer, Reward, Scores
from text_gym.sequences import Batch
from text_gym.tasks.task import Task
from text_gym.validation import whole_number
from text_gym.vocab import Vocabulary

SIZE = 100_000


class CachedReward(Reward):
    """Cache the scores of a reward, so that each distinct sequence is scored once.

    When the cache is full, the least recently used score is removed. The reward must be deterministic, and the score of
    a sequence must not depend on the rest of the batch. After the reward has been retrained, call clear().

    >>> def slow(completions):
    ...     print("scores", completions)
    ...     return [len(text) for text in completions]
    >>> from text_gym.tasks import make_task
    >>> CachedReward(slow).score(make_task("grammar").batch("train", [0, 0]))
    scores ['the rabbits gladly hide']
    [23.0, 23.0]

    Args:
        reward: The reward, or a function of completions.
        size: Maximum number of cached scores.
    """

    def __init__(self, reward: Reward | RewardFunction, size: int = SIZE) -> None:
        """Start with an empty cache."""
        self.reward = reward if isinstance(reward, Reward) else FunctionReward(reward)
        self.name = self.reward.name or type(self.reward).__name__
        self.size = whole_number("size", size, least=1)
        self._scores: OrderedDict[Hashable, float | None] = OrderedDict()
        self._vocab: Vocabulary | None = None

    def prepare(self, task: Task) -> None:
        """Prepare the reward for the task; RewardError if it was prepared for a task with another vocabulary."""
        if self._vocab is not None and self._vocab is not task.vocab:
            raise RewardError(
                f"this cached {self.name!r} reward is already used with another task; create another one for {task!r}"
            )
        self.reward.prepare(task)
        self._vocab = task.vocab

    def clear(self) -> None:
        """Remove all scores from the cache."""
        self._scores.clear()

    def score(self, batch: Batch) -> Scores:
        """Return the cached scores, and compute the missing ones."""
        return finished(self.start(batch))

    def start(self, batch: Batch) -> Answer:
        """Score the distinct sequences that are not in the cache; with an async reward, return an awaitable."""
        keys = batch.keys()
        known: dict[Hashable, float | None] = {}
        new: dict[Hashable, int] = {}
        for row, key in enumerate(keys):
            if key in self._scores:
                known[key] = self._scores[key]
                self._scores.move_to_end(key)
            else:
                new.setdefault(key, row)
        if not new:
            return [known[key] for key in keys]
        part = batch.take(list(new.values()))
        answer = self.reward.start(part)
        if isinstance(answer, Awaitable):
            return self._remember_later(answer, part, list(new), known, keys)
        return self._remember(answer, part, list(new), known, keys)

    async def _remember_later(
        self,
        answer: Awaitable[Scores],
        part: Batch,
        new: Sequence[Hashable],
        known: dict[Hashable, float | None],
        keys: Sequence[Hashable],
    ) -> Scores:
        return self._remember(await answer, part, new, known, keys)

    def _remember(
        self,
        scores: Scores,
        part: Batch,
        new: Sequence[Hashable],
        known: dict[Hashable, float | None],
        keys: Sequence[Hashable],
    ) -> Scores:
        """Add the scores of the new sequences to the cache, and return the scores of all rows."""
        numbers = checked_scores(self.name, scores, part).tolist()
        if isinstance(scores, list | tuple):
            numbers = [None if score is None else number for score, number in zip(scores, numbers, strict=True)]
        found = dict(zip(new, numbers, strict=True))
        self._scores.update(found)
        while len(self._scores) > self.size:
            self._scores.popitem(last=False)
        known |= found
        return [known[key] for key in keys]
