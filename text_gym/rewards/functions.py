"""Plain functions as rewards.

A reward function is called with keyword arguments, the columns that its parameters name, as in TRL:

    def polite(completions, prompts, **columns) -> list[float]: ...

Reward functions written for TRL work unchanged, including async functions.
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
"""Takes columns as keyword arguments; returns a number for each row, or an awaitable of that."""

COLUMNS: dict[str, Callable[[Batch], object]] = {
    "completions": lambda batch: list(batch.texts),
    "prompts": lambda batch: batch.prompts,
    "references": lambda batch: batch.references,
    "completion_ids": lambda batch: batch.sentences,
    "tokens": lambda batch: batch.tokens,
    "lengths": lambda batch: batch.lengths,
}
"""Columns of every task. A reward function may also name the other fields of the task's data."""

TRAINER: dict[str, object] = {"trainer_state": None, "log_extra": lambda *_: None, "log_metric": lambda *_: None}
"""Arguments that TRL's trainers pass in addition to columns, with placeholders for use without a trainer."""


TEXT_READ_AS_MESSAGES = (
    "string indices must be integers",
    "string index out of range",
    "'str' object has no attribute",
)
"""Python's error messages for completion[0]["content"] if the completion is a string."""


class FunctionReward(Reward):
    """A plain function as a reward, called with the columns that its parameters name."""

    def __init__(self, function: RewardFunction, name: str | None = None) -> None:
        """Read the function's signature; `name` is the function's own name if not given."""
        self.function = function
        self.name = name or _name_of(function)
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError) as problem:
            raise RewardError(
                f"reward {self.name!r} has no signature ({problem}); wrap it in a Python function of completions"
            ) from problem
        named = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        if any(p.kind is p.POSITIONAL_ONLY for p in named):
            raise RewardError(
                f"reward {self.name!r} has positional-only parameters; columns are passed by name, so remove the '/'"
            )
        self._wanted = {p.name: p.default is p.empty for p in named}
        self._wants_all = any(p.kind is p.VAR_KEYWORD for p in parameters)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    def prepare(self, task: Task) -> None:
        """Raise RewardError if a required parameter of the function is not a column of the task."""
        known = {*COLUMNS, *TRAINER, *(task.train.columns if task.conditional else ())}
        for name, required in self._wanted.items():
            if required and name not in known:
                raise RewardError(
                    f"reward {self.name!r} has the parameter {name!r}, which is not a column of task {task.name!r}."
                    + suggest(name, known)
                )

    def score(self, batch: Batch) -> Scores:
        """Call the function with its columns, and wait for the result of an async function."""
        return finished(self.start(batch))

    def start(self, batch: Batch) -> Answer:
        """Call the function with its columns; an async function returns an awaitable."""
        wanted = dict.fromkeys([*COLUMNS, *batch.columns, *self._wanted]) if self._wants_all else self._wanted
        known = {*COLUMNS, *batch.columns, *TRAINER}
        answer: Answer = self.function(**{name: self.column(name, batch) for name in wanted if name in known})
        return answer

    def hint(self, problem: Exception) -> str:
        """Suggest from_trl() if the error looks like that of a function of conversations called with texts."""
        if any(words in str(problem) for words in TEXT_READ_AS_MESSAGES):
            return (
                ". If the function expects conversations instead of texts, pass "
                "text_gym.rewards.trl.from_trl(function, conversational=True)"
            )
        return ""

    def column(self, name: str, batch: Batch) -> object:
        """Return the value of the parameter with this name."""
        if name in COLUMNS:
            return COLUMNS[name](batch)
        return batch.columns[name] if name in batch.columns else TRAINER[name]


def _name_of(function: RewardFunction) -> str:
    while isinstance(function, partial):
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__))
