"""Pictures of scans with their labels: PNG files for people, small arrays for TensorBoard."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from decathlete.view.figure import overlay
    from decathlete.view.panels import overlay_array

_HOME = {"overlay": "figure", "overlay_array": "panels"}
__all__ = ["overlay", "overlay_array"]


def __getattr__(name: str) -> Any:
    """Import the public names when they are asked for: matplotlib costs a second at start."""
    if name not in _HOME:
        raise AttributeError(f"module 'decathlete.view' has no attribute '{name}'")
    # no module bears the name of a function: an imported module would hide it
    return getattr(import_module(f"decathlete.view.{_HOME[name]}"), name)
