"""Tasks from Python objects: lists, dicts and Hugging Face Datasets."""

import gymnasium as gym
import pytest

from text_gym import make_task
from text_gym.errors import TextGymError

LINES = ["we go on", "let us go", "we shall not", "go on", "let us not go on"]
PAIRS = [("2 + 2", "4"), ("1 + 1", ["2", "two"]), ("3 + 3", ("6",))]


class Table:
    """A minimal table: columns by name, without the other methods of a Dataset."""

    def __init__(self, **columns):
        self.columns = columns
        self.column_names = list(columns)

    def __getitem__(self, name):
        return self.columns[name]


def texts(task, split="train"):
    return task.batch(split).texts


def asked(task, split="train"):
    """Return each prompt with its references, as texts."""
    examples = task.split(split)
    return [
        (task.decode(example.prompt), [task.decode(reference) for reference in example.references])
        for example in (examples[i] for i in range(len(examples)))
    ]


def test_a_list_of_texts_is_the_task_that_its_file_is(write):
    path = write("lines.txt", "\n".join(LINES * 4) + "\n")
    here, there = make_task(LINES * 4), make_task(path)
    assert (here.name, there.name) == ("list", "lines")
    assert (here.vocab.tokens, here.max_length, here.report) == (there.vocab.tokens, there.max_length, there.report)
    for split in ("train", "valid", "test"):
        assert texts(here, split) == texts(there, split)
    spelled = make_task(tuple(LINES), tokenizer="char", valid=0, test=0)
    assert texts(spelled) == LINES


def test_pairs_are_prompts_with_their_references():
    task = make_task(PAIRS, valid=0, test=0)
    assert task.conditional
    assert asked(task) == [("2 + 2", ["4"]), ("1 + 1", ["2", "two"]), ("3 + 3", ["6"])]


def test_columns_of_dicts_and_tables_are_found_or_named():
    rows = [{"text": line, "stars": i} for i, line in enumerate(LINES)]
    columns = Table(text=LINES, stars=list(range(5)))
    for objects in (rows, columns):
        task = make_task(objects, valid=0, test=0)
        assert texts(task) == LINES
        assert task.train.columns == {"stars": [0, 1, 2, 3, 4]}
    prompts, answers = zip(*PAIRS, strict=True)
    for table, names in [
        (Table(prompt=prompts, references=answers), {}),
        (Table(prompt=prompts, completion=answers), {}),
        (Table(q=prompts, a=answers, text=prompts), {"prompt_column": "q", "references_column": "a"}),
        (Table(prompt=prompts, text=LINES[:3], a=answers), {"references_column": "a"}),
    ]:
        assert asked(make_task(table, valid=0, test=0, **names)) == asked(make_task(PAIRS, valid=0, test=0)), names
    named = make_task(Table(text=LINES, caption=LINES[::-1]), text_column="caption", valid=0, test=0)
    assert texts(named) == LINES[::-1]


def test_splits_are_named_or_held_out(write):
    held_out = ["go on", "we go"]
    for task in (
        make_task({"train": LINES, "validation": held_out, "test": held_out}),
        make_task(LINES, valid=held_out, test=held_out),
        make_task({"train": LINES, "test": held_out}, valid=str(write("valid.txt", "go on\nwe go\n"))),
    ):
        assert [texts(task, split) for split in ("train", "valid", "test")] == [LINES, held_out, held_out]
    task = make_task({"train": LINES * 4, "test": held_out}, valid=0.2)
    assert len(task.train) + len(task.valid) == 20
    assert len(task.valid) == 4


def test_hugging_face_datasets():
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_dict({"caption": LINES, "stars": list(range(5))})
    task = make_task(whole, text_column="caption", valid=0, test=0)
    assert (texts(task), task.train.columns["stars"]) == (LINES, [0, 1, 2, 3, 4])
    splits = datasets.DatasetDict(train=whole, validation=whole, test=whole)
    env = gym.make("TextGen-v0", task=splits, text_column="caption", max_length=4)  # drops the longest line
    assert texts(env.unwrapped.task, "valid") == LINES[:4]
    pairs = datasets.Dataset.from_dict({"prompt": ["2 + 2"], "references": [["4", "four"]]})
    assert asked(make_task(pairs, valid=0, test=0)) == [("2 + 2", ["4", "four"])]


def test_environments_take_them():
    envs = gym.make_vec("TextGen-v0", num_envs=2, task=PAIRS, reward="exact_match", test=0, valid=0)
    observation, _ = envs.reset(seed=0)
    assert {envs.unwrapped.task.decode(prompt) for prompt in observation["prompt"]} <= {"2 + 2", "1 + 1", "3 + 3"}
    with pytest.raises(TextGymError, match=r"unexpected keyword argument 'txt_column'. Did you mean 'text_column'"):
        gym.make("TextGen-v0", task=LINES, txt_column="a")


@pytest.mark.parametrize(
    ("objects", "options", "words"),
    [
        ([], {}, "this list is empty"),
        (["", " "], {}, "only blank lines"),
        ([1, 2], {}, "this list, row 0: a row must be a text, a (prompt, references) pair, or a dict"),
        ([("a", "b", "c")], {}, "this list, row 0: a row must be a text"),
        (["a", ("b", "c")], {}, "this list, row 1: not all rows have prompts"),
        ([("a", [])], {}, "row 0: the references must be a string or a list of strings, not []"),
        (
            [{"prompt": "a"}],
            {},
            "row 0 has the columns prompt, none of them with a default name; give text_column",
        ),
        ([{"text": 5}], {}, "row 0: text must be a string, not 5"),
        (
            Table(caption=LINES),
            {},
            "this Table has the columns caption, none of them with a default name; give text_column=...",
        ),
        (Table(caption=LINES), {"text_column": "captoin"}, "Did you mean 'caption'"),
        (Table(text=LINES), {"text_column": "text", "prompt_column": "text"}, "not both"),
        ({"train": LINES, "unsupervised": LINES}, {}, "not 'train', 'unsupervised'"),
        ({"text": LINES}, {}, "the splits must be 'train'"),
        (
            {"train": "lines.txt"},
            {},
            "the 'train' split must be a list of texts or pairs, or a Dataset, not 'lines.txt'",
        ),
        (5, {}, "a task must be a name, a path, a text_gym.Task, a list of texts"),
        (b"a b", {}, "a task must be a name"),
        (LINES, {"maxlength": 5}, "the task from this list has no option 'maxlength'. Did you mean 'max_length'"),
        (LINES, {"max_length": 2}, "every line of this list is longer than max_length=2 allows"),
    ],
)
def test_mistakes_are_told_with_their_place(objects, options, words):
    with pytest.raises(TextGymError) as refused:
        make_task(objects, **options)
    assert words in str(refused.value)
