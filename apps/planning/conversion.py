"""NRRD and MetaImage files as NIfTI, once, in the Decathlon's folders: all else reads these strictly."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from decathlete.data.cases import Case, paths_of
from decathlete.data.kinds import OTHER_SUFFIXES
from decathlete.errors import DataError, UsageError, listed
from decathlete.files import atomic_write, file_sha256
from decathlete.io.nifti import MAX_VOXELS
from decathlete.io.volume import header_of
from decathlete.planning.layouts import Layout, is_nifti
from decathlete.progress import ProgressBar

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def needs_conversion(layout: Layout) -> bool:
    """Whether a file of the data set is not NIfTI.

    Raises:
        DataError: a file of a format that cannot be converted either.
    """
    others = [path for path in layout.files if not is_nifti(path)]
    for path in others:
        if not path.name.lower().endswith(OTHER_SUFFIXES):
            raise DataError(path, f"unknown image format, expected .nii, .nii.gz, {', '.join(OTHER_SUFFIXES)}",
                            f"'{path.name}'", "Convert the images to NIfTI first")  # fmt: skip
    return bool(others)


def convert(layout: Layout, target: str | Path, progress: bool = True) -> Path:
    """Write the cases as ``imagesTr`` and ``labelsTr`` with a ``dataset.json``.

    What was converted before is kept where its source still has the same content, by SHA-256 in ``converted.json``;
    converted files whose source is gone are deleted.

    Voxels and geometry are ITK's, whose LPS millimetres become NIfTI's RAS. Several files of a case become one 4D file.

    Args:
        layout: with every file there.
        target: folder of the converted data set.
        progress: show a bar on stderr.

    Raises:
        DataError: a file that ITK cannot read, or that is no volume, or channels on different grids.
        UsageError: ``target`` holds something else.
    """
    target = Path(target)
    if target.resolve() == layout.folder.resolve():
        raise UsageError(target, "the converted data would be written into the folder of --data", "",
                         "Choose another NAME")  # fmt: skip
    record = _Record(target, str(layout.folder.resolve()))
    if target.is_dir() and any(target.iterdir()) and not record.is_ours:
        raise UsageError(target, "the folder for the converted files already holds other data", "",
                         "Move them away, or choose another NAME")  # fmt: skip
    entries, wanted = [], set()
    for case in ProgressBar(layout.cases, desc=f"convert {layout.folder.name}", unit="case", disable=not progress):
        name = f"{case['case_id']}.nii.gz".replace("/", "_")
        for key, folder in (("image", "imagesTr"), ("label", "labelsTr")):
            made = f"{folder}/{name}"
            wanted.add(made)
            sources = _digests(case[key])
            if not record.holds(made, sources):
                record.forget(made)  # before its file changes: a record never speaks of another file
                _convert(case, key, target / made)
                record.add(made, sources)
        entries.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
    for made in record.others(wanted):
        record.forget(made)
        (target / made).unlink(missing_ok=True)
    description = {
        **layout.about,
        "modality": {str(n): name for n, name in enumerate(layout.channels)},
        **({"labels": {str(v): name for name, v in layout.classes.items()}} if layout.classes else {}),
        "training": entries,
    }
    with atomic_write(target / "dataset.json") as part:
        part.write_text(json.dumps(description, indent=1), encoding="utf-8")
    return target


class _Record:
    """Which converted file was made of which content: ``converted.json`` beside the files.

    Attributes:
        is_ours: the folder holds what was converted from this data set, or nothing.
    """

    def __init__(self, target: Path, source: str) -> None:
        self.target, self.file, self.source = target, target / "converted.json", source
        content = json.loads(self.file.read_text(encoding="utf-8")) if self.file.is_file() else {}
        self.is_ours = content.get("from") == source
        # an earlier version kept no digests: then all is converted anew
        self.made: dict[str, list[str]] = dict(content.get("sha256") or {}) if self.is_ours else {}

    def holds(self, made: str, sources: list[str]) -> bool:
        return self.made.get(made) == sources and (self.target / made).is_file()

    def add(self, made: str, sources: list[str]) -> None:
        self.made[made] = sources
        self._write()

    def forget(self, made: str) -> None:
        if self.made.pop(made, None) is not None or not self.file.is_file():
            self._write()

    def others(self, wanted: set[str]) -> list[str]:
        return sorted(set(self.made) - wanted)

    def _write(self) -> None:
        with atomic_write(self.file) as part:
            part.write_text(json.dumps({"from": self.source, "sha256": self.made}, indent=1), encoding="utf-8")


def _digests(entry: str | list[str]) -> list[str]:
    return [file_sha256(path) for path in paths_of(entry)]


def _convert(case: Case, key: str, target: Path) -> None:
    entry = case[key]
    volumes = [read_other(path) for path in paths_of(entry)]
    array, affine = volumes[0]
    for path, (other, its) in zip(entry[1:] if isinstance(entry, list) else (), volumes[1:], strict=True):
        if other.shape != array.shape or np.abs(its - affine).max() > 1e-3:
            found = f"shape {other.shape} against {array.shape}, affines {np.abs(its - affine).max():.3g} apart"
            raise DataError(path, "the channels of a case differ in grid", found, "Resample them to one grid")
    stacked = array if len(volumes) == 1 else np.stack([v for v, _ in volumes], -1)
    header = header_of(array.shape, affine)
    header.set_data_dtype(stacked.dtype)
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    image = kind(stacked, affine, header)
    with atomic_write(target) as part:
        nib.save(image, part)


def read_other(path: str | Path) -> tuple[NDArray, NDArray[np.float64]]:
    """Voxels (X, Y, Z) and affine (voxel to RAS mm) of a NRRD, MetaImage or NIfTI file, as ITK reads them.

    Raises:
        DataError: the file cannot be read, or is no volume of one value a voxel.
    """
    _check_nrrd(Path(path))
    import itk

    try:
        reader = itk.ImageIOFactory.CreateImageIO(str(path), itk.CommonEnums.IOFileMode_ReadMode)
        if reader is not None:  # else imread says why
            reader.SetFileName(str(path))
            reader.ReadImageInformation()
            _check_size(path, [reader.GetDimensions(axis) for axis in range(reader.GetNumberOfDimensions())])
        image = itk.imread(str(path))
    except DataError:
        raise
    except Exception as error:  # ITK raises RuntimeError, KeyError and TypeError by what it does not know
        found = _reason(error)
        raise DataError(path, "ITK cannot read the file", found, "Convert the image to NIfTI") from error
    array = np.asarray(itk.array_from_image(image))
    if image.GetImageDimension() != 3 or array.ndim != 3:
        raise DataError(path, "expected a volume with three axes and one value per voxel",
                        f"an array of shape {array.shape}", "Give one file per channel")  # fmt: skip
    affine = np.eye(4)
    affine[:3, :3] = itk.array_from_matrix(image.GetDirection()) * np.array(image.GetSpacing())  # columns
    affine[:3, 3] = np.array(image.GetOrigin())
    array = np.ascontiguousarray(array.transpose(2, 1, 0))  # ITK's arrays are (Z, Y, X)
    if array.dtype in (np.int64, np.uint64):  # which NIfTI's readers know badly
        array = array.astype(np.int32)
    return array, _LPS_TO_RAS @ affine


def _check_size(path: str | Path, shape: Sequence[int]) -> None:
    """Refuse a volume that its header makes too large, before a small compressed file takes the memory for it."""
    if math.prod(map(int, shape)) > MAX_VOXELS:
        raise DataError(path, f"the volume is too large, more than {MAX_VOXELS:,} voxels", " x ".join(map(str, shape)),
                        "Crop or resample the image")  # fmt: skip


def _reason(error: Exception) -> str:
    """What ITK says of a file, without the places in its own code and its lists of types."""
    said = re.search(r"ITK ERROR: (?:\w+\(0x[0-9a-f]+\): )?(.+)", str(error), re.DOTALL)
    return " ".join((said[1] if said else str(error)).split())[:200]


def _check_nrrd(path: Path) -> None:
    """Refuse a NRRD file that is no volume of one value a voxel, of which ITK says nothing that a reader understands.

    Raises:
        DataError: several layers of segments (3D Slicer's, where segments overlap), or another number of axes.
    """
    if path.suffix.lower() != ".nrrd":
        return
    with path.open("rb") as file:
        head = file.read(1 << 16).split(b"\n\n")[0].decode("utf-8", "replace")
    fields = dict(re.findall(r"(?m)^([^#:\r\n]+):=? ?(.*?)\r?$", head))
    if not head.startswith("NRRD") or fields.get("dimension", "3").strip() == "3":
        return
    names = [fields[key] for key in sorted(fields) if re.fullmatch(r"Segment\d+_Name", key)]
    if names:
        layers = {fields[key] for key in fields if re.fullmatch(r"Segment\d+_Layer", key)}
        raise DataError(path, "a label map must have one value per voxel",
                        f"{len(layers)} layers of overlapping segments: {listed(names)}",
                        "In 3D Slicer, choose segments that do not overlap and export them as a label map")  # fmt: skip
    found = f"{fields['dimension'].strip()} axes of {fields.get('sizes', '?').strip()}"
    raise DataError(path, "expected a volume with three axes and one value per voxel", found,
                    "Give one file per channel")  # fmt: skip
