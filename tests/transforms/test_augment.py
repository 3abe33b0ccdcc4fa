"""Batch-wise augmentation: geometry by hand, image and label always alike."""

import math

import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from decathlete.errors import ConfigError
from decathlete.transforms import BatchAugment
from decathlete.transforms.moves import rotation_matrices

STILL = {
    "prob": 0.0,
    "translation": 0.0,
    "intensity_scale": 0.0,
    "intensity_shift": 0.0,
    "noise_prob": 0.0,
    "gamma_prob": 0.0,
}


def batch_of(label: torch.Tensor) -> dict:
    return {"image": label.float().clone(), "label": label, "case_id": ["a"] * len(label)}


def test_without_randomness_the_centre_is_cropped():
    image = torch.arange(6 * 6.0).view(1, 1, 6, 6)
    out = BatchAugment([2, 4], label_mode="nearest", **STILL)({"image": image, "label": image})
    assert torch.allclose(out["image"], image[:, :, 2:4, 1:5], atol=1e-4)
    assert out["label"].shape == (1, 1, 2, 4)


def test_image_and_label_move_alike():
    torch.manual_seed(3)
    label = torch.zeros(4, 1, 24, 24, 24)
    label[:, :, 6:15, 8:20, 10:16] = 1
    quiet = STILL | {"prob": 1.0, "translation": 3.0}
    out = BatchAugment([20, 20, 20], 2, mirror_axes=[0, 1, 2], elastic=1.0, **quiet)(batch_of(label))
    assert torch.allclose(out["image"][:, 0], out["label"][:, 1], atol=1e-5)
    assert not torch.allclose(out["image"][0], out["image"][1])


def test_soft_labels_sum_to_one_and_keep_the_volume_of_a_centred_cube():
    torch.manual_seed(0)
    label = torch.zeros(8, 1, 32, 32, 32)
    label[:, :, 12:20, 12:20, 12:20] = 1
    turned = BatchAugment([32, 32, 32], 2, rotation=0.6, scale=0.0, **(STILL | {"prob": 1.0}))(batch_of(label))["label"]
    assert torch.allclose(turned.sum(1), torch.ones(8, 32, 32, 32), atol=1e-5)
    assert torch.allclose(turned[:, 1].sum((1, 2, 3)), torch.full((8,), 512.0), rtol=0.03)


def test_mirror_reverses_the_axis_in_about_half_of_the_samples():
    torch.manual_seed(0)
    label = torch.zeros(200, 1, 4, 4)
    label[:, :, 0] = 1
    out = BatchAugment([4, 4], 2, mirror_axes=[0], **STILL)(batch_of(label))["label"][:, 1]
    mirrored = out[:, 3, 0] > 0.5
    assert 70 < int(mirrored.sum()) < 130
    assert torch.equal(mirrored, ~(out[:, 0, 0] > 0.5))


def test_rotation_turns_the_body_and_not_the_voxels():
    # a quarter turn of a bar 9 voxels of 1 mm long and one voxel of 4 mm wide: 3 voxels of 4 mm long (centres at -4, 0
    # and 4 mm), and across a ramp 4 mm wide at half height: 3 voxels of 1 mm above it, two on it
    label = torch.zeros(1, 1, 17, 17)
    label[:, :, 4:13, 8] = 1
    augment = BatchAugment([17, 17], 2, spacing=[1.0, 4.0], scale=0.0, **(STILL | {"prob": 1.0}))
    augment.move._matrices = lambda samples: rotation_matrices(torch.full((samples, 1), math.pi / 2))
    turned = augment(batch_of(label))["label"][0, 1]
    assert turned[8].gt(0.51).sum() == 3
    assert turned[:, 8].gt(0.51).sum() == 3


def test_slices_can_be_turned_within_themselves_only():
    augment = BatchAugment([16, 16, 4], 2, rotation=(0.0, 0.0, 0.4), scale=0.0, **(STILL | {"prob": 1.0}))
    matrices = augment.move._matrices(50)
    assert torch.equal(matrices[:, 2], torch.tensor([0.0, 0.0, 1.0]).expand(50, 3))
    assert (matrices[:, 0, 1].abs() > 0.01).any()
    with pytest.raises(ConfigError, match="expected one number or 3"):
        BatchAugment([16, 16, 4], 2, rotation=(0.1, 0.4))


def test_rotation_matrices_are_right_handed_turns():
    x, y, z = torch.eye(3)
    quarter = math.pi / 2
    about_x, about_y, about_z = rotation_matrices(torch.diag(torch.full((3,), quarter)))
    assert torch.allclose(about_x @ y, z, atol=1e-6)
    assert torch.allclose(about_y @ z, x, atol=1e-6)
    assert torch.allclose(about_z @ x, y, atol=1e-6)


def test_the_seed_repeats_a_batch():
    label = torch.randint(0, 3, (2, 1, 12, 12, 12))
    augment = BatchAugment([8, 8, 8], 3, elastic=0.5)
    torch.manual_seed(5)
    first = augment(batch_of(label))["image"]
    torch.manual_seed(5)
    assert torch.equal(first, augment(batch_of(label))["image"])


