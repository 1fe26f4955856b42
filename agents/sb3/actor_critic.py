"""Language models in Stable-Baselines3: a features extractor for prefixes, and actor-critic policies.

>>> import gymnasium as gym, text_gym
>>> from stable_baselines3 import PPO
>>> env = gym.make("TextGen-v0", task="answers")
>>> features = {"features_extractor_class": PrefixExtractor, "features_extractor_kwargs": {"policy": "transformer"}}
>>> model = PPO("MultiInputPolicy", env, policy_kwargs=features, n_steps=8, batch_size=8)  # actor of Stable-Baselines3
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
"""Fields of PolicySettings, or a function that creates a language model."""


class PrefixExtractor(BaseFeaturesExtractor):
    """Features extractor: the features [n, H] of a language model that has read prompt and prefix.

    Args:
        observation_space: Observation space of TextGen-v0.
        make_model: Function that creates the language model. If None, `settings` define it.
        **settings: Fields of `agents.networks.policies.PolicySettings`: policy, embedding, hidden, layers, heads.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        make_model: Callable[[], LanguageModel] | None = None,
        **settings: Any,
    ) -> None:
        check_options("a language model", PolicySettings, settings)
        prefix = observation_space.get("prefix") if isinstance(observation_space, spaces.Dict) else observation_space
        if not isinstance(prefix, spaces.Box) or prefix.dtype.kind != "i":
            raise OptionError(
                f"{observation_space!r} is not a space of prefixes; use observations of TextGen-v0 with "
                "observation='tokens'"
            )
        self.pad = int(prefix.high.flat[0])
        model = make_policy(PolicySettings(**settings), self.pad) if make_model is None else make_model()
        super().__init__(observation_space, features_dim=width_of_features(model, None))
        self.model = model
        self.positions = torch.zeros(0, dtype=torch.long)  # positions [n] of the next tokens in the last forward pass

    def forward(self, observations: Tensor | dict[str, Tensor]) -> Tensor:
        """Map observations, which Stable-Baselines3 converts to floats, to features [n, H].

        A minibatch has many prefixes of the same sequence. The language model reads only the longest of them.
        """
        parts = observations if isinstance(observations, dict) else {"prefix": observations}
        tokens = parts["prefix"].long()
        prompts = parts["prompt"].long() if "prompt" in parts else None
        self.positions = (tokens != self.pad).sum(dim=1)
        rows, which = longest_prefixes(tokens, self.pad, prompts)
        longest = int(self.positions.max()) if len(tokens) else 0
        sequences = torch.cat([tokens, torch.full_like(tokens[:, :1], self.pad)], dim=1)[rows, : longest + 1]
        features = self.model.features(sequences, None if prompts is None else prompts[rows])  # [rows, longest + 1, H]
        features = features[which, self.positions]  # [n, H]
        return features.to(torch.promote_types(features.dtype, torch.float32))  # the critic's layers are float32

    def logits(self, features: Tensor) -> Tensor:
        """Map features [n, H] to the logits [n, V] of the language model."""
        output = self.model.output
        if isinstance(output, (nn.Linear, LinearOutput)):
            features = features.to(output.weight.dtype)
        return output(features)


class Categorical(CategoricalDistribution):
    """Categorical distribution with fast sampling for large vocabularies."""

    def sample(self) -> Tensor:
        """Sample one token for each row, [n]."""
        return draw_tokens(self.distribution.logits)[0]


class LanguageActor(nn.Module):
    """Actor network: the output layer of the extractor's language model, with an optional mask of banned tokens."""

    def __init__(self, extractor: PrefixExtractor, logit_mask: LogitMask | None) -> None:
        super().__init__()
        self._extractor = (extractor,)  # a tuple, so that its parameters are not registered twice in the policy
        self._logit_mask = logit_mask

    def forward(self, features: Tensor) -> Tensor:
        """Map the features [n, H] of the extractor's last forward pass to logits [n, V]."""
        (extractor,) = self._extractor
        logits = extractor.logits(features)
        return logits if self._logit_mask is None else logits + self._logit_mask.at(extractor.positions)


