"""Hugging Face models as policies: causal and encoder-decoder language models with a key-value cache.

The logits of most models are a linear function of the last hidden states, up to a scale. `load_policy` finds the scale
by comparing with the logits of the model. If the function is not linear, the features of a policy are its logits.
"""

from __future__ import annotations

import copy
import inspect
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys

from text_gym.errors import OptionError
from text_gym.language_model import LanguageModel, State

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.cache_utils import DynamicCache

Cache = tuple[tuple[Tensor, Tensor], ...]
"""Keys and values of each layer for the L tokens read so far, each [n, heads, L, size of a head]."""


@dataclass(frozen=True)
class LinearOutput:
    """Output layer of a model, restricted to the tokens of the task."""

    weight: Tensor
    """Weight [V, H]."""
    bias: Tensor | None
    """Bias [V]."""

    def __call__(self, features: Tensor) -> Tensor:
        """Compute the logits [..., V] of features [..., H]."""
        return nn.functional.linear(features, self.weight, self.bias).float()


class HuggingFace(LanguageModel):
    """Base class of `Causal` and `EncoderDecoder`. `load_policy` creates the policies.

    All weights are trained, unless freeze() is called. state_dict() has only the trained weights: frozen weights are in
    the folder that the model was loaded from, and copies of the policy share them.

    Args:
        model: A transformers model with a language-model head.
        size: Number of tokens of the task; the model has at least as many.
        settings: Arguments of `load_policy` that create a policy with the same architecture.
    """

    def __init__(self, model: PreTrainedModel, size: int, settings: Mapping[str, str | int]) -> None:
        super().__init__()
        self.model = model
        self.size = size
        self.settings = dict(settings)
        self.scale: float | None = None  # factor of the hidden states before the output layer; None if it is not linear
        self.numbers_per_token = 1  # size of the state, per token of a sequence
        self.max_positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.trained = frozenset(name for name, _ in self.named_parameters())
        self.frozen_digest: str | None = None  # hash of the frozen weights, if there are any
        self.register_load_state_dict_post_hook(_ignore_missing_frozen)  # type: ignore[no-untyped-call]

    @abstractmethod
    def _context(self, n: int, prompts: Tensor | None) -> tuple[Tensor, Tensor, State]:
        """Return the tokens before the first one [n, B], their valid mask [n, B], and the state before them."""

    @abstractmethod
    def _read(self, tokens: Tensor, valid: Tensor, state: State, keep: bool) -> tuple[Tensor, State]:
        """Read tokens [n, S] with valid mask [n, S] after a state.

        Returns:
            Features [n, S, H], and with `keep` the new state.
        """

    @abstractmethod
    def stacks(self) -> list[nn.Module]:
        """Return the encoder and decoder modules, each of which has a list of layers."""

    @property
    def output(self) -> Callable[[Tensor], Tensor]:  # type: ignore[override]  # a property, because LoRA changes weights
        """Function from features [..., H] to logits [..., V]; the identity if the output layer is not linear."""
        if self.scale is None:
            return torch.Tensor.float
        head = output_layer(self.model)
        assert head is not None
        weight = head.weight if len(head.weight) == self.size else head.weight[: self.size]
        biases = [getattr(head, "bias", None), getattr(self.model, "final_logits_bias", None)]
        parts = [bias.flatten()[: self.size].to(weight.dtype) for bias in biases if bias is not None]
        return LinearOutput(weight, sum(parts[1:], start=parts[0]) if parts else None)

    def start(self, n: int, prompts: Tensor | None = None) -> tuple[Tensor, State]:
        """Compute the logits [n, V] of the first tokens of n sequences, and their state."""
        if not n:  # transformers models do not support empty batches
            weight = self.embeddings
            return weight.new_zeros(0, self.size, dtype=torch.float32), (weight.new_zeros(0, 0, dtype=torch.bool),)
        hidden, state = self._read(*self._context(n, prompts), keep=True)
        return self.output(hidden[:, -1]), state

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Compute the logits [n, V] after one more token of each prefix, [n], and the new state."""
        if not len(tokens):
            return self.start(0)
        column = tokens[:, None].clamp(max=self.size - 1)
        hidden, state = self._read(column, torch.ones_like(column, dtype=torch.bool), state, keep=True)
        return self.output(hidden[:, -1]), state

    def features(self, tokens: Tensor, prompts: Tensor | None = None) -> Tensor:
        """Compute the scaled hidden states [n, T, H], or logits [n, T, V], before each of the tokens [n, T]."""
        n, length = tokens.shape
        if not n:
            width = self.output.weight.shape[1] if isinstance(self.output, LinearOutput) else self.size
            return self.embeddings.new_zeros(0, length, width)
        first, valid, state = self._context(n, prompts)
        rest = tokens[:, :-1].clamp(max=self.size - 1)
        valid = torch.cat([valid, torch.ones_like(rest, dtype=torch.bool)], dim=1)
        hidden, _ = self._read(torch.cat([first, rest], dim=1), valid, state, keep=False)
        return hidden[:, first.shape[1] - 1 :][:, :length]

    def state_size(self, length: int) -> int:
        """Return how many numbers the state of one sequence of `length` tokens has."""
        return self.numbers_per_token * (1 + length)

    @property
    def embeddings(self) -> Tensor:
        """Weights of the input embeddings; they have the model's device and data type."""
        return input_embeddings(self.model).weight

    def _check_length(self, length: int) -> None:
        if self.max_positions is not None and length > self.max_positions:
            raise OptionError(
                f"model={self.settings.get('model')!r} takes at most {self.max_positions} tokens, and prompt and text "
                f"together have {length}; make the task with a smaller max_length or max_prompt_length"
            )

    def freeze(self, layers: int) -> None:
        """Freeze the first `layers` layers of each stack and, if `layers` is above 0, all embeddings."""
        if layers:
            for module in self.modules():
                if isinstance(module, nn.Embedding):
                    module.requires_grad_(False)
            for stack in self.stacks():
                blocks = next(module for module in stack.modules() if isinstance(module, nn.ModuleList))
                if layers > len(blocks):
                    raise OptionError(
                        f"frozen_layers={layers} is more than the {len(blocks)} layers of the model; lower it"
                    )
                for block in blocks[:layers]:
                    block.requires_grad_(False)
        self.trained = frozenset(name for name, weight in self.named_parameters() if weight.requires_grad)
        if not self.trained:
            raise OptionError(f"frozen_layers={layers} freezes all weights; give a smaller number")

    def state_dict(self, *args: Any, **options: Any) -> Any:
        """Return the trained weights."""
        state = super().state_dict(*args, **options)
        prefix = options.get("prefix", "")
        for key in [key for key in state if key.startswith(prefix) and key[len(prefix) :] not in self.trained]:
            del state[key]
        return state

    def __deepcopy__(self, memo: dict[int, Any]) -> HuggingFace:
        """Copy the trained weights, and share the frozen ones."""
        memo |= {id(weight): weight for name, weight in self.named_parameters() if name not in self.trained}
        result = memo[id(self)] = self.__class__.__new__(self.__class__)
        result.__dict__ = copy.deepcopy(self.__dict__, memo)
        return result


