from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import LoadImaged

from decathlete.data import make_sunnybrook_phantoms, sunnybrook_datalist
from decathlete.errors import DataError
from decathlete.io.contours import label_of_contours
from decathlete.io.dicom import read_dicom_frame
from decathlete.io.frames import read_frame
from decathlete.transforms import ContourChannelsd, FrameLabeld, FrameReader, OneVentricled
from decathlete.transforms.frames import one_ventricle


@pytest.fixture(scope="module")
def items(tmp_path_factory) -> list[dict]:
    folder = make_sunnybrook_phantoms(1, tmp_path_factory.mktemp("data"), size=96, slices=2, phases=2)
    return sunnybrook_datalist(folder, part="contoured")


def loaded(item: dict) -> dict:
    return FrameLabeld("label")(LoadImaged("image", reader=FrameReader)(item))


def test_a_frame_is_a_volume_of_one_slice_in_its_place(items):
    path = items[0]["image"]
    volume, frame = read_frame(path), read_dicom_frame(path)
    np.testing.assert_array_equal(volume.array[:, :, 0], frame.array)
    np.testing.assert_allclose(volume.affine, frame.affine)
    header = volume.header  # what a prediction is written with
    for affine in (header.get_sform(), header.get_qform()):
        np.testing.assert_allclose(affine, frame.affine, atol=1e-4)
    assert header.get_xyzt_units()[0] == "mm"


def test_a_frame_longer_than_int16_is_a_volume(tmp_path, write_slices):
    [path] = write_slices(tmp_path, np.zeros((3, 40_000, 1)), np.diag([-1.0, -1, 1, 1])).iterdir()
    volume = read_frame(path)
    assert volume.array.shape == tuple(volume.header.get_data_shape()) == (3, 40_000, 1)
    loaded = LoadImaged("image", reader="decathlete.transforms.DicomReader")({"image": path})["image"]
    assert loaded.meta["spatial_shape"].tolist() == [3, 40_000]


