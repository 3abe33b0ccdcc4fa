"""Modalities that are not there."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from decathlete.errors import ConfigError, DataError
from decathlete.transforms import CheckChannelsd

NAMES = ["FLAIR", "T1w", "T1gd", "T2w"]


def test_a_whole_scan_passes():
    image = torch.rand(4, 3, 3, 3)
    assert CheckChannelsd("image", NAMES)({"image": image})["image"] is image


def test_a_modality_filled_with_zeros_is_named():
    image = torch.rand(4, 3, 3, 3)
    image[2] = 0
    scan = MetaTensor(image, meta={"filename_or_obj": "BRATS_001.nii.gz"})
    with pytest.raises(DataError, match=r"BRATS_001.*channels without content: T1gd \(each has one value"):
        CheckChannelsd("image", NAMES)({"image": scan})


def test_too_few_channels_are_counted():
    with pytest.raises(DataError, match="\\(3"):
        CheckChannelsd("image", NAMES)({"image": torch.rand(3, 2, 2, 2)})


def test_names_must_be_told_apart():
    with pytest.raises(ConfigError, match="unique"):
        CheckChannelsd("image", ["T1", "T1"])
