"""One DICOM slice as a volume of one slice, so that it can be handled like any volume."""

from __future__ import annotations

from pathlib import Path

from decathlete.files import NIFTI_SUFFIXES
from decathlete.io.dicom import read_dicom_frame
from decathlete.io.nifti import read_nifti
from decathlete.io.volume import Volume, header_of


def read_frame(path: str | Path) -> Volume:
    """A DICOM frame as a volume (X, Y, 1), or a NIfTI file as it is; the name of the file decides.

    The affine of a frame is that of its header, with the slice thickness along the third axis.

    Raises:
        DataError, GeometryError: as `read_dicom_frame` and `read_nifti`.
    """
    path = Path(path)
    if path.name.lower().endswith(NIFTI_SUFFIXES):
        return read_nifti(path)
    frame = read_dicom_frame(path)
    array = frame.array[:, :, None]
    return Volume(array, frame.affine, header_of(array.shape, frame.affine), list(frame.notes), path)
