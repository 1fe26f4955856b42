"""MaskablePPO of sb3-contrib with a language model as the actor. Importing this module needs sb3-contrib."""

from __future__ import annotations

from typing import Any

from gymnasium import spaces
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.buffers import MaskableDictRolloutBuffer, MaskableRolloutBuffer
from sb3_contrib.common.maskable.distributions import MaskableCategoricalDistribution
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from agents.sb3.actor_critic import LanguageActorCritic
from agents.sb3.buffers import SequenceRolloutBuffer
from text_gym.language_model import draw_tokens


class MaskableSequenceRolloutBuffer(SequenceRolloutBuffer, MaskableRolloutBuffer):
    """SequenceRolloutBuffer with action masks."""


class MaskableDictSequenceRolloutBuffer(SequenceRolloutBuffer, MaskableDictRolloutBuffer):
    """SequenceRolloutBuffer with action masks, for observations with prompts."""


class MaskableCategorical(MaskableCategoricalDistribution):
    """Maskable categorical distribution with fast sampling for large vocabularies."""

    def sample(self) -> Tensor:
        """Sample one token for each row, [n]."""
        assert self.distribution is not None
        return draw_tokens(self.distribution.logits)[0]


class MaskableTextPolicy(LanguageActorCritic, MaskableActorCriticPolicy):
    """Actor-critic policy for sb3-contrib's MaskablePPO, whose actor is a language model."""

    def _build(self, lr_schedule: Schedule) -> None:
        """Build the policy with a distribution that samples fast."""
        super()._build(lr_schedule)
        self.action_dist = MaskableCategorical(self.n_tokens)


def make_maskable_ppo(envs: VecEnv, **options: Any) -> MaskablePPO:
    """Create MaskablePPO with a MaskableTextPolicy and the rollout buffer for the observation space.

    Args:
        envs: Environments with a method `action_masks`.
        **options: Arguments of MaskablePPO.
    """
    has_prompts = isinstance(envs.observation_space, spaces.Dict)
    buffer = MaskableDictSequenceRolloutBuffer if has_prompts else MaskableSequenceRolloutBuffer
    return MaskablePPO(MaskableTextPolicy, envs, rollout_buffer_class=buffer, **options)
