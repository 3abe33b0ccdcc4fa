"""Artificial heads: layout, geometry, and what the anatomy promises."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from decathlete.data import datalist, fetch, verify
from decathlete.errors import DataError, UsageError
from decathlete.phantoms.heads import draw_head, make_heads

SHAPE = (48, 64, 64)  # voxels of 4 mm


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_heads(3, tmp_path_factory.mktemp("heads"), seed=1, shape=SHAPE)


@pytest.fixture(scope="module")
def heads() -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    return [draw_head(np.random.default_rng(seed), SHAPE) for seed in range(4)]


def test_names_and_layout_are_nfbss(folder):
    assert folder.name == "NFBS_Dataset"
    names = sorted(str(p.relative_to(folder)) for p in folder.glob("*/*"))
    subjects = ["A00080001", "A00080002", "A00080003"]
    ends = ["T1w.nii.gz", "T1w_brain.nii.gz", "T1w_brainmask.nii.gz"]
    assert names == sorted(f"{s}/sub-{s}_ses-NFB3_{end}" for s in subjects for end in ends)
    assert [case["case_id"] for case in datalist(folder, "all", task="nfbs")] == [f"sub-{s}" for s in subjects]


def test_files_of_a_head_fit_and_are_stored_as_nfbs_stores_them(folder):
    assert verify(folder, progress=False) == []
    case = datalist(folder, "all")[0]
    image, mask = nib.load(case["image"]), nib.load(case["label"])
    brain = nib.load(case["image"].replace("T1w.nii", "T1w_brain.nii"))
    assert nib.aff2axcodes(image.affine) == ("P", "I", "R")
    assert image.shape == (64, 64, 48)
    assert np.allclose(image.header.get_zooms(), 4)
    assert image.get_data_dtype() == brain.get_data_dtype() == np.int16
    assert mask.get_data_dtype() == np.uint8
    assert (brain.get_fdata() == image.get_fdata() * mask.get_fdata()).all()


def test_stored_axes_are_those_of_the_drawing(folder):
    _, mask, _ = draw_head(np.random.default_rng([1, 80001]), SHAPE)
    stored = nib.as_closest_canonical(nib.load(datalist(folder, "all")[0]["label"]))
    assert (np.asarray(stored.dataobj) == mask).all()
    assert np.allclose(stored.affine[:3, 3] + 4 * (np.array(SHAPE) - 1) / 2, 0, atol=6.1)  # the middle near the origin


def test_mask_is_one_brain_of_a_brains_size_and_place(heads):
    for _, mask, _ in heads:
        assert ndimage.label(mask)[1] == 1
        assert (ndimage.binary_fill_holes(mask) == mask).all()
        assert 1000 < mask.sum() * 0.064 < 1900  # ml
        x, y, z = np.nonzero(mask)
        assert abs(x.mean() - 23.5) < 3
        assert 10 < (63 - z.max()) * 4 < 50  # mm from the top of the grid
        assert 8 < y.min() * 4 < 45  # and from its back


def test_brain_is_brighter_than_the_skull_and_darker_than_fat(heads):
    for image, mask, field in heads:
        even = image / field / 330
        shell = ndimage.binary_dilation(mask, iterations=2) & ~ndimage.binary_dilation(mask, iterations=1)
        assert 0.5 < np.median(even[mask > 0]) < 0.95
        assert np.median(even[shell]) < 0.5
        assert (even[mask == 0] > 1.15).sum() > 500
        assert np.median(even[:2]) < 0.1  # air


def test_half_of_the_white_matter_or_more_can_be_told_from_gray(heads):
    for image, mask, field in heads:
        even = (image / field / 330)[ndimage.binary_erosion(mask, iterations=2)]
        assert 0.1 < (even > 0.8).mean() < 0.7
        assert ((even > 0.45) & (even < 0.75)).mean() > 0.1
        assert (even < 0.35).mean() > 0.005  # ventricles


def test_field_is_smooth_and_positive_and_differs_between_heads(heads):
    for _, _, field in heads:
        assert 0.3 < field.min() < 0.95
        assert 1.05 < field.max() < 3
        assert max(np.abs(np.diff(np.log(field), axis=axis)).max() for axis in range(3)) < 0.08
    assert np.abs(heads[0][2] - heads[1][2]).max() > 0.1


def test_same_seed_gives_the_same_bytes_however_many(folder, tmp_path):
    one = make_heads(1, tmp_path / "one", seed=1, shape=SHAPE)
    for path in one.glob("*/*"):
        assert path.read_bytes() == (folder / path.relative_to(one)).read_bytes()
    other = make_heads(1, tmp_path / "other", seed=2, shape=SHAPE)
    name = "A00080001/sub-A00080001_ses-NFB3_T1w.nii.gz"
    assert (other / name).read_bytes() != (one / name).read_bytes()


def test_small_and_odd_shapes_have_a_brain():
    for shape in ((16, 16, 8), (31, 40, 33)):
        image, mask, field = draw_head(np.random.default_rng(0), shape)
        assert image.shape == mask.shape == field.shape == shape
        assert mask.any()


def test_phantoms_are_kept_and_never_mixed(folder, tmp_path):
    assert make_heads(3, folder.parent, seed=1, shape=SHAPE) == folder
    with pytest.raises(DataError, match="already holds other phantoms"):
        make_heads(3, folder, seed=2, shape=SHAPE)
    with pytest.raises(UsageError, match="--phantom"):
        make_heads(0, tmp_path)
    with pytest.raises(UsageError, match="shape"):
        make_heads(1, tmp_path, shape=(8, 8, 8))


def test_command_draws_heads_and_says_later_that_they_are_no_patients(tmp_path, caplog):
    folder = fetch("nfbs", tmp_path, phantom=1, seed=4, verify=True)
    assert folder == tmp_path / "NFBS_Dataset"
    assert nib.load(datalist(folder, "all")[0]["image"]).shape == (128, 128, 96)
    assert fetch("nfbs", tmp_path) == folder
    assert "holds phantoms, not patients" in caplog.text
