"""The cases of a prediction: each input with the files that it gets, checked before anything costs time."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from decathlete.bundle.outputs import Outputs
from decathlete.errors import DataError, UsageError, listed
from decathlete.files import check_output_folder, strip_nifti_suffix
from decathlete.inference.inputs import Inputs

NAME_BYTES = 255  # longest file name of the file systems in use
PARTS = ("probabilities", "field", "dicom_seg")  # what may be written beside the label map on request


@dataclass(frozen=True)
class Case:
    """An input and its output files.

    Attributes:
        file: the scan: a file, or the folder of a DICOM series.
        name: what its outputs are named after: the file's name without its suffix, the folder's name of a series.
        targets: what is asked for (``label``, ``probabilities``, ...) to its path.
        possible: likewise all that a prediction with this bundle can write.
        contours: outlines are written as text too.
    """

    file: Path
    name: str
    targets: Mapping[str, Path]
    possible: Mapping[str, Path]
    contours: bool = False

    @property
    def label(self) -> Path:
        """The label map."""
        return self.targets["label"]


def plan_cases(
    found: Inputs, folder: Path, outputs: Outputs, parts: Mapping[str, bool], reserved: Mapping[str, Path]
) -> dict[Path, Case]:
    """A case for each input, by its file. Inputs without usable output names move to ``found.failed``.

    Args:
        found: the inputs.
        folder: for the outputs.
        outputs: names of the bundle's outputs.
        parts: of `PARTS`, what is asked for.
        reserved: other files that the prediction writes, by what they are called in a message.

    Raises:
        UsageError: an output that would overwrite an input, or lie in the folder of a series.
    """
    check_output_folder(folder)
    sources = {file.resolve() for file in found.files}
    if folder.resolve() in sources:
        raise UsageError(folder, "predictions cannot be written into the folder of the series", remedy="Choose another "
                         "--output")  # fmt: skip
    cases: dict[Path, Case] = {}
    owners: dict[Path, list[Path]] = defaultdict(list)
    for file in found.files:
        name = _name(file, outputs)
        possible = outputs.files(folder, name, **dict.fromkeys(PARTS, True))
        targets = {part: path for part, path in possible.items() if parts.get(part, part not in PARTS)}
        longest = max((path.name for path in targets.values()), key=lambda text: len(os.fsencode(text)))
        if (size := len(os.fsencode(longest))) > NAME_BYTES:
            found.failed[file] = DataError(file, f"output name longer than {NAME_BYTES} bytes",
                                           f"{size} for '{longest}'", "Rename the input")  # fmt: skip
            continue
        for target in targets.values():
            if target.resolve() in sources:
                raise UsageError(target, "an output would overwrite an input", remedy="Choose another --output")
            owners[target].append(file)
        cases[file] = Case(file, name, targets, possible, outputs.contours)
    for target, files in owners.items():
        for file in files if len(files) > 1 else ():
            others = listed(other for other in files if other != file)
            found.failed[file] = DataError(file, f"{others} would get the same output", str(target),
                                           "Rename one, or predict them into two folders")  # fmt: skip
            cases.pop(file, None)
    taken = sources | {path.resolve() for path in owners}
    for what, path in reserved.items():
        if path.resolve() in taken:
            raise UsageError(path, f"the {what} would overwrite an input or output", remedy="Choose another file")
        taken.add(path.resolve())
    return cases


def _name(file: Path, outputs: Outputs) -> str:
    if file.is_dir():
        return Path(os.path.abspath(file)).name  # a link's own name: two of them are two cases
    name = strip_nifti_suffix(file.name)
    if outputs.frames and name == file.name and file.suffix.lower() in (".dcm", ".ima"):
        return file.stem
    return name
