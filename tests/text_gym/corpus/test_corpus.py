"""Tasks from files: formats, options, splits, the cache, reports and errors."""

import io
import json
import logging
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import text_gym
from text_gym.corpus import cache
from text_gym.errors import DataError, OptionError, RewardError
from text_gym.rewards import Scorer
from text_gym.vocab import Vocabulary

LINES = [f"line {i} of {i % 7} and {i % 3}" for i in range(200)]


def texts_of(task, split):
    return task.batch(split).texts


def test_a_text_file(write):
    task = text_gym.make_task(write("some.txt", "b a\na c a\n\n  \nb\n"), valid=0.0, test=0.0)
    assert task.vocab.tokens == ("<eos>", "<unk>", "a", "b", "c")
    assert texts_of(task, "train") == ["b a", "a c a", "b"]
    assert (task.report.lines, task.report.empty, task.report.too_long) == (3, 2, 0)
    assert task.max_length == 4
    assert (task.name, task.conditional, task.source) == ("some", False, None)
    assert len(task.valid) == len(task.test) == 0


def test_ids_are_by_frequency_then_text_in_every_process(write):
    path = write("some.txt", "d b c\nc b a\n")
    code = f"import text_gym; print(text_gym.make_task({str(path)!r}, valid=0.0, test=0.0).vocab.tokens)"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("0", "7")
    }
    assert outputs == {"('<eos>', '<unk>', 'b', 'c', 'a', 'd')\n"}


def test_splits_are_disjoint_deterministic_and_of_the_size_asked_for(write):
    path = write("some.txt", "\n".join(LINES))
    task = text_gym.make_task(path, valid=0.2, test=0.1)
    sizes = [len(task.split(s)) for s in ("train", "valid", "test")]
    assert sizes == [140, 40, 20]
    parts = [[" ".join(map(str, r)) for r in task.split(s).references.to_lists()] for s in ("train", "valid", "test")]
    again = text_gym.make_task(path, valid=0.2, test=0.1)
    assert parts[2] == [" ".join(map(str, r)) for r in again.test.references.to_lists()]
    other = text_gym.make_task(path, valid=0.2, test=0.1, seed=1)
    assert texts_of(other, "test") != texts_of(task, "test")
    reversed_ = text_gym.make_task(write("other.txt", "\n".join(reversed(LINES))), valid=0.2, test=0.1)
    assert sorted(texts_of(reversed_, "test")) == sorted(texts_of(task, "test"))


def test_seeds_hold_out_independently(write):
    """The test splits of two seeds overlap like two random samples."""
    path = write("some.txt", "\n".join(f"{i:06d}" for i in range(2000)))
    splits = [set(texts_of(text_gym.make_task(path, seed=s, tokenizer="char"), "test")) for s in range(12)]
    shared = [len(a & b) for i, a in enumerate(splits) for b in splits[:i]]
    assert all(len(split) == 200 for split in splits)
    assert 5 < min(shared) <= max(shared) < 45


def test_seeds_are_of_any_size_and_of_any_kind_of_whole_number(write):
    path = write("some.txt", "\n".join(f"line {i}" for i in range(200)))

    def held_out(seed):
        return text_gym.make_task(path, seed=seed, max_vocab=1).valid.references.to_lists(), text_gym.make_task(
            path, seed=seed
        ).train.references.flat.tolist()

    assert held_out(np.int64(3)) == held_out(3)
    seeds = [0, 2**63, 2**128 - 1, 2**128, 2**200, 10**5000]
    assert len({str(held_out(seed)) for seed in seeds}) == len(seeds)


def test_lines_that_differ_in_spacing_or_are_cut_to_the_same_stay_together(write):
    spaced = write("spaced.txt", "\n".join(f"a {i}\na  {i} " for i in range(300)))
    task = text_gym.make_task(spaced, tokenizer=r"\w", valid=0.2, test=0.2)
    parts = [{tuple(r) for r in task.split(s).references.to_lists()} for s in ("train", "valid", "test")]
    assert not any(a & b for a, b in [(parts[0], parts[1]), (parts[0], parts[2]), (parts[1], parts[2])])
    cut = write("cut.txt", "\n".join(f"{i % 40} x {i}" for i in range(400)))
    task = text_gym.make_task(cut, max_length=3, long_lines="cut", valid=0.2, test=0.2)
    assert not set(texts_of(task, "train")) & set(texts_of(task, "test"))
    asked = [f'{{"prompt": "p {i % 50}", "reference": "r {i}"}}' for i in range(300)]
    task = text_gym.make_task(write("asked.jsonl", "\n".join(asked)), tokenizer="char", valid=0.2, test=0.2)
    assert not set(task.batch("train").prompts) & set(task.batch("test").prompts)


