"""TextGen-v0 for one sequence at a time."""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import seeding

from text_gym.arrays import BoolArray, IntArray, Mask
from text_gym.errors import InvalidActionError, RenderModeError, ResetNeededError
from text_gym.rewards.scorer import RewardSpec
from text_gym.rules import Constraint, Final, Observation, Rules, check_reset_options
from text_gym.sequences import Example
from text_gym.tasks.task import Task
from text_gym.validation import whole_number


class TextGenEnv(gym.Env[Any, Any]):
    """Write a sequence token by token; at its end, be told what it is worth.

    ## Description
    The state is the prefix written so far. Each action appends a token. The episode ends with
    EOS, or when the sequence is `max_length` tokens long, and only then the reward is paid.
    Nothing is random but the choice of the prompt, in tasks that have prompts.

    ## Action Space
    `Discrete(V)`: the id of the next token. In tasks of variable length EOS is one of them.

    ## Observation Space
    `Box(0, V, (T,), int64)`: the prefix, right-padded with PAD = V, which is never an action.
    With prompts, `Dict(prompt=Box(0, V, (P,)), prefix=Box(0, V, (T,)))`.

    ## Rewards
    0 until the sequence ends; then the reward's score of the finished sequence.

    ## Episode End
    `terminated` at EOS or at `max_length` tokens; `truncated` never. The limit is part of the
    task and pays the reward, so a learner must not bootstrap beyond it.

    ## Information
    Always: `action_mask` [V] of int8, 1 for each token that min_length, the banned tokens and the
    constraint allow next. The mask is advice, for agents that read it: a token it forbids is
    appended like any other. Where the constraint then allows nothing at all, it is dropped.
    At the end also: `text`; `length`, counting EOS; `reward_terms`, each reward's own score;
    `disallowed`, how many tokens were taken against the mask; with prompts, `prompt` as text.

    ## Arguments
    Args:
        task: A name ("grammar", "oracle", "answers"), the path of a .txt, .jsonl or .abc file,
            "module:factory", or a `text_gym.Task`.
        reward: What a finished sequence is worth: a name such as "bleu" or "bleu(n=2)", a function
            of completions, a `text_gym.Reward`, a list of these, or a dict {reward: weight}. The
            task's own if not given.
        max_length: The most tokens of a sequence, EOS included; the task's own if not given. A task
            given by name or path is made for this length; of one already made only the episode's
            limit changes, not its data or language.
        min_length: EOS is masked until so many tokens have been written.
        split: The split whose prompts are drawn: "train", "valid" or "test".
        constraint: A function of prefixes [n, T] and, if it names them, lengths [n] and prompts,
            that returns which tokens may follow each, [n, V]; "module:function"; or "valid", which
            keeps to the task's own language where that is known.
        banned: Tokens, as text or ids, that are always masked; if not given, the token for unknown
            words, where there is one.
        render_mode: "ansi" or "human".
        **task_options: What the task takes, for example seed=1 or tokenizer="char".

    ## Starting elsewhere
    `reset(options={"prefix": ..., "prompt": ...})` starts behind any prefix and from any prompt,
    given as text or ids; `"prompt_index"` takes a prompt by its number in the split.
    `snapshot()` returns the options that lead back to where the episode is now.

    ## Errors
    A refused action or option changes nothing. If a reward or a constraint fails during a step,
    the episode is over without a result, and reset() starts the next.

    ## Version History
    * v0: first version.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi", "human"], "render_fps": 30}

    def __init__(
        self,
        task: str | Task = "grammar",
        reward: RewardSpec | None = None,
        max_length: int | None = None,
        min_length: int = 0,
        split: str = "train",
        constraint: str | Constraint | None = None,
        banned: Iterable[str | int] | None = None,
        render_mode: str | None = None,
        **task_options: Any,
    ) -> None:
        """Build the task and the reward, and check them against each other."""
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise RenderModeError(f"render_mode must be 'ansi', 'human' or None, not {render_mode!r}")
        self.rules = Rules(task, reward, max_length, min_length, split, constraint, banned, **task_options)
        self.render_mode = render_mode
        self.action_space = self.rules.action_space
        self.observation_space = self.rules.observation_space
        self._size = self.rules.size
        self._restricts = self.rules.restricts
        self._conditional = self.rules.task.conditional
        self._running = False
        self._tokens: IntArray = np.full(self.rules.limit, self.rules.pad, dtype=np.int64)  # [T]
        self._length = 0
        self._example: Example | None = None
        self._prompt: IntArray | None = None  # [P]
        self._mask: Mask = self.rules.later_mask  # the last one
        self._disallowed = 0

    @property
    def task(self) -> Task:
        """The task."""
        return self.rules.task

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode: an empty prefix and a new prompt, or those of the options."""
        given, rules = check_reset_options(options), self.rules
        prefix = rules.read_prefix(given.get("prefix", ()))
        disallowed = whole_number("disallowed", given.get("disallowed", 0), least=0)
        example = None
        if "prompt" in given:
            example = rules.find_example(given["prompt"])
        elif "prompt_index" in given:
            example = rules.numbered_example(given["prompt_index"])
        random = None
        if self._conditional and example is None:
            random = rules.planned(self.np_random) if seed is None else seeding.np_random(seed)[0]
            example = rules.draw_example(random)
        tokens = np.full(rules.limit, rules.pad, dtype=np.int64)
        tokens[: len(prefix)] = prefix
        mask: Mask = self._masks(tokens, len(prefix), disallowed, example, live=True)[0]
        # Nothing has changed up to here, and nothing is refused from here on.
        super().reset(seed=seed)
        if random is not None:
            self.np_random.bit_generator.state = random.bit_generator.state
        self._tokens, self._length, self._disallowed = tokens, len(prefix), disallowed
        self._example = example
        self._prompt = None if example is None else rules.prompt_row(example)
        self._mask = mask
        if self.render_mode == "human":
            self._write_start(interrupted=self._running)
        self._running = True
        return rules.observe(tokens, self._prompt), {"action_mask": mask.copy()}

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Append a token."""
        try:
            token = operator.index(action)
        except TypeError:
            token = -1
        if not 0 <= token < self._size:
            raise InvalidActionError(f"an action is a whole number in 0..{self._size - 1}, not {action!r}")
        if not self._running:
            raise ResetNeededError("no episode is under way; call reset() before step()")
        self._running = False  # until everything has gone well
        if self._restricts and not self._mask[token]:
            self._disallowed += 1
        self._length, terminated = self.rules.append(self._tokens, self._length, self._length, token)
        reward, info = 0.0, {}
        if terminated:
            final = self.rules.finish(self._tokens[None].copy(), np.array([self._length]), self._examples)
            reward, info = float(final.rewards[0]), self._final_info(final)
        if self._restricts:
            live = not terminated
            self._mask = self._masks(self._tokens, self._length, self._disallowed, self._example, live)[0]
        info["action_mask"] = self._mask.copy()
        self._running = not terminated
        if self.render_mode == "human":
            self._write_step(reward, info)
        observation = self._tokens.copy() if self._prompt is None else self.rules.observe(self._tokens, self._prompt)
        return observation, reward, terminated, False, info

    @property
    def _examples(self) -> list[Example] | None:
        return None if self._example is None else [self._example]

    def _final_info(self, final: Final) -> dict[str, Any]:
        info: dict[str, Any] = {
            "text": final.texts[0],
            "length": int(final.lengths[0]),
            "reward_terms": {name: float(scores[0]) for name, scores in final.terms.items()},
            "disallowed": self._disallowed,
        }
        if final.prompts is not None:
            info["prompt"] = final.prompts[0]
        return info

    def _masks(self, tokens: IntArray, length: int, disallowed: int, example: Example | None, live: bool) -> Mask:
        """Which tokens may follow the prefix, [1, V]."""
        if not self._restricts:
            return self.rules.later_mask[None]
        examples = None if example is None else [example]
        place = tokens[None], np.array([length]), np.array([live])
        return self.rules.masks(*place, np.array([disallowed]), examples)

    def action_masks(self) -> BoolArray:
        """Which tokens may come next, [V]; the name that MaskablePPO looks for."""
        return self._mask.astype(np.bool_)

    def snapshot(self) -> dict[str, Any]:
        """The options with which reset() comes back to this position."""
        if not self._running:
            raise ResetNeededError("the episode has ended; take a snapshot while one is under way")
        options: dict[str, Any] = {"prefix": self._tokens[: self._length].copy(), "disallowed": self._disallowed}
        if self._example is not None and self._example.number is not None:
            options["prompt_index"] = self._example.number
        elif self._example is not None:
            options["prompt"] = np.array(self._example.prompt, dtype=np.int64)
        return options

    @property
    def text(self) -> str:
        """The text so far."""
        return self.rules.vocab.decode(self._tokens[: self._length].tolist())

    def render(self) -> str | None:
        """In mode "ansi" the text so far; "human" has already written it."""
        if self.render_mode is None:
            gym.logger.warn('render() does nothing without a render mode; pass render_mode="ansi" to make()')
        return self.text if self.render_mode == "ansi" else None

    def _write_start(self, interrupted: bool) -> None:
        prompt = "" if self._example is None else f"{self.rules.vocab.decode(self._example.prompt)} -> "
        self._written = self.text
        sys.stdout.write("\n" * interrupted + prompt + self._written)
        sys.stdout.flush()

    def _write_step(self, reward: float, info: dict[str, Any]) -> None:
        text = self.text
        sys.stdout.write(text.removeprefix(self._written))
        self._written = text
        if "text" in info:
            terms = info["reward_terms"]
            shown = ", ".join(f"{name} {score:.4g}" if len(terms) > 1 else name for name, score in terms.items())
            sys.stdout.write(f"\n  reward {reward:.4g} ({shown})\n")
        sys.stdout.flush()
