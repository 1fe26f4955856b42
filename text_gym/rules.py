"""What the scalar and the vector environment share: the rules of the game, for one sequence or many.

A position is a row of tokens, right-padded with PAD, and its length. `append` is the whole
transition; it is written so that it takes plain numbers as well as arrays. Everything else
here works on batches, and the scalar environment is a batch of one.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from text_gym.arrays import BoolArray, FloatArray, IntArray, Mask
from text_gym.errors import DataError, MaskError, OptionError
from text_gym.registry import load_attribute
from text_gym.rewards.scorer import RewardSpec, Scorer
from text_gym.sequences import Batch, Example
from text_gym.tasks.registry import make_task, option_names
from text_gym.tasks.task import Task
from text_gym.validation import suggest, whole_number

Observation = Any  # the prefix [T], or {"prompt": [P], "prefix": [T]}; with one axis more in the vector environment
Constraint = Callable[..., npt.ArrayLike]
Number = TypeVar("Number", int, IntArray)

RESET_OPTIONS = ("prefix", "prompt", "prompt_index", "disallowed")
CONSTRAINT_COLUMNS = ("prefixes", "lengths", "prompts")


class Final(NamedTuple):
    """What is known about sequences when they end, a row each."""

    rewards: FloatArray
    texts: list[str]
    lengths: IntArray
    terms: dict[str, FloatArray]
    prompts: list[str] | None


class Rules:
    """A task, a reward and the limits, checked against each other."""

    def __init__(
        self,
        task: str | Task = "grammar",
        reward: RewardSpec | None = None,
        max_length: int | None = None,
        min_length: int = 0,
        split: str = "train",
        constraint: str | Constraint | None = None,
        banned: Iterable[str | int] | None = None,
        **task_options: Any,
    ) -> None:
        """See `TextGenEnv` for what the arguments mean."""
        known = frozenset[str]() if isinstance(task, Task) else option_names(task)
        for name in task_options:
            if known is not None and name not in known:
                own = inspect.signature(Rules).parameters.keys() - {"task_options"}
                raise OptionError(f"TextGen-v0 with this task has no option {name!r}." + suggest(name, {*own, *known}))
        if max_length is not None:
            max_length = whole_number("max_length", max_length, least=1)
            if known is None or "max_length" in known:
                task_options["max_length"] = max_length
        self.task = make_task(task, **task_options)
        self.vocab = self.task.vocab
        self.size, self.pad, self.eos = len(self.vocab), self.vocab.pad, self.vocab.eos
        self._end = -1 if self.eos is None else self.eos  # no action is -1
        self.limit = max_length or self.task.max_length
        self.min_length = self._checked_min_length(min_length)
        examples = self.task.split(split) if self.task.conditional or split != "train" else None
        if self.task.conditional and not examples:
            raise OptionError(f"task {self.task.name!r} has no prompts in its {split!r} split")
        self.split = split
        self.scorer = Scorer(self.task.default_reward if reward is None else reward, self.task)
        self._set_masks(banned)
        self.constraint = self._checked_constraint(constraint)
        self.restricts = self.constraint is not None or self.min_length > 0 or not self.later_mask.all()
        self._set_spaces()

    def _checked_min_length(self, min_length: int) -> int:
        number = whole_number("min_length", min_length, least=0)
        if number >= self.limit:
            raise OptionError(f"min_length={number} must lie below max_length={self.limit}")
        if number and self.eos is None:
            raise OptionError(f"task {self.task.name!r} has no EOS, so its sequences cannot end before min_length")
        return number

    def _set_masks(self, banned: Iterable[str | int] | None) -> None:
        """The masks at any place, and before min_length, without the constraint."""
        if banned is None:
            banned = [] if self.vocab.unk is None or self.vocab.unk == self.eos else [self.vocab.unk]
        self.later_mask: Mask = np.ones(self.size, dtype=np.int8)
        listed = banned if isinstance(banned, Iterable) and not isinstance(banned, str | bytes) else [banned]
        for token in listed:
            self.later_mask[self._token_id(token)] = 0
        self.early_mask = self.later_mask.copy()
        if self.eos is not None:
            self.early_mask[self.eos] = 0
        if not self.later_mask.any() or (self.min_length and not self.early_mask.any()):
            raise MaskError("banned and min_length together allow no token at all")

    def _token_id(self, token: Any) -> int:
        """The id of a token that is to be banned, given as text or id."""
        if isinstance(token, str) and token not in self.vocab.ids:
            try:
                ids = self.vocab.encode(token)  # as a tokenizer of its own would
            except DataError:
                ids = []
            number = ids[0] if len(ids) == 1 and ids[0] != self.vocab.unk else self.size
        else:
            number = self.vocab.ids[token] if isinstance(token, str) else whole_number("a banned token", token, 0)
        if number >= self.size:
            raise OptionError(f"banned token {token!r} is not in the vocabulary")
        return number

    def _checked_constraint(self, constraint: str | Constraint | None) -> Constraint | None:
        if constraint == "valid":
            if not self.task.knows("allowed"):
                raise OptionError(
                    f"constraint='valid' needs a task that knows its language; {self.task.name!r} does not"
                )
            constraint = self.task.allowed
        elif isinstance(constraint, str):
            if ":" not in constraint:
                raise OptionError(f"constraint={constraint!r}: give 'valid', 'module:function' or a function")
            constraint = load_attribute(constraint)
        if constraint is None:
            return None
        if not callable(constraint):
            raise OptionError(f"the constraint {constraint!r} is not callable")
        try:
            self._constraint_columns = tuple(inspect.signature(constraint).parameters)
        except (TypeError, ValueError) as problem:
            raise OptionError(f"the constraint {constraint!r} has no readable signature") from problem
        for column in self._constraint_columns:
            if column not in CONSTRAINT_COLUMNS:
                raise OptionError(
                    f"the constraint asks for {column!r}, which it cannot have." + suggest(column, CONSTRAINT_COLUMNS)
                )
        return constraint

    def _set_spaces(self) -> None:
        self.action_space = spaces.Discrete(self.size)
        prefix = spaces.Box(0, self.pad, (self.limit,), np.int64)
        self.observation_space: spaces.Space[Any] = prefix
        if self.task.conditional:
            prompt = spaces.Box(0, self.pad, (self.task.prompt_length,), np.int64)
            self.observation_space = spaces.Dict({"prompt": prompt, "prefix": prefix})

    def append(self, flat: IntArray, place: Number, lengths: Number, actions: Number) -> tuple[Number, Any]:
        """Write the actions at their places in the tokens, all rows in one; say who ended."""
        flat[place] = actions
        lengths = lengths + 1
        return lengths, (lengths == self.limit) | (actions == self._end)

    def masks(
        self,
        tokens: IntArray,
        lengths: IntArray,
        live: BoolArray,
        disallowed: IntArray,
        examples: Sequence[Example] | None,
    ) -> Mask:
        """What may follow each prefix, [n, V], read-only; where all rows agree, a view of one row.

        The constraint is asked about live rows. One that allows nothing is an error, unless a
        token was taken against the mask before: then the constraint is dropped for that row.
        """
        early = (lengths < self.min_length) & live
        if self.constraint is None and (not early.any() or early.all()):
            row = self.early_mask if self.min_length and early.all() else self.later_mask
            return np.broadcast_to(row, (len(tokens), self.size))
        masks = np.repeat(self.later_mask[None], len(tokens), axis=0)
        masks[early] = self.early_mask
        if self.constraint is not None and live.any():
            rows = np.flatnonzero(live)
            bound = masks[rows] & self._ask_constraint(tokens[rows], lengths[rows], rows, examples)
            open_ = bound.any(axis=1)
            for row in rows[~open_ & (disallowed[rows] == 0)].tolist():
                self._refuse_dead_end(tokens[row, : lengths[row]])
            masks[rows[open_]] = bound[open_]
        masks.flags.writeable = False
        return masks

    def _ask_constraint(
        self, prefixes: IntArray, lengths: IntArray, rows: IntArray, examples: Sequence[Example] | None
    ) -> BoolArray:
        assert self.constraint is not None
        columns: dict[str, Any] = {"prefixes": prefixes, "lengths": lengths}
        if "prompts" in self._constraint_columns:
            columns["prompts"] = [list(examples[i].prompt) if examples else [] for i in rows.tolist()]
        given = self.constraint(**{name: columns[name] for name in self._constraint_columns})
        try:
            answer = np.asarray(given)
        except ValueError:
            answer = np.zeros(0)  # ragged
        if answer.shape != (len(prefixes), self.size) or answer.dtype.kind not in "biu":
            raise MaskError(
                f"the constraint returned {answer.dtype} {answer.shape} for {len(prefixes)} prefixes; "
                f"it must return true or false for each of {self.size} tokens, ({len(prefixes)}, {self.size})"
            )
        return answer.astype(np.bool_)

    def _refuse_dead_end(self, prefix: IntArray) -> None:
        raise MaskError(
            f"nothing may follow {self.vocab.decode(prefix.tolist())!r}: the constraint, min_length="
            f"{self.min_length} and the banned tokens together allow no token; let the constraint always leave one"
        )

    def observe(self, tokens: IntArray, prompts: IntArray | None) -> Observation:
        """A fresh observation of the position."""
        prefix = tokens.copy()
        return prefix if prompts is None else {"prompt": prompts.copy(), "prefix": prefix}

    def finish(self, tokens: IntArray, lengths: IntArray, examples: Sequence[Example] | None) -> Final:
        """Score sequences that have ended."""
        tokens.flags.writeable = lengths.flags.writeable = False  # rewards look, and do not touch
        batch = Batch(tokens, lengths, self.vocab, examples)
        score = self.scorer(batch)
        prompts = None if examples is None else batch.prompts
        return Final(score.total, batch.texts, lengths, score.terms, prompts)

    def planned(self, random: np.random.Generator) -> np.random.Generator:
        """The generator from which a reset draws before it is certain: a copy where a constraint may still refuse."""
        return random if self.constraint is None else np.random.Generator(copy.copy(random.bit_generator))

    def draw_example(self, random: np.random.Generator) -> Example:
        """A prompt of the split, each as likely."""
        examples = self.task.split(self.split)
        return examples[int(random.integers(len(examples)))]

    def find_example(self, prompt: Any) -> Example:
        """The example that options["prompt"] means, a text or ids; without references if it is not in the split."""
        if not self.task.conditional:
            raise OptionError(f"task {self.task.name!r} takes no prompt")
        examples = self.task.split(self.split)
        ids = tuple(self._ids(prompt, "prompt", self.task.prompt_length))
        known = examples.by_prompt.get(ids)
        return Example(ids, (), dict.fromkeys(examples.columns)) if known is None else examples[known]

    def numbered_example(self, number: Any) -> Example:
        """The example that options["prompt_index"] means: its number in the split."""
        if not self.task.conditional:
            raise OptionError(f"task {self.task.name!r} takes no prompt")
        examples = self.task.split(self.split)
        if whole_number("prompt_index", number, least=0) >= len(examples):
            raise OptionError(f"prompt_index={number} is not among the {len(examples)} prompts of {self.split!r}")
        return examples[int(number)]

    def read_prefix(self, prefix: Any) -> list[int]:
        """The ids that options["prefix"] means: a text or ids, with room for at least one token more."""
        ids = self._ids(prefix, "prefix", self.limit)
        if len(ids) >= self.limit:
            raise OptionError(
                f"a prefix of {len(ids)} tokens fills all of max_length={self.limit}; nothing is left to do"
            )
        if self.eos is not None and self.eos in ids:
            raise OptionError("the prefix contains EOS, so the sequence has already ended")
        return ids

    def _ids(self, given: Any, what: str, longest: int) -> list[int]:
        if isinstance(given, str):
            ids = self.vocab.encode(given)
        else:
            try:
                array = np.asarray(given)
            except ValueError:
                array = np.zeros((0, 0))  # a ragged list
            if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
                raise OptionError(f"a {what} is a text or a list of ids, not {given!r}")
            real = np.flatnonzero(array != self.pad)
            ids = array[: real[-1] + 1 if len(real) else 0].tolist()
        if self.pad in ids:
            raise OptionError(f"the {what} has PAD ({self.pad}) between tokens; PAD may only follow the last")
        if ids and not 0 <= min(ids) <= max(ids) < self.size:
            raise OptionError(f"the {what} holds ids outside 0..{self.size - 1}: {min(ids)}..{max(ids)}")
        if len(ids) > longest:
            raise OptionError(f"a {what} of {len(ids)} tokens is longer than the {longest} allowed")
        return ids

    def prompt_row(self, example: Example) -> IntArray:
        """A prompt as observed: right-padded, [P]."""
        row = np.full(self.task.prompt_length, self.pad, dtype=np.int64)
        row[: len(example.prompt)] = example.prompt
        return row


def check_reset_options(options: Mapping[str, Any] | None, known: Sequence[str] = RESET_OPTIONS) -> dict[str, Any]:
    """The options of reset(), refusing unknown ones and two that contradict each other."""
    if options is not None and not isinstance(options, Mapping):
        raise OptionError(f"the options of reset() are a dict, not {options!r}")
    options = dict(options or {})
    for name in options:
        if name not in known:
            raise OptionError(f"reset() has no option {name!r}." + suggest(str(name), known))
    if "prompt" in options and "prompt_index" in options:
        raise OptionError("give reset() either a prompt or a prompt_index, not both")
    return options
