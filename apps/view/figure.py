"""A scan with its reference and prediction in three planes, as a PNG for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decathlete.colours import colour_of
from decathlete.errors import DataError
from decathlete.files import atomic_write
from decathlete.view.panels import (
    FILL_OPACITY,
    as_picture,
    fullest_slice,
    gray_window,
    to_unit_range,
)
from decathlete.view.scan import LETTERS, PLANES, class_dice, class_names, load_scan

SCALE_BARS_MM = (1, 2, 5, 10, 20, 50, 100)
WIDTH_INCHES = 10.0
TEXT_INCHES = 1.1  # title, plane names, legend and footer
DPI = 150


def overlay(
    image: Any,
    label: Any = None,
    prediction: Any = None,
    path: str | Path = "overlay.png",
    *,
    affine: NDArray[Any] | None = None,
    labels: Mapping[int, str] | None = None,
    case_id: str | None = None,
    title: str | None = None,
    channel: int = 0,
    axis: int | None = None,
    index: int | None = None,
) -> Path:
    """Write a picture of three planes, each through the slice with most foreground, and return its path.

    Shown in the radiologist's way, the patient's right on the left, with true proportions; reference as outline,
    prediction as fill, a scale bar, and in the title the case and its Dice per class over the whole volume.

    Args:
        image: NIfTI file, or array or tensor (X, Y, Z), (C, X, Y, Z) or (X, Y).
        label: reference on the image's grid: file, or label values (X, Y, Z) with or without a leading axis.
        prediction: predicted label values likewise.
        path: the PNG, written whole or not at all.
        affine: voxel to RAS mm of arrays, 4x4; default: the image's own if it is a MetaTensor, else 1 mm in RAS order.
        labels: value to name of the classes in the legend; default: the values that occur.
        case_id: default: the image file's name.
        title: in place of case and Dice.
        channel: channel of the image that is shown.
        axis: show one plane only: 0 sagittal, 1 coronal, 2 axial.
        index: slice of that plane, counted from 0 at the patient's left, back or feet.

    Raises:
        DataError: a file cannot be read; an axis, slice or channel that is not there.
        GeometryError: image and label maps are not on one grid.
    """
    scan = load_scan(image, label, prediction, channel=channel, affine=affine)
    names = class_names(labels, scan.maps)
    slices = _slices(scan.image.shape, scan.maps, axis, index)
    if title is None:
        title = "   ".join(filter(None, (case_id or scan.name, _dice_text(*scan.maps, names))))
    figure = _draw(scan.image, scan.maps, scan.spacing, slices, names, title)
    with atomic_write(path) as part:
        figure.savefig(part, format="png", dpi=DPI)
    return Path(path)


def _slices(
    shape: Sequence[int], maps: Sequence[NDArray[Any] | None], axis: int | None, index: int | None
) -> dict[int, int]:
    """Slice number by RAS axis, for the planes that are shown."""
    if axis is None and index is not None:
        raise DataError("overlay", "a slice needs its plane", f"index {index} without axis", "Give axis 0, 1 or 2")
    if axis is not None and axis not in PLANES:
        raise DataError("overlay", "axis must be 0, 1 or 2", f"{axis}")
    flat = [n for n in PLANES if shape[n] == 1]  # a 2D image has one plane worth showing
    axes = [axis] if axis is not None else flat[:1] or list(PLANES)
    chosen = {n: fullest_slice(n, *maps, shape=shape) if index is None else index for n in axes}
    for n, at in chosen.items():
        if not 0 <= at < shape[n]:
            raise DataError("overlay", f"{PLANES[n]} slices run from 0 to {shape[n] - 1}", f"{at}")
    return chosen


def _dice_text(label: NDArray[Any] | None, prediction: NDArray[Any] | None, names: Mapping[int, str]) -> str:
    scores = {names[value]: score for value, score in class_dice(label, prediction, names).items()}
    texts = [f"{name} {'-' if np.isnan(score) else f'{score:.3f}'}" for name, score in scores.items()]
    return "Dice " + ", ".join(texts) if texts else ""


def _draw(
    image: NDArray[Any],
    maps: Sequence[NDArray[Any] | None],
    spacing: NDArray[np.float64],
    slices: Mapping[int, int],
    names: Mapping[int, str],
    title: str,
) -> Any:
    from matplotlib.figure import Figure  # no pyplot: it keeps every figure, and picks a window system

    extents = {n: np.delete(np.asarray(image.shape) * spacing, n) for n in slices}  # (width, height) in mm
    widths, tallest = [e[0] for e in extents.values()], max(e[1] for e in extents.values())
    inches_per_mm = min(WIDTH_INCHES / sum(widths), 0.8 * WIDTH_INCHES / tallest)
    size = (max(sum(widths) * inches_per_mm, 0.5 * WIDTH_INCHES), tallest * inches_per_mm + TEXT_INCHES)
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    panels = figure.subplots(1, len(slices), width_ratios=widths, squeeze=False)[0]
    window = gray_window(image)
    for panel, (axis, index) in zip(panels, slices.items(), strict=True):
        _draw_plane(panel, image, maps, axis, index, extents[axis], window, names)
        panel.set_title(f"{PLANES[axis]}, slice {index + 1} of {image.shape[axis]}", fontsize=9)
        _write_letters(panel, LETTERS[axis])
    _draw_scale_bar(panels[0], extents[next(iter(slices))])
    figure.suptitle(title, fontsize=11)
    handles = _legend(maps, names)
    if handles:
        figure.legend(
            handles=handles, loc="outside lower center", ncols=min(len(handles), 6), fontsize=9, frameon=False
        )
    figure.text(0.995, 0.005, "not for clinical use", ha="right", va="bottom", fontsize=6, color="0.4")
    return figure


def _draw_plane(
    panel: Any,
    image: NDArray[Any],
    maps: Sequence[NDArray[Any] | None],
    axis: int,
    index: int,
    extent_mm: NDArray[np.float64],
    window: tuple[float, float],
    names: Mapping[int, str],
) -> None:
    from matplotlib.collections import LineCollection

    width, height = extent_mm
    gray = to_unit_range(as_picture(np.take(image, index, axis)), *window)
    panel.imshow(gray, cmap="gray", vmin=0, vmax=1, extent=(0, width, height, 0), interpolation="nearest")
    label, prediction = (None if m is None else as_picture(np.take(m, index, axis)) for m in maps)
    voxel_mm = extent_mm / gray.shape[::-1]
    for value in names:
        colour = np.array(colour_of(value)) / 255
        if prediction is not None:
            fill = np.zeros((*gray.shape, 4))
            fill[prediction == value] = (*colour, FILL_OPACITY)
            panel.imshow(fill, extent=(0, width, height, 0), interpolation="nearest")
        if label is not None:
            lines = _edges(label == value) * voxel_mm
            panel.add_collection(LineCollection(list(lines), colors=[colour], linewidths=1.6, capstyle="round"))
    panel.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])


def _edges(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Border of a mask along the edges of its pixels: lines (N, 2 ends, (column, row)) in pixels."""
    padded = np.pad(mask, 1)
    across = np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1])  # rows and columns of the vertical pieces
    along = np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1])
    vertical = np.stack([across[:, ::-1], across[:, ::-1] + (0, 1)], axis=1)
    horizontal = np.stack([along[:, ::-1], along[:, ::-1] + (1, 0)], axis=1)
    return np.concatenate([vertical, horizontal]).astype(float)


