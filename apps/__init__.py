"""Medical image segmentation in MONAI bundles, from a scan to a label map that lies exactly on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Predictor", "__version__", "bundle_folder", "predict"]

if TYPE_CHECKING:
    from decathlete.bundle import bundle_folder
    from decathlete.inference import Predictor, predict

_HOME = {"predict": "decathlete.inference", "Predictor": "decathlete.inference", "bundle_folder": "decathlete.bundle"}


def __getattr__(name: str) -> Any:
    """Import the public names when they are asked for: torch alone costs a second at start."""
    if name not in _HOME:
        raise AttributeError(f"module 'decathlete' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
