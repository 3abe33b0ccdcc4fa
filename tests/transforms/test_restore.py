"""Label maps and logits come back to the grid of the scan."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.transforms import (
    Compose,
    CropForegroundd,
    EnsureChannelFirstd,
    Invertd,
    LoadImaged,
    Orientationd,
    SaveImaged,
    Spacingd,
    SpatialPadd,
)

from decathlete.errors import GeometryError
from decathlete.transforms.restore import RestoreGridd, restore_to_grid

ROTATION = nib.eulerangles.euler2mat(0.2, -0.3, 0.4)


def affine_of(axes="RAS", spacing=(1.0, 1.2, 2.5), rotation=None, origin=(-31.0, 12.5, 40.25)):
    """Affine whose voxel axes run towards ``axes``."""
    affine = np.eye(4)
    for column, letter in enumerate(axes):
        row = ["LR", "PA", "IS"].index(next(p for p in ("LR", "PA", "IS") if letter in p))
        affine[:3, column] = 0
        affine[row, column] = spacing[column] * (1 if letter in "RAS" else -1)
    if rotation is not None:
        affine[:3, :3] = rotation @ affine[:3, :3]
    affine[:3, 3] = origin
    return affine


def loaded(array, affine):
    """The image as LoadImaged gives it."""
    meta = {
        "original_affine": affine.copy(),
        "spatial_shape": np.array(array.shape),
        "filename_or_obj": "case.nii.gz",
        "original_channel_dim": float("nan"),
    }
    return {"image": MetaTensor(torch.as_tensor(array), affine=affine, meta=meta)}


@pytest.mark.parametrize("axes", ["RAS", "LPS", "ASR", "PIL"])
@pytest.mark.parametrize("rotation", [None, ROTATION], ids=["straight", "oblique"])
def test_reoriented_and_cropped_voxels_return_bit_by_bit(axes, rotation):
    array = np.random.default_rng(0).normal(size=(9, 12, 7)).astype(np.float32)
    array[0] = array[:, :2] = array[:, :, -1] = 0
    affine = affine_of(axes, rotation=rotation)
    chain = Compose(
        [
            EnsureChannelFirstd("image"),
            Orientationd("image", axcodes="RAS", labels=None),
            CropForegroundd("image", source_key="image", select_fn=lambda x: x != 0, allow_smaller=True),
            SpatialPadd("image", (16, 16, 16)),
        ]
    )
    image = chain(loaded(array, affine))["image"]
    out = restore_to_grid(image, image.affine, affine, array.shape, fill=0.0)
    np.testing.assert_array_equal(out[0].numpy(), array)


@pytest.mark.parametrize("rotation", [None, ROTATION], ids=["straight", "oblique"])
def test_ramp_is_interpolated_exactly_on_a_resampled_grid(rotation):
    # a function linear in space is what linear interpolation gives back without error
    coarse = affine_of("LPS", spacing=(2.0, 2.0, 3.0), rotation=rotation)
    fine = affine_of("RAS", spacing=(0.9, 1.1, 1.3))
    index = np.moveaxis(np.indices((12, 11, 10)), 0, -1)
    slope = np.array([0.3, -0.7, 0.2])
    ramp = (nib.affines.apply_affine(coarse, index) @ slope).astype(np.float32)
    centre = coarse @ [5.5, 5.0, 4.5, 1] - fine @ [4.5, 4.0, 4.0, 0]
    fine[:3, 3] = centre[:3]  # the fine grid lies in the middle of the coarse one
    out = restore_to_grid(torch.from_numpy(ramp)[None], coarse, fine, (10, 9, 9))
    expected = nib.affines.apply_affine(fine, np.moveaxis(np.indices((10, 9, 9)), 0, -1)) @ slope
    np.testing.assert_allclose(out[0].numpy(), expected, atol=2e-4)


def test_axis_by_axis_equals_three_dimensional_sampling():
    x = torch.randn(2, 8, 9, 7, generator=torch.Generator().manual_seed(0))
    network, original = affine_of("RAS", (2, 2, 2)), affine_of("PLI", (1.3, 0.9, 2.6))
    original[:3, 3] = (network @ [7, 8, 6, 1])[:3]
    tilt = np.eye(4)
    tilt[:3, :3] = nib.eulerangles.euler2mat(1e-3, 0, 0)  # too small to matter, large enough for the other way
    straight = restore_to_grid(x, network, original, (18, 16, 5), fill="border")
    sampled = restore_to_grid(x, network, original @ tilt, (18, 16, 5), fill="border")
    assert (straight - sampled).abs().max() < 0.1
    assert (straight - sampled).abs().mean() < 0.01


def test_agrees_with_monai_invertd_after_resampling():
    index = np.indices((20, 24, 16))
    array = (np.sin(index[0] / 4) + np.cos(index[1] / 5) + np.sin(index[2] / 3)).astype(np.float32)
    affine = affine_of("LPS", spacing=(1.0, 1.0, 1.6))
    chain = Compose(
        [
            EnsureChannelFirstd("image"),
            Orientationd("image", axcodes="RAS", labels=None),
            Spacingd("image", pixdim=(1.3, 1.3, 1.3)),
        ]
    )
    data = chain(loaded(array, affine))
    data["pred"] = data["image"].clone()
    ours = RestoreGridd()(data)["pred"]
    theirs = Invertd("pred", transform=chain, orig_keys="image", nearest_interp=False, to_tensor=True)(data)["pred"]
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours.affine, affine, atol=1e-6)
    np.testing.assert_allclose(ours.as_tensor(), theirs.as_tensor(), atol=1e-4)


@pytest.mark.parametrize("rotation", [None, ROTATION], ids=["straight", "oblique"])
@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_slabs_equal_the_whole(rotation, mode):
    x = torch.randn(3, 8, 9, 7, generator=torch.Generator().manual_seed(0))
    network, original = affine_of("RAS", (2, 2, 2)), affine_of("ALS", (1.3, 0.9, 2.6), rotation)
    whole = restore_to_grid(x, network, original, (13, 16, 7), mode)
    torch.testing.assert_close(
        restore_to_grid(x, network, original, (13, 16, 7), mode, slab_voxels=200), whole, rtol=0, atol=0
    )
    labels = restore_to_grid(x, network, original, (13, 16, 7), mode, argmax=True, slab_voxels=1)
    assert labels.dtype == torch.uint8
    assert torch.equal(labels[0].long(), whole.argmax(0))


def test_nearest_keeps_label_values_and_dtype():
    label = torch.randint(0, 2, (1, 8, 8, 8), dtype=torch.uint8) * 7
    out = restore_to_grid(label, affine_of(spacing=(2, 2, 2)), affine_of(spacing=(1, 1, 1)), (15, 15, 15), "nearest")
    assert out.dtype == torch.uint8
    assert set(out.unique().tolist()) == {0, 7}


def test_background_wins_where_nothing_was_predicted():
    logits = torch.stack([torch.full((4, 4, 4), -3.0), torch.full((4, 4, 4), 5.0)])  # all foreground
    affine = np.eye(4)
    affine[:3, 3] = 3  # the crop starts at voxel (3, 3, 3)
    label = restore_to_grid(logits, affine, np.eye(4), (10, 10, 10), argmax=True)[0]
    expected = torch.zeros(10, 10, 10, dtype=torch.uint8)
    expected[3:7, 3:7, 3:7] = 1
    assert torch.equal(label, expected)


def test_half_a_voxel_beyond_the_last_centre_is_still_inside():
    logits = torch.stack([torch.zeros(4, 4, 4), torch.ones(4, 4, 4)])
    coarse, fine = np.diag([2.0, 2, 2, 1]), np.eye(4)
    fine[:3, 3] = -1.0  # fine centres from -1 to 7 mm, coarse ones from 0 to 6 mm
    assert restore_to_grid(logits, coarse, fine, (9, 9, 9), argmax=True).min() == 1


def test_two_dimensional_image_returns():
    image = torch.arange(12.0).reshape(1, 3, 4)
    out = restore_to_grid(
        image.flip(1), np.diag([-1.0, 1, 1, 1]) + np.array([[0, 0, 0, 2.0]] + [[0] * 4] * 3), np.eye(4), (3, 4)
    )
    assert torch.equal(out, image)


def test_singular_affine_is_refused():
    with pytest.raises(GeometryError, match="not finite, or cannot be inverted"):
        restore_to_grid(torch.zeros(1, 2, 2, 2), np.diag([1.0, 0, 1, 1]), np.eye(4), (2, 2, 2))


def test_image_without_meta_is_refused():
    with pytest.raises(GeometryError, match="no affine, original_affine, spatial_shape"):
        RestoreGridd()({"image": torch.zeros(1, 2, 2, 2), "pred": torch.zeros(1, 2, 2, 2)})


def test_prediction_of_another_shape_is_refused():
    data = EnsureChannelFirstd("image")(loaded(np.zeros((4, 4, 4), np.float32), np.eye(4)))
    with pytest.raises(GeometryError, match=r"\(2, 2, 2\), not \(4, 4, 4\)"):
        RestoreGridd()({**data, "pred": torch.zeros(1, 2, 2, 2)})


def test_collated_and_saved_as_in_an_evaluator(tmp_path):
    array = np.random.default_rng(0).normal(size=(9, 12, 7)).astype(np.float32)
    affine = affine_of("LPS", rotation=ROTATION)
    nib.save(nib.Nifti1Image(array, affine), tmp_path / "case.nii.gz")
    chain = Compose(
        [
            LoadImaged("image"),
            EnsureChannelFirstd("image"),
            Orientationd("image", axcodes="RAS", labels=None),
            SpatialPadd("image", (16, 16, 16)),
        ]
    )
    batch = next(iter(DataLoader(Dataset([{"image": str(tmp_path / "case.nii.gz")}], chain), batch_size=1)))
    batch["pred"] = (batch["image"] > 0).float()
    save = SaveImaged(
        "pred",
        output_dir=tmp_path / "out",
        output_postfix="",
        separate_folder=False,
        resample=False,
        output_dtype=np.uint8,
        print_log=False,
    )
    for item in decollate_batch(batch):
        Compose([RestoreGridd(mode="nearest"), save])(item)
    saved = nib.load(tmp_path / "out" / "case.nii.gz")
    np.testing.assert_allclose(saved.affine, nib.load(tmp_path / "case.nii.gz").affine, atol=1e-6)
    np.testing.assert_array_equal(saved.get_fdata() > 0, array > 0)


def test_unbatched_output_of_a_label_server_lies_on_the_image():
    # the server hands over the image with its meta and a plain tensor as prediction
    array = np.random.default_rng(0).normal(size=(9, 12, 7)).astype(np.float32)
    data = Compose([EnsureChannelFirstd("image"), Orientationd("image", axcodes="RAS", labels=None)])(
        loaded(array, affine_of("PIR"))
    )
    data["pred"] = data["image"][None].as_tensor()[0]
    np.testing.assert_array_equal(RestoreGridd()(data)["pred"][0].numpy(), array)


def test_a_soft_mask_brought_back_to_1_mm_is_nearer_than_a_hard_one():
    axis = np.arange(64)
    x, y, z = np.meshgrid(axis, axis, axis, indexing="ij")
    fine = (((x - 30.5) / 22) ** 2 + ((y - 33) / 26) ** 2 + ((z - 31) / 19) ** 2 < 1 + 0.1 * np.sin(x / 3)).astype(
        float
    )
    share = fine.reshape(32, 2, 32, 2, 32, 2).mean((1, 3, 5))  # of each voxel of 2 mm that is inside
    coarse = np.diag([2.0, 2.0, 2.0, 1.0])
    coarse[:3, 3] = 0.5  # its first voxel covers the first two of 1 mm

    def dice(share_of_brain, mode):
        x = torch.from_numpy(np.stack([1 - share_of_brain, share_of_brain])).float()
        found = restore_to_grid(x, coarse, np.eye(4), fine.shape, mode=mode).argmax(0).numpy()
        return 2 * (found * fine).sum() / (found.sum() + fine.sum())

    soft, hard = dice(share, "linear"), dice((share > 0.5).astype(float), "nearest")
    assert hard < 0.985 < 0.99 < soft
