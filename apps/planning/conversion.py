"""NRRD and MetaImage files as NIfTI, once, in the Decathlon's folders: all else reads these strictly."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from decathlete.data.cases import Case
from decathlete.errors import DataError, UsageError
from decathlete.files import atomic_write
from decathlete.planning.layouts import OTHER_SUFFIXES, Layout, is_nifti
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
            raise DataError(path, f"an image ends in .nii, .nii.gz, {', '.join(OTHER_SUFFIXES)}", f"'{path.name}'",
                            "Convert the images to NIfTI first")  # fmt: skip
    return bool(others)


def convert(layout: Layout, target: str | Path, progress: bool = True) -> Path:
    """Write the cases as ``imagesTr`` and ``labelsTr`` with a ``dataset.json``; what is there already is kept.

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
        raise UsageError(target, "the converted data set needs a folder of its own", "that of --data",
                         "Choose another NAME")  # fmt: skip
    mark = target / "converted.json"
    source = {"from": str(layout.folder.resolve())}
    if target.is_dir() and any(target.iterdir()) and (not mark.is_file() or json.loads(mark.read_text()) != source):
        raise UsageError(target, "converted files go into a folder of their own", "other data there",
                         "Take it away, or choose another NAME")  # fmt: skip
    with atomic_write(mark) as part:
        part.write_text(json.dumps(source))
    listed = []
    for case in ProgressBar(layout.cases, desc=f"convert {layout.folder.name}", unit="case", disable=not progress):
        name = f"{case['case_id']}.nii.gz".replace("/", "_")
        for key, folder in (("image", "imagesTr"), ("label", "labelsTr")):
            if not (target / folder / name).is_file():
                _convert(case, key, target / folder / name)
        listed.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
    description = {
        **layout.about,
        "modality": {str(n): name for n, name in enumerate(layout.channels)},
        **({"labels": {str(v): name for name, v in layout.classes.items()}} if layout.classes else {}),
        "training": listed,
    }
    with atomic_write(target / "dataset.json") as part:
        part.write_text(json.dumps(description, indent=1), encoding="utf-8")
    return target


def _convert(case: Case, key: str, target: Path) -> None:
    entry = case[key]
    volumes = [read_other(path) for path in ([entry] if isinstance(entry, str) else entry)]
    array, affine = volumes[0]
    for path, (other, its) in zip(entry[1:] if isinstance(entry, list) else (), volumes[1:], strict=True):
        if other.shape != array.shape or np.abs(its - affine).max() > 1e-3:
            found = f"shape {other.shape} against {array.shape}, affines {np.abs(its - affine).max():.3g} apart"
            raise DataError(path, "the channels of a case share one grid", found, "Resample them onto one grid")
    stacked = array if len(volumes) == 1 else np.stack([v for v, _ in volumes], -1)
    image = nib.Nifti1Image(stacked, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    with atomic_write(target) as part:
        nib.save(image, part)


def read_other(path: str | Path) -> tuple[NDArray, NDArray[np.float64]]:
    """Voxels (X, Y, Z) and affine (voxel to RAS mm) of a NRRD, MetaImage or NIfTI file, as ITK reads them.

    Raises:
        DataError: the file cannot be read, or is no volume of one value a voxel.
    """
    import itk

    try:
        image = itk.imread(str(path))
    except Exception as error:  # ITK raises RuntimeError, KeyError and TypeError by what it does not know
        found = " ".join(str(error).split())[-200:]
        raise DataError(path, "the file can be read by ITK", found, "Convert the image to NIfTI") from error
    array = np.asarray(itk.array_from_image(image))
    if image.GetImageDimension() != 3 or array.ndim != 3:
        raise DataError(path, "a volume has three axes and one value a voxel", f"an array of shape {array.shape}",
                        "Give one file a channel")  # fmt: skip
    affine = np.eye(4)
    affine[:3, :3] = itk.array_from_matrix(image.GetDirection()) * np.array(image.GetSpacing())  # columns
    affine[:3, 3] = np.array(image.GetOrigin())
    array = np.ascontiguousarray(array.transpose(2, 1, 0))  # ITK's arrays are (Z, Y, X)
    if array.dtype in (np.int64, np.uint64):  # which NIfTI's readers know badly
        array = array.astype(np.int32)
    return array, _LPS_TO_RAS @ affine
