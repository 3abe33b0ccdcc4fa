"""Prediction of files and folders: a label map for each input, on the input's own grid."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from decathlete.bundle.description import Bundle
from decathlete.distributed.faults import reported_once
from decathlete.distributed.sharing import Share, add_to_json, is_finished
from decathlete.errors import DiskError, UsageError, listed
from decathlete.files import NIFTI_SUFFIXES
from decathlete.inference.cases import Case, plan_cases
from decathlete.inference.frame_outputs import heartbeats
from decathlete.inference.inputs import find_inputs
from decathlete.inference.outcome import PredictReport
from decathlete.inference.records import FILE, Records
from decathlete.inference.way import Made, check_like_training, predict_case, read_case
from decathlete.lazy import import_monai
from decathlete.progress import ProgressBar

if TYPE_CHECKING:
    from decathlete.inference.predictor import Predictor
    from decathlete.report.predictions import PredictedCase

logger = logging.getLogger(__name__)

VOLUMES = "volumes.json"


@reported_once
def predict(
    bundle: str | Path,
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    checkpoints: str | Path | Sequence[str | Path] | None = None,
    tta: bool = False,
    overwrite: bool | Literal["others"] = False,
    save_probabilities: bool = False,
    statistics: str | Path | None = None,
    device: str | None = None,
    memory_gib: float | None = None,
    overrides: Mapping[str, Any] | None = None,
    bias_correction: bool = True,
    field: bool = False,
    dicom_seg: bool = False,
    report: str | Path | None = None,
    strict: bool = False,
) -> PredictReport:
    """Write a label map for each input: ``output/<input's name>.nii.gz``, on the input's grid.

    Shape, sform, qform, their codes and units are the input's. ``output/volumes.json`` gets the volume in ml of each
    label and case. Each file is written completely or not at all; an input that fails is named at the end on stderr and
    does not stop the rest. A bundle whose ``inference.yaml`` has ``outputs`` may name its files otherwise, write the
    scan inside its label map too, and have the volumes printed (`decathlete.bundle.outputs.Outputs`).

    ``output/predictions.json`` says what each case was made of (`decathlete.inference.records`). A label map that
    is there already is kept if it was made of the same scan, by content, with the same weights and options; any other
    fails, and so does one of which nothing is known.

    Each scan is compared with the training scans, if the bundle's weights come with what those looked like
    (`decathlete.inference.likeness`). A scan that looks unlike them is reported on stderr.

    Processes of torchrun share the inputs, and so do jobs that know nothing of each other but the output folder: no
    two predict one input at a time. The first process of torchrun reports and returns what all of them did.

    Args:
        bundle: a bundle's folder or name.
        inputs: NIfTI files, and folders, which mean the NIfTI files directly in them (hidden files left out, and what
            ``outputs`` of the bundle names after another one), the heads of NFBS, or one DICOM series; and text files
            (``.txt``) of one such path a line. A path that cannot be an input fails alone, if it is not the only one.
        output: folder.
        checkpoints: weights; several make an ensemble. Default: the bundle's own.
        tta: average over mirrored copies too.
        overwrite: predict again what is already in ``output``; ``"others"``: of that only what was made otherwise.
        save_probabilities: also write ``<input's name>_probabilities.nii.gz``: 4D, float32, one volume a class,
            background first.
        statistics: JSON file for voxels, volume and intensity of each label and case (`label_statistics`).
        device: such as ``cpu`` or ``cuda:1``; default: the bundle's choice.
        memory_gib: an input whose estimated peak memory exceeds this fails with a DeviceError; default: what is free.
        overrides: id of ``inference.yaml`` to value.
        bias_correction: False: without the bias field correction that is in the bundle's chain.
        field: also write ``<input's name>_field.nii.gz``: float32, the bias field by which the scan was divided.
        dicom_seg: also write ``<input's name>_seg.dcm``, a DICOM SEG on the series, of inputs that are DICOM.
        report: HTML file for volumes, pictures, how far an ensemble's networks and mirrored copies disagree, and which
            scans look unlike the training scans.
        strict: a scan that looks unlike the training scans fails; no label map is written.

    Raises:
        UsageError: unknown bundle or device, an output that would overwrite an input or lie among the slices of a
            series, a bias field of a bundle whose chain finds none, a DICOM SEG of an input that is not DICOM or
            without highdicom, or ``strict`` with weights whose training scans are not described.
        DataError: nothing but one missing input, or one folder without NIfTI files or with several series; or a disk
            that cannot be written.
        CheckpointError: no weights, or another network's.
    """
    if memory_gib is not None and not memory_gib > 0:
        raise UsageError("--memory", "expected a number of GiB above 0", str(memory_gib))
    described, folder = Bundle(bundle), Path(output)
    outputs, found = described.outputs, find_inputs(inputs, described.outputs)
    if report is not None:
        from decathlete.drawing.pages import check_page_file

        check_page_file(report)
        if Share.processes() > 1:
            raise UsageError("--report", "only one process can write the page", f"{Share.processes()} of torchrun",
                             "Predict first, then repeat the command with --report in one process")  # fmt: skip
    if dicom_seg:
        _check_dicom(found.files)
    parts = {"probabilities": save_probabilities, "field": field, "dicom_seg": dicom_seg}
    reserved = {"volumes": folder / VOLUMES, "records": folder / FILE}
    reserved |= {"statistics": Path(statistics)} if statistics else {}
    cases = plan_cases(found, folder, outputs, parts, reserved)
    if not bias_correction:
        if "bias_correction" not in described.config("inference"):
            raise UsageError("--no-bias-correction", f"the bundle '{described.name}' has no such switch",
                             "no id 'bias_correction' in its inference config", "Leave the option out")  # fmt: skip
        overrides = {**(overrides or {}), "bias_correction": False}

    import_monai()
    from decathlete.inference.predictor import Predictor  # slow to import: mistakes above are reported at once

    share = Share()
    predictor = Predictor(bundle, checkpoints, device or share.device(), tta, overrides, field)
    if strict and predictor.training_scans is None:
        raise UsageError("--strict", "nothing to compare the scans with",
                         f"no training_scans.json beside {predictor.checkpoints[0]}, or of other weights",
                         "Predict without --strict, or promote the weights with --scans")  # fmt: skip
    records = Records(folder, predictor.origin, replace=overwrite == "others")
    done = PredictReport(left_out=found.left_out)
    for path, error in found.failed.items():
        done.fail(path, error)
    pages: list[PredictedCase] | None = None if report is None else []
    volumes: dict[str, Any] = {}
    measured: dict[str, Any] = {}
    claimed = share.claimed(
        list(cases),
        {file: case.targets for file, case in cases.items()},
        overwrite is True,
        lambda file: cases[file].label.is_file() and records.is_settled(cases[file]),
    )
    try:
        for case in _progress(claimed, cases, predictor.name, share):
            made: Made | None = None
            try:
                present = records.begin(case, again=overwrite is True)
                known = records.statistics(case) if present and pages is None else None
                unlike, warnings = records.unlike(case) if present else (None, [])
                if present and strict:
                    check_like_training(case, unlike or "")
                if not present:
                    made = predict_case(predictor, records, case, memory_gib, pages is not None, strict)
                    if made.prediction.distance is not None:
                        unlike = made.prediction.unlike
                    warnings = made.prediction.warnings
                elif known is None:
                    made = read_case(predictor, case)
                measured[case.name] = known or (made.statistics if made else {})
                if pages is not None and made is not None:
                    pages.append(_page_case(predictor, case.name, made, unlike or "", pages))
                (done.skipped if present else done.done).append(case.label)
                if made is not None and made.fault is not None:
                    done.fail(case.file, made.fault, f"The label map is written: {case.label}")
                records.add(case, measured[case.name], unlike, warnings)
                done.compare(case.file, unlike, warnings)
            except DiskError:
                raise
            except Exception as error:  # whatever is wrong with one input, the others are predicted
                done.fail(case.file, error)
                logger.debug("%s", case.file, exc_info=True)
                continue
            records.save_now_and_then()
            volumes[case.name] = _millilitres(measured[case.name])
            if outputs.tell_volume:
                said = ", ".join(f"{name} {ml:,.1f} ml" for name, ml in volumes[case.name].items())
                ProgressBar.write(f"{case.name}: {said}", file=sys.stdout)
    finally:
        if volumes:
            records.save()
            add_to_json(volumes, folder / VOLUMES)
            if statistics:
                add_to_json(measured, Path(statistics))
    done.elsewhere = share.elsewhere
    if not done.gather(share):
        return done
    done.elsewhere = [f for f in done.elsewhere if not is_finished(cases[f].targets) and f not in done.failed]
    if outputs.frames:
        there = [c for c in cases.values() if c.file not in done.failed or c.label in done.done]
        heartbeats({case.file: case.label for case in there}, folder)
    done.say(folder, share.size)
    share.release()
    if report is not None and pages is not None:
        from decathlete.report.predictions import write_prediction_page

        weights = ", ".join(str(path) for path in predictor.checkpoints)
        print(write_prediction_page(report, predictor.name, pages, done.failed, weights=weights))
    return done


def _check_dicom(files: Sequence[Path]) -> None:
    """Refuse a DICOM SEG of inputs that are not DICOM, or without the package that writes it."""
    from decathlete.io.seg import check_highdicom

    check_highdicom()
    if others := [file for file in files if file.name.lower().endswith(NIFTI_SUFFIXES)]:
        raise UsageError("--dicom-seg", "a DICOM SEG needs DICOM inputs", listed(others),
                         "Give the folder of the series")  # fmt: skip


def _page_case(
    predictor: Predictor, name: str, made: Made, unlike: str, others: Sequence[PredictedCase]
) -> PredictedCase:
    """A case of a report, drawn while its voxels are in memory."""
    from decathlete.report.predictions import PredictedCase

    prediction = made.prediction
    found = PredictedCase(name, _millilitres(made.statistics), prediction.disagreement, prediction.distance, unlike)
    if found.is_worth_drawing(others):
        bits = prediction.disagreement_map
        found.draw(made.volume.array, prediction.label, made.volume.affine, predictor.labels, bits)
    return found


def _millilitres(statistics: Mapping[str, Any]) -> dict[str, float]:
    return {name: round(of["volume_ml"], 6) for name, of in statistics.items()}


def _progress(files: Iterable[Path], cases: Mapping[Path, Case], name: str, share: Share) -> Iterable[Case]:
    number = len(share.own(list(cases)))
    bar = ProgressBar(files, desc=name, unit="case", total=number, disable=share.rank != 0)
    for file in bar:
        bar.set_postfix_str(file.name if len(file.name) <= 30 else f"{file.name[:27]}...", refresh=True)
        yield cases[file]
