"""GRUE's tasks, read from small invented files in the published formats."""

import csv
import json
import shlex
from hashlib import sha1
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

import text_gym
from agents import MLE
from agents.cli.main import main
from tests.helpers.classifiers import own_logits, save_bert
from tests.helpers.tasks import WITH_FILES
from text_gym.errors import DataError, OptionError, RewardError
from text_gym.tasks.grue_files import linearized

SPLITS = ("train", "valid", "test")


def put(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def put_lines(path, records):
    put(path, "".join(json.dumps(record) + "\n" for record in records))


def put_table(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def imdb_files(folder):
    for split in ("train", "test"):
        for label, verdict in (("pos", "good"), ("neg", "bad")):
            for i in range(4):
                text = f"Film {i} of {split} was<br /><br />rather {verdict}, and {'very ' * i}long."
                put(folder / split / label / f"{i}_9.txt", text)
    put(folder / "train" / "neg" / "9_1.txt", "Too short.")


def commongen_files(folder):
    concepts = [("cat_N#sit_V", ["A cat sits.", "cat sitting"]), ("dog_N#run_V#park_N", ["The dog runs in the park."])]
    train = [{"concept_set": c, "scene": s} for c, s in [("tree_N", ["", " "]), *concepts * 3]]
    put_lines(folder / "commongen.train.jsonl", train)
    held_out = [(f"bird_N#fly_V#day{i}_N", [f"Birds fly on day{i}."]) for i in range(5)]
    dev = [{"concept_set": c, "scene": s, "reason": ["n/a"]} for c, s in held_out]
    put_lines(folder / "commongen.dev.jsonl", dev)


def cnn_files(folder):
    for name, n in (("train", 3), ("validation", 2), ("test", 2)):
        rows = [(f"{name}{i}", f"News {i}, of {name} .\nMore.", f"First {i} .\nSecond {i} .") for i in range(n)]
        put_table(folder / f"{name}.csv", ("id", "article", "highlights"), *rows)


def story_files(folder):
    for name, n in (("all_train", 3), ("all_val", 2), ("all_test", 2)):
        addresses = [f"http://news.example/{name}/{i}" for i in range(n)]
        put(folder / f"{name}.txt", "\n".join(addresses) + "\n")
        for i, address in enumerate(addresses):
            place = folder / ("cnn" if i % 2 else "dailymail") / "stories"
            text = f"News {i}.\n\nMore.\n\n@highlight\n\nFirst {i}\n\n@highlight\n\nSecond {i}!\n"
            put(place / f"{sha1(address.encode()).hexdigest()}.story", text)


def cell(value, header=False, columns=1, rows=1):
    return {"value": value, "is_header": header, "column_span": columns, "row_span": rows}


TABLE = {
    "table_page_title": "A Player",
    "table_section_title": "Career",
    "table": [
        [cell("Club", True, rows=2), cell("League", True, columns=2)],
        [cell("Apps", True), cell("Goals", True)],
        [cell("City", True), cell("31"), cell("4")],
        [cell("Town", True, rows=2), cell("8"), cell("0")],
        [cell("9"), cell("1")],
    ],
    "highlighted_cells": [[2, 2], [4, 0]],
    "example_id": 7,
    "sentence_annotations": [{"final_sentence": "He scored 4 goals for City."}],
}


def totto_files(folder):
    put_lines(folder / "totto_train_data.jsonl", [TABLE | {"example_id": i} for i in range(3)])
    dev = [
        TABLE | {
            "table_page_title": f"Player {i}", "overlap_subset": bool(i % 2),
            "sentence_annotations": [{"final_sentence": f"Said {i}."}, {"final_sentence": f"Told {i}."}],
        }
        for i in range(4)
    ]  # fmt: skip
    put_lines(folder / "totto_dev_data.jsonl", dev)


def iwslt_files(folder):
    base = folder / "en-de"
    tags = "<url>http://talks.example</url>\n<title>Ein {}</title>\n"
    put(base / "train.tags.en-de.en", tags.format("talk") + " Thank you. \nI am here.\n</doc>\nGood day.\n")
    put(base / "train.tags.en-de.de", tags.format("Vortrag") + " Danke. \nIch bin hier.\n</doc>\nGuten Tag.\n")
    for year, n in (("dev2010", 2), ("tst2010", 1), ("tst2015", 2)):
        for language, word in (("en", "day"), ("de", "Tag")):
            segments = "".join(f'<seg id="{i}"> {year} &amp; {word} {i} </seg>\n' for i in range(n))
            put(base / f"IWSLT17.TED.{year}.en-de.{language}.xml", f'<?xml version="1.0"?><doc>\n{segments}</doc>')
    put(base / "IWSLT17.TED.tst2016.en-de.en.xml", '<seg id="1"> blind </seg>')


def narrativeqa_files(folder):
    sets = [("d1", "train"), ("d2", "valid"), ("d3", "test")]
    summaries = [(d, s, f" A story, of\n {d}. ", "tokens") for d, s in sets]
    put_table(
        folder / "third_party/wikipedia/summaries.csv",
        ("document_id", "set", "summary", "summary_tokenized"),
        *summaries,
    )
    asked = [(d, s, f"Who is {d}{i}?", f"A king {i}.", "The king", "q", "a", "b") for d, s in sets for i in range(2)]
    names = ("document_id", "set", "question", "answer1", "answer2", "question_tokenized")
    put_table(folder / "qaps.csv", (*names, "answer1_tokenized", "answer2_tokenized"), *asked)


FILES = {
    "imdb": imdb_files, "commongen": commongen_files, "cnn_dailymail": cnn_files, "totto": totto_files,
    "iwslt": iwslt_files, "narrativeqa": narrativeqa_files,
}  # fmt: skip


def said(task, split):
    """Return each prompt of a split with its references and columns."""
    examples = [task.split(split)[i] for i in range(len(task.split(split)))]
    return [(task.decode(e.prompt), [task.decode(r) for r in e.references], e.columns) for e in examples]


def test_imdb(tmp_path):
    imdb_files(tmp_path)
    task = text_gym.make_task("imdb", folder=str(tmp_path), prompt_words=5, valid=0.25, tokenizer="word")
    read = said(task, "train") + said(task, "valid")
    assert [len(task.split(split)) for split in SPLITS] == [6, 2, 8]
    assert ("Film 2 of train was", ["rather bad, and very very long."], {"label": "neg"}) in read
    assert sum(columns["label"] == "pos" for _, _, columns in read) == 4
    assert said(task, "test")[:2] == [
        ("Film 0 of <unk> was", ["rather good, and long."], {"label": "pos"}),
        ("Film 0 of <unk> was", ["rather bad, and long."], {"label": "neg"}),
    ]
    few = text_gym.make_task("imdb", folder=str(tmp_path), prompt_words=5, limit=4, valid=0.25)
    assert [c["label"] for _, _, c in said(few, "test")] == ["pos", "neg"] * 2
    assert said(few, "test")[0][:2] == ("Film 0 of <unk> was", ["rather good , and long ."])


def test_imdb_asks_for_a_classifier_and_pays_what_it_says(tmp_path):
    imdb_files(tmp_path / "imdb")
    folder = str(tmp_path / "imdb")
    with pytest.raises(RewardError, match=r"needs a model.* imdb\(folder=\.\.\., classifier='folder'\)"):
        gym.make("TextGen-v0", task="imdb", folder=folder, prompt_words=3)
    assert gym.make("TextGen-v0", task="imdb", folder=folder, prompt_words=3, reward="length")
    model = save_bert(tmp_path / "bert")
    env = gym.make("TextGen-v0", task=f"imdb(folder={folder!r}, classifier={model!r}, prompt_words=3)")
    env.reset(options={"prompt_index": 2})
    task = env.unwrapped.task
    for token in [*task.encode("rather good"), task.vocab.eos]:
        _, reward, *_ = env.step(token)
    read = f"{task.decode(task.train[2].prompt)} rather good"
    assert reward == pytest.approx(float(own_logits(model, [read]).softmax(-1)[0, 1]), abs=1e-6)
    assert env.unwrapped.task.default_reward.endswith("prompts=True)")


def test_commongen(tmp_path):
    commongen_files(tmp_path)
    task = text_gym.make_task(f"commongen(folder={str(tmp_path)!r})")
    assert said(task, "train")[:2] == [
        ("cat sit", ["A cat sits .", "cat sitting"], {"concepts": ["cat", "sit"]}),
        ("dog run park", ["The dog runs in the park ."], {"concepts": ["dog", "run", "park"]}),
    ]
    days = [[c["concepts"][2] for _, _, c in said(task, split)] for split in ("valid", "test")]
    assert days == [["day0", "day2", "day4"], ["day1", "day3"]]
    assert (task.name, task.max_length, task.default_reward) == ("commongen", 21, {"meteor": 1.0, "repetition": 1.0})
    env = gym.make("TextGen-v0", task=task)
    env.reset(options={"prompt_index": 0})
    for token in [*task.encode("A cat sits ."), task.vocab.eos]:
        *_, info = env.step(token)
    assert info["reward_terms"] == {"meteor": pytest.approx(1 - 0.5 / 4**3), "repetition": 0}
    lower = text_gym.make_task("commongen", folder=str(tmp_path), lowercase=True)
    assert said(lower, "train")[0][1] == ["a cat sits .", "cat sitting"]


def test_cnn_dailymail(tmp_path):
    cnn_files(tmp_path / "csv")
    task = text_gym.make_task("cnn_dailymail", folder=str(tmp_path / "csv"), max_prompt_length=5)
    assert said(task, "train")[1] == ("News 1 , of train", ["First 1 . Second 1 ."], {"id": "train1"})
    assert [len(task.split(split)) for split in SPLITS] == [3, 2, 2]
    assert (task.prompt_length, task.default_reward) == (5, "meteor")
    story_files(tmp_path / "stories")
    task = text_gym.make_task("cnn_dailymail", folder=str(tmp_path / "stories"))
    assert said(task, "train")[1][:2] == ("News 1 . More .", ["First 1 . Second 1 !"])
    assert [len(task.split(split)) for split in SPLITS] == [3, 2, 2]
    assert said(task, "test")[0][2] == {"id": sha1(b"http://news.example/all_test/0").hexdigest()}
    next((tmp_path / "stories" / "cnn" / "stories").glob("*.story")).unlink()
    with pytest.raises(DataError, match=r"no file .*\.story for http://news\.example/.*docs/grue\.md"):
        text_gym.make_task("cnn_dailymail", folder=str(tmp_path / "stories"), seed=1)


def test_totto(tmp_path):
    totto_files(tmp_path)
    task = text_gym.make_task("totto", folder=str(tmp_path))
    expected = (
        "<page_title> A Player </page_title> <section_title> Career </section_title> <table> "
        "<cell> 4 <col_header> League </col_header> <col_header> Goals </col_header> "
        "<row_header> City </row_header> </cell> "
        "<cell> 9 <col_header> League </col_header> <col_header> Apps </col_header> "
        "<row_header> Town </row_header> </cell> "
        "</table>"
    )
    assert linearized(TABLE) == expected
    columns = {"example_id": 0, "overlap_subset": None}
    assert said(task, "train")[0] == (expected, ["He scored 4 goals for City ."], columns)
    assert [len(task.split(split)) for split in SPLITS] == [3, 2, 2]
    (_, references, columns) = said(task, "test")[1]
    assert references == ["<unk> <unk> .", "<unk> <unk> ."]
    assert columns["overlap_subset"] is True
    put_lines(tmp_path / "totto_train_data.jsonl", [TABLE | {"highlighted_cells": [[9, 9]]}])
    with pytest.raises(DataError, match=r"totto_train_data\.jsonl, example 7: the table is not in ToTTo's format"):
        text_gym.make_task("totto", folder=str(tmp_path), seed=1)


def test_iwslt(tmp_path):
    iwslt_files(tmp_path)
    task = text_gym.make_task("iwslt", folder=str(tmp_path), min_count=1)
    pairs = [(prompt, references) for prompt, references, _ in said(task, "train")]
    assert pairs == [("Thank you .", ["Danke ."]), ("I am here .", ["Ich bin hier ."]), ("Good day .", ["Guten Tag ."])]
    assert [len(task.split(split)) for split in SPLITS] == [3, 2, 3]
    assert task.default_reward == "ter"
    for folder in (tmp_path, tmp_path / "en-de"):
        other = text_gym.make_task(f"iwslt(folder={str(folder)!r}, source='de', target='en', tokenizer='char')")
        assert said(other, "train")[0][:2] == ("Danke.", ["Thank you."])
        assert said(other, "train")[2][1] == ["Good day."]
    env = gym.make("TextGen-v0", task=task)
    env.reset(options={"prompt_index": 0})
    assert env.step(task.vocab.eos)[1] == 0
    put(tmp_path / "en-de" / "train.tags.en-de.de", "Danke.\n")
    with pytest.raises(DataError, match="different numbers of sentences"):
        text_gym.make_task("iwslt", folder=str(tmp_path), seed=1)


def test_segments_are_read_as_they_were_said(tmp_path):
    iwslt_files(tmp_path)
    task = text_gym.make_task("iwslt", folder=str(tmp_path), tokenizer=Letters())
    assert said(task, "valid")[1][:2] == ("dev2010 & day 1", ["dev2010 & Tag 1"])
    assert [prompt for prompt, _, _ in said(task, "test")] == ["tst2010 & day 0", "tst2015 & day 0", "tst2015 & day 1"]


class Letters:
    """A custom tokenizer."""

    vocab_size = 256

    def encode(self, text):
        return list(text.encode("latin-1"))

    def decode(self, ids):
        return bytes(ids).decode("latin-1")


def test_narrativeqa(tmp_path):
    narrativeqa_files(tmp_path)
    task = text_gym.make_task("narrativeqa", folder=str(tmp_path))
    assert said(task, "train") == [
        (f"Who is d1{i} ? A story , of d1 .", [f"A king {i} .", "The king"], {"document_id": "d1"}) for i in range(2)
    ]
    assert [len(task.split(split)) for split in SPLITS] == [2, 2, 2]
    short = text_gym.make_task("narrativeqa", folder=str(tmp_path), max_prompt_length=6)
    assert said(short, "train")[0][0] == "Who is d10 ? A story"
    env = gym.make("TextGen-v0", task=task)
    env.reset(options={"prompt_index": 0})
    for token in [*task.encode("The king"), task.vocab.eos]:
        _, reward, *_ = env.step(token)
    assert reward == 1
    put_table(tmp_path / "third_party/wikipedia/summaries.csv", ("document_id", "set", "summary"))
    with pytest.raises(DataError, match=r"summaries\.csv has no summary of document d1"):
        text_gym.make_task("narrativeqa", folder=str(tmp_path), seed=1)


@pytest.mark.parametrize("name", sorted(set(FILES) - {"imdb"}))
def test_every_task_pays_its_default_reward(name, tmp_path):
    FILES[name](tmp_path)
    env = gym.make("TextGen-v0", task=name, folder=str(tmp_path))
    task = env.unwrapped.task
    batch = task.batch("train")
    real = env.unwrapped.rules.scorer(batch).total
    noise = env.unwrapped.rules.scorer(batch.take(np.roll(np.arange(len(batch)), 1))).total
    assert real.shape == noise.shape
    assert (real > (0.8 if name != "commongen" else 0.3)).all()
    assert set(FILES) == set(WITH_FILES)


def test_limit_takes_the_first_of_every_split(tmp_path):
    commongen_files(tmp_path)
    task = text_gym.make_task("commongen", folder=str(tmp_path), limit=2)
    assert [len(task.split(split)) for split in SPLITS] == [2, 2, 2]
    assert len(text_gym.make_task("commongen", folder=str(tmp_path)).train) == 6


MISSING = {
    "imdb": "train/pos/*.txt", "commongen": "commongen.train.jsonl", "cnn_dailymail": "train.csv",
    "totto": "totto_train_data.jsonl", "iwslt": "en-de/train.tags.en-de.en",
    "narrativeqa": "third_party/wikipedia/summaries.csv",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(MISSING))
def test_a_file_that_is_missing_is_named_with_the_page_about_it(name, tmp_path):
    with pytest.raises(DataError) as caught:
        text_gym.make_task(name, folder=str(tmp_path))
    assert str(tmp_path / MISSING[name]) in str(caught.value)
    assert "docs/grue.md" in str(caught.value)
    with pytest.raises(DataError, match=r"no folder 'nowhere'.*docs/grue\.md"):
        text_gym.make_task(name, folder="nowhere")
    with pytest.raises(OptionError, match="missing a required argument: 'folder'"):
        text_gym.make_task(name)


def test_files_that_are_not_as_published(tmp_path):
    commongen_files(tmp_path)
    for line, words in [
        ("{", r"commongen\.train\.jsonl, line 1: invalid JSON"),
        ('{"concept_set": "a"}', "line 1: expected a JSON object with concept_set, scene"),
        ('{"concept_set": "a_N", "scene": []}', "'train' split have no prompt with a reference"),
    ]:
        put(tmp_path / "commongen.train.jsonl", line + "\n")
        with pytest.raises(DataError, match=words):
            text_gym.make_task("commongen", folder=str(tmp_path))
    cnn_files(tmp_path)
    put_table(tmp_path / "test.csv", ("id", "article"), ("1", "news"))
    with pytest.raises(DataError, match=r"test\.csv has no column 'highlights'"):
        text_gym.make_task("cnn_dailymail", folder=str(tmp_path))
    iwslt_files(tmp_path)
    for file in (tmp_path / "en-de").glob("*dev*.de.xml"):
        file.unlink()
    with pytest.raises(DataError, match=r"no file .*IWSLT17\.TED\.dev2010\.en-de\.en\.xml and its translation"):
        text_gym.make_task("iwslt", folder=str(tmp_path))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"limits": 3}, r"task 'commongen' has no option 'limits'\. Did you mean 'limit'"),
        ({"valid": 0.5}, "no option 'valid'"),
        ({"test": "a.txt"}, "no option 'test'"),
        ({"limit": 1}, "limit must be a whole number of at least 2"),
        ({"max_length": 1}, "max_length"),
    ],
)
def test_options_that_there_are_not(options, words, tmp_path):
    commongen_files(tmp_path)
    with pytest.raises(OptionError, match=words):
        text_gym.make_task("commongen", folder=str(tmp_path), **options)


