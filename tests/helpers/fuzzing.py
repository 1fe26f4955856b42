"""What fuzzers share: how long they go on, and a generator of random numbers for each case.

TEXT_GYM_FUZZ_SECONDS says how long each of them goes on, TEXT_GYM_FUZZ_CASE which case is run alone, again.
"""

import os
import random
import time

SECONDS = float(os.environ.get("TEXT_GYM_FUZZ_SECONDS", "5"))
CASE = os.environ.get("TEXT_GYM_FUZZ_CASE")


def cases(name):
    """Yield the number and the generator of one case after another: the same ones every time, until time is up."""
    end = time.monotonic() + SECONDS
    number = 0 if CASE is None else int(CASE)
    while True:
        yield number, random.Random(f"{name} {number}")
        number += 1
        if CASE is not None or time.monotonic() > end:
            return
