"""Scores of folders of label maps against folders of references: pairs by name, tables and a page."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from decathlete.bundle import bundle_folder
from decathlete.bundle.description import Bundle
from decathlete.bundle.outputs import Outputs
from decathlete.data.nfbs import list_heads
from decathlete.drawing.pages import check_page_file
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
    """Score label maps, print a table, and write ``metrics.csv`` and ``summary.json``, and optionally a page.

    Args:
        bundle: folder or name of the bundle. Its classes are scored, or the regions that its train config states;
            voxels with an ignored value in the reference are left out.
        prediction: folder of label maps, or one file.
        label: folder of references, or one file. Files pair by name without ``.nii`` or ``.nii.gz``; two single files
            pair whatever their names. The suffix that a bundle adds to the scan's name (``inference.yaml``,
            ``outputs``) is allowed on both sides, and its other output files are skipped; references may also be in
            NFBS's layout. References without a prediction are listed in a warning, since a fold predicts only some of
            them; a prediction without a reference counts as failed.
        output: folder of the two files; default: that of the predictions.
        report: HTML file with tables, a plot with a dot per case, and pictures of the worst and best cases.
        image: folder of the scans, or one file, for the pictures; default: ``imagesTr`` beside references in
            ``labelsTr``, or the heads of NFBS, if they exist.
        largest_component: also score the maps with only the largest component of each class, print whether that helps,
            and add it to ``summary.json``.

    Returns:
        The scores; cases that could not be scored are in ``failed`` and reported on stderr.

    Raises:
        UsageError: unknown bundle, an output that cannot be a folder, or a report that is not an HTML file.
        DataError: a missing or empty folder, or no case could be scored; then nothing is written.
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
        raise DataError(prediction, "no case could be scored", f"{len(failed)} failed", "See the messages above")
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
            images = dict(zip(pairs, images.values(), strict=True))  # single files pair whatever their names
        print(write_score_page(report, bundle_folder(bundle).name, summary, pairs, labels, images))
    return summary


def _images(label: Path, image: Path | None) -> dict[str, Path]:
    """Case to scan, for pictures; empty if they are not known."""
    if image is None:
        if label.is_dir() and (heads := list_heads(label)):
            return {strip_nifti_suffix(Path(head["image"]).name): Path(head["image"]) for head in heads}
        place = label if label.is_dir() else label.parent
        image = place.with_name("imagesTr")
        if place.name != "labelsTr" or not image.is_dir():
            return {}
    files = nifti_files(image) if image.is_dir() else [image]
    if not files or not (image.is_dir() or image.is_file()):
        rule = "no NIfTI file (.nii, .nii.gz) in this folder" if image.is_dir() else "no such file or folder"
        raise DataError(image, rule, remedy="Pass the scans, or their folder, to --image")
    return {strip_nifti_suffix(file.name): file for file in files}


def _pair(
    prediction: Path, label: Path, outputs: Outputs
) -> tuple[dict[str, tuple[Path, Path]], dict[str, str], list[str]]:
    """Case to pair, case to message for predictions without a reference, and references without a prediction."""
    predictions, references = _by_case(prediction, outputs), _by_case(label, outputs)
    if not prediction.is_dir() and not label.is_dir():
        return {next(iter(references)): (prediction, label)}, {}, []
    pairs = {case: (path, references[case]) for case, path in predictions.items() if case in references}
    if not pairs:
        found = f"predictions: {listed(predictions)}; references: {listed(references)}"
        rule = f"no prediction has the same name as a reference in {label}"
        raise DataError(prediction, rule, found, "Rename the files")
    failed = {
        case: str(DataError(path, "no reference with this name", f"no {case}.nii.gz in {label}"))
        for case, path in predictions.items()
        if case not in references
    }
    return pairs, failed, [case for case in references if case not in predictions]


def _by_case(place: Path, outputs: Outputs) -> dict[str, Path]:
    if is_file_or_broken_link(place):
        name = strip_nifti_suffix(place.name)
        return {outputs.case_of(name, ()) or name: place}
    if not place.is_dir():
        raise DataError(place, "no such file or folder", remedy="Pass a NIfTI file, or a folder of them")
    found: dict[str, Path] = {}
    files = nifti_files(place)
    if not files:
        found = {strip_nifti_suffix(Path(head["image"]).name): Path(head["label"]) for head in list_heads(place)}
    stems = {path: same_name(strip_nifti_suffix(path.name)) for path in files}
    names = set(stems.values())
    for path, stem in stems.items():
        case = outputs.case_of(stem, names)
        if case is None:  # another output of a prediction, beside its label map
            continue
        if case in found:
            raise DataError(place, f"two files for case {case}", f"{found[case].name} and {path.name}", "Delete one")
        found[case] = path
    if not found:
        raise DataError(place, "no NIfTI file (.nii, .nii.gz) in this folder", remedy="Check the path")
    return found
