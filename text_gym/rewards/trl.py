"""Conversion of rewards to and from TRL.

TRL calls a reward function as r(prompts=..., completions=..., completion_ids=..., **columns of the dataset).
Prompts and completions are texts or conversations (lists of {"role": ..., "content": ...}).

- `trl_reward` makes a TRL reward function of any reward of this package.
- `from_trl` makes a reward of a TRL function of conversations. A TRL function of texts needs no conversion.
- `trl_records` converts a task's data to a dataset for TRL.

This module does not import TRL.
"""

from __future__ import annotations

from collections.abc import Awaitable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt

from text_gym.errors import DataError, OptionError, RewardError
from text_gym.rewards.cached import CachedReward
from text_gym.rewards.calls import finished
from text_gym.rewards.functions import FunctionReward, RewardFunction
from text_gym.rewards.reward import Answer, Reward, Scores
from text_gym.rewards.scorer import RewardSpec, Scorer
from text_gym.sequences import SPLITS, Batch, Example, Examples, Sequences
from text_gym.tasks import Task, make_task
from text_gym.validation import suggest
from text_gym.vocab import EOS, Vocabulary

Conversation = Sequence[Mapping[str, Any]]
REFERENCE_COLUMNS = ("references", "reference")


def trl_reward(
    spec: RewardSpec, task: str | Task | None = None, references: str | None = None, name: str | None = None
) -> TrlReward:
    """Create a reward function for TRL's trainers from any reward of this package.

    Args:
        spec: A name, a function, a `Reward`, a list of these, or a dict {reward: weight}.
        task: The task whose vocabulary encodes the completions, and whose data has the references of prompts.
            Without a task, texts are split at whitespace, and references come from the dataset.
        references: The dataset column with the references: texts or lists of texts. By default the column
            "references" or "reference", if the dataset has one.
        name: Name in TRL's logs; by default the names of the rewards.

    >>> reward = trl_reward("exact_match")
    >>> reward(completions=["four", " 4"], prompts=["2 + 2 =", "2 + 2 ="], reference=["4", "4"])
    [0.0, 1.0]
    """
    return TrlReward(spec, None if task is None else make_task(task), references, name)


def from_trl(
    function: RewardFunction, conversational: bool = False, system: str | None = None, name: str | None = None
) -> Reward:
    """Create a reward from a reward function of TRL; only functions of conversations need this conversion.

    Args:
        function: A function with TRL's signature, plain or async.
        conversational: Whether the function expects conversations instead of texts.
        system: System message at the beginning of each conversation.
        name: Key in info["reward_terms"]; by default the function's name.

    >>> def polite(completions, **columns):
    ...     return [float("please" in messages[0]["content"]) for messages in completions]
    >>> from_trl(polite, conversational=True).name
    'polite'
    """
    if system is not None and not conversational:
        raise OptionError("a system message needs conversations; pass conversational=True with it")
    return ConversationReward(function, system, name) if conversational else FunctionReward(function, name)


def trl_records(task: str | Task, split: str = "train", conversational: bool = False) -> list[dict[str, object]]:
    """Return the prompts of a split with their references and columns, for `datasets.Dataset.from_list`.

    >>> trl_records("answers")[1]
    {'prompt': 'anna has a red lamp . lucy has a green kite . who has a red lamp ?', 'references': ['anna']}
    """
    task = make_task(task)
    if not task.conditional:
        raise OptionError(
            f"TRL's trainers need prompts, and task {task.name!r} has none; use a task with prompts, such as 'answers'"
        )
    records = []
    for example in map(task.split(split).__getitem__, range(len(task.split(split)))):
        prompt = task.decode(example.prompt)
        texts = [task.decode(ids) for ids in example.references]
        content = [{"role": "user", "content": prompt}] if conversational else prompt
        records.append(example.columns | {"prompt": content, "references": texts})
    return records


class ConversationReward(FunctionReward):
    """A reward function of conversations: the prompt is the user's message, the completion the assistant's."""

    def __init__(self, function: RewardFunction, system: str | None = None, name: str | None = None) -> None:
        """Read the function's signature; `system` is the first message of each conversation."""
        super().__init__(function, name)
        self._opening = [] if system is None else [{"role": "system", "content": system}]

    def column(self, name: str, batch: Batch) -> object:
        """Return the value of a parameter: completions and prompts as conversations, other columns unchanged."""
        if name == "completions":
            return [[{"role": "assistant", "content": text}] for text in batch.texts]
        if name == "prompts":
            return [[*self._opening, {"role": "user", "content": prompt}] for prompt in batch.prompts]
        return super().column(name, batch)


