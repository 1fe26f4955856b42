"""Hugging Face models as policies: causal and encoder-decoder language models, read with a cache of keys and values.

A model's logits are, as a rule, a linear function of its last hidden vectors; what that function is, is found
out when the model is loaded, by comparison with the model's own logits. Where it is no linear function, the
logits themselves take the place of the hidden vectors. Loading runs no code that comes with a model.
"""

from __future__ import annotations

import copy
import inspect
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from text_gym.errors import OptionError
from text_gym.language_model import LanguageModel, State

Cache = tuple[tuple[Tensor, Tensor], ...]
"""Each layer's keys and values of all that was read, each [n, heads, L, width of a head]."""


@dataclass(frozen=True)
class LinearOutput:
    """A model's last layer, as far as the task's vocabulary goes."""

    weight: Tensor
    """[V, H]."""
    bias: Tensor | None
    """[V]."""

    def __call__(self, features: Tensor) -> Tensor:
        """Hidden vectors [..., H] to logits [..., V]."""
        return nn.functional.linear(features, self.weight, self.bias).float()


class HuggingFace(LanguageModel):
    """What both kinds of models have in common; `load_policy` makes one.

    Only what is trained is in state_dict(); the rest is in the folder that the model was loaded from. Copies
    share it.

    Args:
        model: A model with a language model's head, from transformers.
        size: Tokens of the task; the model has at least as many.
        settings: What `load_policy` was told, so that another policy like this one can be made.
    """

    def __init__(self, model: Any, size: int, settings: Mapping[str, Any]) -> None:
        """Wrap a model, all of which is trained unless freeze() is called."""
        super().__init__()
        self.model, self.size, self.settings = model, size, dict(settings)
        self.scale: float | None = None  # of hidden vectors before the last layer; None where that is not linear
        self.state_numbers = 1  # of a sequence's state, for each token
        self.longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.trained = frozenset(name for name, _ in self.named_parameters())
        self.frozen_digest: str | None = None  # of the weights that are not saved, where there are any
        self.register_load_state_dict_post_hook(_miss_nothing_frozen)  # type: ignore[no-untyped-call]

    @abstractmethod
    def _begin(self, n: int, prompts: Tensor | None) -> tuple[Tensor, Tensor, State]:
        """What is read before the first token [n, B], which of it is real [n, B], and the state before it."""

    @abstractmethod
    def _read(self, tokens: Tensor, real: Tensor, state: State, keep: bool) -> tuple[Tensor, State]:
        """Read tokens [n, S], some padding, behind a state: features [n, S, H], and the new state if it is kept."""

    @abstractmethod
    def stacks(self) -> list[nn.Module]:
        """The parts of the model that have blocks one upon the other."""

    @property
    def output(self) -> Callable[[Tensor], Tensor]:  # type: ignore[override]  # computed, as the weights may be adapted
        """From features [..., H] to logits [..., V]: the model's last layer, or nothing where it is not linear."""
        if self.scale is None:
            return torch.Tensor.float
        head = self.model.get_output_embeddings()
        weight = head.weight if len(head.weight) == self.size else head.weight[: self.size]
        biases = [getattr(head, "bias", None), getattr(self.model, "final_logits_bias", None)]
        parts = [bias.flatten()[: self.size].to(weight.dtype) for bias in biases if bias is not None]
        return LinearOutput(weight, sum(parts[1:], start=parts[0]) if parts else None)

    def start(self, n: int, prompts: Tensor | None = None) -> tuple[Tensor, State]:
        """Logits and state of n empty prefixes, behind their prompts."""
        if not n:  # for which transformers has no shapes
            nothing = self.place_of()
            return nothing.new_zeros(0, self.size, dtype=torch.float32), (nothing.new_zeros(0, 0, dtype=torch.bool),)
        hidden, state = self._read(*self._begin(n, prompts), keep=True)
        return self.output(hidden[:, -1]), state

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """One token further: tokens [n] to logits [n, V]."""
        if not len(tokens):
            return self.start(0)
        column = tokens[:, None].clamp(max=self.size - 1)
        hidden, state = self._read(column, torch.ones_like(column, dtype=torch.bool), state, keep=True)
        return self.output(hidden[:, -1]), state

    def features(self, tokens: Tensor, prompts: Tensor | None = None) -> Tensor:
        """What the output layer reads before each token: tokens [n, T] to [n, T, H]."""
        n, length = tokens.shape
        if not n:
            width = self.output.weight.shape[1] if isinstance(self.output, LinearOutput) else self.size
            return self.place_of().new_zeros(0, length, width)
        first, real, state = self._begin(n, prompts)
        rest = tokens[:, :-1].clamp(max=self.size - 1)
        real = torch.cat([real, torch.ones_like(rest, dtype=torch.bool)], dim=1)
        hidden, _ = self._read(torch.cat([first, rest], dim=1), real, state, keep=False)
        return hidden[:, first.shape[1] - 1 :][:, :length]

    def state_size(self, length: int) -> int:
        """How many numbers the state of a sequence has, when so many tokens have been read."""
        return self.state_numbers * (1 + length)

    def place_of(self) -> Tensor:
        """A tensor of the kind and at the place of the model's."""
        weight: Tensor = self.model.get_input_embeddings().weight
        return weight

    def _check_length(self, length: int) -> None:
        if self.longest is not None and length > self.longest:
            raise OptionError(
                f"the model {self.settings.get('model')!r} reads {self.longest} tokens at most, and prompt and text "
                f"together have {length}: make the task with a smaller max_length or max_prompt_length"
            )

    # Only what is trained is saved and copied.

    def freeze(self, layers: int) -> None:
        """Train neither embeddings nor so many of the first blocks, if any, nor what is frozen already."""
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
        """What is trained, each tensor once."""
        state = super().state_dict(*args, **options)
        prefix = options.get("prefix", "")
        for key in [key for key in state if key.startswith(prefix) and key[len(prefix) :] not in self.trained]:
            del state[key]
        return state

    def __deepcopy__(self, memo: dict[int, Any]) -> HuggingFace:
        """A copy with trained tensors of its own; those that are never trained are shared."""
        memo |= {id(weight): weight for name, weight in self.named_parameters() if name not in self.trained}
        twin = memo[id(self)] = self.__class__.__new__(self.__class__)
        twin.__dict__ = copy.deepcopy(self.__dict__, memo)
        return twin


