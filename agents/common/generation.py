"""A policy at work on a task: it samples sequences, scores their likelihood, and acts in the environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from agents.networks.policies import LogitMask, Restricted, Tempered
from text_gym.arrays import AnyArray, FloatArray, IntArray
from text_gym.errors import OptionError
from text_gym.language_model import (
    LOGITS_AT_ONCE,
    Drawn,
    LanguageModel,
    Sampling,
    draw_tokens,
    generate,
    keep_freed_memory,
)
from text_gym.rules import Rules
from text_gym.sequences import Batch, Example, make_batch
from text_gym.validation import whole_number

Env = gym.Env[Any, Any] | gym.vector.VectorEnv[Any, Any, Any]
"""A TextGen-v0 environment, scalar or vector."""


class TextGenerator:
    """What can be done with a policy, trained or not.

    Args:
        env: A TextGen-v0 environment, scalar or vector, which defines the task and the reward.
        seed: Seed of sample() when it is not given one.
        device: "cpu", "cuda", or "auto" for a GPU where there is one.
    """

    policy: LanguageModel

    def __init__(self, env: Env, seed: int, device: str = "auto") -> None:
        """Read the task; subclasses create the policy."""
        keep_freed_memory()
        self.env = env
        self.rules: Rules = rules_of(env)
        self.task = self.rules.task
        self.device = find_device(device)
        self._sampler = torch.Generator(self.device).manual_seed(seed)
        self.n_sampled = 0  # sequences, completions of prefixes included

    @property
    def restricts(self) -> bool:
        """Whether the environment bans tokens, or EOS before min_length."""
        return not self.rules.later_mask.all() or self.rules.min_length > 0

    def restricted(self, policy: LanguageModel) -> LanguageModel:
        """Return the policy as it samples: without banned tokens, and without EOS before min_length."""
        return policy if self.logit_mask is None else Restricted(policy, self.logit_mask)

    @cached_property
    def logit_mask(self) -> LogitMask | None:
        """The mask added to the policy's logits when it samples; None if nothing is banned."""
        if not self.restricts:
            return None
        early = self.tensor(self.rules.early_mask == 0)
        later = self.tensor(self.rules.later_mask == 0)
        return LogitMask.of_banned(early, later, self.rules.min_length)

    def sample(
        self,
        n: int | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = None,
        prompts: Sequence[str | Sequence[int] | Example] | None = None,
    ) -> Batch:
        """Sample sequences, within the environment's banned tokens and min_length.

        Args:
            n: Number of sequences; 1, or one for each prompt, if not given.
            temperature: Divides the logits; below 1, likely tokens become likelier.
            top_k: Sample from so many of the likeliest tokens; 0 for all.
            top_p: Nucleus sampling: sample from the fewest likeliest tokens with this much probability together.
            seed: Seed; if not given, each call samples other sequences.
            prompts: Prompts as texts, ids or Examples; sampled from the environment's split if not given.
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
            examples = self.sample_examples(n, generator)
        return self.generate(n, generator, examples, sampling)

    def generate(
        self, n: int, generator: torch.Generator, examples: Sequence[Example] | None, sampling: Sampling | None = None
    ) -> Batch:
        """Sample n sequences, one for each of the examples if there are any."""
        drawn = self.draw(n, generator, examples, sampling or Sampling())
        self.n_sampled += n
        return Batch(drawn.tokens.cpu().numpy(), drawn.lengths.cpu().numpy(), self.task.vocab, examples)

    def draw(self, n: int, generator: torch.Generator, examples: Sequence[Example] | None, sampling: Sampling) -> Drawn:
        """Sample n sequences as tensors, with the log-probability of each token."""
        self.policy.eval()
        model = self.restricted(self.policy)
        prompts = self.prompt_tokens(examples)
        return generate(model, n, self.rules.limit, self.rules.eos, generator, sampling, prompts)

    def rewards(self, batch: Batch) -> FloatArray:
        """Score finished sequences with the environment's reward, [n]."""
        return self.rules.scorer(batch).total

    @torch.no_grad()
    def log_prob(
        self,
        tokens: npt.ArrayLike,
        lengths: npt.ArrayLike | None = None,
        examples: Sequence[Example] | None = None,
        as_sampled: bool = False,
        temperature: float = 1.0,
    ) -> FloatArray:
        """Compute the log-probability of each sequence in nats, [n].

        Args:
            tokens: Sequences [n, T].
            lengths: Lengths [n], EOS included.
            examples: The prompt of each sequence, in tasks with prompts.
            as_sampled: Whether banned tokens have probability 0, as in sample(). Otherwise the probability is the
                policy's own, because real sequences may contain what the environment bans.
            temperature: Divides the logits, as in sample().
        """
        batch = make_batch(tokens, lengths, self.task.vocab)
        if self.task.conditional and (examples is None or len(examples) != len(batch)):
            raise OptionError(f"task {self.task.name!r} has prompts: give log_prob() the example of each sequence")
        self.policy.eval()
        model = self.policy
        if temperature != 1:
            model = Tempered(model, Sampling(temperature).checked().temperature)
        if as_sampled:
            model = self.restricted(model)
        scores = np.zeros(len(batch))
        at_once = LOGITS_AT_ONCE[self.device.type == "cuda"]
        chunk = max(1, at_once // max(1, batch.tokens.shape[1] * len(self.task.vocab)))
        for begin in range(0, len(batch), chunk):
            rows = slice(begin, begin + chunk)
            prompts = self.prompt_tokens(None if examples is None else examples[rows])
            inputs = (self.tensor(batch.tokens[rows]), self.tensor(batch.valid_mask[rows]))
            scores[rows] = model.log_prob(*inputs, prompts).double().sum(dim=1).cpu().numpy()
        return scores

    @torch.no_grad()
    def predict(
        self,
        observation: IntArray | Mapping[str, IntArray],
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[Any, Any]:
        """Choose the next token of each prefix, as in Stable-Baselines3: the likeliest one, or a sampled one."""
        parts = observation if isinstance(observation, Mapping) else {"prefix": observation}
        single = np.ndim(parts["prefix"]) == 1
        prefix = np.atleast_2d(np.asarray(parts["prefix"], dtype=np.int64))
        prompts = self.tensor(np.atleast_2d(parts["prompt"]).astype(np.int64)) if "prompt" in parts else None
        logits = self._logits_after(prefix, prompts)
        actions = logits.argmax(dim=1) if deterministic else draw_tokens(logits, self._sampler)[0]
        chosen: IntArray = actions.cpu().numpy()
        return (chosen[0] if single else chosen), state

    def _logits_after(self, prefix: IntArray, prompts: Tensor | None) -> Tensor:
        """Compute the logits after each prefix [n, T], padded as observations are."""
        model = self.restricted(self.policy)
        self.policy.eval()
        tokens = self.tensor(prefix)
        real = tokens != self.task.vocab.pad
        logits, state = model.start(len(tokens), prompts)
        for t in range(int(real.sum(dim=1).max()) if len(tokens) else 0):
            after, state = model.step(tokens[:, t].where(real[:, t], torch.zeros_like(tokens[:, t])), state)
            logits = after.where(real[:, t, None], logits)
        return logits

    def sample_examples(self, n: int, generator: torch.Generator) -> list[Example]:
        """Sample prompts of the environment's split, uniformly."""
        pool = self.task.split(self.rules.split)
        chosen = torch.randint(len(pool), (n,), generator=generator, device=self.device)
        return [pool[i] for i in chosen.tolist()]

    def prompt_tokens(self, examples: Sequence[Example] | None) -> Tensor | None:
        """Return the prompts of examples as the policy reads them, [n, P]."""
        if examples is None:
            return None
        rows = [self.rules.prompt_row(example) for example in examples]
        return self.tensor(np.stack(rows) if rows else np.zeros((0, self.task.prompt_length), dtype=np.int64))

    def tensor(self, array: AnyArray) -> Tensor:
        """Copy an array to the policy's device."""
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def _example(self, prompt: str | Sequence[int] | Example) -> Example:
        return prompt if isinstance(prompt, Example) else self.rules.find_example(prompt)


def rules_of(env: object) -> Rules:
    """Return the rules of a TextGen-v0 environment, scalar or vector."""
    rules = getattr(getattr(env, "unwrapped", None), "rules", None)
    if not isinstance(rules, Rules):
        raise OptionError(
            f"an agent learns in a TextGen-v0 environment, from gym.make('TextGen-v0') or from gym.make_vec without "
            f"vectorization_mode, and not in {env!r}"
        )
    return rules


def find_device(name: str) -> torch.device:
    """Return the device of this name; for "auto" a GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as problem:
        reason = str(problem).splitlines()[0]
        raise OptionError(f"device={name!r} is not available; give device='auto' ({reason})") from problem
    return device
