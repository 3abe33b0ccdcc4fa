"""Voxels written on the grid of a scan."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
from numpy.typing import NDArray

from decathlete.files import atomic_write, disk_errors

if TYPE_CHECKING:
    from decathlete.io.volume import Volume


def write_on_grid(array: NDArray[Any], volume: Volume, target: Path, note: str) -> None:
    """Write voxels with the geometry of the input's header, completely or not at all.

    Raises:
        DiskError: the disk is full, or the folder cannot be written to.
    """
    header = volume.header.copy()
    header.set_data_shape(array.shape)
    header.set_data_dtype(array.dtype)
    header.set_slope_inter(1, 0)
    header.set_intent("label" if array.dtype.kind == "u" else "none")
    header["descrip"] = f"{note[:58]}; not for clinical use".encode("ascii", "replace")
    header["cal_min"] = header["cal_max"] = 0  # intensity window of the input
    for name in {"aux_file", "db_name"} & set(header.keys()):  # NIfTI-2 has no db_name
        header[name] = b""
    if array.ndim == 4:
        header["pixdim"][4] = 1
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    with disk_errors(target), atomic_write(target) as part:
        nib.save(kind(array, None, header), part)
