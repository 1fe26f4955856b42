"""`TextGenVectorEnv`: parallel TextGen-v0 environments in one process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from text_gym.arrays import AnyArray, BoolArray, FloatArray, IntArray, Mask
from text_gym.errors import InvalidActionError, OptionError, TextGymError
from text_gym.observations import Observation
from text_gym.rendering import Frame, describe_reward, draw_frame
from text_gym.rules import (
    RESET_OPTIONS,
    Info,
    Outcome,
    Rules,
    Start,
    check_render_mode,
    check_reset_options,
    check_seed,
    environment,
    no_episode,
)
from text_gym.sequences import Example
from text_gym.tasks.task import Task
from text_gym.terminal import printable
from text_gym.validation import shown, whole_number

RENDER_MODES = ["ansi", "rgb_array"]
MOST_ENVS = 2**31 - 1


@dataclass
class Episodes:
    """The current episodes, one row per environment."""

    tokens: IntArray  # [n, T]
    lengths: IntArray  # [n]
    ended: BoolArray  # [n], True from the end of an episode to the next reset
    disallowed: IntArray  # [n], number of tokens that the action mask did not allow
    examples: list[Example] | None  # in tasks with prompts, else None
    prompts: IntArray | None  # [n, P] in tasks with prompts, else None

    def copy(self) -> Episodes:
        """Copy the arrays and the list of examples."""
        return Episodes(
            self.tokens.copy(),
            self.lengths.copy(),
            self.ended.copy(),
            self.disallowed.copy(),
            None if self.examples is None else self.examples.copy(),
            None if self.prompts is None else self.prompts.copy(),
        )


class TextGenVectorEnv(VectorEnv[Observation, npt.ArrayLike, AnyArray]):
    """Parallel `TextGenEnv` environments in one process, stepped together by array operations.

    ## Description
    Observations, rewards and infos equal those of Gymnasium's `SyncVectorEnv` over `num_envs`
    scalar environments, token for token. The task and the reward are shared, and a reward is called
    once for all sequences that finish in the same step.

    ## Action Space
    `MultiDiscrete([V] * num_envs)`: the id of the next token of each environment.

    ## Observation Space
    The space of `TextGenEnv` with a leading axis of size `num_envs`.

    ## Rewards
    A float64 array [num_envs]: 0 for an unfinished sequence, else its score.

    ## Starting State
    As in `TextGenEnv`. With an integer seed, environment i samples the same prompts as a scalar
    environment that is reset with seed + i. Each option of `reset()` is a single value for all
    environments, or a list with a value for each; a flat list of ids is a single prefix or prompt.
    The option `reset_mask`, a boolean array [num_envs], selects the environments to reset.

    ## Episode End
    As in `TextGenEnv`; `autoreset_mode` says what happens after the end of an episode. If a reward
    or a constraint fails in `step()`, all episodes are over without a result; call `reset()`.

    ## Information
    The keys of `TextGenEnv`, each an array with an entry for each environment. As in Gymnasium,
    `_key` is a boolean array of the environments for which `key` was set. Arrays may be read-only.
    If all environments have the same action mask, `action_mask` is a view of one row.

    ## Arguments
    Args:
        num_envs: The number of environments.
        autoreset_mode: When an environment is reset after the end of its episode: "NextStep" (by the
            next step, which ignores the action), "SameStep" (by the same step; the last observation
            and info are in `final_obs` and `final_info`) or "Disabled" (by
            `reset(options={"reset_mask": ...})` only).
        render_mode: "ansi" (`render()` returns the texts), "rgb_array" (`render()` returns an image
            of each) or None.
        observation: "tokens", "float" or "one_hot"; see `TextGenEnv`.
        rules: The `rules` of another environment, to share its task, reward and limits, instead of
            the arguments below.
        **arguments: task, reward and all other arguments of `TextGenEnv`.

    ## Version History
    * v0: Initial version.
    """

    def __init__(
        self,
        num_envs: int = 1,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        observation: str = "tokens",
        rules: Rules | None = None,
        **arguments: Any,
    ) -> None:
        """Create the task and the reward, which all environments share."""
        self.num_envs = whole_number("num_envs", num_envs, least=1)
        if self.num_envs > MOST_ENVS:
            raise OptionError(f"num_envs={shown(num_envs)} must be at most {MOST_ENVS}")
        check_render_mode(render_mode, RENDER_MODES)
        try:
            self.autoreset_mode = AutoresetMode(autoreset_mode)
        except (TypeError, ValueError) as problem:
            modes = ", ".join(repr(mode.value) for mode in AutoresetMode)
            raise OptionError(f"autoreset_mode must be one of {modes}, not {shown(autoreset_mode)}") from problem
        if rules is not None and arguments:
            raise OptionError(f"rules already contain the task and the reward; remove {', '.join(arguments)}")
        if rules is not None and not isinstance(rules, Rules):
            raise OptionError(
                f"rules={shown(rules)} must be the rules of another environment; give env.unwrapped.rules"
            )
        self.rules = rules or Rules(**arguments)
        self.render_mode = render_mode
        self.metadata = {"render_modes": RENDER_MODES, "render_fps": 4, "autoreset_mode": self.autoreset_mode}
        self._observe = self.rules.observer(observation)
        self.single_action_space = self.rules.action_space
        self.single_observation_space = self._observe.space
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self._started = False  # False before the first reset, and after an error in a step
        self._episodes = self._no_episodes()
        self._row_starts = np.arange(self.num_envs) * self.rules.limit  # index of each row in the flattened tokens
        self._mask: Mask = np.broadcast_to(self.rules.later_mask, (self.num_envs, self.rules.size))  # current masks
        self._generators: dict[int, np.random.Generator] = {}  # one per environment, in tasks with prompts
        self._all = _read_only(np.ones(self.num_envs, dtype=np.bool_))
        self._unfinished_infos = _with_masks(
            {"action_mask": self._mask, **self._no_results()}, self._all
        )  # infos without an end
        self._described = [""] * self.num_envs  # after the end of an episode: the reward, as shown by render()

    def __repr__(self) -> str:
        what = f"num_envs={self.num_envs}, task={self.task.name!r}, reward={self.rules.scorer}"
        return f"{type(self).__name__}({'' if self.spec is None else f'{self.spec.id}, '}{what})"

    def _no_episodes(self) -> Episodes:
        n = self.num_envs
        task = self.rules.task
        return Episodes(
            tokens=np.full((n, self.rules.limit), self.rules.pad, dtype=np.int64),
            lengths=np.zeros(n, dtype=np.int64),
            ended=np.zeros(n, dtype=np.bool_),
            disallowed=np.zeros(n, dtype=np.int64),
            examples=[Example((), (), {})] * n if task.conditional else None,
            prompts=np.full((n, task.prompt_length), self.rules.pad, dtype=np.int64) if task.conditional else None,
        )

    @property
    def task(self) -> Task:
        """The task, for example for its vocabulary and data."""
        return self.rules.task

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: Mapping[str, object] | None = None
    ) -> tuple[Observation, Info]:
        """Start an episode in every environment, or only where options["reset_mask"] is True.

        Args:
            seed: Environment i is seeded with seed + i; a list gives the seed of each environment.
            options: The options of `TextGenEnv.reset`, each a single value or a list with a value for each
                environment that is reset; and "reset_mask", a boolean array [n].
        """
        rules = self.rules
        given = check_reset_options(options, (*RESET_OPTIONS, "reset_mask"))
        rows = self._rows_to_reset(given.pop("reset_mask", None))
        own_seed, seeds = self._read_seeds(seed)
        starts = self._read_starts(given, rows.tolist())
        # Change copies only, because the constraint may still fail.
        random = rules.planned(self.np_random)
        generators = self._generators.copy()
        examples = []
        if rules.task.conditional:
            for row in rows.tolist():
                generators[row] = self._plan_generator(row, seeds[row], random)
            for row, start in zip(rows.tolist(), starts, strict=True):
                examples.append(rules.sample_example(generators[row]) if start.example is None else start.example)
        episodes = self._episodes.copy()
        self._start(episodes, rows, examples)
        if given:
            for row, start in zip(rows.tolist(), starts, strict=True):
                episodes.tokens[row, : len(start.prefix)] = start.prefix
                episodes.lengths[row] = len(start.prefix)
                episodes.disallowed[row] = start.disallowed
        mask = self._next_masks(episodes)
        # Everything that can fail is done; only now does the state change.
        self.np_random.bit_generator.state = random.bit_generator.state
        super().reset(seed=own_seed)
        self._generators = generators
        self._episodes = episodes
        self._mask = mask
        self._started = True
        was_reset = np.zeros(self.num_envs, dtype=np.bool_)
        was_reset[rows] = True
        self._described = ["" if reset else old for reset, old in zip(was_reset, self._described, strict=True)]
        infos = _with_masks({"action_mask": mask, **self._no_results()}, _read_only(was_reset))
        return self._observe(episodes.tokens, episodes.prompts), infos

    def _rows_to_reset(self, reset_mask: object) -> IntArray:
        if reset_mask is None:
            return np.arange(self.num_envs)
        if not isinstance(reset_mask, np.ndarray) or reset_mask.shape != (self.num_envs,) or reset_mask.dtype != bool:
            raise OptionError(f"reset_mask must be a numpy array of {self.num_envs} booleans, not {shown(reset_mask)}")
        if not reset_mask.any():
            raise OptionError("reset_mask selects no environment; set at least one element to True")
        if not self._started and not reset_mask.all():
            raise OptionError(
                "the first reset, and a reset after an error, must include all environments; "
                "call reset() without reset_mask"
            )
        return np.flatnonzero(reset_mask)

    def _read_seeds(self, seed: int | Sequence[int | None] | None) -> tuple[int | None, list[int | None]]:
        """Return the vector environment's own seed and the seed of each environment; None does not reseed."""
        n = self.num_envs
        if _is_list(seed):
            if len(seed) != n:
                raise OptionError(f"{len(seed)} seeds for {n} environments; give one seed, or one for each")
            return None, [check_seed(each, environment(i, n)) for i, each in enumerate(seed)]
        first = check_seed(seed)
        return first, [None if first is None else first + i for i in range(n)]

    def _read_starts(self, options: Mapping[str, object], rows: Sequence[int]) -> list[Start]:
        """Read the starting state of each row from the reset options."""
        lists = {name: values for name, given in options.items() if (values := _one_for_each(name, given)) is not None}
        for name, values in lists.items():
            if len(values) != len(rows):
                count = f"{len(values)} values of {name!r} for {len(rows)} environments"
                raise OptionError(f"{count}; give one value, or one for each")
        if not lists:
            return [self.rules.start(options)] * len(rows)
        starts = []
        for i, row in enumerate(rows):
            own = {name: values[i] for name, values in lists.items()}
            try:
                starts.append(self.rules.start({**options, **own}))
            except TextGymError as problem:
                raise type(problem)(f"{environment(row, self.num_envs)}{problem}") from problem
        return starts

    def _plan_generator(self, row: int, seed: int | None, random: np.random.Generator) -> np.random.Generator:
        """Return the generator that samples an environment's prompts after a reset with this seed."""
        if seed is not None:
            return seeding.np_random(seed)[0]
        if row in self._generators:
            return self.rules.planned(self._generators[row])
        return seeding.np_random(int(random.integers(2**63)))[0]

    def _start(self, episodes: Episodes, rows: IntArray, examples: Sequence[Example]) -> None:
        """Set these rows to empty prefixes and, in tasks with prompts, to the prompts of the examples."""
        episodes.tokens[rows] = self.rules.pad
        episodes.lengths[rows] = 0
        episodes.ended[rows] = False
        episodes.disallowed[rows] = 0
        if episodes.examples is not None and episodes.prompts is not None:
            for row, example in zip(rows.tolist(), examples, strict=True):
                episodes.examples[row] = example
                episodes.prompts[row] = self.rules.prompt_row(example)

    def _autoreset(self, rows: IntArray) -> None:
        """Start new episodes in these rows."""
        examples = []
        if self.rules.task.conditional:
            examples = [self.rules.sample_example(self._generators[row]) for row in rows.tolist()]
        self._start(self._episodes, rows, examples)

    def _next_masks(self, episodes: Episodes) -> Mask:
        if not self.rules.restricts:
            return self._mask
        return self.rules.action_masks(
            episodes.tokens, episodes.lengths, ~episodes.ended, episodes.disallowed, episodes.examples
        )

    def step(self, actions: npt.ArrayLike) -> tuple[Observation, FloatArray, BoolArray, BoolArray, Info]:
        """Append a token to each sequence; actions are token ids, [n]."""
        rules = self.rules
        episodes = self._episodes
        waiting = np.flatnonzero(episodes.ended) if episodes.ended.any() else None  # rows to reset in this step
        chosen = self._checked(actions, waiting)
        self._started = False  # stays False if the reward or the constraint raises an error
        flat = episodes.tokens.reshape(-1)  # a view
        if waiting is None:
            self._count_disallowed(slice(None), chosen)
            places = self._row_starts + episodes.lengths
            episodes.lengths, done = rules.transition(flat, places, episodes.lengths, chosen)
        else:
            live = np.flatnonzero(~episodes.ended)
            self._count_disallowed(live, chosen[live])
            places = self._row_starts[live] + episodes.lengths[live]
            done = np.zeros(self.num_envs, dtype=np.bool_)
            episodes.lengths[live], done[live] = rules.transition(flat, places, episodes.lengths[live], chosen[live])
        rows = np.flatnonzero(done)
        rewards = np.zeros(self.num_envs)
        results = None
        if len(rows):
            outcome = self._score(rows)
            rewards[rows] = outcome.rewards
            results = self._results(outcome, rows)
        if waiting is not None:
            self._autoreset(waiting)
        episodes.ended = done.copy()
        final: Info = {}
        if results is not None and self.autoreset_mode is AutoresetMode.SAME_STEP:
            final = self._final(results, rows, done)
            results = None
            self._autoreset(rows)
        self._mask = self._next_masks(episodes)
        self._started = True
        if self.render_mode == "rgb_array":
            self._describe(results, rewards)
        infos = self._unfinished_infos | (results or {}) | final
        infos["reward_terms"] = self._unfinished_infos["reward_terms"] | (results["reward_terms"] if results else {})
        infos["action_mask"] = self._mask
        truncated = np.zeros(self.num_envs, dtype=np.bool_)
        return self._observe(episodes.tokens, episodes.prompts), rewards, done, truncated, infos

    def _checked(self, actions: npt.ArrayLike, waiting: IntArray | None) -> IntArray:
        """Return the actions as an array; the actions of environments that are reset in this step are ignored."""
        wanted = f"actions must be {self.num_envs} whole numbers, one for each environment"
        try:
            chosen = np.asarray(actions)
        except Exception as problem:  # a ragged list, or a tensor that cannot be converted to numpy
            raise InvalidActionError(f"{wanted}, not {shown(actions)}") from problem
        if chosen.shape != (self.num_envs,) or chosen.dtype.kind not in "iu":
            raise InvalidActionError(f"{wanted}, not {chosen.dtype} {chosen.shape}")
        resets_itself = self._started and self.autoreset_mode is not AutoresetMode.DISABLED
        if waiting is not None and resets_itself:
            chosen = chosen.copy()
            chosen[waiting] = 0
        if chosen.min() < 0 or chosen.max() >= self.rules.size:
            row = int(np.flatnonzero((chosen < 0) | (chosen >= self.rules.size))[0])
            raise self.rules.invalid_action(int(chosen[row]), environment(row, self.num_envs))
        if not self._started:
            raise no_episode("step")
        if waiting is not None and not resets_itself:
            raise no_episode("step", waiting.tolist())
        return chosen.astype(np.int64, copy=False)

    def _count_disallowed(self, live: IntArray | slice, chosen: IntArray) -> None:
        if self.rules.restricts:
            self._episodes.disallowed[live] += self._mask[np.arange(self.num_envs)[live], chosen] == 0

    def _score(self, rows: IntArray) -> Outcome:
        """Score the finished sequences of these rows."""
        episodes = self._episodes
        tokens = episodes.tokens.copy() if len(rows) == self.num_envs else episodes.tokens[rows]
        examples = None if episodes.examples is None else [episodes.examples[row] for row in rows.tolist()]
        return self.rules.score(tokens, episodes.lengths[rows], examples)

    def _no_results(self) -> Info:
        """Return the results in the infos of unfinished episodes: arrays with an entry for each environment."""
        n = self.num_envs
        results: Info = {
            "text": np.full(n, "", dtype=object),
            "length": np.zeros(n, dtype=np.int64),
            "disallowed": np.zeros(n, dtype=np.int64),
            "reward_terms": {name: np.zeros(n) for name in self.rules.scorer.rewards},
        }
        if self.rules.task.conditional:
            results["prompt"] = np.full(n, "", dtype=object)
        return results

    def _results(self, outcome: Outcome, rows: IntArray) -> Info:
        """Return the results in the infos of a step in which these rows have ended."""
        values: dict[str, AnyArray | list[str]] = {
            "text": outcome.texts,
            "length": outcome.lengths,
            "disallowed": self._episodes.disallowed[rows],
        }
        if outcome.prompts is not None:
            values["prompt"] = outcome.prompts
        terms = self._unfinished_infos["reward_terms"]
        results: Info = {name: _with_values(self._unfinished_infos[name], rows, some) for name, some in values.items()}
        results["reward_terms"] = {n: _with_values(terms[n], rows, scores) for n, scores in outcome.terms.items()}
        return results

    def _final(self, results: Info, rows: IntArray, done: BoolArray) -> Info:
        """Return the final_obs and final_info of episodes that are reset in the step in which they end."""
        episodes = self._episodes
        last = self._observe(episodes.tokens[rows], None if episodes.prompts is None else episodes.prompts[rows])
        final_obs = np.full(self.num_envs, None, dtype=object)
        for i, row in enumerate(rows.tolist()):
            final_obs[row] = {k: v[i] for k, v in last.items()} if isinstance(last, dict) else last[i]
        masks = np.broadcast_to(self.rules.later_mask, (self.num_envs, self.rules.size))
        here = _read_only(done.copy())
        final_info = _with_masks({"action_mask": masks, **results}, here)
        return {"final_obs": final_obs, "_final_obs": here, "final_info": final_info, "_final_info": here}

    def action_masks(self) -> BoolArray:
        """Return the action masks of the current prefixes as booleans, [n, V]."""
        return self._mask.astype(np.bool_)

    def snapshot(self) -> dict[str, object]:
        """Return the options with which reset() restores the current state of all environments."""
        episodes = self._episodes
        if not self._started or episodes.ended.any():
            raise no_episode("snapshot", np.flatnonzero(episodes.ended).tolist() if self._started else ())
        options: dict[str, object] = {"prefix": episodes.tokens.copy(), "disallowed": episodes.disallowed.tolist()}
        if episodes.examples is not None:
            numbers = [example.number for example in episodes.examples]
            if None in numbers:  # a prompt that is not in the split
                options["prompt"] = [np.array(example.prompt, dtype=np.int64) for example in episodes.examples]
            else:
                options["prompt_index"] = numbers
        return options

    def render(self) -> tuple[str, ...] | tuple[Frame, ...] | None:
        """Return the current texts in mode "ansi" and an image of each in mode "rgb_array"."""
        if self.render_mode is None:
            return None
        episodes, vocab = self._episodes, self.rules.vocab
        rows = zip(episodes.tokens.tolist(), episodes.lengths.tolist(), strict=True)
        texts = tuple(vocab.decode(row[:end]) for row, end in rows)
        if self.render_mode == "ansi":
            return tuple(map(printable, texts))
        prompts = [vocab.decode(example.prompt) for example in episodes.examples or ()] or [""] * self.num_envs
        status = [f"{length} of {self.rules.limit} tokens" for length in episodes.lengths.tolist()]
        shown_below = map("  ".join, zip(status, self._described, strict=True))
        return tuple(map(draw_frame, prompts, texts, shown_below))

    def _describe(self, results: Info | None, rewards: FloatArray) -> None:
        """Describe the rewards of the episodes that have just ended, for render()."""
        self._described = [""] * self.num_envs
        if results is not None:
            for row in np.flatnonzero(self._episodes.ended).tolist():
                terms = {name: scores[row] for name, scores in results["reward_terms"].items()}
                self._described[row] = describe_reward(rewards[row], terms)


