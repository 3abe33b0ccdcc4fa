"""Can thresholds tell blood from muscle? A study of the Sunnybrook pairs, from the data folder to a page."""

from __future__ import annotations

import csv
import json
import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, stats
from skimage import filters

from decathlete.data.sunnybrook import Frame, SunnybrookIndex, index_sunnybrook
from decathlete.errors import DataError
from decathlete.explore import page, pictures
from decathlete.explore.methods import (
    POSTPROCESSING,
    Mask,
    dice_of,
    iou,
    other_masks,
    postprocessed,
    threshold_masks,
)
from decathlete.explore.results import (
    BEST,
    GOOD_IOU,
    SHIFTS,
    SOURCE_RASTERIZER,
    SOURCE_SHARE,
    SUBSET,
    Pair,
    Study,
    area_column,
)
from decathlete.files import atomic_write, check_output_folder
from decathlete.io.contours import CONTOUR_ORIGIN, contour_area, contour_mask, read_contour
from decathlete.io.dicom import read_dicom_frame
from decathlete.progress import ProgressBar

MARGIN = 12  # pixels kept round the outer contour
ONE_FOR_ALL, ONE_FOR_ALL_STRETCHED = "one threshold for all, stored values", "one threshold for all, normalized values"


def explore_sunnybrook(dataset_dir: str | Path, output: str | Path, progress: bool = True) -> Path:
    """Write the study of all pairs with both contours and return its page, ``output/index.html``.

    Beside the page: ``scores.csv`` (a row per pair, method and postprocessing), ``pairs.csv`` (a row per pair: tests),
    ``shares.csv`` (a row per method and postprocessing: share of pairs above the bar), ``dependence.csv``,
    ``summary.json``, and pictures. The same data give the same bytes.

    Args:
        dataset_dir: folder of the Sunnybrook data set.
        output: folder for the results; files of an earlier study are replaced.
        progress: show a progress bar on stderr.

    Raises:
        DataError: the folder has no frame with two valid contours.
        UsageError: the output folder cannot be written to.
    """
    output = Path(output)
    check_output_folder(output)
    index = index_sunnybrook(dataset_dir)
    if not index.pairs:
        raise DataError(dataset_dir, "no frame with two valid contours",
                        remedy=f"Run 'decathlete check {dataset_dir}'")  # fmt: skip
    study, pairs = Study(index), []
    masks: dict[str, dict[str, Mask]] = {}
    for frame in ProgressBar(index.pairs, desc="thresholds", unit="pair", disable=not progress):
        pair = read_pair(frame)
        pairs.append(pair)
        masks[frame.case_id] = _try_all(study, pair)
    _one_threshold_for_all(study, pairs)
    study.dependence = dependence(pairs)
    study.steps = contour_steps(index)
    write_tables(study, output)
    shown = _typical(study, pairs)
    for pair in ProgressBar(pairs, desc="pictures", unit="pair", disable=not progress):
        pictures.draw_densities(pair, study, output / "pairs" / f"{pair.frame.case_id}.png")
    pictures.draw_montage(shown, masks[shown.frame.case_id], output / "thresholds.png")
    pictures.draw_shares(study, output / "shares.png")
    pictures.draw_sizes(study, output / "sizes.png")
    pictures.draw_steps(study, output / "origin.png")
    return page.write_page(study, shown.frame.case_id, output / "index.html")


def read_pair(frame: Frame, origin: float = CONTOUR_ORIGIN) -> Pair:
    """The frame with its masks, cropped.

    Args:
        frame: its files.
        origin: coordinates of the first pixel's centre in the contour files.

    Raises:
        DataError: a file cannot be read, or a contour is missing.
    """
    if frame.inner is None or frame.outer is None:
        missing = "outer" if frame.inner else "inner"
        raise DataError(frame.image, f"the {missing} contour of this frame is missing")
    read = read_dicom_frame(frame.image)
    points = {path: read_contour(path) - origin for path in (frame.inner, frame.outer)}
    inner, outer = (contour_mask(points[p], read.array.shape, 0.0, p) for p in (frame.inner, frame.outer))
    filled = np.argwhere(outer | inner)
    low = np.maximum(filled.min(axis=0) - MARGIN, 0)
    box = tuple(slice(a, b) for a, b in zip(low, filled.max(axis=0) + MARGIN + 1, strict=True))
    return Pair(
        frame,
        read.array[box].astype(np.float64),
        inner[box],
        outer[box],
        points[frame.inner] - low,
        points[frame.outer] - low,
        contour_area(points[frame.inner]) * read.spacing[0] * read.spacing[1],
    )


def two_samples(pair: Pair) -> dict[str, float]:
    """Two-sample Kolmogorov-Smirnov test of blood against muscle: all pixels, and 50 random ones of each."""
    blood, muscle = pair.image[pair.inner], pair.image[pair.muscle]
    every = stats.ks_2samp(blood, muscle, method="asymp")
    rng = np.random.default_rng(zlib.crc32(pair.frame.case_id.encode()))  # the same pixels each time
    few = [rng.choice(v, min(SUBSET, len(v)), replace=False) for v in (blood, muscle)]
    some = stats.ks_2samp(*few)
    return {
        "ks_statistic": float(every.statistic),
        "ks_p": float(every.pvalue),
        "ks_statistic_50": float(some.statistic),
        "ks_p_50": float(some.pvalue),
    }


