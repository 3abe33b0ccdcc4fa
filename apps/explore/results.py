"""The results of the threshold study, from which tables, pictures and page are made."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decathlete.data.sunnybrook import Frame, SunnybrookIndex
from decathlete.explore.methods import POSTPROCESSING, Mask

GOOD_IOU = 0.75  # the source's bar
SOURCE_SHARE = 0.65  # of the pairs above the bar, as the source reports
SUBSET = 50  # pixels of each tissue in the second test: with all of them, any difference is "significant"
BEST = "best threshold, chosen with the reference"
SOURCE_RASTERIZER = "Pillow, rim left out (the source)"
SHIFTS = np.arange(-3.0, 3.25, 0.25)


@dataclass(frozen=True)
class Pair:
    """A frame with both contours, cropped to the surroundings of the outer one.

    Attributes:
        frame: its files.
        image: rescaled values, (X, Y).
        inner, outer: masks of the same shape.
        inner_points, outer_points: contours in the crop's coordinates, the first pixel's centre at (0, 0).
        area_mm2: area inside the inner contour.
    """

    frame: Frame
    image: NDArray[np.float64]
    inner: Mask
    outer: Mask
    inner_points: NDArray[np.float64]
    outer_points: NDArray[np.float64]
    area_mm2: float

    @property
    def muscle(self) -> Mask:
        """Between the contours."""
        return self.outer & ~self.inner


@dataclass
class Study:
    """The results.

    Attributes:
        index: the data set.
        rows: one row per pair, method and postprocessing: threshold, IoU and Dice.
        pairs: one row per pair: counts, means, the two tests.
        dependence: one row per way of reading the contours, for Otsu: ``origin``, ``rasterizer``, and the share of
            pairs above the bar by postprocessing.
        steps: brightness step across the inner contours, by patient and for ``all``, (shift in x, shift in y).
    """

    index: SunnybrookIndex
    rows: list[dict[str, Any]] = field(default_factory=list)
    pairs: list[dict[str, Any]] = field(default_factory=list)
    dependence: list[dict[str, Any]] = field(default_factory=list)
    steps: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    @property
    def methods(self) -> list[str]:
        """Their names, in the order in which they were tried."""
        return list(dict.fromkeys(row["method"] for row in self.rows))

    def ious(self, method: str, postprocessing: str = POSTPROCESSING[0]) -> NDArray[np.float64]:
        """IoU of each pair."""
        return np.array(
            [r["iou"] for r in self.rows if r["method"] == method and r["postprocessing"] == postprocessing]
        )

    def share(self, method: str, postprocessing: str = POSTPROCESSING[0], above: float = GOOD_IOU) -> float:
        """Share of the pairs whose IoU is above ``above``, 0 to 1."""
        return float((self.ious(method, postprocessing) > above).mean())

    def best_shift(self, who: str) -> tuple[float, float]:
        """Shift (x, y) in pixels with the largest brightness step, for a patient or ``all``."""
        at = np.unravel_index(self.steps[who].argmax(), self.steps[who].shape)
        return float(SHIFTS[at[0]]), float(SHIFTS[at[1]])


def area_column(postprocessing: str) -> str:
    """Column of pairs.csv with the area of Otsu's mask divided by the inner contour's."""
    return f"otsu_area_{postprocessing.replace(' ', '_')}"


def interval(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """95% interval of a share of ``count`` pairs, by Wilson's formula (1927)."""
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)
