"""Label maps against references, case by case, on the reference's own grid."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decathlete.bundle.labels import Scored
from decathlete.errors import DecathleteError, GeometryError, shape_text
from decathlete.evaluation.report import Row, score_case
from decathlete.progress import ProgressBar

GRID_TOLERANCE_MM = 1e-3


def score_pairs(
    pairs: Mapping[str, tuple[Path, Path]],
    labels: Mapping[int, str],
    desc: str = "evaluate",
    scored: Scored | None = None,
) -> tuple[list[Row], dict[str, str]]:
    """Rows of all cases that can be scored, and a message for each that cannot, with a progress bar on stderr.

    Args:
        pairs: case to its prediction and its reference.
        labels: value to name of the classes.
        desc: text of the progress bar.
        scored: regions in place of the classes, and ignored values.
    """
    rows: list[Row] = []
    failed: dict[str, str] = {}
    for case, (predicted, reference) in ProgressBar(pairs.items(), desc=desc, unit="case"):
        try:
            rows += score_files(case, predicted, reference, labels, scored)
        except DecathleteError as error:
            failed[case] = str(error)
    return rows, failed


def score_files(
    case: str, prediction: Path, reference: Path, labels: Mapping[int, str], scored: Scored | None = None
) -> list[Row]:
    """Rows of one case from its two files.

    Raises:
        DataError: a file is damaged, or has values that are not a class.
        GeometryError: the two files are not on one grid.
    """
    from decathlete.io.nifti import read_nifti

    allowed = {0, *labels}
    predicted = read_nifti(prediction, kind="label", allowed_labels=allowed)
    ignored = scored.ignore if scored else ()
    truth = read_nifti(reference, kind="label", allowed_labels=allowed | set(ignored))
    check_grid(case, predicted.array.shape, predicted.affine, truth.array.shape, truth.affine)
    return score_case(case, predicted.array, truth.array, truth.spacing, labels, scored)


def check_grid(
    case: str,
    shape: tuple[int, ...],
    affine: NDArray[Any],
    reference_shape: tuple[int, ...],
    reference_affine: NDArray[Any],
) -> None:
    """Refuse a prediction that is not on the voxel grid of its reference.

    Raises:
        GeometryError: shapes differ, or affines differ by more than 1e-3 mm in an entry; the message has both.
    """
    remedy = "Predict on the original grid, without resampling or reorienting"
    if tuple(shape) != tuple(reference_shape):
        found = f"{shape_text(shape)} and {shape_text(reference_shape)}"
        raise GeometryError(case, "prediction and reference have different shapes", found, remedy)
    if np.abs(affine - reference_affine).max() > GRID_TOLERANCE_MM:
        rows = (np.array2string(np.asarray(a)[:3], separator=" ", precision=6) for a in (affine, reference_affine))
        found = " and ".join(" ".join(row.split()) for row in rows)
        rule = f"affines of prediction and reference differ by more than {GRID_TOLERANCE_MM:g} mm"
        raise GeometryError(case, rule, found, remedy)
