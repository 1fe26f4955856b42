"""Load the published parameters of an oracle from an .npz file or from SeqGAN's pickle, safely.

A pickle is a program, and loading it may run arbitrary code. This loader first checks that the
pickle has only the opcodes that numpy uses for arrays of numbers. The restricted unpickler then
creates placeholder objects, and the arrays are created from the placeholders' bytes. So a file
can neither run code nor set the internal state of a numpy object.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from text_gym.arrays import AnyArray
from text_gym.errors import DataError

NAMES = ("embedding", "Wi", "Ui", "bi", "Wf", "Uf", "bf", "Wo", "Uo", "bo", "Wc", "Uc", "bc", "W_out", "b_out")
"""Names of the arrays, in the order of the published file. The gates are x @ W + h @ U + b."""

LARGEST = 1 << 30  # maximum size of an array in bytes
MOST_STEPS = 5_000  # maximum number of opcodes of a pickle; the published pickle has 640
_STEPS = """
    PROTO FRAME STOP MARK GLOBAL STACK_GLOBAL REDUCE BUILD EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE TUPLE
    TUPLE1 TUPLE2 TUPLE3 NONE NEWTRUE NEWFALSE INT LONG LONG1 BININT BININT1 BININT2 STRING BINSTRING
    SHORT_BINSTRING BINBYTES SHORT_BINBYTES UNICODE BINUNICODE SHORT_BINUNICODE PUT BINPUT LONG_BINPUT GET
    BINGET LONG_BINGET MEMOIZE
"""
STEPS = frozenset(_STEPS.split())


def load_parameters(path: str | Path) -> dict[str, npt.NDArray[np.float32]]:
    """Load the arrays of an oracle from an .npz file or SeqGAN's pickle; DataError for invalid files or shapes."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"no file {str(path)!r}; give the path of an .npz file or of SeqGAN's published .pkl file")
    try:
        if path.suffix == ".npz":
            arrays = _load_npz(path)
        else:
            with path.open("rb") as file:
                arrays = dict(zip(NAMES, load_arrays(file), strict=True))
    except DataError as problem:
        raise DataError(f"{path}: {problem}") from problem
    except Exception as problem:
        raise DataError(
            f"{path} is not an oracle: {problem}; give an .npz file with the arrays {', '.join(NAMES)}, "
            "or a pickled list of these arrays in this order"
        ) from problem
    return check_parameters(arrays, str(path))


def _load_npz(path: Path) -> dict[str, AnyArray]:
    with np.load(path, allow_pickle=False) as archive:
        for name in NAMES:
            if name in archive.files and archive.zip.getinfo(f"{name}.npy").file_size > LARGEST:
                raise DataError(f"the array {name} has more than {LARGEST:,} bytes; it is not that of an oracle")
        return {name: archive[name] for name in NAMES if name in archive.files}


