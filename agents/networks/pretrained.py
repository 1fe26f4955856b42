"""From the name or the folder of a Hugging Face model to a policy for a task made with its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor, nn

from agents.networks.huggingface import Causal, EncoderDecoder, HuggingFace
from text_gym.errors import OptionError
from text_gym.extras import import_extra
from text_gym.language_model import State, map_state
from text_gym.vocab import TokenizerVocabulary, Vocabulary, has_tokenizer, load_tokenizer, model_source

SPARE_ROWS = 1024  # a model's table of embeddings may be longer than its vocabulary, for speed, by as many as this
SUMMED = 1 << 16  # numbers in a sum that tells weights from others
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}  # of logits that should be equal, relative to the largest


def load_policy(
    name: str,
    vocab: Vocabulary | int,
    lora: int = 0,
    frozen_layers: int = 0,
    dtype: str = "auto",
    device: str | torch.device = "cpu",
) -> HuggingFace:
    """A model as a policy.

    Args:
        name: Of the model, or its folder.
        vocab: Of the task, which the model's tokenizer has to have made; or its size, if that is all that is known.
        lora: The rank of the changes that are trained in place of the weights; 0 to train the weights.
        frozen_layers: So many of the first blocks are not trained, and if any, neither are the embeddings.
        dtype: "float32", "bfloat16", or "auto" for bfloat16 where all weights are frozen and a GPU has it.
        device: Where the policy is to be.
    """
    source = model_source(name, f"model={name!r}")
    config = _load_config(name, source)
    size = vocab if isinstance(vocab, int) else len(vocab)
    _check_tokens(name, vocab, size, config.get_text_config().vocab_size)
    device = torch.device(device)
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
    # Adam's steps are smaller than what bfloat16 can tell apart, so that weights that are trained are float32.
    chosen = torch.bfloat16 if dtype == "bfloat16" or (dtype == "auto" and lora and fast) else torch.float32
    model = _load_model(name, source, config, chosen)
    digests = _digests(model) if lora or frozen_layers else {}
    _make_room(model, size)
    settings = {"model": name, "lora": lora, "frozen_layers": frozen_layers, "dtype": dtype}
    tokenizer, eos = getattr(vocab, "tokenizer", None), getattr(vocab, "eos", None)
    policy: HuggingFace
    if config.is_encoder_decoder:
        begin = _special(model, "decoder_start_token_id", "pad_token_id", "bos_token_id")
        policy = EncoderDecoder(model, size, settings, begin, _special(model, "eos_token_id", first=[eos]))
    else:
        begin = _special(model, "bos_token_id", first=[getattr(tokenizer, "bos_token_id", None)], last=[eos])
        policy = Causal(model, size, settings, begin)
    policy = policy.to(device)
    _examine(policy)
    if lora:
        _add_lora(policy.model, lora)
    policy.freeze(frozen_layers)
    frozen = [key for key in digests if lora or f"model.{key}" not in policy.trained]
    if frozen:
        policy.frozen_digest = blake2b(json.dumps([digests[key] for key in frozen]).encode(), digest_size=8).hexdigest()
    return policy


def _load_config(name: str, source: str) -> Any:
    transformers = import_extra("transformers", "policy='hf'", "hf")
    try:
        return transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
    except Exception as problem:  # each of hundreds of kinds of models fails in its own way
        raise _no_model(name, problem) from problem


def _load_model(name: str, source: str, config: Any, dtype: torch.dtype) -> Any:
    """The model with all of its weights, or an error."""
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
    return model


@torch.no_grad()
def _digests(model: nn.Module) -> dict[str, Any]:
    """What tells a model's tensors from others: each one's name, its shape, and sums over its parts.

    The sums are of the bits that the numbers have as bfloat16, as whole numbers, so that they are the same in every
    order of summing and whether the model was loaded as float32 or as bfloat16.
    """

    def sums(tensor: Tensor) -> list[int]:
        parts = torch.split(tensor.flatten(), SUMMED)
        return [int(part.to(torch.bfloat16).view(torch.int16).sum(dtype=torch.int64)) for part in parts]

    return {name: [name, list(tensor.shape), sums(tensor)] for name, tensor in model.state_dict().items()}


def _no_model(name: str, problem: Exception) -> OptionError:
    why = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
    return OptionError(
        f"model={name!r} is no language model that transformers can load, neither a folder nor a name ({why})"
    )


@contextmanager
def _without_bars() -> Iterator[None]:
    """Without transformers' own progress bars."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _check_tokens(name: str, vocab: Vocabulary | int, size: int, rows: int) -> None:
    """Refuse a model whose tokens are not those of the task; where it has no tokenizer, one of another size."""
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
def _make_room(model: Any, size: int) -> None:
    """Give a model embeddings for tokens that it has none for, in the middle of those that there are.

    They must not be random: copies of the model that begin with other seeds are to have the same.
    """
    rows = len(model.get_input_embeddings().weight)
    if rows >= size:
        return
    model.resize_token_embeddings(size, mean_resizing=False)
    for part in (model.get_input_embeddings(), model.get_output_embeddings()):
        if part is not None:
            part.weight[rows:] = part.weight[:rows].mean(dim=0)
            if getattr(part, "bias", None) is not None:
                part.bias[rows:] = part.bias[:rows].mean()