class Causal(HuggingFace):
    """A model that reads on from what it wrote: a start token, the prompt, the text.

    The state of n prefixes is which of the L tokens read are real [n, L], and each layer's cache.
    """

    def __init__(self, model: Any, size: int, settings: Mapping[str, Any], start_token: int) -> None:
        """Wrap a model that reads this token first."""
        super().__init__(model, size, settings)
        self.start_token = start_token
        self.places_given = "position_ids" in inspect.signature(model.forward).parameters

    def stacks(self) -> list[nn.Module]:
        """The one."""
        return [self.model.base_model]

    def _begin(self, n: int, prompts: Tensor | None) -> tuple[Tensor, Tensor, State]:
        """The start token and the prompt, with all padding in front, so that real tokens end at the last column."""
        first = torch.full((n, 1), self.start_token, device=self.place_of().device)
        real = torch.ones_like(first, dtype=torch.bool)
        if prompts is not None:
            in_prompt = prompts < self.size
            first = torch.cat([first, prompts.where(in_prompt, 0)], dim=1)
            real = torch.cat([real, in_prompt], dim=1)
            order = real.int().argsort(dim=1, stable=True)
            first, real = first.gather(1, order), real.gather(1, order)
        return first, real, (real[:, :0], ())

    def _read(self, tokens: Tensor, real: Tensor, state: State, keep: bool) -> tuple[Tensor, State]:
        """Read tokens behind a state; places are counted among real tokens."""
        before, caches = cast("tuple[Tensor, Cache]", state)
        seen = torch.cat([before, real], dim=1)  # [n, L]
        self._check_length(seen.shape[1])
        inputs: dict[str, Any] = {"input_ids": tokens, "attention_mask": seen.long(), "use_cache": keep}
        if self.places_given:
            inputs["position_ids"] = (seen.cumsum(dim=1)[:, -tokens.shape[1] :] - 1).clamp(min=0)
        if keep:
            inputs["past_key_values"] = _as_cache(caches)
        if self.scale is None:
            done = self.model(**inputs)
            features = done.logits[..., : self.size].float()
        else:
            done = self.model.base_model(**inputs)
            features = _scaled(done.last_hidden_state, self.scale)
        return features, (seen, _as_tensors(inputs["past_key_values"])) if keep else ()


