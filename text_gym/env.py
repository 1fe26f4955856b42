"""`TextGenEnv`: TextGen-v0 with one sequence per episode."""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterable, Mapping
from typing import SupportsIndex

import gymnasium as gym
import numpy as np
from gymnasium.utils import seeding

from text_gym.arrays import BoolArray, IntArray, Mask
from text_gym.observations import Observation
from text_gym.rendering import Frame, describe_reward, draw_frame
from text_gym.rewards.scorer import RewardSpec
from text_gym.rules import (
    Constraint,
    Info,
    Outcome,
    Rules,
    check_render_mode,
    check_reset_options,
    check_seed,
    no_episode,
)
from text_gym.sequences import Example
from text_gym.tasks.registry import TaskSpec
from text_gym.tasks.task import Task
from text_gym.terminal import printable


class TextGenEnv(gym.Env[Observation, SupportsIndex]):
    """Text generation: each action appends a token, and the finished sequence receives the reward.

    ## Description
    An episode generates one sequence. The state is the prefix: the tokens generated so far. Each
    action appends one token. The sequence is finished by the end-of-sequence token (EOS), or when
    it has `max_length` tokens. Transitions are deterministic.

    ## Action Space
    `Discrete(V)`: the id of the next token; V is the vocabulary size. EOS is an ordinary action.
    Tasks whose sequences all have the same length have no EOS.

    ## Observation Space
    The prefix, right-padded to T = `max_length` with PAD = V, which is never an action. The
    argument `observation` chooses the encoding:

    | `observation` | Space | Encoding |
    |---|---|---|
    | "tokens" | `Box(0, V, (T,), int64)` | token ids |
    | "float" | `Box(0, V, (T,), float32)` | the same ids as floats |
    | "one_hot" | `Box(0, 1, (T * V,), float32)` | flattened one-hot vectors, 0 for PAD; 4 * T * V bytes |

    In tasks with prompts the space is `Dict(prompt=..., prefix=...)`, both in this encoding. The
    prompt is right-padded to P = `task.prompt_length` tokens.

    ## Rewards
    0 until the sequence is finished; then its score by the argument `reward`.

    ## Starting State
    The empty prefix. Tasks with prompts sample a prompt uniformly from `split`; nothing else is
    random. The options of `reset()` choose another starting state:

    - `prefix`: The prefix, as text or ids.
    - `prompt`: The prompt, as text or ids.
    - `prompt_index`: The index of a prompt in the split, instead of `prompt`.
    - `disallowed`: The number of tokens of the prefix that the action mask did not allow; 0 by
      default.

    `snapshot()` returns the options with which `reset()` restores the current state. If `reset()`
    raises an error, the running episode and the random number generator are unchanged.

    ## Episode End
    The episode terminates at EOS or when the sequence has `max_length` tokens. `truncated` is
    always False: the maximum length is part of the task, and the reward is paid there, so a learner
    must not bootstrap from the value of the last state. For an invalid action `step()` raises an
    error and changes nothing. If a reward or a constraint fails in `step()`, the episode is over
    without a result; call `reset()`.

    ## Information
    `reset()` and `step()` return the same keys:

    - `action_mask`: int8 array [V], 1 for each next token that `min_length`, `banned` and
      `constraint` allow. The mask is not enforced: a token with 0 is appended like any other. If
      the constraint allows no token after it, the constraint is ignored until the episode ends.
    - `text`: The finished sequence as text.
    - `length`: Its number of tokens, including EOS.
    - `reward_terms`: The score of each reward by name, before weighting.
    - `disallowed`: The number of its tokens that the action mask did not allow.
    - `prompt`: The prompt as text, in tasks with prompts.

    All keys but `action_mask` describe the finished sequence. Before the end of the episode their
    values are "" or 0.

    ## Arguments
    Args:
        task: A name ("grammar", "oracle", "answers"), the path of a .txt, .jsonl or .abc file,
            "module:factory", a `text_gym.Task`, a list of texts, a list of (prompt, references)
            pairs, or a Hugging Face Dataset.
        reward: The score of finished sequences: a name such as "bleu" or "bleu(n=2)",
            "module:attribute", a function of completions, a `text_gym.Reward`, a list of these, or
            a dict {reward: weight}. None takes the task's default reward.
        max_length: The maximum number of tokens of a sequence, including EOS; None takes the
            task's. A task given by name or path is created with this length. For a `Task` only
            the episode's limit changes, not the data or the language.
        min_length: The number of tokens before which EOS is masked.
        split: The split whose prompts are sampled: "train", "valid" or "test".
        constraint: Which tokens may follow each prefix. A function of `prefixes` [n, T] and
            optionally `lengths` [n] and `prompts`, matched by parameter name, that returns true or
            false for each token, [n, V]; "module:function"; or "valid", which allows the tokens
            that stay within the task's language, for tasks that know it.
        banned: Tokens that are always masked, as text or ids. None masks the token for unknown
            words, if the vocabulary has one.
        reward_timeout: The maximum time in seconds that a reward may take for a batch; None sets
            no limit.
        observation: "tokens", "float" or "one_hot"; see Observation Space.
        render_mode: "ansi" (`render()` returns the text), "rgb_array" (`render()` returns an image
            of the text and the reward), "human" (prints the text while it is generated) or None.
        **task_options: Options of the task, such as seed=1 or tokenizer="char".

    ## Version History
    * v0: Initial version.
    """

    metadata = {"render_modes": ["ansi", "rgb_array", "human"], "render_fps": 4}

    def __init__(
        self,
        task: TaskSpec = "grammar",
        reward: RewardSpec | None = None,
        max_length: int | None = None,
        min_length: int = 0,
        split: str = "train",
        constraint: str | Constraint | None = None,
        banned: Iterable[str | int] | None = None,
        reward_timeout: float | None = None,
        observation: str = "tokens",
        render_mode: str | None = None,
        **task_options: object,
    ) -> None:
        """Create the task and the reward, and check that they fit together."""
        check_render_mode(render_mode, self.metadata["render_modes"])
        self.rules = Rules(
            task, reward, max_length, min_length, split, constraint, banned, reward_timeout, **task_options
        )
        self.render_mode = render_mode
        self.action_space = self.rules.action_space
        self._observe = self.rules.observer(observation)
        self._observes_tokens = self._observe.form == "tokens" and not self.rules.task.conditional
        self.observation_space = self._observe.space
        self._size = self.rules.size
        self._restricts = self.rules.restricts
        self._running = False
        self._tokens: IntArray = np.full(self.rules.limit, self.rules.pad, dtype=np.int64)  # [T]
        self._length = 0
        self._disallowed = 0
        self._examples: list[Example] | None = None  # a single example in tasks with prompts, else None
        self._prompt: IntArray | None = None  # [P]
        self._mask: Mask = self.rules.later_mask  # [V], the action mask of the current prefix
        self._result = ""  # after the end of an episode: the reward, as shown by render()
        terms = dict.fromkeys(self.rules.scorer.rewards, 0.0)
        self._no_result: Info = {"text": "", "length": 0, "reward_terms": terms, "disallowed": 0}
        if self.rules.task.conditional:
            self._no_result["prompt"] = ""

    def __str__(self) -> str:
        spec = "" if self.spec is None else f"{self.spec.id}, "
        return f"<{type(self).__name__}<{spec}task={self.task.name!r}, reward={self.rules.scorer}>>"

    __repr__ = __str__

    @property
    def task(self) -> Task:
        """The task, for example for its vocabulary and data."""
        return self.rules.task

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, object] | None = None
    ) -> tuple[Observation, Info]:
        """Start an episode.

        Args:
            seed: Seeds the generator that samples prompts; None continues with the current generator.
            options: "prefix", "prompt" or "prompt_index", and "disallowed"; see "Starting State" of the class.
        """
        rules = self.rules
        start = rules.start(check_reset_options(options))
        seed = check_seed(seed)
        example = start.example
        random = None
        if example is None and rules.task.conditional:
            random = rules.planned(self.np_random) if seed is None else seeding.np_random(seed)[0]
            example = rules.sample_example(random)
        length = len(start.prefix)
        tokens = np.full(rules.limit, rules.pad, dtype=np.int64)
        tokens[:length] = start.prefix
        examples = None if example is None else [example]
        mask = self._mask
        if self._restricts:
            mask = self._action_masks(tokens, length, True, start.disallowed, examples)[0]
        # Everything that can fail is done; only now does the state change.
        super().reset(seed=seed)
        if random is not None and random is not self.np_random:
            self.np_random.bit_generator.state = random.bit_generator.state
        self._tokens = tokens
        self._length = length
        self._disallowed = start.disallowed
        self._examples = examples
        self._prompt = None if example is None else rules.prompt_row(example)
        self._mask = mask
        if self.render_mode == "human":
            self._print_start(interrupted=self._running)
        self._running = True
        self._result = ""
        return self._observe(tokens, self._prompt), self._info()

    def step(self, action: SupportsIndex) -> tuple[Observation, float, bool, bool, Info]:
        """Append a token, given by its id; the reward is 0 until the sequence is finished."""
        try:
            token = operator.index(action)
        except TypeError:
            raise self.rules.invalid_action(action) from None
        if not 0 <= token < self._size:
            raise self.rules.invalid_action(token)
        if not self._running:
            raise no_episode("step")
        self._running = False  # stays False if the reward or the constraint raises an error
        if self._restricts and not self._mask[token]:
            self._disallowed += 1
        self._length, terminated = self.rules.transition(self._tokens, self._length, self._length, token)
        reward = 0.0
        outcome = None
        if terminated:
            outcome = self.rules.score(self._tokens[None].copy(), np.array([self._length]), self._examples)
            reward = float(outcome.rewards[0])
        if self._restricts:
            live = not terminated
            self._mask = self._action_masks(self._tokens, self._length, live, self._disallowed, self._examples)[0]
        info = self._info() if outcome is None else self._final_info(outcome)
        self._running = not terminated
        if self.render_mode is not None:
            self._result = describe_reward(reward, info["reward_terms"]) if terminated else ""
            if self.render_mode == "human":
                self._print_step()
        observation = self._tokens.copy() if self._observes_tokens else self._observe(self._tokens, self._prompt)
        return observation, reward, terminated, False, info

    def _action_masks(
        self, tokens: IntArray, length: int, live: bool, disallowed: int, examples: list[Example] | None
    ) -> Mask:
        """Compute the action mask of a prefix, [1, V]."""
        lengths = np.array([length])
        return self.rules.action_masks(tokens[None], lengths, np.array([live]), np.array([disallowed]), examples)

    def _info(self) -> Info:
        """Return the info of a step before the end of an episode."""
        info = self._no_result.copy()
        info["action_mask"] = self._mask.copy()
        info["reward_terms"] = info["reward_terms"].copy()
        return info

    def _final_info(self, outcome: Outcome) -> Info:
        """Return the info of the last step of an episode."""
        info: Info = {
            "action_mask": self._mask.copy(),
            "text": outcome.texts[0],
            "length": int(outcome.lengths[0]),
            "reward_terms": {name: float(scores[0]) for name, scores in outcome.terms.items()},
            "disallowed": self._disallowed,
        }
        if outcome.prompts is not None:
            info["prompt"] = outcome.prompts[0]
        return info

    def action_masks(self) -> BoolArray:
        """Return the action mask of the current prefix as booleans, [V]; MaskablePPO calls this method."""
        return self._mask.astype(np.bool_)

    def snapshot(self) -> dict[str, object]:
        """Return the options with which reset() restores the current state."""
        if not self._running:
            raise no_episode("snapshot")
        options: dict[str, object] = {"prefix": self._tokens[: self._length].copy(), "disallowed": self._disallowed}
        if self._examples is not None:
            example = self._examples[0]
            if example.number is None:  # a prompt that is not in the split
                options["prompt"] = np.array(example.prompt, dtype=np.int64)
            else:
                options["prompt_index"] = example.number
        return options

    @property
    def text(self) -> str:
        """The current prefix as text."""
        return self.rules.vocab.decode(self._tokens[: self._length].tolist())

    def render(self) -> str | Frame | None:
        """Return the current text in mode "ansi" and an image in mode "rgb_array"; mode "human" prints in step()."""
        if self.render_mode is None:
            gym.logger.warn('render() does nothing without a render mode; pass render_mode="ansi" to gym.make()')
        if self.render_mode == "rgb_array":
            status = f"{self._length} of {self.rules.limit} tokens  {self._result}"
            return draw_frame(self._prompt_text, self.text, status)
        return printable(self.text) if self.render_mode == "ansi" else None

    @property
    def _prompt_text(self) -> str:
        return "" if self._examples is None else self.rules.vocab.decode(self._examples[0].prompt)

    def _print_start(self, interrupted: bool) -> None:
        prompt = "" if self._examples is None else f"{self._prompt_text} -> "
        self._printed = self.text
        sys.stdout.write("\n" * interrupted + printable(prompt + self._printed))
        sys.stdout.flush()

    def _print_step(self) -> None:
        text = self.text
        sys.stdout.write(printable(text.removeprefix(self._printed)))
        self._printed = text
        if self._result:
            sys.stdout.write(printable(f"\n  {self._result}\n"))
        sys.stdout.flush()
