"""What this machine gives a process: cores and memory, and what was taken. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_PATIENCE_S = 60.0
_SYSTEM = Path("/")  # where /proc and /sys are


def cores() -> int:
    """Cores that this process may use: its CPU affinity, within the limits of its control groups and of its Slurm task.

    The limit of a container is rounded up: half a core is one.
    """
    slurm = os.environ.get("SLURM_CPUS_PER_TASK", "")
    limits = [math.ceil(limit) for limit in _core_limits()]
    return max(1, min([affinity_cores(), *limits, *([int(slurm)] if slurm.isdecimal() else [])]))


def affinity_cores() -> int:
    """Cores that this process's CPU affinity names, which is what OpenMP counts; the machine's where there is none."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _core_limits() -> Iterator[float]:
    """Cores that each control group of this process allows, where it sets a limit."""
    for group, is_second in _groups("cpu"):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):  # "max" where the group has no limit
            if is_second:
                quota, period = (group / "cpu.max").read_text().split()
            else:
                quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            if int(quota) > 0:  # -1 in the first version without a limit
                yield int(quota) / int(period)


def free_memory_bytes() -> float:
    """Memory that this process may still take: what the system calls available, within its control groups' limits.

    Infinity where neither can be read (systems other than Linux).
    """
    free = [_meminfo("MemAvailable"), *(limit - used for limit, used in _group_limits())]
    return max(0, min(free))


def total_memory_bytes() -> float:
    """Memory of the machine, or of this process's control groups where they allow less; infinity where unknown."""
    return min([_meminfo("MemTotal"), *(limit for limit, _ in _group_limits())])


def _meminfo(name: str) -> float:
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = (_SYSTEM / "proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
    return math.inf


def _group_limits() -> Iterator[tuple[float, float]]:
    """Limit and use of each control group that this process is in, in bytes; a batch system makes one for each job."""
    for group, is_second in _groups("memory"):
        kind = (
            ("memory.max", "memory.current", "inactive_file")
            if is_second
            else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        )
        with contextlib.suppress(OSError, ValueError):  # "max" where the group has no limit
            limit, used = (int((group / file).read_text()) for file in kind[:2])
            stat = dict(row.split() for row in (group / "memory.stat").read_text().splitlines())
            yield limit, used - int(stat.get(kind[2], 0))  # pages of files that were read go when memory is wanted


def _groups(controller: str) -> Iterator[tuple[Path, bool]]:
    """Folders of this process's control groups, inner ones first, and whether they are of the second version."""
    own: list[str] = []
    with contextlib.suppress(OSError):
        own = (_SYSTEM / "proc/self/cgroup").read_text().splitlines()
    for line in own:
        _, controllers, name = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = _SYSTEM / "sys/fs/cgroup" / (controller if controllers else "")
        folder = top / name.lstrip("/")
        for group in (folder, *folder.parents):
            yield group, not controllers
            if group == top:
                break


def gpu_names() -> list[str]:
    """Models of the GPUs that NVIDIA's driver names in ``/proc`` and that this process may see, without torch.

    Whether torch can compute on them is another question: `decathlete check` asks it.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return []
    names = []
    for file in sorted(_SYSTEM.glob("proc/driver/nvidia/gpus/*/information")):
        with contextlib.suppress(OSError):
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
            names += [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
    return names


def has_bfloat16() -> bool:
    """Whether the CPU computes in bfloat16, by the flags that Linux names: torch asks the CPU for the same two."""
    with contextlib.suppress(OSError, StopIteration):
        lines = (_SYSTEM / "proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
        flags = next(line for line in lines if line.startswith("flags")).split()
        return bool({"avx512_bf16", "amx_tile"} & {*flags})
    return False


@contextlib.contextmanager
def memory_in_turn() -> Iterator[None]:
    """Processes on this machine measure the free memory and allocate theirs one after the other, inside this block.

    Allocated memory must be written to: only then does the system count it. Nobody waits longer than a minute.
    """
    import tempfile

    from decathlete.files import lock

    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            stack.enter_context(lock(Path(tempfile.gettempdir()) / "decathlete_memory", wait=_PATIENCE_S))
        yield


def free_device_bytes(device: Any) -> float:
    """As :func:`free_memory_bytes`; on a GPU with what torch has reserved there and does not use."""
    if str(device).startswith("cuda"):
        import torch

        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + unused)
    return free_memory_bytes()


def let_segments_grow() -> None:
    """Ask torch for segments of GPU memory that can grow, unless the environment says how it allocates.

    Tensors of many sizes, such as a validation's volumes, would leave gaps that nothing fits into. To be called before
    torch first uses a GPU.
    """
    if not any(name in os.environ for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")):
        os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"  # the name that all versions read


def peak_memory_gib(device: Any = "cpu") -> float:
    """Peak memory in GiB: of the tensors on a GPU, or of this process on the CPU; nan where it is unknown."""
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
