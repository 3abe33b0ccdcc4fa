"""The environment that torchrun gives its processes. Imports nothing heavy."""

from __future__ import annotations

import os
from collections.abc import Mapping


def in_torchrun(environ: Mapping[str, str] | None = None) -> bool:
    """Whether torchrun started this process as one of its group."""
    environ = os.environ if environ is None else environ
    return "LOCAL_RANK" in environ and "WORLD_SIZE" in environ
