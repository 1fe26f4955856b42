"""TextGen-v0 for many sequences at once, in one process."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from text_gym.errors import InvalidActionError, OptionError, ResetNeededError
from text_gym.rewards import RewardSpec
from text_gym.rules import RESET_OPTIONS, Constraint, Final, Mask, Observation, Rules, check_reset_options
from text_gym.sequences import BoolArray, Example, FloatArray, IntArray
from text_gym.tasks import Task

Step = tuple[Observation, FloatArray, BoolArray, BoolArray, dict[str, Any]]


class TextGenVectorEnv(VectorEnv[Any, Any, npt.NDArray[Any]]):
    """`TextGenEnv` times `num_envs`, token for token the same, with one array operation for all.

    Args:
        num_envs: How many sequences are written side by side.
        autoreset_mode: "NextStep" (the step after an end ignores its action and resets), "SameStep"
            (an end resets at once; the last observation and info are in final_obs and final_info)
            or "Disabled" (reset with options={"reset_mask": ...}).
        render_mode: None or "ansi".
        task, reward, max_length, min_length, split, constraint, banned, **task_options: As for
            `TextGenEnv`.

    With a seed, copy i draws its prompts as a scalar environment reset with seed + i would. The
    reset options prefix and prompt take one value for all copies, or a list with one for each.
    A mask that is the same for all copies is a read-only view of one row.
    """

    def __init__(
        self,
        num_envs: int = 1,
        task: str | Task = "grammar",
        reward: RewardSpec = None,
        max_length: int | None = None,
        min_length: int = 0,
        split: str = "train",
        constraint: str | Constraint | None = None,
        banned: Iterable[str | int] = (),
        render_mode: str | None = None,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        **task_options: Any,
    ) -> None:
        """Build the task and the reward once, for all copies."""
        if not isinstance(num_envs, int) or num_envs < 1:
            raise OptionError(f"num_envs must be a whole number of at least 1, not {num_envs!r}")
        if render_mode not in (None, "ansi"):
            raise OptionError(f"the vector environment renders as 'ansi' or not at all, not as {render_mode!r}")
        try:
            self.autoreset_mode = AutoresetMode(autoreset_mode)
        except ValueError as problem:
            modes = ", ".join(repr(mode.value) for mode in AutoresetMode)
            raise OptionError(f"autoreset_mode must be one of {modes}, not {autoreset_mode!r}") from problem
        self.rules = Rules(task, reward, max_length, min_length, split, constraint, banned, task_options)
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.metadata = {"render_modes": ["ansi"], "render_fps": 30, "autoreset_mode": self.autoreset_mode}
        self.single_action_space = self.rules.action_space
        self.single_observation_space = self.rules.observation_space
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._tokens: IntArray = np.full((num_envs, self.rules.limit), self.rules.pad, dtype=np.int64)  # [n, T]
        self._row_starts = np.arange(num_envs) * self.rules.limit
        self._lengths: IntArray = np.zeros(num_envs, dtype=np.int64)
        self._ended: BoolArray = np.zeros(num_envs, dtype=np.bool_)
        self._any_ended = False
        self._strayed: BoolArray = np.zeros(num_envs, dtype=np.bool_)
        self._disallowed: IntArray = np.zeros(num_envs, dtype=np.int64)
        self._started = False
        self._mask: Mask | None = None
        self._all = np.ones(num_envs, dtype=np.bool_)
        self._generators: list[np.random.Generator | None] = [None] * num_envs
        self._examples: list[Example] | None = None
        self._prompts: IntArray | None = None  # [n, P]
        if self.rules.task.conditional:
            self._examples = [Example((), (), {})] * num_envs
            self._prompts = np.full((num_envs, self.rules.task.prompt_length), self.rules.pad, dtype=np.int64)

    @property
    def task(self) -> Task:
        """The task."""
        return self.rules.task

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start all episodes, or those of options["reset_mask"]."""
        given = check_reset_options(options, (*RESET_OPTIONS, "reset_mask"))
        rows = self._rows_to_reset(given.get("reset_mask"))
        seeds = self._seeds(seed)
        prefixes = [self.rules.read_prefix(p) for p in self._for_each(given, "prefix", len(rows))]
        prompts = [self.rules.find_example(p) for p in self._for_each(given, "prompt", len(rows))]
        if seeds is not None:
            for i in rows.tolist():
                self._generators[i] = None if seeds[i] is None else seeding.np_random(seeds[i])[0]
            super().reset(seed=seeds[0])
        self._restart(rows, prefixes, prompts)
        self._started = True
        masks = self._next_masks()
        here = self._all.copy() if len(rows) == self.num_envs else np.isin(np.arange(self.num_envs), rows)
        return self._observe(), {"action_mask": masks, "_action_mask": here}

    def step(self, actions: npt.ArrayLike) -> Step:
        """Append a token to each sequence."""
        chosen = self._checked(actions)
        rules, rewards, infos = self.rules, np.zeros(self.num_envs), {}
        flat = self._tokens.reshape(-1)  # the same memory, all rows in one
        if self._any_ended:
            live = self._live_rows(chosen)
            if self._mask is not None:
                self._count_disallowed(chosen, live)
            done = np.zeros(self.num_envs, dtype=np.bool_)
            places = self._row_starts[live] + self._lengths[live]
            self._lengths[live], done[live] = rules.append(flat, places, self._lengths[live], chosen[live])
            self._restart(np.flatnonzero(self._ended), [], [])
        else:
            if self._mask is not None:
                self._count_disallowed(chosen, slice(None))
            places = self._row_starts + self._lengths
            self._lengths, done = rules.append(flat, places, self._lengths, chosen)
        self._ended, self._any_ended = done.copy(), bool(done.any())
        if self._any_ended:
            rows = np.flatnonzero(done)
            infos = self._finish(rows, rewards)
            if self.autoreset_mode is AutoresetMode.SAME_STEP:
                infos = self._move_to_final(infos, rows)
                self._restart(rows, [], [])
        infos["action_mask"], infos["_action_mask"] = self._next_masks(), self._all.copy()
        return self._observe(), rewards, done, np.zeros(self.num_envs, dtype=np.bool_), infos

    def _checked(self, actions: npt.ArrayLike) -> IntArray:
        chosen = np.asarray(actions)
        if chosen.shape != (self.num_envs,) or chosen.dtype.kind not in "iu":
            raise InvalidActionError(
                f"actions are {self.num_envs} whole numbers, one for each copy, not {chosen.dtype} {chosen.shape}"
            )
        if chosen.min() < 0 or chosen.max() >= self.rules.size:
            row = int(np.flatnonzero((chosen < 0) | (chosen >= self.rules.size))[0])
            raise InvalidActionError(
                f"an action is a whole number in 0..{self.rules.size - 1}, not {chosen[row]} (copy {row})"
            )
        if not self._started:
            raise ResetNeededError("no episode is under way; call reset() before step()")
        return chosen.astype(np.int64, copy=False)

    def _live_rows(self, chosen: IntArray) -> IntArray:
        """The rows that go on in this step, when some have ended before it."""
        if self.autoreset_mode is AutoresetMode.DISABLED:
            rows = np.flatnonzero(self._ended).tolist()
            raise ResetNeededError(
                f"copies {rows[:8]} have ended; call reset(options={{'reset_mask': ...}}) with True for each of them"
            )
        return np.flatnonzero(~self._ended)

    def _count_disallowed(self, chosen: IntArray, live: IntArray | slice) -> None:
        assert self._mask is not None
        against = self._mask[np.arange(self.num_envs)[live], chosen[live]] == 0
        self._disallowed[live] += against
        self._strayed[live] |= against

    def _restart(self, rows: IntArray, prefixes: list[list[int]], prompts: list[Example]) -> None:
        """Begin new episodes in these rows; with prefixes and prompts for each of them, or none."""
        self._tokens[rows] = self.rules.pad
        self._lengths[rows] = 0
        self._ended[rows] = False
        self._any_ended = bool(self._ended.any())
        self._strayed[rows] = False
        self._disallowed[rows] = 0
        for row, prefix in zip(rows.tolist(), prefixes, strict=False):
            self._tokens[row, : len(prefix)] = prefix
            self._lengths[row] = len(prefix)
        if self._examples is not None and self._prompts is not None:
            for i, row in enumerate(rows.tolist()):
                self._examples[row] = prompts[i] if prompts else self.rules.draw_example(self._generator(row))
                self._prompts[row] = self.rules.prompt_row(self._examples[row])

    def _generator(self, row: int) -> np.random.Generator:
        """The random numbers of one copy."""
        generator = self._generators[row]
        if generator is None:
            generator = self._generators[row] = seeding.np_random(int(self.np_random.integers(2**63)))[0]
        return generator

    def _finish(self, rows: IntArray, rewards: FloatArray) -> dict[str, Any]:
        """Score the rows that ended, writing their rewards; their infos as arrays with masks."""
        everyone = len(rows) == self.num_envs
        tokens = self._tokens.copy() if everyone else self._tokens[rows]
        examples = None if self._examples is None else [self._examples[i] for i in rows.tolist()]
        final: Final = self.rules.finish(tokens, self._lengths[rows], examples)
        rewards[rows] = final.rewards
        terms: dict[str, Any] = {}
        for name, scores in final.terms.items():
            self._spread(terms, name, scores, rows)
        infos: dict[str, Any] = {}
        self._spread(infos, "text", np.array(final.texts, dtype=object), rows)
        self._spread(infos, "length", final.lengths, rows)
        infos["reward_terms"], infos["_reward_terms"] = terms, infos["_length"].copy()
        self._spread(infos, "disallowed", self._disallowed[rows], rows)
        if final.prompts is not None:
            self._spread(infos, "prompt", np.array(final.prompts, dtype=object), rows)
        return infos

    def _spread(self, infos: dict[str, Any], name: str, values: npt.NDArray[Any], rows: IntArray) -> None:
        """Put the values of some rows into an array for all, beside the mask of those rows."""
        spread = np.full(self.num_envs, None if values.dtype == object else 0, dtype=values.dtype)
        spread[rows] = values
        here = np.zeros(self.num_envs, dtype=np.bool_)
        here[rows] = True
        infos[name], infos[f"_{name}"] = spread, here

    def _move_to_final(self, infos: dict[str, Any], rows: IntArray) -> dict[str, Any]:
        """The infos of episodes that are reset in the step they end in."""
        here = infos["_length"]
        last = self._observe()
        final_obs = np.full(self.num_envs, None, dtype=object)
        for row in rows.tolist():
            final_obs[row] = {k: v[row] for k, v in last.items()} if isinstance(last, dict) else last[row]
        infos["action_mask"], infos["_action_mask"] = self._next_masks(), here.copy()
        return {"final_obs": final_obs, "_final_obs": here.copy(), "final_info": infos, "_final_info": here.copy()}

    def _next_masks(self) -> Mask:
        rules = self.rules
        if not rules.restricts:
            return rules.masks(self._tokens, self._lengths, self._examples)
        lengths = np.where(self._ended, rules.limit, self._lengths)
        masks = rules.masks(self._tokens, lengths, self._examples, ~(self._ended | self._strayed))
        self._mask = masks.copy() if masks.flags.writeable else masks
        return masks

    def _observe(self) -> Observation:
        return self.rules.observe(self._tokens, self._prompts)

    def _rows_to_reset(self, reset_mask: Any) -> IntArray:
        if reset_mask is None:
            return np.arange(self.num_envs)
        if not isinstance(reset_mask, np.ndarray) or reset_mask.shape != (self.num_envs,) or reset_mask.dtype != bool:
            raise OptionError(f"reset_mask must be a numpy array of {self.num_envs} booleans, not {reset_mask!r}")
        if not reset_mask.any():
            raise OptionError("reset_mask selects no copy; there is nothing to reset")
        if not self._started and not reset_mask.all():
            raise OptionError("the first reset must be of all copies")
        return np.flatnonzero(reset_mask)

    def _seeds(self, seed: int | Sequence[int | None] | None) -> list[int | None] | None:
        if seed is None:
            return None
        if isinstance(seed, int | np.integer):
            return [int(seed) + i for i in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise OptionError(f"{len(seed)} seeds for {self.num_envs} copies; give one number, or one for each")
        return list(seed)

    @staticmethod
    def _for_each(given: dict[str, Any], name: str, count: int) -> list[Any]:
        """A reset option for each copy: its own where a list or a 2-D array is given, else the same."""
        if name not in given:
            return []
        value = given[name]
        several = isinstance(value, np.ndarray) and value.ndim == 2
        if isinstance(value, list | tuple) and value:
            several = not isinstance(value[0], int | np.integer) or (name == "prompt" and len(value) == count != 1)
        if not several:
            return [value] * count
        if len(value) != count:
            raise OptionError(f"{len(value)} values of {name!r} for {count} copies; give one, or one for each")
        return list(value)

    def action_masks(self) -> BoolArray:
        """Which tokens may come next in each copy, [n, V]."""
        mask = self._mask if self._mask is not None else self._next_masks()
        return mask.astype(np.bool_)

    def snapshot(self) -> dict[str, Any]:
        """The options with which reset() comes back to this position."""
        options: dict[str, Any] = {"prefix": self._tokens.copy()}
        if self._prompts is not None:
            options["prompt"] = self._prompts.copy()
        return options

    def render(self) -> tuple[str, ...] | None:
        """In mode "ansi" the texts so far."""
        if self.render_mode is None:
            return None
        ends = zip(self._tokens.tolist(), self._lengths.tolist(), strict=True)
        return tuple(self.rules.vocab.decode(row[:end]) for row, end in ends)
