"""Blur ahead of a coarser grid."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Spacingd
from scipy.ndimage import gaussian_filter

from decathlete.errors import ConfigError
from decathlete.transforms import SmoothForSpacingd


def scan(voxels, spacing=(1.0, 1.0, 1.0)):
    return MetaTensor(torch.as_tensor(voxels)[None], affine=torch.diag(torch.tensor([*spacing, 1.0])))


def test_only_axes_that_become_coarser_are_blurred():
    voxels = np.random.default_rng(0).normal(size=(12, 10, 8)).astype(np.float32)
    out = SmoothForSpacingd("image", [2.0, 2.0, 2.0])({"image": scan(voxels, (1.0, 0.5, 3.0))})["image"]
    expected = gaussian_filter(voxels, (3**0.5 / 2.3548, 15**0.5 / 2.3548, 0.0), mode="nearest")
    assert np.allclose(out[0].numpy(), expected, atol=1e-5)
    assert torch.equal(out.affine, torch.diag(torch.tensor([1.0, 0.5, 3.0, 1.0], dtype=torch.float64)))


def test_a_mask_becomes_shares_whose_sum_is_its_volume():
    mask = np.zeros((24, 24, 24), np.uint8)
    mask[5:16, 6:17, 7:18] = 1
    case = SmoothForSpacingd("label", 2.0)({"label": scan(mask)})
    shares = Spacingd("label", [2.0, 2.0, 2.0], mode="bilinear")(case)["label"]
    plain = Spacingd("label", [2.0, 2.0, 2.0], mode="nearest")({"label": scan(mask)})["label"]
    assert float(shares.sum()) * 8 == pytest.approx(11**3, rel=0.02)
    assert abs(float(plain.sum()) * 8 - 11**3) > 0.05 * 11**3


@pytest.mark.parametrize("pixdim", [0.0, [1.0, -1.0, 1.0], [1.0, float("nan"), 1.0]])
def test_edge_lengths_that_cannot_be_are_refused(pixdim):
    with pytest.raises(ConfigError, match="edge lengths"):
        SmoothForSpacingd("image", pixdim)
