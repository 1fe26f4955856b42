"""Code shared by `TextGenEnv` and `TextGenVectorEnv`: transition, action masks, reset options, error messages.

A sequence is represented by a row of tokens, right-padded with PAD, and its length. `Rules.transition`
accepts ints and arrays. The other methods work on batches; the scalar environment passes a batch of one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, overload

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from text_gym.arrays import BoolArray, FloatArray, IntArray, Mask, outline
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
"""The info dictionary of reset() and step()."""
Constraint = Callable[..., npt.ArrayLike]
"""A function whose parameters are among CONSTRAINT_COLUMNS; returns true or false for each next token, [n, V]."""

RESET_OPTIONS = ("prefix", "prompt", "prompt_index", "disallowed")
CONSTRAINT_COLUMNS = ("prefixes", "lengths", "prompts")
LONGEST = 2**31 - 1  # largest max_length
UNUSED_SEED = np.random.SeedSequence(0)  # for generators whose state is overwritten at once


class Start(NamedTuple):
    """The starting state of an episode, read from the options of reset()."""

    prefix: list[int]
    example: Example | None
    """The prompt with its references; None samples one, in tasks with prompts."""
    disallowed: int
    """Number of tokens of the prefix that the action mask did not allow."""

    def __repr__(self) -> str:
        return outline(self)


class Outcome(NamedTuple):
    """Rewards of finished sequences, and their results for the info, one row per sequence."""

    rewards: FloatArray
    texts: list[str]
    lengths: IntArray
    terms: dict[str, FloatArray]
    prompts: list[str] | None

    def __repr__(self) -> str:
        return outline(self)


class Rules:
    """A task, a reward and the limits of an episode, checked to fit together."""

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
        """Create the task and the reward from the arguments of `TextGenEnv`."""
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
            raise OptionError(f"task {self.task.name!r} has no prompts in its {split!r} split; choose another split")
        self.split = split
        reward = self.task.default_reward if reward is None else reward
        self.scorer = reward if isinstance(reward, Scorer) else Scorer(reward, self.task, reward_timeout)
        self._set_masks(banned)
        self.constraint = self._checked_constraint(constraint)
        self.restricts = self.constraint is not None or self.min_length > 0 or not self.later_mask.all()
        self.action_space = spaces.Discrete(self.size)

    def __repr__(self) -> str:
        return f"Rules({self.task!r}, reward={self.scorer})"

    def _checked_min_length(self, min_length: int) -> int:
        number = whole_number("min_length", min_length, least=0)
        if number >= self.limit:
            raise OptionError(f"min_length={shown(number)} must be below max_length={self.limit}")
        if number and self.eos is None:
            raise OptionError(
                f"min_length={shown(number)} has no effect: task {self.task.name!r} has no EOS; leave min_length at 0"
            )
        return number

    def _set_masks(self, banned: Iterable[str | int] | None) -> None:
        """Set early_mask, for prefixes shorter than min_length, and later_mask; neither includes the constraint."""
        if banned is None:
            banned = [] if self.vocab.unk is None or self.vocab.unk == self.eos else [self.vocab.unk]
        self.later_mask: Mask = np.ones(self.size, dtype=np.int8)
        listed: list[object]
        try:
            listed = [banned] if isinstance(banned, str | bytes) else list(banned)
        except TypeError:  # a single id
            listed = [banned]
        for token in listed:
            self.later_mask[self._token_id(token)] = 0
        self.early_mask = self.later_mask.copy()
        if self.eos is not None:
            self.early_mask[self.eos] = 0
        if not self.later_mask.any() or (self.min_length and not self.early_mask.any()):
            raise MaskError("banned and min_length together allow no token; ban fewer tokens")

    def _token_id(self, token: object) -> int:
        """Find the id of a banned token, given as text or id."""
        if isinstance(token, str) and token not in self.vocab.ids:
            try:
                ids = self.vocab.encode(token)  # the tokenizer may write a token in another way than the vocabulary
            except DataError:
                ids = []
            number = ids[0] if len(ids) == 1 and ids[0] != self.vocab.unk else self.size
        else:
            number = self.vocab.ids[token] if isinstance(token, str) else whole_number("a banned token", token, 0)
        if number >= self.size:
            raise OptionError(
                f"banned token {shown(token)} is not in the vocabulary; give a token of the task, or an id below "
                f"{self.size}"
            )
        return number

    def _checked_constraint(self, constraint: str | Constraint | None) -> Constraint | None:
        if isinstance(constraint, str) and constraint == "valid":
            if not self.task.knows("allowed"):
                raise OptionError(
                    f"constraint='valid' needs a task that knows its language, such as 'grammar'; "
                    f"{self.task.name!r} does not"
                )
            constraint = self.task.allowed
        elif isinstance(constraint, str):
            if ":" not in constraint:
                raise OptionError(
                    f"unknown constraint {shown(constraint)}; give 'valid', 'module:function' or a function"
                )
            constraint = load_attribute(constraint, trust=True)
        if constraint is None:
            return None
        if not callable(constraint):
            raise OptionError(f"the constraint {shown(constraint)} is not callable; give a function")
        try:
            self._constraint_columns = tuple(inspect.signature(constraint).parameters)
        except (TypeError, ValueError) as problem:
            raise OptionError(
                f"the constraint {constraint!r} has no signature; wrap it in a Python function of prefixes"
            ) from problem
        self._constraint_name = str(getattr(constraint, "__name__", type(constraint).__name__))
        for column in self._constraint_columns:
            if column not in CONSTRAINT_COLUMNS:
                raise OptionError(
                    f"the constraint has an unknown parameter {column!r}." + suggest(column, CONSTRAINT_COLUMNS)
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
        """Append actions to sequences in place.

        Args:
            flat: The tokens of all sequences, flattened.
            places: The index in `flat` of the next token of each sequence.
            lengths: The length of each sequence before the action.
            actions: Token ids.

        Returns:
            The new lengths, and whether each sequence is finished.
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
        """Compute the action mask of each prefix, [n, V].

        The constraint is called with the rows that are not finished. It must allow a token in each row. A row with a
        token that an earlier mask did not allow is an exception: there an empty constraint is ignored.

        Args:
            tokens: Token ids, [n, T].
            lengths: Lengths of the prefixes, [n].
            live: False for finished sequences, whose mask has neither min_length nor the constraint, [n].
            disallowed: Number of tokens of each prefix that earlier masks did not allow, [n].
            examples: The example of each row, in tasks with prompts.

        Returns:
            A read-only array, which may be a view of one row if all rows are equal.

        Raises:
            MaskError: The constraint fails, returns a wrong shape or type, or allows no token.
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
                    "the constraint must always allow at least one"
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
        except Exception as problem:  # user code may raise anything
            raise MaskError(
                f"the constraint {self._constraint_name!r} failed with {type(problem).__name__}: {problem}"
            ) from problem
        try:
            answer = np.asarray(given)
        except Exception:  # a ragged list, or a tensor that cannot be converted to numpy
            answer = np.zeros(0)
        if answer.shape != (len(prefixes), self.size) or answer.dtype.kind not in "biu":
            raise MaskError(
                f"the constraint {self._constraint_name!r} returned {answer.dtype} {answer.shape} "
                f"for {len(prefixes)} prefixes; "
                f"it must return true or false for each of {self.size} tokens, ({len(prefixes)}, {self.size})"
            )
        return answer.astype(np.bool_)

    def observer(self, form: str) -> Observer:
        """Create the `Observer` that converts prefixes and prompts to observations of this form."""
        return Observer(form, self.size, self.limit, self.task.prompt_length)

    def score(self, tokens: IntArray, lengths: IntArray, examples: Sequence[Example] | None) -> Outcome:
        """Compute the rewards of finished sequences; the arrays passed in become read-only."""
        tokens.flags.writeable = False
        lengths.flags.writeable = False
        batch = Batch(tokens, lengths, self.vocab, examples)
        score = self.scorer(batch)
        prompts = None if examples is None else batch.prompts
        return Outcome(score.total, batch.texts, lengths, score.terms, prompts)

    # Prompts and the options of reset().

    def planned(self, random: np.random.Generator) -> np.random.Generator:
        """Return the generator from which a reset samples prompts: a copy if the constraint may still fail."""
        if self.constraint is None:
            return random
        bits = type(random.bit_generator)(UNUSED_SEED)
        bits.state = random.bit_generator.state
        return np.random.Generator(bits)

    def sample_example(self, random: np.random.Generator) -> Example:
        """Sample an example of the split uniformly."""
        examples = self.task.split(self.split)
        return examples[int(random.integers(len(examples)))]

    def start(self, options: Mapping[str, object]) -> Start:
        """Read the starting state of one episode from the options of reset()."""
        example = None
        if "prompt" in options:
            example = self.find_example(options["prompt"])
        elif "prompt_index" in options:
            example = self._numbered_example(options["prompt_index"])
        prefix = self._prefix(options.get("prefix", ()))
        disallowed = whole_number("disallowed", options.get("disallowed", 0), least=0)
        if disallowed > len(prefix):
            raise OptionError(
                f"disallowed={shown(disallowed)} is more than the {len(prefix)} tokens of the prefix; "
                "give the number of its tokens that the mask did not allow"
            )
        return Start(prefix, example, disallowed)

    def find_example(self, prompt: object) -> Example:
        """Find the example of a prompt, given as text or ids; without references if the prompt is not in the split."""
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
                f"prompt_index={shown(number)} is out of range; the split {self.split!r} has {len(examples)} prompts, "
                f"0..{len(examples) - 1}"
            )
        return examples[number]

    def _check_conditional(self) -> None:
        if not self.task.conditional:
            raise OptionError(f"task {self.task.name!r} has no prompts; leave out prompt and prompt_index")

    def _prefix(self, given: object) -> list[int]:
        """Convert a prefix, given as text or ids, to ids; at least one more token must fit."""
        ids = self._ids(given, "prefix", self.limit)
        if len(ids) >= self.limit:
            raise OptionError(
                f"a prefix of {len(ids)} tokens leaves no room within max_length={self.limit}; "
                f"give at most {self.limit - 1}"
            )
        if self.eos is not None and self.eos in ids:
            raise OptionError("the prefix contains EOS, so the sequence is already finished; leave EOS out")
        return ids

    def _ids(self, given: object, what: str, longest: int) -> list[int]:
        if isinstance(given, str):
            ids = self.vocab.encode(given)
        else:
            try:
                array = np.asarray(given)
            except Exception:  # a ragged list, or a tensor that cannot be converted to numpy
                array = np.zeros((0, 0))
            if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
                raise OptionError(f"the {what} must be a text or a list of ids, not {shown(given)}")
            real = np.flatnonzero(array != self.pad)
            ids = array[: real[-1] + 1 if len(real) else 0].tolist()
        if self.pad in ids:
            raise OptionError(f"the {what} has PAD ({self.pad}) between tokens; PAD may only follow the last token")
        if ids and not 0 <= min(ids) <= max(ids) < self.size:
            raise OptionError(f"ids of the {what} must be in 0..{self.size - 1}, not {min(ids)}..{max(ids)}")
        if len(ids) > longest:
            raise OptionError(f"a {what} of {len(ids)} tokens is too long; the maximum is {longest}")
        return ids

    def prompt_row(self, example: Example) -> IntArray:
        """Return the ids of an example's prompt, right-padded with PAD, [P]."""
        row = np.full(self.task.prompt_length, self.pad, dtype=np.int64)
        row[: len(example.prompt)] = example.prompt
        return row

    def invalid_action(self, action: object, where: str = "") -> InvalidActionError:
        """Return the error for an action outside the action space."""
        return InvalidActionError(f"{where}an action must be a whole number in 0..{self.size - 1}, not {shown(action)}")


