"""Policies: their settings, how they are created, and wrappers that change what they sample.

Every policy is a `text_gym.language_model.LanguageModel`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from agents.networks.huggingface import HuggingFace, LinearOutput
from agents.networks.transformer import Transformer
from text_gym.arrays import outline
from text_gym.errors import OptionError
from text_gym.language_model import LSTM, LanguageModel, State
from text_gym.validation import finite_number, suggest, whole_number
from text_gym.vocab import Vocabulary

POLICIES = ("lstm", "transformer", "hf")
DTYPES = ("auto", "float32", "bfloat16")
ModelT = TypeVar("ModelT", bound=nn.Module)


@dataclass(frozen=True)
class PolicySettings:
    """Hyper-parameters of a policy's architecture."""

    policy: str = "lstm"
    """Kind of policy: "lstm", "transformer", or "hf" for a Hugging Face model with its own sizes and dropout."""
    embedding: int = 64
    """Size of the token embeddings; in a Transformer, the width of the residual stream."""
    hidden: int = 64
    """Size of the LSTM, or of the feed-forward layers of a Transformer."""
    layers: int = 2
    """Number of layers of a Transformer."""
    heads: int = 4
    """Number of attention heads of a Transformer."""
    initial_std: float | None = 0.1
    """Standard deviation of the initial weights of an LSTM; None keeps torch's. A Transformer always has torch's."""
    model: str = ""
    """Name or folder of the Hugging Face model, for policy="hf"."""
    lora: int = 0
    """Rank of the LoRA adapters that are trained instead of a Hugging Face model's weights; 0 trains the weights."""
    frozen_layers: int = 0
    """Number of first blocks of a Hugging Face model that are not trained. Above 0, its embeddings are not either."""
    dtype: str = "auto"
    """Type of a Hugging Face model's weights: float32, bfloat16, or auto, which is bfloat16 for lora on a GPU."""

    def __post_init__(self) -> None:
        """Check every value."""
        if self.policy not in POLICIES:
            raise OptionError(f"there is no policy {self.policy!r}." + suggest(str(self.policy), POLICIES))
        for name in ("embedding", "hidden", "layers", "heads"):
            whole_number(name, getattr(self, name), least=1)
        for name in ("lora", "frozen_layers"):
            whole_number(name, getattr(self, name), least=0)
        self._check_hugging_face()
        if self.initial_std is not None and finite_number("initial_std", self.initial_std) < 0:
            raise OptionError(f"initial_std must not be negative, and is {self.initial_std}")

    def _check_hugging_face(self) -> None:
        """Check that there is a model with policy="hf", and none of its settings with another policy."""
        if self.dtype not in DTYPES:
            raise OptionError(f"dtype={self.dtype!r} must be one of {DTYPES}")
        if not isinstance(self.model, str) or (self.policy == "hf" and not self.model):
            raise OptionError(f"policy='hf' needs a model, its name or its folder, and not model={self.model!r}")
        for name in ("model", "lora", "frozen_layers", "dtype"):
            value = getattr(self, name)
            if self.policy != "hf" and value not in ("", 0, "auto"):
                raise OptionError(f"{name}={value!r} is for policy='hf', and the policy is {self.policy!r}")


def make_policy(
    settings: PolicySettings, vocab: Vocabulary | int, dropout: float = 0.0, device: str | torch.device = "cpu"
) -> LanguageModel:
    """Create a policy with random weights, or load a Hugging Face model.

    Args:
        settings: Kind and sizes of the policy.
        vocab: Vocabulary of the task, or its size; the vocabulary tells a Hugging Face model its special tokens.
        dropout: Dropout of a policy with random weights.
        device: Device of the policy.
    """
    if settings.policy == "hf":
        from agents.networks.pretrained import load_policy

        return load_policy(settings.model, vocab, settings.lora, settings.frozen_layers, settings.dtype, device)
    vocab_size = vocab if isinstance(vocab, int) else len(vocab)
    if settings.policy == "transformer":
        sizes = (settings.embedding, settings.hidden, settings.layers, settings.heads)
        return Transformer(vocab_size, *sizes, dropout).to(device)
    policy = LSTM(vocab_size, settings.embedding, settings.hidden, dropout)
    if settings.initial_std is not None:
        for parameter in policy.parameters():
            nn.init.normal_(parameter, 0.0, settings.initial_std)
    return policy.to(device)


