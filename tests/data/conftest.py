"""Fixtures for tests of data sets."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest


def _write_dataset(folder: Path, names: list[str], description: bool = True) -> Path:
    """A data set of tiny images, each with a label of five voxels."""
    rng = np.random.default_rng(0)
    for name in names:
        label = np.eye(42, 5).reshape(5, 6, 7)
        for part, values in (("imagesTr", rng.integers(0, 99, (5, 6, 7))), ("labelsTr", label)):
            (folder / part).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(values.astype(np.uint8), np.diag([1, 2, 3, 1])), folder / part / f"{name}.nii.gz")
    if description:
        _write_description(folder, [(f"./imagesTr/{n}.nii.gz", f"./labelsTr/{n}.nii.gz") for n in names])
    return folder


def _write_description(folder: Path, pairs: list[tuple]) -> None:
    training = [{"image": image, "label": label} for image, label in pairs]
    description = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "A"}, "training": training, "test": []}
    (folder / "dataset.json").write_text(json.dumps(description))


@pytest.fixture
def write_dataset():
    """Function (folder, names, description=True) that writes a data set in MSD's layout and returns its folder."""
    return _write_dataset


@pytest.fixture
def write_description():
    """Function (folder, [(image, label), ...]) that writes dataset.json."""
    return _write_description
