"""Hugging Face models as policies: causal and encoder-decoder language models with a cache of keys and values.

The logits of most models are a linear function of their last hidden states. `load_policy` finds this function by
comparison with the model's own logits. If there is none, the features of a policy are the logits themselves.
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
"""Keys and values of each layer for the L tokens read so far, each [n, heads, L, width of a head]."""


@dataclass(frozen=True)
class LinearOutput:
    """The output layer of a model, for the tokens of the task."""

    weight: Tensor
    """[V, H]."""
    bias: Tensor | None
    """[V]."""

    def __call__(self, features: Tensor) -> Tensor:
        """Logits [..., V] of features [..., H]."""
        return nn.functional.linear(features, self.weight, self.bias).float()


class HuggingFace(LanguageModel):
    """The base class of both kinds of models; `load_policy` creates them.

    state_dict() holds only the weights that are trained. The others are in the folder that the model was loaded from,
    and copies of the policy share them.

    Args:
        model: A model of transformers with a language-model head.
        size: Number of tokens of the task; the model has at least as many.
        settings: Arguments of `load_policy` from which a policy like this one can be created.
    """

    def __init__(self, model: PreTrainedModel, size: int, settings: Mapping[str, str | int]) -> None:
        """Wrap a model, all of which is trained unless freeze() is called."""
        super().__init__()
        self.model = model
        self.size = size
        self.settings = dict(settings)
        self.scale: float | None = None  # of hidden states before the output layer; None if that is not linear
        self.numbers_per_token = 1  # in the state of a sequence
        self.max_positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.trained = frozenset(name for name, _ in self.named_parameters())
        self.frozen_digest: str | None = None  # hash of the weights that are not trained, if there are any
        self.register_load_state_dict_post_hook(_ignore_missing_frozen)  # type: ignore[no-untyped-call]

    @abstractmethod
    def _context(self, n: int, prompts: Tensor | None) -> tuple[Tensor, Tensor, State]:
        """Tokens read before the first one [n, B], which of them are real [n, B], and the state before them."""

    @abstractmethod
    def _read(self, tokens: Tensor, real: Tensor, state: State, keep: bool) -> tuple[Tensor, State]:
        """Read tokens [n, S] after a state, and return features [n, S, H] and, if `keep`, the new state."""

    @abstractmethod
    def stacks(self) -> list[nn.Module]:
        """The parts of the model that are stacks of blocks."""

    @property
    def output(self) -> Callable[[Tensor], Tensor]:  # type: ignore[override]  # computed, as the weights may be adapted
        """Maps features [..., H] to logits [..., V]: the model's output layer, or the identity if it is not linear."""
        if self.scale is None:
            return torch.Tensor.float
        head = output_layer(self.model)
        assert head is not None
        weight = head.weight if len(head.weight) == self.size else head.weight[: self.size]
        biases = [getattr(head, "bias", None), getattr(self.model, "final_logits_bias", None)]
        parts = [bias.flatten()[: self.size].to(weight.dtype) for bias in biases if bias is not None]
        return LinearOutput(weight, sum(parts[1:], start=parts[0]) if parts else None)

    def start(self, n: int, prompts: Tensor | None = None) -> tuple[Tensor, State]:
        """Logits [n, V] of the first tokens of n sequences, and their state."""
        if not n:  # models of transformers fail on empty batches
            weight = self.embeddings
            return weight.new_zeros(0, self.size, dtype=torch.float32), (weight.new_zeros(0, 0, dtype=torch.bool),)
        hidden, state = self._read(*self._context(n, prompts), keep=True)
        return self.output(hidden[:, -1]), state

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Logits [n, V] after reading one more token of each prefix [n], and the new state."""
        if not len(tokens):
            return self.start(0)
        column = tokens[:, None].clamp(max=self.size - 1)
        hidden, state = self._read(column, torch.ones_like(column, dtype=torch.bool), state, keep=True)
        return self.output(hidden[:, -1]), state

    def features(self, tokens: Tensor, prompts: Tensor | None = None) -> Tensor:
        """Scaled hidden states [n, T, H] before each of the tokens [n, T], or logits if `output` is the identity."""
        n, length = tokens.shape
        if not n:
            width = self.output.weight.shape[1] if isinstance(self.output, LinearOutput) else self.size
            return self.embeddings.new_zeros(0, length, width)
        first, real, state = self._context(n, prompts)
        rest = tokens[:, :-1].clamp(max=self.size - 1)
        real = torch.cat([real, torch.ones_like(rest, dtype=torch.bool)], dim=1)
        hidden, _ = self._read(torch.cat([first, rest], dim=1), real, state, keep=False)
        return hidden[:, first.shape[1] - 1 :][:, :length]

    def state_size(self, length: int) -> int:
        """Numbers in the state of one sequence after `length` tokens."""
        return self.numbers_per_token * (1 + length)

    @property
    def embeddings(self) -> Tensor:
        """Weights of the input embeddings, which tell the model's device and type."""
        return input_embeddings(self.model).weight

    def _check_length(self, length: int) -> None:
        if self.max_positions is not None and length > self.max_positions:
            raise OptionError(
                f"the model {self.settings.get('model')!r} reads {self.max_positions} tokens at most, and prompt and "
                f"text together have {length}: make the task with a smaller max_length or max_prompt_length"
            )

    def freeze(self, layers: int) -> None:
        """Do not train so many of the first blocks, nor the embeddings if there are any, nor what is frozen already."""
        if layers:
            for module in self.modules():
                if isinstance(module, nn.Embedding):
                    module.requires_grad_(False)
            for stack in self.stacks():
                blocks = next(module for module in stack.modules() if isinstance(module, nn.ModuleList))
                if layers > len(blocks):
                    raise OptionError(f"frozen_layers={layers}, but the model has {len(blocks)}")
                for block in blocks[:layers]:
                    block.requires_grad_(False)
        self.trained = frozenset(name for name, weight in self.named_parameters() if weight.requires_grad)
        if not self.trained:
            raise OptionError(f"with frozen_layers={layers} nothing is left to be trained")

    def state_dict(self, *args: Any, **options: Any) -> Any:
        """Return the weights that are trained."""
        state = super().state_dict(*args, **options)
        prefix = options.get("prefix", "")
        for key in [key for key in state if key.startswith(prefix) and key[len(prefix) :] not in self.trained]:
            del state[key]
        return state

    def __deepcopy__(self, memo: dict[int, Any]) -> HuggingFace:
        """Copy the weights that are trained, and share the others."""
        memo |= {id(weight): weight for name, weight in self.named_parameters() if name not in self.trained}
        twin = memo[id(self)] = self.__class__.__new__(self.__class__)
        twin.__dict__ = copy.deepcopy(self.__dict__, memo)
        return twin


