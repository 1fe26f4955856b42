"""TextGen-v0 for many sequences at once, in one process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from text_gym.arrays import AnyArray, BoolArray, FloatArray, IntArray, Mask
from text_gym.errors import InvalidActionError, OptionError, RenderModeError, ResetNeededError
from text_gym.rules import RESET_OPTIONS, Observation, Rules, check_reset_options
from text_gym.sequences import Example
from text_gym.tasks.task import Task
from text_gym.validation import whole_number

Step = tuple[Observation, FloatArray, BoolArray, BoolArray, dict[str, Any]]


@dataclass
class Episodes:
    """The current episodes, a row for each environment."""

    tokens: IntArray  # [n, T]
    lengths: IntArray  # [n]
    ended: BoolArray  # [n], to be reset
    disallowed: IntArray  # [n], tokens taken against the mask
    examples: list[Example] | None  # in tasks with prompts
    prompts: IntArray | None  # [n, P], in tasks with prompts

    def copy(self) -> Episodes:
        """The same episodes, free to be changed."""
        return Episodes(
            self.tokens.copy(),
            self.lengths.copy(),
            self.ended.copy(),
            self.disallowed.copy(),
            None if self.examples is None else self.examples.copy(),
            None if self.prompts is None else self.prompts.copy(),
        )


class TextGenVectorEnv(VectorEnv[Any, Any, AnyArray]):
    """`TextGenEnv` times `num_envs`, token for token the same, with one array operation for all.

    Args:
        num_envs: How many sequences are written side by side.
        autoreset_mode: "NextStep" (the step after an end ignores its action and resets), "SameStep"
            (an end resets at once; the last observation and info are in final_obs and final_info)
            or "Disabled" (reset with options={"reset_mask": ...}).
        render_mode: None or "ansi".
        rules: Those of another environment, in place of the arguments that follow.
        **arguments: task, reward and all the others that `TextGenEnv` takes.

    With a seed, copy i draws its prompts as a scalar environment reset with seed + i would. The
    reset options take one value for all copies, or a list with one for each (a flat list of ids
    is one prefix or prompt). Masks are read-only; one that all copies share is a view of one row.
    """

    def __init__(
        self,
        num_envs: int = 1,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        rules: Rules | None = None,
        **arguments: Any,
    ) -> None:
        """Build the task and the reward once, for all copies."""
        self.num_envs = n = whole_number("num_envs", num_envs, least=1)
        if render_mode not in (None, "ansi"):
            raise RenderModeError(f"the vector environment renders as 'ansi' or not at all, not as {render_mode!r}")
        try:
            self.autoreset_mode = AutoresetMode(autoreset_mode)
        except ValueError as problem:
            modes = ", ".join(repr(mode.value) for mode in AutoresetMode)
            raise OptionError(f"autoreset_mode must be one of {modes}, not {autoreset_mode!r}") from problem
        if rules is not None and arguments:
            raise OptionError(f"rules come with a task and a reward; leave {', '.join(arguments)} out")
        if rules is not None and not isinstance(rules, Rules):
            raise OptionError(
                f"rules={rules!r} is not what `rules` of another environment are; give env.unwrapped.rules"
            )
        self.rules = rules = rules or Rules(**arguments)
        self.render_mode = render_mode
        self.metadata = {"render_modes": ["ansi"], "render_fps": 30, "autoreset_mode": self.autoreset_mode}
        self.single_action_space, self.single_observation_space = rules.action_space, rules.observation_space
        self.action_space = batch_space(self.single_action_space, n)
        self.observation_space = batch_space(self.single_observation_space, n)
        self._started = False
        self._row_starts = np.arange(n) * rules.limit
        self._mask: Mask = np.broadcast_to(rules.later_mask, (n, rules.size))  # the last one
        self._generators: dict[int, np.random.Generator] = {}  # in tasks with prompts, one for each environment
        conditional = rules.task.conditional
        self._episodes = Episodes(
            tokens=np.full((n, rules.limit), rules.pad, dtype=np.int64),
            lengths=np.zeros(n, dtype=np.int64),
            ended=np.zeros(n, dtype=np.bool_),
            disallowed=np.zeros(n, dtype=np.int64),
            examples=[Example((), (), {})] * n if conditional else None,
            prompts=np.full((n, rules.task.prompt_length), rules.pad, dtype=np.int64) if conditional else None,
        )

    @property
    def task(self) -> Task:
        """The task."""
        return self.rules.task

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start all episodes, or those of options["reset_mask"]."""
        given, rules = check_reset_options(options, (*RESET_OPTIONS, "reset_mask")), self.rules
        rows, seeds = self._rows_to_reset(given.get("reset_mask")), self._seeds(seed)
        prefixes = [rules.read_prefix(p) for p in _for_each(given, "prefix", len(rows))]
        examples = [rules.find_example(p) for p in _for_each(given, "prompt", len(rows))]
        examples += [rules.numbered_example(i) for i in _for_each(given, "prompt_index", len(rows))]
        disallowed = [whole_number("disallowed", d, least=0) for d in _for_each(given, "disallowed", len(rows))]
        # The plan: copies of all that a reset changes, until nothing can refuse it any more.
        random, generators = rules.planned(self.np_random), self._generators.copy()
        if rules.task.conditional:
            for row in rows.tolist():
                generators[row] = self._plan_generator(row, seeds[row], random)
            examples = examples or [rules.draw_example(generators[row]) for row in rows.tolist()]
        episodes = self._episodes.copy()
        self._begin(episodes, rows, examples)
        for row, prefix in zip(rows.tolist(), prefixes, strict=False):
            episodes.tokens[row, : len(prefix)] = prefix
            episodes.lengths[row] = len(prefix)
        episodes.disallowed[rows] = disallowed or 0
        mask = self._next_masks(episodes)
        # From here on nothing fails.
        self.np_random.bit_generator.state = random.bit_generator.state
        super().reset(seed=seed if isinstance(seed, int) else None)
        self._generators = generators
        self._episodes = episodes
        self._mask = mask
        self._started = True
        here = np.zeros(self.num_envs, dtype=np.bool_)
        here[rows] = True
        return rules.observe(episodes.tokens, episodes.prompts), {"action_mask": mask, "_action_mask": here}

    def step(self, actions: npt.ArrayLike) -> Step:
        """Append a token to each sequence."""
        rules, episodes, rewards, infos = self.rules, self._episodes, np.zeros(self.num_envs), {}
        waiting = np.flatnonzero(episodes.ended) if episodes.ended.any() else None  # for their reset
        chosen = self._checked(actions, waiting)
        self._started = False  # until everything has gone well
        flat = episodes.tokens.reshape(-1)  # the same memory, all rows in one
        if waiting is None:
            self._count_disallowed(slice(None), chosen)
            places = self._row_starts + episodes.lengths
            episodes.lengths, done = rules.append(flat, places, episodes.lengths, chosen)
        else:
            live, done = np.flatnonzero(~episodes.ended), np.zeros(self.num_envs, dtype=np.bool_)
            self._count_disallowed(live, chosen[live])
            places = self._row_starts[live] + episodes.lengths[live]
            episodes.lengths[live], done[live] = rules.append(flat, places, episodes.lengths[live], chosen[live])
        rows = np.flatnonzero(done)
        if len(rows):
            infos = self._finish(rows, done, rewards)
        if waiting is not None:
            self._restart(waiting)
        episodes.ended = done.copy()
        if len(rows) and self.autoreset_mode is AutoresetMode.SAME_STEP:
            infos = self._as_final(infos, rows, done)
            self._restart(rows)
        self._mask = self._next_masks(episodes)
        infos["action_mask"], infos["_action_mask"] = self._mask, np.ones(self.num_envs, dtype=np.bool_)
        self._started = True
        truncated = np.zeros(self.num_envs, dtype=np.bool_)
        return rules.observe(episodes.tokens, episodes.prompts), rewards, done, truncated, infos

    def _checked(self, actions: npt.ArrayLike, waiting: IntArray | None) -> IntArray:
        """The actions as an array; those of copies that wait for their reset do not matter."""
        try:
            chosen, size = np.asarray(actions), self.rules.size
        except ValueError as problem:
            raise InvalidActionError(f"actions are {self.num_envs} whole numbers, one for each copy") from problem
        if chosen.shape != (self.num_envs,) or chosen.dtype.kind not in "iu":
            raise InvalidActionError(
                f"actions are {self.num_envs} whole numbers, one for each copy, not {chosen.dtype} {chosen.shape}"
            )
        if not self._started:
            raise ResetNeededError("no episode is under way; call reset() before step()")
        if waiting is not None:
            if self.autoreset_mode is AutoresetMode.DISABLED:
                raise ResetNeededError(
                    f"copies {waiting[:8].tolist()} have ended; "
                    "call reset(options={'reset_mask': ...}) with True for each of them"
                )
            chosen = chosen.copy()
            chosen[waiting] = 0
        if chosen.min() < 0 or chosen.max() >= size:
            row = int(np.flatnonzero((chosen < 0) | (chosen >= size))[0])
            raise InvalidActionError(f"an action is a whole number in 0..{size - 1}, not {chosen[row]} (copy {row})")
        return chosen.astype(np.int64, copy=False)

    def _count_disallowed(self, live: IntArray | slice, chosen: IntArray) -> None:
        if self.rules.restricts:
            self._episodes.disallowed[live] += self._mask[np.arange(self.num_envs)[live], chosen] == 0

    def _restart(self, rows: IntArray) -> None:
        """Begin new episodes in the rows that have ended."""
        examples: list[Example] = []
        if self.rules.task.conditional:
            examples = [self.rules.draw_example(self._generators[row]) for row in rows.tolist()]
        self._begin(self._episodes, rows, examples)

    def _begin(self, episodes: Episodes, rows: IntArray, examples: Sequence[Example]) -> None:
        """Put empty prefixes in these rows, and the prompts of the examples."""
        episodes.tokens[rows] = self.rules.pad
        episodes.lengths[rows] = 0
        episodes.ended[rows] = False
        episodes.disallowed[rows] = 0
        if episodes.examples is not None and episodes.prompts is not None:
            for row, example in zip(rows.tolist(), examples, strict=True):
                episodes.examples[row] = example
                episodes.prompts[row] = self.rules.prompt_row(example)

    def _plan_generator(self, row: int, seed: int | None, random: np.random.Generator) -> np.random.Generator:
        """The random numbers that an environment draws from after a reset with this seed."""
        if seed is not None:
            return seeding.np_random(seed)[0]
        if row in self._generators:
            return self.rules.planned(self._generators[row])
        return seeding.np_random(int(random.integers(2**63)))[0]

    def _finish(self, rows: IntArray, done: BoolArray, rewards: FloatArray) -> dict[str, Any]:
        """Score the rows that ended, writing their rewards; their infos as arrays for all copies."""
        everyone = len(rows) == self.num_envs
        tokens = self._episodes.tokens.copy() if everyone else self._episodes.tokens[rows]
        examples = None if self._episodes.examples is None else [self._episodes.examples[i] for i in rows.tolist()]
        final = self.rules.finish(tokens, self._episodes.lengths[rows], examples)
        rewards[rows] = final.rewards
        values: dict[str, AnyArray] = {
            "text": np.array(final.texts, dtype=object),
            "length": final.lengths,
            "disallowed": self._episodes.disallowed[rows],
        }
        if final.prompts is not None:
            values["prompt"] = np.array(final.prompts, dtype=object)
        terms = self._spread(final.terms, rows, done)
        return self._spread(values, rows, done) | {"reward_terms": terms, "_reward_terms": done.copy()}

    def _spread(self, values: dict[str, AnyArray], rows: IntArray, done: BoolArray) -> dict[str, Any]:
        """The values of some rows as arrays for all copies, each beside the mask of those rows."""
        infos: dict[str, Any] = {}
        for name, some in values.items():
            infos[name] = np.full(self.num_envs, None if some.dtype == object else 0, dtype=some.dtype)
            infos[name][rows] = some
            infos[f"_{name}"] = done.copy()
        return infos

    def _as_final(self, infos: dict[str, Any], rows: IntArray, done: BoolArray) -> dict[str, Any]:
        """The infos of episodes that are reset in the step they end in."""
        last = self.rules.observe(self._episodes.tokens, self._episodes.prompts)
        final_obs = np.full(self.num_envs, None, dtype=object)
        for row in rows.tolist():
            final_obs[row] = {k: v[row] for k, v in last.items()} if isinstance(last, dict) else last[row]
        infos["action_mask"] = np.broadcast_to(self.rules.later_mask, (self.num_envs, self.rules.size))
        infos["_action_mask"] = done.copy()
        return {"final_obs": final_obs, "_final_obs": done.copy(), "final_info": infos, "_final_info": done.copy()}

    def _next_masks(self, episodes: Episodes) -> Mask:
        if not self.rules.restricts:
            return self._mask
        live = ~episodes.ended
        return self.rules.masks(episodes.tokens, episodes.lengths, live, episodes.disallowed, episodes.examples)

    def _rows_to_reset(self, reset_mask: Any) -> IntArray:
        if reset_mask is None:
            return np.arange(self.num_envs)
        if not isinstance(reset_mask, np.ndarray) or reset_mask.shape != (self.num_envs,) or reset_mask.dtype != bool:
            raise OptionError(f"reset_mask must be a numpy array of {self.num_envs} booleans, not {reset_mask!r}")
        if not reset_mask.any():
            raise OptionError("reset_mask selects no copy; there is nothing to reset")
        if not self._started and not reset_mask.all():
            raise OptionError("the first reset must be of all copies, and so must the one after an error")
        return np.flatnonzero(reset_mask)

    def _seeds(self, seed: int | Sequence[int | None] | None) -> list[int | None]:
        """A seed for each copy; None leaves its random numbers as they are."""
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, int | np.integer):
            return [int(seed) + i for i in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise OptionError(f"{len(seed)} seeds for {self.num_envs} copies; give one number, or one for each")
        return [None if s is None else whole_number("a seed", s, least=0) for s in seed]

    def action_masks(self) -> BoolArray:
        """Which tokens may come next in each copy, [n, V]."""
        return self._mask.astype(np.bool_)

    def snapshot(self) -> dict[str, Any]:
        """The options with which reset() comes back to this position."""
        episodes = self._episodes
        if not self._started or episodes.ended.any():
            ended = np.flatnonzero(episodes.ended).tolist()
            raise ResetNeededError(f"copies {ended[:8]} have ended; take a snapshot while all are under way")
        options: dict[str, Any] = {"prefix": episodes.tokens.copy(), "disallowed": episodes.disallowed.tolist()}
        if episodes.examples is not None:
            numbers = [example.number for example in episodes.examples]
            if None in numbers:  # a prompt of the caller's own
                options["prompt"] = [np.array(example.prompt, dtype=np.int64) for example in episodes.examples]
            else:
                options["prompt_index"] = numbers
        return options

    def render(self) -> tuple[str, ...] | None:
        """In mode "ansi" the texts so far."""
        if self.render_mode is None:
            return None
        ends = zip(self._episodes.tokens.tolist(), self._episodes.lengths.tolist(), strict=True)
        return tuple(self.rules.vocab.decode(row[:end]) for row, end in ends)


def _for_each(given: dict[str, Any], name: str, count: int) -> list[Any]:
    """A reset option for each copy: its own where a list of them is given, else the same for all."""
    if name not in given:
        return []
    value = given[name]
    flat_ids = name in ("prefix", "prompt")
    if isinstance(value, np.ndarray):
        several = value.ndim == (2 if flat_ids else 1)
    else:
        several = isinstance(value, list | tuple) and not (
            flat_ids and all(isinstance(v, int | np.integer) for v in value)
        )
    if not several:
        return [value] * count
    if len(value) != count:
        raise OptionError(f"{len(value)} values of {name!r} for {count} copies; give one, or one for each")
    return list(value)
