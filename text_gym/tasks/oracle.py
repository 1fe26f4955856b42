"""The task "oracle": SeqGAN's synthetic oracle, a randomly initialised LSTM with exact likelihoods.

The oracle has an embedding, one LSTM layer and an output layer. All weights are sampled from
N(0, 1). Sequences have a fixed length and no EOS. The start token of the LSTM is token 0, which
is also an ordinary token.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from text_gym.arrays import FloatArray
from text_gym.errors import OptionError
from text_gym.sequences import Batch, make_batch
from text_gym.tasks.oracle_files import NAMES, check_parameters, load_parameters, shapes_of
from text_gym.tasks.task import Task, sampled_task
from text_gym.validation import LARGEST_SIZE, whole_number
from text_gym.vocab import Vocabulary

if TYPE_CHECKING:
    from text_gym.language_model import LSTM

Parameters = Mapping[str, npt.NDArray[np.float32]]

CHUNK = 256  # sequences sampled or scored at once, to bound the memory for logits
WEIGHTS_STREAM = 0x7E97  # second seed of the weights' generator, so that it differs from that of the samples


class Oracle:
    """A source with exact log-probabilities: a frozen LSTM with random weights.

    >>> oracle = Oracle(vocab_size=50, max_length=5, seed=1)
    >>> oracle.sample(3, seed=0).tokens.shape
    (3, 5)

    Args:
        vocab_size: Number of tokens; their texts are "0", "1" and so on.
        max_length: Length of every sequence.
        embedding: Size of the token embeddings.
        hidden: Size of the LSTM.
        seed: Seed of the weights.
        parameters: Weights to use instead of random ones; the keys are NAMES.
    """

    def __init__(
        self,
        vocab_size: int = 5000,
        max_length: int = 20,
        embedding: int = 32,
        hidden: int = 32,
        seed: int = 0,
        parameters: Parameters | None = None,
    ) -> None:
        """Check the sizes; the weights are sampled, and torch is imported, on first use."""
        sizes = {"vocab_size": vocab_size, "max_length": max_length, "embedding": embedding, "hidden": hidden}
        checked = {name: whole_number(name, size, 1, LARGEST_SIZE) for name, size in sizes.items()}
        self.vocab_size, self.max_length, self.embedding, self.hidden = checked.values()
        self.seed = whole_number("seed", seed, least=0)
        self.vocab = Vocabulary([str(i) for i in range(self.vocab_size)])
        if parameters is not None:
            shape = (self.vocab_size, self.embedding, self.hidden)
            self.parameters = check_parameters(parameters, "parameters", shape)

    def __repr__(self) -> str:
        return f"Oracle({len(self.vocab)} tokens, max_length={self.max_length}, seed={self.seed})"

    @classmethod
    def load(cls, path: str | Path, max_length: int = 20, vocab_size: int | None = None) -> Oracle:
        """Load published parameters from an .npz file with the arrays NAMES, or from SeqGAN's pickle."""
        parameters = load_parameters(path)
        size, embedding = parameters["embedding"].shape
        if vocab_size is not None and vocab_size != size:
            raise OptionError(
                f"vocab_size={vocab_size}, but the oracle in {path} has {size} tokens; leave vocab_size out"
            )
        hidden = parameters["bi"].shape[0]
        return cls(size, max_length, embedding, hidden, parameters=parameters)

    @cached_property
    def parameters(self) -> dict[str, npt.NDArray[np.float32]]:
        """The weights, sampled from N(0, 1); the keys are NAMES."""
        random = np.random.default_rng([self.seed, WEIGHTS_STREAM])
        shapes = shapes_of(self.vocab_size, self.embedding, self.hidden)
        return {name: random.standard_normal(shapes[name], dtype=np.float32) for name in NAMES}

    @cached_property
    def model(self) -> LSTM:
        """A frozen `text_gym.language_model.LSTM` with these weights."""
        import torch

        from text_gym.language_model import LSTM, tune_memory

        tune_memory()
        model = LSTM(self.vocab_size, self.embedding, self.hidden)
        gates = "ifco"  # order of the gates in torch.nn.LSTM
        arrays = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in self.parameters.items()}
        weights = {
            "embed.weight": arrays["embedding"],
            "lstm.weight_ih_l0": torch.cat([arrays[f"W{g}"].T for g in gates]),
            "lstm.weight_hh_l0": torch.cat([arrays[f"U{g}"].T for g in gates]),
            "lstm.bias_ih_l0": torch.cat([arrays[f"b{g}"] for g in gates]),
            "lstm.bias_hh_l0": torch.zeros(4 * self.hidden),
            "output.weight": arrays["W_out"].T,
            "output.bias": arrays["b_out"],
        }
        model.load_state_dict(weights)
        return model.requires_grad_(False)

    def sample(self, n: int, seed: int | np.random.Generator | None = None) -> Batch:
        """Sample n sequences."""
        import torch

        from text_gym.language_model import generate

        random = np.random.default_rng(seed)
        generator = torch.Generator().manual_seed(int(random.integers(2**63)))
        sizes = [min(CHUNK, n - done) for done in range(0, n, CHUNK)]
        parts = [generate(self.model, size, self.max_length, None, generator).tokens.numpy() for size in sizes]
        tokens = np.concatenate(parts) if parts else np.zeros((0, self.max_length), dtype=np.int64)
        return Batch(tokens, np.full(n, self.max_length), self.vocab)

    def log_prob(self, tokens: npt.ArrayLike, lengths: npt.ArrayLike | None = None) -> FloatArray:
        """Compute the log-probability of each sequence in nats, summed over its tokens, [n]."""
        import torch

        batch = make_batch(tokens, lengths, self.vocab)
        rows = torch.from_numpy(batch.tokens)
        valid = torch.from_numpy(batch.valid_mask)
        chunk = max(1, CHUNK // max(1, rows.shape[1]))
        with torch.no_grad():
            parts = [
                self.model.log_prob(rows[i : i + chunk], valid[i : i + chunk]).double().sum(dim=1).numpy()
                for i in range(0, len(rows), chunk)
            ]
        return np.concatenate(parts) if parts else np.zeros(0)


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
    """SeqGAN's synthetic oracle: a random LSTM over 5000 tokens, with exact likelihood.

    Args:
        path: File of published parameters (.npz, or SeqGAN's pickle); None samples random weights.
        seed: Seed of the weights and of the splits.
        vocab_size: Number of tokens; None means 5000, or the number of tokens in the file.
        max_length: Length of every sequence.
        embedding: Size of the token embeddings.
        hidden: Size of the LSTM.
        train_size: Number of training sequences.
        valid_size: Number of validation sequences.
        test_size: Number of test sequences.
    """
    if path is not None:
        source = Oracle.load(path, max_length, vocab_size)
    else:
        source = Oracle(5000 if vocab_size is None else vocab_size, max_length, embedding, hidden, seed)
    return sampled_task("oracle", source, max_length, seed, (train_size, valid_size, test_size))
