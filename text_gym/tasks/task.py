"""What is to be generated: a vocabulary, a longest length, data, and where it is known, the source.

`make_task` turns a name, a path or a Task into a Task. `register_task` adds a name.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from text_gym.arrays import BoolArray, FloatArray, IntArray
from text_gym.corpus.corpus import CorpusOptions, read_corpus
from text_gym.corpus.readers import SUFFIXES
from text_gym.errors import OptionError, TaskError
from text_gym.registry import lookup, parse_call, register
from text_gym.sequences import SPLITS, Batch, Example, Examples, Sequences
from text_gym.validation import check_options, suggest, whole_number
from text_gym.vocab import Vocabulary


class Source(Protocol):
    """The process that data came from, when it is known."""

    vocab: Vocabulary

    def sample(self, n: int, seed: int | np.random.Generator | None = None) -> Batch:
        """Draw n sequences."""

    def log_prob(self, tokens: npt.ArrayLike, lengths: npt.ArrayLike | None = None) -> FloatArray:
        """The log-probability of each sequence, in nats."""


class Task:
    """A text-generation problem. Once made it does not change, and copies share it.

    Attributes:
        name: What reports call it.
        vocab: The tokens; `len(vocab)` is the number of actions.
        max_length: The most tokens of a sequence, EOS included.
        prompt_length: The most tokens of a prompt; 0 for tasks without prompts.
        source: The known source of the data, or None.
        default_reward: The reward of an environment that is not given one: a name, or any other spec of rewards.
        report: For files, what was read and what was left out.
    """

    def __init__(
        self,
        name: str,
        vocab: Vocabulary,
        max_length: int,
        splits: Mapping[str, Examples] | Callable[[str], Examples],
        prompt_length: int = 0,
        source: Source | None = None,
        default_reward: Any = "bleu",
        report: Any = None,
    ) -> None:
        """Take the parts; `splits` may be a function, called once for each split when it is first used."""
        if source is not None and source.vocab.tokens != vocab.tokens:
            raise TaskError(
                f"the source of task {name!r} has {len(source.vocab)} tokens and the task {len(vocab)}; "
                "both must have the same vocabulary"
            )
        self.name = name
        self.vocab = vocab
        self.max_length = whole_number("max_length", max_length, least=1)
        self.prompt_length = whole_number("prompt_length", prompt_length, least=0)
        self.source = source
        self.default_reward = default_reward
        self.report = report
        self._make_split = splits.__getitem__ if isinstance(splits, Mapping) else splits
        self._splits: dict[str, Examples] = {}

    def __repr__(self) -> str:
        kind = "conditional, " if self.conditional else ""
        return f"Task({self.name!r}, {kind}{len(self.vocab)} tokens, max_length={self.max_length})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Task:
        """Itself: a task does not change, and Gymnasium copies what an EnvSpec holds."""
        return self

    @property
    def conditional(self) -> bool:
        """Whether there are prompts to answer."""
        return self.prompt_length > 0

    def split(self, name: str) -> Examples:
        """The sequences, or prompts with references, of "train", "valid" or "test"."""
        if name not in SPLITS:
            raise OptionError(f"unknown split {name!r}." + suggest(str(name), SPLITS))
        if name not in self._splits:
            self._splits[name] = self._make_split(name)
        return self._splits[name]

    @property
    def train(self) -> Examples:
        """The split to learn from."""
        return self.split("train")

    @property
    def valid(self) -> Examples:
        """The split to choose settings by."""
        return self.split("valid")

    @property
    def test(self) -> Examples:
        """The split to report on."""
        return self.split("test")

    def batch(self, split: str = "train", indices: npt.ArrayLike | None = None) -> Batch:
        """Real sequences of a split as a Batch, each with its prompt if there are prompts."""
        examples = self.split(split)
        rows = np.arange(len(examples.references)) if indices is None else np.asarray(indices)
        tokens, lengths = examples.references[rows].padded(self.max_length, self.vocab.pad, self.vocab.eos)
        asked: list[Example] | None = None
        if self.conditional:
            asked = [examples[i] for i in examples.owner[rows].tolist()]
        return Batch(tokens, lengths, self.vocab, asked)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without EOS."""
        return self.vocab.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, up to EOS."""
        return self.vocab.decode(ids)

    def sample(self, n: int, seed: int | np.random.Generator | None = None) -> Batch:
        """Draw n sequences from the known source."""
        drawn: Batch = self._known_source("sample").sample(n, seed)
        return drawn

    def log_prob(self, tokens: npt.ArrayLike, lengths: npt.ArrayLike | None = None) -> FloatArray:
        """The exact log-probability of each sequence under the known source, in nats, [n]."""
        scores: FloatArray = self._known_source("log_prob").log_prob(tokens, lengths)
        return scores

    def is_valid(self, tokens: npt.ArrayLike, lengths: npt.ArrayLike | None = None) -> BoolArray:
        """Whether each sequence belongs to the source's language, [n]."""
        valid: BoolArray = self._known_source("is_valid").is_valid(tokens, lengths)
        return valid

    def steps(self, tokens: npt.ArrayLike, lengths: npt.ArrayLike | None = None) -> IntArray:
        """The steps that each sequence takes through the source's language, numbers of at least 0, [n, T]."""
        steps: IntArray = self._known_source("steps").steps(tokens, lengths)
        return steps

    def entropy(self) -> float:
        """The exact entropy of the source, in nats a sequence."""
        return float(self._known_source("entropy").entropy())

    def allowed(self, prefixes: IntArray, lengths: IntArray) -> BoolArray:
        """The tokens that keep each prefix inside the source's language, [n, V]."""
        mask: BoolArray = self._known_source("allowed").allowed(prefixes, lengths)
        return mask

    def knows(self, ability: str) -> bool:
        """Whether the task has a known source that can do this, for example "is_valid"."""
        return hasattr(self.source, ability)

    def _known_source(self, ability: str) -> Any:
        if not self.knows(ability):
            raise TaskError(
                f"task {self.name!r} has no known source with {ability}(); of the built-in tasks, "
                "'grammar' has one with every ability and 'oracle' one with sample() and log_prob()"
            )
        return self.source


