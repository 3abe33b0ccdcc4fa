"""Resampling against SciPy's own, by hand, and in space."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Spacingd as MonaiSpacingd
from scipy import ndimage

from decathlete.errors import ConfigError, GeometryError
from decathlete.transforms import ResampleSpacingd, RestoreGridd, Spacingd, resample_to_spacing
from decathlete.transforms.resample import thick_axis


def noise(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32))


def meta(x: torch.Tensor, affine: np.ndarray) -> MetaTensor:
    facts = {"original_affine": affine, "spatial_shape": np.array(x.shape[1:])}
    return MetaTensor(x, affine=torch.from_numpy(affine), meta=facts)


@pytest.mark.parametrize("factor", [2, 0.5])
def test_cubic_values_are_scipys(factor):
    x = noise(12, 10, 8)
    found = resample_to_spacing(x, (1, 1, 1), (1 / factor,) * 3)
    wanted = ndimage.zoom(x[0].numpy(), factor, order=3, mode="nearest", grid_mode=True)
    np.testing.assert_allclose(found[0], wanted, atol=2e-5)


def test_linear_values_are_scipys_along_one_axis():
    x = noise(9, 8, 12)
    found = resample_to_spacing(x, (1, 1, 2), (1, 1, 1), "linear")
    np.testing.assert_allclose(
        found[0], ndimage.zoom(x[0].numpy(), (1, 1, 2), order=1, mode="nearest", grid_mode=True), atol=1e-5
    )


def test_a_thick_axis_takes_the_nearest_slice():
    x = noise(8, 8, 4)
    found = resample_to_spacing(x, (1, 1, 4), (1, 1, 2))
    assert torch.equal(found, x.repeat_interleave(2, dim=3))
    interpolated = resample_to_spacing(x, (1, 1, 3), (1, 1, 1.5))  # exactly 3 is not over 3
    assert not torch.equal(interpolated, found)


def test_the_targets_thick_axis_counts_where_the_scan_has_none():
    x = noise(8, 8, 8)
    found = resample_to_spacing(x, (1, 1, 1), (1, 1, 4))
    assert torch.equal(found, x[..., [2, 6]])  # places 1.5 and 5.5; a half goes to the even voxel


@pytest.mark.parametrize(
    ("spacing", "axis"), [((1, 1, 3), None), ((1, 1, 3.1), 2), ((5, 1, 1), 0), ((5, 5, 1), None), ((1, 1, 1), None)]
)
def test_an_axis_is_thick_that_alone_is_over_three_times_the_finest(spacing, axis):
    assert thick_axis(spacing) == axis


def test_labels_keep_their_values_and_their_middle():
    x = torch.zeros(1, 12, 12, 12, dtype=torch.uint8)
    x[:, 3:9, 3:9, 3:9] = 2
    x[:, 5:7, 5:7, 5:7] = 7
    found = resample_to_spacing(x, (1, 1, 1), (0.75, 0.75, 0.75), "label")
    assert found.dtype == torch.uint8
    assert found.unique().tolist() == [0, 2, 7]
    assert torch.equal(found, found.flip(1, 2, 3))
    assert int((found > 0).sum()) == 8**3  # 6 mm of 0.75


def test_label_borders_are_linear_where_the_nearest_voxel_would_be_stairs():
    x = torch.tensor([0, 1, 1, 0, 0, 1], dtype=torch.uint8).view(1, 1, 1, 6)
    found = resample_to_spacing(x, (1, 1, 2), (1, 1, 1), "label")
    assert found.flatten().tolist() == [0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1]


def test_a_scan_of_the_wanted_spacing_stays_as_it_is():
    x = noise(5, 6, 7)
    assert torch.equal(resample_to_spacing(x, (1, 1.0005, 2), (1, 1, 2)), x)


def test_a_ramp_in_space_stays_that_ramp():
    affine = np.diag([-2.0, 1.5, 3.0, 1.0])
    affine[:3, 3] = [10, -20, 5]
    index = np.stack(np.meshgrid(*map(np.arange, (16, 18, 12)), indexing="ij"))
    where = np.einsum("ij,jxyz->ixyz", affine[:3, :3], index) + affine[:3, 3, None, None, None]
    x = meta(torch.from_numpy(where.sum(0, keepdims=True).astype(np.float32)), affine)
    out = ResampleSpacingd("image", (1.0, 1.0, 1.7), "linear")({"image": x})["image"]
    moved = out.affine.numpy()
    index = np.stack(np.meshgrid(*map(np.arange, out.shape[1:]), indexing="ij"))
    wanted = (np.einsum("ij,jxyz->ixyz", moved[:3, :3], index) + moved[:3, 3, None, None, None]).sum(0)
    inner = (slice(2, -2),) * 3
    np.testing.assert_allclose(out[0].numpy()[inner], wanted[inner], atol=1e-3)
    assert np.linalg.norm(moved[:3, :3], axis=0) == pytest.approx([1.0, 1.0, 1.7])


def test_predictions_return_to_the_scans_grid():
    x = meta(noise(20, 18, 6), np.diag([0.8, 0.8, 5.0, 1.0]))
    image = ResampleSpacingd("image", (1.0, 1.0, 2.0))({"image": x})["image"]
    assert image.shape == (1, 16, 14, 15)
    restored = RestoreGridd("pred", "image")({"image": image, "pred": image.as_tensor()})["pred"]
    assert restored.shape == (1, 20, 18, 6)
    smooth = meta(torch.ones(1, 20, 18, 6), np.diag([0.8, 0.8, 5.0, 1.0]))
    assert torch.allclose(ResampleSpacingd("i", (1, 1, 2))({"i": smooth})["i"].as_tensor(), torch.tensor(1.0))


def test_the_scan_that_came_in_is_left_alone():
    scan = meta(noise(6, 6, 6), np.eye(4))
    for _ in range(2):
        assert ResampleSpacingd("image", (0.5, 0.5, 0.5))({"image": scan})["image"].shape == (1, 12, 12, 12)
    assert torch.equal(scan.affine, torch.eye(4, dtype=torch.float64))


def test_each_key_has_its_mode():
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    both = {"image": meta(noise(6, 6, 6), affine), "label": meta((noise(6, 6, 6) > 0).to(torch.uint8), affine)}
    out = ResampleSpacingd(["image", "label"], (0.5, 0.5, 0.5), ["cubic", "label"])(both)
    assert out["label"].unique().tolist() == [0, 1]
    assert out["image"].shape == out["label"].shape == (1, 12, 12, 12)


def test_wrong_use_is_named():
    with pytest.raises(ConfigError, match="cubic, linear, label"):
        ResampleSpacingd("image", (1, 1, 1), "bilinear")
    with pytest.raises(ConfigError, match="three spacings"):
        ResampleSpacingd("image", (1, 1))
    with pytest.raises(GeometryError, match="affine"):
        ResampleSpacingd("image", (1, 1, 1))({"image": torch.zeros(1, 4, 4, 4)})


def test_spacing_lets_alone_what_else_is_in_a_case():
    """MONAI Label's request names the image's file under a key that begins with the image's."""
    image = MetaTensor(torch.rand(1, 6, 5, 4), meta={"filename_or_obj": "scan.nii.gz"})
    case = {"image": image, "image_path": "scan.nii.gz", "image_meta_dict": {}, "device": "cpu"}
    out = Spacingd("image", (2.0, 1.0, 1.0))(case)
    assert {key: out[key] for key in ("image_path", "device")} == {"image_path": "scan.nii.gz", "device": "cpu"}
    assert out["image"].equal(MonaiSpacingd("image", (2.0, 1.0, 1.0))({"image": image})["image"])
