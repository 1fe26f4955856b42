"""Plain functions as rewards, called with the columns that they name, as TRL's trainers call theirs.

    def polite(completions, prompts, **columns) -> list[float]: ...

A function written for TRL is a reward as it is: it may be async, and ask for what trainers pass.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from text_gym.errors import RewardError
from text_gym.rewards.calls import finished
from text_gym.rewards.reward import Answer, Reward, Scores
from text_gym.sequences import Batch
from text_gym.tasks.task import Task
from text_gym.validation import suggest

RewardFunction = Callable[..., Any]
"""Called with columns by their names; returns a number for each row, or an awaitable of these."""

COLUMNS: dict[str, Callable[[Batch], object]] = {
    "completions": lambda batch: list(batch.texts),
    "prompts": lambda batch: batch.prompts,
    "references": lambda batch: batch.references,
    "completion_ids": lambda batch: batch.sentences,
    "tokens": lambda batch: batch.tokens,
    "lengths": lambda batch: batch.lengths,
}
"""Columns that a reward function may name, beside the fields of the task's own data."""

TRAINER: dict[str, object] = {"trainer_state": None, "log_extra": lambda *_: None, "log_metric": lambda *_: None}
"""Arguments that TRL's trainers pass beside columns, with placeholders for use without a trainer."""


TEXT_READ_AS_MESSAGES = (
    "string indices must be integers",
    "string index out of range",
    "'str' object has no attribute",
)
"""What Python says where completion[0]["content"] meets a text."""


class FunctionReward(Reward):
    """A plain function, called with the columns that its signature names."""

    def __init__(self, function: RewardFunction, name: str | None = None) -> None:
        """Read the function's signature."""
        self.function = function
        self.name = name or _name_of(function)
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError) as problem:
            raise RewardError(f"reward {self.name!r} has no readable signature: {problem}") from problem
        named = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        if any(p.kind is p.POSITIONAL_ONLY for p in named):
            raise RewardError(f"reward {self.name!r} takes positional-only arguments; columns are passed by name")
        self._wanted = {p.name: p.default is p.empty for p in named}
        self._wants_all = any(p.kind is p.VAR_KEYWORD for p in parameters)

    def prepare(self, task: Task) -> None:
        """Refuse a function that names an unknown column."""
        known = {*COLUMNS, *TRAINER, *(task.train.columns if task.conditional else ())}
        for name, required in self._wanted.items():
            if required and name not in known:
                raise RewardError(
                    f"reward {self.name!r} asks for {name!r}, which is no column of task {task.name!r}."
                    + suggest(name, known)
                )

    def score(self, batch: Batch) -> Scores:
        """Call the function with its columns, and wait for it if it is async."""
        return finished(self.start(batch))

    def start(self, batch: Batch) -> Answer:
        """Call the function with its columns."""
        wanted = dict.fromkeys([*COLUMNS, *batch.columns, *self._wanted]) if self._wants_all else self._wanted
        known = {*COLUMNS, *batch.columns, *TRAINER}
        answer: Answer = self.function(**{name: self.column(name, batch) for name in wanted if name in known})
        return answer

    def hint(self, problem: Exception) -> str:
        """Say how a function of conversations is wrapped, where it looks as if it has been given texts."""
        if any(words in str(problem) for words in TEXT_READ_AS_MESSAGES):
            return (
                ". If it expects conversations, not texts, give "
                "text_gym.rewards.trl.from_trl(function, conversational=True)"
            )
        return ""

    def column(self, name: str, batch: Batch) -> object:
        """Return the argument of this name."""
        if name in COLUMNS:
            return COLUMNS[name](batch)
        return batch.columns[name] if name in batch.columns else TRAINER[name]


def _name_of(function: RewardFunction) -> str:
    while isinstance(function, partial):
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__))
