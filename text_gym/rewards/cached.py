"""A reward that remembers the scores of sequences it has seen."""

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
    """A reward that is asked once for each sequence; what is used least goes when the cache is full.

    It is for rewards that say the same of a sequence whenever they are asked, and whatever else is in the batch. After
    training what the reward scores with, call clear().

    >>> def slow(completions):
    ...     print("scores", completions)
    ...     return [len(text) for text in completions]
    >>> from text_gym.tasks import make_task
    >>> CachedReward(slow).score(make_task("grammar").batch("train", [0, 0]))
    scores ['the rabbits gladly hide']
    [23.0, 23.0]

    Args:
        reward: The reward, or a function of completions.
        size: The largest number of sequences to remember.
    """

    def __init__(self, reward: Reward | RewardFunction, size: int = SIZE) -> None:
        """Wrap the reward."""
        self.reward = reward if isinstance(reward, Reward) else FunctionReward(reward)
        self.name = self.reward.name or type(self.reward).__name__
        self.size = whole_number("size", size, least=1)
        self._scores: OrderedDict[Hashable, float | None] = OrderedDict()
        self._vocab: Vocabulary | None = None

    def prepare(self, task: Task) -> None:
        """Let the reward check the task; ids of another vocabulary are refused."""
        if self._vocab is not None and self._vocab is not task.vocab:
            raise RewardError(f"this cached {self.name!r} reward serves another task; make another one for {task!r}")
        self.reward.prepare(task)
        self._vocab = task.vocab

    def clear(self) -> None:
        """Forget all scores."""
        self._scores.clear()

    def score(self, batch: Batch) -> Scores:
        """Score the batch."""
        return finished(self.start(batch))

    def start(self, batch: Batch) -> Answer:
        """Score the sequences that are not known yet, each once."""
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
        """Keep the scores of new sequences, and return those of all."""
        numbers = checked_scores(self.name, scores, part).tolist()
        if isinstance(scores, list | tuple):
            numbers = [None if said is None else number for said, number in zip(scores, numbers, strict=True)]
        found = dict(zip(new, numbers, strict=True))
        self._scores.update(found)
        while len(self._scores) > self.size:
            self._scores.popitem(last=False)
        known |= found
        return [known[key] for key in keys]
