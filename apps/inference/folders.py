"""Prediction of files and folders: a label map beside none of its inputs, on each input's own grid."""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from decathlete.bundle.description import Bundle
from decathlete.bundle.outputs import Outputs
from decathlete.distributed.faults import reported_once
from decathlete.distributed.sharing import Share, add_to_json, is_finished
from decathlete.errors import DataError, DecathleteError, UsageError, listed
from decathlete.evaluation.statistics import label_statistics
from decathlete.files import NIFTI_SUFFIXES, check_output_folder, strip_nifti_suffix
from decathlete.inference.frame_outputs import heartbeats
from decathlete.inference.inputs import Inputs, find_inputs
from decathlete.inference.limits import check_fits, check_memory
from decathlete.inference.records import FILE, Records
from decathlete.io.write import DiskError, naming_a_full_disk, write_on_grid
from decathlete.progress import ProgressBar

if TYPE_CHECKING:
    from decathlete.inference.predictor import Prediction, Predictor
    from decathlete.io.volume import Volume
    from decathlete.report.predictions import PredictedCase

logger = logging.getLogger(__name__)

VOLUMES = "volumes.json"
NAME_BYTES = 255  # longest file name of the file systems in use


@dataclass
class PredictReport:
    """What became of each input, and of each file of the folders that were given.

    Attributes:
        done: label maps that were written.
        skipped: label maps that were there already, made of the same scans with the same weights and options.
        failed: input to the one line that says why it has no label map, or no DICOM SEG beside it.
        elsewhere: inputs whose label maps another process was making.
        left_out: what else lies in a folder that was given, to what kind of entry it is.
    """

    done: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    failed: dict[Path, str] = field(default_factory=dict)
    elsewhere: list[Path] = field(default_factory=list)
    left_out: dict[Path, str] = field(default_factory=dict)


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
) -> PredictReport:
    """Write a label map for each input: ``output/<input's name>.nii.gz``, on the input's grid.

    Shape, sform, qform, their codes and units are the input's. ``output/volumes.json`` gets the volume in ml of each
    label and case. Each file is written whole or not at all; an input that fails is named at the end on stderr and does
    not stop the rest. A bundle whose ``inference.yaml`` has ``outputs`` names its files otherwise, may write the scan
    cut out by the label map too, and may have the volumes printed (`decathlete.bundle.outputs.Outputs`).

    ``output/predictions.json`` says of each case what it was made of (`decathlete.inference.records`). A label map that
    is there already is kept if it was made of the same scan, by content, with the same weights and options; any other
    fails, and so does one of which nothing is known.

    Processes of torchrun share the inputs, and so do jobs that know nothing of each other but the output folder: no
    two predict one input at a time. The first process of torchrun tells and returns what all of them did.

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
            scans look unlike those of training.

    Raises:
        UsageError: unknown bundle or device, an output that would overwrite an input or lie among the slices of a
            series, a bias field of a bundle whose chain finds none, or a DICOM SEG of an input that is not DICOM or
            without highdicom.
        DataError: nothing but one missing input, or one folder without NIfTI files or with several series; or a disk
            that cannot be written.
        CheckpointError: no weights, or another network's.
    """
    if memory_gib is not None and not memory_gib > 0:
        raise UsageError("memory", "must be a number of GiB above 0", str(memory_gib))
    folder = Path(output)
    described = Bundle(bundle)
    outputs = described.outputs
    found = find_inputs(inputs, outputs)
    if report is not None:
        from decathlete.report.parts import check_page_file

        check_page_file(report)
        if Share.processes() > 1:
            raise UsageError("--report", "one process writes the page", f"{Share.processes()} of torchrun",
                             "Predict first, then repeat the command with --report alone")  # fmt: skip
    parts = {"probabilities": save_probabilities, "field": field, "dicom_seg": dicom_seg}
    if dicom_seg:
        _check_dicom(found.files)
    targets = _targets(found, folder, outputs, parts, Path(statistics) if statistics else None)
    if not bias_correction:
        if "bias_correction" not in described.config("inference"):
            raise UsageError("--no-bias-correction", f"the bundle '{described.name}' has no such switch",
                             "no id 'bias_correction' in its inference config", "Leave the option out")  # fmt: skip
        overrides = {**(overrides or {}), "bias_correction": False}

    from decathlete.inference.predictor import Predictor  # after the look at the files: a mistake there is told at once

    share = Share()
    predictor = Predictor(bundle, checkpoints, device or share.device(), tta, overrides, field)
    records = Records(folder, predictor.origin, replace=overwrite == "others")
    done = PredictReport(failed={path: _one_line(path, e) for path, e in found.failed.items()}, left_out=found.left_out)
    pages: list[PredictedCase] | None = None if report is None else []
    volumes: dict[str, Any] = {}
    figures: dict[str, Any] = {}

    def is_settled(file: Path) -> bool:
        try:
            return records.is_present(file, case_name(file, outputs), targets[file])
        except (DecathleteError, OSError):  # told when its turn comes
            return True

    files, again = list(targets), overwrite is True
    try:
        for file in _progress(
            share.claimed(files, targets, again, is_settled), predictor.name, len(share.own(files)), share
        ):
            target = targets[file]["label"]
            case = case_name(file, outputs)
            try:
                if not again and records.is_present(file, case, targets[file]):
                    done.skipped.append(target)
                    known = records.statistics(file, case, target) if pages is None else None
                    figures[case] = known or _figures_of_finished(predictor, file, target, case, pages)
                else:
                    figures[case], fault = _predict_one(
                        predictor, records, file, targets[file], memory_gib, outputs, pages
                    )
                    done.done.append(target)
                    if fault is not None:
                        done.failed[file] = fault
                records.add(file, case, target, figures[case])
            except DiskError:
                raise
            except Exception as error:  # whatever is wrong with one input, the others are to be predicted
                done.failed[file] = _one_line(file, error)
                logger.debug("%s", file, exc_info=True)
                continue
            records.save_now_and_then()
            volumes[case] = _millilitres(figures[case])
            if outputs.tell_volume:
                said = ", ".join(f"{name} {ml:,.1f} ml" for name, ml in volumes[case].items())
                ProgressBar.write(f"{case}: {said}", file=sys.stdout)
    finally:
        if volumes:
            records.save()
            add_to_json(volumes, folder / VOLUMES)
            if statistics:
                add_to_json(figures, Path(statistics))
    done.elsewhere = share.elsewhere
    if not _gather(done, share):
        return done
    done.elsewhere = [file for file in done.elsewhere if not is_finished(targets[file]) and file not in done.failed]
    if outputs.frames:
        there = [file for file in files if file not in done.failed or targets[file]["label"] in done.done]
        heartbeats({file: targets[file]["label"] for file in there}, folder)
    _say(done, folder, share.size)
    share.release()
    if report is not None and pages is not None:
        from decathlete.report.predictions import write_prediction_page

        weights = ", ".join(str(path) for path in predictor.checkpoints)
        print(write_prediction_page(report, predictor.name, pages, done.failed, weights=weights))
    return done


