"""NLPO: PPO that samples only from the nucleus (top-p) of an older copy of the policy.

The paper is Ramamurthy et al., "Is Reinforcement Learning (Not) for Natural Language Processing" (arXiv:2210.01241).
sb3-contrib's MaskablePPO implements the update. One iteration has four steps:

1. Every `mask_update_freq` iterations, copy the policy into the mask model.
2. Collect a rollout. In each state, the action mask allows only the nucleus of the mask model.
3. Subtract the KL penalty from the rewards. It compares policy and initial policy without masks, and its weight adapts.
4. Update actor and critic as PPO does, within the same masks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn
from torch import nn

from agents.common.kl import KLSettings
from agents.networks.policies import frozen_copy
from agents.ppo import PPO_PRESETS, ActorCritic, PPOSettings, maskable_ppo
from agents.sb3.actor_critic import PrefixExtractor
from text_gym.arrays import BoolArray
from text_gym.errors import OptionError
from text_gym.language_model import LanguageModel, nucleus_mask
from text_gym.validation import check_whole, finite_number


@dataclass(frozen=True)
class NLPOSettings(PPOSettings):
    """Hyperparameters of `NLPO`."""

    mask_top_p: float = 0.9
    """Probability of the mask model's nucleus (top-p). All other tokens are masked; 1 masks no tokens."""
    mask_min_tokens: int = 5
    """Minimum number of tokens that are not masked."""
    mask_update_freq: int = 5
    """Number of iterations between updates of the mask model, which copy the policy into it."""
    kl: KLSettings = field(default_factory=lambda: KLSettings(weight=0.1, target=0.1))
    """KL penalty, which keeps the policy close to the initial policy."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < finite_number("mask_top_p", self.mask_top_p) <= 1:
            raise OptionError(f"mask_top_p={self.mask_top_p} is out of range; give a number in (0, 1]")
        check_whole(self, 1, "mask_min_tokens", "mask_update_freq")


PRESETS: dict[str, dict[str, object]] = {
    **PPO_PRESETS,
    "imdb": {**PPO_PRESETS["imdb"], "mask_top_p": 0.9, "mask_min_tokens": 100, "mask_update_freq": 5},
}


class NLPO(ActorCritic[NLPOSettings]):
    """Natural language policy optimisation (NLPO). One step of learn() is one iteration.

    Args:
        env: A TextGen-v0 environment.
        **options: See `Agent` and `NLPOSettings`. `start` is usually an `MLE` agent.
    """

    name = "nlpo"
    settings_type = NLPOSettings
    presets = PRESETS
    samples_within_masks = True
    kl_without_masks = True

    def build(self) -> None:
        """Create the algorithm and its policy, the mask model, and the environments with its masks."""
        super().build()
        settings = self.settings
        self.mask_model = frozen_copy(self.policy)
        self.model.set_env(
            NucleusMasks(
                self.envs, self.mask_model, settings.mask_top_p, settings.mask_min_tokens, self.rules.eos, self.device
            )
        )

    def make_model(self, **options: Any) -> OnPolicyAlgorithm:
        """Create sb3-contrib's MaskablePPO."""
        return maskable_ppo(self.envs, **options)

    def load_policy(self, policy: LanguageModel) -> None:
        """Copy the weights of another policy to the actor, a separate critic, the reference and the mask model."""
        super().load_policy(policy)
        self.mask_model.load_state_dict(policy.state_dict())

    def one_step(self, step: int) -> bool:
        """Update the mask model every `mask_update_freq` iterations, and run one iteration."""
        if step % self.settings.mask_update_freq == 0:
            self.mask_model.load_state_dict(self.policy.state_dict())
        return super().one_step(step)

    def trained_parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """Return the parts of `ActorCritic`, and the mask model."""
        return super().trained_parts() | {"mask_model": self.mask_model}


class NucleusMasks(VecEnvWrapper):
    """VecEnv wrapper that restricts the action masks to the nucleus (top-p) of a language model.

    Args:
        venv: Environments with a method `action_masks`, for example `TextGenVecEnv`.
        model: Language model.
        top_p: Probability of the nucleus.
        min_tokens: Minimum number of tokens that are not masked, as far as the environment allows them.
        eos: EOS, which is never masked if the environment allows it; None in tasks without EOS.
        device: Device of the model.
    """

    def __init__(
        self, venv: VecEnv, model: LanguageModel, top_p: float, min_tokens: int, eos: int | None, device: torch.device
    ) -> None:
        super().__init__(venv)
        self.top_p = top_p
        self.min_tokens = min_tokens
        self.eos = eos
        self.device = device
        self.extractor = PrefixExtractor(venv.observation_space, lambda: model)
        self._observations: VecEnvObs = {}

    def reset(self) -> VecEnvObs:
        """Reset all environments, and store their observations."""
        self._observations = self.venv.reset()
        return self._observations

    def step_wait(self) -> VecEnvStepReturn:
        """Step all environments, and store their observations."""
        result = self.venv.step_wait()
        self._observations = result[0]
        return result

    def env_method(
        self, method_name: str, *method_args: object, indices: VecEnvIndices = None, **method_kwargs: object
    ) -> list[Any]:
        """Call a method of the environments; the masks of `action_masks` are restricted to the nucleus."""
        results = self.venv.env_method(method_name, *method_args, indices=indices, **method_kwargs)
        return list(self._nucleus(np.stack(results), indices)) if method_name == "action_masks" else results

    @torch.no_grad()
    def _nucleus(self, action_masks: BoolArray, indices: VecEnvIndices) -> BoolArray:
        """Restrict action masks [n, V] to the nucleus of the mask model, [n, V]."""
        rows = list(self._get_indices(indices))
        stored = self._observations
        assert not isinstance(stored, tuple)  # an array of prefixes, or a dict with prompts and prefixes
        observations = {k: v[rows] for k, v in stored.items()} if isinstance(stored, dict) else stored[rows]
        features = self.extractor(obs_as_tensor(observations, self.device))
        allowed = torch.from_numpy(action_masks).to(self.device)
        logits = self.extractor.logits(features).masked_fill(~allowed, -torch.inf)
        kept = nucleus_mask(logits, self.top_p, self.min_tokens)
        if self.eos is not None:
            kept[:, self.eos] = True
        return (kept & allowed).cpu().numpy()
