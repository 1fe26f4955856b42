"""The rewards that come with the package; each class's options may follow its name: "bleu(n=2)"."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from text_gym.arrays import FloatArray
from text_gym.bleu import Bleu, Smoothing, check_bleu_options, sentence_bleu
from text_gym.errors import OptionError, RewardError
from text_gym.rewards.reward import Reward
from text_gym.sequences import SPLITS, Batch, Example
from text_gym.tasks.task import Task
from text_gym.validation import finite_number, whole_number

UnsignedArray = npt.NDArray[np.uint64]


class _TaskReward(Reward):
    """A reward that needs its task, and therefore serves one."""

    task: Task | None = None

    def prepare(self, task: Task) -> None:
        """Keep the task."""
        if self.task is not None and self.task is not task:
            raise RewardError(f"this {self.name!r} reward already serves {self.task!r}; make another one for {task!r}")
        self.task = task

    @property
    def prepared_task(self) -> Task:
        """The task, after prepare()."""
        if self.task is None:
            raise RewardError(f"call prepare(task) before score(): {self.name!r} needs its task")
        return self.task


class BleuReward(_TaskReward):
    """BLEU against sentences of the task; for tasks with prompts, against the prompt's own references."""

    name = "bleu"

    def __init__(
        self,
        n: int = 4,
        references: str | int | float | Sequence[str] = "train",
        smoothing: Smoothing = "method1",
        seed: int = 0,
    ) -> None:
        """Choose the references; tasks with prompts have their own.

        Args:
            n: The longest n-gram that counts.
            references: A split's name; or a number, or a share, of sentences sampled from the training
                split; or a list of texts.
            smoothing: "method1" or None.
            seed: Seed of the sampled sentences.
        """
        check_bleu_options(n, smoothing)
        self.n = n
        self.references = references
        self.smoothing = smoothing
        self.seed = whole_number("seed", seed, least=0)

    def prepare(self, task: Task) -> None:
        """Check the options against the task; tables are built at the first score."""
        super().prepare(task)
        if task.conditional and self.references != "train":
            raise OptionError("for a task with prompts, bleu scores against each prompt's own references")
        if isinstance(self.references, str) and self.references not in SPLITS:
            raise OptionError(f"references={self.references!r} is no split; give 'train', 'valid' or 'test'")
        if isinstance(self.references, list | tuple):
            if not all(isinstance(text, str) for text in self.references):
                raise OptionError("references as a list are texts, not ids")
        elif not isinstance(self.references, str):
            self._amount(len(task.train.references))

    @cached_property
    def table(self) -> Bleu:
        """The references' n-grams."""
        return Bleu(self._sentences(self.prepared_task), self.n, self.smoothing)

    def _sentences(self, task: Task) -> list[list[int]]:
        if isinstance(self.references, str):
            sentences = task.split(self.references).references.to_lists()
            if not sentences:
                raise RewardError(f"the {self.references!r} split of {task!r} is empty; choose other references")
            return sentences
        if isinstance(self.references, int | float):
            pool = task.train.references
            chosen = np.random.default_rng(self.seed).permutation(len(pool))[: self._amount(len(pool))]
            return pool[chosen].to_lists()
        return [task.encode(text) for text in self.references]

    def _amount(self, most: int) -> int:
        """Convert a number or a share of the training sentences to a number."""
        amount = finite_number("references", self.references)
        count = round(amount * most) if isinstance(self.references, float) else round(amount)
        if not 1 <= count <= most:
            raise OptionError(f"references={self.references!r} asks for {count} of {most} training sentences")
        return count

    def score(self, batch: Batch) -> FloatArray:
        """Compute the BLEU of each row."""
        if batch.examples is None:
            return self.table.score(batch.tokens, batch.content_lengths)
        return np.array(
            [
                sentence_bleu(sentence, references_of(example, self.name), self.n, self.smoothing)
                for sentence, example in zip(batch.sentences, batch.examples, strict=True)
            ]
        )


class RougeLReward(Reward):
    """ROUGE-L's F-measure against the prompt's own references, the best of them counting."""

    name = "rouge_l"

    def prepare(self, task: Task) -> None:
        """Refuse a task without prompts."""
        needs_prompts(self.name, task)

    def score(self, batch: Batch) -> FloatArray:
        """Compute the harmonic mean of the longest common subsequence's precision and recall."""
        return np.array(
            [
                max(rouge_l(sentence, reference) for reference in references_of(example, self.name))
                for sentence, example in zip(batch.sentences, batch.examples or (), strict=True)
            ]
        )


class ExactMatchReward(Reward):
    """1 where the sequence equals one of the prompt's own references, else 0."""

    name = "exact_match"

    def prepare(self, task: Task) -> None:
        """Refuse a task without prompts."""
        needs_prompts(self.name, task)

    def score(self, batch: Batch) -> FloatArray:
        """Compare token by token."""
        rows = zip(batch.sentences, batch.examples or (), strict=True)
        return np.array([float(tuple(s) in references_of(e, self.name)) for s, e in rows])


