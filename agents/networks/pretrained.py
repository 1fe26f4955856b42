"""Load a Hugging Face model as a policy. The task has to be made with the tokenizer of the model."""

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

SPARE_ROWS = 1024  # maximum number of embeddings without a token; models have them to pad the size of the embeddings
SUMMED = 1 << 16  # number of weights per sum in _digests()
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}  # relative to the largest logit, in _agree()


def load_policy(
    name: str,
    vocab: Vocabulary | int,
    lora: int = 0,
    frozen_layers: int = 0,
    dtype: str = "auto",
    device: str | torch.device = "cpu",
) -> HuggingFace:
    """Load a model as a policy. Code that comes with the model is not executed.

    Args:
        name: Name or local folder of the model.
        vocab: Vocabulary of the task, from the tokenizer of the model; or its size.
        lora: Rank of LoRA adapters, which are trained in place of the weights; 0 trains the weights.
        frozen_layers: Number of first layers to freeze. If above 0, the embeddings are frozen too.
        dtype: "float32", "bfloat16", or "auto": bfloat16 for LoRA on a GPU that supports it, and float32 otherwise.
        device: Device of the policy.
    """
    source = model_source(name, f"model={name!r}")
    config = _load_config(name, source)
    size = vocab if isinstance(vocab, int) else len(vocab)
    _check_tokens(name, vocab, size, config.get_text_config().vocab_size)
    device = torch.device(device)
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
    # Adam's updates are often too small for bfloat16 weights, so trained weights are float32 by default.
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
    except Exception as problem:  # the type of the error depends on the model
        raise _no_model(name, problem) from problem