def test_other_keys_are_passed_on_and_the_batch_is_left_alone():
    label = torch.ones(1, 1, 8, 8)
    batch = batch_of(label)
    out = BatchAugment([8, 8], 2)(batch)
    assert out["case_id"] == ["a"]
    assert torch.equal(batch["image"], torch.ones(1, 1, 8, 8))


def test_constant_image_stays_finite():
    out = BatchAugment([8, 8], 2, gamma_prob=1.0)(batch_of(torch.ones(3, 1, 8, 8)))
    assert bool(torch.isfinite(out["image"]).all())


ONE_BY_ONE = ("blur", "contrast", "low_resolution")


def changed(image, name, limits, **more):
    """``image`` after one change in every sample and nothing else."""
    batch = {"image": image, "label": torch.zeros(len(image), 1, *image.shape[2:])}
    augment = BatchAugment(image.shape[2:], 2, **STILL, **{name: limits, f"{name}_prob": 1.0}, **more)
    return augment(batch)["image"]


@pytest.mark.parametrize("shape", [(2, 3, 15, 12), (2, 1, 15, 12, 9)])
def test_blur_is_scipys(shape):
    image = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    out = changed(image, "blur", [1.3, 1.3])
    expected = gaussian_filter(image.numpy(), (0, 0, *[1.3] * (len(shape) - 2)), mode="nearest", radius=4)
    assert torch.allclose(out, torch.from_numpy(expected), atol=1e-4)


def test_contrast_stretches_about_each_channels_mean():
    image = torch.tensor([[[[0.0, 4], [4, 8]], [[10, 10], [10, 30]]]])  # means 4 and 15
    expected = torch.tensor([[[[-2.0, 4], [4, 10]], [[7.5, 7.5], [7.5, 37.5]]]])
    assert torch.allclose(changed(image, "contrast", [1.5, 1.5], contrast_keep_range=False), expected, atol=1e-4)
    assert torch.allclose(changed(image, "contrast", [1.5, 1.5]), image, atol=1e-4)
    halved = torch.tensor([[[[2.0, 4], [4, 6]], [[12.5, 12.5], [12.5, 22.5]]]])
    assert torch.allclose(changed(image, "contrast", [0.5, 0.5]), halved, atol=1e-4)


@pytest.mark.parametrize(("shape", "factor"), [((2, 2, 16, 11), 0.5), ((1, 1, 12, 10, 7), 0.7), ((1, 1, 9, 9), 1.0)])
def test_low_resolution_is_torchs_nearest_and_linear_interpolation(shape, factor):
    image = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    coarse = F.interpolate(image, size=[round(n * factor) for n in shape[2:]], mode="nearest-exact")
    mode = "trilinear" if len(shape) == 5 else "bilinear"
    expected = F.interpolate(coarse, size=shape[2:], mode=mode, align_corners=False)
    assert torch.allclose(changed(image, "low_resolution", [factor, factor]), expected, atol=1e-4)


def test_thick_slices_lie_along_one_axis_of_each_sample():
    torch.manual_seed(0)
    image = torch.randn(24, 1, 16, 16)
    out = changed(image, "low_resolution", [0.5, 0.5], low_resolution_axes="one")
    ways = set()
    for before, after in zip(image, out, strict=True):
        for axis, size in enumerate([(8, 16), (16, 8)]):
            coarse = F.interpolate(before[None], size=size, mode="nearest-exact")
            thick = F.interpolate(coarse, size=(16, 16), mode="bilinear", align_corners=False)[0]
            ways |= {axis} if torch.allclose(after, thick, atol=1e-4) else set()
    assert ways == {0, 1}


@pytest.mark.parametrize("shape", [(3, 2, 14, 10), (2, 1, 8, 9, 7)])
def test_a_curve_keeps_the_order_of_intensities_and_their_extremes(shape):
    torch.manual_seed(1)
    image = torch.randn(shape)
    out = changed(image, "curve", 0.7)
    for before, after in zip(image.flatten(0, 1), out.flatten(0, 1), strict=True):
        order = before.flatten().argsort()
        assert bool((after.flatten()[order].diff() > 0).all())
        assert torch.allclose(after.aminmax().min, before.aminmax().min, atol=1e-4)
        assert torch.allclose(after.aminmax().max, before.aminmax().max, atol=1e-4)
    assert float((out - image).abs().max()) > 0.05
    assert torch.allclose(changed(image, "curve", 0.7, curve_pieces=1), image, atol=1e-4)


