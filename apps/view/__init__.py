"""Pictures of scans with their labels: PNG files for people, small arrays for TensorBoard."""

from __future__ import annotations

from typing import TYPE_CHECKING

from decathlete.lazy import lazy_names

if TYPE_CHECKING:
    from decathlete.view.figure import overlay
    from decathlete.view.panels import overlay_array

__all__ = ["overlay", "overlay_array"]

__getattr__ = lazy_names(__name__, {"overlay": "figure", "overlay_array": "panels"})
