"""The loop of all fuzzers: numbered cases, each with its own random generator, until a time limit.

TEXT_GYM_FUZZ_SECONDS is the time limit of each fuzzer. TEXT_GYM_FUZZ_CASE is the number of a single case to repeat.
"""

import os
import random
import time

SECONDS = float(os.environ.get("TEXT_GYM_FUZZ_SECONDS", "5"))
CASE = os.environ.get("TEXT_GYM_FUZZ_CASE")


def cases(name):
    """Yield the number and the random generator of each case until the time limit; the same cases in every run."""
    end = time.monotonic() + SECONDS
    number = 0 if CASE is None else int(CASE)
    while True:
        yield number, random.Random(f"{name} {number}")
        number += 1
        if CASE is not None or time.monotonic() > end:
            return
