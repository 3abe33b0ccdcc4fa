"""Contour files of the Sunnybrook set: text to polygon, polygon to mask, and the transform that does both in a chain.

**Where a coordinate lies.** Nothing documents it, so the images had to tell: `CONTOUR_ORIGIN` is 1, the first pixel's
centre is (1, 1). Over the 96 inner contours of the five public patients, the brightness step from inside to outside,
taken along the contour's normal, is largest where all contours are moved by (-1, -1) pixels: 0.69 standard deviations
of the surroundings, against 0.58 where they lie if counted from 0. Patient by patient the best shift is (-1, -1) twice,
(-1, -0.75), (-0.5, -0.75) and (-1.75, -1.5); ``decathlete explore sunnybrook`` draws this and gives the figures.

**Which pixels are inside.** The mask has as many pixels as the polygon has area, to the nearest pixel, and they are
those that the polygon covers most; pixels covered alike are taken evenly spread. The usual rules, pixel centre
inside or at least half covered, both depend on which side wins when an edge runs through pixel centres. With vertices
on half pixels that is common, and moves the area of a small contour by several percent.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from decathlete.errors import DataError
from decathlete.files import atomic_write

CONTOUR_ORIGIN = 1.0  # coordinate of the first pixel's centre

CAVITY, MUSCLE = 1, 2
NO_OUTER = 3  # outside the inner contour, where no outer one was drawn: background or muscle
NO_INNER = 4  # inside the outer contour, where no inner one was drawn: cavity or muscle
_MAX_BYTES = 1 << 20  # a drawn contour takes some 3 kB
_FARTHEST = 1e5  # pixels: no image is so wide
# float() also takes nan, inf and 1_6.0
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def read_contour(path: str | Path) -> NDArray[np.float64]:
    """Points (N, 2) of a contour file, x (column) and y (row) as written: in pixels from `CONTOUR_ORIGIN`.

    A line is ``x y``, with any white space around; blank lines are passed over. The polygon closes by itself: a last
    point that repeats the first changes nothing.

    Raises:
        DataError: the file cannot be read or is no text; a line is not two finite numbers; there are fewer than three
            distinct points, or they lie on one line.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise DataError(path, f"a contour file has at most {_MAX_BYTES:,} bytes", f"{path.stat().st_size:,}")
        text = path.read_bytes().removeprefix(b"\xef\xbb\xbf").decode("ascii")  # a mark of some editors
    except OSError as error:
        raise DataError(path, "the file can be read", error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise DataError(path, "line 1 onwards is text, two numbers a line", f"bytes of no ASCII text ({error.reason})",
                        "Save the contour as plain text") from error  # fmt: skip
    points = np.array(
        [p for n, line in enumerate(re.split(r"\r\n|\r|\n", text), start=1) for p in _point(path, n, line)]
    )
    if not len(points):
        raise DataError(path, "a contour has points", "0 points in the file")
    distinct = len(np.unique(points, axis=0))
    if distinct < 3:
        raise DataError(path, "a contour has three distinct points or more", f"{distinct}")
    away = points - points[0]
    if np.linalg.matrix_rank(away / np.abs(away).max(), tol=1e-9) < 2:
        raise DataError(path, "a contour encloses an area", "points on one straight line: area 0")
    return points


def write_contour(points: ArrayLike, path: str | Path) -> None:
    """Write points (N, 2), x and y in pixels from `CONTOUR_ORIGIN`, as the challenge does: two decimals, ``x y``."""
    lines = [f"{x:.2f} {y:.2f}\n" for x, y in np.asarray(points, dtype=float)]
    with atomic_write(path) as part:
        part.write_text("".join(lines), encoding="ascii", newline="\n")


def contour_area(points: ArrayLike) -> float:
    """Area in square pixels that a polygon (N, 2) encloses, by the shoelace formula; 0 or more."""
    x, y = np.asarray(points, dtype=np.float64).T
    x, y = x - x[0], y - y[0]  # small numbers: no digits lost
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


def trace_contour(mask: ArrayLike, origin: float = CONTOUR_ORIGIN) -> NDArray[np.float64]:
    """Outline (N, 2) of the largest region of a mask (X, Y), in pixels from ``origin``; (0, 2) of an empty mask.

    It runs halfway between the pixels inside and those outside, closed by its last point, and cuts corners: drawn again
    by `contour_mask`, it gives the mask but for some pixels at them.
    """
    from skimage.measure import find_contours  # takes half a second to import

    outlines = find_contours(np.pad(np.asarray(mask, dtype=np.float64), 1), 0.5)
    if not outlines:
        return np.empty((0, 2))
    return max(outlines, key=contour_area) - 1 + origin


def distances_to_contour(points: ArrayLike, contour: ArrayLike) -> NDArray[np.float64]:
    """Distance of each point (N, 2) to the nearest point of a closed polygon's line (M, 2), in the unit of both."""
    start = np.asarray(contour, dtype=np.float64)
    along = np.roll(start, -1, axis=0) - start
    length2 = np.maximum((along**2).sum(axis=1), 1e-12)
    away = np.asarray(points, dtype=np.float64)[:, None] - start  # (points, edges, 2)
    share = np.clip((away * along).sum(axis=2) / length2, 0, 1)
    return np.linalg.norm(away - share[..., None] * along, axis=2).min(axis=1)


def contour_coverage(
    points: ArrayLike, shape: Sequence[int], origin: float = CONTOUR_ORIGIN, where: str | Path = "contour"
) -> NDArray[np.float64]:
    """Share of each pixel, 0 to 1, that lies inside a polygon; exact, so the sum is the polygon's area.

    Where a polygon crosses itself, what it goes round in either sense is inside (within a pixel that both senses
    share, they cancel).

    Args:
        points: (N, 2), x and y in pixels; the last is joined to the first.
        shape: pixels along X and Y.
        origin: coordinate of the first pixel's centre.
        where: what an error names.

    Raises:
        DataError: a point lies outside the image.
    """
    edges = np.asarray(points, dtype=np.float64) - origin + 0.5  # now pixel k goes from k to k + 1
    outside = np.flatnonzero((edges < 0).any(axis=1) | (edges > np.asarray(shape)).any(axis=1))
    if len(outside):
        x, y = np.asarray(points, dtype=np.float64)[outside[0]]
        raise DataError(where, f"contours lie inside the image, {shape[0]} x {shape[1]} pixels",
                        f"{len(outside)} of {len(edges)} points outside, the first number {outside[0] + 1}: "
                        f"({x:g}, {y:g})")  # fmt: skip
    pieces = np.array([p for a, b in pairwise([*edges.tolist(), edges[0].tolist()]) for p in _pieces(a, b)])
    middle_x, middle_y, height = pieces.T
    column = np.minimum(middle_x.astype(int), shape[0] - 1)
    row = np.minimum(middle_y.astype(int), shape[1] - 1)
    right = middle_x - column  # share of the pixel left of the edge, over the edge's height
    # each piece says how much of its row's pixels lies to its right; summed along the row, those are the areas
    covered = np.zeros((shape[0] + 1, shape[1]))
    np.add.at(covered, (column, row), height * (1 - right))
    np.add.at(covered, (column + 1, row), height * right)
    return np.minimum(np.abs(covered.cumsum(axis=0)[:-1]), 1.0)


def contour_mask(
    points: ArrayLike, shape: Sequence[int], origin: float = CONTOUR_ORIGIN, where: str | Path = "contour"
) -> NDArray[np.bool_]:
    """Mask (X, Y) of a polygon: as many pixels as its area, those covered most. Arguments as `contour_coverage`.

    A polygon of less than half a pixel gives an empty mask. Start point, sense of rotation and repeated points change
    nothing.

    Raises:
        DataError: a point lies outside the image.
    """
    covered = (
        contour_coverage(points, shape, origin, where).round(9).ravel()
    )  # one value for what is equal but for rounding
    wanted = int(covered.sum() + 0.5)
    mask = np.zeros(covered.shape, dtype=bool)
    if wanted:
        limit = np.partition(covered, -wanted)[-wanted]
        mask[covered > limit] = True
        alike = np.flatnonzero(covered == limit)
        missing = wanted - int(mask.sum())
        mask[alike[((np.arange(missing) + 0.5) * len(alike) / missing).astype(int)]] = True
    return mask.reshape(tuple(shape))


def label_of_contours(inner: NDArray[np.bool_] | None, outer: NDArray[np.bool_] | None) -> NDArray[np.uint8]:
    """Label values of a slice from the masks of what the two contours go round, one of which may be None."""
    if inner is None:
        return np.where(np.asarray(outer), NO_INNER, 0).astype(np.uint8)
    outside = NO_OUTER if outer is None else np.where(outer, MUSCLE, 0)
    return np.where(inner, CAVITY, outside).astype(np.uint8)


def _point(path: Path, number: int, line: str) -> list[list[float]]:
    """The line's point in a list; an empty list for a blank line."""
    fields = line.split()
    if not fields:
        return []
    rule = f"line {number} is two numbers, x and y"
    if len(fields) != 2:
        columns = "1 column" if len(fields) == 1 else f"{len(fields)} columns"
        raise DataError(path, rule, f"{columns}, {line.strip()[:60]!r}", "Separate the two by a space")
    wrong = [field for field in fields if not _NUMBER.fullmatch(field)]
    if wrong:
        raise DataError(path, rule, f"{wrong[0][:60]!r}")
    point = [float(field) for field in fields]
    if max(map(abs, point)) > _FARTHEST:
        raise DataError(path, f"line {number} lies inside an image", line.strip()[:60])
    return [point]


def _pieces(start: Sequence[float], end: Sequence[float]) -> list[tuple[float, float, float]]:
    """An edge cut at the borders of pixels: of each piece the middle (x, y) and the height, signed."""
    cuts = {0.0, 1.0}
    for a, b in zip(start, end, strict=True):
        if a != b:
            cuts.update((k - a) / (b - a) for k in range(math.ceil(min(a, b)), math.floor(max(a, b)) + 1))
    (x, y), (dx, dy) = start, (end[0] - start[0], end[1] - start[1])
    at = sorted(t for t in cuts if 0 <= t <= 1)
    return [(x + dx * (s + t) / 2, y + dy * (s + t) / 2, dy * (t - s)) for s, t in pairwise(at)]