def _with_masks(results: Info, here: BoolArray) -> Info:
    """Add to each value of an info its Gymnasium mask "_name" of environments; the arrays become read-only."""
    infos: Info = {}
    for name, value in results.items():
        infos[name] = _with_masks(value, here) if isinstance(value, dict) else _read_only(value)
        infos[f"_{name}"] = here
    return infos


def _with_values(array: AnyArray, rows: IntArray, values: npt.ArrayLike) -> AnyArray:
    """Return a copy of an array with new values in some rows."""
    copy = array.copy()
    copy[rows] = values
    return copy


def _read_only(array: AnyArray) -> AnyArray:
    array.flags.writeable = False
    return array


def _is_list(given: object) -> TypeGuard[Sequence[object]]:
    return isinstance(given, list | tuple | range) or (isinstance(given, np.ndarray) and given.ndim > 0)


def _one_for_each(name: str, given: object) -> list[object] | None:
    """Return the values of a reset option as a list, one per environment; None if the value is for all of them."""
    is_ids = name in ("prefix", "prompt")
    if isinstance(given, np.ndarray):
        return list(given) if given.ndim == (2 if is_ids else 1) else None
    if isinstance(given, list | tuple) and not (is_ids and all(isinstance(v, int | np.integer) for v in given)):
        return list(given)
    return None
