"""Helpers of agents: log-probabilities of sequences, next-token logits, rules of an environment, and the device."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from text_gym.arrays import AnyArray, FloatArray
from text_gym.errors import OptionError
from text_gym.language_model import LOGITS_AT_ONCE, LanguageModel
from text_gym.rules import Rules
from text_gym.sequences import Batch

Env = gym.Env[Any, Any] | gym.vector.VectorEnv[Any, Any, Any]
"""A TextGen-v0 environment, scalar or vector."""


@torch.no_grad()
def sequence_log_probs(model: LanguageModel, batch: Batch, prompts: Tensor | None, device: torch.device) -> FloatArray:
    """Compute the log-probability of each sequence in nats, [n], in chunks that limit the memory for logits."""
    scores = np.zeros(len(batch))
    vocab_size = len(batch.vocab)
    chunk = max(1, LOGITS_AT_ONCE[device.type == "cuda"] // max(1, batch.tokens.shape[1] * vocab_size))
    for begin in range(0, len(batch), chunk):
        rows = slice(begin, begin + chunk)
        tokens = to_tensor(batch.tokens[rows], device)
        valid = to_tensor(batch.valid_mask[rows], device)
        log_probs = model.log_prob(tokens, valid, None if prompts is None else prompts[rows])
        scores[rows] = log_probs.double().sum(dim=1).cpu().numpy()
    return scores


def next_logits(model: LanguageModel, prefix: Tensor, prompts: Tensor | None, pad: int) -> Tensor:
    """Compute the logits [n, V] of the token after each prefix [n, T], which is padded with `pad` on the right."""
    valid = prefix != pad
    logits, state = model.start(len(prefix), prompts)
    for t in range(int(valid.sum(dim=1).max()) if len(prefix) else 0):
        stepped, state = model.step(prefix[:, t].where(valid[:, t], torch.zeros_like(prefix[:, t])), state)
        logits = stepped.where(valid[:, t, None], logits)
    return logits


def to_tensor(array: AnyArray, device: torch.device) -> Tensor:
    """Copy an array to a device."""
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


def rules_of(env: object) -> Rules:
    """Return the rules of a TextGen-v0 environment, scalar or vector."""
    rules = getattr(getattr(env, "unwrapped", None), "rules", None)
    if not isinstance(rules, Rules):
        raise OptionError(
            f"{env!r} is not a TextGen-v0 environment; make one with gym.make('TextGen-v0'), or with "
            "gym.make_vec('TextGen-v0', num_envs=...) without vectorization_mode"
        )
    return rules


def find_device(name: str) -> torch.device:
    """Return the device with this name; "auto" is the GPU if there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as problem:
        reason = str(problem).splitlines()[0]
        raise OptionError(f"device={name!r} is not available; give device='auto' ({reason})") from problem
    return device
