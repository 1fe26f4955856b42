"""What the scalar and the vector environment share: the rules of the game, for one sequence or many.

A position is a row of tokens, right-padded with PAD, and its length. `append` is the whole
transition; it is written so that it takes plain numbers as well as arrays. Everything else
here works on batches, and the scalar environment is a batch of one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from text_gym.errors import MaskError, OptionError
from text_gym.names import load_attribute, suggest
from text_gym.rewards import RewardSpec, Scorer
from text_gym.sequences import Batch, BoolArray, Example, FloatArray, IntArray
from text_gym.tasks import Task, make_task

Mask = npt.NDArray[np.int8]
Observation = Any  # the prefix [T], or {"prompt": [P], "prefix": [T]}; with one axis more in the vector environment
Constraint = Callable[..., npt.ArrayLike]
Number = TypeVar("Number", int, IntArray)

RESET_OPTIONS = ("prefix", "prompt")
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
        task: str | Task,
        reward: RewardSpec = None,
        max_length: int | None = None,
        min_length: int = 0,
        split: str = "train",
        constraint: str | Constraint | None = None,
        banned: Iterable[str | int] = (),
        task_options: Mapping[str, Any] | None = None,
    ) -> None:
        """See `TextGenEnv` for what the arguments mean."""
        options = dict(task_options or {})
        if max_length is not None and (not isinstance(max_length, int) or max_length < 1):
            raise OptionError(f"max_length must be a whole number of at least 1, not {max_length!r}")
        if not isinstance(task, Task) and max_length is not None:
            options["max_length"] = max_length
        self.task = make_task(task, **options)
        self.vocab = self.task.vocab
        self.size, self.pad, self.eos = len(self.vocab), self.vocab.pad, self.vocab.eos
        self._end = -1 if self.eos is None else self.eos  # no action is -1
        self.limit = max_length or self.task.max_length
        if not 0 <= min_length < self.limit:
            raise OptionError(f"min_length={min_length} must lie in 0..{self.limit - 1}, below max_length")
        if min_length and self.eos is None:
            raise OptionError(f"task {self.task.name!r} has no EOS, so its sequences cannot end before min_length")
        self.min_length = min_length
        self.split = split
        self.scorer = Scorer(self.task.default_reward if reward is None else reward, self.task)
        self._set_masks(banned)
        self._set_constraint(constraint)
        self._set_spaces()
        if self.task.conditional and not len(self.task.split(split)):
            raise OptionError(f"task {self.task.name!r} has no prompts in its {split!r} split")

    def _set_masks(self, banned: Iterable[str | int]) -> None:
        """The masks at any place, and before min_length."""
        self._later = np.ones(self.size, dtype=np.int8)
        if isinstance(banned, str):
            banned = (banned,)
        for token in banned:
            number = self.vocab.ids.get(token, -1) if isinstance(token, str) else token
            if not 0 <= number < self.size:
                raise OptionError(f"banned token {token!r} is not in the vocabulary")
            self._later[number] = 0
        self._early = self._later.copy()
        if self.eos is not None:
            self._early[self.eos] = 0
        if not self._later.any() or (self.min_length and not self._early.any()):
            raise MaskError("banned and min_length together allow no token at all")

    def _set_constraint(self, constraint: str | Constraint | None) -> None:
        self._constraint_columns: tuple[str, ...] = ()
        if constraint == "valid":
            if not self.task.knows("allowed"):
                raise OptionError(
                    f"constraint='valid' needs a task that knows its language; {self.task.name!r} does not"
                )
            constraint = lambda prefixes, lengths: self.task.allowed(prefixes, lengths)  # noqa: E731
        elif isinstance(constraint, str):
            if ":" not in constraint:
                raise OptionError(f"constraint={constraint!r}: give 'valid', 'module:function' or a function")
            constraint = load_attribute(constraint)
        if constraint is not None:
            if not callable(constraint):
                raise OptionError(f"the constraint {constraint!r} is not callable")
            self._constraint_columns = tuple(inspect.signature(constraint).parameters)
            for column in self._constraint_columns:
                if column not in CONSTRAINT_COLUMNS:
                    raise OptionError(
                        f"the constraint asks for {column!r}, which it cannot have."
                        + suggest(column, CONSTRAINT_COLUMNS)
                    )
        self.constraint: Constraint | None = constraint
        self.restricts = self.constraint is not None or self.min_length > 0 or not self._later.all()

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
        self, tokens: IntArray, lengths: IntArray, examples: Sequence[Example] | None, open_: BoolArray | None = None
    ) -> Mask:
        """What may follow each prefix, [n, V]; where all rows agree, a read-only view of one row.

        Rows that are not `open_` have ended or have already left what the constraint allows;
        it is not asked about them.
        """
        early = (lengths < self.min_length) if self.min_length else None
        if self.constraint is None and (early is None or early.all() or not early.any()):
            row = self._early if early is not None and early.all() and len(early) else self._later
            return np.broadcast_to(row, (len(tokens), self.size))
        masks = np.repeat(self._later[None], len(tokens), axis=0)
        if early is not None:
            masks[early] = self._early
        if self.constraint is not None:
            asked = np.arange(len(tokens)) if open_ is None else np.flatnonzero(open_)
            if len(asked):
                masks[asked] &= self._ask_constraint(tokens[asked], lengths[asked], examples, asked)
                self._refuse_dead_ends(masks, asked, tokens, lengths)
        return masks

    def mask_row(self, length: int) -> Mask:
        """The mask of one prefix when no constraint has to be asked, [V]."""
        return (self._early if length < self.min_length else self._later).copy()

    def _ask_constraint(
        self, prefixes: IntArray, lengths: IntArray, examples: Sequence[Example] | None, rows: IntArray
    ) -> BoolArray:
        assert self.constraint is not None
        columns: dict[str, Any] = {"prefixes": prefixes, "lengths": lengths}
        if "prompts" in self._constraint_columns:
            columns["prompts"] = [list(examples[i].prompt) if examples else [] for i in rows.tolist()]
        answer = np.asarray(self.constraint(**{name: columns[name] for name in self._constraint_columns}))
        if answer.shape != (len(prefixes), self.size) or answer.dtype.kind not in "biu":
            raise MaskError(
                f"the constraint returned {answer.dtype} {answer.shape} for {len(prefixes)} prefixes; "
                f"it must return true or false for each of {self.size} tokens, ({len(prefixes)}, {self.size})"
            )
        return answer.astype(np.bool_)

    def _refuse_dead_ends(self, masks: Mask, asked: IntArray, tokens: IntArray, lengths: IntArray) -> None:
        dead = asked[~masks[asked].any(axis=1)]
        if len(dead):
            row = int(dead[0])
            text = self.vocab.decode(tokens[row, : lengths[row]].tolist())
            raise MaskError(
                f"nothing may follow {text!r}: the constraint, min_length={self.min_length} and the banned "
                "tokens together allow no token; let the constraint always leave one"
            )

    def observe(self, tokens: IntArray, prompts: IntArray | None) -> Observation:
        """A fresh observation of the position."""
        prefix = tokens.copy()
        return prefix if prompts is None else {"prompt": prompts.copy(), "prefix": prefix}

    def finish(self, tokens: IntArray, lengths: IntArray, examples: Sequence[Example] | None) -> Final:
        """Score sequences that have ended."""
        batch = Batch(tokens, lengths, self.vocab, examples)
        score = self.scorer(batch)
        prompts = None if examples is None else batch.prompts
        return Final(score.total, batch.texts, lengths, score.terms, prompts)

    def draw_example(self, random: np.random.Generator) -> Example:
        """A prompt of the split, each as likely."""
        examples = self.task.split(self.split)
        return examples[int(random.integers(len(examples)))]

    def find_example(self, prompt: Any) -> Example:
        """The example that options["prompt"] means: a number in the split, a text, or ids."""
        examples = self.task.split(self.split)
        if not self.task.conditional:
            raise OptionError(f"task {self.task.name!r} takes no prompt")
        if isinstance(prompt, int | np.integer):
            if not 0 <= prompt < len(examples):
                raise OptionError(f"prompt number {prompt} is not among the {len(examples)} of {self.split!r}")
            return examples[int(prompt)]
        ids = tuple(self._ids(prompt, "prompt", self.task.prompt_length))
        known = examples.by_prompt.get(ids)
        return Example(ids, (), {}) if known is None else examples[known]

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
            array = np.asarray(given)
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


def check_reset_options(options: Mapping[str, Any] | None, known: Sequence[str]) -> dict[str, Any]:
    """The options of reset(), refusing unknown ones."""
    options = dict(options or {})
    for name in options:
        if name not in known:
            raise OptionError(f"reset() has no option {name!r}." + suggest(str(name), known))
    return options
