"""Medical image segmentation in MONAI bundles, from a scan to a label map that lies exactly on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from decathlete.lazy import lazy_names
from decathlete.threads import prepare_threads

__version__ = "0.1.0"
__all__ = ["Predictor", "__version__", "bundle_folder", "predict"]

if TYPE_CHECKING:
    from decathlete.bundle import bundle_folder
    from decathlete.inference import Predictor, predict

prepare_threads()  # the one change of the environment by an import: later, torch has read it

__getattr__ = lazy_names(__name__, {"predict": "inference", "Predictor": "inference", "bundle_folder": "bundle"})
