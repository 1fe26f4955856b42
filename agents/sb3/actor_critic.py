"""Language models inside Stable-Baselines3: prefixes as features, and an actor whose logits are a language model's.

>>> import gymnasium as gym, text_gym
>>> from stable_baselines3 import PPO
>>> env = gym.make("TextGen-v0", task="answers")
>>> features = {"features_extractor_class": PrefixExtractor, "features_extractor_kwargs": {"policy": "transformer"}}
>>> model = PPO("MultiInputPolicy", env, policy_kwargs=features, n_steps=8, batch_size=8)  # its own heads
>>> model = PPO(TextPolicy, env, policy_kwargs={"language_model": {"hidden": 32}}, n_steps=8, batch_size=8)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import CategoricalDistribution
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, MlpExtractor
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn

from agents.networks.huggingface import LinearOutput
from agents.networks.policies import LogitMask, PolicySettings, make_policy, width_of_features
from text_gym.errors import OptionError
from text_gym.language_model import LanguageModel, draw_tokens
from text_gym.validation import check_options

ModelSource = Mapping[str, object] | Callable[[], LanguageModel]
"""Fields of PolicySettings, for a model with random weights; or a function that creates a model."""


class PrefixExtractor(BaseFeaturesExtractor):
    """A language model's features after reading a prefix, behind its prompt if there is one: [n, H].

    Args:
        observation_space: Observation space of TextGen-v0.
        make_model: Creates the language model; if not given, `settings` say what it is.
        **settings: Fields of `agents.networks.policies.PolicySettings`: policy, embedding, hidden, layers, heads.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        make_model: Callable[[], LanguageModel] | None = None,
        **settings: Any,
    ) -> None:
        """Create the language model."""
        check_options("a language model", PolicySettings, settings)
        prefix = observation_space.get("prefix") if isinstance(observation_space, spaces.Dict) else observation_space
        if not isinstance(prefix, spaces.Box) or prefix.dtype.kind != "i":
            raise OptionError(
                f"prefixes are observations of TextGen-v0 with observation='tokens', and not of {observation_space!r}"
            )
        self.pad = int(prefix.high.flat[0])
        model = make_policy(PolicySettings(**settings), self.pad) if make_model is None else make_model()
        super().__init__(observation_space, features_dim=width_of_features(model, None))
        self.model = model
        self.positions = torch.zeros(0, dtype=torch.long)  # [n] of the next tokens, in the last call of forward()

    def forward(self, observations: Tensor | dict[str, Tensor]) -> Tensor:
        """Map observations, which Stable-Baselines3 has converted to floats, to features [n, H].

        Prefixes of the same sequence, as minibatches hold them, are read once, with the longest of them.
        """
        parts = observations if isinstance(observations, dict) else {"prefix": observations}
        tokens = parts["prefix"].long()
        prompts = parts["prompt"].long() if "prompt" in parts else None
        self.positions = (tokens != self.pad).sum(dim=1)
        rows, which = longest_prefixes(tokens, self.pad, prompts)
        longest = int(self.positions.max()) if len(tokens) else 0
        read = torch.cat([tokens, torch.full_like(tokens[:, :1], self.pad)], dim=1)[rows, : longest + 1]
        features = self.model.features(read, None if prompts is None else prompts[rows])  # [rows, longest + 1, H]
        found = features[which, self.positions]
        return found.to(torch.promote_types(found.dtype, torch.float32))  # as the critic's layers are

    def logits(self, features: Tensor) -> Tensor:
        """Map features [n, H] to the language model's logits [n, V]."""
        output = self.model.output
        if isinstance(output, (nn.Linear, LinearOutput)):
            features = features.to(output.weight.dtype)
        return output(features)


class Categorical(CategoricalDistribution):
    """Stable-Baselines3's distribution over tokens, with sampling that is fast for many of them."""

    def sample(self) -> Tensor:
        """Sample one token for each row, [n]."""
        return draw_tokens(self.distribution.logits)[0]


class LanguageActor(nn.Module):
    """The output of the extractor's language model, with a mask that bans tokens."""

    def __init__(self, extractor: PrefixExtractor, logit_mask: LogitMask | None) -> None:
        """Take the extractor, and the mask that is added to its logits."""
        super().__init__()
        self._extractor = (extractor,)  # in a tuple, because its parameters are the policy's already
        self._logit_mask = logit_mask

    def forward(self, features: Tensor) -> Tensor:
        """Map features [n, H] of the extractor's last call to logits [n, V]."""
        (extractor,) = self._extractor
        logits = extractor.logits(features)
        return logits if self._logit_mask is None else logits + self._logit_mask.at(extractor.positions)