def case_name(file: Path, outputs: Outputs) -> str:
    """What a file's predictions are named after: its name without the suffix of NIfTI, or of a DICOM frame.

    A series has its folder's name.
    """
    if file.is_dir():
        return Path(os.path.abspath(file)).name  # a link's own name: two of them are two cases
    name = strip_nifti_suffix(file.name)
    if outputs.frames and name == file.name and file.suffix.lower() in (".dcm", ".ima"):
        return file.stem
    return name


def _check_dicom(files: Sequence[Path]) -> None:
    """Refuse to make a DICOM SEG of something else than DICOM, or without what writes it."""
    from decathlete.io.seg import check_highdicom

    check_highdicom()
    if others := [file for file in files if file.name.lower().endswith(NIFTI_SUFFIXES)]:
        raise UsageError("--dicom-seg", "a DICOM SEG refers to the DICOM series it was made from", listed(others),
                         "Give the folder of the series")  # fmt: skip


def _targets(
    found: Inputs, folder: Path, outputs: Outputs, parts: Mapping[str, bool], statistics: Path | None
) -> dict[Path, dict[str, Path]]:
    """Files of each input, what is in it to its path; every name is checked before anything costs time.

    Inputs whose files cannot be named, or would be another input's too, are put to those that failed.
    """
    check_output_folder(folder)
    targets: dict[Path, dict[str, Path]] = {}
    owners: dict[Path, list[Path]] = defaultdict(list)
    sources = {file.resolve() for file in found.files}
    if folder.resolve() in sources:
        raise UsageError(folder, "predictions lie outside of the series", "the series's own folder as --output")
    for file in found.files:
        files = outputs.files(folder, case_name(file, outputs), **parts)
        longest = max((target.name for target in files.values()), key=lambda name: len(os.fsencode(name)))
        if len(os.fsencode(longest)) > NAME_BYTES:
            found.failed[file] = DataError(
                file,
                f"the output's name must fit into {NAME_BYTES} bytes",
                f"{len(os.fsencode(longest))} for '{longest}'",
                "Give the input a shorter name",
            )
            continue
        for target in files.values():
            if target.resolve() in sources:
                raise UsageError(
                    target,
                    "an input is never overwritten",
                    "an output of the same path",
                    "Choose another folder for --output",
                )
            owners[target].append(file)
        targets[file] = files
    for target, files_of in owners.items():
        for file in files_of if len(files_of) > 1 else ():
            others = listed(other for other in files_of if other != file)
            found.failed[file] = DataError(file, "each input needs an output of its own", f"{target}, of {others} too",
                                           "Rename one, or predict them into two folders")  # fmt: skip
            targets.pop(file, None)
    taken = sources | {path.resolve() for path in (*owners, folder / VOLUMES, folder / FILE)}
    if statistics is not None and statistics.resolve() in taken:
        raise UsageError(statistics, "the statistics need a file of their own", "an input or output of that path")
    return targets