class Causal(HuggingFace):
    """A decoder-only model, which reads a start token, the prompt and the text.

    The state of n prefixes is a mask of the L tokens read [n, L], True at real ones, and the cache.
    """

    def __init__(self, model: PreTrainedModel, size: int, settings: Mapping[str, str | int], start_token: int) -> None:
        """Wrap a model; `start_token` is read first."""
        super().__init__(model, size, settings)
        self.start_token = start_token
        self.takes_positions = "position_ids" in inspect.signature(model.forward).parameters

    def stacks(self) -> list[nn.Module]:
        """The decoder."""
        return [self.model.base_model]

    def _context(self, n: int, prompts: Tensor | None) -> tuple[Tensor, Tensor, State]:
        """Start token and prompt, with all padding moved to the front, so that the last column is a real token."""
        first = torch.full((n, 1), self.start_token, device=self.embeddings.device)
        real = torch.ones_like(first, dtype=torch.bool)
        if prompts is not None:
            in_prompt = prompts < self.size
            first = torch.cat([first, prompts.where(in_prompt, 0)], dim=1)
            real = torch.cat([real, in_prompt], dim=1)
            order = real.int().argsort(dim=1, stable=True)
            first, real = first.gather(1, order), real.gather(1, order)
        return first, real, (real[:, :0], ())

    def _read(self, tokens: Tensor, real: Tensor, state: State, keep: bool) -> tuple[Tensor, State]:
        """Read tokens after a state; positions are counted without padding."""
        before, caches = cast("tuple[Tensor, Cache]", state)
        seen = torch.cat([before, real], dim=1)  # [n, L]
        self._check_length(seen.shape[1])
        inputs: dict[str, object] = {"input_ids": tokens, "attention_mask": seen.long(), "use_cache": keep}
        if self.takes_positions:
            inputs["position_ids"] = (seen.cumsum(dim=1)[:, -tokens.shape[1] :] - 1).clamp(min=0)
        cache = _as_cache(caches)  # which the model fills
        if keep:
            inputs["past_key_values"] = cache
        if self.scale is None:
            done = self.model(**inputs)
            features = done.logits[..., : self.size].float()
        else:
            done = self.model.base_model(**inputs)
            features = _scaled(done.last_hidden_state, self.scale)
        return features, (seen, _as_tensors(cache)) if keep else ()


