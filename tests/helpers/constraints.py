"""Constraints that fail for some prefixes."""

import numpy as np


class ConstraintBugError(Exception):
    """Raised by a constraint with a bug."""


def until_a_seven(prefixes):
    """Allow all tokens, but none after token 7; raise an error for a prefix with token 8."""
    if (prefixes == 8).any():
        raise ConstraintBugError
    size = prefixes.max()  # every unfinished prefix contains PAD = V
    return np.repeat(~(prefixes == 7).any(axis=1)[:, None], size, axis=1)
