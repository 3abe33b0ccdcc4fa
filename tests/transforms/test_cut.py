"""Scans cut short."""

import pytest
import torch

from decathlete.errors import ConfigError
from decathlete.transforms import CutAway


def test_what_lies_beyond_the_plane_is_gone_and_the_foreground_is_whole():
    torch.manual_seed(0)
    shares = torch.zeros(20, 2, 24, 24, 24)
    shares[:, 1, 8:16, 8:16, 8:16] = 1
    shares[:, 0] = 1 - shares[:, 1]
    image = torch.rand(20, 1, 24, 24, 24) + 1
    image[:, :, 0, 0, 0] = -5
    out = CutAway(prob=1.0, margins=(1.0, 2.0))({"image": image, "label": shares, "case_id": ["a"]})
    gone = (out["image"] == -5) & (image != -5)
    assert bool(gone.flatten(1).any(1).all())
    assert not bool((gone & (shares[:, 1:] > 0)).any())
    assert torch.equal(out["image"][~gone], image[~gone])
    assert out["label"] is shares
    assert out["case_id"] == ["a"]


def test_a_patch_without_foreground_is_left_alone():
    batch = {"image": torch.rand(2, 1, 8, 8), "label": torch.stack([torch.ones(2, 8, 8), torch.zeros(2, 8, 8)], 1)}
    assert torch.equal(CutAway(prob=1.0)(batch)["image"], batch["image"])


def test_margins_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="smallest and a largest"):
        CutAway(margins=(3.0, 1.0))
