"""What `TextGenEnv` and `TextGenVectorEnv` share: the transition, action masks, reset options and error messages.

A sequence is a row of tokens, right-padded with PAD, and its length. `Rules.transition` takes plain numbers
as well as arrays. Everything else works on batches, and the scalar environment is a batch of one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, overload

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from text_gym.arrays import BoolArray, FloatArray, IntArray, Mask
from text_gym.errors import (
    DataError,
    InvalidActionError,
    MaskError,
    OptionError,
    RenderModeError,
    ResetNeededError,
    TextGymError,
    UnknownOptionError,
)
from text_gym.observations import Observer
from text_gym.registry import load_attribute
from text_gym.rewards.scorer import RewardSpec, Scorer
from text_gym.sequences import Batch, Example
from text_gym.tasks.registry import TaskSpec, make_task, option_names
from text_gym.tasks.task import Task
from text_gym.validation import shown, suggest, whole_number

Info = dict[str, Any]
"""Gymnasium's info."""
Constraint = Callable[..., npt.ArrayLike]
"""A function of the columns it names, see CONSTRAINT_COLUMNS; returns true or false for each token, [n, V]."""

RESET_OPTIONS = ("prefix", "prompt", "prompt_index", "disallowed")
CONSTRAINT_COLUMNS = ("prefixes", "lengths", "prompts")
LONGEST = 2**31 - 1
UNUSED_SEED = np.random.SeedSequence(0)  # for generators whose state is set at once


class Start(NamedTuple):
    """Where an episode starts, read from the options of reset()."""

    prefix: list[int]
    example: Example | None
    """The prompt with its references; None samples one in tasks with prompts."""
    disallowed: int
    """Tokens of the prefix that were taken against the mask."""


class Outcome(NamedTuple):
    """Rewards of finished sequences and what info says of them, one row each."""

    rewards: FloatArray
    texts: list[str]
    lengths: IntArray
    terms: dict[str, FloatArray]
    prompts: list[str] | None


