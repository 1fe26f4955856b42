"""Load a Hugging Face model as a policy, for a task that was made with its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from agents.networks.huggingface import Causal, EncoderDecoder, HuggingFace, input_embeddings, output_layer
from text_gym.errors import OptionError
from text_gym.extras import import_extra
from text_gym.language_model import State, map_state
from text_gym.vocab import TokenizerVocabulary, Vocabulary, has_tokenizer, load_tokenizer, model_source

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

SPARE_ROWS = 1024  # by so many rows a model's table of embeddings may be longer than its vocabulary, for speed
SUMMED = 1 << 16  # numbers in each of the sums that identify weights
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}  # between logits that should be equal, relative to the largest


def load_policy(
    name: str,
    vocab: Vocabulary | int,
    lora: int = 0,
    frozen_layers: int = 0,
    dtype: str = "auto",
    device: str | torch.device = "cpu",
) -> HuggingFace:
    """Load a model as a policy. No code that comes with the model is run.

    Args:
        name: Name of the model, or its folder.
        vocab: Vocabulary of the task, made by the model's tokenizer; or its size.
        lora: Rank of the LoRA adapters that are trained instead of the weights; 0 trains the weights.
        frozen_layers: Number of first blocks that are not trained. Above 0, the embeddings are not either.
        dtype: "float32", "bfloat16", or "auto", which is bfloat16 with lora on a GPU that supports it, else float32.
        device: Device of the policy.
    """
    source = model_source(name, f"model={name!r}")
    config = _load_config(name, source)
    size = vocab if isinstance(vocab, int) else len(vocab)
    _check_tokens(name, vocab, size, config.get_text_config().vocab_size)
    device = torch.device(device)
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
    # Adam's steps are below the resolution of bfloat16, so weights that are trained are float32.
    chosen = torch.bfloat16 if dtype == "bfloat16" or (dtype == "auto" and lora and fast) else torch.float32
    model = _load_model(name, source, config, chosen)
    digests = _digests(model) if lora or frozen_layers else {}
    _make_room(model, size)
    settings: dict[str, str | int] = {"model": name, "lora": lora, "frozen_layers": frozen_layers, "dtype": dtype}
    tokenizer = getattr(vocab, "tokenizer", None)
    eos = getattr(vocab, "eos", None)
    policy: HuggingFace
    if config.is_encoder_decoder:
        start = _special_token(model, "decoder_start_token_id", "pad_token_id", "bos_token_id")
        end = _special_token(model, "eos_token_id", first=eos)
        policy = EncoderDecoder(model, size, settings, start, end)
    else:
        bos = getattr(tokenizer, "bos_token_id", None)
        start = _special_token(model, "bos_token_id", first=bos, last=eos)
        policy = Causal(model, size, settings, start)
    policy = policy.to(device)
    _examine(policy)
    if lora:
        _add_lora(policy.model, lora)
    policy.freeze(frozen_layers)
    frozen = [key for key in digests if lora or f"model.{key}" not in policy.trained]
    if frozen:
        policy.frozen_digest = blake2b(json.dumps([digests[key] for key in frozen]).encode(), digest_size=8).hexdigest()
    return policy


def _load_config(name: str, source: str) -> PreTrainedConfig:
    transformers = import_extra("transformers", "policy='hf'", "hf")
    try:
        return cast("PreTrainedConfig", transformers.AutoConfig.from_pretrained(source, trust_remote_code=False))
    except Exception as problem:  # each of hundreds of kinds of models fails in its own way
        raise _no_model(name, problem) from problem


def _load_model(name: str, source: str, config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """Load a model with all of its weights, or raise an error."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    kind: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    try:
        with _without_bars():
            model, found = kind.from_pretrained(source, dtype=dtype, trust_remote_code=False, output_loading_info=True)
    except Exception as problem:  # as above
        raise _no_model(name, problem) from problem
    if found["missing_keys"]:
        few = ", ".join(sorted(found["missing_keys"])[:3])
        raise OptionError(f"model={name!r} lacks weights that a language model has: {few}; is it one of another kind?")
    return cast("PreTrainedModel", model)