class EncoderDecoder(HuggingFace):
    """A model that reads the prompt and its end first, and then writes.

    The state of n prefixes is which of the prompt is real [n, P + 1], what it was encoded as [n, P + 1, H], and the
    caches of what was written and of the prompt.
    """

    def __init__(self, model: Any, size: int, settings: Mapping[str, Any], start_token: int, end: int) -> None:
        """Wrap a model that begins to write after the start token, and whose prompts have this end."""
        super().__init__(model, size, settings)
        self.start_token, self.end = start_token, end

    def stacks(self) -> list[nn.Module]:
        """Both."""
        return [self.model.get_encoder(), self.model.get_decoder()]

    def _begin(self, n: int, prompts: Tensor | None) -> tuple[Tensor, Tensor, State]:
        """The prompt encoded, and the start token."""
        first = torch.full((n, 1), self.start_token, device=self.place_of().device)
        read, mask = torch.full_like(first, self.end), torch.ones_like(first)
        if prompts is not None:
            in_prompt = prompts < self.size
            read = torch.cat([prompts.masked_fill(~in_prompt, self.end), read], dim=1)  # [n, P + 1]
            # As many as the prompt has tokens, and the end that follows them.
            mask = torch.cat([mask, in_prompt.long()], dim=1)
        self._check_length(read.shape[1])
        encoded = self.model.get_encoder()(input_ids=read, attention_mask=mask).last_hidden_state
        return first, mask.bool()[:, :1], (mask, encoded, (), ())

    def _read(self, tokens: Tensor, real: Tensor, state: State, keep: bool) -> tuple[Tensor, State]:
        """Read what was written, behind a state; none of it is padding."""
        from transformers import EncoderDecoderCache
        from transformers.modeling_outputs import BaseModelOutput

        mask, encoded, written, asked = cast("tuple[Tensor, Tensor, Cache, Cache]", state)
        self._check_length(tokens.shape[1] + (written[0][0].shape[2] if written else 0))
        inputs: dict[str, Any] = {"use_cache": keep}
        if keep:
            inputs["past_key_values"] = EncoderDecoderCache(_as_cache(written), _as_cache(asked))
        if self.scale is None:
            whole = BaseModelOutput(last_hidden_state=encoded)
            done = self.model(encoder_outputs=whole, attention_mask=mask, decoder_input_ids=tokens, **inputs)
            features = done.logits[..., : self.size].float()
        else:
            context = {"encoder_hidden_states": encoded, "encoder_attention_mask": mask}
            done = self.model.get_decoder()(input_ids=tokens, **context, **inputs)
            features = _scaled(done.last_hidden_state, self.scale)
        if not keep:
            return features, ()
        cache = inputs["past_key_values"]
        caches = (_as_tensors(cache.self_attention_cache), _as_tensors(cache.cross_attention_cache))
        return features, (mask, encoded, *caches)


def _as_cache(caches: Cache) -> Any:
    """A cache for transformers, which goes on from these tensors and leaves them as they are."""
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


def _miss_nothing_frozen(policy: nn.Module, found: Any) -> None:
    """After loading: what is not trained is not missed."""
    assert isinstance(policy, HuggingFace)
    ends = tuple(f".{name}" for name in policy.trained)
    found.missing_keys[:] = [key for key in found.missing_keys if f".{key}".endswith(ends)]
