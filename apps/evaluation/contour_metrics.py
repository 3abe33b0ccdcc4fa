"""Contours of the left ventricle, scored slice by slice as in the challenge of 2009: Dice and distance in mm.

Two contours are scored: the endocardium around the cavity, and the epicardium around cavity and muscle. A contour is
**good** if its average perpendicular distance is below 5 mm. The challenge took means over good contours only, and
reported their percentage; here, means over all contours come first. The distance is measured one way, from the
predicted contour: a small region near the drawn line counts as good, but has a low Dice.
"""

from __future__ import annotations

import csv
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine
from numpy.typing import ArrayLike, NDArray

from decathlete.errors import DecathleteError
from decathlete.evaluation.handler import MetricsWriter, gathered, items_of, refuse_unscored
from decathlete.evaluation.metrics import dice, iou, score
from decathlete.evaluation.report import METRICS, Row, aligned, read_table, write_report
from decathlete.evaluation.scoring import check_grid
from decathlete.files import atomic_write, files_sha256

GOOD_MM = 5.0  # the challenge's bar
GOOD_IOU = 0.75  # the threshold study's
NAMES = {"inner": "endocardium", "outer": "epicardium"}
CONTOURS = "contours.csv"
COLUMNS = ("case", "slice", "contour", "dice", "iou", "apd_mm", "area_mm2", "reference_area_mm2")
DEFINITIONS = {
    "apd_mm": "mean distance from evenly spaced points of the predicted contour to the drawn one; one way as in the "
    "challenge, so a small region near the drawn line scores well; infinite if nothing was predicted",
    "good": f"apd_mm below {GOOD_MM:g}",
    "dice": "of the pixels inside the two contours, on the frame's own grid; 0 if nothing was predicted",
}

_STEP_PX = 0.25

logger = logging.getLogger(__name__)


