"""What is built on sb3-contrib's masked distributions; importing this module needs it."""

from __future__ import annotations

from typing import Any

from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.buffers import MaskableDictRolloutBuffer, MaskableRolloutBuffer
from sb3_contrib.common.maskable.distributions import MaskableCategoricalDistribution
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from torch import Tensor

from agents.sb3.actor_critic import LanguageActorCritic
from agents.sb3.buffers import WholeCopies
from text_gym.language_model import draw_tokens

__all__ = ["CopiesBuffer", "DictCopiesBuffer", "MaskablePPO", "MaskableTextPolicy"]


class CopiesBuffer(WholeCopies, MaskableRolloutBuffer):
    """For observations that are prefixes."""


class DictCopiesBuffer(WholeCopies, MaskableDictRolloutBuffer):
    """For observations with prompts."""


class MaskableCategorical(MaskableCategoricalDistribution):
    """sb3-contrib's distribution over tokens, with the draw that is fast for many of them."""

    def sample(self) -> Tensor:
        """One token for each row, [n]."""
        assert self.distribution is not None
        return draw_tokens(self.distribution.logits)[0]


class MaskableTextPolicy(LanguageActorCritic, MaskableActorCriticPolicy):
    """An actor-critic policy for sb3-contrib's MaskablePPO whose actor is a language model."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """See `LanguageActorCritic`."""
        super().__init__(*arguments, **options)
        self.action_dist = MaskableCategorical(int(self.action_space.n))  # type: ignore[attr-defined]
