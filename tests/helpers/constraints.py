"""Constraints that refuse some prefixes."""

import numpy as np


class ConstraintBugError(Exception):
    """What a constraint with a bug may raise."""


def until_a_seven(prefixes):
    """Allow every token, none after token 7, and fail at token 8."""
    if (prefixes == 8).any():
        raise ConstraintBugError
    size = prefixes.max()  # PAD, which every unfinished prefix has
    return np.repeat(~(prefixes == 7).any(axis=1)[:, None], size, axis=1)
