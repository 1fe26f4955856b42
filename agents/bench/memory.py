"""Memory use of this process."""

from __future__ import annotations

import resource
import sys
from pathlib import Path


def resident_bytes(which: str) -> float:
    """Return the resident memory of this process ("VmRSS") or its peak ("VmHWM"), in bytes.

    Without /proc (macOS) it is always the peak. On Linux, getrusage() is not suitable: a new process starts with the
    peak of its parent.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith(which))
        return float(line.split()[1]) * 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * (1 if sys.platform == "darwin" else 1024)