class EncoderDecoder(HuggingFace):
    """A model whose encoder reads the prompt and an end token, and whose decoder reads a start token and the text.

    The state of n prefixes is the mask of the prompt [n, P + 1], its encoding [n, P + 1, H], and the caches of self
    attention and cross attention.
    """

    def __init__(
        self, model: PreTrainedModel, size: int, settings: Mapping[str, str | int], start_token: int, end: int
    ) -> None:
        """Wrap a model; the decoder reads `start_token` first, and `end` follows the prompt."""
        super().__init__(model, size, settings)
        self.start_token, self.end = start_token, end

    def stacks(self) -> list[nn.Module]:
        """The encoder and the decoder."""
        return [self.model.get_encoder(), self.decoder]

    @property
    def decoder(self) -> nn.Module:
        """The decoder."""
        return cast("nn.Module", self.model.get_decoder())  # type: ignore[no-untyped-call]

    def _context(self, n: int, prompts: Tensor | None) -> tuple[Tensor, Tensor, State]:
        """The start token, and the encoded prompt in the state."""
        first = torch.full((n, 1), self.start_token, device=self.embeddings.device)
        read, mask = torch.full_like(first, self.end), torch.ones_like(first)
        if prompts is not None:
            in_prompt = prompts < self.size
            read = torch.cat([prompts.masked_fill(~in_prompt, self.end), read], dim=1)  # [n, P + 1]
            # The prompt's tokens and the end token that follows them.
            mask = torch.cat([mask, in_prompt.long()], dim=1)
        self._check_length(read.shape[1])
        encoded = self.model.get_encoder()(input_ids=read, attention_mask=mask).last_hidden_state
        return first, mask.bool()[:, :1], (mask, encoded, (), ())

    def _read(self, tokens: Tensor, real: Tensor, state: State, keep: bool) -> tuple[Tensor, State]:
        """Read tokens of the text after a state; none of them is padding."""
        from transformers import EncoderDecoderCache
        from transformers.modeling_outputs import BaseModelOutput

        mask, encoded, text, prompt = cast("tuple[Tensor, Tensor, Cache, Cache]", state)
        self._check_length(tokens.shape[1] + (text[0][0].shape[2] if text else 0))
        inputs: dict[str, object] = {"use_cache": keep}
        cache = EncoderDecoderCache(_as_cache(text), _as_cache(prompt))  # which the model fills
        if keep:
            inputs["past_key_values"] = cache
        if self.scale is None:
            whole = BaseModelOutput(last_hidden_state=encoded)
            done = self.model(encoder_outputs=whole, attention_mask=mask, decoder_input_ids=tokens, **inputs)
            features = done.logits[..., : self.size].float()
        else:
            context = {"encoder_hidden_states": encoded, "encoder_attention_mask": mask}
            done = self.decoder(input_ids=tokens, **context, **inputs)
            features = _scaled(done.last_hidden_state, self.scale)
        if not keep:
            return features, ()
        text = _as_tensors(cache.self_attention_cache)
        prompt = _as_tensors(cache.cross_attention_cache)
        return features, (mask, encoded, text, prompt)


def input_embeddings(model: PreTrainedModel) -> nn.Embedding:
    """Return the table of input embeddings of a model."""
    return cast("nn.Embedding", model.get_input_embeddings())


def output_layer(model: PreTrainedModel) -> nn.Linear | None:
    """Return the layer that computes a model's logits, if there is one; it may be another module than nn.Linear."""
    return cast("nn.Linear | None", model.get_output_embeddings())  # type: ignore[no-untyped-call]


def _as_cache(caches: Cache) -> DynamicCache:
    """Create a cache of transformers from these tensors, which it does not change."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    cache = DynamicCache()
    for keys, values in caches:
        layer = DynamicLayer()  # type: ignore[no-untyped-call]
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values  # update() would copy both
        cache.layers.append(layer)
    return cache


def _as_tensors(cache: Any) -> Cache:
    return tuple((layer.keys, layer.values) for layer in cache.layers)


def _scaled(hidden: Tensor, scale: float) -> Tensor:
    return hidden if scale == 1 else hidden * scale


def _ignore_missing_frozen(policy: nn.Module, found: _IncompatibleKeys) -> None:
    """After loading, ignore that weights which are not trained are missing."""
    assert isinstance(policy, HuggingFace)
    ends = tuple(f".{name}" for name in policy.trained)
    found.missing_keys[:] = [key for key in found.missing_keys if f".{key}".endswith(ends)]
