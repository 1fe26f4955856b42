"""Text for a terminal, whoever wrote it."""

from __future__ import annotations

import re

# Control characters but for tab and newline, lone surrogates, and the marks that change the direction of a line.
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Replace the characters that a terminal obeys, or cannot show, by their escapes.

    >>> printable("\x1b[31mred\x07 naïve 猫")
    '\\x1b[31mred\\x07 naïve 猫'
    """
    return UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
