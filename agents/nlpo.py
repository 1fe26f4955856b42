"""NLPO: PPO that chooses among the likely tokens only, as a copy of the policy from a while ago sees them.

For each iteration: in each state keep the fewest tokens that a lagged copy of the policy gives most of its probability;
write and learn as PPO does within these masks; let each token pay for the log-ratio to the policy at the
start, without masks, at a weight that adapts; and every few iterations renew the copy. The algorithm under it is
sb3-contrib's MaskablePPO, unchanged. (Ramamurthy et al., arXiv:2210.01241.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn
from torch import nn

from agents.common.kl import KLSettings
from agents.networks.policies import frozen_copy
from agents.ppo import MaskablePPO
from agents.sb3.actor_critic import PrefixExtractor
from agents.sb3.settings import IMDB, PRESETS, PPOSettings
from text_gym.errors import OptionError
from text_gym.language_model import LanguageModel, nucleus_mask
from text_gym.validation import finite_number, whole_number


@dataclass(frozen=True)
class NLPOSettings(PPOSettings):
    """The hyper-parameters of `NLPO`."""

    mask_top_p: float = 0.9
    """Probability of the nucleus that the mask model keeps; 1 keeps all tokens."""
    mask_min_tokens: int = 5
    """Tokens that the mask keeps at least."""
    mask_update_freq: int = 5
    """Iterations between two copies of the policy into the mask model."""
    kl: KLSettings = field(default_factory=lambda: KLSettings(weight=0.1, target=0.1))
    """KL penalty."""

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        super().__post_init__()
        if not 0 < finite_number("mask_top_p", self.mask_top_p) <= 1:
            raise OptionError(f"mask_top_p={self.mask_top_p} must lie in (0, 1]")
        whole_number("mask_min_tokens", self.mask_min_tokens, least=1)
        whole_number("mask_update_freq", self.mask_update_freq, least=1)


class NLPO(MaskablePPO):
    """Natural-language policy optimisation, on sb3-contrib's masked distributions (extra: contrib).

    Args:
        env: The environment.
        start: An agent whose policy is where this one begins; usually one that `MLE` has trained.
        **options: See `Agent` and `NLPOSettings`.
    """

    name = "nlpo"
    settings_type: ClassVar[type] = NLPOSettings
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        **PRESETS,
        "imdb": {**IMDB, "mask_top_p": 0.9, "mask_min_tokens": 100, "mask_update_freq": 5},
    }
    pays_unmasked = True

    def build(self) -> None:
        """What `MaskablePPO` has, and the copy that says what is likely."""
        super().build()
        self.likely.follow(self.policy)

    def masking_envs(self) -> VecEnv:
        """The copies, which allow what is likely."""
        self.likely = LikelyTokens(
            self.envs, self.settings.mask_top_p, self.settings.mask_min_tokens, self.rules.eos, self.device
        )
        return self.likely

    def load_policy(self, policy: nn.Module) -> None:
        """Give the actor, a critic of its own, and the copy the weights of a language model."""
        super().load_policy(policy)
        self.likely.follow(self.policy)

    def begin_rollout(self, step: int) -> None:
        """Renew the copy when it is time."""
        if step % self.settings.mask_update_freq == 0:
            self.likely.follow(self.policy)

    def trained_parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """What `MaskablePPO` has, and the copy."""
        return super().trained_parts() | {"lagged": self.likely.model}


class LikelyTokens(VecEnvWrapper):
    """Environments whose masks allow only what a language model finds likely, among what they allow themselves.

    Args:
        venv: With `action_masks`, as `TextGenVecEnv` has.
        top_p: The probability that the kept tokens have together.
        kept: So many are kept at least.
        eos: The token that is always kept where the environment allows it, if there is one.
        device: Where the model is.
    """

    def __init__(self, venv: VecEnv, top_p: float, kept: int, eos: int | None, device: torch.device) -> None:
        """Wait for the model."""
        super().__init__(venv)
        self.top_p, self.kept, self.eos, self.device = top_p, kept, eos, device
        self._reader: Any = None
        self._observations: Any = None

    @property
    def model(self) -> nn.Module:
        """The language model that says what is likely."""
        model: nn.Module = self._reader.model
        return model

    def follow(self, policy: LanguageModel) -> None:
        """Let a copy of a policy say what is likely from now on."""
        if self._reader is None:
            self._reader = PrefixExtractor(self.observation_space, lambda: frozen_copy(policy))
        self.model.load_state_dict(policy.state_dict())

    def reset(self) -> VecEnvObs:
        """Begin all episodes."""
        self._observations = self.venv.reset()
        return self._observations  # type: ignore[no-any-return]

    def step_wait(self) -> VecEnvStepReturn:
        """Keep the prefixes that come of a step."""
        result = self.venv.step_wait()
        self._observations = result[0]
        return result

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """The masks; any other method is the environments' own."""
        given = self.venv.env_method(method_name, *method_args, indices=indices, **method_kwargs)
        if method_name != "action_masks":
            return given
        rows = list(self._get_indices(indices))
        return list(self._likely(np.stack(given), rows))

    @torch.no_grad()
    def _likely(self, allowed: Any, rows: list[int]) -> Any:
        """Of what is allowed, [n, V], what is likely."""
        observations = self._observations
        here = {k: v[rows] for k, v in observations.items()} if isinstance(observations, dict) else observations[rows]
        features = self._reader(obs_as_tensor(here, self.device))
        possible = torch.from_numpy(allowed).to(self.device)
        logits = self._reader.logits(features).masked_fill(~possible, -torch.inf)
        kept = nucleus_mask(logits, self.top_p, self.kept)
        if self.eos is not None:
            kept[:, self.eos] = True
        return (kept & possible).cpu().numpy()
