"""Contour files of the Sunnybrook data set: text to polygon, and polygon to mask.

**Origin of the coordinates.** It is not documented, so it was measured on the images: `CONTOUR_ORIGIN` is 1, the centre
of the first pixel is (1, 1). For the 96 inner contours of the five public patients, the step in brightness across the
contour is largest if all contours are moved by (-1, -1) pixels: 0.69 standard deviations of the surroundings, against
0.58 if they are counted from 0. For the single patients the best shift is (-1, -1) twice, (-1, -0.75), (-0.5, -0.75)
and (-1.75, -1.5). ``decathlete explore sunnybrook`` shows it.

**Pixels inside.** The mask has as many pixels as the polygon has area, rounded, and they are those that the polygon
covers most; among equally covered pixels, evenly spread ones are taken. The usual rules (pixel centre inside, or at
least half covered) depend on which side wins when an edge runs through pixel centres. With vertices on half pixels
that is common, and it changes the area of a small contour by several percent.
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
NO_OUTER = 3  # outside the inner contour without an outer one: background or muscle
NO_INNER = 4  # inside the outer contour without an inner one: cavity or muscle
_MAX_BYTES = 1 << 20  # a drawn contour takes about 3 kB
_FARTHEST = 1e5  # pixels: no image is so wide
# float() would also accept nan, inf and 1_6.0
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def read_contour(path: str | Path) -> NDArray[np.float64]:
    """Points (N, 2) of a contour file, x (column) and y (row) as written: in pixels from `CONTOUR_ORIGIN`.

    A line is ``x y``, with any white space around it; blank lines are ignored. The polygon is closed: repeating the
    first point at the end changes nothing.

    Raises:
        DataError: the file cannot be read or is not text; a line is not two finite numbers; there are fewer than three
            distinct points, or all are on one line.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise DataError(
                path, f"too large for a contour file, at most {_MAX_BYTES:,} bytes", f"{path.stat().st_size:,} bytes"
            )
        text = path.read_bytes().removeprefix(b"\xef\xbb\xbf").decode("ascii")  # a mark of some editors
    except OSError as error:
        raise DataError(path, "the file cannot be read", error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise DataError(path, "not a text file of two numbers per line", f"not ASCII: {error.reason}",
                        "Save the contour as plain text") from error  # fmt: skip
    points = np.array(
        [p for n, line in enumerate(re.split(r"\r\n|\r|\n", text), start=1) for p in _point(path, n, line)]
    )
    if not len(points):
        raise DataError(path, "no points in the file")
    distinct = len(np.unique(points, axis=0))
    if distinct < 3:
        raise DataError(path, "expected at least three distinct points", f"{distinct}")
    away = points - points[0]
    if np.linalg.matrix_rank(away / np.abs(away).max(), tol=1e-9) < 2:
        raise DataError(path, "the contour encloses no area", "all points are on one line")
    return points


def write_contour(points: ArrayLike, path: str | Path) -> None:
    """Write points (N, 2), x and y in pixels from `CONTOUR_ORIGIN`, like the challenge: ``x y`` with two decimals."""
    lines = [f"{x:.2f} {y:.2f}\n" for x, y in np.asarray(points, dtype=float)]
    with atomic_write(path) as part:
        part.write_text("".join(lines), encoding="ascii", newline="\n")


def contour_area(points: ArrayLike) -> float:
    """Area in square pixels that a polygon (N, 2) encloses, by the shoelace formula; 0 or more."""
    x, y = np.asarray(points, dtype=np.float64).T
    x, y = x - x[0], y - y[0]  # small numbers keep their digits
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


def trace_contour(mask: ArrayLike, origin: float = CONTOUR_ORIGIN) -> NDArray[np.float64]:
    """Outline (N, 2) of the largest region of a mask (X, Y), in pixels from ``origin``; (0, 2) of an empty mask.

    It runs halfway between inner and outer pixels, ends where it starts, and cuts corners: `contour_mask` gives the
    mask again, except for some pixels at corners.
    """
    from skimage.measure import find_contours  # takes half a second to import

    outlines = find_contours(np.pad(np.asarray(mask, dtype=np.float64), 1), 0.5)
    if not outlines:
        return np.empty((0, 2))
    return max(outlines, key=contour_area) - 1 + origin


def distances_to_contour(points: ArrayLike, contour: ArrayLike) -> NDArray[np.float64]:
    """Distance of each point (N, 2) to the nearest point on the line of a closed polygon (M, 2), in their unit."""
    start = np.asarray(contour, dtype=np.float64)
    along = np.roll(start, -1, axis=0) - start
    length2 = np.maximum((along**2).sum(axis=1), 1e-12)
    away = np.asarray(points, dtype=np.float64)[:, None] - start  # (points, edges, 2)
    fraction = np.clip((away * along).sum(axis=2) / length2, 0, 1)
    return np.linalg.norm(away - fraction[..., None] * along, axis=2).min(axis=1)


def contour_coverage(
    points: ArrayLike, shape: Sequence[int], origin: float = CONTOUR_ORIGIN, where: str | Path = "contour"
) -> NDArray[np.float64]:
    """Fraction of each pixel, 0 to 1, inside a polygon; exact, so the sum is the area of the polygon.

    If a polygon crosses itself, what it encloses in either sense is inside (within one pixel, opposite senses cancel).

    Args:
        points: (N, 2), x and y in pixels; the last is joined to the first.
        shape: pixels along X and Y.
        origin: coordinate of the first pixel's centre.
        where: name for an error.

    Raises:
        DataError: a point is outside the image.
    """
    edges = np.asarray(points, dtype=np.float64) - origin + 0.5  # now pixel k goes from k to k + 1
    outside = np.flatnonzero((edges < 0).any(axis=1) | (edges > np.asarray(shape)).any(axis=1))
    if len(outside):
        x, y = np.asarray(points, dtype=np.float64)[outside[0]]
        size = f"{shape[0]} x {shape[1]} pixels"
        raise DataError(where, f"{len(outside)} of {len(edges)} points are outside the image of {size}",
                        f"first point {outside[0] + 1}: {x:g}, {y:g}")  # fmt: skip
    pieces = np.array([p for a, b in pairwise([*edges.tolist(), edges[0].tolist()]) for p in _pieces(a, b)])
    middle_x, middle_y, height = pieces.T
    column = np.minimum(middle_x.astype(int), shape[0] - 1)
    row = np.minimum(middle_y.astype(int), shape[1] - 1)
    right = middle_x - column  # fraction of the pixel left of the edge, over the height of the edge
    # each piece adds what lies to its right in its row; summed along the row, those are the areas
    covered = np.zeros((shape[0] + 1, shape[1]))
    np.add.at(covered, (column, row), height * (1 - right))
    np.add.at(covered, (column + 1, row), height * right)
    return np.minimum(np.abs(covered.cumsum(axis=0)[:-1]), 1.0)


def contour_mask(
    points: ArrayLike, shape: Sequence[int], origin: float = CONTOUR_ORIGIN, where: str | Path = "contour"
) -> NDArray[np.bool_]:
    """Mask (X, Y) of a polygon: as many pixels as its area, those covered most. Arguments as `contour_coverage`.

    A polygon of less than half a pixel gives an empty mask. Start point, direction and repeated points do not matter.

    Raises:
        DataError: a point is outside the image.
    """
    covered = contour_coverage(points, shape, origin, where).round(9).ravel()  # equal up to rounding becomes equal
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
    """Label values of a slice from the masks of inner and outer contour, one of which may be None."""
    if inner is None:
        return np.where(np.asarray(outer), NO_INNER, 0).astype(np.uint8)
    outside = NO_OUTER if outer is None else np.where(outer, MUSCLE, 0)
    return np.where(inner, CAVITY, outside).astype(np.uint8)


def _point(path: Path, number: int, line: str) -> list[list[float]]:
    """The point of a line in a list; an empty list for a blank line."""
    fields = line.split()
    if not fields:
        return []
    rule = f"expected two numbers, x and y, in line {number}"
    if len(fields) != 2:
        columns = "1 column" if len(fields) == 1 else f"{len(fields)} columns"
        raise DataError(path, rule, f"{columns}, {line.strip()[:60]!r}", "Separate them by a space")
    wrong = [field for field in fields if not _NUMBER.fullmatch(field)]
    if wrong:
        raise DataError(path, rule, f"{wrong[0][:60]!r}")
    point = [float(field) for field in fields]
    if max(map(abs, point)) > _FARTHEST:
        raise DataError(path, f"the point in line {number} is outside any image", line.strip()[:60])
    return [point]


def _pieces(start: Sequence[float], end: Sequence[float]) -> list[tuple[float, float, float]]:
    """An edge split at pixel borders: middle (x, y) and signed height of each piece."""
    cuts = {0.0, 1.0}
    for a, b in zip(start, end, strict=True):
        if a != b:
            cuts.update((k - a) / (b - a) for k in range(math.ceil(min(a, b)), math.floor(max(a, b)) + 1))
    (x, y), (dx, dy) = start, (end[0] - start[0], end[1] - start[1])
    at = sorted(t for t in cuts if 0 <= t <= 1)
    return [(x + dx * (s + t) / 2, y + dy * (s + t) / 2, dy * (t - s)) for s, t in pairwise(at)]
