"""NLPO: PPO that samples among the likely tokens only, as an older copy of the policy sees them.

One iteration: every few iterations copy the policy into the mask model; in each state mask all but the fewest tokens
to which the mask model gives most of its probability; generate a rollout and learn from it as PPO does, within these
masks; let each token pay for the log-ratio of policy and initial policy without masks, with a weight that adapts.
The algorithm is sb3-contrib's MaskablePPO, unchanged. (Ramamurthy et al., arXiv:2210.01241.)
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
    """Hyper-parameters of `NLPO`."""

    mask_top_p: float = 0.9
    """Probability of the nucleus that the mask model keeps; 1 keeps all tokens."""
    mask_min_tokens: int = 5
    """Tokens that the mask keeps at least."""
    mask_update_freq: int = 5
    """Iterations between two copies of the policy into the mask model."""
    kl: KLSettings = field(default_factory=lambda: KLSettings(weight=0.1, target=0.1))
    """KL penalty."""

    def __post_init__(self) -> None:
        """Check the values of the mask too."""
        super().__post_init__()
        if not 0 < finite_number("mask_top_p", self.mask_top_p) <= 1:
            raise OptionError(f"mask_top_p={self.mask_top_p} must lie in (0, 1]")
        check_whole(self, 1, "mask_min_tokens", "mask_update_freq")


PRESETS: dict[str, dict[str, object]] = {
    **PPO_PRESETS,
    "imdb": {**PPO_PRESETS["imdb"], "mask_top_p": 0.9, "mask_min_tokens": 100, "mask_update_freq": 5},
}


class NLPO(ActorCritic[NLPOSettings]):
    """Natural-language policy optimisation. A step of learn() is an iteration.

    Args:
        env: A TextGen-v0 environment.
        **options: See `Agent` and `NLPOSettings`; `start` is usually an agent that `MLE` has trained.
    """

    name = "nlpo"
    settings_type = NLPOSettings
    presets = PRESETS
    samples_within_masks = True
    kl_without_masks = True

    def build(self) -> None:
        """Create the algorithm and its policy, the mask model, and environments with its masks."""
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
        """Copy the weights of another policy to the actor, to a critic of its own, the reference and the mask model."""
        super().load_policy(policy)
        self.mask_model.load_state_dict(policy.state_dict())

    def one_step(self, step: int) -> bool:
        """Update the mask model if it is time, and run one iteration."""
        if step % self.settings.mask_update_freq == 0:
            self.mask_model.load_state_dict(self.policy.state_dict())
        return super().one_step(step)

    def trained_parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """Return the parts of `ActorCritic`, and the mask model."""
        return super().trained_parts() | {"mask_model": self.mask_model}


class NucleusMasks(VecEnvWrapper):
    """Environments whose masks allow only the nucleus of a language model, among what they allow themselves.

    Args:
        venv: Environments with `action_masks`, as `TextGenVecEnv` has.
        model: The language model.
        top_p: Probability of the nucleus.
        min_tokens: Tokens that are kept at least.
        eos: Token that is always kept where the environment allows it, if there is one.
        device: Device of the model.
    """

    def __init__(
        self, venv: VecEnv, model: LanguageModel, top_p: float, min_tokens: int, eos: int | None, device: torch.device
    ) -> None:
        """Wrap the environments."""
        super().__init__(venv)
        self.top_p = top_p
        self.min_tokens = min_tokens
        self.eos = eos
        self.device = device
        self.extractor = PrefixExtractor(venv.observation_space, lambda: model)
        self._observations: VecEnvObs = {}

    def reset(self) -> VecEnvObs:
        """Start all episodes."""
        self._observations = self.venv.reset()
        return self._observations

    def step_wait(self) -> VecEnvStepReturn:
        """Keep the prefixes after a step."""
        result = self.venv.step_wait()
        self._observations = result[0]
        return result

    def env_method(
        self, method_name: str, *method_args: object, indices: VecEnvIndices = None, **method_kwargs: object
    ) -> list[Any]:
        """Return masks; any other method is the environments' own."""
        found = self.venv.env_method(method_name, *method_args, indices=indices, **method_kwargs)
        return list(self._nucleus(np.stack(found), indices)) if method_name == "action_masks" else found

    @torch.no_grad()
    def _nucleus(self, allowed: BoolArray, indices: VecEnvIndices) -> BoolArray:
        """Compute which of the allowed tokens [n, V] are kept."""
        rows = list(self._get_indices(indices))
        everything = self._observations
        assert not isinstance(everything, tuple)  # prefixes, or a dict with prompts
        here = {k: v[rows] for k, v in everything.items()} if isinstance(everything, dict) else everything[rows]
        features = self.extractor(obs_as_tensor(here, self.device))
        possible = torch.from_numpy(allowed).to(self.device)
        logits = self.extractor.logits(features).masked_fill(~possible, -torch.inf)
        kept = nucleus_mask(logits, self.top_p, self.min_tokens)
        if self.eos is not None:
            kept[:, self.eos] = True
        return (kept & possible).cpu().numpy()
