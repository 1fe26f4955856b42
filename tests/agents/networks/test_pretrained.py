"""Loading Hugging Face models by name or folder: tokenizers and error messages."""

import shutil
import sys
from pathlib import Path

import gymnasium as gym
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

import text_gym
from agents import MLE
from agents.networks.policies import PolicySettings, make_policy
from agents.networks.pretrained import load_policy
from tests.helpers.pretrained_models import EOS, SPECIAL, WORDS, V, env_of, fine_tuning
from text_gym.errors import DataError, DependencyError, OptionError
from text_gym.vocab import TokenizerVocabulary, Vocabulary, load_tokenizer

# Tokens of the task.


def test_a_tokenizer_by_name(folders, lines, tokenizer):
    task = text_gym.make_task(f"{lines}/asked.jsonl(tokenizer='hf:{folders['gpt2']}', test=0.0)")
    assert task.vocab.tokens == tuple(WORDS)
    assert (task.vocab.eos, task.vocab.unk) == (EOS, 3)
    assert task.decode(task.encode("a zzz c")) == "a <unk> c"
    assert task.vocab.tokens == text_gym.make_task(lines / "asked.jsonl", tokenizer=tokenizer).vocab.tokens
    with pytest.raises(OptionError, match="cannot be loaded by transformers"):
        text_gym.make_task(lines / "texts.txt", tokenizer="hf:no/such")
    with pytest.raises(DataError, match="contains the tokenizer's EOS token"):
        task.encode("a </s> b")


class Unnamed:
    """A tokenizer in which some tokens have the same text, or an empty one."""

    names = ("a", "b", "a", None, "<2>", "<eos>")

    def encode(self, text):
        return [0]

    def decode(self, ids):
        return "a"

    def __len__(self):
        return len(self.names)

    def convert_ids_to_tokens(self, ids):
        return [self.names[i] for i in ids]


def test_tokens_have_names_of_their_own():
    assert TokenizerVocabulary(Unnamed()).tokens == ("a", "b", "<<2>>", "<3>", "<2>", "<eos>", "<6>")


def without_end(folder, tmp_path):
    """A folder with the model and a tokenizer without EOS."""
    shutil.copytree(folder, tmp_path / "endless")
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    endless = transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", bos_token="<s>")
    endless.save_pretrained(tmp_path / "endless")
    return str(tmp_path / "endless")


@pytest.mark.parametrize("kind", ["llama", "bart"])
def test_an_end_is_added_where_there_is_none(folders, lines, tmp_path, kind):
    """Its embedding is the mean of the others for every seed, so that frozen embeddings of copies are equal."""
    folder = without_end(folders[kind], tmp_path)
    env = env_of(lines / "texts.txt", folder)
    assert (len(env.unwrapped.task.vocab), env.unwrapped.task.vocab.eos) == (V + 1, V)
    agent, other = (MLE(env, seed=seed, **fine_tuning(folder, lora=2)) for seed in (0, 1))
    table = agent.policy.model.get_input_embeddings().weight
    assert table.shape[0] == V + 1
    assert torch.allclose(table[V], table[:V].mean(dim=0), atol=1e-6)
    assert torch.equal(table, other.policy.model.get_input_embeddings().weight)
    assert agent.sample(3, seed=0).tokens.max() <= V + 1
    before = agent.nll("train")
    assert agent.learn(1).nll("train") < before


def test_models_with_more_rows_than_tokens_or_without_tokenizer(folders, lines, tmp_path):
    env = env_of(lines / "texts.txt", folders["large"])
    agent = MLE(env, seed=0, **fine_tuning(folders["large"])).learn(1)
    assert agent.sample(50, seed=0).tokens.max() <= V
    bare = tmp_path / "bare"
    shutil.copytree(folders["gpt2"], bare)
    for file in bare.glob("tokenizer*"):
        file.unlink()
    plain = Vocabulary([str(i) for i in range(V)], eos=EOS)
    settings = PolicySettings(policy="hf", model=str(bare))
    assert make_policy(settings, plain).size == make_policy(settings, V).size == V
    with pytest.raises(OptionError, match=f"has 18 tokens, and model=.* has {V}; make the task .* tokenizer='hf:"):
        make_policy(settings, 18)
    with pytest.raises(OptionError, match="the folder has no files of a tokenizer"):
        load_tokenizer(str(bare))


# Errors.


def test_settings_that_do_not_go_together():
    for settings, words in [
        ({"policy": "hf"}, "needs a model"),
        ({"policy": "hf", "model": 3}, "needs a model"),
        ({"model": "gpt2"}, "model='gpt2' needs policy='hf', and policy='lstm'"),
        ({"policy": "transformer", "lora": 4}, "lora=4 needs policy='hf'"),
        ({"policy": "hf", "model": "gpt2", "lora": -1}, "lora"),
        ({"policy": "hf", "model": "gpt2", "frozen_layers": 0.5}, "frozen_layers"),
        ({"policy": "hf", "model": "gpt2", "dtype": "float16"}, "dtype"),
    ]:
        with pytest.raises(OptionError, match=words):
            PolicySettings(**settings)


