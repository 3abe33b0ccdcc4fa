"""The window on a head: where it lies, what it holds, and the way back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd, Spacingd

from decathlete.errors import ConfigError, DataError, GeometryError
from decathlete.transforms import CropHeadd, RestoreGridd

SIZE = (48, 64, 80)


def scan(shape=(60, 70, 90), top=80, middle=(26, 40), spacing=2.0, noise=2.0) -> dict[str, MetaTensor]:
    """A ball of 20 voxels radius below ``top`` on a neck and shoulders, and the ball's label."""
    x, y, z = np.meshgrid(*[np.arange(n) for n in shape], indexing="ij")
    ball = (x - middle[0]) ** 2 + (y - middle[1]) ** 2 + (z - (top - 20)) ** 2 <= 20**2
    neck = ((x - middle[0] - 8) ** 2 + (y - middle[1] + 6) ** 2 < 9**2) & (z < top - 20)
    image = np.abs(np.random.default_rng(0).normal(0, noise, shape)) + 100 * (ball | neck | (z < 8))
    affine = torch.tensor(np.diag([spacing] * 3 + [1.0]))
    affine[:3, 3] = torch.tensor([-7.0, 11.0, 3.0])
    return {
        key: MetaTensor(torch.tensor(array[None], dtype=torch.float32), affine=affine)
        for key, array in (("image", image), ("label", ball))
    }


def places(label: torch.Tensor) -> list[tuple[int, int]]:
    """First and last voxel of a label along each axis."""
    return [(int(i.min()), int(i.max())) for i in torch.nonzero(label[0], as_tuple=True)]


def test_head_lies_below_the_windows_top_and_in_its_middle():
    case = CropHeadd(["image", "label"], SIZE, above_mm=10, depth_mm=60)(scan())
    assert case["image"].shape == case["label"].shape == (1, *SIZE)
    assert places(case["label"]) == [(4, 44), (12, 52), (35, 75)]  # the ball's first slice is too small


@pytest.mark.parametrize(("shape", "top", "middle"), [((60, 70, 90), 62, (26, 40)), ((90, 80, 120), 100, (50, 33)),
                                                      ((46, 64, 70), 68, (22, 30))])  # fmt: skip
def test_window_does_not_depend_on_the_field_of_view(shape, top, middle):
    case = CropHeadd(["image", "label"], SIZE, depth_mm=60)(scan(shape, top, middle))
    assert places(case["label"]) == [(4, 44), (12, 52), (35, 75)]


def test_distances_are_millimetres():
    case = CropHeadd(["image", "label"], SIZE, above_mm=10, depth_mm=30)(scan(spacing=1.0))
    assert places(case["label"])[2] == (32, 72)


def test_beyond_the_scan_the_window_holds_the_smallest_value_and_no_label():
    data = scan()
    data["image"] -= 1000
    case = CropHeadd(["image", "label"], (96, 64, 80), depth_mm=60)(data)
    assert (case["image"][0, :5] == data["image"].min()).all()
    assert case["label"].sum() == data["label"].sum()


def test_way_back_is_exact():
    data = scan()
    case = CropHeadd(["image", "label"], SIZE, depth_mm=60)(data)
    pred = torch.cat([1 - case["label"], case["label"]])
    image = case["image"]
    image.meta["original_affine"], image.meta["spatial_shape"] = data["image"].affine, np.array(data["image"].shape[1:])
    back = RestoreGridd("pred", orig_keys="image")({"pred": pred, "image": image})["pred"]
    assert torch.equal(back.argmax(0), data["label"][0].long())


def test_scans_that_are_none_and_settings_that_cannot_be_are_named():
    crop = CropHeadd(["image", "label"], SIZE)
    with pytest.raises(DataError, match="the scan is empty"):
        crop({"image": torch.full((1, 9, 9, 9), 5.0), "label": torch.zeros(1, 9, 9, 9)})
    with pytest.raises(GeometryError, match="three axes"):
        crop({"image": torch.zeros(1, 9, 9), "label": torch.zeros(1, 9, 9)})
    with pytest.raises(GeometryError, match="differ in shape"):
        crop({"image": scan()["image"], "label": torch.zeros(1, 9, 9, 9)})
    for settings in ({"spatial_size": (3, 4)}, {"spatial_size": (3, 4, 0)}, {"depth_mm": 0}, {"above_mm": -1}):
        with pytest.raises(ConfigError, match="CropHeadd"):
            CropHeadd("image", **{"spatial_size": SIZE, **settings})


@pytest.mark.parametrize("name", ["abide_pitt50038", "mni152_2mm"])
def test_real_brains_lie_in_the_window_with_room_around(shared, name):
    folder = shared / "data" / "whole_head"
    keys = ["image", "label"]
    chain = Compose(
        [
            LoadImaged(keys, reader="decathlete.transforms.NiftiReader"),
            EnsureChannelFirstd(keys),
            Orientationd(keys, axcodes="RAS", labels=None),
            Spacingd(keys, pixdim=(2.0, 2.0, 2.0), mode=["bilinear", "nearest"]),
        ]
    )
    case = chain({"image": str(folder / f"{name}_T1w.nii.gz"), "label": str(folder / f"{name}_brainmask.nii.gz")})
    volume = case["label"].sum()
    case = CropHeadd(keys, (96, 128, 160))(case)
    assert case["label"].sum() == volume
    assert all(
        first >= 4 and last < n - 4 for (first, last), n in zip(places(case["label"]), (96, 128, 160), strict=True)
    )
