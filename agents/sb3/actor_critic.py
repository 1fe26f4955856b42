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
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from agents.networks.policies import LogitMask, PolicySettings, make_policy, width_of_features
from text_gym.errors import OptionError
from text_gym.language_model import LanguageModel, draw_tokens
from text_gym.validation import check_options

ModelSource = Mapping[str, Any] | Callable[[], LanguageModel]
"""Fields of PolicySettings, of which a model with random weights is made; or a function that makes one."""


class PrefixExtractor(BaseFeaturesExtractor):
    """What a language model knows after reading a prefix, behind its prompt if there is one: [n, H].

    Args:
        observation_space: Of TextGen-v0.
        make_model: Makes the language model; if not given, `settings` say what it is.
        **settings: Those of `agents.networks.policies.PolicySettings`: policy, embedding, hidden, layers, heads.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        make_model: Callable[[], LanguageModel] | None = None,
        **settings: Any,
    ) -> None:
        """Make the language model, and see how wide its features are."""
        check_options("a language model", PolicySettings, settings)
        of_parts = isinstance(observation_space, spaces.Dict)
        prefix = observation_space.get("prefix") if of_parts else observation_space  # type: ignore[attr-defined]
        if not isinstance(prefix, spaces.Box) or prefix.dtype.kind != "i":
            raise OptionError(f"prefixes are observations of TextGen-v0, and not of {observation_space!r}")
        self.pad = int(prefix.high.flat[0])
        model = make_policy(PolicySettings(**settings), self.pad) if make_model is None else make_model()
        super().__init__(observation_space, features_dim=width_of_features(model, None))
        self.model = model
        self.places = torch.zeros(0, dtype=torch.long)  # [n] of the tokens that come next, in the last call

    def forward(self, observations: Tensor | dict[str, Tensor]) -> Tensor:
        """Observations, as Stable-Baselines3 has made floats of them, to features [n, H].

        Prefixes of one sequence, as minibatches have them, are read once, with the longest of them.
        """
        parts = observations if isinstance(observations, dict) else {"prefix": observations}
        tokens = parts["prefix"].long()
        prompts = parts["prompt"].long() if "prompt" in parts else None
        self.places = (tokens != self.pad).sum(dim=1)
        rows, chosen = longest_of_their_kind(tokens, self.pad, prompts)
        longest = int(self.places.max()) if len(tokens) else 0
        read = torch.cat([tokens, torch.full_like(tokens[:, :1], self.pad)], dim=1)[rows, : longest + 1]
        model: Any = self.model
        features: Tensor = model.features(read, None if prompts is None else prompts[rows])
        found = features[chosen, self.places]  # from [rows, longest + 1, H], before each token
        return found.to(torch.promote_types(found.dtype, torch.float32))  # as the critic's layers are

    def logits(self, features: Tensor) -> Tensor:
        """The language model's, [n, V], of features [n, H]."""
        model: Any = self.model
        logits: Tensor = model.output(features.to(getattr(model.output, "weight", features).dtype))
        return logits


class Categorical(CategoricalDistribution):
    """Stable-Baselines3's distribution over tokens, with the draw that is fast for many of them."""

    def sample(self) -> Tensor:
        """One token for each row, [n]."""
        return draw_tokens(self.distribution.logits)[0]


class LanguageActor(nn.Module):
    """The output of the extractor's language model, with a mask that bans tokens."""

    def __init__(self, extractor: PrefixExtractor, logit_mask: LogitMask | None) -> None:
        """Take the extractor, and the mask that is added to its logits."""
        super().__init__()
        self._extractor: Any = (extractor,)  # in a tuple, because its parameters are the policy's already
        self._logit_mask = logit_mask

    def forward(self, features: Tensor) -> Tensor:
        """Features [n, H] of the extractor's last call to logits [n, V]."""
        (extractor,) = self._extractor
        logits: Tensor = extractor.logits(features)
        return logits if self._logit_mask is None else logits + self._logit_mask.at(extractor.places)


