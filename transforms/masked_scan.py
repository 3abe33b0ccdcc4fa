"""A scan cut out by its label map: the file's own voxels, the rest 0."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import SaveImaged
from numpy.typing import NDArray

from decathlete.errors import GeometryError
from decathlete.files import atomic_write, strip_nifti_suffix


def write_masked_scan(scan: str | Path, mask: NDArray[Any], target: str | Path) -> Path:
    """Write the scan with intensity 0 wherever ``mask`` is 0, and return ``target``.

    Voxels inside are the file's own, bit by bit, with its dtype, scaling and header. Only where the file's scaling
    cannot store 0 (an intercept between two stored values) are they written as float32 without scaling.

    Args:
        scan: NIfTI file, (X, Y, Z), with or without further axes.
        mask: (X, Y, Z).
        target: file to write, completely or not at all.

    Raises:
        GeometryError: scan and mask differ in shape.
        OSError: the file cannot be written.
    """
    image = nib.load(scan)
    if tuple(image.shape[:3]) != tuple(mask.shape):
        raise GeometryError(scan, "mask and scan differ in shape",
                            f"mask {tuple(mask.shape)}, scan {tuple(image.shape[:3])}")  # fmt: skip
    proxy = image.dataobj
    stored, slope, inter = np.asanyarray(proxy.get_unscaled()), float(proxy.slope), float(proxy.inter)
    zero = _stored_zero(stored.dtype, slope, inter)
    if zero is None:
        stored, slope, inter, zero = np.asanyarray(proxy).astype(np.float32), 1.0, 0.0, 0
    inside = (mask != 0).reshape(*mask.shape, *[1] * (stored.ndim - 3))
    voxels = np.where(inside, stored, np.asarray(zero, stored.dtype))
    header = image.header
    if header.endianness != nib.volumeutils.native_code:
        header = header.as_byteswapped()
    header.set_data_dtype(voxels.dtype.newbyteorder("="))
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    masked = kind(voxels, None, header)
    masked.header.set_slope_inter(slope, inter)  # now: a new image forgets its header's
    with atomic_write(target) as part:
        nib.save(masked, part)
    return Path(target)


def _stored_zero(dtype: np.dtype, slope: float, inter: float) -> int | None:
    """What a voxel of intensity 0 is stored as; None where no stored value means 0."""
    if inter == 0:
        return 0
    zero = -inter / slope
    if dtype.kind not in "iu" or abs(zero - round(zero)) > 1e-6:
        return None
    limits = np.iinfo(dtype)
    return round(zero) if limits.min <= round(zero) <= limits.max else None


class SaveImageMaskedd(SaveImaged):
    """Write each prediction's scan, cut out by it: ``output_dir/<scan's name>_<output_postfix>.nii.gz``.

    The scan is read again from the file that the prediction's meta data name, so no preprocessing shows in it. MONAI
    Label, MONAI Deploy and `decathlete predict` leave it out, since they write by themselves: the first and the last go
    by the class SaveImaged, MONAI Deploy by the word in the name.

    Args:
        keys: label maps (1, X, Y, Z) on the scan's own grid, as RestoreGridd and AsDiscreted leave them.
        output_dir: folder.
        output_postfix: word behind the scan's name.
        allow_missing_keys: skip missing predictions.
    """

    def __init__(
        self, keys: KeysCollection, output_dir: str | Path, output_postfix: str, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(
            keys, output_dir=output_dir, output_postfix=output_postfix, allow_missing_keys=allow_missing_keys
        )
        self.output_dir, self.output_postfix = Path(output_dir), output_postfix

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the case unchanged.

        Raises:
            GeometryError: a prediction on another grid than its scan's.
        """
        for key in self.key_iterator(data):  # type: ignore[arg-type]
            scan = Path(str(data[key].meta["filename_or_obj"]))
            mask = np.asarray(torch.as_tensor(data[key]).detach().cpu())[0]
            name = f"{strip_nifti_suffix(scan.name)}_{self.output_postfix}.nii.gz"
            write_masked_scan(scan, mask, self.output_dir / name)
        return dict(data)


SaveMaskedScand = SaveImageMaskedd  # its name in bundles that were made before
