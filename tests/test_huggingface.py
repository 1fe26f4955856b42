"""Hugging Face models as policies, against transformers' own forward pass on single rows without padding."""

import json
import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: nothing is to be downloaded

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

import text_gym
from agents.huggingface import LinearOutput
from agents.objectives import weighted_nll
from agents.pretrained import load_policy
from agents.rollout import rollout_values
from tests.test_models import seeded
from text_gym.models import complete, generate, map_state

WORDS = ["<pad>", "<s>", "</s>", "<unk>", *["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"]]
V, BOS, EOS = len(WORDS), 1, 2
SPECIAL = {"vocab_size": V, "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": 0}
LLAMA = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA |= {"num_key_value_heads": 2, "max_position_embeddings": 64}
BART = {"d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64}
BART |= {f"{part}_{what}": n for part in ("encoder", "decoder") for what, n in [("layers", 2), ("attention_heads", 4)]}
KINDS = {
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {"n_layer": 2, "n_embd": 32, "n_head": 4, "n_positions": 64}),
    "llama": ("LlamaConfig", "LlamaForCausalLM", LLAMA),
    "t5": ("T5Config", "T5ForConditionalGeneration", {"num_layers": 2, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4}),
    "bart": ("BartConfig", "BartForConditionalGeneration", BART),
    "capped": ("Gemma2Config", "Gemma2ForCausalLM", LLAMA | {"head_dim": 8, "sliding_window": 4, "final_logit_softcapping": 3.0}),
    "alibi": ("BloomConfig", "BloomForCausalLM", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "biased": ("PhiConfig", "PhiForCausalLM", LLAMA | {"num_key_value_heads": 4}),
    "large": ("GPT2Config", "GPT2LMHeadModel", {"n_layer": 2, "n_embd": 32, "n_head": 4, "vocab_size": V + 8}),
}  # fmt: skip
MAIN = ("gpt2", "llama", "t5", "bart")
PROMPTS = [[4, 5, 6, 7, 8], [9], [], [10, 11]]
TOKENS = [[4, 6, 8, 10, 5, 2], [5, 5, 2], [13, 12, 11, 10, 9, 8], [7, 2]]


@pytest.fixture(scope="session")
def tokenizer():
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special)


@pytest.fixture(scope="session")
def folders(tmp_path_factory, tokenizer):
    """For each kind a folder with a random model, whose distributions are far from uniform, and the tokenizer."""
    made = {}
    transformers.utils.logging.disable_progress_bar()
    for name, (config, model, sizes) in KINDS.items():
        torch.manual_seed(0)
        random = getattr(transformers, model)(getattr(transformers, config)(**SPECIAL | sizes))
        with torch.no_grad():
            for weight in random.parameters():
                weight.normal_(1.0 if weight.ndim == 1 else 0.0, 0.3)
            if hasattr(random, "final_logits_bias"):
                random.final_logits_bias.normal_()
        made[name] = str(tmp_path_factory.mktemp(name))
        random.save_pretrained(made[name])
        tokenizer.save_pretrained(made[name])
    return made


@pytest.fixture(scope="session")
def lines(tmp_path_factory):
    """A file of texts, and one of prompts with references."""
    random = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("lines")
    texts = [" ".join(WORDS[4 + (i + k) % 12] for k in range(2 + i % 4)) for i in random.integers(0, 12, 40)]
    (folder / "texts.txt").write_text("\n".join(texts))
    asked = [{"prompt": " ".join(t.split()[: 1 + i % 3]), "reference": t} for i, t in enumerate(texts)]
    (folder / "asked.jsonl").write_text("\n".join(json.dumps(row) for row in asked))
    return folder


def original(folder):
    kind = transformers.AutoConfig.from_pretrained(folder).is_encoder_decoder
    auto = transformers.AutoModelForSeq2SeqLM if kind else transformers.AutoModelForCausalLM
    return auto.from_pretrained(folder)


def own_logits(model, tokens, prompt=()):
    """What a model of transformers says before each of one row's tokens, [T, V]; read as a whole, without a mask."""
    if model.config.is_encoder_decoder:
        begin = getattr(model.config, "decoder_start_token_id", model.config.pad_token_id)
        read = {"input_ids": torch.tensor([[*prompt, EOS]]), "decoder_input_ids": torch.tensor([[begin, *tokens[:-1]]])}
        return model(**read).logits[0, :, :V]
    return model(torch.tensor([[BOS, *prompt, *tokens[:-1]]])).logits[0, len(prompt) :, :V]


