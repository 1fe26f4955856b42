"""Policies: settings, creation, and wrappers that change the sampling distribution.

Every policy is a `text_gym.language_model.LanguageModel`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from agents.networks.huggingface import HuggingFace, LinearOutput
from agents.networks.transformer import Transformer
from text_gym.arrays import outline
from text_gym.errors import OptionError
from text_gym.language_model import LSTM, LanguageModel, State
from text_gym.validation import finite_number, suggest, whole_number
from text_gym.vocab import Vocabulary

PolicyKind = Literal["lstm", "transformer", "hf"]
POLICIES: tuple[PolicyKind, ...] = ("lstm", "transformer", "hf")
Dtype = Literal["auto", "float32", "bfloat16"]
DTYPES: tuple[Dtype, ...] = ("auto", "float32", "bfloat16")
ModelT = TypeVar("ModelT", bound=nn.Module)


@dataclass(frozen=True)
class PolicySettings:
    """Hyperparameters of a policy's architecture."""

    policy: PolicyKind = "lstm"
    """Policy network: an LSTM, a Transformer, or a Hugging Face model (hf)."""
    embedding: int = 64
    """Size of the token embeddings. In a Transformer, this is the model width."""
    hidden: int = 64
    """Hidden size of the LSTM. In a Transformer, this is the size of the feed-forward layers."""
    layers: int = 2
    """Number of Transformer layers."""
    heads: int = 4
    """Number of attention heads per Transformer layer."""
    initial_std: float | None = 0.1
    """Standard deviation of the LSTM's initial weights; None for torch's defaults, which a Transformer always has."""
    model: str = ""
    """Name or local folder of the Hugging Face model. Required by policy="hf"."""
    lora: int = 0
    """Rank of LoRA adapters, which are trained in place of a Hugging Face model's weights; 0 trains the weights."""
    frozen_layers: int = 0
    """Number of first layers of a Hugging Face model to freeze; if above 0, the embeddings are frozen too."""
    dtype: Dtype = "auto"
    """Data type of a Hugging Face model's weights; auto is bfloat16 for LoRA on a GPU, and float32 otherwise."""

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise OptionError(f"there is no policy {self.policy!r}." + suggest(str(self.policy), POLICIES))
        for name in ("embedding", "hidden", "layers", "heads"):
            whole_number(name, getattr(self, name), least=1)
        for name in ("lora", "frozen_layers"):
            whole_number(name, getattr(self, name), least=0)
        self._check_hugging_face()
        if self.initial_std is not None and finite_number("initial_std", self.initial_std) < 0:
            raise OptionError(f"initial_std={self.initial_std} is negative; give a number of at least 0, or None")

    def _check_hugging_face(self) -> None:
        """Raise OptionError if policy="hf" lacks a model, or if another policy has settings of a Hugging Face model."""
        if self.dtype not in DTYPES:
            raise OptionError(f"there is no dtype {self.dtype!r}." + suggest(str(self.dtype), DTYPES))
        if not isinstance(self.model, str) or (self.policy == "hf" and not self.model):
            raise OptionError(
                f"policy='hf' needs a model, and model={self.model!r}; give the name or the folder of a Hugging Face "
                "model"
            )
        for name in ("model", "lora", "frozen_layers", "dtype"):
            value = getattr(self, name)
            if self.policy != "hf" and value not in ("", 0, "auto"):
                raise OptionError(
                    f"{name}={value!r} needs policy='hf', and policy={self.policy!r}; give policy='hf', or leave "
                    f"{name} out"
                )


