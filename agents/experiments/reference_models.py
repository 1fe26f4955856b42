"""Reference models: uniformly random tokens, and real data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from agents.common.agent import Agent
from agents.common.generation import Env, rules_of
from agents.common.settings import NoSettings
from text_gym.arrays import FloatArray
from text_gym.errors import OptionError
from text_gym.language_model import LanguageModel, State
from text_gym.sequences import Batch, Example, Sequences
from text_gym.tasks.task import Task


class UniformPolicy(LanguageModel):
    """The language model with the same probability for every token."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        """Create the model, which has no parameters."""
        super().__init__()
        self.vocab_size = vocab_size
        self.device = device

    def start(self, n: int, prompts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits of 0, [n, V], and an empty state."""
        return torch.zeros(n, self.vocab_size, device=self.device), torch.zeros(n, 0, device=self.device)

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Logits of 0, [n, V], and the empty state."""
        return torch.zeros(len(tokens), self.vocab_size, device=self.device), state

    def features(self, tokens: Tensor, prompts: Tensor | None = None) -> Tensor:
        """Empty features, [n, T, 0]."""
        return torch.zeros(*tokens.shape, 0, device=self.device)

    def output(self, features: Tensor) -> Tensor:
        """Logits of 0, [..., V]."""
        return torch.zeros(*features.shape[:-1], self.vocab_size, device=self.device)


class Uniform(Agent[NoSettings]):
    """Agent that samples every token, EOS included, with the same probability, and does not learn.

    >>> import gymnasium as gym, text_gym
    >>> Uniform(gym.make("TextGen-v0"), seed=0).sample(2, seed=0).tokens.shape
    (2, 21)
    """

    name = "uniform"
    takes_start = False
    learns = False
    learns_from_reward = False

    def build(self) -> None:
        """Create the policy."""
        self.policy = UniformPolicy(len(self.task.vocab), self.device)

    def one_step(self, step: int) -> bool:
        """Return False: there is nothing to learn."""
        return False


class RealData:
    """Real sequences with the interface of a model: new samples if the task has a source, else the validation split.

    >>> import gymnasium as gym, text_gym
    >>> real = RealData(gym.make("TextGen-v0"), seed=0)
    >>> bool(real.task.is_valid(real.sample(5, seed=0).tokens).all())
    True
    """

    learns_from_reward = False

    def __init__(self, env: Env, seed: int = 0) -> None:
        """Store the task, and define log_prob() if the source has one."""
        self.rules = rules_of(env)
        self.task = self.rules.task
        self.seed = seed
        if self.task.knows("log_prob"):
            self.log_prob = self._log_prob_of_source

    def __repr__(self) -> str:
        return f"RealData(task={self.task.name!r}, seed={self.seed})"

    @staticmethod
    def check_task(task: Task) -> None:
        """Raise an OptionError for a task without real sequences to sample."""
        if not knows_real_data(task):
            raise OptionError(f"the 'valid' split of {task!r} is empty, so there are no real sequences to compare with")

    def sample(
        self,
        n: int = 1,
        *,
        seed: int | None = None,
        prompts: Sequence[str | Sequence[int] | Example] | None = None,
    ) -> Batch:
        """Return n real sequences, or all if there are fewer; with prompts, the first reference of each prompt."""
        if prompts is not None:
            return self._answers(prompts)
        if self.task.knows("sample"):
            return self.task.sample(n, self.seed if seed is None else seed)
        pool = len(self.task.valid.references)
        if not pool:
            raise OptionError(f"the 'valid' split of {self.task!r} is empty, so there are no real sequences to sample")
        rows = np.random.default_rng(self.seed if seed is None else seed).permutation(pool)
        return self.task.batch("valid", rows[:n])

    def _answers(self, prompts: Sequence[str | Sequence[int] | Example]) -> Batch:
        """Return the first reference of each prompt; the examples keep the other references for comparison."""
        examples = [p if isinstance(p, Example) else self.rules.find_example(p) for p in prompts]
        for example in examples:
            if not example.references:
                raise OptionError(f"the prompt {self.task.decode(example.prompt)!r} has no reference")
        answers = Sequences.from_lists([example.references[0] for example in examples])
        tokens, lengths = answers.padded(self.task.max_length, self.task.vocab.pad, self.task.vocab.eos)
        others = [example._replace(references=example.references[1:]) for example in examples]
        return Batch(tokens, lengths, self.task.vocab, others)

    def _log_prob_of_source(
        self, tokens: npt.ArrayLike, lengths: npt.ArrayLike | None = None, examples: Sequence[Example] | None = None
    ) -> FloatArray:
        """Return the log-probability of each sequence under the source, [n]."""
        return self.task.log_prob(tokens, lengths)


def knows_real_data(task: Task) -> bool:
    """Whether a task has real sequences that are neither training data nor references of the evaluation."""
    return task.conditional or task.knows("sample") or len(task.valid.references) > 1
