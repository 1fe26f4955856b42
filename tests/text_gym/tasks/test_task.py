"""Tasks by name, path and constructor, vocabularies, batches, and the task "answers"."""

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import text_gym
from tests.helpers.tasks import WITHOUT_FILES
from text_gym.errors import DataError, OptionError, TaskError, UnknownNameError
from text_gym.sequences import Batch, Examples, Sequences, make_batch
from text_gym.tasks import Task, register_task
from text_gym.vocab import Vocabulary

rows_of_ids = st.lists(st.lists(st.integers(1, 6), max_size=6), max_size=8)
LETTERS = Vocabulary(["<eos>", *"abcdef"], eos=0)


@pytest.mark.parametrize("name", WITHOUT_FILES)
def test_every_registered_task_is_whole(name):
    fewer = {"train_size": 50, "valid_size": 50, "test_size": 50} if name == "oracle" else {}
    task = text_gym.make_task(name, **fewer)
    for split in ("train", "valid", "test"):
        batch = task.batch(split, range(20))
        assert batch.tokens.shape == (20, task.max_length)
        assert all(task.encode(text) == sentence for text, sentence in zip(batch.texts, batch.sentences, strict=True))
        assert not task.conditional or all(batch.prompts)
    assert task.train is task.train
    assert copy.deepcopy(task) is task
    parts = (
        [{tuple(r) for r in task.split(s).prompts.to_lists()} for s in ("train", "test")] if task.conditional else []
    )
    assert not parts or not parts[0] & parts[1]


def test_names_paths_and_factories(write):
    assert text_gym.make_task("grammar(seed=3)").entropy() == text_gym.make_task("grammar", seed=3).entropy()
    assert text_gym.make_task("tests.text_gym.tasks.test_task:tiny_task").name == "tiny"
    path = write("some.txt", "ab\n")
    assert text_gym.make_task(f"{path}(tokenizer='char')").max_length == 3
    register_task("tiny", tiny_task)
    assert text_gym.make_task("tiny", letters="xy").vocab.tokens == ("<eos>", "x", "y")
    made = text_gym.make_task("grammar")
    assert text_gym.make_task(made) is made
    with pytest.raises(OptionError, match="already"):
        register_task("grammar", tiny_task)
    with pytest.raises(OptionError, match="cannot be called"):
        register_task("five", 5)


def test_the_same_task_is_made_once_while_it_is_in_use(write):
    one = text_gym.make_task("grammar", seed=8)
    assert text_gym.make_task("grammar(seed=8)") is one
    assert text_gym.make_task("grammar", seed=9) is not one
    path = write("some.txt", "a b\n")
    first = text_gym.make_task(path)
    assert text_gym.make_task(str(path)) is text_gym.make_task(str(path))
    assert text_gym.make_task(path, max_length=9) is not first
    path.write_text("a b c d\n")
    assert text_gym.make_task(path).vocab.tokens != first.vocab.tokens
    register_task("twin", tiny_task)
    twin = text_gym.make_task("twin")
    register_task("twin", lambda letters="zz": tiny_task("z"), replace=True)
    assert text_gym.make_task("twin").vocab.tokens != twin.vocab.tokens


def tiny_task(letters="ab"):
    """Create a task with two letters."""
    vocab = Vocabulary(["<eos>", *letters], eos=0)
    return Task("tiny", vocab, 3, {"train": Examples(Sequences.from_lists([[1], [2, 1]]))})


def no_task(size):
    return [size]


@pytest.mark.parametrize(
    ("spec", "options", "error", "words"),
    [
        ("gramar", {}, UnknownNameError, "Did you mean 'grammar'.*Known: answers, cnn_dailymail"),
        ("grammar", {"sed": 1}, OptionError, "no option 'sed'.*Did you mean 'seed'"),
        ("grammar(seed)", {}, OptionError, "key=value"),
        ("grammar(seed=__import__('os'))", {}, OptionError, "cannot read"),
        ("some/folder", {}, DataError, "give a file that ends in"),
        ("tests.text_gym.tasks.test_task:LETTERS", {}, UnknownNameError, "cannot be called"),
        ("tests.text_gym.tasks.test_task:no_task", {"size": 1}, TaskError, "not a text_gym.Task"),
        ("tests.text_gym.tasks.test_task:no_task", {}, OptionError, "missing a required argument: 'size'"),
        ("os:path", {}, UnknownNameError, "cannot be called"),
        (":b", {}, UnknownNameError, "cannot import ''"),
        ("grammar", {"seed": -1}, OptionError, "seed must be"),
        ("grammar", {"seed": "x"}, OptionError, "seed must be"),
        ("grammar", {"train_size": 2.5}, OptionError, "train_size must be"),
        ("grammar", {"max_length": "5"}, OptionError, "max_length must be"),
        ("oracle", {"seed": 1.5}, OptionError, "seed must be"),
        ("oracle", {"vocab_size": True}, OptionError, "vocab_size must be"),
        ("answers", {"seed": None}, OptionError, "seed must be"),
        (3, {}, OptionError, "a name, a path"),
        (LETTERS, {}, OptionError, "a name, a path"),
    ],
)
def test_bad_specs(spec, options, error, words):
    with pytest.raises(error, match=words):
        text_gym.make_task(spec, **options)
    with pytest.raises(OptionError, match="takes no options"):
        text_gym.make_task(text_gym.make_task("answers"), seed=1)