class TrlReward:
    """A reward function for TRL: takes the columns of a batch, returns a score for each completion."""

    def __init__(self, spec: RewardSpec, task: Task | None, references: str | None, name: str | None) -> None:
        """Create the rewards and prepare them for the task; see `trl_reward` for the arguments."""
        self.task = _task_of_words() if task is None else task
        self.scorer = _DataSetScorer(spec, self.task)
        self._references = references
        self.__name__ = name or "+".join(self.scorer.rewards)  # TRL reads the name for its logs

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.__name__!r}, {self.task!r})"

    def __call__(
        self,
        completions: Sequence[str | Conversation],
        prompts: Sequence[str | Conversation] | None = None,
        completion_ids: object = None,
        **columns: object,
    ) -> list[float | None]:
        """Score the completions.

        Args:
            completions: The completions, texts or conversations.
            prompts: The prompt of each completion.
            completion_ids: Ignored; these ids are of TRL's tokenizer, not of the task.
            **columns: The other columns of the dataset, and arguments of TRL's trainer.

        Returns:
            The score of each completion; None (does not apply) if all rewards returned None for it.
        """
        _check_lengths(len(completions), {"prompts": prompts} | columns)
        if isinstance(self.task.vocab, HashedWords):
            self.task.vocab.forget()
        prompt_texts = [""] * len(completions) if prompts is None else [text_of(prompt, "user") for prompt in prompts]
        texts = [text_of(completion, "assistant") for completion in completions]
        score = self.scorer(self._batch(texts, prompt_texts, columns))
        log = columns.get("log_metric")
        if callable(log) and len(score.terms) > 1:
            for name, values in score.terms.items():
                log(f"{self.__name__}/{name}", float(values.mean()))
        return [float(v) if applies else None for v, applies in zip(score.total, self.scorer.applied, strict=True)]

    def _batch(self, texts: list[str], prompts: list[str], columns: dict[str, object]) -> Batch:
        """Encode the texts as a batch."""
        vocab = self.task.vocab
        eos = vocab.eos
        rows = Sequences.from_lists([_ids(vocab, text.strip()) for text in texts])
        width = rows.longest + (eos is not None)
        tokens, lengths = rows.padded(max(width, 1), vocab.pad, eos)
        given = self._given_references(len(texts), columns)
        examples = None
        if self.task.conditional:
            rows_of = given if given is not None else [None] * len(prompts)
            examples = [self._example(*row) for row in zip(prompts, rows_of, strict=True)]
            given = given or [[vocab.decode(r) for r in example.references] for example in examples]
        given = given or [[] for _ in texts]
        return TextBatch(tokens, lengths, vocab, examples, texts, prompts, given, columns)

    def _given_references(self, n: int, columns: Mapping[str, object]) -> list[list[str]] | None:
        """Return the references of each row from the dataset; None if the dataset has no column of references."""
        names = REFERENCE_COLUMNS if self._references is None else (self._references,)
        found = [columns[name] for name in names if name in columns]
        if not found:
            if self._references is None:
                return None
            raise DataError(f"the dataset has no column {self._references!r}." + suggest(self._references, columns))
        column = found[0]
        rows = list(column) if isinstance(column, Iterable) and not isinstance(column, str) else []
        references = [[row] if isinstance(row, str) else row for row in rows]
        texts = all(isinstance(row, list) and all(isinstance(text, str) for text in row) for row in references)
        if len(references) != n or not texts:
            raise DataError("the column of references must have a text or a list of texts for each completion")
        return references

    def _example(self, prompt: str, references: list[str] | None) -> Example:
        """Return an example with these references, or else with the references of the prompt in the task's data."""
        ids = tuple(_ids(self.task.vocab, prompt.strip()))
        if references is not None:
            return Example(ids, tuple(tuple(_ids(self.task.vocab, text.strip())) for text in references), {})
        for split in map(self.task.split, SPLITS):
            if ids in split.by_prompt:
                return split[split.by_prompt[ids]]
        return Example(ids, (), {})


@dataclass(frozen=True, eq=False, repr=False)
class TextBatch(Batch):
    """A batch with the original texts, so that rewards of texts also see words outside the vocabulary."""

    texts: list[str] = field(default_factory=list)
    """Original text of each row."""
    prompts: list[str] = field(default_factory=list)
    """Prompt of each row."""
    references: list[list[str]] = field(default_factory=list)
    """References of each row."""
    columns: dict[str, object] = field(default_factory=dict)
    """Columns of the dataset, one list each, and the other arguments of TRL."""

    def keys(self) -> list[Hashable]:
        """Return a cache key for each row: the original texts, and the row's value in each column."""
        columns = [(name, column) for name, column in self.columns.items() if isinstance(column, list | tuple)]
        given = [repr([(name, column[i]) for name, column in columns]) for i in range(len(self))]
        references = map(tuple, self.references)
        return list(zip(self.texts, self.prompts, references, given, strict=True))

    def take(self, rows: npt.ArrayLike) -> TextBatch:
        """Select rows by indices or a boolean mask."""
        part = super().take(rows)
        chosen = np.arange(len(self))[np.asarray(rows)].tolist()
        columns = dict(self.columns)
        for name, column in columns.items():
            if isinstance(column, list) and len(column) == len(self):
                columns[name] = [column[i] for i in chosen]
        texts = [self.texts[i] for i in chosen]
        prompts = [self.prompts[i] for i in chosen]
        references = [self.references[i] for i in chosen]
        return TextBatch(part.tokens, part.lengths, part.vocab, part.examples, texts, prompts, references, columns)


