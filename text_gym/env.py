"""TextGen-v0 for one sequence at a time."""

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
    """Generate a sequence token by token; the reward is paid when it is finished.

    ## Description
    The state is the prefix generated so far. Each action appends a token. EOS, or the length
    `max_length`, finishes the sequence. Transitions are deterministic.

    ## Action Space
    `Discrete(V)`: the id of the next token. In tasks of variable length EOS is one of the tokens.

    ## Observation Space
    `Box(0, V, (T,), int64)`: the prefix, right-padded with PAD = V, which is never an action.
    With prompts, `Dict(prompt=Box(0, V, (P,), int64), prefix=Box(0, V, (T,), int64))`.
    `observation="float"` gives the same ids as float32, `Box(0, V, (T,), float32)`, and
    `observation="one_hot"` a flat vector with a one for each token at its place and zeros for PAD,
    `Box(0, 1, (T * V,), float32)`, which takes 4 * T * V bytes.

    ## Rewards
    0 until the sequence is finished; then the reward's score of the sequence.

    ## Starting State
    The empty prefix. Tasks with prompts sample a prompt uniformly from the split; nothing else is
    random. The options of reset() start an episode elsewhere:

    - `prefix`: a prefix to continue, as text or ids.
    - `prompt`: a prompt as text or ids; or `prompt_index`: its number in the split.
    - `disallowed`: how many tokens of the prefix were taken against the mask; 0 by default.

    `snapshot()` returns the options that lead back to the current state. A refused reset changes
    nothing: the running episode and the random numbers go on as if it had not been called.

    ## Episode End
    `terminated` at EOS or at `max_length` tokens; `truncated` never. The limit is part of the
    task and pays the reward, so a learner must not bootstrap beyond it. A refused action changes
    nothing. If a reward or a constraint fails during a step, the episode is over without a
    result, and reset() starts the next.

    ## Information
    The same keys at every reset and step:

    - `action_mask`: [V] of int8, 1 for each token that min_length, the banned tokens and the
      constraint allow next. A mask is advice: a token that it forbids is appended like any other.
      Where a constraint then allows nothing at all, it is ignored until the episode ends.

    What follows is about the finished sequence. Before the end of the episode it is "" or 0:

    - `text`: the sequence as text.
    - `length`: its number of tokens, counting EOS.
    - `reward_terms`: the score of each reward, by name.
    - `disallowed`: how many tokens were taken against the mask.
    - `prompt`: the prompt as text, in tasks with prompts.

    ## Arguments
    Args:
        task: A name ("grammar", "oracle", "answers"), the path of a .txt, .jsonl or .abc file,
            "module:factory", a `text_gym.Task`, a list of texts, a list of (prompt, references)
            pairs, or a Hugging Face Dataset.
        reward: The score of a finished sequence: a name such as "bleu" or "bleu(n=2)", a function
            of completions, a `text_gym.Reward`, a list of these, or a dict {reward: weight}. None
            takes the task's own.
        max_length: The largest number of tokens of a sequence, EOS included; None takes the
            task's own. A task given by name or path is made for this length; with a `Task` only
            the episode's limit changes, not its data or language.
        min_length: The number of tokens before which EOS is masked.
        split: The split to sample prompts from: "train", "valid" or "test".
        constraint: A function of prefixes [n, T] and, if it names them, lengths [n] and prompts,
            that returns which tokens may follow each, [n, V]; "module:function"; or "valid", which
            keeps to the task's own language where that is known.
        banned: Tokens that are always masked, as text or ids. None bans the token for unknown
            words, where there is one.
        reward_timeout: Seconds that a reward may take for a batch of sequences; None sets no limit.
        observation: "tokens", "float" or "one_hot", see "Observation Space".
        render_mode: "ansi" (`render()` returns the text), "rgb_array" (an image of the text and its
            reward), "human" (prints the text as it grows) or None.
        **task_options: Options of the task, for example seed=1 or tokenizer="char".

    ## Version History
    * v0: first version.
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
        """Make the task and the reward, and check them against each other."""
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
        self._examples: list[Example] | None = None  # one, in tasks with prompts
        self._prompt: IntArray | None = None  # [P]
        self._mask: Mask = self.rules.later_mask  # [V], of the current prefix
        self._result = ""  # the reward of the last episode in words, for frames
        terms = dict.fromkeys(self.rules.scorer.rewards, 0.0)
        self._no_result: Info = {"text": "", "length": 0, "reward_terms": terms, "disallowed": 0}
        if self.rules.task.conditional:
            self._no_result["prompt"] = ""

    @property
    def task(self) -> Task:
        """The task."""
        return self.rules.task

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, object] | None = None
    ) -> tuple[Observation, Info]:
        """Start an episode; see "Starting State" for the options.

        Args:
            seed: Seed of the random numbers that prompts are sampled with; None keeps them as they are.
            options: "prefix", "prompt" or "prompt_index", "disallowed".
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
        # Nothing has changed so far, and nothing fails from here on.
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
        """Append a token."""
        try:
            token = operator.index(action)
        except TypeError:
            raise self.rules.invalid_action(action) from None
        if not 0 <= token < self._size:
            raise self.rules.invalid_action(token)
        if not self._running:
            raise no_episode("step")
        self._running = False  # until everything has gone well
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
        """Compute which tokens may follow the prefix, [1, V]."""
        lengths = np.array([length])
        return self.rules.action_masks(tokens[None], lengths, np.array([live]), np.array([disallowed]), examples)

    def _info(self) -> Info:
        """Return the info before the end of an episode."""
        info = self._no_result.copy()
        info["action_mask"] = self._mask.copy()
        info["reward_terms"] = info["reward_terms"].copy()
        return info

    def _final_info(self, outcome: Outcome) -> Info:
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
        """Return which tokens may come next, [V]; the name that MaskablePPO looks for."""
        return self._mask.astype(np.bool_)

    def snapshot(self) -> dict[str, object]:
        """Return the options with which reset() leads back to the current state."""
        if not self._running:
            raise no_episode("snapshot")
        options: dict[str, object] = {"prefix": self._tokens[: self._length].copy(), "disallowed": self._disallowed}
        if self._examples is not None:
            example = self._examples[0]
            if example.number is None:  # a prompt of the caller's own
                options["prompt"] = np.array(example.prompt, dtype=np.int64)
            else:
                options["prompt_index"] = example.number
        return options

    @property
    def text(self) -> str:
        """The text so far."""
        return self.rules.vocab.decode(self._tokens[: self._length].tolist())

    def render(self) -> str | Frame | None:
        """Return the text so far in mode "ansi", an image in mode "rgb_array"; in mode "human" it is on the screen."""
        if self.render_mode is None:
            gym.logger.warn('render() does nothing without a render mode; pass render_mode="ansi" to make()')
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