def test_likelihood_learns_one(tmp_path):
    commongen_files(tmp_path)
    env = gym.make("TextGen-v0", task="commongen", folder=str(tmp_path))
    agent = MLE(env, seed=0, hidden=16, embedding=16, early_stopping=False, dropout=0.0, progress=False)
    before = agent.nll("train")
    agent.learn(3)
    assert agent.nll("train") < before


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("commongen", "mle --task \"commongen(folder='data/commongen')\""),
        ("narrativeqa", "mle --task \"narrativeqa(folder='data/narrativeqa', limit=2000)\" --policy transformer"),
        ("iwslt", "mle --task \"iwslt(folder='data/iwslt', limit=2000)\""),
    ],
)
def test_the_commands_of_the_page_train(name, words, tmp_path, monkeypatch, capsys):
    page = Path(__file__).parents[3] / "docs" / "grue.md"
    command = next(
        line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith(f"text-gym train {words}")
    )
    FILES[name](tmp_path / "data" / name)
    monkeypatch.chdir(tmp_path)
    few = ["--samples", "2", "--references", "2", "--temperatures", "1", "--sweep-samples", "2", "--shown", "0"]
    small = [*few, "--out", "run", "--steps", "1", "--hidden", "8", "--embedding", "8"]
    assert main([*shlex.split(command)[1:], *small]) == 0
    assert (tmp_path / "run").is_dir()
