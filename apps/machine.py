"""What this machine has left. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path


def free_memory_bytes() -> float:
    """Memory that this process may still take: what the system calls available, within its control group's limit.

    Infinity where neither can be read (systems other than Linux).
    """
    free = [math.inf]
    with contextlib.suppress(OSError, ValueError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    with contextlib.suppress(OSError, ValueError):  # "max" where the group has no limit
        group = Path("/sys/fs/cgroup")
        free.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return max(0, min(free))