def _predict_one(
    predictor: Predictor,
    records: Records,
    file: Path,
    targets: Mapping[str, Path],
    memory_gib: float | None,
    outputs: Outputs,
    pages: list[PredictedCase] | None,
) -> tuple[dict[str, dict[str, Any]], str | None]:
    """Predict one file or series, write what belongs to it, and add it to a report's cases.

    Returns:
        Its statistics, and the line that says why it has no DICOM SEG: the label map is there all the same.
    """
    from decathlete.inference.frame_outputs import write_contours
    from decathlete.transforms.masked_scan import write_masked_scan

    probabilities, case = "probabilities" in targets, case_name(file, outputs)
    records.key(file, case)  # of the scan as it is now, before it is read
    check_memory(predictor, file, probabilities, memory_gib)
    volume = predictor.read(file)
    if file.is_dir():  # a series, whose size is known now
        check_fits(predictor, file, volume.array.shape, volume.spacing, probabilities, memory_gib)
    compared = pages is not None and predictor.training_scans is not None
    prediction = predictor(volume.array, volume.affine, probabilities, file, pages is not None, compared)
    every = outputs.files(targets["label"].parent, case, **dict.fromkeys(("probabilities", "field", "dicom_seg"), True))
    note = records.mark(file, case, targets, every, alone=len(targets) == 1 and not outputs.contours)
    if prediction.probabilities is not None:
        write_on_grid(np.moveaxis(prediction.probabilities, 0, -1), volume, targets["probabilities"], note)
    if prediction.field is not None:
        write_on_grid(prediction.field, volume, targets["field"], note)
    if "masked" in targets and file.is_dir():
        write_on_grid(np.where(prediction.label, volume.array, 0), volume, targets["masked"], note)
    elif "masked" in targets:
        with naming_a_full_disk(targets["masked"]):
            write_masked_scan(file, prediction.label, targets["masked"])
    if outputs.contours:
        with naming_a_full_disk(targets["label"]):
            write_contours(prediction.label, targets["label"].parent, case)
    write_on_grid(prediction.label, volume, targets["label"], note)  # after what is beside it: where it is, so are they
    fault = None
    if "dicom_seg" in targets:  # but for the SEG, which a header can make impossible
        from decathlete.io.seg import write_dicom_seg

        slices = getattr(volume, "slices", [file])
        try:
            with naming_a_full_disk(targets["dicom_seg"]):
                write_dicom_seg(prediction.label, slices, targets["dicom_seg"], predictor.name, predictor.labels)
        except DiskError:
            raise
        except Exception as error:  # whatever is wrong with the headers, the label map is there
            fault = f"{_one_line(file, error)} The label map is written: {targets['label']}"
    figures = label_statistics(prediction.label, volume.array, volume.spacing, predictor.labels)
    if pages is not None:
        pages.append(_page_case(predictor, case, volume, prediction, figures, pages))
    return figures, fault