# Checks that do not depend on the task.


def environment(number: int, num_envs: int) -> str:
    """Return the beginning of an error message that names one of several environments; "" for a single one.

    >>> environment(3, 8) + "nothing may follow 'the'"
    "environment 3: nothing may follow 'the'"
    """
    return f"environment {number}: " if num_envs > 1 else ""


def no_episode(call: str, ended: Sequence[int] = ()) -> ResetNeededError:
    """Return the error for a call that needs a running episode; `ended` lists the environments without one.

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
    """Raise RenderModeError unless the render mode is None or known."""
    if render_mode is not None and not (isinstance(render_mode, str) and render_mode in known):
        modes = ", ".join(map(repr, known))
        raise RenderModeError(f"render_mode must be {modes} or None, not {shown(render_mode)}")


def check_reset_options(
    options: Mapping[str, object] | None, known: Sequence[str] = RESET_OPTIONS
) -> dict[str, object]:
    """Return a copy of the options of reset(); unknown or contradictory options raise OptionError."""
    if options is not None and not isinstance(options, Mapping):
        raise OptionError(f"the options of reset() must be a dict, not {shown(options)}")
    checked = dict(options or {})
    for name in checked:
        if name not in known:
            raise OptionError(f"reset() has no option {shown(name)}." + suggest(name, known))
    if "prompt" in checked and "prompt_index" in checked:
        raise OptionError("give reset() either a prompt or a prompt_index, not both")
    return checked


def check_seed(seed: object, where: str = "") -> int | None:
    """Return the seed as an int, or None, which does not reseed."""
    return None if seed is None else whole_number(f"{where}seed", seed, least=0)
