"""Volume and intensity of each class of a label map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decathlete.bundle.labels import foreground
from decathlete.errors import GeometryError, shape_text


def label_statistics(
    label: NDArray[Any], image: NDArray[Any], spacing: Sequence[float], labels: Mapping[Any, Any]
) -> dict[str, dict[str, Any]]:
    """Size and intensity per class.

    Args:
        label: label values, shape (X, Y, Z).
        image: intensities as in the file, (X, Y, Z), or (X, Y, Z, C) with several channels.
        spacing: voxel edge lengths in mm, one per axis of ``label``.
        labels: name to value or value to name; background is left out.

    Returns:
        Class name to ``label`` (its value), ``voxels``, ``volume_ml``, and ``mean_intensity``, ``std_intensity`` (over
        the class's voxels): numbers, lists with a number per channel, or None for a class without voxels.

    Raises:
        GeometryError: label and image differ in shape.
    """
    if image.shape[: label.ndim] != label.shape or image.ndim > label.ndim + 1:
        shapes = f"shapes {shape_text(label.shape)} and {shape_text(image.shape)}"
        raise GeometryError("label_statistics", "label map and image are on different grids", shapes)
    voxel_ml = float(np.prod(spacing)) / 1000
    found = {}
    for value, name in foreground(labels).items():
        inside = image[label == value].astype(np.float64)  # (voxels,) or (voxels, channels)
        voxels = len(inside)
        found[name] = {
            "label": value,
            "voxels": voxels,
            "volume_ml": voxels * voxel_ml,
            "mean_intensity": inside.mean(axis=0).tolist() if voxels else None,
            "std_intensity": inside.std(axis=0).tolist() if voxels else None,
        }
    return found