def make_task(spec: str | Path | Task = "grammar", **options: Any) -> Task:
    """Make a task from a name, a path to a .txt, .jsonl or .abc file, or "module:factory".

    Options follow the name in brackets or come as arguments. They are the task's own: see
    `grammar_task`, `oracle_task` and `answers_task`, and for files
    `text_gym.corpus.corpus.CorpusOptions`. While a task is in use, asking for the same again by name or
    path gives that one.

    >>> make_task("grammar", seed=1)
    Task('grammar', 209 tokens, max_length=21)
    >>> make_task("oracle(vocab_size=100)")
    Task('oracle', 100 tokens, max_length=20)
    """
    if isinstance(spec, Task):
        if options:
            raise OptionError(f"{spec!r} is already made; the options {', '.join(options)} come too late")
        return spec
    name, factory, written = find_task(spec)
    options = written | options
    check_options(f"task {name!r}", factory, options)
    key = _memory_key(name, factory, options)
    task = _MADE.get(key) if key is not None else None
    if task is None:
        task = factory(**options)
        if not isinstance(task, Task):
            raise TaskError(f"{spec!r} made {task!r}, which is no text_gym.Task")
    if key is not None:
        _MADE[key] = task
    return task


def find_task(spec: str | Path) -> tuple[str, Callable[..., Task], dict[str, Any]]:
    """The name, the factory and the options that a spec stands for."""
    if isinstance(spec, Path):
        return str(spec), partial(file_task, spec), {}
    if not isinstance(spec, str):
        raise OptionError(f"a task is a name, a path or a text_gym.Task, not {spec!r}")
    name, written = (spec, {}) if spec.endswith(SUFFIXES) else parse_call(spec)
    if ":" not in name and (Path(name).suffix or "/" in name or "\\" in name):
        return name, partial(file_task, name), written
    return name, lookup("task", name, _registry()), written


def option_names(spec: str | Path) -> frozenset[str] | None:
    """The options of the task that a spec stands for; None if it takes any."""
    _, factory, _ = find_task(spec)
    if isinstance(factory, partial):  # of file_task
        return frozenset(CorpusOptions.__dataclass_fields__)
    parameters = inspect.signature(factory).parameters.values()
    return None if any(p.kind is p.VAR_KEYWORD for p in parameters) else frozenset(p.name for p in parameters)


def _memory_key(name: str, factory: Callable[..., Any], options: Mapping[str, Any]) -> str | None:
    """What tells one task from another; None where that cannot be told."""
    plain = (str, int, float, bool, Path, type(None))
    if ":" in name or not all(isinstance(value, plain) for value in options.values()):
        return None
    files = [Path(name), *(Path(v) for v in options.values() if isinstance(v, str | Path))]
    stamps = [(str(f), f.stat().st_mtime_ns, f.stat().st_size) for f in files if f.is_file()]
    made_by = id(_REGISTRY[name]) if name in _REGISTRY else str(Path(name).resolve())
    return repr((name, made_by, sorted(options.items()), stamps))