def own_log_probs(model, tokens, prompt=()):
    return own_logits(model, tokens, prompt).log_softmax(1)[torch.arange(len(tokens)), torch.tensor(tokens)].tolist()


def padded(rows, width=6):
    return torch.tensor([row + [V] * (width - len(row)) for row in rows])


@pytest.mark.parametrize("prompted", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_likelihoods_are_the_models_own(folders, kind, prompted):
    """Of rows of several lengths, behind prompts of several lengths, one of them empty."""
    policy, model = load_policy(folders[kind], V), original(folders[kind])
    tokens, prompts = padded(TOKENS), padded(PROMPTS) if prompted else None
    found = policy.log_prob(tokens, tokens < V, prompts)
    for i, row in enumerate(TOKENS):
        expected = own_log_probs(model, row, PROMPTS[i] if prompted else ())
        assert found[i, : len(row)].tolist() == pytest.approx(expected, abs=2e-5)
        assert (found[i, len(row) :] == 0).all()
        alone = policy.log_prob(
            tokens[i : i + 1], tokens[i : i + 1] < V, prompts if prompts is None else prompts[i : i + 1]
        )
        assert torch.allclose(alone, found[i : i + 1], atol=1e-5)
    assert found.std() > 0.3
    assert torch.isfinite(policy.features(tokens, prompts)).all()


@pytest.mark.parametrize("kind", [*MAIN, "capped", "alibi"])
@pytest.mark.parametrize("prompted", [False, True])
@torch.no_grad()
def test_written_with_the_cache_is_what_is_written_without(folders, kind, prompted):
    policy, model = load_policy(folders[kind], V), original(folders[kind])
    prompts = padded(PROMPTS) if prompted else None
    drawn = generate(policy, 4, 8, EOS, seeded(3), prompts=prompts)
    generator, done, rows = seeded(3), [False] * 4, [[] for _ in range(4)]
    while not all(done) and max(map(len, rows)) < 8:
        alive = [i for i in range(4) if not done[i]]
        logits = torch.stack([own_logits(model, [*rows[i], 0], PROMPTS[i] if prompted else ())[-1] for i in alive])
        for i, token in zip(alive, text_gym.models.draw_tokens(logits, generator)[0].tolist(), strict=True):
            rows[i].append(token)
            done[i] = token == EOS
    assert drawn.tokens.tolist() == padded(rows, 8).tolist()
    assert len({tuple(row) for row in rows}) > 1


@pytest.mark.parametrize("kind", MAIN)
@torch.no_grad()
def test_completions_leave_the_state_they_go_on_from_alone(folders, kind):
    policy, model = load_policy(folders[kind], V), original(folders[kind])
    logits, state = policy.start(4, padded(PROMPTS))
    logits, state = policy.step(torch.tensor([4, 5, 6, 7]), state)
    before = map_state(torch.clone, state)
    rows = torch.tensor([3, 1, 1, 0, 3])
    inner = map_state(lambda part: part[rows], state)
    first = [torch.tensor([4, 5, 6, 7])[rows][:, None], logits[rows], inner, 7, EOS]
    drawn = complete(policy, *first, seeded(0))
    again = complete(policy, *first, seeded(0))
    assert (drawn.tokens == again.tokens).all()
    same = []
    map_state(lambda part: same.append(part.clone()) or part, before)
    map_state(lambda part: same.append(torch.equal(same.pop(0), part)) or part, state)
    assert len(same) > 4
    assert all(same)
    for row, tokens, length, log_probs in zip(rows.tolist(), drawn.tokens, drawn.lengths, drawn.log_probs, strict=True):
        expected = own_log_probs(model, tokens[:length].tolist(), PROMPTS[row])
        assert log_probs[1:length].tolist() == pytest.approx(expected[1:], abs=2e-5)


def test_rollouts_value_prefixes(folders):
    """With a reward that is a sum over tokens, the value of a prefix is near that of many samples drawn afresh."""
    policy = load_policy(folders["t5"], V)
    prompts = padded(PROMPTS)
    drawn = generate(policy, 4, 4, EOS, seeded(0), prompts=prompts)

    def score(tokens, lengths, rows):
        return (tokens == 9).sum(dim=1).double() + 10.0 * rows

    values = rollout_values(policy, drawn.tokens, drawn.lengths, score, 300, EOS, seeded(1), prompts, from_start=True)
    fresh = generate(policy, 1200, 4, EOS, seeded(2), prompts=prompts.repeat_interleave(300, dim=0))
    expected = (fresh.tokens == 9).double().sum(dim=1).view(4, 300).mean(dim=1) + 10.0 * torch.arange(4)
    assert torch.allclose(values[:, 0], expected, atol=0.25)


@pytest.mark.parametrize("kind", [*MAIN, "capped", "biased", "large"])
def test_gradients_are_those_of_the_models_own_logits(folders, kind):
    policy, model = load_policy(folders[kind], V), original(folders[kind]).train(mode=False)
    tokens, weights = padded(TOKENS), torch.randn(4, 6, generator=seeded(5))
    weights = weights.where(tokens < V, 0.0)
    loss, _ = weighted_nll(policy, tokens, weights, padded(PROMPTS))
    loss.backward()
    own = sum(
        -(
            own_logits(model, row, prompt).log_softmax(1)[torch.arange(len(row)), torch.tensor(row)]
            * weight[: len(row)]
        ).sum()
        for row, prompt, weight in zip(TOKENS, PROMPTS, weights, strict=True)
    )
    own.backward()
    assert loss.item() == pytest.approx(own.item(), abs=1e-4)
    theirs = dict(model.named_parameters())
    assert {f"model.{name}" for name in theirs} == {name for name, _ in policy.named_parameters()}
    for name, weight in policy.named_parameters():
        gradient = theirs[name.removeprefix("model.")].grad
        assert torch.allclose(weight.grad, gradient, atol=1e-3 * max(1.0, gradient.abs().max().item())), name


def test_what_the_last_layer_is(folders):
    assert isinstance(load_policy(folders["gpt2"], V).output, LinearOutput)
    t5 = load_policy(folders["t5"], V)
    assert t5.scale == 32**-0.5
    bart, biased = load_policy(folders["bart"], V), load_policy(folders["biased"], V)
    assert (bart.output.bias == original(folders["bart"]).final_logits_bias[0]).all()
    assert (biased.output.bias == original(folders["biased"]).lm_head.bias).all()
    capped = load_policy(folders["capped"], V)
    assert not hasattr(capped.output, "weight")
    assert capped.features(padded(TOKENS)).abs().max() <= 3.0
    large = load_policy(folders["large"], V)
    assert large.output.weight.shape == (V, 32)
    assert large.start(1)[0].shape == (1, V)


def test_no_rows_at_all(folders):
    for kind in ("gpt2", "bart", "capped"):
        policy = load_policy(folders[kind], V)
        logits, state = policy.start(0)
        assert logits.shape == policy.step(torch.zeros(0, dtype=torch.long), state)[0].shape == (0, V)
        assert policy.output(policy.features(torch.zeros(0, 3, dtype=torch.long))).shape == (0, 3, V)
        assert generate(policy, 0, 5, EOS, seeded(0)).tokens.shape == (0, 5)


@pytest.mark.parametrize("kind", MAIN)
def test_the_size_of_a_state_is_known(folders, kind):
    policy = load_policy(folders[kind], V)
    _, state = policy.start(2, padded(PROMPTS[:2]))
    for token in (4, 5, 6):
        _, state = policy.step(torch.tensor([token, token]), state)
    sizes = []
    map_state(lambda part: sizes.append(part[0].numel()) or part, state)
    assert sum(sizes) <= policy.state_size(9) <= 2 * sum(sizes)


def test_dropout_is_the_models_own(folders):
    policy, tokens = load_policy(folders["gpt2"], V), padded(TOKENS)
    still = policy.features(tokens)
    assert torch.equal(still, policy.features(tokens))
    assert not torch.equal(still, policy.train().features(tokens))
    assert torch.equal(still, policy.eval().features(tokens))
