"""Hugging Face models with random weights, and their outputs computed by transformers alone."""

import json

import gymnasium as gym
import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

WORDS = ["<pad>", "<s>", "</s>", "<unk>", *["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"]]
V, BOS, EOS = len(WORDS), 1, 2
SPECIAL = {"vocab_size": V, "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": 0}
LLAMA = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA |= {"num_key_value_heads": 2, "max_position_embeddings": 64}
BART = {"d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64}
BART |= {f"{part}_{what}": n for part in ("encoder", "decoder") for what, n in [("layers", 2), ("attention_heads", 4)]}
GEMMA = {"head_dim": 8, "sliding_window": 4, "final_logit_softcapping": 3.0}
T5 = {"num_layers": 2, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4}
KINDS = {
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {"n_layer": 2, "n_embd": 32, "n_head": 4, "n_positions": 64}),
    "llama": ("LlamaConfig", "LlamaForCausalLM", LLAMA),
    "t5": ("T5Config", "T5ForConditionalGeneration", T5),
    "bart": ("BartConfig", "BartForConditionalGeneration", BART),
    "capped": ("Gemma2Config", "Gemma2ForCausalLM", LLAMA | GEMMA),
    "hardly_capped": ("Gemma2Config", "Gemma2ForCausalLM", LLAMA | GEMMA | {"final_logit_softcapping": 1000.0}),
    "alibi": ("BloomConfig", "BloomForCausalLM", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "biased": ("PhiConfig", "PhiForCausalLM", LLAMA | {"num_key_value_heads": 4}),
    "large": ("GPT2Config", "GPT2LMHeadModel", {"n_layer": 2, "n_embd": 32, "n_head": 4, "vocab_size": V + 8}),
}  # fmt: skip
MAIN = ("gpt2", "llama", "t5", "bart")
PROMPTS = [[4, 5, 6, 7, 8], [9], [], [10, 11]]
TOKENS = [[4, 6, 8, 10, 5, 2], [5, 5, 2], [13, 12, 11, 10, 9, 8], [7, 2]]


def make_tokenizer():
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special)


def save_model(kind, folder, tokenizer):
    """Save a random model, with distributions far from uniform, and its tokenizer."""
    config, model, sizes = KINDS[kind]
    torch.manual_seed(0)
    random = getattr(transformers, model)(getattr(transformers, config)(**SPECIAL | sizes))
    with torch.no_grad():
        for weight in random.parameters():
            weight.normal_(1.0 if weight.ndim == 1 else 0.0, 0.3)
        if hasattr(random, "final_logits_bias"):
            random.final_logits_bias.normal_()
    random.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_lines(folder):
    """Write a file of texts, and a file of prompts with references."""
    random = np.random.default_rng(0)
    texts = [" ".join(WORDS[4 + (i + k) % 12] for k in range(2 + i % 4)) for i in random.integers(0, 12, 40)]
    (folder / "texts.txt").write_text("\n".join(texts))
    asked = [{"prompt": " ".join(t.split()[: 1 + i % 3]), "reference": t} for i, t in enumerate(texts)]
    (folder / "asked.jsonl").write_text("\n".join(json.dumps(row) for row in asked))


def original(folder):
    kind = transformers.AutoConfig.from_pretrained(folder).is_encoder_decoder
    auto = transformers.AutoModelForSeq2SeqLM if kind else transformers.AutoModelForCausalLM
    return auto.from_pretrained(folder)


def own_logits(model, tokens, prompt=()):
    """Logits of transformers before each token of one row, [T, V], from a single forward pass without a mask."""
    if model.config.is_encoder_decoder:
        begin = getattr(model.config, "decoder_start_token_id", model.config.pad_token_id)
        read = {"input_ids": torch.tensor([[*prompt, EOS]]), "decoder_input_ids": torch.tensor([[begin, *tokens[:-1]]])}
        return model(**read).logits[0, :, :V]
    return model(torch.tensor([[BOS, *prompt, *tokens[:-1]]])).logits[0, len(prompt) :, :V]


def own_log_probs(model, tokens, prompt=()):
    return own_logits(model, tokens, prompt).log_softmax(1)[torch.arange(len(tokens)), torch.tensor(tokens)].tolist()


def padded(rows, width=6):
    return torch.tensor([row + [V] * (width - len(row)) for row in rows])


def env_of(path, folder, **options):
    """Create an environment; by default, the test split is empty."""
    return gym.make("TextGen-v0", task=str(path), tokenizer=f"hf:{folder}", **({"test": 0.0} | options))


def fine_tuning(folder, **options):
    settings = {"policy": "hf", "model": folder, "schedule": ((9, 1e-2),), "batch_size": 8, "progress": False}
    return settings | options
