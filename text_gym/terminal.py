"""Escape untrusted text for output in a terminal."""

from __future__ import annotations

import re

# Control characters except tab and newline, line separators, lone surrogates, and marks of the writing direction.
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Replace control characters, and characters that cannot be printed, by escape sequences.

    >>> printable("\x1b[31mred\x07 naïve 猫")
    '\\x1b[31mred\\x07 naïve 猫'
    """
    return UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
