"""Scans that tests write for themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray | None = None, **fields: Any) -> Path:
    """A NIfTI file, by default of 1.5 x 2 x 3 mm; ``fields`` are set in its header."""
    image = nib.Nifti1Image(array, np.diag([1.5, 2, 3, 1]) if affine is None else affine)
    for name, value in fields.items():
        image.header[name] = value
    nib.save(image, path)
    return path


def write_turned(path: Path) -> Path:
    """A scan of 9 x 8 x 7 voxels whose first two axes are exchanged and partly flipped."""
    values = np.random.default_rng(0).integers(0, 900, (9, 8, 7)).astype(np.int16)
    affine = nib.affines.from_matvec(np.array([[0, -1.5, 0], [2, 0, 0], [0, 0, 3]]), [5, -6, 7])
    return write_nifti(path, values, affine)