def average_perpendicular_distance(contour: ArrayLike, reference: ArrayLike, spacing: Sequence[float]) -> float:
    """Mean distance in mm from points along a closed contour (N, 2) to the nearest point of another (M, 2).

    Points are spread evenly, a quarter of a pixel apart, so the result does not depend on how densely contours are
    given.

    Args:
        contour: the scored contour, in pixels; without points the result is infinite.
        reference: the drawn contour, in the same pixels.
        spacing: mm between pixels along X and Y.

    Source: Radau et al., Evaluation framework for algorithms segmenting short axis cardiac MRI, MIDAS Journal (2009).
    """
    from decathlete.io.contours import distances_to_contour

    points, drawn = np.asarray(contour, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if not len(points):
        return math.inf
    return float(distances_to_contour(_evenly(points) * spacing, drawn * spacing).mean())


def score_contour(
    pred: NDArray[np.bool_], label: NDArray[np.bool_], drawn: ArrayLike | None, spacing: Sequence[float]
) -> dict[str, float]:
    """Scores of one contour in one slice.

    Args:
        pred: predicted mask (X, Y) inside the contour.
        label: mask of the reference.
        drawn: points of the reference in pixels, as from `read_contour`; None: traced around ``label``.
        spacing: mm between pixels along X and Y.

    Returns:
        ``dice``, ``iou``, ``apd_mm``, ``area_mm2``, ``reference_area_mm2``.
    """
    from decathlete.io.contours import trace_contour

    reference = trace_contour(label) if drawn is None else drawn
    area = float(np.prod(spacing))
    return {
        "dice": dice(pred, label),
        "iou": iou(pred, label),
        "apd_mm": average_perpendicular_distance(trace_contour(pred), reference, spacing),
        "area_mm2": np.count_nonzero(pred) * area,
        "reference_area_mm2": np.count_nonzero(label) * area,
    }


def summarise_contours(rows: Iterable[Row]) -> dict[str, dict[str, float]]:
    """Results per kind of contour: ``n``, means over all and over good ones, fractions good or above IoU 0.75."""
    rows = list(rows)
    found = {}
    for name in dict.fromkeys(row["contour"] for row in rows):
        own = [row for row in rows if row["contour"] == name]
        good = [row for row in own if row["apd_mm"] < GOOD_MM]
        distances = [row["apd_mm"] for row in own if math.isfinite(row["apd_mm"])]
        found[name] = {
            "n": len(own),
            "dice": _mean(row["dice"] for row in own),
            "dice_of_good": _mean(row["dice"] for row in good),
            "dice_lowest": min(row["dice"] for row in own),
            "apd_mm_where_predicted": _mean(distances),
            "apd_mm_of_good": _mean(row["apd_mm"] for row in good),
            "not_predicted": len(own) - len(distances),
            "share_good": len(good) / len(own),
            "share_iou_above_0.75": _mean(row["iou"] > GOOD_IOU for row in own),
        }
    return found


def contour_table(summary: Mapping[str, Mapping[str, float]]) -> str:
    """The results of `summarise_contours` as aligned text, a line per contour."""
    heads = "contour,n,Dice,lowest,APD mm,IoU > 0.75,good,Dice of good,APD of good,missed"
    lines = [tuple(heads.split(","))]
    for name, v in summary.items():
        numbers = [f"{v[k]:.3f}" for k in ("dice", "dice_lowest")] + [f"{v['apd_mm_where_predicted']:.2f}"]
        percentages = [f"{v[k]:.0%}" for k in ("share_iou_above_0.75", "share_good")]
        good = [f"{v['dice_of_good']:.3f}", f"{v['apd_mm_of_good']:.2f}"]
        lines.append((name, str(v["n"]), *numbers, *percentages, *good, str(v["not_predicted"])))
    return aligned(lines)


def write_contour_rows(rows: Iterable[Row], path: str | Path) -> None:
    """Write rows as CSV with the columns `COLUMNS`; an infinite distance is ``inf``."""
    with atomic_write(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in rows:
            writer.writerow([f"{v:.6g}" if isinstance(v := row[name], float) else v for name in COLUMNS])


def read_contour_rows(path: str | Path) -> list[Row]:
    """Rows of a ``contours.csv``.

    Raises:
        DataError: no such file, or a table with other columns.
    """
    return read_table(
        path,
        COLUMNS,
        lambda row: row | {name: float(row[name]) for name in COLUMNS[3:]} | {"slice": int(row["slice"])},
    )


class ContourMetricsWriter(MetricsWriter):
    """Handler that scores an evaluator's label maps against drawn contours, for ``evaluate.yaml``.

    Writes ``contours.csv`` with a line per contour, and ``metrics.csv`` and ``summary.json`` as `MetricsWriter`, with
    the classes endocardium and epicardium, and the challenge's metrics under ``contours``. In the label maps
    (1, X, Y, Z) on the frame's own grid, 1 is the cavity and 2 the muscle.

    Args:
        data: the evaluator's cases, each with ``case_id`` and the files ``inner`` and ``outer`` (None: not drawn), or
            with ``label``, a NIfTI label map whose slices are scored one by one.
        output_dir: folder of the three files.
        pred_key: key of the label map in the engine's output.

    Raises:
        WorkError: a case could not be scored; raised at the end, after the files are written, with a line per case.
    """

    def __init__(self, data: Sequence[Mapping[str, Any]], output_dir: str | Path, pred_key: str = "pred") -> None:
        super().__init__({"endocardium": 1, "epicardium": 2}, output_dir, pred_key)
        self.cases = {str(case["case_id"]): case for case in data}

    def _reset(self, engine: Engine | None = None) -> None:
        super()._reset(engine)
        self._contours: dict[str, list[Row]] = {}

    def _score(self, engine: Engine) -> None:
        for output, item in zip(items_of(engine.state.output), items_of(engine.state.batch), strict=True):
            case = str(item["case_id"])
            reference = self.cases[case]
            files = [reference.get(key) for key in ("label", *NAMES)]
            self._references[case] = Path(next(f for f in files if f))
            try:
                pred = output[self.pred_key]
                affine = np.asarray(pred.affine, dtype=np.float64)
                self._contours[case], self._rows[case] = score_frame(case, pred.cpu().numpy()[0], affine, reference)
            except DecathleteError as error:
                self._failed[case] = str(error)
                self.logger.error("%s", error)

    def _write(self, engine: Engine) -> None:
        import torch.distributed as dist

        found, failed, references = gathered(
            ({case: (self._contours[case], rows) for case, rows in self._rows.items()}, self._failed, self._references)
        )
        if dist.is_initialized() and dist.get_rank() != 0:
            return
        if found:
            contours = [row for case in sorted(found) for row in found[case][0]]
            rows = [row for case in sorted(found) for row in found[case][1]]
            write_contour_rows(contours, self.output_dir / CONTOURS)
            results = summarise_contours(contours)
            facts = {"contours": results, "contour_definitions": DEFINITIONS}
            self.summary = write_report(
                rows, self.output_dir, failed, label_sha256=files_sha256(references.values()), **facts
            )
            engine.state.metrics.update(self.summary.metrics())
            self.logger.info("%s\n%s", self.output_dir / CONTOURS, contour_table(results))
        refuse_unscored(self.output_dir, failed, len(found))


def score_frame(
    case: str, pred: NDArray[Any], affine: NDArray[np.float64], reference: Mapping[str, Any]
) -> tuple[list[Row], list[Row]]:
    """Score one label map (X, Y, Z).

    Returns:
        Rows with `COLUMNS`, one per slice and contour, and rows of a report, one per class.

    Raises:
        DataError: a reference that cannot be read, or is on another grid.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    contours: list[Row] = []
    classes: list[Row] = []
    for kind, name in NAMES.items():
        mask = pred == 1 if kind == "inner" else pred > 0
        truth, points = _reference(case, kind, mask, affine, reference)
        if truth is None:
            continue
        for z in range(mask.shape[2]):
            if truth[:, :, z].any():
                found = score_contour(mask[:, :, z], truth[:, :, z], points, spacing[:2])
                contours.append({"case": case, "slice": z + 1, "contour": name, **found})
        # the surface of a frame is its outline; in a volume of one slice every voxel would be surface
        flat = mask.shape[2] == 1
        all_of_it = score(mask[:, :, 0], truth[:, :, 0], spacing[:2]) if flat else score(mask, truth, spacing)
        all_of_it["nsd_1mm"] = all_of_it.pop("nsd")
        if flat:
            for key in ("volume_ml", "reference_volume_ml"):
                all_of_it[key] *= float(spacing[2])
        classes.append({"case": case, "class": name} | {metric: all_of_it[metric] for metric in METRICS})
    return contours, classes


def _reference(
    case: str, kind: str, pred: NDArray[np.bool_], affine: NDArray[np.float64], reference: Mapping[str, Any]
) -> tuple[NDArray[np.bool_] | None, NDArray[np.float64] | None]:
    """Mask (X, Y, Z) of a drawn contour, and its points; None if it was not drawn."""
    from decathlete.io.contours import CAVITY, MUSCLE, contour_mask, read_contour
    from decathlete.io.nifti import read_nifti

    if reference.get("label"):
        label = read_nifti(reference["label"], kind="label", allowed_labels=(0, CAVITY, MUSCLE))
        check_grid(case, pred.shape, affine, label.array.shape, label.affine)
        return label.array == CAVITY if kind == "inner" else label.array > 0, None
    path = reference.get(kind)
    if not path:
        return None, None
    points = read_contour(path)
    return contour_mask(points, pred.shape[:2], where=path)[:, :, None], points


def _evenly(contour: NDArray[np.float64]) -> NDArray[np.float64]:
    """Evenly spaced points along a closed contour, about a quarter of a pixel apart."""
    closed = np.vstack([contour, contour[:1]])
    along = np.concatenate([[0], np.linalg.norm(np.diff(closed, axis=0), axis=1).cumsum()])
    at = np.linspace(0, along[-1], max(3, math.ceil(along[-1] / _STEP_PX)), endpoint=False)
    return np.stack([np.interp(at, along, closed[:, axis]) for axis in (0, 1)], axis=1)


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return float(np.mean(numbers)) if numbers else math.nan