def test_halves_of_characters_are_replaced_and_counted(write, caplog):
    """JSON that was truncated within a surrogate pair contains lone surrogates."""
    lines = [r'{"text": "a \ud83d b", "note": ["\udc00 x", {"\ud800": 1}]}', r'{"text": "\ud83d\ude00 a"}'] * 3
    path = write("some.jsonl", "\n".join(lines))
    task = text_gym.make_task(path, valid=0.0, test=0.0)
    assert set(texts_of(task, "train")) == {"a \ufffd b", "\U0001f600 a"}
    assert (task.report.broken, task.report.lines) == (3, 6)
    assert "lone surrogates replaced by U+FFFD in 3 texts" in caplog.text
    assert task.train[0].columns == {"note": ["\ufffd x", {"\ufffd": 1}]}
    rows = text_gym.make_task([("ask \ud83d", ["b \udc00", "c"])] * 3, valid=0.0, test=0.0)
    assert rows.batch("train").prompts[0] == "ask \ufffd"
    assert rows.report.broken == 6
    characters = text_gym.make_task(path, valid=0.0, test=0.0, tokenizer="char")
    for token in characters.vocab.tokens:
        token.encode()
    with pytest.raises(OptionError, match="lone surrogate"):
        Vocabulary(["a", "\ud83d"])


def test_a_split_that_gets_nothing_is_reported(write, caplog):
    lines = ["a b"] * 60 + ["c d"] * 40
    task = text_gym.make_task(write("two.txt", "\n".join(lines)))
    assert (len(task.valid), len(task.test)) == (0, 0)
    lines += [f"e {i}" for i in range(30)]
    task = text_gym.make_task(write("more.txt", "\n".join(lines)))
    assert (len(task.valid), len(task.test)) == (13, 13)
    task = text_gym.make_task(write("three.txt", "\n".join(["a b"] * 50 + ["c d"] * 50 + ["e f"] * 50)))
    why = "(equal lines, or equal prompts, stay in the same split)"
    assert f"no lines for valid and test {why}" in caplog.text
    with pytest.raises(RewardError, match=r"'test' split .* is empty"):
        Scorer("bleu(references='test')", task)(task.batch("train", [0]))


def test_equal_lines_never_fall_in_two_splits(write):
    lines = [f"w{i} v{i}" for i in range(60)] * 5
    task = text_gym.make_task(write("some.txt", "\n".join(lines)), tokenizer="char", valid=0.2, test=0.2)
    parts = [set(texts_of(task, s)) for s in ("train", "valid", "test")]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 60
    assert all(len(p) >= 9 for p in parts)


def test_the_vocabulary_is_that_of_the_training_split(write, caplog):
    train, test = write("train.txt", "a b\na\n"), write("test.txt", "a z z\n")
    with caplog.at_level(logging.WARNING):
        task = text_gym.make_task(train, test=str(test), valid=0.0)
    assert task.vocab.tokens == ("<eos>", "<unk>", "a", "b")
    assert texts_of(task, "test") == ["a <unk> <unk>"]
    assert task.report.unknown == {"train": 0, "valid": 0, "test": 2}
    assert "2 of 3 tokens unknown in test" in caplog.text
    assert task.encode("b q") == [3, 1]


def test_rare_words_become_unknown(write):
    path = write("some.txt", "a a a b b c\n<unk> a\n")
    task = text_gym.make_task(path, min_count=2, valid=0.0, test=0.0)
    assert task.vocab.tokens == ("<eos>", "<unk>", "a", "b")
    assert texts_of(task, "train") == ["a a a b b <unk>", "<unk> a"]
    assert task.report.unknown["train"] == 2
    assert text_gym.make_task(path, max_vocab=1, valid=0.0, test=0.0).vocab.tokens == ("<eos>", "<unk>", "a")


