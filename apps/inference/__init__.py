"""Prediction: a scan in, a label map on the scan's own grid out."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from decathlete.inference.folders import PredictReport, predict
    from decathlete.inference.inferers import SlidingWindow
    from decathlete.inference.predictor import Prediction, Predictor

_HOME = {
    "PredictReport": "folders",
    "Prediction": "predictor",
    "Predictor": "predictor",
    "SlidingWindow": "inferers",
    "predict": "folders",
}
__all__ = ["PredictReport", "Prediction", "Predictor", "SlidingWindow", "predict"]


def __getattr__(name: str) -> Any:
    """Import the public names when they are asked for: torch and monai cost seconds at start."""
    if name not in _HOME:
        raise AttributeError(f"module 'decathlete.inference' has no attribute '{name}'")
    return getattr(import_module(f"decathlete.inference.{_HOME[name]}"), name)