def _special(
    model: Any, *names: str, first: list[int | None] | None = None, last: list[int | None] | None = None
) -> int:
    """The first of some special ids that the model has an embedding for: those given, and its own of these names."""
    own = [getattr(config, name, None) for name in names for config in (model.generation_config, model.config)]
    candidates = [*(first or []), *own, *(last or [])]
    rows = len(model.get_input_embeddings().weight)
    for candidate in candidates:
        if isinstance(candidate, list) and candidate:
            candidate = candidate[0]
        if isinstance(candidate, int) and 0 <= candidate < rows:
            return candidate
    return 0


@torch.no_grad()
def _examine(policy: HuggingFace) -> None:
    """Find out what a model's last layer is, and whether it can be read token by token, and behind padding."""
    place = policy.place_of().device
    tokens = (torch.arange(6, device=place).view(2, 3) * 7 + 1) % policy.size
    prompts = (torch.arange(6, device=place).view(2, 3) * 5 + 2) % policy.size
    prompts[0, 2] = policy.size
    policy.eval()
    try:
        own = policy.features(tokens, prompts).float()  # as long as there is no scale, the model's own logits
        policy.scale = _find_scale(policy, tokens, prompts, own)
        if not _agree(policy, policy.output(policy.features(tokens, prompts)), own):
            policy.scale = None
        logits, state = policy.start(2, prompts)
        policy.state_numbers = _numbers_per_token(state)
        stepped = [logits]
        for column in tokens[:, :-1].unbind(dim=1):
            logits, state = policy.step(column, state)
            stepped.append(logits)
        alone = policy.output(policy.features(tokens[:1], prompts[:1, :2]))
        fit, why = _agree(policy, torch.stack(stepped, dim=1), own) and _agree(policy, alone, own[:1]), ""
    except Exception as problem:  # a model of a kind that is read in another way fails in its own way
        fit, why = False, f" ({type(problem).__name__}: {problem})"
    if not fit:
        raise OptionError(
            f"model={policy.settings['model']!r} does not say the same token by token, or behind padding, as all at "
            f"once; a policy is a causal or an encoder-decoder model with a cache of keys and values{why}"
        )


def _find_scale(policy: HuggingFace, tokens: Tensor, prompts: Tensor, own: Tensor) -> float | None:
    """What hidden vectors are multiplied by before the last layer, if that layer makes the logits of them."""
    caught: list[Tensor] = []
    factor = 100 / float(own.abs().max().clamp(min=1e-3))  # large logits: what bends them shows

    def enlarge(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        caught.append(inputs[0])
        return (inputs[0] * factor,)

    head = policy.model.get_output_embeddings()
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
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):  # there is no such part to be called
        return None
    usual = (1.0, hidden.shape[2] ** -0.5)  # the latter in T5, where the last layer is the table of embeddings
    scale = next((value for value in usual if abs(rough - value) < 0.01 * value), rough)
    return scale if _agree(policy, policy.output(read * factor), large) else None


def _agree(policy: HuggingFace, logits: Tensor, others: Tensor) -> bool:
    """Whether logits are the same but for rounding."""
    largest = float(others.abs().max().clamp(min=1.0))
    return float((logits - others).abs().max()) <= TOLERANCE[policy.place_of().dtype] * largest


def _numbers_per_token(state: State) -> int:
    """Of the caches and the like in a state, as many as one sequence has for one token."""
    counts: list[int] = []

    def count(part: Tensor) -> Tensor:
        counts.append(part[0].numel() // part.shape[-2] if part.ndim > 2 else 1)
        return part

    map_state(count, state)
    return sum(counts)


def _add_lora(model: nn.Module, rank: int) -> None:
    """Freeze a model, and add to its attention what low-rank adaptation trains (Hu et al., arXiv:2106.09685)."""
    peft = import_extra("peft", f"lora={rank}", "hf")
    from transformers.pytorch_utils import Conv1D

    transposed = any(isinstance(module, Conv1D) for module in model.modules())
    options: dict[str, Any] = {"r": rank, "lora_alpha": 2 * rank, "fan_in_fan_out": transposed}
    try:
        peft.inject_adapter_in_model(peft.LoraConfig(**options), model)
    except ValueError:  # peft does not know where the attention of this kind of model is
        peft.inject_adapter_in_model(peft.LoraConfig(**options, target_modules="all-linear"), model)
    for name, weight in model.named_parameters():
        weight.requires_grad_("lora_" in name)
        if weight.requires_grad:
            weight.data = weight.data.float()
