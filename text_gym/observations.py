"""Encodings of an observation: token ids, the same ids as floats, or one-hot vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from text_gym.arrays import AnyArray, IntArray
from text_gym.errors import OptionError
from text_gym.validation import shown

FORMS = ("tokens", "float", "one_hot")
Observation = AnyArray | dict[str, AnyArray]
"""The prefix, or {"prompt": ..., "prefix": ...} in tasks with prompts; batched in the vector environment."""


class Observer:
    """Convert prefixes and prompts to observations. `space` is the Gymnasium space of a single observation.

    >>> observe = Observer("one_hot", vocab_size=3, max_length=2, prompt_length=0)
    >>> observe(np.array([1, 3]), None)  # token 1, then PAD
    array([0., 1., 0., 0., 0., 0.], dtype=float32)

    Args:
        form: "tokens", "float" or "one_hot".
        vocab_size: Number of tokens V; the id of PAD is V.
        max_length: Maximum number of tokens of a prefix.
        prompt_length: Maximum number of tokens of a prompt; 0 in tasks without prompts.
    """

    def __init__(self, form: str, vocab_size: int, max_length: int, prompt_length: int) -> None:
        """Create the space; an unknown form raises OptionError."""
        if not isinstance(form, str) or form not in FORMS:
            raise OptionError(f"observation must be one of {', '.join(map(repr, FORMS))}, not {shown(form)}")
        self.form = form
        self.vocab_size = vocab_size
        prefix = self._box(max_length)
        self.space: spaces.Space[Any] = prefix  # Gymnasium types Dict as a space of dicts of spaces
        if prompt_length:
            self.space = spaces.Dict({"prompt": self._box(prompt_length), "prefix": prefix})

    def __call__(self, tokens: IntArray, prompts: IntArray | None) -> Observation:
        """Convert tokens [..., T] and, in tasks with prompts, prompts [..., P]; returns new arrays."""
        prefix = self._convert(tokens)
        return prefix if prompts is None else {"prompt": self._convert(prompts), "prefix": prefix}

    def _box(self, length: int) -> spaces.Box:
        if self.form == "one_hot":
            return spaces.Box(0.0, 1.0, (length * self.vocab_size,), np.float32)
        return spaces.Box(0, self.vocab_size, (length,), np.float32 if self.form == "float" else np.int64)

    def _convert(self, tokens: IntArray) -> AnyArray:
        if self.form == "tokens":
            return tokens.copy()
        if self.form == "float":
            return tokens.astype(np.float32)
        flat = tokens.reshape(-1)
        vectors = np.zeros((len(flat), self.vocab_size), dtype=np.float32)
        real = np.flatnonzero(flat < self.vocab_size)
        vectors[real, flat[real]] = 1.0
        return vectors.reshape(*tokens.shape[:-1], tokens.shape[-1] * self.vocab_size)