def register_task(name: str, factory: Callable[..., Task], replace: bool = False) -> None:
    """Let `make_task(name, **options)` call `factory(**options)`; the first line of its docstring describes it."""
    register("task", name, factory, _registry(), replace)


def registered_tasks() -> dict[str, str]:
    """The registered names, each with a line about it."""
    return {name: (inspect.getdoc(f) or "").split("\n")[0] for name, f in sorted(_registry().items())}


def _registry() -> dict[str, Callable[..., Task]]:
    """The names, with those of GRUE, whose module needs this one, when first asked for."""
    if "commongen" not in _REGISTRY:
        from text_gym.tasks.grue import TASKS

        for name, factory in TASKS.items():
            _REGISTRY.setdefault(name, factory)
    return _REGISTRY


def file_task(path: str | Path, **options: Any) -> Task:
    """Sequences, or prompts with references, from a .txt, .jsonl or .abc file."""
    for option in options.keys() - CorpusOptions.__dataclass_fields__.keys():
        known = CorpusOptions.__dataclass_fields__
        raise OptionError(f"the task from {str(path)!r} has no option {option!r}." + suggest(option, known))
    settings = CorpusOptions(**options)
    corpus = read_corpus(path, settings)
    splits = corpus.splits.values()
    longest = 1 + max(examples.references.longest for examples in splits)
    prompt_length = max(e.prompts.longest or 1 if e.prompts is not None else 0 for e in splits)
    return Task(
        Path(path).stem,
        corpus.vocab,
        settings.max_length or longest,
        corpus.splits,
        prompt_length=prompt_length,
        report=corpus.report,
    )


def grammar_task(
    seed: int = 0,
    max_length: int = 21,
    train_size: int = 10_000,
    valid_size: int = 1_000,
    test_size: int = 1_000,
) -> Task:
    """English-like sentences of 3 to 20 words, with exact likelihood, entropy and validity."""
    from text_gym.tasks.grammar import Grammar

    source = Grammar(seed, max_length)
    sizes = _split_sizes(train_size, valid_size, test_size)
    return Task("grammar", source.vocab, max_length, partial(_drawn, source, sizes, seed), source=source)


def oracle_task(
    path: str | None = None,
    seed: int = 0,
    vocab_size: int | None = None,
    max_length: int = 20,
    embedding: int = 32,
    hidden: int = 32,
    train_size: int = 9_984,
    valid_size: int = 1_000,
    test_size: int = 9_984,
) -> Task:
    """SeqGAN's synthetic oracle: a random LSTM over 5000 tokens, with exact likelihood."""
    from text_gym.tasks.oracle import Oracle

    if path is not None:
        source = Oracle.load(path, max_length, vocab_size)
    else:
        source = Oracle(5000 if vocab_size is None else vocab_size, max_length, embedding, hidden, seed)
    sizes = _split_sizes(train_size, valid_size, test_size)
    return Task("oracle", source.vocab, max_length, partial(_drawn, source, sizes, seed), source=source)


def answers_task(seed: int = 0, size: int = 2_000, max_length: int = 4) -> Task:
    """Questions about sums and small tables of facts, each with one right answer."""
    from text_gym.tasks import answers

    if whole_number("max_length", max_length, least=1) <= answers.LONGEST_ANSWER:
        raise OptionError(f"max_length must be at least {answers.LONGEST_ANSWER + 1}: answers have up to three words")
    vocab = answers.vocabulary()
    splits = answers.make_splits(vocab, size, seed)
    prompt_length = max(e.prompts.longest for e in splits.values() if e.prompts is not None)
    return Task("answers", vocab, max_length, splits, prompt_length, default_reward="exact_match")


def _split_sizes(*sizes: int) -> dict[str, int]:
    return {name: whole_number(f"{name}_size", size, least=0) for name, size in zip(SPLITS, sizes, strict=True)}


def _drawn(source: Source, sizes: Mapping[str, int], seed: int, split: str) -> Examples:
    """A split drawn from a known source, from a stream of random numbers of its own."""
    random = np.random.default_rng([seed, 100 + SPLITS.index(split)])
    return Examples(Sequences.from_lists(source.sample(sizes[split], random).sentences))


_REGISTRY: dict[str, Callable[..., Task]] = {
    "grammar": grammar_task,
    "oracle": oracle_task,
    "answers": answers_task,
}
_MADE: weakref.WeakValueDictionary[str, Task] = weakref.WeakValueDictionary()
