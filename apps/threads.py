"""How the threads of torch wait for each other, and how many there are. Decided before torch is loaded.

torch's threads (OpenMP) wait by spinning for milliseconds. Beside other programs they take the cores from those that
they wait for: one step of training then takes 3 to 30 times as long (`benchmarks/people.py`).
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import MutableMapping

from decathlete.machine import affinity_cores, cores

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # one of these, set by the user, stays
NUMBER = "OMP_NUM_THREADS"
# spins of an idle machine, 0.1 ms: nearly as fast as torch's 300,000, and no cliff when other programs start later
SPINS = "10000"
_set_here: set[str] = set()


def prepare_threads(environ: MutableMapping[str, str] | None = None, running: int | None = None) -> None:
    """Let torch's threads wait without spinning where other programs run, with little of it elsewhere.

    Their number is that of the cores that this process may use, where a container or Slurm allows fewer than OpenMP
    counts. Does nothing once torch is loaded, and leaves what the user has set.

    Args:
        environ: in place of ``os.environ``.
        running: other threads that run or wait for a core now; default: what the system tells.
    """
    if environ is None:
        if "torch" in sys.modules:
            return
        environ = os.environ
    if not any(name in environ for name in WAITING):
        if (_running() if running is None else running) > 0:
            environ["OMP_WAIT_POLICY"] = "passive"
        else:
            environ["GOMP_SPINCOUNT"] = SPINS
    if NUMBER not in environ and cores() < affinity_cores():
        environ[NUMBER] = str(cores())
        _set_here.add(NUMBER)


def share_threads(processes: int) -> None:
    """Divide the cores among the processes that this one is to start, unless the user has set a number of threads."""
    if NUMBER not in os.environ or NUMBER in _set_here:
        os.environ[NUMBER] = str(max(1, cores() // processes))


def _running() -> int:
    """Threads of this machine that run or wait for a core, apart from this one; 0 where the system does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError), open("/proc/loadavg", encoding="ascii") as file:
        return int(file.read().split()[3].split("/")[0]) - 1
    return 0