def test_long_lines(write, caplog):
    path = write("some.txt", "a b c\na b c d\na\n")
    dropped = text_gym.make_task(path, max_length=4, valid=0.0, test=0.0)
    assert texts_of(dropped, "train") == ["a b c", "a"]
    assert (dropped.max_length, dropped.report.too_long) == (4, 1)
    assert "1 longer than max_length" in caplog.text
    cut = text_gym.make_task(path, max_length=4, long_lines="cut", valid=0.0, test=0.0)
    assert texts_of(cut, "train") == ["a b c", "a b c", "a"]
    with pytest.raises(DataError, match=r"'a b c d' is longer than max_length=4.*long_lines='drop' or 'cut'"):
        text_gym.make_task(path, max_length=4, long_lines="error")
    with pytest.raises(DataError, match=r"every line of .* is longer than max_length=2"):
        text_gym.make_task(write("long.txt", "a b c\na b c d\n"), max_length=2)
    env = gym.make("TextGen-v0", task=str(path), max_length=4, valid=0.0, test=0.0)
    assert env.observation_space.shape == (4,)


def test_tokenizers(write):
    path = write("some.txt", "so, no.\n")
    chars = text_gym.make_task(path, tokenizer="char", valid=0.0, test=0.0)
    assert texts_of(chars, "train") == ["so, no."]
    assert len(chars.train[0].references[0]) == 7
    pattern = text_gym.make_task(path, tokenizer=r"[a-z]+|[.,]", joiner="_", valid=0.0, test=0.0)
    assert texts_of(pattern, "train") == ["so_,_no_."]
    for bad, words in [
        ("words", "unknown tokenizer 'words'"),
        ("(a)", "has capturing groups"),
        ("[", "not a regular expression"),
    ]:
        with pytest.raises(OptionError, match=words):
            text_gym.make_task(path, tokenizer=bad)


class Bytes:
    """A tokenizer with the interface of Hugging Face: its own ids, and special tokens by default."""

    eos_token_id = 256

    def __len__(self):
        return 257

    def encode(self, text, add_special_tokens=True):
        return list(text.encode()) + [256] * add_special_tokens

    def decode(self, ids):
        return bytes(ids).decode()


def test_a_tokenizer_object(write):
    task = text_gym.make_task(write("some.txt", "ab\nc\n"), tokenizer=Bytes(), valid=0.0, test=0.0)
    assert (len(task.vocab), task.vocab.eos, task.max_length) == (257, 256, 3)
    assert texts_of(task, "train") == ["ab", "c"]
    assert task.train[0].references == ((97, 98),)
    env = gym.make("TextGen-v0", task=task, reward="length")
    env.reset(options={"prefix": "a"})
    env.step(98)
    assert env.step(256)[4]["text"] == "ab"

    class Plain:
        vocab_size = 4
        encode = staticmethod(lambda text: [int(c) for c in text])
        decode = staticmethod(lambda ids: "".join(map(str, ids)))

    plain = text_gym.make_task(write("digits.txt", "012\n3\n"), tokenizer=Plain(), valid=0.0, test=0.0)
    assert (len(plain.vocab), plain.vocab.eos) == (5, 4)
    assert texts_of(plain, "train") == ["012", "3"]
    assert task.encode("ab") == [97, 98]

    class Ending(Bytes):
        encode = staticmethod(lambda text: [97, 256, 98] if "|" in text else [97, 256])

    assert text_gym.make_task(write("some.txt", "x\n"), tokenizer=Ending(), valid=0.0, test=0.0).train[0][1] == ((97,),)
    with pytest.raises(DataError, match="EOS token"):
        text_gym.make_task(write("some.txt", "x|\n"), tokenizer=Ending())
    assert gym.make("TextGen-v0", task=task, banned="a").unwrapped.action_masks()[97] == np.False_
    with pytest.raises(DataError, match="but its size is"):
        text_gym.make_task(write("more.txt", "78\n"), tokenizer=Plain())
    with pytest.raises(OptionError, match=r"no encode\(\)"):
        text_gym.make_task(write("some.txt", "ab\nc\n"), tokenizer=3)


