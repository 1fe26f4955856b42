"""Built-in rewards. The arguments of each class are options of its name: "bleu(n=2)"."""

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
    """Base class of rewards that depend on the task; an instance works with a single task."""

    task: Task | None = None

    def prepare(self, task: Task) -> None:
        """Store the task; RewardError if the reward is already used with another task."""
        if self.task is not None and self.task is not task:
            raise RewardError(
                f"this {self.name!r} reward is already used with {self.task!r}; create another one for {task!r}"
            )
        self.task = task

    @property
    def prepared_task(self) -> Task:
        """The task; RewardError before prepare()."""
        if self.task is None:
            raise RewardError(f"reward {self.name!r} does not know its task; call prepare(task) before score()")
        return self.task


class BleuReward(_TaskReward):
    """BLEU against sentences of the task; in tasks with prompts, against the references of the prompt."""

    name = "bleu"

    def __init__(
        self,
        n: int = 4,
        references: str | int | float | Sequence[str] = "train",
        smoothing: Smoothing = "method1",
        seed: int = 0,
    ) -> None:
        """Store the options.

        Args:
            n: Length of the longest n-grams.
            references: The reference sentences: all sentences of a split ("train", "valid" or "test"); an int number
                or a float share of training sentences, sampled at random; or a list of texts. Leave it at "train" in
                tasks with prompts, where each prompt has its own references.
            smoothing: "method1" of NLTK (0.1 instead of a zero count) or None.
            seed: Seed for sampling the reference sentences.
        """
        check_bleu_options(n, smoothing)
        self.n = n
        self.references = references
        self.smoothing = smoothing
        self.seed = whole_number("seed", seed, least=0)

    def prepare(self, task: Task) -> None:
        """Check `references` against the task; the n-gram tables are built by the first call of score()."""
        super().prepare(task)
        if task.conditional and self.references != "train":
            raise OptionError(
                f"references={self.references!r} has no effect in a task with prompts, where bleu compares with the "
                "references of each prompt; leave references out"
            )
        if isinstance(self.references, str) and self.references not in SPLITS:
            raise OptionError(f"references={self.references!r} is not a split; give 'train', 'valid' or 'test'")
        if isinstance(self.references, list | tuple):
            if not all(isinstance(text, str) for text in self.references):
                raise OptionError("a list of references must contain texts, not ids")
        elif not isinstance(self.references, str):
            self._amount(len(task.train.references))

    @cached_property
    def table(self) -> Bleu:
        """N-gram tables of the references."""
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
        """Return the number of training sentences that `references` asks for as an int or a share."""
        amount = finite_number("references", self.references)
        count = round(amount * most) if isinstance(self.references, float) else round(amount)
        if not 1 <= count <= most:
            raise OptionError(
                f"references={self.references!r} asks for {count} of {most} training sentences; give a number from 1 "
                f"to {most} or a share up to 1.0"
            )
        return count

    def score(self, batch: Batch) -> FloatArray:
        """Compute the BLEU score of each row, in [0, 1]."""
        if batch.examples is None:
            return self.table.score(batch.tokens, batch.content_lengths)
        return np.array(
            [
                sentence_bleu(sentence, references_of(example, self.name), self.n, self.smoothing)
                for sentence, example in zip(batch.sentences, batch.examples, strict=True)
            ]
        )


class RougeLReward(Reward):
    """ROUGE-L F-measure against the prompt's references (maximum over the references)."""

    name = "rouge_l"

    def prepare(self, task: Task) -> None:
        """Raise RewardError for a task without prompts."""
        needs_prompts(self.name, task)

    def score(self, batch: Batch) -> FloatArray:
        """Compute the F-measure of the longest common subsequence of each row and its references, in [0, 1]."""
        return np.array(
            [
                max(rouge_l(sentence, reference) for reference in references_of(example, self.name))
                for sentence, example in zip(batch.sentences, batch.examples or (), strict=True)
            ]
        )


class ExactMatchReward(Reward):
    """1 if the sequence equals one of the prompt's references, else 0."""

    name = "exact_match"

    def prepare(self, task: Task) -> None:
        """Raise RewardError for a task without prompts."""
        needs_prompts(self.name, task)

    def score(self, batch: Batch) -> FloatArray:
        """Compare the tokens of each row with those of its references."""
        rows = zip(batch.sentences, batch.examples or (), strict=True)
        return np.array([float(tuple(s) in references_of(e, self.name)) for s, e in rows])


class ValidityReward(_TaskReward):
    """1 if the sentence belongs to the task's language, else 0; for tasks with a known language (grammar)."""

    name = "validity"

    def prepare(self, task: Task) -> None:
        """Raise RewardError for a task whose source has no is_valid()."""
        super().prepare(task)
        if not task.knows("is_valid"):
            raise RewardError(
                f"reward 'validity' needs a task with a known language, and {task.name!r} has none; use task 'grammar'"
            )

    def score(self, batch: Batch) -> FloatArray:
        """Call is_valid() of the task's source."""
        return self.prepared_task.is_valid(batch.tokens, batch.lengths).astype(np.float64)