class Causal(HuggingFace):
    """Decoder-only model, which reads a start token, the prompt and the text.

    The state of n prefixes is the valid mask [n, L] of the L tokens read so far, and the cache.
    """

    def __init__(self, model: PreTrainedModel, size: int, settings: Mapping[str, str | int], start_token: int) -> None:
        super().__init__(model, size, settings)
        self.start_token = start_token
        self.takes_positions = "position_ids" in inspect.signature(model.forward).parameters

    def stacks(self) -> list[nn.Module]:
        """Return the decoder."""
        return [self.model.base_model]

    def _context(self, n: int, prompts: Tensor | None) -> tuple[Tensor, Tensor, State]:
        """Return start token and prompt, with padding moved to the front, so that no padding is in the last column."""
        first = torch.full((n, 1), self.start_token, device=self.embeddings.device)
        valid = torch.ones_like(first, dtype=torch.bool)
        if prompts is not None:
            in_prompt = prompts < self.size
            first = torch.cat([first, prompts.where(in_prompt, 0)], dim=1)
            valid = torch.cat([valid, in_prompt], dim=1)
            order = valid.int().argsort(dim=1, stable=True)
            first, valid = first.gather(1, order), valid.gather(1, order)
        return first, valid, (valid[:, :0], ())

    def _read(self, tokens: Tensor, valid: Tensor, state: State, keep: bool) -> tuple[Tensor, State]:
        """Read tokens after a state; positions are counted without padding."""
        valid_before, caches = cast("tuple[Tensor, Cache]", state)
        all_valid = torch.cat([valid_before, valid], dim=1)  # [n, L]
        self._check_length(all_valid.shape[1])
        inputs: dict[str, object] = {"input_ids": tokens, "attention_mask": all_valid.long(), "use_cache": keep}
        if self.takes_positions:
            inputs["position_ids"] = (all_valid.cumsum(dim=1)[:, -tokens.shape[1] :] - 1).clamp(min=0)
        cache = _as_cache(caches)  # the model appends to it
        if keep:
            inputs["past_key_values"] = cache
        if self.scale is None:
            outputs = self.model(**inputs)
            features = outputs.logits[..., : self.size].float()
        else:
            outputs = self.model.base_model(**inputs)
            features = _scaled(outputs.last_hidden_state, self.scale)
        return features, (all_valid, _as_tensors(cache)) if keep else ()


