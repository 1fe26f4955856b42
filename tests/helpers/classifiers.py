"""Tiny text classifiers with random weights, saved in the format of published models."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
)

WORDS = ("the", "dogs", "run", "mary", "sings", "and", "a", "big", "cat", "sleeps", "what", "is", "?", "kite", "red")


def tokenizer_of(special, pair, **limit):
    """Create a word tokenizer; the special tokens have the first ids."""
    vocab = {word: i for i, word in enumerate([*special.values(), *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=special["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if pair:
        marks = [(special["cls_token"], 1), (special["sep_token"], 2)]
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=marks
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **limit or {"model_max_length": 32}, **special)


def save_bert(folder, kind=BertForSequenceClassification, **config):
    """Save a tiny BERT classifier with random weights, and its tokenizer."""
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    tokenizer = tokenizer_of(special, pair=True)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    settings = BertConfig(
        vocab_size=len(tokenizer), max_position_embeddings=32, initializer_range=0.5, **sizes | config
    )
    kind(settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def own_logits(folder, *rows):
    """Logits of transformers for each row, computed one row at a time, [n, labels]."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    with torch.no_grad():
        return torch.cat([model(**tokenizer(*row, return_tensors="pt")).logits for row in rows]).double()
