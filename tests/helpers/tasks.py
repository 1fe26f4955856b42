"""Names of the registered tasks, and tasks from given sequences."""

import inspect

from text_gym.sequences import Examples, Sequences
from text_gym.tasks import Task
from text_gym.tasks.registry import TASKS
from text_gym.vocab import Vocabulary

WITH_FILES = [name for name in TASKS.entries if "folder" in inspect.signature(TASKS.find(name)).parameters]
WITHOUT_FILES = [name for name in TASKS.entries if name not in WITH_FILES]
VOCAB = Vocabulary(["<eos>", "a", "b", "c"], eos=0)


def from_lists(test, valid, train=((1,),), max_length=3):
    """Create a task from sequences of ids, without a known source."""
    splits = {"train": train, "valid": valid, "test": test}
    return Task("hand", VOCAB, max_length, {k: Examples(Sequences.from_lists(v)) for k, v in splits.items()})


def asked_twice(references=(((1, 2), (3,)), ((2,),)), prompts=((1,), (2, 3))):
    """Create a task of prompts with several references; "train" has other references for the same prompts."""
    flat = Sequences.from_lists([list(r) for several in references for r in several])
    asked = Sequences.from_lists([list(p) for p in prompts])
    test = Examples(flat, asked, [len(several) for several in references])
    train = Examples(Sequences.from_lists([[3, 3], [1]]), asked, [1, 1])
    return Task("asked", VOCAB, 3, {"train": train, "valid": train, "test": test}, prompt_length=2)
