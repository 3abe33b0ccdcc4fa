"""Folders of label maps against folders of references: pairs by name, scores, tables and a page."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from decathlete.bundle import bundle_folder
from decathlete.bundle.description import Bundle
from decathlete.bundle.outputs import Outputs
from decathlete.data.nfbs import list_heads
from decathlete.errors import DataError, listed
from decathlete.evaluation.report import Summary, write_report
from decathlete.evaluation.scoring import score_pairs
from decathlete.files import (
    check_output_folder,
    files_sha256,
    is_file_or_broken_link,
    nifti_files,
    strip_nifti_suffix,
)
from decathlete.names import same_name
from decathlete.report.parts import check_page_file

if TYPE_CHECKING:
    from decathlete.evaluation.components import Components

logger = logging.getLogger(__name__)


def evaluate(
    bundle: str | Path,
    prediction: str | Path,
    label: str | Path,
    output: str | Path | None = None,
    report: str | Path | None = None,
    image: str | Path | None = None,
    largest_component: bool = False,
) -> Summary:
    """Score label maps, print a table, and write ``metrics.csv`` and ``summary.json``, and a page if asked for.

    Args:
        bundle: folder or name of the bundle whose classes are scored, or the regions that its train config states;
            voxels that hold an ignored value in the reference are left out.
        prediction: folder of label maps, or one file.
        label: folder of references, or one file. Files pair by name without ``.nii`` or ``.nii.gz``; two single files
            pair whatever their names. The word that a bundle's label maps carry behind the scan's name
            (``inference.yaml``, ``outputs``) may stand on either side, and what else is written beside them is passed
            over; references may also lie in NFBS's layout. References without a prediction are named in a warning,
            since a fold predicts a part of them; a prediction without a reference has failed.
        output: folder of the two files; default: that of the predictions.
        report: HTML file for tables, a point for each case, and pictures of the worst and best cases.
        image: folder of the scans, or one file, for the pictures; default: ``imagesTr`` beside references in
            ``labelsTr``, or the heads of NFBS, if they are there.
        largest_component: also score the maps with the largest component of each class alone, print whether that helps,
            and add it to ``summary.json``.

    Returns:
        The scores; cases that could not be scored are in ``failed`` and named on stderr.

    Raises:
        UsageError: unknown bundle, an output that cannot be a folder, or a report that is no HTML file.
        DataError: a missing or empty folder, or no case that could be scored; nothing is written then.
    """
    described = Bundle(bundle)
    labels = described.labels
    prediction, label = Path(prediction), Path(label)
    folder = Path(output) if output else prediction if prediction.is_dir() else prediction.parent
    check_output_folder(folder)
    if report is not None:
        check_page_file(report)
    images = _images(label, Path(image) if image else None) if report is not None else {}
    pairs, failed, unpredicted = _pair(prediction, label, described.outputs)
    if unpredicted:
        logger.warning("%s: no prediction for %s", prediction, listed(unpredicted))
    rows, faults = score_pairs(pairs, labels, scored=described.scored)
    failed |= faults
    for message in failed.values():
        print(f"decathlete: {message}", file=sys.stderr)
    if not rows:
        raise DataError(prediction, "at least one case must be scored", f"{len(failed)} that failed")
    scored = [case for case in pairs if case not in failed]
    found: Components | None = None
    if largest_component:
        from decathlete.evaluation.components import compare_components

        found = compare_components({case: pairs[case] for case in scored}, labels, described.scored)
    summary = write_report(
        rows,
        folder,
        failed,
        not_predicted=unpredicted,
        prediction=prediction,
        label=label,
        prediction_sha256=files_sha256(pairs[case][0] for case in scored),
        label_sha256=files_sha256(pairs[case][1] for case in scored),
        **({"largest_component": found.steps} if found else {}),
    )
    print(summary.table())
    if found:
        print(f"\n{found.table()}")
    print(f"\n{summary.metrics_csv}\n{summary.summary_json}")
    if report is not None:
        from decathlete.report.scores import write_score_page

        if not pairs.keys() & images.keys() and len(pairs) == len(images) == 1:
            images = dict(zip(pairs, images.values(), strict=True))  # two single files pair whatever their names
        print(write_score_page(report, bundle_folder(bundle).name, summary, pairs, labels, images))
    return summary


def _images(label: Path, image: Path | None) -> dict[str, Path]:
    """Scans by case, for pictures; none where they are not known."""
    if image is None:
        if label.is_dir() and (heads := list_heads(label)):
            return {strip_nifti_suffix(Path(head["image"]).name): Path(head["image"]) for head in heads}
        place = label if label.is_dir() else label.parent
        image = place.with_name("imagesTr")
        if place.name != "labelsTr" or not image.is_dir():
            return {}
    files = nifti_files(image) if image.is_dir() else [image]
    if not files or not (image.is_dir() or image.is_file()):
        raise DataError(image, "must be a folder of NIfTI files, or one file", "none")
    return {strip_nifti_suffix(file.name): file for file in files}


def _pair(
    prediction: Path, label: Path, outputs: Outputs
) -> tuple[dict[str, tuple[Path, Path]], dict[str, str], list[str]]:
    """Pairs by case, messages of predictions without a reference, and references without a prediction."""
    predictions, references = _by_case(prediction, outputs), _by_case(label, outputs)
    if not prediction.is_dir() and not label.is_dir():
        return {next(iter(references)): (prediction, label)}, {}, []
    pairs = {case: (path, references[case]) for case, path in predictions.items() if case in references}
    if not pairs:
        found = f"{listed(predictions)} in {prediction}, {listed(references)} in {label}"
        raise DataError(
            prediction,
            "a prediction has the name of its reference",
            f"no name on both sides: {found}",
            "Rename the files",
        )
    failed = {
        case: str(DataError(path, "a prediction has a reference of its name", f"no {case}.nii.gz in {label}"))
        for case, path in predictions.items()
        if case not in references
    }
    return pairs, failed, [case for case in references if case not in predictions]


def _by_case(place: Path, outputs: Outputs) -> dict[str, Path]:
    if is_file_or_broken_link(place):
        name = strip_nifti_suffix(place.name)
        return {outputs.case_of(name, ()) or name: place}
    if not place.is_dir():
        raise DataError(place, "must be a folder of NIfTI files, or one file", "no such file or folder")
    found: dict[str, Path] = {}
    files = nifti_files(place)
    if not files:
        found = {strip_nifti_suffix(Path(head["image"]).name): Path(head["label"]) for head in list_heads(place)}
    stems = {path: same_name(strip_nifti_suffix(path.name)) for path in files}
    names = set(stems.values())
    for path, stem in stems.items():
        case = outputs.case_of(stem, names)
        if case is None:  # beside the label map that was predicted with it
            continue
        if case in found:
            raise DataError(place, "each case has one file", f"{found[case].name} and {path.name}", "Delete one")
        found[case] = path
    if not found:
        raise DataError(place, "must hold NIfTI files (.nii, .nii.gz)", "none")
    return found
