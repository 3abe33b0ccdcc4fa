"""One slice of a scan as an RGB array: image in gray, reference as outline, prediction as fill."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decathlete.colours import colour_of
from decathlete.errors import GeometryError

GAP = 4  # pixels between two planes
FILL_OPACITY = 0.45  # the image stays readable below


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
            raise GeometryError(
                "overlay", "image and label map must be on one grid", f"image {volume.shape}, {name} {values.shape}"
            )
    edges = np.ones(3) if spacing is None else np.asarray([*spacing, 1.0][:3], dtype=float)
    if index is None:
        index = fullest_slice(axis, *maps, shape=volume.shape)
    low, high = gray_window(volume)
    plane_edges = np.delete(edges, axis)[::-1]  # rows run along the second of the plane's axes
    gray = as_picture(np.take(volume, index, axis))
    factors = _enlargement(gray.shape, plane_edges, min_size)
    picture = np.repeat(_enlarge(to_unit_range(gray, low, high), factors)[..., None] * 255, 3, axis=-1)
    reference, predicted = (None if m is None else _enlarge(as_picture(np.take(m, index, axis)), factors) for m in maps)
    if predicted is not None:
        for value in _classes(predicted):
            inside = predicted == value
            picture[inside] += FILL_OPACITY * (np.array(colour_of(value)) - picture[inside])
    if reference is not None:
        for value in _classes(reference):
            picture[outline(reference == value)] = colour_of(value)
    return picture.round().astype(np.uint8)


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
    columns: list[NDArray[np.uint8]] = []
    for picture in pictures:
        if columns:
            columns.append(np.zeros((height, GAP, 3), np.uint8))
        columns.append(np.pad(picture, ((0, height - len(picture)), (0, 0), (0, 0))))
    return np.concatenate(columns, axis=1)


def as_volume(values: Any) -> NDArray[Any]:
    """Array or tensor as a numpy array (X, Y, Z): the first channel of four axes, a third axis of length 1 for two."""
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
    raise GeometryError(
        "overlay", "an image has axes (X, Y), (X, Y, Z) or (C, X, Y, Z), none of length 0", f"shape {np.shape(values)}"
    )


def as_picture(plane: NDArray[Any]) -> NDArray[Any]:
    """Plane of two RAS axes as rows and columns: the second axis upwards, the first one from right to left."""
    return plane[::-1, ::-1].T


def gray_window(volume: NDArray[Any]) -> tuple[float, float]:
    """Darkest and brightest shown value: percentiles 0.5 and 99.5 of the finite voxels; (0, 0) without any."""
    finite = volume[np.isfinite(volume)]
    if not finite.size:
        return 0.0, 0.0
    low, high = np.percentile(finite, (0.5, 99.5))
    if low == high:  # a small bright thing on a flat background
        low, high = finite.min(), finite.max()
    return float(low), float(high)


def to_unit_range(plane: NDArray[Any], low: float, high: float) -> NDArray[np.float64]:
    """Plane scaled to 0 .. 1 and clipped; a constant image becomes middle gray, voxels that are no number black."""
    plane = np.asarray(plane, dtype=np.float64)
    scaled = np.full(plane.shape, 0.5) if high <= low else np.clip((plane - low) / (high - low), 0, 1)
    return np.where(np.isnan(plane), 0.0, scaled)


def fullest_slice(axis: int, *maps: NDArray[Any] | None, shape: Sequence[int]) -> int:
    """Number of the slice across ``axis`` with most foreground over all maps; the middle slice if there is none."""
    counts = np.zeros(shape[axis], dtype=np.int64)
    for values in maps:
        if values is not None:
            counts += np.count_nonzero(values, axis=tuple(a for a in range(3) if a != axis))
    return int(counts.argmax()) if counts.any() else shape[axis] // 2


def outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of a mask with an edge neighbour outside, the picture's border counted as outside."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def _classes(values: NDArray[Any]) -> list[int]:
    return [int(v) for v in np.unique(values) if v > 0]


def _enlargement(shape: Sequence[int], edges: NDArray[np.float64], min_size: int) -> tuple[int, int]:
    """Whole numbers of pixels per voxel, near the plane's physical aspect, that make the shorter side ``min_size``."""
    pixels_per_mm = max(min_size / min(np.asarray(shape) * edges), 1 / edges.min())
    rows, columns = (max(1, round(float(n))) for n in edges * pixels_per_mm)
    return rows, columns


def _enlarge(plane: NDArray[Any], factors: tuple[int, int]) -> NDArray[Any]:
    return plane.repeat(factors[0], axis=0).repeat(factors[1], axis=1)
