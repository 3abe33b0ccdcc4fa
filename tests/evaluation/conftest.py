"""A bundle that names two classes, and label maps on an oblique anisotropic grid."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

SPACING = (0.7, 1.0, 2.5)
LABELS = {1: "head", 2: "tail"}


def oblique_affine() -> np.ndarray:
    """Voxels of `SPACING`, turned by 20 degrees around the third axis, origin off zero."""
    c, s = np.cos(np.deg2rad(20)), np.sin(np.deg2rad(20))
    affine = np.eye(4)
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) * SPACING
    affine[:3, 3] = (-12, 30, 7)
    return affine


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array.astype(np.uint8), oblique_affine() if affine is None else affine), path)
    return path


def label_map(shift: int = 0) -> np.ndarray:
    """Two boxes of 2 x 2 x 2 voxels in a volume of 9 x 8 x 7, ``head`` moved along the first axis."""
    array = np.zeros((9, 8, 7), dtype=np.uint8)
    array[1 + shift : 3 + shift, 1:3, 1:3] = 1
    array[5:7, 5:7, 4:6] = 2
    return array


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Folder of a bundle with the classes of `LABELS`."""
    folder = tmp_path / "two_boxes"
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "inference.yaml").write_text("labels: {background: 0, head: 1, tail: 2}\n")
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Predictions and references of two cases; the head of case_b is predicted one voxel off."""
    for case, shift in (("case_a", 0), ("case_b", 1)):
        save(tmp_path / "pred" / f"{case}.nii.gz", label_map(shift))
        save(tmp_path / "ref" / f"{case}.nii.gz", label_map())
    return tmp_path / "pred", tmp_path / "ref"