def contour_steps(index: SunnybrookIndex) -> dict[str, NDArray[np.float64]]:
    """Brightness step from inside to outside across the inner contours, for contours moved by `SHIFTS` along x and y.

    The step is one pixel inside minus one pixel outside along the normal, divided by the frame's standard deviation
    near the contour; mean over each contour, then over the contours. Coordinates are taken as written, with the first
    pixel's centre at (0, 0), so the largest step at (-1, -1) means that they count from 1.
    """
    steps: dict[str, list[NDArray[np.float64]]] = {}
    dx, dy = np.meshgrid(SHIFTS, SHIFTS, indexing="ij")
    for frame in index.frames:
        if frame.inner is None:
            continue
        image = read_dicom_frame(frame.image).array.astype(np.float64)
        points, normals = _even_points(read_contour(frame.inner))
        moved = points[:, :, None, None] + np.stack([dx, dy])  # (points, 2, shifts, shifts)
        inside, outside = (
            ndimage.map_coordinates(image, np.moveaxis(moved + side * normals[:, :, None, None], 1, 0), order=1)
            for side in (-1, 1)
        )
        step = (inside - outside).mean(axis=0) / image[_box(points)].std()
        steps.setdefault(frame.patient, []).append(step)
    everyone = [step for group in steps.values() for step in group]
    return {**{who: np.mean(group, axis=0) for who, group in steps.items()}, "all": np.mean(everyone, axis=0)}