def test_json_lines(write):
    path = write("some.jsonl", '{"text": "a b", "mood": 1}\n\n{"text": "b"}\n')
    task = text_gym.make_task(path, valid=0.0, test=0.0)
    assert texts_of(task, "train") == ["a b", "b"]
    path = write(
        "asked.jsonl",
        '{"prompt": "p q", "references": ["a", "a b"], "mood": 1}\n{"prompt": "q", "reference": "b b b"}\n',
    )
    task = text_gym.make_task(path, valid=0.0, test=0.0)
    assert (task.conditional, task.prompt_length, task.max_length, len(task.train)) == (True, 2, 4, 2)
    batch = task.batch("train")
    assert list(zip(batch.prompts, batch.texts, strict=True)) == [("p q", "a"), ("p q", "a b"), ("q", "b b b")]
    assert [e.columns for e in batch.examples] == [{"mood": 1}, {"mood": 1}, {"mood": None}]
    assert task.train[0].references == (tuple(task.encode("a")), tuple(task.encode("a b")))


def test_long_prompts(write):
    path = write("asked.jsonl", '{"prompt": "p q r", "reference": "a"}\n{"prompt": "q", "reference": "b"}\n')
    dropped = text_gym.make_task(path, max_prompt_length=2, valid=0.0, test=0.0)
    assert dropped.batch("train").prompts == ["q"]
    cut = text_gym.make_task(path, max_prompt_length=2, long_lines="cut", valid=0.0, test=0.0)
    assert cut.batch("train").prompts == ["q r", "q"]
    options = {"max_prompt_length": 2, "long_lines": "cut", "valid": 0.0, "test": 0.0}
    assert text_gym.make_task(path, cut_prompts="end", **options).batch("train").prompts == ["p q", "q"]
    with pytest.raises(OptionError, match="cut_prompts must be 'beginning' or 'end', not 'left'"):
        text_gym.make_task(path, cut_prompts="left", **options)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"prompt": "a"}', "line 2: no field 'reference' \\(found: prompt\\)"),
        ('{"reference": "a"}', "line 2: no field 'prompt'"),
        ('{"prompt": "a", "references": []}', "line 2: 'references' must be a list of strings"),
        ('{"prompt": "a", "references": ["b", 3]}', "line 2: 'references' must be a list of strings"),
        ('{"prompt": 3, "reference": "b"}', "line 2: 'prompt' must be a string"),
        ('{"prompt": "a", "reference": null}', "line 2: 'reference' must be a string"),
        ('{"prompt": "a", ', "line 2: invalid JSON"),
        ("[1, 2]", "line 2: expected a JSON object"),
        ('{"text": "a"}', "line 2: no field 'prompt'"),
    ],
)
def test_bad_json_lines_are_named(write, line, words):
    with pytest.raises(DataError, match=words):
        text_gym.make_task(write("bad.jsonl", '{"prompt": "p", "reference": "a"}\n' + line + "\n"))


def test_files_that_cannot_be_read(write, tmp_path):
    for path, words in [
        (write("empty.txt", ""), "is empty"),
        (write("blank.txt", "\n \n"), "only blank lines"),
        (tmp_path / "absent.txt", "no file .*is the path right"),
        (write("table.csv", "a,b"), "give a file that ends in .txt, .jsonl, .abc"),
        (
            write("latin.txt", "ab\n" * 5000 + "caf\xe9\n" + "ab\n", "latin-1"),
            "line 5001: not utf-8.*encoding='latin-1'",
        ),
        (write("eos.txt", "a <eos> b\n"), "'<eos>', which is reserved"),
    ]:
        with pytest.raises(DataError, match=words):
            text_gym.make_task(path)
    latin = text_gym.make_task(tmp_path / "latin.txt", encoding="latin-1")
    assert latin.report.lines == 5002
    for encoding in ("latin-99", "base64", "", 8, "a\0b"):
        with pytest.raises(OptionError, match="encoding="):
            text_gym.make_task(tmp_path / "latin.txt", encoding=encoding)
    with pytest.raises(DataError, match="not utf-16"):
        text_gym.make_task(write("ascii.txt", "abc\n"), encoding="utf-16")
    asked, plain = write("asked.jsonl", '{"prompt": "p", "reference": "a"}\n'), write("plain.txt", "a\n")
    with pytest.raises(DataError, match="prompts"):
        text_gym.make_task(asked, test=str(plain))


