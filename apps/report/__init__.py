"""Predictions and scores as one HTML file that loads nothing from the network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from decathlete.lazy import lazy_names

if TYPE_CHECKING:
    from decathlete.report.predictions import PredictedCase, write_prediction_page
    from decathlete.report.scores import write_score_page

__all__ = ["PredictedCase", "write_prediction_page", "write_score_page"]

__getattr__ = lazy_names(
    __name__,
    {"PredictedCase": "predictions", "write_prediction_page": "predictions", "write_score_page": "scores"},
)
