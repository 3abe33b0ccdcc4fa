"""What this machine has left, and what was taken. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import math
import sys
from pathlib import Path
from typing import Any


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


def free_device_bytes(device: Any) -> float:
    """What :func:`free_memory_bytes` is, for a GPU; of the CPU the same."""
    if str(device).startswith("cuda"):
        import torch

        return float(torch.cuda.mem_get_info(device)[0])
    return free_memory_bytes()


def peak_memory_gib(device: Any = "cpu") -> float:
    """Most memory that tensors took on a GPU, or that this process took at all, in GiB; nan where none can be told."""
    if str(device).startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device) / 2**30
    with contextlib.suppress(OSError, StopIteration):  # Linux, where getrusage hands on the parent's peak
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return math.nan
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**30