def _write_letters(panel: Any, letters: str) -> None:
    places = [(0.015, 0.5, "left", "center"), (0.985, 0.5, "right", "center")]
    places += [(0.5, 0.985, "center", "top"), (0.5, 0.015, "center", "bottom")]
    for letter, (x, y, ha, va) in zip(letters, places, strict=True):
        panel.text(
            x, y, letter, transform=panel.transAxes, ha=ha, va=va, color="white", fontsize=10, path_effects=_dark_rim()
        )


def _draw_scale_bar(panel: Any, extent_mm: NDArray[np.float64]) -> None:
    width, height = extent_mm
    length = max((mm for mm in SCALE_BARS_MM if mm <= 0.35 * width), default=SCALE_BARS_MM[0])
    left, bottom = 0.04 * width, 0.95 * height
    panel.plot(
        [left, left + length], [bottom, bottom], color="white", lw=2.5, solid_capstyle="butt", path_effects=_dark_rim()
    )
    panel.text(left, bottom - 0.015 * height, f"{length} mm", color="white", fontsize=8, path_effects=_dark_rim())


def _dark_rim() -> list[Any]:
    """Keeps white marks readable on bright tissue."""
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=2.5, foreground="black")]


def _legend(maps: Sequence[NDArray[Any] | None], names: Mapping[int, str]) -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    label, prediction = maps
    handles: list[Any] = [Patch(color=np.array(colour_of(value)) / 255, label=name) for value, name in names.items()]
    if label is not None:
        handles.append(Line2D([], [], color="0.3", lw=1.6, label="outline: reference"))
    if prediction is not None:
        handles.append(Patch(color="0.3", alpha=FILL_OPACITY, lw=0, label="fill: prediction"))
    return handles if names else []
