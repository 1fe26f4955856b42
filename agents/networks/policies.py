"""The policies that learners train: their sizes as settings, and how they are kept to what may be written.

Every policy is a `text_gym.language_model.LanguageModel` with features() and an `output` that makes logits of them.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from agents.networks.huggingface import HuggingFace
from agents.networks.transformer import Transformer
from text_gym.errors import OptionError
from text_gym.language_model import LSTM, LanguageModel, State, log_prob_of_tokens
from text_gym.validation import finite_number, suggest, whole_number
from text_gym.vocab import Vocabulary

POLICIES = ("lstm", "transformer", "hf")
DTYPES = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class PolicySettings:
    """What policy a learner trains."""

    policy: str = "lstm"
    """"lstm", "transformer", or "hf" for a Hugging Face model, which has its own sizes and its own dropout."""
    embedding: int = 64
    """Size of a token's embedding; the width of a Transformer."""
    hidden: int = 64
    """Size of the LSTM; of a Transformer's inner layers."""
    layers: int = 2
    """Layers of a Transformer."""
    heads: int = 4
    """Heads of a Transformer."""
    initial_std: float | None = 0.1
    """Standard deviation of an LSTM's initial weights; torch's own if None, as a Transformer's always are."""
    model: str = ""
    """The Hugging Face model that policy="hf" begins with: a name, or a folder."""
    lora: int = 0
    """The rank of the changes to a Hugging Face model's attention that are trained in place of its weights, if any."""
    frozen_layers: int = 0
    """So many first blocks of a Hugging Face model are not trained; with at least one, its embeddings neither."""
    dtype: str = "auto"
    """Of a Hugging Face model's weights: float32, bfloat16, or auto for bfloat16 with lora on a GPU that has it."""

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        if self.policy not in POLICIES:
            raise OptionError(f"there is no policy {self.policy!r}." + suggest(str(self.policy), POLICIES))
        for name in ("embedding", "hidden", "layers", "heads"):
            whole_number(name, getattr(self, name), least=1)
        for name in ("lora", "frozen_layers"):
            whole_number(name, getattr(self, name), least=0)
        self._check_model()
        if self.initial_std is not None and finite_number("initial_std", self.initial_std) < 0:
            raise OptionError(f"initial_std must not be negative, and is {self.initial_std}")

    def _check_model(self) -> None:
        """Refuse a Hugging Face policy without a model, and a model or its settings with another policy."""
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
) -> nn.Module:
    """A policy with random weights, or those of a Hugging Face model.

    Args:
        settings: What kind of policy.
        vocab: The task's, or how many tokens it has; a Hugging Face model's special tokens are found in the former.
        dropout: Of a policy with random weights.
        device: Where it will be.
    """
    if settings.policy == "hf":
        from agents.networks.pretrained import load_policy

        own = (settings.model, vocab, settings.lora, settings.frozen_layers, settings.dtype, device)
        return load_policy(*own)
    vocab_size = vocab if isinstance(vocab, int) else len(vocab)
    if settings.policy == "transformer":
        sizes = (settings.embedding, settings.hidden, settings.layers, settings.heads)
        return Transformer(vocab_size, *sizes, dropout).to(device)
    policy = LSTM(vocab_size, settings.embedding, settings.hidden, dropout)
    if settings.initial_std is not None:
        for parameter in policy.parameters():
            nn.init.normal_(parameter, 0.0, settings.initial_std)
    return policy.to(device)


def architecture_of(policy: Any) -> dict[str, Any]:
    """The settings that make a policy like this one."""
    if isinstance(policy, LSTM):
        return {"policy": "lstm", "embedding": policy.embed.embedding_dim, "hidden": policy.lstm.hidden_size}
    if isinstance(policy, Transformer):
        sizes = {"embedding": policy.embed.embedding_dim, "hidden": policy.inner, "heads": policy.heads}
        return {"policy": "transformer", "layers": len(policy.blocks), **sizes}
    if isinstance(policy, HuggingFace):
        return {"policy": "hf", **policy.settings}
    raise OptionError(
        f"only an LSTM, a Transformer or a Hugging Face model of `agents` can be gone on from, not {policy!r}"
    )


def frozen_copy(policy: Any) -> Any:
    """A copy that does not learn."""
    return copy.deepcopy(policy).requires_grad_(False).eval()


class Tempered:
    """A language model whose logits are divided by a temperature, as sample(temperature=...) draws."""

    def __init__(self, model: Any, temperature: float) -> None:
        """Keep the parts."""
        self.model, self.temperature = model, temperature

    def start(self, n: int, prompts: Tensor | None = None) -> tuple[Tensor, State]:
        """As the model, sharper or flatter."""
        logits, state = self.model.start(n, prompts)
        return logits / self.temperature, state

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """As the model, sharper or flatter."""
        logits, state = self.model.step(tokens, state)
        return logits / self.temperature, state

    def features(self, tokens: Tensor, prompts: Tensor | None = None) -> Tensor:
        """What the model's output layer reads before each token, [n, T, H]."""
        features: Tensor = self.model.features(tokens, prompts)
        return features

    def output(self, features: Tensor) -> Tensor:
        """The logits, [n, T, V]."""
        logits: Tensor = self.model.output(features)
        return logits / self.temperature

    def log_prob(self, tokens: Tensor, valid_mask: Tensor, prompts: Tensor | None = None) -> Tensor:
        """The log-probability of each token, [n, T]."""
        return log_prob_of_tokens(self.output(self.features(tokens, prompts)), tokens, valid_mask)


class Restricted:
    """A language model as it writes where some tokens are banned, and EOS before the least length.

    Args:
        model: What is restricted.
        early: True at the tokens that may not be written at places before `min_length`, [V].
        later: The same from there on, [V].
        min_length: How many tokens a sequence has at least before EOS.
    """

    def __init__(self, model: LanguageModel, early: Tensor, later: Tensor, min_length: int) -> None:
        """Keep the parts."""
        self.model, self.min_length = model, min_length
        zeros = torch.zeros(len(early), device=early.device)
        self._early, self._later = (zeros.masked_fill(mask, -torch.inf) for mask in (early, later))
        self.forbidden = self._early, self._later, min_length  # what is added to logits, and where it changes
        self.state_size = getattr(model, "state_size", lambda length: 1)

    def penalty(self, length: int) -> Tensor:
        """What is added to the logits of each place: 0, or minus infinity, [T, V]."""
        early = torch.arange(length, device=self._early.device) < self.min_length
        return torch.where(early[:, None], self._early, self._later)

    def start(self, n: int, prompts: Tensor | None = None) -> tuple[Tensor, State]:
        """As the model, without what may not be written."""
        logits, state = self.model.start(n, prompts)
        place = torch.zeros(n, dtype=torch.long, device=logits.device)
        return logits + (self._early if self.min_length else self._later), (state, place)

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """As the model, without what may not be written."""
        logits, inner = self.model.step(tokens, state[0])
        place = state[1] + 1
        if not self.min_length:
            return logits + self._later, (inner, place)
        penalty = torch.where((place < self.min_length)[:, None], self._early, self._later)
        return logits + penalty, (inner, place)

    def log_prob(self, tokens: Tensor, valid_mask: Tensor, prompts: Tensor | None = None) -> Tensor:
        """The log-probability of each token as it is written, [n, T]: minus infinity for what may not be."""
        model: Any = self.model
        logits = model.output(model.features(tokens, prompts)) + self.penalty(tokens.shape[1])  # [n, T, V]
        return log_prob_of_tokens(logits, tokens, valid_mask)