class HashedWords(Vocabulary):
    """An open vocabulary: the id of a word is its hash, so that every word can be encoded.

    >>> words = HashedWords()
    >>> words.decode(words.encode("any words  at all")), words.encode("any") == HashedWords().encode("any")
    ('any words at all', True)
    """

    def __init__(self) -> None:
        """Start with EOS as the only listed token."""
        super().__init__([EOS], eos=0)
        self._words: dict[int, str] = {}

    @property
    def pad(self) -> int:
        """Padding id, larger than the id of any word."""
        return 2**31 - 1

    @cached_property
    def ids(self) -> dict[str, int]:
        """An empty dict: words are not listed."""
        return {}

    def encode_tokens(self, tokens: Iterable[str]) -> list[int]:
        """Hash each word, and store it for decoding."""
        known = {self._number(word): word for word in tokens}
        self._words |= known
        return [self._number(word) for word in tokens]

    def decode_rows(self, tokens: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> list[str]:
        """Join the words of each row."""
        return [self._join(row[:end]) for row, end in zip(tokens.tolist(), ends.tolist(), strict=True)]

    def forget(self) -> None:
        """Remove the stored words, to free memory; encoding gives the same ids again."""
        self._words.clear()

    def _join(self, ids: list[int]) -> str:
        return self.splitter.joiner.join(self._words[i] for i in ids)

    def _number(self, word: str) -> int:
        digest = blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return 1 + int.from_bytes(digest, "little") % (self.pad - 1)


class _DataSetScorer(Scorer):
    """A scorer whose reward functions may name any column, because the columns of the dataset are not known yet."""

    def __init__(self, spec: RewardSpec, task: Task) -> None:
        """Wrap each reward to record for which rows it returns None."""
        super().__init__(spec, task)
        self.recorded = {name: _Recorded(reward) for name, reward in self.rewards.items()}
        self.rewards |= self.recorded

    @property
    def applied(self) -> list[bool]:
        """For each row of the last batch, whether any reward returned a number."""
        return [any(row) for row in zip(*(reward.applied for reward in self.recorded.values()), strict=True)]

    def prepare(self, reward: Reward) -> None:
        """Prepare a reward for the task; skip functions, whose columns cannot be checked yet."""
        inner = reward.reward if isinstance(reward, CachedReward) else reward
        if not isinstance(inner, FunctionReward):
            super().prepare(reward)


class _Recorded(Reward):
    """Wraps a reward and records for which rows its score is not None."""

    def __init__(self, reward: Reward) -> None:
        """Wrap the reward; `applied` holds the rows of the last batch."""
        self.reward = reward
        self.name = reward.name
        self.applied: list[bool] = []

    def score(self, batch: Batch) -> Scores:
        """Call the reward and record its scores."""
        return finished(self.start(batch))

    def start(self, batch: Batch) -> Answer:
        """Call the reward and record its scores, or return an awaitable that does."""
        answer = self.reward.start(batch)
        return self._record_later(answer, batch) if isinstance(answer, Awaitable) else self._record(answer, batch)

    def hint(self, problem: Exception) -> str:
        """Return the hint of the wrapped reward."""
        return self.reward.hint(problem)

    async def _record_later(self, answer: Awaitable[Scores], batch: Batch) -> Scores:
        return self._record(await answer, batch)

    def _record(self, scores: Scores, batch: Batch) -> Scores:
        listed = isinstance(scores, list | tuple)
        self.applied = [score is not None for score in scores] if listed else [True] * len(batch)
        return scores


def _check_lengths(n: int, columns: Mapping[str, object]) -> None:
    """Raise RewardError unless prompts and columns have as many rows as the completions."""
    for name, column in columns.items():
        if isinstance(column, list | tuple) and len(column) != n:
            raise RewardError(f"{name!r} has {len(column)} rows for {n} completions; give one row for each completion")


def _task_of_words() -> Task:
    """Create a task with prompts, an open vocabulary and no data."""
    nothing = Sequences.from_lists([])
    return Task("trl", HashedWords(), 1, dict.fromkeys(SPLITS, Examples(nothing, nothing)), prompt_length=1)


def text_of(message: str | Conversation, role: str) -> str:
    """Return a text unchanged; of a conversation, return the content of the last message with this role.

    >>> text_of([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}], "user")
    'Who?'
    """
    if isinstance(message, str):
        return message
    try:
        messages = [part for part in message if part.get("role", role) == role]
        content = messages[-1]["content"] if messages else ""
    except (AttributeError, TypeError, KeyError) as problem:
        raise DataError(
            f"{role}: give a text or a list of messages with 'role' and 'content', not {message!r}"
        ) from problem
    if isinstance(content, str | None):  # None for tool calls
        return content or ""
    return "".join(part.get("text") or "" for part in content)  # content blocks; images have no text


def _ids(vocab: Vocabulary, text: str) -> list[int]:
    """Encode a text; unknown words become UNK, or EOS if the vocabulary has no UNK."""
    try:
        return vocab.encode(text)
    except DataError:
        if vocab.eos is None:
            raise
        return [vocab.ids.get(word, vocab.eos) for word in vocab.splitter.split(text)]