def dependence(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """Share of pairs above the bar with Otsu, for other readings of the same contours: origin and rasterizer."""
    from skimage.draw import polygon2mask

    rasterizers: dict[str, Callable[[NDArray[np.float64], Sequence[int]], Mask]] = {
        "pixels mostly inside (here)": lambda points, shape: contour_mask(points, shape, 0.0),
        "skimage.draw.polygon": lambda points, shape: polygon2mask(shape, points),
        SOURCE_RASTERIZER: _without_rim,
    }
    rows = []
    for origin in (CONTOUR_ORIGIN, 0.0):
        for name, rasterize in rasterizers.items():
            scores: dict[str, list[float]] = {kind: [] for kind in POSTPROCESSING}
            for pair in pairs:
                move = CONTOUR_ORIGIN - origin
                inner = rasterize(pair.inner_points + move, pair.image.shape)
                outer = rasterize(pair.outer_points + move, pair.image.shape)
                mask = outer & (pair.image > filters.threshold_otsu(pair.image[outer]))
                for kind, found in postprocessed(mask).items():
                    scores[kind].append(iou(found, inner))
            shares = {kind: float(np.mean(np.array(values) > GOOD_IOU)) for kind, values in scores.items()}
            rows.append({"origin": origin, "rasterizer": name, **shares})
    return rows


def write_tables(study: Study, output: Path) -> None:
    """Write scores.csv, pairs.csv, shares.csv, dependence.csv and summary.json."""
    shares: list[dict[str, Any]] = [
        {
            "method": method,
            "postprocessing": kind,
            "pairs": len(study.pairs),
            **{f"share_above_{bar:.2f}": study.share(method, kind, bar) for bar in (0.7, GOOD_IOU, 0.8)},
            "mean_iou": float(study.ious(method, kind).mean()),
            "worst_iou": float(study.ious(method, kind).min()),
            "mean_dice": float(np.mean([dice_of(v) for v in study.ious(method, kind)])),
        }
        for method in study.methods
        for kind in POSTPROCESSING
    ]
    for name, rows in (
        ("scores", study.rows),
        ("pairs", study.pairs),
        ("shares", shares),
        ("dependence", study.dependence),
    ):
        _write_csv(rows, output / f"{name}.csv")
    summary = {
        "pairs": len(study.pairs),
        "definition": f"share of frames with both contours whose IoU with the inner contour is above {GOOD_IOU}",
        "source_share": SOURCE_SHARE,
        "shares": {m: {k: study.share(m, k) for k in POSTPROCESSING} for m in study.methods},
        "contour_origin": CONTOUR_ORIGIN,
        "largest_step_at_shift": {who: study.best_shift(who) for who in study.steps},
        "left_out": [str(f) for f in study.index.findings if f.severity != "note"],
    }
    with atomic_write(output / "summary.json") as part:
        part.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")


def _try_all(study: Study, pair: Pair) -> dict[str, Mask]:
    """Add the rows of all methods that need this pair alone; returns the masks before postprocessing."""
    tried = threshold_masks(pair.image, pair.outer)
    masks = {name: mask for name, (mask, _) in tried.items()} | other_masks(pair.image, pair.outer)
    values = np.unique(pair.image[pair.outer])
    best = max(values, key=lambda v: iou(pair.outer & (pair.image > v), pair.inner))
    masks[BEST] = pair.outer & (pair.image > best)
    thresholds = {name: value for name, (_, value) in tried.items()} | {BEST: float(best)}
    for name, mask in masks.items():
        _add(study, pair, name, mask, thresholds.get(name, math.nan))
    blood, muscle = pair.image[pair.inner], pair.image[pair.muscle]
    study.pairs.append(
        {
            "case_id": pair.frame.case_id,
            "patient": pair.frame.patient,
            "area_mm2": pair.area_mm2,
            "blood_pixels": len(blood),
            "muscle_pixels": len(muscle),
            "blood_mean": float(blood.mean()),
            "blood_std": float(blood.std()),
            "muscle_mean": float(muscle.mean()),
            "muscle_std": float(muscle.std()),
            **{
                area_column(kind): float(np.count_nonzero(found) / max(len(blood), 1))
                for kind, found in postprocessed(masks["Otsu"]).items()
            },
            **two_samples(pair),
        }
    )
    return masks


def _one_threshold_for_all(study: Study, pairs: Sequence[Pair]) -> None:
    """Add the rows of one threshold for all frames, chosen on the other patients, for stored and normalized values."""
    for name, scale in ((ONE_FOR_ALL, lambda pair: pair.image), (ONE_FOR_ALL_STRETCHED, _normalized)):
        images = [scale(pair) for pair in pairs]
        inside = np.concatenate([image[pair.outer] for image, pair in zip(images, pairs, strict=True)])
        levels = np.unique(np.percentile(inside, np.arange(1, 100)))
        table = np.array(
            [
                [iou(pair.outer & (image > level), pair.inner) for level in levels]
                for image, pair in zip(images, pairs, strict=True)
            ]
        )
        patients = np.array([pair.frame.patient for pair in pairs])
        for image, pair in zip(images, pairs, strict=True):
            others = patients != pair.frame.patient
            level = float(levels[table[others if others.any() else ~others].mean(axis=0).argmax()])
            _add(study, pair, name, pair.outer & (image > level), level)


def _add(study: Study, pair: Pair, method: str, mask: Mask, threshold: float) -> None:
    for kind, found in postprocessed(mask).items():
        score = iou(found, pair.inner)
        study.rows.append(
            {
                "case_id": pair.frame.case_id,
                "patient": pair.frame.patient,
                "method": method,
                "postprocessing": kind,
                "threshold": threshold,
                "iou": score,
                "dice": dice_of(score),
            }
        )


def _normalized(pair: Pair) -> NDArray[np.float64]:
    """Values with mean 0 and standard deviation 1 inside the outer contour."""
    values = pair.image[pair.outer]
    return (pair.image - values.mean()) / max(values.std(), 1e-12)


def _typical(study: Study, pairs: Sequence[Pair]) -> Pair:
    """The pair with the median IoU of plain Otsu."""
    scores = study.ious("Otsu")
    return pairs[int(np.argsort(scores, kind="stable")[len(scores) // 2])]


def _even_points(contour: NDArray[np.float64], count: int = 128) -> tuple[NDArray[Any], NDArray[Any]]:
    """Evenly spaced points along a closed contour, and its outward normals there, smoothed over pixel steps."""
    closed = np.vstack([contour, contour[:1]])
    lengths = np.linalg.norm(np.diff(closed, axis=0), axis=1)
    along = np.concatenate([[0], lengths.cumsum()])
    at = np.linspace(0, along[-1], count, endpoint=False)
    points = np.stack([np.interp(at, along, closed[:, axis]) for axis in (0, 1)], axis=1)
    smooth = ndimage.gaussian_filter1d(points, 3.0, axis=0, mode="wrap")
    tangent = np.roll(smooth, -1, axis=0) - np.roll(smooth, 1, axis=0)
    normals = np.stack([tangent[:, 1], -tangent[:, 0]], axis=1)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    x, y = points.T
    clockwise = x @ np.roll(y, -1) - y @ np.roll(x, -1) < 0
    return points, -normals if clockwise else normals


def _box(points: NDArray[np.float64], margin: int = 8) -> tuple[slice, slice]:
    low, high = np.maximum(points.min(axis=0) - margin, 0).astype(int), points.max(axis=0).astype(int) + margin
    return slice(low[0], high[0]), slice(low[1], high[1])


def _without_rim(points: NDArray[np.float64], shape: Sequence[int]) -> Mask:
    """Filled by Pillow with the outline drawn as background, as in the source."""
    from PIL import Image, ImageDraw

    picture = Image.new("L", (shape[0], shape[1]), 0)
    ImageDraw.Draw(picture).polygon([(float(x), float(y)) for x, y in points], outline=0, fill=1)
    return np.array(picture).T == 1


def _write_csv(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    rows = list(rows)
    with atomic_write(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(rows[0])
        for row in rows:
            writer.writerow([_cell(value) for value in row.values()])


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return value
