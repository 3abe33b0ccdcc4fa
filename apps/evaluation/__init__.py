"""Scores on each case's original grid: metrics on masks, reports on folders, cross-validation, statistics of labels."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from decathlete.evaluation.comparison import compare
    from decathlete.evaluation.cross_validation import cross_validate
    from decathlete.evaluation.handler import MetricsWriter
    from decathlete.evaluation.labels import bundle_labels
    from decathlete.evaluation.metrics import dice, hd95, iou, nsd, volume_ml
    from decathlete.evaluation.scoring import evaluate
    from decathlete.evaluation.statistics import label_statistics

_HOME = {
    "MetricsWriter": "handler",
    "bundle_labels": "labels",
    "compare": "comparison",
    "cross_validate": "cross_validation",
    "dice": "metrics",
    "evaluate": "scoring",
    "hd95": "metrics",
    "iou": "metrics",
    "label_statistics": "statistics",
    "nsd": "metrics",
    "volume_ml": "metrics",
}
__all__ = [
    "MetricsWriter",
    "bundle_labels",
    "compare",
    "cross_validate",
    "dice",
    "evaluate",
    "hd95",
    "iou",
    "label_statistics",
    "nsd",
    "volume_ml",
]


def __getattr__(name: str) -> Any:
    """Import the public names when they are asked for: scipy and torch cost time at start."""
    if name not in _HOME:
        raise AttributeError(f"module 'decathlete.evaluation' has no attribute '{name}'")
    # no module bears the name of a function: an imported module would hide it
    return getattr(import_module(f"decathlete.evaluation.{_HOME[name]}"), name)