def test_marks_of_other_systems(write):
    path = write("windows.txt", b"\xef\xbb\xbfa b\r\nb\r\n")
    assert texts_of(text_gym.make_task(path, valid=0.0, test=0.0), "train") == ["a b", "b"]
    assert texts_of(text_gym.make_task(path, encoding="UTF8", valid=0.0, test=0.0), "train") == ["a b", "b"]
    path = write("wide.txt", "a b\nb\n", "utf-16")
    assert texts_of(text_gym.make_task(path, encoding="utf-16", valid=0.0, test=0.0), "train") == ["a b", "b"]


@pytest.mark.parametrize(
    "options",
    [{"max_length": 1}, {"min_count": 0}, {"max_vocab": 0}, {"valid": 1.0}, {"valid": 0.5, "test": 0.5}, {"test": -0.1},
     {"long_lines": "keep"}, {"valid": None}, {"test": "much"}, {"seed": -1}, {"joiner": 3}, {"max_length": True}],
)  # fmt: skip
def test_options_that_make_no_sense(write, options):
    with pytest.raises((OptionError, DataError)):
        text_gym.make_task(write("some.txt", "a\n"), **options)


def test_tunes(write):
    tunes = (
        'X:1\nT:One\nM:3/4\nL:1/4\nK:G\ne|:"G"d2B,|^c\'3/2 z2 (3abc:|\nM:2/4\n[1 A/2|]\n\nX:2\nT:Two\nK:D\nd2 % no\n'
    )
    task = text_gym.make_task(write("tunes.abc", tunes), valid=0.0, test=0.0)
    assert texts_of(task, "train") == [
        '[M:3/4] [K:G] e |: "G" d2 B, | ^c\'3/2 z2 (3 a b c :| [M:2/4] [1 A/2 |]',
        "[K:D] d2",
    ]


def test_tunes_among_other_text(write):
    tunes = 'Some words\n\nX:1\nM:4/4\nK:C\nAB "50%" c | % words\nd:|\n\nMore words, A B\n\nX:2\nK:D\nefg|\n'
    task = text_gym.make_task(write("tunes.abc", tunes), valid=0.0, test=0.0)
    assert texts_of(task, "train") == ['[M:4/4] [K:C] A B "50%" c | d :|', "[K:D] e f g |"]


def test_real_tunes_poems_and_captions(data):
    tunes = text_gym.make_task(data / "nottingham.abc")
    assert tunes.report.lines == 1034
    captions = text_gym.make_task(data / "coco_train.txt", test=str(data / "coco_test.txt"), max_length=30)
    assert len(captions.test) > 9_900
    raw = (data / "coco_train.txt").read_text(encoding="utf-8").splitlines()
    kept = {" ".join(line.split()) for line in raw if len(line.split()) < 30}
    assert set(texts_of(captions, "train")) <= kept
    poems = text_gym.make_task(data / "poems_zh.txt")
    assert (poems.report.lines, poems.report.empty) == (16_394, 0)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(st.text(st.sampled_from("ab c\t\u00e9\u4e2d\u2028\x0b"), max_size=12), min_size=1, max_size=12),
    tokenizer=st.sampled_from(["word", "char"]),
    valid=st.sampled_from([0.0, 0.3]),
)
def test_what_is_read_is_what_was_written(write, lines, tokenizer, valid):
    """Every line that is not blank is in exactly one split, and decoding gives the line again."""
    cut = (lambda line: line.split()) if tokenizer == "word" else list
    kept = [line for line in lines if cut(line)]
    path = write("some.txt", "\n".join(lines) + "\n")
    if not kept:
        with pytest.raises(DataError):
            text_gym.make_task(path, tokenizer=tokenizer)
        return
    task = text_gym.make_task(path, tokenizer=tokenizer, valid=valid, test=valid)
    joiner = " " if tokenizer == "word" else ""
    known = set(task.vocab.tokens)
    expected = sorted(joiner.join(t if t in known else "<unk>" for t in cut(line)) for line in kept)
    assert sorted(text for split in ("train", "valid", "test") for text in texts_of(task, split)) == expected
    assert task.report.empty == len(lines) - len(kept)