def _page_case(
    predictor: Predictor,
    case: str,
    volume: Volume,
    prediction: Prediction,
    figures: Mapping[str, Any],
    others: Sequence[PredictedCase],
) -> PredictedCase:
    """A case of a report, drawn while its voxels are in memory."""
    from decathlete.report.predictions import PredictedCase

    found = PredictedCase(case, _millilitres(figures), prediction.disagreement)
    if prediction.figures is not None and predictor.training_scans is not None:
        found.distance = predictor.training_scans.distance(prediction.figures)
        found.unlike = predictor.training_scans.unlike(prediction.figures)
    if found.is_worth_drawing(others):
        bits = prediction.disagreement_map
        found.draw(volume.array, prediction.label, volume.affine, predictor.labels, bits)
    return found


def _millilitres(figures: Mapping[str, Any]) -> dict[str, float]:
    return {name: round(f["volume_ml"], 6) for name, f in figures.items()}


def _figures_of_finished(
    predictor: Predictor, file: Path, target: Path, case: str, pages: list[PredictedCase] | None
) -> dict[str, dict[str, Any]]:
    """Statistics of a label map of an earlier run, which a report shows too."""
    from decathlete.inference.predictor import Prediction
    from decathlete.io.nifti import read_nifti

    volume = predictor.read(file)
    label = read_nifti(target, kind="label")
    figures = label_statistics(label.array, volume.array, volume.spacing, predictor.labels)
    if pages is not None:
        earlier = Prediction(label.array, volume.affine)
        pages.append(_page_case(predictor, case, volume, earlier, figures, pages))
    return figures


def _progress(files: Iterable[Path], name: str, number: int, share: Share) -> Iterable[Path]:
    bar = ProgressBar(files, desc=name, unit="case", total=number, disable=share.rank != 0)
    for file in bar:
        bar.set_postfix_str(file.name if len(file.name) <= 30 else f"{file.name[:27]}...", refresh=True)
        yield file


def _one_line(file: Path, error: Exception) -> str:
    text = str(error) if isinstance(error, DecathleteError) else f"{file}: {type(error).__name__}: {error}"
    return " ".join(text.split())


def _gather(report: PredictReport, share: Share) -> bool:
    """Whether this process is to tell of the prediction; its report then holds what all processes did."""
    failed = [[str(path), text] for path, text in report.failed.items()]
    paths = [[str(path) for path in part] for part in (report.done, report.skipped, report.elsewhere)]
    everybody = share.gather([*paths, failed])
    if share.size > 1 and everybody:
        for n, part in enumerate((report.done, report.skipped, report.elsewhere)):
            part[:] = [Path(path) for path in dict.fromkeys(path for process in everybody for path in process[n])]
        made = set(report.done)  # a process that began late finds cases of its share that others had made by then
        report.skipped = [path for path in report.skipped if path not in made]
        report.failed = {Path(path): text for process in everybody for path, text in process[3]}
    return bool(everybody)


def _say(report: PredictReport, folder: Path, processes: int = 1) -> None:
    parts = [f"{len(report.done)} predicted", f"{len(report.skipped)} present", f"{len(report.failed)} failed"]
    parts += [f"{len(report.left_out)} left out" + (f" ({_kinds(report.left_out)})" if report.left_out else "")]
    parts += [f"{len(report.elsewhere)} in work elsewhere"] if report.elsewhere else []
    parts[-1] += f", by {processes} processes" if processes > 1 else ""
    print(f"decathlete: {folder}: {', '.join(parts)}. Not for clinical use.", file=sys.stderr)
    for message in report.failed.values():
        print(f"decathlete: {message}", file=sys.stderr)


def _kinds(left_out: Mapping[Path, str]) -> str:
    """``3 .json, 1 folder, 32 DICOM``."""
    return ", ".join(f"{number} {kind}" for kind, number in sorted(Counter(left_out.values()).items()))
