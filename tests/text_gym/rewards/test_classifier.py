"""The classifier reward against forward passes of a tiny model, one row at a time."""

import json
import sys
from pathlib import Path

import gymnasium as gym
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

import text_gym
from tests.helpers.batches import batch_of
from tests.helpers.classifiers import WORDS, own_logits, save_bert, tokenizer_of
from text_gym.errors import DependencyError, OptionError, RewardError
from text_gym.rewards import Scorer

TEXTS = ["the dogs run", "mary sings", "a big cat sleeps and mary sings", "mary sings", "kite"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    names = {0: "Negative", 1: "Neutral", 2: "Positive"}
    return save_bert(tmp_path_factory.mktemp("three"), id2label=names, label2id={v: k for k, v in names.items()})


@pytest.fixture
def sentences(write):
    return text_gym.make_task(write("lines.txt", "\n".join(["the dogs run"] * 3 + [" ".join(WORDS)])), valid=0, test=0)


@pytest.fixture
def asked(write):
    lines = [{"prompt": "what is a kite ?", "reference": "red"}, {"prompt": "mary", "reference": " ".join(WORDS)}]
    return text_gym.make_task(write("asked.jsonl", "\n".join(map(json.dumps, lines))), valid=0.0, test=0.0)


def scores(task, texts, examples=None, **options):
    reward = text_gym.make_reward("classifier", **options)
    return Scorer(reward, task)(batch_of(task, *texts, examples=examples)).total


def test_the_probability_of_the_second_of_two_labels(folder, sentences):
    expected = own_logits(folder, *([text] for text in TEXTS)).softmax(-1)[:, 1]
    assert expected.std() > 0.01
    assert scores(sentences, TEXTS, model=folder) == pytest.approx(expected.numpy(), abs=1e-6)


def test_scores_do_not_depend_on_what_else_is_in_the_batch(folder, sentences):
    together = scores(sentences, TEXTS, model=folder)
    for size in (1, 2, 3):
        assert scores(sentences, TEXTS, model=folder, batch_size=size) == pytest.approx(together, abs=1e-6)
    assert scores(sentences, TEXTS[::-1], model=folder)[::-1] == pytest.approx(together, abs=1e-6)
    alone = [scores(sentences, [text], model=folder)[0] for text in TEXTS]
    assert alone == pytest.approx(together, abs=1e-6)
    assert together[1] == together[3]


def test_each_different_text_is_read_once_and_texts_of_like_length_together(folder, sentences, monkeypatch):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    read, forward = [], BertForSequenceClassification.forward

    def spy(self, input_ids, **others):
        read.append(tokenizer.batch_decode(input_ids, skip_special_tokens=True))
        return forward(self, input_ids, **others)

    monkeypatch.setattr(BertForSequenceClassification, "forward", spy)
    scores(sentences, TEXTS, model=folder, batch_size=2)
    assert read == [["kite", "mary sings"], ["the dogs run", "a big cat sleeps and mary sings"]]


def test_labels_by_name_number_and_default(three, folder, sentences):
    logits = own_logits(three, *([text] for text in TEXTS))
    for label, number in [(None, 2), ("Positive", 2), ("negative", 0), ("NEUTRAL", 1), (0, 0), (1, 1)]:
        expected = logits.softmax(-1)[:, number]
        assert scores(sentences, TEXTS, model=three, label=label) == pytest.approx(expected.numpy(), abs=1e-6), label
    for label in ("positiv", 3, -1, True):
        with pytest.raises(OptionError, match=r"has no label.*Known: Negative, Neutral, Positive"):
            scores(sentences, TEXTS, model=three, label=label)
    with pytest.raises(OptionError, match="Did you mean 'LABEL_1'"):
        scores(sentences, TEXTS, model=folder, label="LABEL1")


def test_several_labels_without_a_positive_one_must_be_chosen_from(tmp_path, sentences):
    folder = save_bert(tmp_path, num_labels=3)
    with pytest.raises(OptionError, match=r"has the labels LABEL_0, LABEL_1, LABEL_2; choose one by label="):
        scores(sentences, TEXTS, model=folder)


def test_logits_and_log_odds(three, sentences):
    logits = own_logits(three, *([text] for text in TEXTS))
    assert scores(sentences, TEXTS, model=three, form="logit") == pytest.approx(logits[:, 2].numpy(), abs=1e-5)
    expected = torch.logit(logits.softmax(-1)[:, 2])
    assert scores(sentences, TEXTS, model=three, form="log_odds") == pytest.approx(expected.numpy(), abs=1e-5)


@pytest.mark.parametrize("config", [{"num_labels": 1}, {"num_labels": 2, "problem_type": "multi_label_classification"}])
def test_labels_that_are_questions_of_their_own(tmp_path, sentences, config):
    folder = save_bert(tmp_path, **config)
    logits = own_logits(folder, *([text] for text in TEXTS))[:, -1]
    assert scores(sentences, TEXTS, model=folder) == pytest.approx(logits.sigmoid().numpy(), abs=1e-6)
    assert scores(sentences, TEXTS, model=folder, form="log_odds") == pytest.approx(logits.numpy(), abs=1e-5)


def test_prompts_before_the_text_or_beside_it(folder, asked, sentences):
    examples = [asked.train[0], asked.train[1], asked.train[0]]
    texts = ["red", "sings", "a kite"]
    prompts = [asked.decode(example.prompt) for example in examples]
    rows = {
        False: [[text] for text in texts],
        True: [[f"{prompt} {text}"] for prompt, text in zip(prompts, texts, strict=True)],
        "pair": [[prompt, text] for prompt, text in zip(prompts, texts, strict=True)],
    }
    answers = {}
    for prompts_option, read in rows.items():
        answers[prompts_option] = scores(asked, texts, examples, model=folder, prompts=prompts_option)
        expected = own_logits(folder, *read).softmax(-1)[:, 1]
        assert answers[prompts_option] == pytest.approx(expected.numpy(), abs=1e-6), prompts_option
    assert len({round(float(answer[0]), 5) for answer in answers.values()}) == 3
    with pytest.raises(RewardError, match="needs prompts, and task 'lines' has none"):
        scores(sentences, TEXTS, model=folder, prompts=True)


def test_long_texts_are_cut_to_what_the_model_can_read_or_is_asked_to(folder, sentences):
    long = " ".join(WORDS * 3)
    assert scores(sentences, [long], model=folder)[0] == pytest.approx(
        scores(sentences, [" ".join((WORDS * 3)[:30])], model=folder)[0], abs=1e-6
    )
    assert scores(sentences, ["the dogs run"], model=folder, max_length=4)[0] == pytest.approx(
        scores(sentences, ["the dogs"], model=folder)[0], abs=1e-6
    )


@pytest.fixture
def long_prompts(write):
    """Prompts of 2 words and of 45 words, which is more than the maximum input of the classifier."""
    lines = [
        {"prompt": " ".join(WORDS * 3), "reference": "red"},
        {"prompt": "mary sings", "reference": " ".join(WORDS)},
    ]
    task = text_gym.make_task(write("long.jsonl", "\n".join(map(json.dumps, lines))), valid=0.0, test=0.0)
    return task, list(WORDS * 3)


def test_a_long_prompt_loses_its_beginning_and_the_text_stays(folder, long_prompts):
    task, prompt = long_prompts
    texts = ["red", "a big cat sleeps", "mary sings and dogs run"]
    read = [[*prompt, *text.split()][-30:] for text in texts]  # 32 positions, two of them for [CLS] and [SEP]
    expected = own_logits(folder, *([" ".join(words)] for words in read)).softmax(-1)[:, 1]
    assert expected.std() > 0.01
    found = scores(task, texts, [task.train[0]] * 3, model=folder, prompts=True)
    assert found == pytest.approx(expected.numpy(), abs=1e-6)
    rows = [[" ".join(prompt[len(text.split()) - 29 :]), text] for text in texts]  # three special tokens
    expected = own_logits(folder, *rows).softmax(-1)[:, 1]
    found = scores(task, texts, [task.train[0]] * 3, model=folder, prompts="pair")
    assert found == pytest.approx(expected.numpy(), abs=1e-6)


@pytest.mark.parametrize("number", [0, 1])
def test_a_text_that_leaves_no_room_is_read_without_its_prompt(folder, long_prompts, number):
    task, _ = long_prompts
    words = [WORDS[i % 11] for i in range(40)]
    texts = ["red", " ".join(words[:28]), " ".join(words[:29]), " ".join(words)]
    last = task.decode(task.train[number].prompt).split()[-1:]
    expected = own_logits(
        folder, [" ".join(last), texts[1]], ["", texts[2]], ["", " ".join(words[-29:])]
    ).softmax(-1)[:, 1]  # fmt: skip
    found = scores(task, texts, [task.train[number]] * 4, model=folder, prompts="pair")
    assert found[1:] == pytest.approx(expected.numpy(), abs=1e-6)
    expected = own_logits(folder, [" ".join(words[-30:])]).softmax(-1)[0, 1]
    assert scores(task, texts, [task.train[number]] * 4, model=folder, prompts=True)[3] == pytest.approx(
        float(expected)
    )


def test_long_texts_are_cut_to_the_places_that_roberta_has(tmp_path, sentences):
    special = {"cls_token": "[CLS]", "pad_token": "[PAD]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    tokenizer = tokenizer_of(special, pair=False, model_max_length=None)
    assert tokenizer.model_max_length > 10**9
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=14, pad_token_id=1, initializer_range=0.5, num_labels=2,
    )  # fmt: skip
    RobertaForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    long = " ".join(WORDS * 3)
    kept = own_logits(tmp_path, [" ".join(WORDS[:12])])  # positions start at padding_idx + 1 = 2
    with pytest.raises(RuntimeError, match="out of bounds"):
        own_logits(tmp_path, [" ".join(WORDS[:13])])
    assert scores(sentences, [long], model=str(tmp_path))[0] == pytest.approx(float(kept.softmax(-1)[0, 1]), abs=1e-6)


def test_a_decoder_without_padding_reads_batches_and_nothing_at_all(tmp_path, sentences):
    tokenizer = tokenizer_of({"eos_token": "<end>", "unk_token": "<unk>"}, pair=False)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=16, n_layer=2, n_head=2, n_positions=32, initializer_range=0.5, num_labels=2,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    GPT2ForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    expected = own_logits(tmp_path, *([text] for text in TEXTS)).softmax(-1)[:, 1].numpy()
    assert scores(sentences, TEXTS, model=str(tmp_path)) == pytest.approx(expected, abs=1e-6)
    assert scores(sentences, [""], model=str(tmp_path)) == pytest.approx(
        own_logits(tmp_path, ["<end>"]).softmax(-1)[:, 1].numpy(), abs=1e-6
    )


def test_environments_share_one_classifier(folder, sentences, monkeypatch):
    loaded, load = [], AutoModelForSequenceClassification.from_pretrained
    spy = lambda *arguments, **options: loaded.append(arguments) or load(*arguments, **options)  # noqa: E731
    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", spy)
    name = f"classifier(model={folder!r})"
    envs = gym.make_vec("TextGen-v0", num_envs=2, task=sentences, reward=name, vectorization_mode="sync")
    rewards = [env.unwrapped.rules.scorer.rewards[name] for env in envs.envs]
    assert rewards[0] is not rewards[1]
    assert len(loaded) == 1
    reward = text_gym.make_reward(name)
    env = gym.make("TextGen-v0", task=sentences, reward=reward)
    assert env.unwrapped.rules.scorer.rewards["classifier"] is reward
    env.reset()
    for token in [*sentences.encode("mary sings"), sentences.vocab.eos]:
        _, paid, *_ = env.step(token)
    assert paid == pytest.approx(float(own_logits(folder, ["mary sings"]).softmax(-1)[0, 1]), abs=1e-6)


def test_what_is_no_classifier_is_refused_in_one_line(tmp_path, sentences):
    encoder = save_bert(tmp_path / "encoder", BertModel)
    (tmp_path / "empty").mkdir()
    broken = save_bert(tmp_path / "broken")
    (tmp_path / "broken" / "config.json").write_text("{")
    for name, words in [
        (encoder, "is not a classifier: its weights lack 'classifier.bias'"),
        (str(tmp_path / "nowhere"), "there is no such folder"),
        (str(tmp_path / "empty"), "cannot be loaded"),
        (broken, "cannot be loaded"),
    ]:
        with pytest.raises(OptionError, match=words) as caught:
            gym.make("TextGen-v0", task=sentences, reward=f"classifier(model={name!r})")
        assert "\n" not in str(caught.value), name


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "missing a required argument: 'model'"),
        ({"model": "x", "form": "probabilty"}, "Did you mean 'probability'"),
        ({"model": "x", "prompts": "before"}, "prompts must be False, True or 'pair'"),
        ({"model": "x", "batch_size": 0}, "batch_size"),
        ({"model": "x", "max_length": 0}, "max_length"),
    ],
)
def test_options_that_make_no_sense(options, words):
    with pytest.raises(OptionError, match=words):
        text_gym.make_reward("classifier", **options)