def make_policy(
    settings: PolicySettings, vocab: Vocabulary | int, dropout: float = 0.0, device: str | torch.device = "cpu"
) -> LanguageModel:
    """Create a policy with random weights, or load a Hugging Face model.

    Args:
        settings: Kind and sizes of the policy.
        vocab: Vocabulary of the task, or its size. A Hugging Face model takes its special tokens from the vocabulary.
        dropout: Dropout rate of an LSTM or a Transformer.
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
    """Return the fields of PolicySettings that make_policy() needs to create a policy with the same architecture."""
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
        f"cannot copy the architecture of {policy!r}; for a warm start, give an agent that got its policy from "
        "make_policy()"
    )


def frozen_copy(policy: ModelT) -> ModelT:
    """Copy a model, freeze the weights of the copy and set it to evaluation mode."""
    return copy.deepcopy(policy).requires_grad_(False).eval()


class Tempered(LanguageModel):
    """Wrapper that divides the logits of a language model by a temperature."""

    def __init__(self, model: LanguageModel, temperature: float) -> None:
        super().__init__()
        self.model, self.temperature = model, temperature

    def start(self, n: int, prompts: Tensor | None = None) -> tuple[Tensor, State]:
        """Compute the tempered logits [n, V] of the first tokens, and the model's state."""
        logits, state = self.model.start(n, prompts)
        return logits / self.temperature, state

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Compute the tempered logits [n, V] after one more token of each sequence, [n], and the model's state."""
        logits, state = self.model.step(tokens, state)
        return logits / self.temperature, state

    def features(self, tokens: Tensor, prompts: Tensor | None = None) -> Tensor:
        """Compute the model's features [n, T, H]."""
        return self.model.features(tokens, prompts)

    def output(self, features: Tensor) -> Tensor:
        """Compute the tempered logits [..., V] of features [..., H]."""
        return self.model.output(features) / self.temperature

    def state_size(self, length: int) -> int:
        """Return how many numbers the state of one sequence of `length` tokens has."""
        return self.model.state_size(length)


class LogitMask(NamedTuple):
    """Additive mask of logits: 0 for allowed tokens, -inf for banned tokens."""

    early: Tensor
    """Mask [V] at positions before `min_length`."""
    later: Tensor
    """Mask [V] at all other positions."""
    min_length: int
    """First position with the mask `later`."""

    def __repr__(self) -> str:
        return outline(self)

    @classmethod
    def of_banned(cls, early: Tensor, later: Tensor, min_length: int) -> LogitMask:
        """Create a mask from boolean tensors [V] that are True at banned tokens."""
        zeros = torch.zeros(len(early), device=early.device)
        return cls(zeros.masked_fill(early, -torch.inf), zeros.masked_fill(later, -torch.inf), min_length)

    def at(self, positions: Tensor) -> Tensor:
        """Return the mask [n, V] at positions [n], or [V] if it is the same at all positions."""
        if not self.min_length:
            return self.later
        return torch.where((positions < self.min_length)[:, None], self.early, self.later)


class Restricted(LanguageModel):
    """Wrapper that adds a mask to the logits of a language model, so that banned tokens are never sampled."""

    def __init__(self, model: LanguageModel, logit_mask: LogitMask) -> None:
        super().__init__()
        self.model, self.logit_mask = model, logit_mask

    def start(self, n: int, prompts: Tensor | None = None) -> tuple[Tensor, tuple[State, Tensor]]:
        """Compute the masked logits [n, V] of the first tokens; the state is the model's and the next position [n]."""
        logits, state = self.model.start(n, prompts)
        position = torch.zeros(n, dtype=torch.long, device=logits.device)
        return logits + self.logit_mask.at(position), (state, position)

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, tuple[State, Tensor]]:
        """Compute the masked logits [n, V] after one more token of each sequence, [n], and the new state."""
        inner, position = cast("tuple[State, Tensor]", state)
        logits, inner = self.model.step(tokens, inner)
        position = position + 1
        return logits + self.logit_mask.at(position), (inner, position)

    def features(self, tokens: Tensor, prompts: Tensor | None = None) -> Tensor:
        """Compute the model's features [n, T, H]."""
        return self.model.features(tokens, prompts)

    def output(self, features: Tensor) -> Tensor:
        """Compute the masked logits [n, T, V] of features [n, T, H], which must start at the first position."""
        _, length, _ = features.shape
        return self.model.output(features) + self.logit_mask.at(torch.arange(length, device=features.device))

    def state_size(self, length: int) -> int:
        """Return how many numbers the state of one sequence of `length` tokens has."""
        return self.model.state_size(length)


def width_of_features(policy: LanguageModel, prompts: Tensor | None) -> int:
    """Return the size H of a policy's features. A policy for tasks with prompts needs example prompts [1, P]."""
    if isinstance(policy.output, (nn.Linear, LinearOutput)):
        return int(policy.output.weight.shape[1])
    device = next(policy.parameters()).device
    with torch.no_grad():
        features = policy.features(torch.zeros(1, 2, dtype=torch.long, device=device), prompts)
    return int(features.shape[2])
