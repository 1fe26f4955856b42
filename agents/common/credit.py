"""Credit of tokens: how much each token of a sequence changes the expected reward, estimated by rollouts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from agents.common.agent import Agent
from agents.common.rollouts import rollout_values, score_sequences
from text_gym.arrays import FloatArray
from text_gym.sequences import Batch


def prefix_values(
    agent: Agent[Any],
    batch: Batch,
    rollouts: int,
    seed: int,
    rewards: Callable[[Batch], FloatArray] | None = None,
) -> FloatArray:
    """Estimate the value of each sequence before its first token and after each token, [n, T + 1].

    The value of a prefix is the mean reward of its rollouts: completions that the agent samples. At the end of a
    sequence it is the reward of the sequence. The credit of a token is the value after it minus the value before it.

    Args:
        agent: Agent that completes the prefixes.
        batch: Finished sequences.
        rollouts: Completions of each prefix.
        seed: Seed of the completions.
        rewards: Reward of finished sequences, [n]; None for the agent's own. It is called with the batch first, then
            with the completions of each prefix, shorter prefixes first.
    """
    values = rollout_values(
        agent.restricted(agent.policy.eval()),
        agent.tensor(batch.tokens),
        agent.tensor(batch.lengths),
        score_sequences(agent.rewards if rewards is None else rewards, agent.task.vocab, batch.examples),
        rollouts,
        agent.task.vocab.eos,
        torch.Generator(agent.device).manual_seed(seed),
        agent.prompt_tokens(batch.examples),
        from_start=True,
    )
    return np.asarray(values.cpu().numpy(), dtype=np.float64)
