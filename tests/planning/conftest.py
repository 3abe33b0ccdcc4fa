"""Fixtures of the planning tests."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """What is read of a case is kept in a folder of the test's own."""
    monkeypatch.setenv("DECATHLETE_CACHE", str(tmp_path / "cache"))