def test_nifti_files_are_read_as_they_are(tmp_path):
    array = np.random.default_rng(0).normal(size=(5, 4, 3)).astype(np.float32)
    nib.save(nib.Nifti1Image(array, np.diag([1, 2, 3, 1])), tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(read_frame(tmp_path / "a.nii.gz").array, array)


def test_labels_tell_what_nobody_drew():
    inner, outer = np.array([0, 1, 0, 0], dtype=bool), np.array([0, 1, 1, 0], dtype=bool)
    assert label_of_contours(inner, outer).tolist() == [0, 1, 2, 0]
    assert label_of_contours(inner, None).tolist() == [3, 1, 3, 3]
    assert label_of_contours(None, outer).tolist() == [0, 4, 4, 0]
    assert label_of_contours(outer, inner).tolist() == [0, 1, 1, 0]  # crossing contours: the inner one counts


def test_an_item_gets_one_label_map_on_its_images_grid(items):
    with_outer = next(item for item in items if item["outer"])
    without = next(item for item in items if not item["outer"])
    both, alone = loaded(with_outer), loaded(without)
    assert both["label"].shape == both["image"].shape == (96, 96, 1)
    assert torch.equal(both["label"].affine, both["image"].affine)
    assert sorted(both["label"].unique().tolist()) == [0, 1, 2]
    assert sorted(alone["label"].unique().tolist()) == [1, 3]
    assert {"inner", "outer"}.isdisjoint(both)
    muscle = both["image"][both["label"] == 2].mean()
    assert both["image"][both["label"] == 1].mean() > 2 * muscle


def test_a_label_map_in_nifti_is_loaded_in_place_of_contours(tmp_path):
    label = np.zeros((6, 6, 2), np.uint8)
    label[2:4, 2:4] = 1
    nib.save(nib.Nifti1Image(label, np.eye(4)), tmp_path / "l.nii.gz")
    image = MetaTensor(torch.zeros(6, 6, 2))
    found = FrameLabeld("label")({"image": image, "label": str(tmp_path / "l.nii.gz")})["label"]
    np.testing.assert_array_equal(found.numpy(), label)


def test_contours_of_a_stack_and_items_without_any_are_refused(items):
    item = {**items[0], "image": MetaTensor(torch.zeros(96, 96, 3))}
    with pytest.raises(DataError, match="an image of one slice"):
        FrameLabeld("label")(item)
    with pytest.raises(DataError, match="a_1: a training item needs a contour or a label map"):
        FrameLabeld("label")({"image": MetaTensor(torch.zeros(8, 8, 1)), "inner": None, "case_id": "a_1"})


def test_channels_are_what_lies_inside_and_a_missing_contour_is_empty():
    label = torch.tensor([[0, 1, 2, 2]])
    assert ContourChannelsd("label")({"label": label})["label"].tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 1]]
    label = torch.tensor([[3, 1, 1, 3]])
    assert ContourChannelsd("label")({"label": label})["label"].tolist() == [[0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    label = torch.tensor([[0, 4, 4, 0]])
    assert ContourChannelsd("label")({"label": label})["label"].tolist() == [[1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 1, 0]]


def test_a_slice_has_one_ventricle_without_holes():
    plane = np.zeros((12, 12), np.uint8)
    plane[2:9, 2:9] = 2
    plane[4:7, 4:7] = 1
    clean = plane.copy()
    plane[5, 5] = 0  # a hole in the cavity
    plane[3, 3] = 0  # and one in the muscle
    plane[8, 8] = 1  # cavity apart from the other
    plane[11, 11] = 2  # a spot far off
    np.testing.assert_array_equal(one_ventricle(plane), clean)
    np.testing.assert_array_equal(one_ventricle(np.zeros((4, 4), np.uint8)), np.zeros((4, 4), np.uint8))


def test_what_lies_far_from_the_centre_of_the_frame_is_no_ventricle():
    plane = np.zeros((41, 41), np.uint8)
    plane[18:23, 22:27] = 2  # its middle is 4 pixels from the centre
    heart = plane.copy()
    plane[0:9, 0:9] = 2  # larger, and 22.6 pixels off
    np.testing.assert_array_equal(one_ventricle(plane, opening=0, reach=8.0, spacing=(1.0, 2.0)), heart)
    np.testing.assert_array_equal(one_ventricle(plane, opening=0, reach=7.9, spacing=(1.0, 2.0)), np.zeros_like(plane))
    np.testing.assert_array_equal(one_ventricle(plane, opening=0), plane - heart)
    scan = MetaTensor(plane[None, :, :, None], affine=np.diag([1.0, 2.0, 8.0, 1.0]))
    found = OneVentricled("pred", opening=0, reach=8.0)({"pred": scan})["pred"]
    np.testing.assert_array_equal(found[0, :, :, 0].numpy(), heart)


def test_what_hangs_on_by_a_neck_is_cut_off():
    x, y = np.indices((64, 64)) - 20
    disc = np.hypot(x, y) < 14
    plane = np.where(disc, 2, 0).astype(np.uint8)
    plane[33:50, 19:23] = 2  # a neck
    plane[45:55, 15:27] = 2  # and what it leads to
    clean = one_ventricle(plane)
    assert not clean[36:].any()
    assert np.count_nonzero((clean > 0) ^ disc) < 0.02 * np.count_nonzero(disc)
    np.testing.assert_array_equal(one_ventricle(plane, opening=0), plane)


def test_slices_are_cleaned_one_by_one_and_keep_their_meta_data():
    volume = torch.zeros(1, 6, 6, 2, dtype=torch.uint8)
    volume[0, 1:3, 1:3, 0] = 1
    volume[0, 3:5, 3:5, 1] = 2
    volume[0, 0, 0, 1] = 2
    found = OneVentricled("pred")({"pred": MetaTensor(volume, meta={"filename_or_obj": "a"})})["pred"]
    assert found.meta["filename_or_obj"] == "a"
    assert found.sum(dim=(0, 1, 2)).tolist() == [4, 8]


def test_a_file_that_is_neither_is_refused_by_its_name(tmp_path):
    (tmp_path / "frame.dcm").write_text("no")
    with pytest.raises(DataError, match=r"frame\.dcm: not a DICOM file"):
        read_frame(Path(tmp_path / "frame.dcm"))