class LanguageActorCritic(BasePolicy):
    """Mixin for actor-critic policies of Stable-Baselines3, whose actor becomes a language model.

    Args:
        *arguments: Positional arguments of the Stable-Baselines3 policy.
        language_model: Language model of the actor: fields of PolicySettings, or a function that creates a model.
        critic: Language model whose features the critic reads: "shared" for the actor, "separate" for a second one.
        critic_layers: Sizes of the hidden layers of the critic.
        logit_mask: Mask that is added to the logits of the actor.
        **options: Keyword arguments of the Stable-Baselines3 policy.
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
        if critic not in ("shared", "separate"):
            raise OptionError(f"there is no critic {critic!r}; give 'shared' or 'separate'")
        if not (language_model is None or callable(language_model) or isinstance(language_model, Mapping)):
            raise OptionError(
                f"language_model={language_model!r} is neither a dict nor a function; give for example "
                "{'policy': 'lstm', 'hidden': 64}, or a function that creates a model"
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
        """Replace the actor network of Stable-Baselines3 by the language model's output."""
        super()._build(lr_schedule)  # type: ignore[misc] # the policy class that the mixin is combined with
        self._check_model()
        self.action_net = LanguageActor(self.features_extractor, self._logit_mask)
        if not self.share_features_extractor:
            remove_output(self.critic_model)
        rate = self.optimizer.param_groups[0]["lr"]
        self.optimizer = self.optimizer_class(self.parameters(), lr=rate, **self.optimizer_kwargs)  # type: ignore[call-arg]

    def _check_model(self) -> None:
        """Raise OptionError for a model with other tokens, or if a separate critic would share the actor's model."""
        with torch.no_grad():
            size = self.language_model.start(1)[0].shape[1]
        if size != self.n_tokens:
            raise OptionError(
                f"language_model creates a model of {size} tokens, and the task has {self.n_tokens}; create one with "
                f"{self.n_tokens} tokens"
            )
        if not self.share_features_extractor and self.critic_model is self.language_model:
            raise OptionError(
                "critic='separate' needs two models, and language_model returns the same one twice; create a new model "
                "in every call"
            )

    @property
    def n_tokens(self) -> int:
        """Number of tokens, which are the actions."""
        assert isinstance(self.action_space, spaces.Discrete)
        return int(self.action_space.n)

    @property
    def language_model(self) -> LanguageModel:
        """Language model of the actor."""
        return self.features_extractor.model

    @property
    def critic_model(self) -> LanguageModel:
        """Language model whose features the critic reads: the actor, or a second model."""
        assert isinstance(self.vf_features_extractor, PrefixExtractor)
        return self.vf_features_extractor.model

    def set_training_mode(self, mode: bool) -> None:
        """Set training mode, but keep language models in evaluation mode: rollouts are sampled without dropout."""
        super().set_training_mode(mode)
        self.language_model.eval()
        self.critic_model.eval()

    def load_language_model(self, model: nn.Module) -> None:
        """Copy the weights of a language model with the same architecture to the actor, and to a separate critic."""
        weights = model.state_dict()
        self.language_model.load_state_dict(weights)
        if not self.share_features_extractor:
            names = self.critic_model.state_dict().keys()  # the critic has no output layer
            self.critic_model.load_state_dict({name: value for name, value in weights.items() if name in names})

    def _get_constructor_parameters(self) -> dict[str, Any]:
        """Return the constructor arguments that Stable-Baselines3 saves with the policy."""
        parameters = super()._get_constructor_parameters()
        for name in ("net_arch", "ortho_init", "features_extractor_class", "features_extractor_kwargs"):
            del parameters[name]
        return parameters | self._own_options


class TextPolicy(LanguageActorCritic, ActorCriticPolicy):
    """Actor-critic policy for Stable-Baselines3's PPO and A2C, whose actor is a language model.

    Create the algorithm with `PPO(TextPolicy, env, policy_kwargs={"language_model": {"policy": "transformer"}})`. For a
    warm start, call `model.policy.load_language_model(mle.policy)`.
    """

    def _build(self, lr_schedule: Schedule) -> None:
        """Build the policy with a distribution that samples fast."""
        super()._build(lr_schedule)
        self.action_dist = Categorical(self.n_tokens)


def longest_prefixes(tokens: Tensor, pad: int, prompts: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Find the longest prefixes of a batch, of which all other prefixes are beginnings.

    Args:
        tokens: Prefixes [n, T], padded with `pad`.
        pad: PAD, the largest id.
        prompts: Prompts [n, P]; prefixes of different prompts are different.

    Returns:
        Rows [m] of the longest prefixes, and for each prefix the index [n] of its longest prefix among them.

    >>> longest_prefixes(torch.tensor([[4, 9], [4, 2], [9, 9], [3, 9]]), pad=9)
    (tensor([3, 1]), tensor([1, 1, 1, 0]))
    """
    keys = (tokens if prompts is None else torch.cat([prompts, tokens], dim=1)).cpu().numpy()
    order = np.lexsort(keys.T[::-1])  # PAD is the largest id, so continuations of a prefix come right before it
    before, after = keys[order[:-1]], keys[order[1:]]
    padding = after == pad
    if prompts is not None:
        padding[:, : prompts.shape[1]] = False
    longest = np.concatenate([[True], ((before != after) & ~padding).any(axis=1)])[: len(keys)]
    which = np.empty(len(keys), dtype=np.int64)
    which[order] = np.cumsum(longest) - 1
    return torch.from_numpy(order[longest]).to(tokens.device), torch.from_numpy(which).to(tokens.device)


def remove_output(model: LanguageModel) -> None:
    """Replace the output layer of a language model, if it is a module, by the identity."""
    if isinstance(model.output, nn.Module):
        model.output = nn.Identity()
