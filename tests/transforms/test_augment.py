"""Batch-wise augmentation: geometry by hand, image and label always alike."""

import math

import pytest
import torch

from decathlete.errors import ConfigError
from decathlete.transforms import BatchAugment
from decathlete.transforms.augment import rotation_matrices

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
    augment._matrices = lambda samples: rotation_matrices(torch.full((samples, 1), math.pi / 2))
    turned = augment(batch_of(label))["label"][0, 1]
    assert turned[8].gt(0.51).sum() == 3
    assert turned[:, 8].gt(0.51).sum() == 3


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


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"patch_size": [8]}, "2 or 3 numbers"),
        ({"patch_size": [8, 8], "label_mode": "cubic"}, "cubic"),
        ({"patch_size": [8, 8]}, "num_classes"),
        ({"patch_size": [8, 8], "num_classes": 2, "mirror_axes": [2]}, "axes 0 to 1"),
        ({"patch_size": [8, 8], "num_classes": 2, "translation": [1, 2, 3]}, "one per axis"),
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments, words):
    with pytest.raises(ConfigError, match=words):
        BatchAugment(**arguments)
