"""Scores on each case's original grid: metrics of masks, folders of label maps, cross-validation, label statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from decathlete.lazy import lazy_names

if TYPE_CHECKING:
    from decathlete.bundle import bundle_labels
    from decathlete.evaluation.comparison import compare
    from decathlete.evaluation.contour_metrics import ContourMetricsWriter, average_perpendicular_distance
    from decathlete.evaluation.cross_validation import cross_validate
    from decathlete.evaluation.folders import evaluate
    from decathlete.evaluation.handler import MetricsWriter
    from decathlete.evaluation.heartbeat import HeartFunction, heart_function
    from decathlete.evaluation.metrics import dice, hd95, iou, nsd, pooled_soft_dice, volume_ml
    from decathlete.evaluation.statistics import label_statistics

__all__ = [
    "ContourMetricsWriter",
    "HeartFunction",
    "MetricsWriter",
    "average_perpendicular_distance",
    "bundle_labels",
    "compare",
    "cross_validate",
    "dice",
    "evaluate",
    "hd95",
    "heart_function",
    "iou",
    "label_statistics",
    "nsd",
    "pooled_soft_dice",
    "volume_ml",
]

__getattr__ = lazy_names(
    __name__,
    {
        "ContourMetricsWriter": "contour_metrics",
        "HeartFunction": "heartbeat",
        "MetricsWriter": "handler",
        "average_perpendicular_distance": "contour_metrics",
        "bundle_labels": "decathlete.bundle.description",
        "compare": "comparison",
        "cross_validate": "cross_validation",
        "dice": "metrics",
        "evaluate": "folders",
        "hd95": "metrics",
        "heart_function": "heartbeat",
        "iou": "metrics",
        "label_statistics": "statistics",
        "nsd": "metrics",
        "pooled_soft_dice": "metrics",
        "volume_ml": "metrics",
    },
)
