"""Fixtures that all tests may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "2")
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout's root."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data beside the checkout; tests that need it are skipped where it is missing."""
    folder = Path(os.environ.get("DECATHLETE_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"no real data at {folder}: set DECATHLETE_SHARED to run this test")
    return folder


@pytest.fixture(scope="session")
def hippocampus_data(shared: Path) -> Path:
    """MSD Task04 as far as it is there."""
    return shared / "data" / "Task04_Hippocampus"