class ValidityReward(_TaskReward):
    """1 where the sentence belongs to the task's language, else 0; for tasks that know theirs (grammar)."""

    name = "validity"

    def prepare(self, task: Task) -> None:
        """Refuse a task whose source has no is_valid()."""
        super().prepare(task)
        if not task.knows("is_valid"):
            raise RewardError(f"task {task.name!r} cannot say what is valid; 'grammar' can")

    def score(self, batch: Batch) -> FloatArray:
        """Test each row."""
        return self.prepared_task.is_valid(batch.tokens, batch.lengths).astype(np.float64)


class LikelihoodReward(_TaskReward):
    """Log-probability per token under the task's known source, in nats, and never below `floor`."""

    name = "likelihood"

    def __init__(self, floor: float = -20.0) -> None:
        """Take the score of an impossible sequence."""
        self.floor = finite_number("floor", floor)

    def prepare(self, task: Task) -> None:
        """Refuse a task whose source has no log_prob()."""
        super().prepare(task)
        if not task.knows("log_prob"):
            raise RewardError(f"task {task.name!r} has no known source; 'grammar' and 'oracle' have")

    def score(self, batch: Batch) -> FloatArray:
        """Divide each row's log-probability by its length."""
        total = self.prepared_task.log_prob(batch.tokens, batch.lengths)
        return np.maximum(total / np.maximum(batch.lengths, 1), self.floor)


class LengthReward(Reward):
    """The number of tokens, EOS not counted; or with a target, minus the distance from it."""

    name = "length"

    def __init__(self, target: int | None = None) -> None:
        """Take the target; without one, the reward is the length itself."""
        self.target = None if target is None else whole_number("target", target, least=0)

    def score(self, batch: Batch) -> FloatArray:
        """Count the tokens of each row."""
        lengths = batch.content_lengths.astype(np.float64)
        return lengths if self.target is None else -np.abs(lengths - self.target)


class RepetitionReward(Reward):
    """Minus the share of n-grams that occurred before in the same sequence: 0 is no repetition."""

    name = "repetition"

    def __init__(self, n: int = 1) -> None:
        """Take the length of the n-grams."""
        self.n = whole_number("n", n, least=1)

    def score(self, batch: Batch) -> FloatArray:
        """Count the distinct n-grams of each row."""
        return np.array([-_repeated(sentence, self.n) for sentence in batch.sentences])


class ConstantReward(Reward):
    """The same number for every sequence: the control that shows what an update rule does without information."""

    name = "constant"

    def __init__(self, value: float = 1.0) -> None:
        """Take the value."""
        self.value = finite_number("value", value)

    def score(self, batch: Batch) -> FloatArray:
        """Return the value for each row."""
        return np.full(len(batch), self.value)


class RandomReward(Reward):
    """A number in [0, 1) hashed from the sequence and the seed: repeatable, and without information."""

    name = "random"

    def __init__(self, seed: int = 0) -> None:
        """Take the seed of the hash."""
        self.seed = whole_number("seed", seed, least=0)

    def score(self, batch: Batch) -> FloatArray:
        """Hash each row's tokens; the same sequence always gets the same score."""
        with np.errstate(over="ignore"):
            state = _mixed(np.full(len(batch), self.seed % 2**64, dtype=np.uint64))
            for t in range(int(batch.content_lengths.max(initial=0))):
                inside = t < batch.content_lengths
                mixed = _mixed(state ^ _mixed(batch.tokens[:, t].astype(np.uint64)))
                state = np.where(inside, mixed, state)
        return (state >> np.uint64(11)).astype(np.float64) / 2**53


def rouge_l(sentence: Sequence[Hashable], reference: Sequence[Hashable]) -> float:
    """Compute the F-measure of the longest common subsequence.

    >>> rouge_l("a b c".split(), "a c d".split())
    0.6666666666666666
    """
    common = longest_common_subsequence(sentence, reference)
    return 2 * common / (len(sentence) + len(reference)) if common else 0.0


def longest_common_subsequence(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Compute the length of the longest common subsequence, a column of the table at a time.

    A column is a whole number, updated for each token of b. Its bits that are 0 mark where the
    table grows (Hyyrö 2004, doi:10.1007/11587646).
    """
    where: dict[Hashable, int] = {}
    for i, token in enumerate(a):
        where[token] = where.get(token, 0) | 1 << i
    column = (1 << len(a)) - 1
    for token in b:
        matched = column & where.get(token, 0)
        column = (column + matched) | (column - matched)
    return len(a) - (column & ((1 << len(a)) - 1)).bit_count()


def references_of(example: Example, name: str) -> tuple[tuple[int, ...], ...]:
    """Return the references of a row's prompt; an error that names the reward if there are none."""
    if not example.references:
        raise RewardError(
            f"reward {name!r} needs references, and a prompt that is not of the task's data has none; "
            "use one that is, or a reward that needs no references"
        )
    return example.references


def needs_prompts(name: str, task: Task) -> None:
    """Refuse a task without prompts."""
    if not task.conditional:
        raise RewardError(f"reward {name!r} compares with a prompt's own references, and task {task.name!r} has none")


def _repeated(sentence: Sequence[int], n: int) -> float:
    grams = list(zip(*(sentence[i:] for i in range(n)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _mixed(values: UnsignedArray) -> UnsignedArray:
    """SplitMix64's finaliser: every bit of the result depends on every bit of the input."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