def _load_model(name: str, source: str, config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """Load a model; raise OptionError if weights are missing in its folder."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    kind: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    try:
        with _without_bars():
            model, found = kind.from_pretrained(source, dtype=dtype, trust_remote_code=False, output_loading_info=True)
    except Exception as problem:  # the type of the error depends on the model
        raise _no_model(name, problem) from problem
    if found["missing_keys"]:
        missing = ", ".join(sorted(found["missing_keys"])[:3])
        raise OptionError(
            f"model={name!r} lacks weights of a language model, for example {missing}; give a model with a "
            "language-model head"
        )
    return cast("PreTrainedModel", model)


@torch.no_grad()
def _digests(model: nn.Module) -> dict[str, tuple[str, list[int], list[int]]]:
    """Return a fingerprint of every tensor of a model: name, shape, and sums over parts of the tensor.

    A sum adds the bfloat16 bit patterns as integers. It therefore does not depend on the order of summation, nor on
    whether the model was loaded as float32 or as bfloat16.
    """

    def sums(tensor: Tensor) -> list[int]:
        parts = torch.split(tensor.flatten(), SUMMED)
        return [int(part.to(torch.bfloat16).view(torch.int16).sum(dtype=torch.int64)) for part in parts]

    return {name: (name, list(tensor.shape), sums(tensor)) for name, tensor in model.state_dict().items()}


def _no_model(name: str, problem: Exception) -> OptionError:
    reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
    return OptionError(
        f"model={name!r} is not a language model that transformers can load; give the name or the folder of one "
        f"({reason})"
    )


@contextmanager
def _without_bars() -> Iterator[None]:
    """Hide the progress bars of transformers."""
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _check_tokens(name: str, vocab: Vocabulary | int, size: int, rows: int) -> None:
    """Raise OptionError if the tokens of the task are not those of the model's tokenizer.

    If the model has no tokenizer, only the number of tokens is compared.
    """
    advice = f"make the task from a file with tokenizer='hf:{name}'"
    if not has_tokenizer(name):
        if not rows - SPARE_ROWS <= size <= rows + 1:
            raise OptionError(f"the task has {size} tokens, and model={name!r} has {rows}; {advice}")
        return
    model_vocab = TokenizerVocabulary(load_tokenizer(name))
    if size != len(model_vocab):
        raise OptionError(
            f"the task has {size} tokens, and the tokenizer of model={name!r} has {len(model_vocab)}; {advice}"
        )
    if isinstance(vocab, Vocabulary) and vocab.tokens != model_vocab.tokens:
        pairs = enumerate(zip(vocab.tokens, model_vocab.tokens, strict=True))
        i, (own, other) = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
        raise OptionError(
            f"token {i} of the task is {own!r}, and token {i} of the tokenizer of model={name!r} is {other!r}; {advice}"
        )


@torch.no_grad()
def _make_room(model: PreTrainedModel, size: int) -> None:
    """Add embeddings for the tokens of the task that a model lacks.

    New embeddings are the mean of the existing ones, so that they do not depend on the seed.
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
    """Return the first of these ids for which the model has an embedding.

    Args:
        model: A transformers model.
        *names: Names of special tokens in the configuration of the model, which come second.
        first: Id that comes first.
        last: Id that comes third. The last resort is 0.
    """
    configured = [getattr(config, name, None) for name in names for config in (model.generation_config, model.config)]
    rows = len(input_embeddings(model).weight)
    for candidate in (first, *configured, last):
        if isinstance(candidate, list) and candidate:
            candidate = candidate[0]
        if isinstance(candidate, int) and 0 <= candidate < rows:
            return candidate
    return 0


@torch.no_grad()
def _examine(policy: HuggingFace) -> None:
    """Find the scale of the output layer, and check that the logits are the same step by step and with padding.

    Raises:
        OptionError: If they are not; the model cannot be a policy.
    """
    device = policy.embeddings.device
    tokens = (torch.arange(6, device=device).view(2, 3) * 7 + 1) % policy.size
    prompts = (torch.arange(6, device=device).view(2, 3) * 5 + 2) % policy.size
    prompts[0, 2] = policy.size
    policy.eval()
    try:
        expected = policy.features(tokens, prompts).float()  # without a scale, features are the logits of the model
        policy.scale = _find_scale(policy, tokens, prompts, expected)
        if not _agree(policy, policy.output(policy.features(tokens, prompts)), expected):
            policy.scale = None
        logits, state = policy.start(2, prompts)
        policy.numbers_per_token = _numbers_per_token(state)
        stepped = [logits]
        for column in tokens[:, :-1].unbind(dim=1):
            logits, state = policy.step(column, state)
            stepped.append(logits)
        unpadded = policy.output(policy.features(tokens[:1], prompts[:1, :2]))
        works = _agree(policy, torch.stack(stepped, dim=1), expected) and _agree(policy, unpadded, expected[:1])
        reason = ""
    except Exception as problem:  # the type of the error depends on the model
        works = False
        reason = f" ({type(problem).__name__}: {problem})"
    if not works:
        raise OptionError(
            f"model={policy.settings['model']!r} computes other logits token by token, or with padding, than all at "
            f"once; give a causal or an encoder-decoder model with a key-value cache{reason}"
        )


def _find_scale(policy: HuggingFace, tokens: Tensor, prompts: Tensor, expected: Tensor) -> float | None:
    """Find the factor of the hidden states before the output layer.

    Args:
        policy: Policy without a scale.
        tokens: Tokens [n, T].
        prompts: Prompts [n, P].
        expected: Logits of the model [n, T, V].

    Returns:
        The factor; None if the logits are not a linear function of the hidden states.
    """
    layer_inputs: list[Tensor] = []
    factor = 100 / float(expected.abs().max().clamp(min=1e-3))  # large enough to reveal soft-capping of the logits

    def enlarge(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        layer_inputs.append(inputs[0])
        return (inputs[0] * factor,)

    head = output_layer(policy.model)
    if not isinstance(head, nn.Linear):
        return None
    with head.register_forward_pre_hook(enlarge):
        large = policy.features(tokens, prompts)
    if len(layer_inputs) != 1:
        return None
    policy.scale = 1.0
    scaled = layer_inputs[0][:, -tokens.shape[1] :]
    try:
        hidden = policy.features(tokens, prompts)
        estimate = float((scaled * hidden).float().sum() / hidden.float().square().sum())
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):  # the model does not run without its head
        return None
    common = (1.0, hidden.shape[2] ** -0.5)  # T5 has the second one, because its output layer is its embeddings
    scale = next((value for value in common if abs(estimate - value) < 0.01 * value), estimate)
    return scale if _agree(policy, policy.output(scaled * factor), large) else None


def _agree(policy: HuggingFace, logits: Tensor, expected: Tensor) -> bool:
    """Return whether logits are equal up to rounding."""
    largest = float(expected.abs().max().clamp(min=1.0))
    return float((logits - expected).abs().max()) <= TOLERANCE[policy.embeddings.dtype] * largest


def _numbers_per_token(state: State) -> int:
    """Return how many numbers a state has per token of one sequence."""
    counts: list[int] = []

    def count(part: Tensor) -> Tensor:
        counts.append(part[0].numel() // part.shape[-2] if part.ndim > 2 else 1)
        return part

    map_state(count, state)
    return sum(counts)


def _add_lora(model: nn.Module, rank: int) -> None:
    """Freeze a model, and add LoRA adapters to its attention layers (Hu et al., arXiv:2106.09685)."""
    peft = import_extra("peft", f"lora={rank}", "hf")
    from transformers.pytorch_utils import Conv1D

    transposed = any(isinstance(module, Conv1D) for module in model.modules())
    config = partial(peft.LoraConfig, r=rank, lora_alpha=2 * rank, fan_in_fan_out=transposed)
    try:
        peft.inject_adapter_in_model(config(), model)
    except ValueError:  # peft does not know the attention layers of this architecture
        peft.inject_adapter_in_model(config(target_modules="all-linear"), model)
    for name, weight in model.named_parameters():
        weight.requires_grad_("lora_" in name)
        if weight.requires_grad:
            weight.data = weight.data.float()