def test_a_device_that_there_is_not(folder, sentences):
    with pytest.raises(OptionError, match="unknown device='gpu'"):
        scores(sentences, TEXTS, model=folder, device="gpu")


def test_before_prepare(folder, sentences):
    with pytest.raises(RewardError, match="call prepare"):
        text_gym.make_reward("classifier", model=folder).score(batch_of(sentences, "kite"))


def test_transformers_is_asked_for_when_the_reward_is_made(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(DependencyError, match=r"'classifier' needs transformers: pip install 'text-gym\[hf\]'"):
        text_gym.make_reward("classifier(model='x')")


OWN_CODE = """
import pathlib

from transformers import BertConfig, BertForSequenceClassification, PretrainedConfig

pathlib.Path({marker!r}).touch()


class OwnConfig(BertConfig):
    model_type = "own"


class OwnModel(BertForSequenceClassification):
    config_class = OwnConfig
"""


def test_code_that_comes_with_a_classifier_is_not_run(sentences, tmp_path, monkeypatch):
    """The code is not run for any answer to the question that transformers may ask."""
    folder, marker = Path(save_bert(tmp_path / "own")), tmp_path / "marker"
    (folder / "own.py").write_text(OWN_CODE.format(marker=str(marker)), encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig",
               "AutoModelForSequenceClassification": "own.OwnModel"}}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(OptionError, match=r"cannot be loaded: .* contains custom code"):
        scores(sentences, TEXTS, model=str(folder))
    assert not marker.exists()