class LanguageActorCritic:
    """What makes an actor-critic policy of Stable-Baselines3 one that is built around a language model.

    Args:
        *arguments: As Stable-Baselines3 gives them.
        language_model: What the actor is: fields of PolicySettings, or a function that makes a model.
        critic: "shared" for values from the actor's own features, "separate" for a model of the critic's own.
        critic_layers: Sizes of the layers between features and value.
        logit_mask: Added to the logits of the actor.
        **options: As Stable-Baselines3 gives them.
    """

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
        self._own: dict[str, Any] = {"language_model": language_model, "critic": critic}
        self._own |= {"critic_layers": critic_layers, "logit_mask": logit_mask}
        source = language_model or {}
        built: dict[str, Any] = {
            "net_arch": {"pi": [], "vf": list(critic_layers)},
            "ortho_init": False,
            "features_extractor_class": PrefixExtractor,
            "features_extractor_kwargs": {"make_model": source} if callable(source) else dict(source),
            "share_features_extractor": critic == "shared",
        }
        super().__init__(*arguments, **options, **built)

    def _build(self, lr_schedule: Any) -> None:
        """Put the language model's output where Stable-Baselines3 has built a layer of its own."""
        super()._build(lr_schedule)  # type: ignore[misc]
        policy: Any = self
        self._check_model()
        policy.action_net = LanguageActor(policy.features_extractor, self._own["logit_mask"])
        if not policy.share_features_extractor:
            policy.vf_features_extractor.model = without_output(policy.vf_features_extractor.model)
        rate = policy.optimizer.param_groups[0]["lr"]
        policy.optimizer = policy.optimizer_class(policy.parameters(), lr=rate, **policy.optimizer_kwargs)

    def _check_model(self) -> None:
        """Refuse a model that has other tokens, and one that actor and critic would share without being told to."""
        policy: Any = self
        with torch.no_grad():
            size = self.language_model.start(1)[0].shape[1]
        if size != policy.action_space.n:
            raise OptionError(f"language_model makes a model of {size} tokens; the task has {policy.action_space.n}")
        if not policy.share_features_extractor and policy.vf_features_extractor.model is self.language_model:
            raise OptionError("critic='separate' needs a language_model that makes a new one each time it is called")

    @property
    def language_model(self) -> Any:
        """The actor: a `text_gym.language_model.LanguageModel`."""
        policy: Any = self
        return policy.features_extractor.model

    def set_training_mode(self, mode: bool) -> None:
        """Train, or not; language models stay without dropout, so that what is learned from is what was written."""
        super().set_training_mode(mode)  # type: ignore[misc]
        policy: Any = self
        for extractor in {policy.pi_features_extractor, policy.vf_features_extractor}:
            extractor.model.eval()

    def begin_with(self, model: nn.Module) -> None:
        """Give the actor, and a critic of its own, the weights of a language model of the same kind."""
        policy: Any = self
        weights = model.state_dict()
        self.language_model.load_state_dict(weights)
        if not policy.share_features_extractor:
            of_critic = policy.vf_features_extractor.model
            kept = of_critic.state_dict().keys()
            of_critic.load_state_dict({name: value for name, value in weights.items() if name in kept})

    def _get_constructor_parameters(self) -> dict[str, Any]:
        """What Stable-Baselines3 saves of the policy beside its weights."""
        parameters: dict[str, Any] = super()._get_constructor_parameters()  # type: ignore[misc]
        ours = ("net_arch", "ortho_init", "features_extractor_class", "features_extractor_kwargs")
        return {name: value for name, value in parameters.items() if name not in ours} | self._own


class TextPolicy(LanguageActorCritic, ActorCriticPolicy):
    """An actor-critic policy for Stable-Baselines3's PPO and A2C whose actor is a language model.

    `PPO(TextPolicy, env, policy_kwargs={"language_model": {"policy": "transformer"}})`; then
    `model.policy.begin_with(mle.policy)` starts it from a trained one.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """See `LanguageActorCritic`."""
        super().__init__(*arguments, **options)
        self.action_dist = Categorical(int(self.action_space.n))  # type: ignore[attr-defined]


def longest_of_their_kind(tokens: Tensor, pad: int, prompts: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Of prefixes [n, T] the rows [m] that no other row goes on from; and for each prefix which of these does, [n].

    >>> longest_of_their_kind(torch.tensor([[4, 9], [4, 2], [9, 9], [3, 9]]), pad=9)
    (tensor([3, 1]), tensor([1, 1, 1, 0]))
    """
    keys = (tokens if prompts is None else torch.cat([prompts, tokens], dim=1)).cpu().numpy()
    order = np.lexsort(keys.T[::-1])  # PAD is the largest id, so what goes on from a prefix stands right before it
    before, after = keys[order[:-1]], keys[order[1:]]
    free = after == pad
    if prompts is not None:
        free[:, : prompts.shape[1]] = False
    leads = np.concatenate([[True], ((before != after) & ~free).any(axis=1)])[: len(keys)]
    which = np.empty(len(keys), dtype=np.int64)
    which[order] = np.cumsum(leads) - 1
    return torch.from_numpy(order[leads]).to(tokens.device), torch.from_numpy(which).to(tokens.device)


def without_output(model: Any) -> Any:
    """A language model that is only to give features, without the layer that makes logits of them."""
    if isinstance(getattr(model, "output", None), nn.Module):
        model.output = nn.Identity()
    return model