class Rules:
    """A task, a reward and the limits of an episode, checked against each other."""

    def __init__(
        self,
        task: TaskSpec = "grammar",
        reward: RewardSpec | Scorer | None = None,
        max_length: int | None = None,
        min_length: int = 0,
        split: str = "train",
        constraint: str | Constraint | None = None,
        banned: Iterable[str | int] | None = None,
        reward_timeout: float | None = None,
        **task_options: object,
    ) -> None:
        """Take the arguments of `TextGenEnv`."""
        known = frozenset[str]() if isinstance(task, Task) else option_names(task)
        for name in task_options:
            if known is not None and name not in known:
                own = inspect.signature(Rules).parameters.keys() - {"task_options"} | {"observation", "render_mode"}
                raise UnknownOptionError(
                    f"TextGen-v0 with this task got an unexpected keyword argument {name!r}."
                    + suggest(name, {*own, *known})
                )
        if max_length is not None:
            max_length = whole_number("max_length", max_length, least=1)
            if max_length > LONGEST:
                raise OptionError(f"max_length={shown(max_length)} must be at most {LONGEST}")
            if known is None or "max_length" in known:
                task_options["max_length"] = max_length
        self.task = make_task(task, **task_options)
        self.vocab = self.task.vocab
        self.size = len(self.vocab)
        self.pad = self.vocab.pad
        self.eos = self.vocab.eos
        self._end = -1 if self.eos is None else self.eos  # no action is -1
        self.limit = max_length or self.task.max_length
        self.min_length = self._checked_min_length(min_length)
        is_train = isinstance(split, str) and split == "train"
        examples = self.task.split(split) if self.task.conditional or not is_train else None
        if self.task.conditional and not examples:
            raise OptionError(f"task {self.task.name!r} has no prompts in its {split!r} split")
        self.split = split
        reward = self.task.default_reward if reward is None else reward
        self.scorer = reward if isinstance(reward, Scorer) else Scorer(reward, self.task, reward_timeout)
        self._set_masks(banned)
        self.constraint = self._checked_constraint(constraint)
        self.restricts = self.constraint is not None or self.min_length > 0 or not self.later_mask.all()
        self.action_space = spaces.Discrete(self.size)

    def _checked_min_length(self, min_length: int) -> int:
        number = whole_number("min_length", min_length, least=0)
        if number >= self.limit:
            raise OptionError(f"min_length={shown(number)} must be below max_length={self.limit}")
        if number and self.eos is None:
            raise OptionError(f"task {self.task.name!r} has no EOS, so its sequences cannot end before min_length")
        return number

    def _set_masks(self, banned: Iterable[str | int] | None) -> None:
        """Set the masks before min_length and from there on, both without the constraint."""
        if banned is None:
            banned = [] if self.vocab.unk is None or self.vocab.unk == self.eos else [self.vocab.unk]
        self.later_mask: Mask = np.ones(self.size, dtype=np.int8)
        listed: list[object]
        try:
            listed = [banned] if isinstance(banned, str | bytes) else list(banned)
        except TypeError:  # a number
            listed = [banned]
        for token in listed:
            self.later_mask[self._token_id(token)] = 0
        self.early_mask = self.later_mask.copy()
        if self.eos is not None:
            self.early_mask[self.eos] = 0
        if not self.later_mask.any() or (self.min_length and not self.early_mask.any()):
            raise MaskError("banned and min_length together allow no token at all")

    def _token_id(self, token: object) -> int:
        """Find the id of a banned token, given as text or id."""
        if isinstance(token, str) and token not in self.vocab.ids:
            try:
                ids = self.vocab.encode(token)  # as a tokenizer of its own would
            except DataError:
                ids = []
            number = ids[0] if len(ids) == 1 and ids[0] != self.vocab.unk else self.size
        else:
            number = self.vocab.ids[token] if isinstance(token, str) else whole_number("a banned token", token, 0)
        if number >= self.size:
            raise OptionError(f"banned token {shown(token)} is not in the vocabulary")
        return number

    def _checked_constraint(self, constraint: str | Constraint | None) -> Constraint | None:
        if isinstance(constraint, str) and constraint == "valid":
            if not self.task.knows("allowed"):
                raise OptionError(
                    f"constraint='valid' needs a task that knows its language; {self.task.name!r} does not"
                )
            constraint = self.task.allowed
        elif isinstance(constraint, str):
            if ":" not in constraint:
                raise OptionError(f"constraint={shown(constraint)}: give 'valid', 'module:function' or a function")
            constraint = load_attribute(constraint, trust=True)
        if constraint is None:
            return None
        if not callable(constraint):
            raise OptionError(f"the constraint {shown(constraint)} is not callable")
        try:
            self._constraint_columns = tuple(inspect.signature(constraint).parameters)
        except (TypeError, ValueError) as problem:
            raise OptionError(f"the constraint {constraint!r} has no readable signature") from problem
        self._constraint_name = str(getattr(constraint, "__name__", type(constraint).__name__))
        for column in self._constraint_columns:
            if column not in CONSTRAINT_COLUMNS:
                raise OptionError(
                    f"the constraint asks for {column!r}, which it cannot have." + suggest(column, CONSTRAINT_COLUMNS)
                )
        return constraint

    # Transition, action masks and reward.

    @overload
    def transition(self, flat: IntArray, places: int, lengths: int, actions: int) -> tuple[int, bool]: ...
    @overload
    def transition(
        self, flat: IntArray, places: IntArray, lengths: IntArray, actions: IntArray
    ) -> tuple[IntArray, BoolArray]: ...
    def transition(
        self, flat: IntArray, places: int | IntArray, lengths: int | IntArray, actions: int | IntArray
    ) -> tuple[int | IntArray, bool | BoolArray]:
        """Append actions to sequences, in place; return the new lengths and which sequences have terminated.

        Args:
            flat: The tokens of all sequences as one flat array.
            places: Where in `flat` each sequence goes on.
            lengths: Lengths before the actions.
            actions: Token ids.
        """
        flat[places] = actions
        lengths = lengths + 1
        return lengths, (lengths == self.limit) | (actions == self._end)

    def action_masks(
        self,
        tokens: IntArray,
        lengths: IntArray,
        live: BoolArray,
        disallowed: IntArray,
        examples: Sequence[Example] | None,
    ) -> Mask:
        """Compute which tokens may follow each prefix: [n, V], read-only, a view of one row where all rows are equal.

        The constraint is called with the live rows. If it leaves no token to a row, that is an error, unless the row
        has taken a token against the mask before: then the constraint does not apply to the row any more.
        """
        early = (lengths < self.min_length) & live
        if self.constraint is None and (not early.any() or early.all()):
            row = self.early_mask if self.min_length and early.all() else self.later_mask
            return np.broadcast_to(row, (len(tokens), self.size))
        masks = np.repeat(self.later_mask[None], len(tokens), axis=0)
        masks[early] = self.early_mask
        if self.constraint is not None and live.any():
            rows = np.flatnonzero(live)
            bound = masks[rows] & self._call_constraint(self.constraint, tokens[rows], lengths[rows], rows, examples)
            possible = bound.any(axis=1)
            for row in rows[~possible & (disallowed[rows] == 0)].tolist():
                text = self.vocab.decode(tokens[row, : lengths[row]].tolist())
                raise MaskError(
                    f"{environment(row, len(tokens))}nothing may follow {text!r}: the constraint, "
                    f"min_length={self.min_length} and the banned tokens together allow no token; "
                    "let the constraint always leave one"
                )
            masks[rows[possible]] = bound[possible]
        masks.flags.writeable = False
        return masks

    def _call_constraint(
        self,
        constraint: Constraint,
        prefixes: IntArray,
        lengths: IntArray,
        rows: IntArray,
        examples: Sequence[Example] | None,
    ) -> BoolArray:
        columns: dict[str, object] = {"prefixes": prefixes, "lengths": lengths}
        if "prompts" in self._constraint_columns:
            columns["prompts"] = [list(examples[i].prompt) if examples else [] for i in rows.tolist()]
        try:
            given = constraint(**{name: columns[name] for name in self._constraint_columns})
        except TextGymError:
            raise
        except Exception as problem:  # a constraint is the user's own, and may fail in any way
            raise MaskError(
                f"the constraint {self._constraint_name!r} failed with {type(problem).__name__}: {problem}"
            ) from problem
        try:
            answer = np.asarray(given)
        except Exception:  # ragged, or a tensor that has no numpy array
            answer = np.zeros(0)
        if answer.shape != (len(prefixes), self.size) or answer.dtype.kind not in "biu":
            raise MaskError(
                f"the constraint {self._constraint_name!r} returned {answer.dtype} {answer.shape} "
                f"for {len(prefixes)} prefixes; "
                f"it must return true or false for each of {self.size} tokens, ({len(prefixes)}, {self.size})"
            )
        return answer.astype(np.bool_)

    def observer(self, form: str) -> Observer:
        """Make what converts prefixes and prompts to observations of this form."""
        return Observer(form, self.size, self.limit, self.task.prompt_length)

    def score(self, tokens: IntArray, lengths: IntArray, examples: Sequence[Example] | None) -> Outcome:
        """Compute the rewards of finished sequences; the arrays become read-only."""
        tokens.flags.writeable = False
        lengths.flags.writeable = False
        batch = Batch(tokens, lengths, self.vocab, examples)
        score = self.scorer(batch)
        prompts = None if examples is None else batch.prompts
        return Outcome(score.total, batch.texts, lengths, score.terms, prompts)

    # Prompts and the options of reset().

    def planned(self, random: np.random.Generator) -> np.random.Generator:
        """Return the generator that a reset samples prompts from: a copy where the constraint may still refuse it."""
        if self.constraint is None:
            return random
        bits = type(random.bit_generator)(UNUSED_SEED)
        bits.state = random.bit_generator.state
        return np.random.Generator(bits)

    def sample_example(self, random: np.random.Generator) -> Example:
        """Sample a prompt of the split, uniformly."""
        examples = self.task.split(self.split)
        return examples[int(random.integers(len(examples)))]

    def start(self, options: Mapping[str, object]) -> Start:
        """Read the reset options of one episode."""
        example = None
        if "prompt" in options:
            example = self.find_example(options["prompt"])
        elif "prompt_index" in options:
            example = self._numbered_example(options["prompt_index"])
        prefix = self._prefix(options.get("prefix", ()))
        disallowed = whole_number("disallowed", options.get("disallowed", 0), least=0)
        if disallowed > len(prefix):
            raise OptionError(f"disallowed={shown(disallowed)} tokens of a prefix that has {len(prefix)}")
        return Start(prefix, example, disallowed)

    def find_example(self, prompt: object) -> Example:
        """Find the example of a prompt, given as text or ids; one without references if it is not in the split."""
        self._check_conditional()
        examples = self.task.split(self.split)
        ids = tuple(self._ids(prompt, "prompt", self.task.prompt_length))
        known = examples.by_prompt.get(ids)
        return Example(ids, (), dict.fromkeys(examples.columns)) if known is None else examples[known]

    def _numbered_example(self, given: object) -> Example:
        self._check_conditional()
        examples = self.task.split(self.split)
        number = whole_number("prompt_index", given, least=0)
        if number >= len(examples):
            raise OptionError(
                f"prompt_index={shown(number)} is not among the {len(examples)} prompts of {self.split!r}"
            )
        return examples[number]

    def _check_conditional(self) -> None:
        if not self.task.conditional:
            raise OptionError(f"task {self.task.name!r} takes no prompt")

    def _prefix(self, given: object) -> list[int]:
        """Read a prefix, given as text or ids, that leaves room for at least one token."""
        ids = self._ids(given, "prefix", self.limit)
        if len(ids) >= self.limit:
            raise OptionError(
                f"a prefix of {len(ids)} tokens fills all of max_length={self.limit}; nothing is left to do"
            )
        if self.eos is not None and self.eos in ids:
            raise OptionError("the prefix contains EOS, so the sequence has already ended")
        return ids

    def _ids(self, given: object, what: str, longest: int) -> list[int]:
        if isinstance(given, str):
            ids = self.vocab.encode(given)
        else:
            try:
                array = np.asarray(given)
            except Exception:  # a ragged list, or a tensor that has no numpy array
                array = np.zeros((0, 0))
            if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
                raise OptionError(f"a {what} is a text or a list of ids, not {shown(given)}")
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
        """Return a prompt as the observation has it: right-padded, [P]."""
        row = np.full(self.task.prompt_length, self.pad, dtype=np.int64)
        row[: len(example.prompt)] = example.prompt
        return row

    def invalid_action(self, action: object, where: str = "") -> InvalidActionError:
        """Return the error for an action outside the action space."""
        return InvalidActionError(f"{where}an action is a whole number in 0..{self.size - 1}, not {shown(action)}")


