"""The inputs of a prediction: files, and the files in folders. Every entry is used, refused or reported as left out."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from decathlete.bundle.outputs import Outputs
from decathlete.data.nfbs import head_files
from decathlete.distributed.sharing import listed_inputs
from decathlete.errors import DataError, DecathleteError, UsageError
from decathlete.files import check_content, is_nifti_name, nifti_files


@dataclass
class Inputs:
    """What was given, sorted out.

    Attributes:
        files: inputs in their order, each path once: files, links whose content may be missing, folders of a series.
        failed: what cannot be an input, and why.
        left_out: every other entry of the folders that were given, and its kind: a suffix, ``hidden``, ``folder``.
    """

    files: list[Path] = field(default_factory=list)
    failed: dict[Path, Exception] = field(default_factory=dict)
    left_out: dict[Path, str] = field(default_factory=dict)


def find_inputs(inputs: str | Path | Iterable[str | Path], outputs: Outputs | None = None) -> Inputs:
    """Files that ``inputs`` mean, folders replaced by the NIfTI files in them, and what else was found.

    A folder of NFBS means its heads, a text file (``.txt``) the paths in it, one a line. What ``outputs`` names after
    another file of a folder is no input. Two names of one content are two inputs.

    Raises:
        UsageError: nothing was given.
        DataError: all that was given is one path that can be no input.
    """
    given = [inputs] if isinstance(inputs, (str, Path)) else list(inputs)
    if not given:
        raise UsageError("inputs", "no file or folder given")
    result, seen = Inputs(), set[Path]()
    queue = [Path(path) for path in reversed(given)]
    while queue:
        path = queue.pop()
        try:
            if path.suffix.lower() == ".txt" and path.is_file():
                if (place := _place(path)) not in seen:  # a list may name another, or itself
                    seen.add(place)
                    queue += listed_inputs(path)[::-1]
                continue
            found, left_out = _in_folder(path, outputs or Outputs()) if path.is_dir() else ([path], {})
            if not os.path.lexists(path):
                raise DataError(path, "no such file or folder", remedy="Check the path")
        except (DecathleteError, OSError) as error:
            result.failed[path] = error
            continue
        for file in found:
            if (place := _place(file)) not in seen:
                seen.add(place)
                result.files.append(file)
        result.left_out |= left_out
    result.left_out = {path: kind for path, kind in result.left_out.items() if _place(path) not in seen}
    if not result.files and len(result.failed) == 1:
        raise next(iter(result.failed.values()))
    return result


def input_files(inputs: str | Path | Iterable[str | Path], outputs: Outputs | None = None) -> list[Path]:
    """Files of `find_inputs`.

    Raises:
        DataError: a path that is not there, or a folder without NIfTI files.
    """
    found = find_inputs(inputs, outputs)
    for error in found.failed.values():
        raise error
    return found.files


def _place(path: Path) -> Path:
    """A path that is one for all ways to its folder; a link keeps its own name."""
    absolute = Path(os.path.abspath(path))
    return absolute.parent.resolve() / absolute.name


def _in_folder(folder: Path, outputs: Outputs) -> tuple[list[Path], dict[Path, str]]:
    """Inputs in a folder, or the folder itself where it is a series, and what is left out."""
    from decathlete.io.series import series_files, series_folder

    found = outputs.scans(nifti_files(folder)) or head_files(folder)
    if not found and outputs.frames:
        from decathlete.data.sunnybrook import frame_files

        found = frame_files(folder)
    if found:
        return found, _left_out(folder, found, "DICOM: put a series into a folder of its own")
    if series := series_folder(folder):
        return [series], _left_out(folder, series_files(folder), "DICOM that is not part of the series")
    entries = sorted(folder.iterdir())
    for path in entries:
        check_content(path)
    what = f"{len(entries)} other entries" if entries else "an empty folder"
    if dicom := sum(1 for path in entries if path.suffix.lower() in (".dcm", ".ima")):
        what = f"{dicom} DICOM files, none of them a readable slice of CT or MR"
    raise DataError(
        folder,
        "no NIfTI files (.nii, .nii.gz) and no DICOM series in this folder",
        what,
        "Give the folder that holds the images themselves",
    )


def _left_out(folder: Path, found: Collection[Path], dicom: str) -> dict[Path, str]:
    """Entries of a folder that neither are nor hold what was found; ``dicom`` is what a DICOM file among them is."""
    used = {folder / path.relative_to(folder).parts[0] for path in found}
    return {path: _kind(path, dicom) for path in sorted(folder.iterdir()) if path not in used}


def _kind(path: Path, dicom: str) -> str:
    from decathlete.data.sunnybrook import may_be_dicom

    if path.name.startswith("."):
        return "hidden"
    if path.is_dir():
        return "folder"
    if is_nifti_name(path.name):
        return "named as predictions"  # all others are inputs
    return dicom if may_be_dicom(path) else path.suffix.lower() or "without a suffix"