class LikelihoodReward(_TaskReward):
    """Log-probability in nats per token under the task's known source, clipped from below at `floor`."""

    name = "likelihood"

    def __init__(self, floor: float = -20.0) -> None:
        """Store the lower bound of the score, which sequences with probability 0 get."""
        self.floor = finite_number("floor", floor)

    def prepare(self, task: Task) -> None:
        """Raise RewardError for a task whose source has no log_prob()."""
        super().prepare(task)
        if not task.knows("log_prob"):
            raise RewardError(
                f"reward 'likelihood' needs a task with a known source, and {task.name!r} has none; "
                "use task 'grammar' or 'oracle'"
            )

    def score(self, batch: Batch) -> FloatArray:
        """Divide the log-probability of each row by its length."""
        total = self.prepared_task.log_prob(batch.tokens, batch.lengths)
        return np.maximum(total / np.maximum(batch.lengths, 1), self.floor)


class LengthReward(Reward):
    """Number of tokens without EOS; with a target, minus the distance from the target."""

    name = "length"

    def __init__(self, target: int | None = None) -> None:
        """Store the target length; with None the score is the length itself."""
        self.target = None if target is None else whole_number("target", target, least=0)

    def score(self, batch: Batch) -> FloatArray:
        """Compute the score of each row from its number of tokens without EOS."""
        lengths = batch.content_lengths.astype(np.float64)
        return lengths if self.target is None else -np.abs(lengths - self.target)


class RepetitionReward(Reward):
    """Minus the share of repeated n-grams of the sequence; 0 if all its n-grams are distinct."""

    name = "repetition"

    def __init__(self, n: int = 1) -> None:
        """Store the length of the n-grams."""
        self.n = whole_number("n", n, least=1)

    def score(self, batch: Batch) -> FloatArray:
        """Compute (distinct n-grams / n-grams) - 1 for each row."""
        return np.array([-_repeated(sentence, self.n) for sentence in batch.sentences])


class ConstantReward(Reward):
    """The same score for every sequence: a control, which shows the effect of the update rule alone."""

    name = "constant"

    def __init__(self, value: float = 1.0) -> None:
        """Store the score."""
        self.value = finite_number("value", value)

    def score(self, batch: Batch) -> FloatArray:
        """Return the same score for each row."""
        return np.full(len(batch), self.value)


class RandomReward(Reward):
    """Random score in [0, 1), a hash of the sequence and the seed: a control without information."""

    name = "random"

    def __init__(self, seed: int = 0) -> None:
        """Store the seed of the hash."""
        self.seed = whole_number("seed", seed, least=0)

    def score(self, batch: Batch) -> FloatArray:
        """Hash the tokens of each row; equal sequences get equal scores."""
        with np.errstate(over="ignore"):
            state = _mixed(np.full(len(batch), self.seed % 2**64, dtype=np.uint64))
            for t in range(int(batch.content_lengths.max(initial=0))):
                inside = t < batch.content_lengths
                mixed = _mixed(state ^ _mixed(batch.tokens[:, t].astype(np.uint64)))
                state = np.where(inside, mixed, state)
        return (state >> np.uint64(11)).astype(np.float64) / 2**53


def rouge_l(sentence: Sequence[Hashable], reference: Sequence[Hashable]) -> float:
    """Compute ROUGE-L, the F-measure of the longest common subsequence, in [0, 1].

    >>> rouge_l("a b c".split(), "a c d".split())
    0.6666666666666666
    """
    common = longest_common_subsequence(sentence, reference)
    return 2 * common / (len(sentence) + len(reference)) if common else 0.0


def longest_common_subsequence(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Compute the length of the longest common subsequence by the bit-parallel algorithm of Hyyrö.

    A column of the dynamic-programming table is one int, updated for each token of b. Its zero
    bits mark the rows where the table increases (Hyyrö 2004, doi:10.1007/11587646).
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
    """Return the references of an example; RewardError, which names the reward, if it has none."""
    if not example.references:
        raise RewardError(
            f"reward {name!r} needs references, and a prompt that is not in the task's data has none; "
            "use a prompt of the data, or a reward that needs no references"
        )
    return example.references


def needs_prompts(name: str, task: Task) -> None:
    """Raise RewardError, which names the reward, for a task without prompts."""
    if not task.conditional:
        raise RewardError(
            f"reward {name!r} compares with the references of a prompt, and task {task.name!r} has no prompts; "
            "use a task with prompts, such as 'answers', or another reward"
        )


def _repeated(sentence: Sequence[int], n: int) -> float:
    grams = list(zip(*(sentence[i:] for i in range(n)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _mixed(values: UnsignedArray) -> UnsignedArray:
    """Hash by the finalizer of SplitMix64: every bit of the result depends on every bit of the input."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
