"""The charts of the threshold study as PNG files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from skimage import filters

from decathlete.colours import colour_of
from decathlete.explore.methods import POSTPROCESSING, Mask, iou
from decathlete.explore.results import GOOD_IOU, SHIFTS, SOURCE_SHARE, SUBSET, Pair, Study
from decathlete.files import atomic_write

DPI = 110
FOOTER_INCHES = 0.12
BLOOD, MUSCLE, OTHER = (tuple(c / 255 for c in colour_of(n)) for n in (5, 7, 3))
INNER, OUTER = (tuple(c / 255 for c in colour_of(n)) for n in (1, 2))


def draw_densities(pair: Pair, study: Study, path: Path) -> None:
    """The frame with its contours, and beside it the densities of blood and muscle."""
    figure = _figure(9, 3.6)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.7))
    _show(left, pair.image)
    for points, colour, name in ((pair.inner_points, INNER, "inner"), (pair.outer_points, OUTER, "outer")):
        left.plot(*np.vstack([points, points[:1]]).T, color=colour, lw=1.5, label=name)
    left.legend(loc="lower right", fontsize=7, framealpha=0.6)
    tests = next(row for row in study.pairs if row["case_id"] == pair.frame.case_id)
    blood, muscle = pair.image[pair.inner], pair.image[pair.muscle]
    at = np.linspace(min(blood.min(), muscle.min()), max(blood.max(), muscle.max()), 300)
    for values, colour, name in ((blood, BLOOD, "inside the inner contour"), (muscle, MUSCLE, "between the contours")):
        right.hist(values, bins=40, range=(at[0], at[-1]), density=True, color=colour, alpha=0.25)
        right.plot(at, _density(values, at), color=colour, lw=1.8, label=f"{name}, {len(values)} pixels")
    level = filters.threshold_otsu(pair.image[pair.outer])
    right.axvline(level, color="0.3", ls="--", lw=1.2, label=f"Otsu, {level:.0f}")
    right.set(xlabel="intensity after rescaling", ylabel="density", xlim=(at[0], at[-1]))
    right.legend(fontsize=7, frameon=False)
    right.spines[["top", "right"]].set_visible(False)
    scores = [row["iou"] for row in study.rows if row["case_id"] == pair.frame.case_id and row["method"] == "Otsu"]
    title = f"{pair.frame.case_id}: KS D {tests['ks_statistic']:.2f}, p {in_words(tests['ks_p'])}"
    title += f" ({SUBSET} pixels each: p {in_words(tests['ks_p_50'])})"
    title += f"; IoU of Otsu {scores[0]:.2f}, hull of the largest {scores[3]:.2f}"
    figure.suptitle(title, fontsize=9)
    _save(figure, path)


def draw_montage(pair: Pair, masks: Mapping[str, Mask], path: Path) -> None:
    """The mask of every method on one frame, with the inner contour."""
    columns = 6
    rows = -(-(len(masks) + 1) // columns)
    figure = _figure(2.1 * columns, 2.3 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel in panels:
        panel.set_axis_off()
    for panel, (name, mask) in zip(panels, [("frame and inner contour", None), *masks.items()], strict=False):
        _show(panel, pair.image)
        if mask is not None:
            fill = np.zeros((*mask.T.shape, 4))
            fill[mask.T] = (*BLOOD, 0.5)
            panel.imshow(fill, interpolation="nearest")
        panel.plot(*np.vstack([pair.inner_points, pair.inner_points[:1]]).T, color=INNER, lw=1.2)
        panel.set_title(name if mask is None else f"{name}\nIoU {iou(mask, pair.inner):.2f}", fontsize=7)
    title = f"{pair.frame.case_id}, the pair with the median IoU of plain Otsu. Fill: method, line: drawn contour"
    figure.suptitle(title, fontsize=10)
    _save(figure, path)


def draw_shares(study: Study, path: Path) -> None:
    """Percentage of the pairs above the bar, by method and postprocessing."""
    methods = sorted(study.methods, key=lambda m: study.share(m, POSTPROCESSING[3]))
    table = 100 * np.array([[study.share(method, kind) for kind in POSTPROCESSING] for method in methods])
    figure = _figure(8.5, 0.33 * len(methods) + 1.4)
    panel = figure.subplots()
    panel.imshow(table, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    panel.set_xticks(range(len(POSTPROCESSING)), POSTPROCESSING, fontsize=8)
    panel.set_yticks(range(len(methods)), methods, fontsize=8)
    for (row, column), value in np.ndenumerate(table):
        panel.text(column, row, f"{value:.0f}%", ha="center", va="center", fontsize=8,
                   color="black" if value > 55 else "white")  # fmt: skip
    title = f"Percentage of {len(study.pairs)} pairs with IoU above {GOOD_IOU} (the source: {SOURCE_SHARE:.0%})"
    panel.set_title(title, fontsize=10)
    _save(figure, path)


def draw_sizes(study: Study, path: Path) -> None:
    """IoU of Otsu against the size of the cavity: plain and with the hull of the largest component."""
    figure = _figure(7, 3.6)
    panel = figure.subplots()
    areas = np.array([row["area_mm2"] for row in study.pairs]) / 100
    plain, hull = study.ious("Otsu"), study.ious("Otsu", POSTPROCESSING[3])
    panel.vlines(areas, plain, hull, color="0.8", lw=1, zorder=1)
    panel.scatter(areas, plain, color=MUSCLE, s=22, label="Otsu, plain", zorder=2)
    panel.scatter(areas, hull, color=BLOOD, s=22, marker="^", label=f"Otsu, {POSTPROCESSING[3]}", zorder=2)
    panel.axhline(GOOD_IOU, color="0.3", ls="--", lw=1)
    panel.set(xlabel="area inside the inner contour, cm²", ylabel="IoU", ylim=(0, 1), xlim=(0, None))
    panel.legend(fontsize=8, frameon=False, loc="lower right")
    panel.spines[["top", "right"]].set_visible(False)
    panel.set_title("IoU with the inner contour, by the size of the cavity", fontsize=10)
    _save(figure, path)


def draw_steps(study: Study, path: Path) -> None:
    """Brightness step across the inner contours by shift, which shows whether coordinates count from 0 or 1."""
    figure = _figure(6.2, 5)
    panel = figure.subplots()
    half = (SHIFTS[1] - SHIFTS[0]) / 2
    extent = (SHIFTS[0] - half, SHIFTS[-1] + half, SHIFTS[-1] + half, SHIFTS[0] - half)
    shown = panel.imshow(study.steps["all"].T, cmap="cividis", extent=extent, interpolation="nearest")
    panel.contour(SHIFTS, SHIFTS, study.steps["all"].T, levels=8, colors="white", linewidths=0.5)
    for number, who in enumerate(who for who in study.steps if who != "all"):
        panel.plot(*study.best_shift(who), "osD^vP*"[number % 7], color="white", mec="black", ms=8, ls="", label=who)
    panel.plot(*study.best_shift("all"), "x", color="red", ms=11, mew=2.5, label="all")
    panel.plot(0, 0, "+", color="red", ms=11, mew=2, label="as written (from 0)")
    panel.set(xlabel="contours moved along x, pixels", ylabel="contours moved along y, pixels")
    panel.legend(fontsize=7, loc="upper right", framealpha=0.8)
    figure.colorbar(shown, ax=panel, label="step from inside to outside, standard deviations")
    panel.set_title("Brightness step across the inner contours", fontsize=10)
    _save(figure, path)


def in_words(p: float) -> str:
    """A p value as short text, also if it is too small for a float."""
    return f"{p:.2g}" if p > 1e-300 else "< 1e-300"


def _density(values: NDArray[Any], at: NDArray[np.float64]) -> NDArray[Any]:
    if values.std() == 0 or len(values) < 3:
        return np.zeros_like(at)
    return stats.gaussian_kde(values)(at)


def _show(panel: Any, image: NDArray[np.float64]) -> None:
    low, high = np.percentile(image, (0.5, 99.5))
    panel.imshow(image.T, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
    panel.set_axis_off()


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure  # no pyplot: it keeps every figure, and picks a window system
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    strip = FOOTER_INCHES / height
    layout = ConstrainedLayoutEngine(rect=(0, strip, 1, 1 - strip))
    return Figure(figsize=(width, height), layout=layout, facecolor="white")


def _save(figure: Any, path: Path) -> None:
    figure.text(0.995, 0.004, "not for clinical use", ha="right", va="bottom", fontsize=5, color="0.4")
    with atomic_write(path) as part:
        figure.savefig(part, format="png", dpi=DPI, metadata={"Software": None})  # same file in all versions
