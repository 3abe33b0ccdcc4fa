"""Prediction: a scan in, a label map on the scan's own grid out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from decathlete.lazy import lazy_names

if TYPE_CHECKING:
    from decathlete.inference.folders import predict
    from decathlete.inference.inferers import SliceWise, SlidingWindow
    from decathlete.inference.outcome import PredictReport
    from decathlete.inference.predictor import Prediction, Predictor

__all__ = ["PredictReport", "Prediction", "Predictor", "SliceWise", "SlidingWindow", "predict"]

__getattr__ = lazy_names(
    __name__,
    {
        "PredictReport": "outcome",
        "Prediction": "predictor",
        "Predictor": "predictor",
        "SliceWise": "inferers",
        "SlidingWindow": "inferers",
        "predict": "folders",
    },
)
