"""SeqGAN's synthetic oracle: a language model with random weights whose likelihood is known.

Embedding, one LSTM layer and an output layer, every weight drawn from N(0, 1). Sequences have
a fixed length and no EOS; the LSTM first reads token 0, which is also an ordinary token.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from text_gym.errors import DataError, OptionError
from text_gym.sequences import Batch, FloatArray, make_batch
from text_gym.vocab import Vocabulary

Parameters = Mapping[str, npt.NDArray[np.float32]]

NAMES = ("embedding", "Wi", "Ui", "bi", "Wf", "Uf", "bf", "Wo", "Uo", "bo", "Wc", "Uc", "bc", "W_out", "b_out")
"""The arrays of an oracle, in the order of the published file. Gates are x @ W + h @ U + b."""

CHUNK = 256  # sequences drawn or scored at a time, which bounds the memory for logits
FIRST_DRAW = 0x7E97  # keeps the stream of the weights apart from that of the samples


class Oracle:
    """A frozen random LSTM: draws sequences, and says how likely any sequence is.

    >>> oracle = Oracle(vocab_size=50, max_length=5, seed=1)
    >>> oracle.sample(3, seed=0).tokens.shape
    (3, 5)

    Args:
        vocab_size: Tokens, named "0", "1" and so on.
        max_length: The length of every sequence.
        embedding: Size of the token embedding.
        hidden: Size of the LSTM.
        seed: Chooses the weights.
        parameters: The weights themselves, by NAMES, in place of random ones.
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
        """Remember the sizes; weights are drawn, and torch imported, when first needed."""
        sizes = {"vocab_size": vocab_size, "max_length": max_length, "embedding": embedding, "hidden": hidden}
        for name, size in sizes.items():
            if not isinstance(size, int) or size < 1:
                raise OptionError(f"{name} must be a whole number of at least 1, not {size!r}")
        self.vocab_size, self.max_length = vocab_size, max_length
        self.embedding, self.hidden, self.seed = embedding, hidden, seed
        self.vocab = Vocabulary([str(i) for i in range(vocab_size)])
        if parameters is not None:
            self.parameters = dict(parameters)

    @classmethod
    def load(cls, path: str | Path, max_length: int = 20, vocab_size: int | None = None) -> Oracle:
        """Read published parameters from an .npz file with NAMES, or from the published pickle."""
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
        """The weights by NAMES, each drawn from N(0, 1)."""
        random = np.random.default_rng([self.seed, FIRST_DRAW])
        shapes = _shapes(self.vocab_size, self.embedding, self.hidden)
        return {name: random.standard_normal(shapes[name], dtype=np.float32) for name in NAMES}

    @cached_property
    def model(self) -> Any:
        """The weights as a `text_gym.models.LSTM`, frozen."""
        import torch

        from text_gym.models import LSTM

        model = LSTM(self.vocab_size, self.embedding, self.hidden)
        gates = "ifco"  # torch's order
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
        """Draw n sequences."""
        import torch

        from text_gym.models import draw_sequences

        random = np.random.default_rng(seed)
        generator = torch.Generator().manual_seed(int(random.integers(2**63)))
        sizes = [min(CHUNK, n - done) for done in range(0, n, CHUNK)]
        parts = [draw_sequences(self.model, size, self.max_length, generator).numpy() for size in sizes]
        tokens = np.concatenate(parts) if parts else np.zeros((0, self.max_length), dtype=np.int64)
        return Batch(tokens, np.full(n, self.max_length), self.vocab)

    def log_prob(self, tokens: npt.ArrayLike, lengths: npt.ArrayLike | None = None) -> FloatArray:
        """The log-probability of each sequence in nats, summed over its tokens."""
        import torch

        batch = make_batch(tokens, lengths, self.vocab)
        rows, valid = torch.from_numpy(batch.tokens), torch.from_numpy(batch.valid_mask)
        chunk = max(1, CHUNK // max(1, rows.shape[1]))
        with torch.no_grad():
            parts = [
                self.model.log_prob(rows[i : i + chunk], valid[i : i + chunk]).numpy()
                for i in range(0, len(rows), chunk)
            ]
        return np.concatenate(parts) if parts else np.zeros(0)


def load_parameters(path: str | Path) -> dict[str, npt.NDArray[np.float32]]:
    """The arrays of an oracle from .npz or the published pickle, checked for form and size."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"no oracle at {str(path)!r}; give the path of an .npz or of the published .pkl")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
        else:
            with path.open("rb") as file:
                arrays = dict(zip(NAMES, load_arrays(file), strict=True))
    except DataError:
        raise
    except Exception as problem:
        raise DataError(
            f"{path} is not an oracle: {problem}. It must be an .npz of the arrays {', '.join(NAMES)}, "
            "or a pickled list of them in this order."
        ) from problem
    return _check_shapes(arrays, path)


def _shapes(vocab_size: int, embedding: int, hidden: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"embedding": (vocab_size, embedding)}
    for gate in "ifoc":
        shapes |= {f"W{gate}": (embedding, hidden), f"U{gate}": (hidden, hidden), f"b{gate}": (hidden,)}
    return shapes | {"W_out": (hidden, vocab_size), "b_out": (vocab_size,)}


def _check_shapes(arrays: dict[str, Any], path: Path) -> dict[str, npt.NDArray[np.float32]]:
    missing = [name for name in NAMES if name not in arrays]
    if missing:
        raise DataError(f"{path} lacks the arrays {', '.join(missing)} of an oracle")
    if arrays["embedding"].ndim != 2 or arrays["bi"].ndim != 1:
        raise DataError(f"{path}: the embedding of an oracle has two axes and its biases one")
    wanted = _shapes(len(arrays["embedding"]), arrays["embedding"].shape[1], len(arrays["bi"]))
    for name in NAMES:
        array = arrays[name]
        if array.dtype.kind != "f" or array.shape != wanted[name] or not np.isfinite(array).all():
            raise DataError(
                f"{path}: {name} should be {wanted[name]} finite floats, and is {array.dtype} {array.shape}"
            )
    return {name: arrays[name].astype(np.float32) for name in NAMES}


def load_arrays(file: BinaryIO) -> Sequence[npt.NDArray[Any]]:
    """Unpickle a list of numeric arrays; anything else in the pickle is refused before it runs."""
    loaded = _ArraysOnly(io.BytesIO(file.read()), encoding="latin1").load()
    if not isinstance(loaded, list) or not all(isinstance(a, np.ndarray) for a in loaded):
        raise DataError("the pickle holds something other than a list of arrays")
    return loaded


class _ArraysOnly(pickle.Unpickler):
    """A pickle reader that knows how numpy writes arrays of numbers, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """Give our own stand-ins for the few names that a pickled array needs."""

        def empty_array(*_: object) -> npt.NDArray[np.float32]:
            return np.zeros(0, dtype=np.float32)  # its contents are set by the state that follows

        def numeric_dtype(code: object, *_: object) -> np.dtype[Any]:
            dtype = np.dtype(code) if isinstance(code, str) else None
            if dtype is None or dtype.kind not in "iuf":
                raise DataError(f"the pickle holds an array of {code!r}, and not of numbers")
            return dtype

        def to_bytes(text: object, *_: object) -> bytes:
            return str(text).encode("latin1")

        if (module, name) in {(m, "_reconstruct") for m in ("numpy.core.multiarray", "numpy._core.multiarray")}:
            return empty_array
        if (module, name) == ("numpy", "ndarray"):
            return None
        if (module, name) == ("numpy", "dtype"):
            return numeric_dtype
        if (module, name) == ("_codecs", "encode"):
            return to_bytes
        raise DataError(f"the pickle asks for {module}.{name}; only arrays are read, so that no file can run code; save other oracles as .npz")
