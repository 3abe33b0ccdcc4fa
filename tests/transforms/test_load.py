"""The strict readers within MONAI's chains, and the checks of what they loaded."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor, NibabelReader
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd, SaveImaged, Spacingd

from decathlete.errors import DataError, GeometryError
from decathlete.io.contours import write_contour
from decathlete.transforms import CheckPaird, ContourMaskd, DicomReader, NiftiReader
from tests.nifti import write_nifti, write_turned


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return write_turned(tmp_path / "case_1.nii.gz")


def test_loader_gives_what_nibabel_reader_gives(image):
    ours = LoadImaged("image", reader="decathlete.transforms.NiftiReader")({"image": image})["image"]
    theirs = LoadImaged("image", reader=NibabelReader)({"image": image})["image"]
    assert (ours.array == theirs.array).all()
    assert (ours.affine == theirs.affine).all()
    assert set(theirs.meta) <= set(ours.meta)
    for key in ("original_affine", "spatial_shape", "space", "original_channel_dim", "filename_or_obj"):
        np.testing.assert_array_equal(ours.meta[key], theirs.meta[key])


def test_loader_never_falls_back_to_a_reader_that_takes_the_file(tmp_path):
    values = np.zeros((3, 4, 5), np.float32)
    values[0, 0, 0] = np.nan
    path = write_nifti(tmp_path / "nan.nii.gz", values)
    with pytest.raises(DataError, match="voxels are not finite"):
        LoadImaged("image", reader="decathlete.transforms.NiftiReader")({"image": path})


def test_several_files_become_channels_on_one_grid(image, tmp_path):
    other = write_nifti(
        tmp_path / "t2.nii.gz", np.ones((9, 8, 7), np.int16) * np.arange(7, dtype=np.int16), nib.load(image).affine
    )
    chain = Compose([LoadImaged("image", reader=NiftiReader), EnsureChannelFirstd("image")])
    assert chain({"image": [str(image), str(other)]})["image"].shape == (2, 9, 8, 7)
    shifted = write_nifti(tmp_path / "t3.nii.gz", np.ones((9, 8, 7), np.int16), np.eye(4))
    with pytest.raises(RuntimeError) as caught:
        chain({"image": [str(image), str(shifted)]})
    assert isinstance(caught.value.__cause__, GeometryError)


def test_orientation_spacing_and_saving_follow_the_metadata(image, tmp_path):
    chain = Compose(
        [
            LoadImaged("image", reader="decathlete.transforms.NiftiReader"),
            EnsureChannelFirstd("image"),
            Orientationd("image", axcodes="RAS", labels=None),
            Spacingd("image", pixdim=(1, 1, 1)),
            SaveImaged("image", output_dir=tmp_path / "out", separate_folder=False, output_postfix="", print_log=False),
        ]
    )
    data = chain({"image": image})["image"]
    np.testing.assert_allclose(np.diag(data.affine)[:3], 1)
    np.testing.assert_allclose(data.meta["original_affine"], nib.load(image).affine)
    assert nib.load(tmp_path / "out" / "case_1.nii.gz").shape == tuple(data.shape[1:])


def test_label_loader_checks_values(image):
    with pytest.raises(DataError, match="expected only the label values 0, 1"):
        LoadImaged("label", reader=NiftiReader, kind="label", allowed_labels=[0, 1])({"label": image})


def test_pair_is_checked_within_a_chain(image, tmp_path):
    affine = nib.load(image).affine
    fits = write_nifti(tmp_path / "fits.nii.gz", np.ones((9, 8, 7), np.uint8) * np.arange(7, dtype=np.uint8), affine)
    shifted = write_nifti(tmp_path / "shifted.nii.gz", np.ones((9, 8, 7), np.uint8), affine + np.eye(4, k=3))
    other = write_nifti(tmp_path / "other.nii.gz", np.ones((9, 8, 6), np.uint8), affine)
    keys = ["image", "label"]
    chain = Compose([LoadImaged(keys, reader=NiftiReader), EnsureChannelFirstd(keys), CheckPaird(keys)])
    assert set(chain({"image": image, "label": fits})) == {"image", "label"}
    for label, rule in ((shifted, "affines of label and image differ"), (other, "label 9 x 8 x 6, image 9 x 8 x 7")):
        with pytest.raises(RuntimeError) as caught:
            chain({"image": image, "label": label})
        assert rule in str(caught.value.__cause__)
        assert label.name in str(caught.value.__cause__)


def test_pair_check_does_nothing_with_an_image_alone(image):
    chain = Compose([LoadImaged("image", reader=NiftiReader), CheckPaird("image")])
    assert chain({"image": image})["image"].shape == (9, 8, 7)


def test_a_frame_loads_as_a_channel_with_its_spacing(shared, tmp_path):
    reference = shared / "data/bad_inputs/dicom/made/valid_reference.dcm"  # rows 0.7 and columns 0.8 mm apart
    shutil.copy(reference, tmp_path / "no_suffix")
    image = LoadImaged("image", reader=DicomReader(), ensure_channel_first=True)({"image": tmp_path / "no_suffix"})[
        "image"
    ]
    assert image.shape == (1, 32, 32)
    np.testing.assert_allclose(image.pixdim.tolist()[:2], [0.8, 0.7])
    np.testing.assert_allclose(np.diag(image.affine), [0.8, 0.7, 1, 1])


def test_an_item_gets_a_channel_a_contour_and_flags_for_those_drawn(tmp_path):
    write_contour([(3.5, 2.5), (7.5, 2.5), (7.5, 5.5), (3.5, 5.5)], tmp_path / "i.txt")  # 4 x 3 pixels
    image = MetaTensor(torch.zeros(1, 12, 10), affine=np.diag([1.4, 1.3, 1, 1]))
    item = ContourMaskd()({"image": image, "inner": str(tmp_path / "i.txt"), "outer": None, "case_id": "a"})
    assert sorted(item) == ["case_id", "drawn", "image", "label"]
    assert item["label"].shape == (2, 12, 10)
    assert item["label"].sum(dim=(1, 2)).tolist() == [12, 0]
    assert item["drawn"].tolist() == [1, 0]
    assert torch.equal(item["label"].affine, image.affine)