def test_folders_that_hold_no_model(folders, lines, tmp_path):
    (tmp_path / "empty").mkdir()
    damaged, lacking = tmp_path / "damaged", tmp_path / "lacking"
    for folder in (damaged, lacking):
        shutil.copytree(folders["gpt2"], folder)
    (damaged / "model.safetensors").write_bytes(b"nothing")
    tensors = load_file(lacking / "model.safetensors")
    del tensors["transformer.h.1.mlp.c_fc.weight"]
    save_file(tensors, lacking / "model.safetensors", metadata={"format": "pt"})
    for folder, words in [
        (tmp_path / "empty", "is not a language model"),
        (tmp_path / "nowhere", "there is no such folder"),
        ("no-such-name", "is not a language model"),
        (damaged, "is not a language model"),
        (lacking, "lacks weights of a language model, for example transformer.h.1.mlp.c_fc.weight"),
    ]:
        with pytest.raises(OptionError, match=words) as raised:
            load_policy(str(folder), V)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["/no/such/place", "./nowhere", "~/nowhere", "a/b/c", "here/nowhere", "nowhere/"])
def test_a_folder_that_is_gone_is_not_looked_for_on_the_hub(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    for auto in ("AutoConfig", "AutoTokenizer"):
        monkeypatch.setattr(getattr(transformers, auto), "from_pretrained", lambda *_, **__: pytest.fail("asked"))
    for load, how in [
        (lambda: load_policy(name, V), f"model={name!r}"),
        (lambda: load_tokenizer(name), f"'hf:{name}'"),
    ]:
        with pytest.raises(OptionError, match=f"{how}: there is no such folder .the working directory is {tmp_path}"):
            load()
    with pytest.raises(
        OptionError, match=f"model={name!r}.: there is no such folder .the working directory is {tmp_path}"
    ):
        gym.make("TextGen-v0", reward=f"classifier(model={name!r})")


def test_a_folder_in_the_home_of_the_user(folders, monkeypatch):
    folder = Path(folders["gpt2"])
    monkeypatch.setenv("HOME", str(folder.parent))
    policy = load_policy(f"~/{folder.name}", V)
    assert policy.settings["model"] == f"~/{folder.name}"
    assert load_tokenizer(f"~/{folder.name}").get_vocab() == load_tokenizer(str(folder)).get_vocab()


def test_models_that_are_not_read_token_by_token(tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    torch.manual_seed(0)
    transformers.BertLMHeadModel(transformers.BertConfig(**SPECIAL | sizes)).save_pretrained(tmp_path)
    with pytest.raises(OptionError, match="computes other logits token by token"):
        load_policy(str(tmp_path), V)


def test_tasks_of_other_tokens(folders, lines, tmp_path):
    words = gym.make("TextGen-v0", task=str(lines / "texts.txt"))
    advice = f"make the task from a file with tokenizer='hf:{folders['gpt2']}'"
    with pytest.raises(OptionError, match=advice):
        MLE(words, **fine_tuning(folders["gpt2"]))
    settings = PolicySettings(policy="hf", model=folders["gpt2"])
    with pytest.raises(OptionError, match=r"token 4 of the task is 'b', and token 4 of the tokenizer .* 'a'"):
        make_policy(settings, Vocabulary([*WORDS[:4], "b", "a", *WORDS[6:]]))
    with pytest.raises(OptionError, match=advice):
        make_policy(settings, V + 1)


def test_more_tokens_than_the_model_has_places(folders):
    for kind in ("gpt2", "bart"):
        policy = load_policy(folders[kind], V)
        with pytest.raises(OptionError, match=r"takes at most 64 tokens.* have 66"):
            policy.features(torch.ones(1, 66, dtype=torch.long))
        with pytest.raises(OptionError, match="smaller max_length"):
            policy.start(1, torch.full((1, 70), 4))
    assert load_policy(folders["t5"], V).features(torch.ones(1, 66, dtype=torch.long)).shape == (1, 66, 32)


@pytest.mark.parametrize("library", ["transformers", "peft"])
def test_libraries_that_are_not_there(folders, library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(DependencyError, match=r"pip install 'text-gym\[hf\]'"):
        load_policy(folders["gpt2"], V, lora=2)
    if library == "transformers":
        with pytest.raises(DependencyError, match=r"pip install 'text-gym\[hf\]'"):
            load_tokenizer(folders["gpt2"])
