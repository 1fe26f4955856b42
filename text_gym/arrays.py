"""Types of arrays."""

from typing import Any

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
Mask = npt.NDArray[np.int8]
"""1 for each token that is allowed, [V] or [n, V]; int8 because Gymnasium's spaces sample by it."""
AnyArray = npt.NDArray[Any]