def test_a_task_without_a_source_says_so(answers):
    for ask in (lambda: answers.sample(3), lambda: answers.log_prob([[1]]), lambda: answers.is_valid([[1]])):
        with pytest.raises(TaskError, match="no known source"):
            ask()
    with pytest.raises(OptionError, match="unknown split 'trian'"):
        answers.split("trian")
    assert text_gym.make_task("oracle", vocab_size=5).knows("log_prob")
    assert not text_gym.make_task("oracle", vocab_size=5).knows("is_valid")


def right_answer(question):
    """Compute the answer from the text of the question."""
    words = question.split()
    if words[:2] == ["what", "is"]:
        sign = words.index("plus") if "plus" in words else words.index("minus")
        a, b = int("".join(words[2:sign])), int("".join(words[sign + 1 : -1]))
        return " ".join(str(a + b if words[sign] == "plus" else a - b))
    *facts, asked = " ".join(words[:-1]).split(" . ")
    table = dict(fact.split(" has ") for fact in facts)
    if asked.startswith("who has "):
        return {thing: person for person, thing in table.items()}[asked.removeprefix("who has ")]
    return table[asked.split()[2]]


def test_every_question_has_its_one_right_answer(answers):
    kinds = set()
    for split in ("train", "valid", "test"):
        batch = answers.batch(split)
        assert [right_answer(p) for p in batch.prompts] == batch.texts
        assert all(len(example.references) == 1 for example in batch.examples)
        kinds |= {prompt.split()[0] + prompt.split()[-2] for prompt in batch.prompts}
    assert [len(answers.split(s)) for s in ("train", "valid", "test")] == [1600, 200, 200]
    prompts = [tuple(p) for s in ("train", "valid", "test") for p in answers.split(s).prompts.to_lists()]
    assert len(set(prompts)) == 2000
    assert text_gym.make_task("answers", seed=1).train[0] != answers.train[0]
    assert len(text_gym.make_task("answers", size=5000).train) == 4000
    for options in ({"size": 3}, {"max_length": 3}):
        with pytest.raises(OptionError):
            text_gym.make_task("answers", **options)


@settings(deadline=None)
@given(rows=rows_of_ids, width=st.integers(1, 8), data=st.data())
def test_sequences_give_back_what_they_were_given(rows, width, data):
    packed = Sequences.from_lists(rows)
    assert packed.to_lists() == rows
    assert [packed[i].tolist() for i in range(len(rows))] == rows
    chosen = data.draw(st.lists(st.integers(0, max(len(rows) - 1, 0)), max_size=5 if rows else 0))
    assert packed[np.array(chosen, dtype=int)].to_lists() == [rows[i] for i in chosen]
    keep = np.array([len(r) > 2 for r in rows], dtype=bool)
    assert packed[keep].to_lists() == [r for r in rows if len(r) > 2]
    tokens, lengths = packed.padded(width, pad=7, eos=0)
    for row, line, length in zip(rows, tokens.tolist(), lengths.tolist(), strict=True):
        whole = ([*row[:width], 0])[:width]
        assert line == whole + [7] * (width - len(whole))
        assert length == len(whole)
    if rows:
        assert packed[-1].tolist() == rows[-1]
        with pytest.raises(IndexError):
            packed[len(rows)]


@settings(deadline=None)
@given(rows=st.lists(st.lists(st.integers(1, 6), max_size=5), min_size=1, max_size=5))
def test_batches_with_and_without_lengths_are_one(rows):
    tokens, lengths = Sequences.from_lists(rows).padded(6, pad=7, eos=0)
    batch = make_batch(tokens, None, LETTERS)
    assert batch.lengths.tolist() == lengths.tolist() == [len(r) + 1 for r in rows]
    assert batch.content_lengths.tolist() == [len(r) for r in rows]
    assert batch.sentences == rows
    assert batch.texts == [LETTERS.decode(r) for r in rows]
    assert batch.valid_mask.sum(1).tolist() == lengths.tolist()
    assert [LETTERS.encode(t) for t in batch.texts] == rows


@pytest.mark.parametrize(
    ("tokens", "lengths", "words"),
    [
        ([[1.5]], None, "must be integers"),
        ([[[1]]], None, "must be integers"),
        ([[8]], None, r"0\.\.7"),
        ([[-1]], None, r"0\.\.7"),
        ([[1, 2]], [3], r"0\.\.2"),
        ([[1, 2]], [1, 2], "lengths must be 1"),
        ([[7, 1]], [2], "PAD .* occurs within"),
    ],
)
def test_bad_batches(tokens, lengths, words):
    with pytest.raises(OptionError, match=words):
        make_batch(tokens, lengths, LETTERS)


def test_what_follows_the_end_is_not_read():
    batch = make_batch([[1, 0, 2, 3]], None, LETTERS)
    assert (batch.sentences, batch.lengths.tolist(), batch.tokens.tolist()) == ([[1]], [2], [[1, 0, 7, 7]])
    assert Batch(np.zeros((0, 3), dtype=int), np.zeros(0, dtype=int), LETTERS).texts == []


def test_vocabularies():
    vocab = Vocabulary(["<eos>", "<unk>", "a", "b"], eos=0, unk=1)
    assert (vocab.encode("a c b"), vocab.decode([2, 1, 3, 0, 2]), vocab.pad, len(vocab)) == (
        [2, 1, 3],
        "a <unk> b",
        4,
        4,
    )
    with pytest.raises(DataError, match="'z' is not in this vocabulary"):
        LETTERS.encode("a z")
    for tokens, options, words in [
        ([], {}, "at least one token"),
        (["a", "a"], {}, "duplicate tokens"),
        (["a"], {"eos": 1}, "the id 1 of EOS or UNK"),
    ]:
        with pytest.raises(OptionError, match=words):
            Vocabulary(tokens, **options)