class EncoderDecoder(HuggingFace):
    """Model whose encoder reads the prompt and an end token, and whose decoder reads a start token and the text.

    The state of n prefixes is the mask of the prompt [n, P + 1], its encoding [n, P + 1, H], and the caches of
    self-attention and cross-attention.
    """

    def __init__(
        self, model: PreTrainedModel, size: int, settings: Mapping[str, str | int], start_token: int, end: int
    ) -> None:
        super().__init__(model, size, settings)
        self.start_token, self.end = start_token, end

    def stacks(self) -> list[nn.Module]:
        """Return the encoder and the decoder."""
        return [self.model.get_encoder(), self.decoder]

    @property
    def decoder(self) -> nn.Module:
        """Decoder of the model."""
        return cast("nn.Module", self.model.get_decoder())  # type: ignore[no-untyped-call]

    def _context(self, n: int, prompts: Tensor | None) -> tuple[Tensor, Tensor, State]:
        """Return the start token; the encoded prompt is in the state."""
        first = torch.full((n, 1), self.start_token, device=self.embeddings.device)
        inputs, mask = torch.full_like(first, self.end), torch.ones_like(first)
        if prompts is not None:
            in_prompt = prompts < self.size
            inputs = torch.cat([prompts.masked_fill(~in_prompt, self.end), inputs], dim=1)  # [n, P + 1]
            # True at the tokens of the prompt and at the first end token after them.
            mask = torch.cat([mask, in_prompt.long()], dim=1)
        self._check_length(inputs.shape[1])
        encoded = self.model.get_encoder()(input_ids=inputs, attention_mask=mask).last_hidden_state
        return first, mask.bool()[:, :1], (mask, encoded, (), ())

    def _read(self, tokens: Tensor, valid: Tensor, state: State, keep: bool) -> tuple[Tensor, State]:
        """Read tokens of the text after a state; there is no padding among them."""
        from transformers import EncoderDecoderCache
        from transformers.modeling_outputs import BaseModelOutput

        mask, encoded, text, prompt = cast("tuple[Tensor, Tensor, Cache, Cache]", state)
        self._check_length(tokens.shape[1] + (text[0][0].shape[2] if text else 0))
        inputs: dict[str, object] = {"use_cache": keep}
        cache = EncoderDecoderCache(_as_cache(text), _as_cache(prompt))  # the model appends to it
        if keep:
            inputs["past_key_values"] = cache
        if self.scale is None:
            encoder_outputs = BaseModelOutput(last_hidden_state=encoded)
            outputs = self.model(
                encoder_outputs=encoder_outputs, attention_mask=mask, decoder_input_ids=tokens, **inputs
            )
            features = outputs.logits[..., : self.size].float()
        else:
            context = {"encoder_hidden_states": encoded, "encoder_attention_mask": mask}
            outputs = self.decoder(input_ids=tokens, **context, **inputs)
            features = _scaled(outputs.last_hidden_state, self.scale)
        if not keep:
            return features, ()
        text = _as_tensors(cache.self_attention_cache)
        prompt = _as_tensors(cache.cross_attention_cache)
        return features, (mask, encoded, text, prompt)


def input_embeddings(model: PreTrainedModel) -> nn.Embedding:
    """Return the input embeddings of a model."""
    return cast("nn.Embedding", model.get_input_embeddings())


def output_layer(model: PreTrainedModel) -> nn.Linear | None:
    """Return the output layer of a model, if it has one. Not every model has an nn.Linear there."""
    return cast("nn.Linear | None", model.get_output_embeddings())  # type: ignore[no-untyped-call]


def _as_cache(caches: Cache) -> DynamicCache:
    """Create a transformers cache from tensors, which it does not modify."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    cache = DynamicCache()
    for keys, values in caches:
        layer = DynamicLayer()  # type: ignore[no-untyped-call]
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values  # update() would copy the tensors
        cache.layers.append(layer)
    return cache


def _as_tensors(cache: Any) -> Cache:
    return tuple((layer.keys, layer.values) for layer in cache.layers)


def _scaled(hidden: Tensor, scale: float) -> Tensor:
    return hidden if scale == 1 else hidden * scale


def _ignore_missing_frozen(policy: nn.Module, found: _IncompatibleKeys) -> None:
    """Let load_state_dict() accept a state dict without the frozen weights."""
    assert isinstance(policy, HuggingFace)
    ends = tuple(f".{name}" for name in policy.trained)
    found.missing_keys[:] = [key for key in found.missing_keys if f".{key}".endswith(ends)]
