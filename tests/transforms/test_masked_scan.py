"""A scan cut out by its mask: the file's own voxels, type, scaling and header."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from decathlete.errors import GeometryError
from decathlete.transforms import SaveImageMaskedd, write_masked_scan

AFFINE = np.array([[-0.9, 0.1, 0, 20], [0.1, 0.9, 0, -7], [0, 0, 1.4, 3], [0, 0, 0, 1]])


@pytest.fixture
def mask():
    return np.random.default_rng(0).integers(0, 2, (5, 6, 7)).astype(np.uint8)


def saved(path, array, slope=None, inter=0.0, kind=nib.Nifti1Image):
    image = kind(array, AFFINE, dtype=array.dtype)
    image.header["descrip"] = b"T1w of somebody"
    image.header.set_xyzt_units("mm", "sec")
    image.set_qform(AFFINE, 1)
    if slope is not None:
        image.header.set_slope_inter(slope, inter)
    nib.save(image, path)
    return path


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "int64", "float32", "float64", ">i2", ">f4"])
def test_voxels_type_and_header_are_the_files(tmp_path, mask, dtype):
    array = np.random.default_rng(1).uniform(1, 120, mask.shape).astype(dtype)
    scan = saved(tmp_path / "a.nii.gz", array)
    cut = nib.load(write_masked_scan(scan, mask, tmp_path / "b.nii.gz"))
    assert cut.get_data_dtype() == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(np.asarray(cut.dataobj), array * mask)
    before, after = nib.load(scan).header, cut.header
    for field in set(before.keys()) - {"magic", "vox_offset", "scl_slope", "scl_inter"}:
        np.testing.assert_array_equal(after[field], before[field], err_msg=field)


@pytest.mark.parametrize(("slope", "inter", "dtype"), [(0.25, 0.0, "int16"), (2.0, -200.0, "int16"), (2.0, -3.0, "f4")])
def test_scaled_voxels_keep_their_intensities_and_0_is_0(tmp_path, mask, slope, inter, dtype):
    stored = np.random.default_rng(1).integers(0, 1000, mask.shape).astype(np.int16)
    cut = nib.load(write_masked_scan(saved(tmp_path / "a.nii.gz", stored, slope, inter), mask, tmp_path / "b.nii.gz"))
    assert cut.get_data_dtype() == np.dtype(dtype)  # with an intercept of -3 no whole number stands for 0
    np.testing.assert_allclose(cut.get_fdata(), (stored * slope + inter) * mask, atol=1e-6)


def test_pairs_nifti2_and_upper_case_names(tmp_path, mask):
    array = np.arange(mask.size, dtype=np.int16).reshape(mask.shape)
    saved(tmp_path / "old.nii", array).rename(tmp_path / "OLD.NII")
    scans = [
        saved(tmp_path / "two.nii.gz", array, kind=nib.Nifti2Image),
        saved(tmp_path / "pair.img", array, kind=nib.Nifti1Pair),
        tmp_path / "OLD.NII",
    ]
    for scan in scans:
        cut = nib.load(write_masked_scan(scan, mask, tmp_path / "cut.nii.gz"))
        np.testing.assert_array_equal(np.asarray(cut.dataobj), array * mask)
        np.testing.assert_allclose(cut.affine, AFFINE, atol=1e-6)
        assert isinstance(cut, nib.Nifti2Image) == scan.name.startswith("two")


def test_a_mask_of_another_shape_is_refused_and_nothing_written(tmp_path, mask):
    scan = saved(tmp_path / "a.nii.gz", mask)
    with pytest.raises(GeometryError, match=r"mask \(5, 6, 6\), scan \(5, 6, 7\)"):
        write_masked_scan(scan, mask[..., 1:], tmp_path / "b.nii.gz")
    assert [p.name for p in tmp_path.iterdir()] == ["a.nii.gz"]


def test_the_transform_names_the_file_after_the_scan(tmp_path, mask):
    scan = saved(tmp_path / "sub.01.nii.gz", np.full(mask.shape, 9, np.uint8))
    pred = MetaTensor(torch.from_numpy(mask)[None], meta={"filename_or_obj": str(scan)})
    SaveImageMaskedd("pred", tmp_path / "out", "brain")({"pred": pred})
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "out" / "sub.01_brain.nii.gz").dataobj), 9 * mask)
