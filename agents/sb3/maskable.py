"""MaskablePPO with a language model as the actor; importing this module needs sb3-contrib."""

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
    """Rollout buffer with masks whose minibatches hold all transitions of some environments."""


class MaskableDictSequenceRolloutBuffer(SequenceRolloutBuffer, MaskableDictRolloutBuffer):
    """The same for observations with prompts."""


class MaskableCategorical(MaskableCategoricalDistribution):
    """sb3-contrib's distribution over tokens, with sampling that is fast for many of them."""

    def sample(self) -> Tensor:
        """Sample one token for each row, [n]."""
        assert self.distribution is not None
        return draw_tokens(self.distribution.logits)[0]


class MaskableTextPolicy(LanguageActorCritic, MaskableActorCriticPolicy):
    """Actor-critic policy for sb3-contrib's MaskablePPO whose actor is a language model."""

    def _build(self, lr_schedule: Schedule) -> None:
        """Use the fast distribution."""
        super()._build(lr_schedule)
        self.action_dist = MaskableCategorical(self.n_tokens)


def make_maskable_ppo(envs: VecEnv, **options: Any) -> MaskablePPO:
    """Create MaskablePPO with this policy and these buffers; options are its own."""
    has_prompts = isinstance(envs.observation_space, spaces.Dict)
    buffer = MaskableDictSequenceRolloutBuffer if has_prompts else MaskableSequenceRolloutBuffer
    return MaskablePPO(MaskableTextPolicy, envs, rollout_buffer_class=buffer, **options)
