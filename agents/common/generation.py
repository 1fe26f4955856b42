"""A policy at work on a task: it writes sequences, says how likely they are, and acts in the environment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from agents.networks.policies import Restricted, Tempered
from text_gym.arrays import FloatArray, IntArray
from text_gym.errors import OptionError
from text_gym.language_model import LOGITS_AT_ONCE, LanguageModel, Sampling, draw_tokens, generate
from text_gym.rules import Rules
from text_gym.sequences import Batch, Example, make_batch
from text_gym.validation import whole_number


class Writer:
    """What can be done with a policy, learned or not.

    Args:
        env: A TextGen-v0 environment, scalar or vector; it says what the task and the reward are.
        seed: Decides what sample() draws when it is not given a seed.
        device: "cpu", "cuda", or "auto" for a GPU where there is one.
    """

    policy: LanguageModel

    def __init__(
        self, env: gym.Env[Any, Any] | gym.vector.VectorEnv[Any, Any, Any], seed: int, device: str = "auto"
    ) -> None:
        """Know the task; the policy comes later."""
        self.env = env
        self.rules: Rules = rules_of(env)
        self.task = self.rules.task
        self.device = find_device(device)
        self._sampler = torch.Generator(self.device).manual_seed(seed)
        self.written = 0  # sequences, completions of prefixes included

    @property
    def restricts(self) -> bool:
        """Whether the environment keeps the policy from writing some tokens, wherever or before min_length."""
        return not self.rules.later_mask.all() or self.rules.min_length > 0

    def restricted(self, policy: Any) -> LanguageModel:
        """The policy as it writes: without banned tokens, and without EOS before min_length."""
        if not self.restricts:
            model: LanguageModel = policy
            return model
        rules = self.rules
        early, later = (self.tensor(mask == 0) for mask in (rules.early_mask, rules.later_mask))
        return Restricted(policy, early, later, rules.min_length)

    def penalty_of_places(self) -> Tensor | None:
        """What keeps the policy from writing what is banned, [T, V], where anything is."""
        restricted = self.restricted(self.policy)
        return restricted.penalty(self.rules.limit) if isinstance(restricted, Restricted) else None

    def sample(
        self,
        n: int | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = None,
        prompts: Sequence[str | Sequence[int] | Example] | None = None,
    ) -> Batch:
        """Write sequences, within the banned tokens and min_length of the environment.

        Args:
            n: How many; 1, or one for each of the prompts, if not given.
            temperature: Below 1, likely tokens become likelier.
            top_k: Only so many of the likeliest tokens; 0 for all.
            top_p: Only the fewest likeliest tokens with this much probability together.
            seed: Draws them; if not given, each call draws others.
            prompts: What to answer, as texts, ids or Examples; else drawn from the environment's split.
        """
        if isinstance(prompts, str):
            prompts = [prompts]
        examples = None if prompts is None else [self._example(prompt) for prompt in prompts]
        n = whole_number("n", (1 if examples is None else len(examples)) if n is None else n, least=0)
        if examples is not None and len(examples) != n:
            raise OptionError(f"n={n}, but there are {len(examples)} prompts; leave n out")
        sampling = Sampling(temperature, top_k, top_p).checked()
        generator = self._sampler if seed is None else torch.Generator(self.device).manual_seed(seed)
        if examples is None and self.task.conditional:
            examples = self.draw_examples(n, generator)
        return self.write(n, generator, examples, sampling)

    def write(
        self, n: int, generator: torch.Generator, examples: Sequence[Example] | None, sampling: Sampling | None = None
    ) -> Batch:
        """Draw n sequences, one for each of the examples if there are any."""
        self.written += n
        self.policy.eval()
        prompts = self.prompt_rows(examples)
        model, limit, eos = self.restricted(self.policy), self.rules.limit, self.rules.eos
        drawn = generate(model, n, limit, eos, generator, sampling or Sampling(), prompts)
        return Batch(drawn.tokens.cpu().numpy(), drawn.lengths.cpu().numpy(), self.task.vocab, examples)

    def rewards(self, batch: Batch) -> FloatArray:
        """What finished sequences are worth to this agent, [n]: the environment's reward."""
        return self.rules.scorer(batch).total

    @torch.no_grad()
    def log_prob(
        self,
        tokens: npt.ArrayLike,
        lengths: npt.ArrayLike | None = None,
        examples: Sequence[Example] | None = None,
        as_written: bool = False,
        temperature: float = 1.0,
    ) -> FloatArray:
        """The log-probability of each sequence in nats, [n]; with prompts, given those of the examples.

        It is the policy's own: what the environment bans may occur in real sequences, and has its
        probability. With `as_written` it is that of sample(), which writes nothing that is banned; and with
        a temperature, that of sample(temperature=...).
        """
        batch = make_batch(tokens, lengths, self.task.vocab)
        if self.task.conditional and (examples is None or len(examples) != len(batch)):
            raise OptionError(f"task {self.task.name!r} has prompts: give log_prob() the example of each sequence")
        self.policy.eval()
        policy: Any = self.policy
        if temperature != 1:
            policy = Tempered(policy, Sampling(temperature).checked().temperature)
        model: LanguageModel = self.restricted(policy) if as_written else policy
        scores = np.zeros(len(batch))
        at_once = LOGITS_AT_ONCE[self.device.type == "cuda"]
        chunk = max(1, at_once // max(1, batch.tokens.shape[1] * len(self.task.vocab)))
        for begin in range(0, len(batch), chunk):
            rows = slice(begin, begin + chunk)
            prompts = self.prompt_rows(None if examples is None else examples[rows])
            inputs = (self.tensor(batch.tokens[rows]), self.tensor(batch.valid_mask[rows]))
            scores[rows] = model.log_prob(*inputs, prompts).double().sum(dim=1).cpu().numpy()
        return scores

    @torch.no_grad()
    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[Any, Any]:
        """The next token of each prefix, as in Stable-Baselines3: the likeliest one, or one drawn."""
        parts = observation if isinstance(observation, dict) else {"prefix": observation}
        single = np.ndim(parts["prefix"]) == 1
        prefix = np.atleast_2d(np.asarray(parts["prefix"], dtype=np.int64))
        prompts = self.tensor(np.atleast_2d(parts["prompt"]).astype(np.int64)) if "prompt" in parts else None
        logits = self._logits_after(prefix, prompts)
        if deterministic:
            actions = logits.argmax(dim=1)
        else:
            actions, _ = draw_tokens(logits, self._sampler)
        chosen: IntArray = actions.cpu().numpy()
        return (chosen[0] if single else chosen), state

    def _logits_after(self, prefix: IntArray, prompts: Tensor | None) -> Tensor:
        """The logits of what may follow each prefix [n, T], padded as observations are."""
        model = self.restricted(self.policy)
        self.policy.eval()
        tokens = self.tensor(prefix)
        real = tokens != self.task.vocab.pad
        logits, state = model.start(len(tokens), prompts)
        for t in range(int(real.sum(dim=1).max()) if len(tokens) else 0):
            after, state = model.step(tokens[:, t].where(real[:, t], torch.zeros_like(tokens[:, t])), state)
            logits = after.where(real[:, t, None], logits)
        return logits

    def draw_examples(self, n: int, generator: torch.Generator) -> list[Example]:
        """Prompts of the environment's split, each as likely."""
        pool = self.task.split(self.rules.split)
        chosen = torch.randint(len(pool), (n,), generator=generator, device=self.device)
        return [pool[i] for i in chosen.tolist()]

    def prompt_rows(self, examples: Sequence[Example] | None) -> Tensor | None:
        """The examples' prompts as the policy reads them, [n, P]."""
        if examples is None:
            return None
        rows = [self.rules.prompt_row(example) for example in examples]
        return self.tensor(np.stack(rows) if rows else np.zeros((0, self.task.prompt_length), dtype=np.int64))

    def tensor(self, array: npt.NDArray[Any]) -> Tensor:
        """An array where the policy is."""
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def _example(self, prompt: str | Sequence[int] | Example) -> Example:
        return prompt if isinstance(prompt, Example) else self.rules.find_example(prompt)


def rules_of(env: Any) -> Rules:
    """The rules of a TextGen-v0 environment, scalar or vector."""
    rules = getattr(getattr(env, "unwrapped", None), "rules", None)
    if not isinstance(rules, Rules):
        raise OptionError(
            f"an agent learns in a TextGen-v0 environment, from gym.make('TextGen-v0') or from gym.make_vec without "
            f"vectorization_mode, and not in {env!r}"
        )
    return rules


def find_device(name: str) -> torch.device:
    """The device of this name; for "auto" a GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as problem:
        reason = str(problem).splitlines()[0]
        raise OptionError(f"device={name!r} is not to be had here; give device='auto' ({reason})") from problem
    return device