def test_a_bias_field_multiplies_the_distance_from_the_smallest_value():
    torch.manual_seed(0)
    image = torch.rand(8, 2, 12, 12, 12) + 3
    out = changed(image, "bias", 0.5)
    low = image.amin((2, 3, 4), keepdim=True)
    field = ((out - low) / (image - low).clamp_min(1e-6)).log()[..., 1:-1, 1:-1, 1:-1]
    known = (image - low > 0.05)[..., 1:-1, 1:-1, 1:-1]
    both = known[:, 0] & known[:, 1]
    assert torch.allclose(field[:, 0][both], field[:, 1][both], atol=1e-2)  # one field for all channels
    assert len({round(float(f[k].mean()), 3) for f, k in zip(field, known, strict=True)}) == 8
    steps = field.diff(dim=2).abs()[known[:, :, 1:] & known[:, :, :-1]]
    assert float(steps.max()) < 0.5


def test_shares_are_moved_as_soft_labels_are():
    label = torch.randint(0, 3, (4, 1, 10, 12), generator=torch.Generator().manual_seed(0))
    shares = torch.cat([label == 1, label == 2], 1).float()
    outputs = []
    for mode, given in (("soft", label), ("shares", shares)):
        torch.manual_seed(2)
        outputs.append(BatchAugment([8, 8], 3, elastic=1.0, label_mode=mode)({"image": label, "label": given})["label"])
    assert torch.allclose(*outputs, atol=1e-6)
    half = BatchAugment([8, 8], 2, label_mode="shares", **STILL)
    out = half({"image": label, "label": torch.full((4, 1, 10, 12), 0.25)})["label"]
    assert torch.allclose(out, torch.tensor([0.75, 0.25]).view(1, 2, 1, 1).expand(4, 2, 8, 8), atol=1e-4)


@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_each_sample_draws_whether_and_how_much(name):
    torch.manual_seed(0)
    image = torch.randn(1, 1, 12, 12).repeat(64, 1, 1, 1)
    batch = {"image": image, "label": (image > 0).float()}
    augment = BatchAugment([12, 12], 2, **STILL, **{f"{name}_prob": 0.5})
    out = augment(batch)
    different = [not torch.allclose(sample, image[0], atol=1e-4) for sample in out["image"]]
    assert 16 < sum(different) < 48
    assert len({float(sample.std()) for sample in out["image"]}) > 5  # 12 voxels become 6 to 12
    assert torch.equal(out["label"][:, 1:].round(), batch["label"])


@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_what_is_off_draws_no_random_number(name):
    label = torch.randint(0, 2, (2, 1, 8, 8))
    augment = BatchAugment([8, 8], 2)
    states = []
    for limits in ((0.5, 1.0), (0.25, 0.75)):
        setattr(augment.intensities, name, limits)
        torch.manual_seed(0)
        augment(batch_of(label))
        states.append(torch.get_rng_state())
    torch.manual_seed(0)
    setattr(augment.intensities, f"{name}_prob", 1e-9)
    augment(batch_of(label))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], torch.get_rng_state())


def test_all_changes_together_repeat_with_the_seed():
    label = torch.randint(0, 3, (2, 2, 12, 12, 12))[:, :1]
    augment = BatchAugment([8, 8, 8], 3, blur_prob=1.0, contrast_prob=1.0, low_resolution_prob=1.0)
    outputs = []
    for _ in range(2):
        torch.manual_seed(5)
        outputs.append(augment(batch_of(label))["image"])
    assert torch.equal(*outputs)
    assert bool(torch.isfinite(outputs[0]).all())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"patch_size": [8]}, "2 or 3 numbers"),
        ({"patch_size": [8, 8], "label_mode": "cubic"}, "cubic"),
        ({"patch_size": [8, 8]}, "num_classes"),
        ({"patch_size": [8, 8], "num_classes": 2, "mirror_axes": [2]}, "axes 0 to 1"),
        ({"patch_size": [8, 8], "num_classes": 2, "translation": [1, 2, 3]}, "one per axis"),
        ({"patch_size": [8, 8], "num_classes": 2, "blur": [2.0, 1.0]}, "smallest and a largest"),
        ({"patch_size": [8, 8], "num_classes": 2, "low_resolution": [0.5, 1.5]}, "at most 1"),
        ({"patch_size": [8, 8], "num_classes": 2, "low_resolution_axes": "two"}, "two"),
        ({"patch_size": [8, 8], "num_classes": 2, "curve_pieces": 0}, "1 piece or more"),
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments, words):
    with pytest.raises(ConfigError, match=words):
        BatchAugment(**arguments)


def test_padding_with_the_smallest_value_of_each_sample_and_channel():
    image = torch.rand(2, 2, 8, 8) + torch.tensor([[[[-7.0]], [[3.0]]], [[[0.0]], [[-2.0]]]])
    steady = {
        "intensity_scale": 0.0,
        "intensity_shift": 0.0,
        "noise": 0.0,
        "gamma": 0.0,
        "prob": 0.0,
        "translation": 0.0,
    }
    augment = BatchAugment((12, 12), num_classes=2, padding="min", **steady)
    found = augment({"image": image, "label": torch.zeros(2, 1, 8, 8)})["image"]
    torch.testing.assert_close(found[:, :, 2:-2, 2:-2], image)
    torch.testing.assert_close(found[:, :, 0, 0], image.amin((2, 3)))