@pytest.fixture
def large(write):
    words = [f"w{i % 997}" for i in range(300_000)]
    lines = [" ".join(words[i : i + 7]) for i in range(0, len(words), 7)]
    return write("large.txt", "\n".join(lines))


def test_the_cache_gives_the_same_task(large, tmp_path):
    first = text_gym.make_task(large, min_count=2)
    (stored,) = (tmp_path / "cache").iterdir()
    again = text_gym.make_task(large, min_count=2)
    assert again.vocab.tokens == first.vocab.tokens
    assert again.report == first.report
    for split in ("train", "valid", "test"):
        assert (again.split(split).references.flat == first.split(split).references.flat).all()
    assert len(list((tmp_path / "cache").iterdir())) == 1
    text_gym.make_task(large, min_count=3)
    assert len(list((tmp_path / "cache").iterdir())) == 2
    large.write_text(large.read_text() + "\nnew words here")
    assert text_gym.make_task(large, min_count=2).report.lines == first.report.lines + 1
    assert stored.exists()


def test_the_cache_is_really_used_and_a_damaged_one_is_not(large, tmp_path, monkeypatch):
    first = text_gym.make_task(large)
    (stored,) = (tmp_path / "cache").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr("text_gym.corpus.builder.read_records", lambda *_: pytest.fail("read again"))
        text_gym.make_task(large)
    whole = stored.read_bytes()
    empty_zip = b"PK\x05\x06" + bytes(18)
    other = io.BytesIO()
    with np.load(io.BytesIO(whole)) as archive:
        np.savez(other, **{name: archive[name][:-3] if name == "train.flat" else archive[name] for name in archive})
    for damage in (whole[: len(whole) // 2], b"", whole[:-200] + bytes(200), empty_zip, other.getvalue()):
        stored.write_bytes(damage)
        assert text_gym.make_task(large).report == first.report
    blocked = tmp_path / "a file"
    blocked.write_text("")
    monkeypatch.setenv("TEXT_GYM_CACHE", str(blocked / "folder"))
    assert text_gym.make_task(large).report == first.report


def test_small_files_and_cache_false_leave_nothing_behind(write, large, tmp_path):
    text_gym.make_task(write("small.txt", "a b\n"))
    text_gym.make_task(large, cache=False)
    assert not (tmp_path / "cache").exists()
    assert cache.folder() == tmp_path / "cache"


def test_conditional_corpora_are_cached_whole(write, tmp_path):
    lines = [json.dumps({"prompt": f"ask {i}", "references": [f"a {i}"] * (1 + i % 2), "n": i}) for i in range(25_000)]
    path = write("asked.jsonl", "\n".join(lines))
    assert path.stat().st_size > cache.SMALLEST
    first, again = text_gym.make_task(path), text_gym.make_task(path)
    assert (tmp_path / "cache").exists()
    assert [again.test[i] for i in range(50)] == [first.test[i] for i in range(50)]
    assert again.prompt_length == 2


def test_progress_is_shown_on_a_terminal_only(write, capfd, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    text_gym.make_task(write("some.txt", "a b c\n" * 50_000))
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_a_million_lines(tmp_path):
    """Reading a million lines takes less than 20 s of CPU time and 1 GB."""
    path = tmp_path / "million.txt"
    numbers = np.random.default_rng(0).zipf(1.3, (1_000_000, 10)) % 60_000
    with path.open("w") as file:
        file.writelines(" ".join(map(str, row)) + "\n" for row in numbers.tolist())
    code = (
        "import time, text_gym\n"
        "from agents.bench.memory import resident_bytes\n"
        f"task = text_gym.make_task({str(path)!r}, cache=False)\n"
        "print(task.report.lines, resident_bytes('VmHWM'), time.process_time())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines, peak, seconds = map(float, done.stdout.split())
    assert lines == 1_000_000
    assert seconds < 20
    assert peak < 10**9
