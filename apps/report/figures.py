"""Pictures of a report, as JPEG in memory: a third of the bytes of PNG, of which a page may hold a hundred."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from decathlete.view.panels import as_picture, gray_window, to_unit_range
from decathlete.view.scan import PLANES, load_scan

WIDTH = 1100  # pixels of three planes
QUALITY = 88


def planes_picture(
    image: Any,
    label: Any = None,
    prediction: Any = None,
    *,
    affine: NDArray[Any] | None = None,
    labels: Mapping[int, str] | None = None,
    title: str = "",
) -> bytes:
    """Three planes of `decathlete.view.overlay`, each through the slice with most foreground."""
    from decathlete.view.figure import overlay

    with tempfile.TemporaryDirectory() as folder:
        path = overlay(
            image, label, prediction, Path(folder) / "planes.png", affine=affine, labels=labels, title=title or None
        )
        with Image.open(path) as drawn:
            drawn.load()
    return _small(drawn)


def map_picture(image: NDArray[Any], values: NDArray[Any], affine: NDArray[Any], highest: float) -> bytes:
    """Values over an image in three planes, each through the slice where they are most; from 0, clear, to ``highest``.

    Args:
        image: (X, Y, Z).
        values: (X, Y, Z), 0 or more.
        affine: voxel to RAS mm of both.
        highest: value of the strongest colour.
    """
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    scan, heat = load_scan(image, affine=affine), load_scan(values, affine=affine).image
    extent = np.asarray(scan.image.shape) * scan.spacing
    axes = [n for n in PLANES if scan.image.shape[n] == 1][:1] or list(PLANES)
    sizes = {axis: np.delete(extent, axis) for axis in axes}  # width and height in mm
    per_inch = max(sum(width for width, _ in sizes.values()) / 10, max(height for _, height in sizes.values()) / 8)
    figure = Figure(figsize=(10.8, max(h for _, h in sizes.values()) / per_inch + 0.3), layout="constrained")
    panels = figure.subplots(1, len(axes), width_ratios=[width for width, _ in sizes.values()], squeeze=False)[0]
    window = gray_window(scan.image)
    for panel, (axis, (width, height)) in zip(panels, sizes.items(), strict=True):
        at = int(heat.sum(axis=tuple(n for n in range(3) if n != axis)).argmax())
        gray, over = (as_picture(np.take(a, at, axis)) for a in (scan.image, heat))
        place = {"extent": (0, width, height, 0), "interpolation": "nearest"}
        panel.imshow(to_unit_range(gray, *window), cmap="gray", vmin=0, vmax=1, **place)
        shares = np.clip(over / highest, 0, 1)
        drawn = panel.imshow(over, cmap="inferno", norm=Normalize(0, highest), alpha=np.sqrt(shares), **place)
        panel.set(xticks=[], yticks=[])
        panel.set_title(f"{PLANES[axis]}, slice {at + 1} of {scan.image.shape[axis]}", fontsize=9)
    figure.colorbar(drawn, ax=list(panels), fraction=0.03)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    with Image.open(buffer) as picture:
        picture.load()
    return _small(picture)


def _small(picture: Image.Image) -> bytes:
    """JPEG of at most `WIDTH` pixels across, with colours as fine as grays: contours are thin."""
    picture = picture.convert("RGB")
    if picture.width > WIDTH:
        size = (WIDTH, round(picture.height * WIDTH / picture.width))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=QUALITY, subsampling=0, optimize=True)
    return buffer.getvalue()