# Refusals that need no task.


def environment(number: int, num_envs: int) -> str:
    """Name one of several environments at the beginning of an error message.

    >>> environment(3, 8) + "nothing may follow 'the'"
    "environment 3: nothing may follow 'the'"
    """
    return f"environment {number}: " if num_envs > 1 else ""


def no_episode(call: str, ended: Sequence[int] = ()) -> ResetNeededError:
    """Return the error for a call that needs a running episode; `ended` are environments that have none.

    >>> no_episode("step")
    ResetNeededError('no episode is running; call reset() before step()')
    """
    if not ended:
        return ResetNeededError(f"no episode is running; call reset() before {call}()")
    return ResetNeededError(
        f"no episode is running in environments {list(ended[:8])}; "
        f"call reset(options={{'reset_mask': ...}}) with True for each of them before {call}()"
    )


def check_render_mode(render_mode: str | None, known: Sequence[str]) -> None:
    """Refuse a render mode that the environment does not have."""
    if render_mode is not None and not (isinstance(render_mode, str) and render_mode in known):
        modes = ", ".join(map(repr, known))
        raise RenderModeError(f"render_mode must be {modes} or None, not {shown(render_mode)}")


def check_reset_options(
    options: Mapping[str, object] | None, known: Sequence[str] = RESET_OPTIONS
) -> dict[str, object]:
    """Copy the options of reset(), refusing unknown ones and two that contradict each other."""
    if options is not None and not isinstance(options, Mapping):
        raise OptionError(f"the options of reset() are a dict, not {shown(options)}")
    checked = dict(options or {})
    for name in checked:
        if name not in known:
            raise OptionError(f"reset() has no option {shown(name)}." + suggest(name, known))
    if "prompt" in checked and "prompt_index" in checked:
        raise OptionError("give reset() either a prompt or a prompt_index, not both")
    return checked


def check_seed(seed: object, where: str = "") -> int | None:
    """Return the seed as an int, or None, which keeps the random numbers as they are."""
    return None if seed is None else whole_number(f"{where}seed", seed, least=0)
