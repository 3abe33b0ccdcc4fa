"""A scan in three planes: with reference and prediction, or with a map of values over it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from decathlete.drawing.canvas import (
    MARGIN,
    ROW,
    Canvas,
    Entry,
    Palette,
    draw_legend,
    foot,
    legend,
    legend_rows,
    picture_size,
    shortened,
    window_note,
    with_letters,
)
from decathlete.drawing.scan import LETTERS, PLANES, Scan, class_dice, class_names, load_scan
from decathlete.drawing.slices import as_picture, fullest_slice, gray_window
from decathlete.errors import DataError
from decathlete.files import atomic_write

WIDTH, NARROWEST = 1200, 420  # pixels of the picture
GAP, TITLE = 8, 40
BAR_WIDTH, BAR_SPACE = 14, 60
# from nothing to the highest value, dark to bright: as matplotlib's "inferno"
RAMP = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], dtype=float)


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
    """Write a PNG of three planes, each through the slice with most foreground, and return its path.

    Shown in the radiologist's way, the patient's right on the left, with true proportions; reference as outline,
    prediction as fill, a scale bar, and in the title the case and its Dice per class over the whole volume.

    Args:
        image: NIfTI file, or array or tensor (X, Y, Z), (C, X, Y, Z) or (X, Y).
        label: reference on the image's grid: file, or label values (X, Y, Z) with or without a leading axis.
        prediction: predicted label values likewise.
        path: the PNG, written completely or not at all.
        affine: voxel to RAS mm of arrays, 4x4; default: the image's own if it is a MetaTensor, else 1 mm in RAS order.
        labels: value to name of the classes in the legend; default: the values that occur.
        case_id: default: the image file's name.
        title: in place of case and Dice.
        channel: channel of the image that is shown.
        axis: show one plane only: 0 sagittal, 1 coronal, 2 axial.
        index: slice of that plane, counted from 0 at the patient's left, back or feet.

    Raises:
        DataError: a file cannot be read; an axis, slice or channel that does not exist.
        GeometryError: image and label maps are not on one grid.
    """
    scan = load_scan(image, label, prediction, channel=channel, affine=affine)
    names = class_names(labels, scan.maps)
    if title is None:
        title = "   ".join(filter(None, (case_id or scan.name, _dice_text(scan, names))))
    picture = overlay_picture(scan, names, title, _slices(scan, axis, index))
    with atomic_write(path) as part:
        picture.save(part, format="PNG", optimize=True)
    return Path(path)


def overlay_picture(
    scan: Scan, names: Mapping[int, str], title: str, slices: Mapping[int, int] | None = None
) -> Image.Image:
    """The picture that `overlay` writes.

    Args:
        scan: image and label maps.
        names: value to name of the classes.
        title: the first line.
        slices: slice number by the axis across it; default: all planes, each through the slice with most foreground.
    """
    palette = Palette(list(names), filled=scan.prediction is not None)
    window = gray_window(scan.image)
    entries = legend(names, scan.drawn_as, None, 0)
    return palette.image(_draw(scan, slices or _slices(scan), palette, window, title, entries)[0].pixels)


def value_picture(
    image: NDArray[Any], values: NDArray[Any], affine: NDArray[Any], highest: float, title: str = ""
) -> Image.Image:
    """Values over an image in three planes, each through the slice with the largest sum of values.

    Args:
        image: (X, Y, Z).
        values: (X, Y, Z), 0 or more: 0 is transparent.
        affine: voxel to RAS mm of both.
        highest: value of the brightest colour.
        title: the first line.
    """
    scan, over = load_scan(image, affine=affine), load_scan(values, affine=affine).image
    slices = {
        axis: int(over.sum(axis=tuple(n for n in range(3) if n != axis)).argmax()) for axis in _planes(over.shape)
    }
    palette = Palette([], filled=False)
    canvas, places = _draw(scan, slices, palette, gray_window(scan.image), title, [], BAR_SPACE)
    width = canvas.pixels.shape[1]
    top, bottom = TITLE + ROW, TITLE + ROW + max(size[1] for *_, size in places.values())
    canvas.text(width - MARGIN - BAR_WIDTH - 5, top + 8, f"{highest:g}", align="right")
    canvas.text(width - MARGIN - BAR_WIDTH - 5, bottom - 8, "0", align="right")
    rgb = palette.colours[canvas.pixels].astype(float)
    rgb[top:bottom, width - MARGIN - BAR_WIDTH : width - MARGIN] = _ramp(np.linspace(1, 0, bottom - top))[:, None]
    for axis, (x, y, size) in places.items():
        plane = np.ascontiguousarray(as_picture(np.take(over, slices[axis], axis)), dtype=np.float32)
        strength = np.clip(np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.BILINEAR)) / highest, 0, 1)
        below = rgb[y : y + size[1], x : x + size[0]]
        below += np.sqrt(strength)[..., None] * (_ramp(strength) - below)
    return Image.fromarray(rgb.round().astype(np.uint8))


def _planes(shape: Sequence[int]) -> list[int]:
    """Axes across the planes that are shown: one plane of a 2D image, else all three."""
    return [n for n in PLANES if shape[n] == 1][:1] or list(PLANES)


def _slices(scan: Scan, axis: int | None = None, index: int | None = None) -> dict[int, int]:
    """Slice number by RAS axis, for the planes that are shown."""
    shape = scan.image.shape
    if axis is None and index is not None:
        raise DataError("overlay", "index given without axis", f"{index}", "Pass axis 0, 1 or 2 too")
    if axis is not None and axis not in PLANES:
        raise DataError("overlay", "no such axis", f"{axis}", "Pass 0 (sagittal), 1 (coronal) or 2 (axial)")
    axes = _planes(shape) if axis is None else [axis]
    chosen = {n: fullest_slice(n, *scan.maps, shape=shape) if index is None else index for n in axes}
    for n, at in chosen.items():
        if not 0 <= at < shape[n]:
            raise DataError("overlay", f"no such {PLANES[n]} slice", f"{at}", f"Pass a number from 0 to {shape[n] - 1}")
    return chosen


def _dice_text(scan: Scan, names: Mapping[int, str]) -> str:
    scores = {names[value]: score for value, score in class_dice(*scan.maps, names).items()}
    texts = [f"{name} {'-' if np.isnan(score) else f'{score:.3f}'}" for name, score in scores.items()]
    return "Dice " + ", ".join(texts) if texts else ""


def _draw(
    scan: Scan,
    slices: Mapping[int, int],
    palette: Palette,
    window: tuple[float, float],
    title: str,
    entries: Iterable[Entry],
    space: int = 0,
) -> tuple[Canvas, dict[int, tuple[int, int, tuple[int, int]]]]:
    """The planes side by side to one scale, with title and legend, and ``space`` pixels left at their right.

    Returns:
        The canvas, and by axis each plane's left, top and size in pixels.
    """
    extents = {n: np.delete(np.asarray(scan.image.shape) * scan.spacing, n) for n in slices}  # width, height in mm
    across, tallest = sum(e[0] for e in extents.values()), max(e[1] for e in extents.values())
    pixels_per_mm = min((WIDTH - 2 * MARGIN - space - GAP * (len(slices) - 1)) / across, 0.8 * WIDTH / tallest)
    sizes = {n: picture_size(extent, round(pixels_per_mm * max(extent))) for n, extent in extents.items()}
    used = sum(width for width, _ in sizes.values()) + GAP * (len(slices) - 1)
    total = max(used + space + 2 * MARGIN, NARROWEST)
    bar = legend({}, {}, pixels_per_mm, sizes[next(iter(slices))][0])
    rows = legend_rows([*bar, *entries], total - 2 * MARGIN)
    bottom = TITLE + ROW + max(height for _, height in sizes.values()) + GAP
    canvas = Canvas(total, bottom + (len(rows) + 1) * ROW + 6, palette)
    canvas.text(MARGIN, 20, shortened(title, total - 2 * MARGIN, 16, True), size=16, bold=True)
    x, places = (total - space - used) // 2, {}
    for axis, index in slices.items():
        picture = palette.paint(*scan.slice_at(axis, index), window, sizes[axis])
        canvas.paste(x, TITLE + ROW, with_letters(picture, LETTERS[axis], palette))
        caption = f"{PLANES[axis]}, slice {index + 1} of {scan.image.shape[axis]}"
        canvas.text(x, TITLE + ROW // 2, shortened(caption, sizes[axis][0]))
        places[axis] = (x, TITLE + ROW, sizes[axis])
        x += sizes[axis][0] + GAP
    foot(canvas, draw_legend(canvas, rows, bottom), window_note(window))
    return canvas, places


def _ramp(strength: NDArray[np.floating]) -> NDArray[np.float64]:
    """Colours (..., 3) of values from 0 to 1."""
    steps = np.linspace(0, 1, len(RAMP))
    return np.stack([np.interp(strength, steps, channel) for channel in RAMP.T], axis=-1)