def shapes_of(vocab_size: int, embedding: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of each array by name."""
    shapes: dict[str, tuple[int, ...]] = {"embedding": (vocab_size, embedding)}
    for gate in "ifoc":
        shapes |= {f"W{gate}": (embedding, hidden), f"U{gate}": (hidden, hidden), f"b{gate}": (hidden,)}
    return shapes | {"W_out": (hidden, vocab_size), "b_out": (vocab_size,)}


def check_parameters(
    arrays: Mapping[str, npt.ArrayLike], where: str, sizes: tuple[int, int, int] | None = None
) -> dict[str, npt.NDArray[np.float32]]:
    """Convert the arrays of an oracle to float32.

    Args:
        arrays: The arrays; the keys are NAMES.
        where: Origin of the arrays, for error messages.
        sizes: Sizes of the vocabulary, the embedding and the LSTM; by default inferred from the arrays.

    Raises:
        DataError: An array is missing, has a wrong shape, or is not finite in float32.
    """
    missing = [name for name in NAMES if name not in arrays]
    if missing:
        raise DataError(f"{where} lacks the arrays {', '.join(missing)}; an oracle needs {', '.join(NAMES)}")
    if np.ndim(arrays["embedding"]) != 2 or np.ndim(arrays["bi"]) != 1:
        raise DataError(f"{where}: the embedding of an oracle must have two axes, and each bias one")
    wanted = shapes_of(*(sizes or (*np.shape(arrays["embedding"]), len(np.asarray(arrays["bi"])))))
    checked = {}
    for name in NAMES:
        array = np.asarray(arrays[name])
        with np.errstate(over="ignore"):
            checked[name] = array.astype(np.float32) if array.dtype.kind == "f" else np.full(1, np.nan, np.float32)
        if array.shape != wanted[name] or not np.isfinite(checked[name]).all():
            raise DataError(
                f"{where}: {name} must be an array {wanted[name]} of floats that are finite in float32, "
                f"not {array.dtype} {array.shape}"
            )
    return checked


def load_arrays(file: BinaryIO) -> Sequence[AnyArray]:
    """Unpickle a list of float arrays; DataError, before any opcode is run, if the pickle has other opcodes."""
    content = file.read()
    for count, (step, argument, _) in enumerate(pickletools.genops(content), 1):
        if step.name not in STEPS:
            raise DataError(
                f"the pickle has the opcode {step.name}, which arrays do not need; save other oracles as .npz"
            )
        if count > MOST_STEPS or ("PUT" in step.name and int(argument or 0) > MOST_STEPS):
            raise DataError(f"the pickle has more than {MOST_STEPS} opcodes; save large oracles as .npz")
    loaded = _ArraysOnly(io.BytesIO(content), encoding="latin1").load()
    if not isinstance(loaded, list) or not all(isinstance(part, _Array) for part in loaded):
        raise DataError("the pickle does not contain a list of arrays; save other oracles as .npz")
    return [part.array() for part in loaded]


class _Dtype:
    """Placeholder for numpy.dtype: a code such as "f4", and a byte order."""

    def __init__(self, code: object, *_: object) -> None:
        self.code = code
        self.order = "<"

    def __setstate__(self, state: tuple[object, ...]) -> None:
        self.order = str(state[1])


class _Array:
    """Placeholder for an array, until its state has been read."""

    def __init__(self, *_: object) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[object, ...]) -> None:
        self.state = state

    def array(self) -> AnyArray:
        """Create the array from its bytes."""
        _, shape, dtype, by_columns, content = self.state
        if not isinstance(dtype, _Dtype) or dtype.code not in ("f2", "f4", "f8") or dtype.order not in "<>=":
            raise DataError("the pickle contains an array that is not of floats; save other oracles as .npz")
        content = content.encode("latin1") if isinstance(content, str) else content
        shape = tuple(int(size) for size in shape)
        kind = np.dtype(f"{dtype.order}{dtype.code}")
        if len(content) != math.prod(shape) * kind.itemsize:
            raise DataError(
                f"the pickle contains an array of shape {shape} with {len(content)} bytes, not "
                f"{math.prod(shape) * kind.itemsize}; the file is damaged"
            )
        return np.frombuffer(content, dtype=kind).reshape(shape, order="F" if by_columns else "C")


def _to_bytes(text: object, *_: object) -> bytes:
    return str(text).encode("latin1")


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that resolves only the names in a pickled array, each to a placeholder."""

    def find_class(self, module: str, name: str) -> object:
        """Return the placeholder of a name; DataError for all other names."""
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return _Array
        placeholders = {("numpy", "ndarray"): _Array, ("numpy", "dtype"): _Dtype, ("_codecs", "encode"): _to_bytes}
        if (module, name) in placeholders:
            return placeholders[module, name]
        raise DataError(
            f"the pickle imports {module}.{name}, which is not allowed because it may run code; "
            "save other oracles as .npz"
        )
