"""The bundles of slices: the order of their chains, their losses, and slices that no network saw."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose

from decathlete import Predictor
from decathlete.bundle.configs import load


def volume(path: Path, array: np.ndarray, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Path:
    nib.save(nib.Nifti1Image(array, np.diag([*spacing, 1.0])), path)
    return path


def random_weights(bundle: str, folder: Path) -> Path:
    torch.manual_seed(0)
    network = load(bundle, "inference").get_parsed_content("network_def")
    torch.save(network.state_dict(), folder / "model.pt")
    return folder / "model.pt"


def test_heart_crops_before_it_normalizes(tmp_path):
    inside = np.random.default_rng(0).normal(100, 10, (256, 256, 4)).astype(np.float32)
    image = np.full((320, 320, 4), 5000, np.float32)  # a border that would shift the mean
    image[32:-32, 32:-32] = inside
    chain = Compose(load("heart", "inference").get_parsed_content("deterministic_transforms"))
    found = chain({"image": str(volume(tmp_path / "scan.nii.gz", image))})["image"][0].numpy()
    np.testing.assert_allclose(found, (inside - inside.min()) / (inside.max() - inside.min()), atol=1e-4)


def test_heart_takes_volumes_that_are_cropped_already_whole(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (171, 134, 5)).astype(np.uint8)
    chain = Compose(load("heart", "inference").get_parsed_content("deterministic_transforms"))
    assert chain({"image": str(volume(tmp_path / "scan.nii.gz", image))})["image"].shape == (1, 171, 134, 5)


@pytest.mark.parametrize(
    ("bundle", "name", "loss"),
    [
        ("lung", "bce", "BCEWithLogitsLoss"),
        ("lung", "dice", "DiceLoss"),
        ("lung", "dice_ce", "DiceCELoss"),
        ("heart", "dice", "DiceLoss"),
        ("heart", "dice_ce", "DiceCELoss"),
    ],
)
def test_losses_are_chosen_by_name_and_fall_towards_the_truth(bundle, name, loss):
    criterion = load(bundle, "train", {"loss_name": name}).get_parsed_content("loss")
    assert type(criterion).__name__ == loss
    label = torch.zeros(2, 2, 8, 8)
    label[:, 1, 2:5, 2:5] = 1
    label[:, 0] = 1 - label[:, 1]
    right, wrong = 8 * (2 * label - 1), 8 * (1 - 2 * label)
    assert criterion(right, label) < 0.05 < criterion(wrong, label)


def test_lung_leaves_the_lowest_slices_background(tmp_path):
    scan = np.random.default_rng(0).integers(-1000, 200, (40, 36, 12)).astype(np.int16)
    path = volume(tmp_path / "scan.nii.gz", scan, (1.0, 1.0, 10.0))
    overrides = {"drop_mm": 37.0, "slice_size": [64, 64], "roi_size": [64, 64]}
    predictor = Predictor("lung", random_weights("lung", tmp_path), overrides=overrides)
    shares = predictor.predict_file(path, probabilities=True).probabilities
    assert shares[0, ..., :4].min() > 0.5  # 37 mm are four slices of 10
    assert shares[0, ..., 4:].std() > 0


def test_lung_says_when_no_slice_is_left(tmp_path):
    scan = np.random.default_rng(0).integers(-1000, 400, (40, 36, 3), np.int16)
    path = volume(tmp_path / "short.nii.gz", scan, (1.0, 1.0, 5.0))
    predictor = Predictor("lung", random_weights("lung", tmp_path))
    with pytest.raises(Exception, match=r"short\.nii\.gz.*3 slices"):
        predictor.predict_file(path)


@pytest.mark.parametrize("bundle", ["heart", "lung"])
def test_neighbouring_slices_are_a_number_in_the_config(bundle):
    network = load(bundle, "train", {"neighbours": 2}).get_parsed_content("network_def")
    assert network.in_channels == 5
