"""Crops by a margin and by a length in mm: the affine follows, and predictions come back whole."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, Invertd, LoadImaged, NormalizeIntensityd, Orientationd

from decathlete.errors import ConfigError, DataError, GeometryError
from decathlete.transforms import (
    CheckPaird,
    CropBlankd,
    CropMargind,
    DropLowestd,
    NiftiReader,
    RestoreGridd,
    restore_to_grid,
)

AFFINE = np.array([[1.5, 0, 0, -10], [0, 2.0, 0, 20], [0, 0, 2.5, -30], [0, 0, 0, 1.0]])


def case(shape=(6, 7, 8), affine=AFFINE, **more):
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(1, *shape)
    meta = {"original_affine": affine, "spatial_shape": np.array(shape), "filename_or_obj": "scan_3.nii.gz"}
    image = MetaTensor(torch.from_numpy(array), affine=torch.from_numpy(affine), meta=meta)
    return {"image": image, **more}


def test_margin_is_taken_from_both_sides_and_the_affine_follows():
    image = CropMargind("image", margin=[1, 2, 0])(case())["image"]
    assert torch.equal(image.as_tensor(), case()["image"].as_tensor()[:, 1:5, 2:5])
    # voxel (0, 0, 0) was (1, 2, 0): 1.5 mm and 4 mm farther
    np.testing.assert_allclose(image.affine[:3, 3], [-8.5, 24, -30])
    np.testing.assert_allclose(image.affine[:3, :3], AFFINE[:3, :3])


@pytest.mark.parametrize(("n", "kept"), [(320, (32, 288)), (301, (22, 278)), (256, (0, 256)), (240, (0, 240))])
def test_margin_leaves_the_least_size(n, kept):
    image = torch.arange(n, dtype=torch.float32).view(1, n, 1, 1)
    out = CropMargind("image", [32, 0, 0], [256, 1, 1])({"image": image})["image"]
    assert (int(out.min()), int(out.max()) + 1) == kept


def test_label_is_cut_as_the_image():
    image = case()["image"]
    out = CropMargind(["image", "label"], 1, 4)({"image": image, "label": image.clone()})
    assert out["image"].shape == out["label"].shape == (1, 4, 5, 6)
    assert torch.equal(out["image"], out["label"])


def test_mean_is_taken_of_what_the_crop_left():
    dark = case()["image"]
    dark[:, 1:5] = torch.rand(4, 7, 8, generator=torch.Generator().manual_seed(0))
    chain = Compose([CropMargind("image", [1, 0, 0]), NormalizeIntensityd("image")])
    assert abs(float(chain({"image": dark})["image"].mean())) < 1e-5
    assert abs(float(NormalizeIntensityd("image")({"image": dark})["image"][:, 1:5].mean())) > 0.1


def test_margin_that_leaves_nothing_is_refused():
    with pytest.raises(DataError, match=r"scan_3.nii.gz: no voxel is left.*\(6 voxels.*3 to remove.*smaller"):
        CropMargind("image", margin=[3, 0, 0], min_size=0)(case())


@pytest.mark.parametrize("wrong", [{"margin": -1}, {"margin": [1.5, 0, 0]}, {"margin": 1, "min_size": [-2, 0, 0]}])
def test_margins_that_cannot_be_are_refused(wrong):
    with pytest.raises(ConfigError, match="whole numbers of voxels"):
        CropMargind("image", **wrong)


def test_one_margin_an_axis_is_needed():
    with pytest.raises(GeometryError, match="each of the 3 axes"):
        CropMargind("image", margin=[1, 1])(case())


@pytest.mark.parametrize(("length_mm", "dropped"), [(0, 0), (1.2, 0), (1.25, 1), (5, 2), (6.2, 2), (6.25, 3)])
def test_length_is_rounded_to_whole_slices(length_mm, dropped):
    image = DropLowestd("image", length_mm)(case())["image"]  # slices of 2.5 mm
    assert torch.equal(image.as_tensor(), case()["image"].as_tensor()[..., dropped:])
    np.testing.assert_allclose(image.affine[:3, 3], [-10, 20, -30 + 2.5 * dropped])


def test_spacing_comes_from_an_oblique_affine():
    turned = np.eye(4)
    turned[:3, :3] = nib.eulerangles.euler2mat(0.3, -0.2, 0.5) @ AFFINE[:3, :3]
    image = DropLowestd("image", 4.0, axis=1)(case(affine=turned))["image"]  # 2 mm along axis 1
    assert image.shape == (1, 6, 5, 8)
    np.testing.assert_allclose(image.affine[:3, 3], 2 * turned[:3, 1])


def test_lowest_slices_are_the_inferior_ones_after_orientation():
    upside_down = AFFINE @ np.diag([1, 1, -1.0, 1])  # voxel 0 of the last axis is the highest
    chain = Compose([Orientationd("image", axcodes="RAS", labels=None), DropLowestd("image", 5)])
    image = chain(case(affine=upside_down))["image"]
    np.testing.assert_array_equal(image[0, 0, 0], np.arange(8, dtype=np.float32)[5::-1])  # 6 and 7 were the lowest


def test_volume_with_fewer_slices_than_are_dropped_is_refused():
    assert DropLowestd("image", 17.5)(case())["image"].shape[-1] == 1
    words = r"scan_3.nii.gz: no slice is left after the lowest 20 mm.*\(8 slices of 2.5 mm, 8 to drop.*smaller"
    with pytest.raises(DataError, match=words):
        DropLowestd("image", 20)(case())


def test_lengths_and_images_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="0 or more"):
        DropLowestd("image", -1)
    with pytest.raises(ConfigError, match="0, 1 or 2"):
        DropLowestd("image", 1, axis=3)
    with pytest.raises(GeometryError, match="affine"):
        DropLowestd("image", 1)({"image": torch.zeros(1, 4, 4, 4)})


CHAIN = (
    Orientationd("image", axcodes="RAS", labels=None),
    DropLowestd("image", 5),
    CropMargind("image", [1, 2, 0], [5, 1, 1]),
)


@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, -1, 1), (1, 1, -1)])
def test_predictions_return_to_the_scan_and_the_rest_is_background(flips):
    affine = AFFINE @ np.diag([*flips, 1.0])
    before = case(affine=affine)
    image = Compose(CHAIN)(before)["image"]
    assert image.shape == (1, 5, 3, 6)
    logits = torch.cat([-image.as_tensor() - 1, image.as_tensor() + 1])  # class 1 wherever the network looked
    label = restore_to_grid(logits, image.affine, affine, (6, 7, 8), argmax=True)[0]
    expected = torch.zeros(6, 7, 8, dtype=torch.uint8)
    expected[slice(0, 5) if flips[0] > 0 else slice(1, 6), 2:5, slice(2, 8) if flips[2] > 0 else slice(0, 6)] = 1
    assert torch.equal(label, expected)


def test_monais_inversion_returns_the_same():
    chain = Compose(CHAIN)
    data = chain(case())
    data["pred"] = data["image"].clone()
    inverted = Invertd("pred", chain, orig_keys="image")(data)["pred"]
    restored = RestoreGridd("pred", "image", fill=0.0)(data)["pred"]
    assert torch.equal(inverted.as_tensor(), restored.as_tensor())


def test_mask_of_another_shape_is_refused_before_the_crop(tmp_path):
    for name, shape in (("image", (9, 9, 9)), ("label", (9, 9, 8))):
        nib.save(nib.Nifti1Image(np.ones(shape, np.uint8), AFFINE), tmp_path / f"{name}.nii.gz")
    keys = ["image", "label"]
    chain = Compose([
        LoadImaged(keys, reader=NiftiReader),
        CheckPaird(keys),
        EnsureChannelFirstd(keys),
        DropLowestd(keys, 5),
    ])  # fmt: skip
    with pytest.raises(RuntimeError) as caught:
        chain({key: tmp_path / f"{key}.nii.gz" for key in keys})
    assert isinstance(caught.value.__cause__, GeometryError)
    assert "label 9 x 9 x 8, image 9 x 9 x 9" in str(caught.value.__cause__)


def bordered(width, value=0.0, channels=1):
    """Voxels 1 to 60 of a scan of 3x4x5, each channel 100 more, in a border of ``value``."""
    array = np.stack([np.arange(1, 61, dtype=np.float32).reshape(3, 4, 5) + 100 * c for c in range(channels)])
    shape = tuple(n + a + b for n, (a, b) in zip((3, 4, 5), width, strict=True))
    padded = np.pad(array, [(0, 0), *width], constant_values=value)
    meta = {"original_affine": AFFINE, "spatial_shape": np.array(shape), "filename_or_obj": "scan_3.nii.gz"}
    image = MetaTensor(torch.from_numpy(padded), affine=torch.from_numpy(AFFINE.copy()), meta=meta)
    return {"image": image}, torch.from_numpy(array)


@pytest.mark.parametrize("value", [0.0, -1024.0, 7.0])
@pytest.mark.parametrize("width", [((2, 2), (2, 2), (2, 2)), ((1, 0), (0, 3), (2, 4)), ((0, 0), (5, 0), (0, 0))])
def test_a_border_of_one_value_is_cut_from_each_side_and_the_affine_follows(width, value):
    data, inside = bordered(width, value)
    image = CropBlankd("image")(data)["image"]
    assert torch.equal(image.as_tensor(), inside)
    np.testing.assert_allclose(image.affine[:3, 3], AFFINE[:3, 3] + AFFINE[:3, :3] @ [before for before, _ in width])


def test_sides_may_have_values_of_their_own():
    data, inside = bordered(((0, 0), (0, 0), (1, 0)), 0.0)
    data["image"] = MetaTensor(torch.nn.functional.pad(data["image"].as_tensor(), (0, 2), value=-5.0))
    assert torch.equal(CropBlankd("image")(data)["image"].as_tensor(), inside)


def test_a_scan_without_such_a_border_passes_unchanged():
    data, _ = bordered(((0, 0), (0, 0), (0, 0)))
    data["image"][0, 0, 0, 0] = 0  # a corner, and zeros inside, are no border
    data["image"][0, 1, 1, :] = 0
    image = CropBlankd("image")(data)["image"]
    assert torch.equal(image.as_tensor(), data["image"].as_tensor())
    np.testing.assert_array_equal(image.affine, AFFINE)


def test_a_plane_stays_if_any_channel_or_voxel_of_it_says_something():
    data, inside = bordered(((2, 2), (2, 2), (2, 2)), channels=2)
    data["image"][1, 1, 3, 4] = -3.0  # below 0, in the second channel alone
    image = CropBlankd("image")(data)["image"]
    assert image.shape == (2, 4, 4, 5)
    assert torch.equal(image.as_tensor()[:, 1:], inside)


def test_the_label_is_cut_with_its_image_whatever_it_holds():
    data, _ = bordered(((1, 2), (0, 1), (3, 0)))
    data["label"] = MetaTensor(torch.arange(data["image"].numel()).view(data["image"].shape) % 3)
    out = CropBlankd(["image", "label"])(data)
    assert torch.equal(out["label"].as_tensor(), data["label"].as_tensor()[:, 1:4, 0:4, 3:])


@pytest.mark.parametrize("value", [0.0, 100.0])
def test_a_scan_that_is_all_alike_is_refused(value):
    image = MetaTensor(torch.full((1, 4, 5, 6), value), meta={"filename_or_obj": "scan_3.nii.gz"})
    with pytest.raises(DataError, match=rf"scan_3.nii.gz: the scan is empty.*\({value:g}\)"):
        CropBlankd("image")({"image": image})


def test_one_voxel_and_two_flat_halves_are_left():
    image = torch.zeros(1, 4, 5, 6)
    image[0, 3, 0, 2] = 1
    assert CropBlankd("image")({"image": image})["image"].tolist() == [[[[1.0]]]]
    halves = torch.zeros(1, 4, 5, 6)
    halves[:, 2:] = 1
    assert CropBlankd("image")({"image": halves})["image"].shape == (1, 4, 5, 6)


def test_predictions_of_a_bordered_scan_return_to_its_grid_with_zeros_around():
    data, inside = bordered(((1, 2), (0, 1), (3, 0)))
    out = Compose([CropBlankd("image"), Orientationd("image", axcodes="LPS", labels=None)])(data)
    logits = torch.cat([-out["image"].as_tensor(), out["image"].as_tensor()])
    label = RestoreGridd("pred", "image", argmax=True)({**out, "pred": logits})["pred"][0].as_tensor()
    assert torch.equal(label, (data["image"].as_tensor()[0] > 0).to(torch.uint8))
    assert int(label.sum()) == inside.numel()


@pytest.mark.parametrize(
    ("width", "kept"),
    [((3, 3), (3, 6)), ((3, 5), (3, 8)), ((5, 3), (3, 8)), ((3, 6), (3, 6)), ((0, 2), (0, 5)), ((7, 0), (7, 10))],
)
def test_within_the_slack_as_much_is_taken_from_both_sides(width, kept):
    data, _ = bordered((width, (0, 0), (0, 0)))  # 3 voxels between the two
    image = CropBlankd("image", slack=[2, 0, 0])(data)["image"]
    assert torch.equal(image.as_tensor(), data["image"].as_tensor()[:, slice(*kept)])


def test_slacks_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="CropBlankd, slack: must be whole numbers"):
        CropBlankd("image", slack=-1)
    with pytest.raises(GeometryError, match="CropBlankd, slack: must be one number, or one for each of the 3 axes"):
        CropBlankd("image", slack=[1, 1])(case())


def test_a_lazy_chain_looks_at_what_waits_before_it():
    data, inside = bordered(((2, 0), (0, 0), (0, 1)))
    lazy = Compose([Orientationd("image", axcodes="LAS", labels=None), CropBlankd("image")], lazy=True)
    assert torch.equal(lazy(data)["image"].as_tensor(), inside.flip(1))
