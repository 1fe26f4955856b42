"""Type aliases of numpy arrays, and reprs that show an array by its type and shape."""

import reprlib
from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
Mask = npt.NDArray[np.int8]
"""Action mask: 1 for each allowed token, [V] or [n, V]; int8, the type that Gymnasium's `Discrete.sample` takes."""
AnyArray = npt.NDArray[Any]


class _Outline(reprlib.Repr):
    """Short reprs of values, in which an array or a tensor is its type and shape."""

    def repr_ndarray(self, array: AnyArray, level: int) -> str:
        return f"{array.dtype}{list(array.shape)}"

    def repr_Tensor(self, tensor: Any, level: int) -> str:  # noqa: N802 - reprlib finds it by the name of the type
        return f"{tensor.dtype}{list(tensor.shape)}".removeprefix("torch.")


_OUTLINE = _Outline()


def outline(record: Any) -> str:
    """Return a repr of a named tuple or dataclass, of bounded length, with arrays by type and shape.

    >>> from typing import NamedTuple
    >>> class Sampled(NamedTuple):
    ...     tokens: IntArray
    ...     texts: list[str]
    >>> outline(Sampled(np.zeros((2, 3), dtype=np.int64), ["to be"] * 9))
    "Sampled(tokens=int64[2, 3], texts=['to be', 'to be', 'to be', 'to be', 'to be', 'to be', ...])"
    """
    names = getattr(record, "_fields", None) or [field.name for field in fields(record) if field.repr]
    shown = (f"{name}={_OUTLINE.repr(getattr(record, name))}" for name in names)
    return f"{type(record).__name__}({', '.join(shown)})"
