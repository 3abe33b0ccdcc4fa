"""Scans as the pictures get them: turned, with their place, and only if everything lies on one grid."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from decathlete.drawing.scan import load_scan
from decathlete.errors import DataError, GeometryError

LAS = np.array([[-2.0, 0, 0, 18], [0, 1, 0, -7], [0, 0, 5, 100], [0, 0, 0, 1]])  # first axis to the left


def saved(path, array, affine=LAS):
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def test_slices_keep_their_place_in_mm_when_turned():
    image = np.zeros((10, 6, 4))
    image[9, 2, 1] = 1
    scan = load_scan(image, affine=LAS)
    assert scan.image[0, 2, 1] == 1
    assert scan.spacing.tolist() == [2, 1, 5]
    assert [scan.position_mm(0, n) for n in (0, 9)] == [0, 18]
    assert scan.position_mm(2, 3) == 115


def test_label_file_of_another_grid_is_refused_by_the_reader(tmp_path):
    image = saved(tmp_path / "image.nii.gz", np.zeros((4, 5, 6), np.float32))
    moved = LAS + np.eye(4, k=3)  # 1 mm to the right
    label = saved(tmp_path / "label.nii.gz", np.ones((4, 5, 6), np.uint8), moved)
    with pytest.raises(GeometryError, match=r"label\.nii\.gz"):
        load_scan(image, label)
    with pytest.raises(GeometryError, match="shape"):
        load_scan(image, saved(tmp_path / "small.nii.gz", np.ones((4, 5, 5), np.uint8)))


def test_label_file_on_an_array_is_compared_with_its_affine(tmp_path):
    label = saved(tmp_path / "label.nii.gz", np.ones((4, 5, 6), np.uint8))
    assert load_scan(np.zeros((4, 5, 6)), label, affine=LAS).label.sum() == 120
    with pytest.raises(GeometryError, match="the affine differs"):
        load_scan(np.zeros((4, 5, 6)), label)


def test_channel_of_a_file_is_chosen(tmp_path):
    array = np.stack([np.zeros((4, 5, 6)), np.ones((4, 5, 6))], axis=-1).astype(np.float32)
    path = saved(tmp_path / "image.nii.gz", array)
    assert load_scan(path, channel=1).image.min() == 1
    with pytest.raises(DataError, match=r"no channel 2 in the image \(channels: 0, 1\)"):
        load_scan(path, channel=2)