class LanguageActorCritic(BasePolicy):
    """What turns an actor-critic policy of Stable-Baselines3 into one that is built around a language model.

    Args:
        *arguments: Stable-Baselines3's arguments.
        language_model: The actor: fields of PolicySettings, or a function that creates a model.
        critic: "shared" for values from the actor's own features, "separate" for a language model of the critic's own.
        critic_layers: Sizes of the layers between features and value.
        logit_mask: Added to the logits of the actor.
        **options: Stable-Baselines3's options.
    """

    features_extractor: PrefixExtractor
    share_features_extractor: bool
    mlp_extractor: MlpExtractor
    action_net: nn.Module
    value_net: nn.Linear

    def __init__(
        self,
        *arguments: Any,
        language_model: ModelSource | None = None,
        critic: str = "shared",
        critic_layers: tuple[int, ...] = (64,),
        logit_mask: LogitMask | None = None,
        **options: Any,
    ) -> None:
        """Let Stable-Baselines3 build the policy around the language model."""
        if critic not in ("shared", "separate"):
            raise OptionError(f"critic={critic!r} must be 'shared' or 'separate'")
        if not (language_model is None or callable(language_model) or isinstance(language_model, Mapping)):
            raise OptionError(
                f"language_model={language_model!r} must be a dict, as {{'policy': 'lstm', 'hidden': 64}}, "
                "or a function that makes a model"
            )
        self._logit_mask = logit_mask
        self._own_options = {
            "language_model": language_model,
            "critic": critic,
            "critic_layers": critic_layers,
            "logit_mask": logit_mask,
        }
        source = language_model or {}
        super().__init__(
            *arguments,
            net_arch={"pi": [], "vf": list(critic_layers)},
            ortho_init=False,
            features_extractor_class=PrefixExtractor,
            features_extractor_kwargs={"make_model": source} if callable(source) else dict(source),
            share_features_extractor=critic == "shared",
            **options,
        )

    def _build(self, lr_schedule: Schedule) -> None:
        """Put the language model's output where Stable-Baselines3 has built a layer of its own."""
        super()._build(lr_schedule)  # type: ignore[misc] # of the policy class that this one is combined with
        self._check_model()
        self.action_net = LanguageActor(self.features_extractor, self._logit_mask)
        if not self.share_features_extractor:
            remove_output(self.critic_model)
        rate = self.optimizer.param_groups[0]["lr"]
        self.optimizer = self.optimizer_class(self.parameters(), lr=rate, **self.optimizer_kwargs)  # type: ignore[call-arg]

    def _check_model(self) -> None:
        """Refuse a model that has other tokens, and one that actor and critic would share without being told to."""
        with torch.no_grad():
            size = self.language_model.start(1)[0].shape[1]
        if size != self.n_tokens:
            raise OptionError(f"language_model makes a model of {size} tokens; the task has {self.n_tokens}")
        if not self.share_features_extractor and self.critic_model is self.language_model:
            raise OptionError("critic='separate' needs a language_model that makes a new one each time it is called")

    @property
    def n_tokens(self) -> int:
        """Number of actions."""
        assert isinstance(self.action_space, spaces.Discrete)
        return int(self.action_space.n)

    @property
    def language_model(self) -> LanguageModel:
        """The actor."""
        return self.features_extractor.model

    @property
    def critic_model(self) -> LanguageModel:
        """The language model whose features the critic reads: the actor, or one of its own."""
        assert isinstance(self.vf_features_extractor, PrefixExtractor)
        return self.vf_features_extractor.model

    def set_training_mode(self, mode: bool) -> None:
        """Set training mode, but leave language models without dropout, as the rollouts were sampled."""
        super().set_training_mode(mode)
        self.language_model.eval()
        self.critic_model.eval()

    def load_language_model(self, model: nn.Module) -> None:
        """Copy the weights of a language model of the same kind to the actor, and to a critic of its own."""
        weights = model.state_dict()
        self.language_model.load_state_dict(weights)
        if not self.share_features_extractor:
            kept = self.critic_model.state_dict().keys()
            self.critic_model.load_state_dict({name: value for name, value in weights.items() if name in kept})

    def _get_constructor_parameters(self) -> dict[str, Any]:
        """Return what Stable-Baselines3 saves of the policy beside its weights."""
        parameters = super()._get_constructor_parameters()
        for name in ("net_arch", "ortho_init", "features_extractor_class", "features_extractor_kwargs"):
            del parameters[name]
        return parameters | self._own_options


class TextPolicy(LanguageActorCritic, ActorCriticPolicy):
    """An actor-critic policy for Stable-Baselines3's PPO and A2C whose actor is a language model.

    `PPO(TextPolicy, env, policy_kwargs={"language_model": {"policy": "transformer"}})`; then
    `model.policy.load_language_model(mle.policy)` starts it from a trained one.
    """

    def _build(self, lr_schedule: Schedule) -> None:
        """Use the fast distribution."""
        super()._build(lr_schedule)
        self.action_dist = Categorical(self.n_tokens)


def longest_prefixes(tokens: Tensor, pad: int, prompts: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Find the rows [m] of prefixes [n, T] that no other row continues; and for each prefix the one that does, [n].

    >>> longest_prefixes(torch.tensor([[4, 9], [4, 2], [9, 9], [3, 9]]), pad=9)
    (tensor([3, 1]), tensor([1, 1, 1, 0]))
    """
    keys = (tokens if prompts is None else torch.cat([prompts, tokens], dim=1)).cpu().numpy()
    order = np.lexsort(keys.T[::-1])  # PAD is the largest id, so what continues a prefix stands right before it
    before, after = keys[order[:-1]], keys[order[1:]]
    free = after == pad
    if prompts is not None:
        free[:, : prompts.shape[1]] = False
    leads = np.concatenate([[True], ((before != after) & ~free).any(axis=1)])[: len(keys)]
    which = np.empty(len(keys), dtype=np.int64)
    which[order] = np.cumsum(leads) - 1
    return torch.from_numpy(order[leads]).to(tokens.device), torch.from_numpy(which).to(tokens.device)


def remove_output(model: LanguageModel) -> None:
    """Remove the layer of a language model that maps features to logits, where it is one."""
    if isinstance(model.output, nn.Module):
        model.output = nn.Identity()