def architecture_of(policy: nn.Module) -> dict[str, str | int]:
    """Return the settings from which make_policy() creates a policy like this one."""
    if isinstance(policy, LSTM):
        return {"policy": "lstm", "embedding": policy.embed.embedding_dim, "hidden": policy.lstm.hidden_size}
    if isinstance(policy, Transformer):
        return {
            "policy": "transformer",
            "embedding": policy.embed.embedding_dim,
            "hidden": policy.inner,
            "layers": len(policy.blocks),
            "heads": policy.heads,
        }
    if isinstance(policy, HuggingFace):
        return {"policy": "hf", **policy.settings}
    raise OptionError(
        f"a warm start needs an LSTM, a Transformer or a Hugging Face model of `agents`, and not {policy!r}"
    )


def frozen_copy(policy: ModelT) -> ModelT:
    """Copy a model, with weights that are not trained and without dropout."""
    return copy.deepcopy(policy).requires_grad_(False).eval()


class Tempered(LanguageModel):
    """A language model whose logits are divided by a temperature, as sample(temperature=...) divides them."""

    def __init__(self, model: LanguageModel, temperature: float) -> None:
        """Wrap a model; nothing is copied."""
        super().__init__()
        self.model, self.temperature = model, temperature

    def start(self, n: int, prompts: Tensor | None = None) -> tuple[Tensor, State]:
        """Logits [n, V], divided by the temperature, and the model's state."""
        logits, state = self.model.start(n, prompts)
        return logits / self.temperature, state

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Logits [n, V], divided by the temperature, and the model's state."""
        logits, state = self.model.step(tokens, state)
        return logits / self.temperature, state

    def features(self, tokens: Tensor, prompts: Tensor | None = None) -> Tensor:
        """Features [n, T, H] of the model."""
        return self.model.features(tokens, prompts)

    def output(self, features: Tensor) -> Tensor:
        """Logits [..., V], divided by the temperature."""
        return self.model.output(features) / self.temperature

    def state_size(self, length: int) -> int:
        """Numbers in the state of one sequence after `length` tokens."""
        return self.model.state_size(length)


class LogitMask(NamedTuple):
    """What is added to logits so that banned tokens are never sampled: 0 where a token is allowed, else -inf."""

    early: Tensor
    """[V], at positions before min_length."""
    later: Tensor
    """[V], at all other positions."""
    min_length: int
    """The first position that `later` is for."""

    def __repr__(self) -> str:
        return outline(self)

    @classmethod
    def of_banned(cls, early: Tensor, later: Tensor, min_length: int) -> LogitMask:
        """Create a mask from boolean tensors [V] that are True at banned tokens."""
        zeros = torch.zeros(len(early), device=early.device)
        return cls(zeros.masked_fill(early, -torch.inf), zeros.masked_fill(later, -torch.inf), min_length)

    def at(self, positions: Tensor) -> Tensor:
        """Mask [n, V] at positions [n]; [V] if it is the same at all of them."""
        if not self.min_length:
            return self.later
        return torch.where((positions < self.min_length)[:, None], self.early, self.later)


class Restricted(LanguageModel):
    """A language model with a mask added to its logits, so that it never samples banned tokens."""

    def __init__(self, model: LanguageModel, logit_mask: LogitMask) -> None:
        """Wrap a model; nothing is copied."""
        super().__init__()
        self.model, self.logit_mask = model, logit_mask

    def start(self, n: int, prompts: Tensor | None = None) -> tuple[Tensor, tuple[State, Tensor]]:
        """Masked logits [n, V]; the state is the model's and the position [n] of the next token."""
        logits, state = self.model.start(n, prompts)
        position = torch.zeros(n, dtype=torch.long, device=logits.device)
        return logits + self.logit_mask.at(position), (state, position)

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, tuple[State, Tensor]]:
        """Masked logits [n, V]; the state is the model's and the position [n] of the next token."""
        inner, position = cast("tuple[State, Tensor]", state)
        logits, inner = self.model.step(tokens, inner)
        position = position + 1
        return logits + self.logit_mask.at(position), (inner, position)

    def features(self, tokens: Tensor, prompts: Tensor | None = None) -> Tensor:
        """Features [n, T, H] of the model."""
        return self.model.features(tokens, prompts)

    def output(self, features: Tensor) -> Tensor:
        """Masked logits [n, T, V]; the features [n, T, H] have to begin at the first position."""
        _, length, _ = features.shape
        return self.model.output(features) + self.logit_mask.at(torch.arange(length, device=features.device))

    def state_size(self, length: int) -> int:
        """Numbers in the state of one sequence after `length` tokens."""
        return self.model.state_size(length)


def width_of_features(policy: LanguageModel, prompts: Tensor | None) -> int:
    """Size H of a policy's features; prompts [n, P] for one that expects them."""
    if isinstance(policy.output, (nn.Linear, LinearOutput)):
        return int(policy.output.weight.shape[1])
    device = next(policy.parameters()).device
    with torch.no_grad():
        features = policy.features(torch.zeros(1, 2, dtype=torch.long, device=device), prompts)
    return int(features.shape[2])
