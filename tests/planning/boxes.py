"""Tiny data sets of one's own, in several layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

SHAPE = (16, 20, 12)


def save(path: Path, array: np.ndarray, spacing=(1.0, 1.0, 2.0)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([*spacing, 1.0])
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)


def draw(n: int, channels: int = 1, classes: int = 1, shape=SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """Image with (C, X, Y, Z), 100 brighter from channel to channel, and a label of a box a class."""
    noise = np.random.default_rng(n)
    label = np.zeros(shape, np.uint8)
    for value in range(1, classes + 1):
        label[3 * value : 3 * value + 3, 5:15, 3:9] = value
    image = noise.normal(100, 10, (channels, *shape)) * (1 + 9 * np.arange(channels)[:, None, None, None])
    return (image + 50 * label).astype(np.float32), label


def write_decathlon(folder: Path, n: int = 5, channels: int = 1, classes: int = 1, **changes: Any) -> Path:
    """Folders of the Decathlon; ``changes`` go over dataset.json."""
    for i in range(n):
        image, label = draw(i, channels, classes)
        save(folder / "imagesTr" / f"case_{i}.nii.gz", image[0] if channels == 1 else np.moveaxis(image, 0, -1))
        save(folder / "labelsTr" / f"case_{i}.nii.gz", label)
    description = {
        "name": "Boxes",
        "description": "boxes in noise",
        "licence": "none",
        "modality": {str(c): f"M{c}" for c in range(channels)},
        "labels": {"0": "background", **{str(v): f"box {v}" for v in range(1, classes + 1)}},
        "training": [
            {"image": f"./imagesTr/case_{i}.nii.gz", "label": f"./labelsTr/case_{i}.nii.gz"} for i in range(n)
        ],
        **changes,
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def write_nnunet(folder: Path, n: int = 5, channels: int = 2, **changes: Any) -> Path:
    """nnU-Net's raw folders."""
    for i in range(n):
        image, label = draw(i, channels)
        for c in range(channels):
            save(folder / "imagesTr" / f"case_{i}_{c:04d}.nii.gz", image[c])
        save(folder / "labelsTr" / f"case_{i}.nii.gz", label)
    description = {
        "channel_names": {str(c): f"M{c}" for c in range(channels)},
        "labels": {"background": 0, "box": 1},
        "numTraining": n,
        "file_ending": ".nii.gz",
        **changes,
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder
