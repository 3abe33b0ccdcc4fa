"""Volumes as arrays, their slices as rows and columns of a picture, and the gray window of an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decathlete.errors import GeometryError, shape_text


def as_volume(values: Any) -> NDArray[Any]:
    """Array or tensor as a numpy array (X, Y, Z): the first channel of four axes, a third axis of length 1 for two.

    Raises:
        GeometryError: other axes, or one of length 0.
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        if values.dtype.is_floating_point:
            values = values.float()  # numpy knows no bfloat16
    array = np.asarray(values)
    if array.ndim == 4:
        array = array[0]
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim == 3 and all(array.shape):
        return array
    axes = "expected an image with axes (X, Y), (X, Y, Z) or (C, X, Y, Z), none of length 0"
    raise GeometryError("overlay", axes, f"shape {shape_text(np.shape(values)) or 'of a number'}")


def as_picture(plane: NDArray[Any]) -> NDArray[Any]:
    """Plane of two RAS axes as rows and columns: the second axis upwards, the first one from right to left."""
    return plane[::-1, ::-1].T


def gray_window(volume: NDArray[Any]) -> tuple[float, float]:
    """Intensities shown black and white: percentiles 0.5 and 99.5 of the finite voxels; (0, 0) without any."""
    finite = volume[np.isfinite(volume)]
    if not finite.size:
        return 0.0, 0.0
    low, high = np.percentile(finite, (0.5, 99.5))
    if low == high:  # a small bright thing on a flat background
        low, high = finite.min(), finite.max()
    return float(low), float(high)


def to_unit_range(plane: NDArray[Any], low: float, high: float) -> NDArray[np.float64]:
    """Plane scaled to 0 .. 1 and clipped; a constant image becomes middle gray, NaN becomes black."""
    plane = np.asarray(plane, dtype=np.float64)
    scaled = np.full(plane.shape, 0.5) if high <= low else np.clip((plane - low) / (high - low), 0, 1)
    return np.where(np.isnan(plane), 0.0, scaled)


def foreground_counts(axis: int, *maps: NDArray[Any] | None, shape: Sequence[int]) -> NDArray[np.int64]:
    """Foreground voxels of each slice across ``axis``, summed over all maps."""
    counts = np.zeros(shape[axis], dtype=np.int64)
    for values in maps:
        if values is not None:
            counts += np.count_nonzero(values, axis=tuple(a for a in range(3) if a != axis))
    return counts


def fullest_slice(axis: int, *maps: NDArray[Any] | None, shape: Sequence[int]) -> int:
    """Number of the slice across ``axis`` with most foreground over all maps; the middle slice if there is none."""
    counts = foreground_counts(axis, *maps, shape=shape)
    return int(counts.argmax()) if counts.any() else shape[axis] // 2
