"""The way of one scan: read, predict, write on the scan's own grid, measure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from decathlete.errors import DataError, DiskError
from decathlete.evaluation.statistics import label_statistics
from decathlete.files import disk_errors
from decathlete.inference.cases import Case
from decathlete.inference.frame_outputs import write_contours
from decathlete.inference.limits import check_fits, check_memory
from decathlete.inference.records import Records
from decathlete.io.write import write_on_grid

if TYPE_CHECKING:
    from decathlete.inference.predictor import Prediction, Predictor
    from decathlete.io.volume import Volume


@dataclass(frozen=True)
class Made:
    """A case in memory: scan, prediction, statistics of each class, and what kept its DICOM SEG from being written."""

    volume: Volume
    prediction: Prediction
    statistics: dict[str, dict[str, Any]]
    fault: Exception | None = None


def predict_case(
    predictor: Predictor,
    records: Records,
    case: Case,
    memory_gib: float | None,
    disagreement: bool,
    strict: bool = False,
) -> Made:
    """Read, predict and write one case; the label map comes last: where it is, so is what belongs to it.

    Args:
        predictor: the bundle.
        records: gives the mark of the files, which names what they were made of.
        case: whose `Records.begin` has been called.
        memory_gib: what the prediction may take; None: what is free.
        disagreement: it is wanted too, for a report.
        strict: a scan that looks unlike the training scans gets no files.

    Raises:
        DataError: with ``strict``, such a scan.
    """
    wanted = "probabilities" in case.targets
    check_memory(predictor, case.file, wanted, memory_gib)
    volume = predictor.read(case.file)
    if case.file.is_dir():  # a series, whose size is known now
        check_fits(predictor, case.file, volume.array.shape, volume.spacing, wanted, memory_gib)
    prediction = predictor(volume.array, volume.affine, wanted, case.file, disagreement)
    if strict:
        check_like_training(case, prediction.unlike)
    _write(case, volume, prediction, records.mark(case))
    statistics = label_statistics(prediction.label, volume.array, volume.spacing, predictor.labels)
    fault = _write_seg(predictor, case, volume, prediction) if "dicom_seg" in case.targets else None
    return Made(volume, prediction, statistics, fault)


def check_like_training(case: Case, unlike: str) -> None:
    """Refuse a scan that looks unlike the training scans.

    Raises:
        DataError: ``unlike`` says why it does.
    """
    if unlike:
        raise DataError(case.file, "the scan looks unlike the training scans", unlike,
                        "Predict without --strict if it is of the right kind after all")  # fmt: skip


def read_case(predictor: Predictor, case: Case) -> Made:
    """A case whose label map an earlier run wrote."""
    from decathlete.inference.predictor import Prediction
    from decathlete.io.nifti import read_nifti

    volume, label = predictor.read(case.file), read_nifti(case.label, kind="label").array
    statistics = label_statistics(label, volume.array, volume.spacing, predictor.labels)
    return Made(volume, Prediction(label, volume.affine), statistics)


def _write(case: Case, volume: Volume, prediction: Prediction, note: str) -> None:
    from decathlete.transforms.masked_scan import write_masked_scan

    if prediction.probabilities is not None:
        write_on_grid(np.moveaxis(prediction.probabilities, 0, -1), volume, case.targets["probabilities"], note)
    if prediction.field is not None:
        write_on_grid(prediction.field, volume, case.targets["field"], note)
    if "masked" in case.targets and case.file.is_dir():
        write_on_grid(np.where(prediction.label, volume.array, 0), volume, case.targets["masked"], note)
    elif "masked" in case.targets:
        with disk_errors(case.targets["masked"]):
            write_masked_scan(case.file, prediction.label, case.targets["masked"])
    if case.contours:
        with disk_errors(case.label):
            write_contours(prediction.label, case.label.parent, case.name)
    write_on_grid(prediction.label, volume, case.label, note)


def _write_seg(predictor: Predictor, case: Case, volume: Volume, prediction: Prediction) -> Exception | None:
    """Write the DICOM SEG, which a header can make impossible: the error then, since the label map is there."""
    from decathlete.io.seg import write_dicom_seg

    target, slices = case.targets["dicom_seg"], getattr(volume, "slices", [case.file])
    try:
        with disk_errors(target):
            write_dicom_seg(prediction.label, slices, target, predictor.name, predictor.labels)
    except DiskError:
        raise
    except Exception as error:
        return error
    return None
