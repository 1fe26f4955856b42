"""Type aliases of numpy arrays."""

from typing import Any

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
Mask = npt.NDArray[np.int8]
"""Action mask: 1 for each allowed token, [V] or [n, V]; int8, the type that Gymnasium's `Discrete.sample` takes."""
AnyArray = npt.NDArray[Any]
