"""One slice, or several planes of a scan, as an RGB array: for TensorBoard and notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decathlete.drawing.canvas import Palette
from decathlete.drawing.slices import as_volume, fullest_slice, gray_window
from decathlete.errors import GeometryError, shape_text

GAP = 4  # pixels between two planes


def overlay_array(
    image: Any,
    label: Any = None,
    prediction: Any = None,
    *,
    spacing: Sequence[float] | None = None,
    axis: int = 2,
    index: int | None = None,
    min_size: int = 192,
) -> NDArray[np.uint8]:
    """Picture of one slice, shape (H, W, 3), for TensorBoard or a web page.

    Args:
        image: array or tensor (X, Y, Z), (C, X, Y, Z) of which the first channel is shown, or (X, Y); arrays in RAS
            order show the patient's right on the left and anterior (or superior) on top.
        label: reference, label values of the same grid, with or without a leading axis of length 1: drawn as outline.
        prediction: predicted label values likewise: drawn as fill.
        spacing: voxel edge lengths in mm, one per axis, for the picture's aspect; None: all equal.
        axis: axis across the slice.
        index: slice number; None: the slice with most foreground of label and prediction, the middle one without any.
        min_size: the shorter side has at least this many pixels: voxels are drawn larger until it does.

    Raises:
        GeometryError: image, label and prediction are not on one grid.
    """
    volume = as_volume(image)
    maps = [None if m is None else as_volume(m) for m in (label, prediction)]
    for name, values in zip(("label", "prediction"), maps, strict=True):
        if values is not None and values.shape != volume.shape:
            found = f"image {shape_text(volume.shape)}, {name} {shape_text(values.shape)}"
            raise GeometryError("overlay", "image and label map are on different grids", found)
    edges = np.ones(3) if spacing is None else np.asarray([*spacing, 1.0][:3], dtype=float)
    if index is None:
        index = fullest_slice(axis, *maps, shape=volume.shape)
    plane = np.take(volume, index, axis)
    reference, predicted = (None if m is None else np.take(m, index, axis).astype(np.int64) for m in maps)
    size = _size(plane.shape, np.delete(edges, axis), min_size)
    classes = {int(v) for m in (reference, predicted) if m is not None for v in np.unique(m) if v > 0}
    palette = Palette(sorted(classes), filled=predicted is not None)
    return palette.colours[palette.paint(plane, reference, predicted, gray_window(volume), size)]


def overlay_planes(
    image: Any,
    label: Any = None,
    prediction: Any = None,
    *,
    axes: Sequence[int] = (0, 1, 2),
    spacing: Sequence[float] | None = None,
    min_size: int = 192,
) -> NDArray[np.uint8]:
    """Pictures of several planes side by side, to one scale, each through the slice with most foreground.

    Shape (H, W, 3); lower pictures stand at the top, black below.

    Args:
        image, label, prediction: as `overlay_array`.
        axes: axis across the slice of each picture, from left to right; in RAS order 0 is sagittal, 1 coronal, 2 axial.
        spacing: as `overlay_array`.
        min_size: least number of pixels of the shortest side of all pictures.

    Raises:
        GeometryError: image, label and prediction are not on one grid.
    """
    maps = [None if values is None else as_volume(values) for values in (image, label, prediction)]
    extent = np.array(as_volume(image).shape) * (1 if spacing is None else np.asarray([*spacing, 1.0][:3]))
    shorter = [min(np.delete(extent, axis)) for axis in axes]
    sizes = [round(min_size * side / min(shorter)) for side in shorter]
    pictures = [
        overlay_array(*maps, axis=axis, spacing=spacing, min_size=size) for axis, size in zip(axes, sizes, strict=True)
    ]
    height = max(len(picture) for picture in pictures)
    columns = [
        np.pad(picture, ((0, height - len(picture)), (GAP if number else 0, 0), (0, 0)))
        for number, picture in enumerate(pictures)
    ]
    return np.concatenate(columns, axis=1)


def _size(shape: Sequence[int], edges: NDArray[np.float64], min_size: int) -> tuple[int, int]:
    """Width and height in pixels, a whole number per voxel, near the plane's physical aspect."""
    pixels_per_mm = max(min_size / min(np.asarray(shape) * edges), 1 / edges.min())
    width, height = (n * max(1, round(float(edge))) for n, edge in zip(shape, edges * pixels_per_mm, strict=True))
    return width, height