@torch.no_grad()
def _digests(model: nn.Module) -> dict[str, tuple[str, list[int], list[int]]]:
    """Return what identifies each of a model's tensors: its name, its shape, and sums over its parts.

    The sums are of the bits of the numbers as bfloat16, taken as integers. They do not depend on the order of summing,
    nor on whether the model was loaded as float32 or as bfloat16.
    """

    def sums(tensor: Tensor) -> list[int]:
        parts = torch.split(tensor.flatten(), SUMMED)
        return [int(part.to(torch.bfloat16).view(torch.int16).sum(dtype=torch.int64)) for part in parts]

    return {name: (name, list(tensor.shape), sums(tensor)) for name, tensor in model.state_dict().items()}


def _no_model(name: str, problem: Exception) -> OptionError:
    why = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
    return OptionError(
        f"model={name!r} is no language model that transformers can load, neither a folder nor a name ({why})"
    )


@contextmanager
def _without_bars() -> Iterator[None]:
    """Hide transformers' own progress bars."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _check_tokens(name: str, vocab: Vocabulary | int, size: int, rows: int) -> None:
    """Refuse a model whose tokens are not the task's, or if it has no tokenizer, one of another size."""
    advice = f"make the task from a file with tokenizer='hf:{name}'"
    if not has_tokenizer(name):
        if not rows - SPARE_ROWS <= size <= rows + 1:
            raise OptionError(f"the task has {size} tokens, and model={name!r} has {rows}; {advice}")
        return
    theirs = TokenizerVocabulary(load_tokenizer(name))
    if size != len(theirs):
        raise OptionError(f"the task has {size} tokens, and the tokenizer of model={name!r} {len(theirs)}; {advice}")
    if isinstance(vocab, Vocabulary) and vocab.tokens != theirs.tokens:
        first = next(i for i, pair in enumerate(zip(vocab.tokens, theirs.tokens, strict=True)) if len(set(pair)) > 1)
        raise OptionError(
            f"token {first} of the task is {vocab.tokens[first]!r}, and of the tokenizer of model={name!r} "
            f"{theirs.tokens[first]!r}; {advice}"
        )


@torch.no_grad()
def _make_room(model: PreTrainedModel, size: int) -> None:
    """Give a model embeddings for tokens that it has none for, equal to the mean of the others.

    They are not random, so that they do not depend on the seed.
    """
    rows = len(input_embeddings(model).weight)
    if rows >= size:
        return
    model.resize_token_embeddings(size, mean_resizing=False)
    for part in (input_embeddings(model), output_layer(model)):
        if part is None:
            continue
        part.weight[rows:] = part.weight[:rows].mean(dim=0)
        bias = getattr(part, "bias", None)
        if bias is not None:
            bias[rows:] = bias[:rows].mean()


def _special_token(model: PreTrainedModel, *names: str, first: int | None = None, last: int | None = None) -> int:
    """Return the first id that the model has an embedding for: of `first`, its own with these names, `last`, and 0."""
    own = [getattr(config, name, None) for name in names for config in (model.generation_config, model.config)]
    rows = len(input_embeddings(model).weight)
    for candidate in (first, *own, last):
        if isinstance(candidate, list) and candidate:
            candidate = candidate[0]
        if isinstance(candidate, int) and 0 <= candidate < rows:
            return candidate
    return 0


