"""Studies of a data set before any training: what simpler methods reach."""

from __future__ import annotations

from typing import TYPE_CHECKING

from decathlete.lazy import lazy_names

if TYPE_CHECKING:
    from decathlete.explore.study import explore_sunnybrook

__all__ = ["explore_sunnybrook"]

__getattr__ = lazy_names(__name__, {"explore_sunnybrook": "study"})