@torch.no_grad()
def _examine(policy: HuggingFace) -> None:
    """Find a model's output layer, and check that logits are the same step by step, and with padding."""
    device = policy.embeddings.device
    tokens = (torch.arange(6, device=device).view(2, 3) * 7 + 1) % policy.size
    prompts = (torch.arange(6, device=device).view(2, 3) * 5 + 2) % policy.size
    prompts[0, 2] = policy.size
    policy.eval()
    try:
        own = policy.features(tokens, prompts).float()  # as long as there is no scale, the model's own logits
        policy.scale = _find_scale(policy, tokens, prompts, own)
        if not _agree(policy, policy.output(policy.features(tokens, prompts)), own):
            policy.scale = None
        logits, state = policy.start(2, prompts)
        policy.numbers_per_token = _numbers_per_token(state)
        stepped = [logits]
        for column in tokens[:, :-1].unbind(dim=1):
            logits, state = policy.step(column, state)
            stepped.append(logits)
        alone = policy.output(policy.features(tokens[:1], prompts[:1, :2]))
        fits = _agree(policy, torch.stack(stepped, dim=1), own) and _agree(policy, alone, own[:1])
        why = ""
    except Exception as problem:  # a model that works differently fails in its own way
        fits = False
        why = f" ({type(problem).__name__}: {problem})"
    if not fits:
        raise OptionError(
            f"model={policy.settings['model']!r} does not say the same token by token, or with padding, as all at "
            f"once; a policy is a causal or an encoder-decoder model with a cache of keys and values{why}"
        )


def _find_scale(policy: HuggingFace, tokens: Tensor, prompts: Tensor, own: Tensor) -> float | None:
    """Return by what hidden states are multiplied before the output layer; None if it does not compute the logits."""
    caught: list[Tensor] = []
    factor = 100 / float(own.abs().max().clamp(min=1e-3))  # large logits show whether the model bends them

    def enlarge(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        caught.append(inputs[0])
        return (inputs[0] * factor,)

    head = output_layer(policy.model)
    if not isinstance(head, nn.Linear):
        return None
    with head.register_forward_pre_hook(enlarge):
        large = policy.features(tokens, prompts)
    if len(caught) != 1:
        return None
    policy.scale = 1.0
    read = caught[0][:, -tokens.shape[1] :]
    try:
        hidden = policy.features(tokens, prompts)
        rough = float((read * hidden).float().sum() / hidden.float().square().sum())
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):  # the model without its head does not run
        return None
    usual = (1.0, hidden.shape[2] ** -0.5)  # the latter in T5, whose output layer is the table of embeddings
    scale = next((value for value in usual if abs(rough - value) < 0.01 * value), rough)
    return scale if _agree(policy, policy.output(read * factor), large) else None


def _agree(policy: HuggingFace, logits: Tensor, others: Tensor) -> bool:
    """Whether logits are equal except for rounding."""
    largest = float(others.abs().max().clamp(min=1.0))
    return float((logits - others).abs().max()) <= TOLERANCE[policy.embeddings.dtype] * largest


def _numbers_per_token(state: State) -> int:
    """Count the numbers that a state has for one token of one sequence."""
    counts: list[int] = []

    def count(part: Tensor) -> Tensor:
        counts.append(part[0].numel() // part.shape[-2] if part.ndim > 2 else 1)
        return part

    map_state(count, state)
    return sum(counts)


def _add_lora(model: nn.Module, rank: int) -> None:
    """Freeze a model, and add low-rank adapters to its attention (Hu et al., arXiv:2106.09685)."""
    peft = import_extra("peft", f"lora={rank}", "hf")
    from transformers.pytorch_utils import Conv1D

    transposed = any(isinstance(module, Conv1D) for module in model.modules())
    config = partial(peft.LoraConfig, r=rank, lora_alpha=2 * rank, fan_in_fan_out=transposed)
    try:
        peft.inject_adapter_in_model(config(), model)
    except ValueError:  # peft does not know where the attention of this kind of model is
        peft.inject_adapter_in_model(config(target_modules="all-linear"), model)
    for name, weight in model.named_parameters():
        weight.requires_grad_("lora_" in name)
        if weight.requires_grad:
            weight.data = weight.data.float()
