"""The estimate of a prediction's memory, by hand."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from monai.transforms import Compose, Resized, Spacingd
from torch import nn

from decathlete.inference.memory import PROCESS_GIB, SLAB_GIB, estimate_gib, window_bytes
from decathlete.transforms import ResampleSpacingd

VOXELS = 512 * 512 * 64  # 2^24


def bytes_per_voxel(*chain, **more):
    """Of the file, without what the process takes."""
    gib = estimate_gib((512, 512, 64), (0.8, 0.8, 5.0), channels=1, preprocessing=Compose(chain),
                       restores_logits=False, **{"classes": 2, **more})  # fmt: skip
    return (gib - PROCESS_GIB - SLAB_GIB) * 2**30 / VOXELS


def test_resized_slices_are_smaller_on_the_networks_grid():
    # 4 for the file's voxels; float64 and float32 before and after the last transform, 12 each
    assert bytes_per_voxel() == pytest.approx(4 + 12 + 12)
    assert bytes_per_voxel(Resized("image", [256, 256, -1])) == pytest.approx(4 + 12 + 12 / 4)
    assert bytes_per_voxel(Resized("image", 128, size_mode="longest")) == pytest.approx(4 + 12 + 12 / 64)


def test_resampling_needs_its_sampling_grid_too():
    # twice the voxels, each with three float64 coordinates before and after scaling
    assert bytes_per_voxel(Spacingd("image", [0.8, 0.8, 2.5])) == pytest.approx(4 + 12 + 2 * (12 + 48))
    # what follows is smaller and hides in that peak
    both = Spacingd("image", [0.8, 0.8, 2.5]), Resized("image", [256, 256, -1])
    assert bytes_per_voxel(*both) == bytes_per_voxel(both[0])


def test_the_output_of_many_classes_is_the_peak_and_may_lie_in_a_file():
    thick = ResampleSpacingd("image", [0.8, 0.8, 5.0])  # no voxel moves: 8 bytes each, before and after
    assert bytes_per_voxel(thick) == pytest.approx(4 + 8 + 8)
    # the image, ten classes, and the weights of a row of windows, which the shortest axis bounds from above
    assert bytes_per_voxel(thick, classes=10, window_edge=16) == pytest.approx(4 + 4 + 40 + 4 * 16 / 64)
    assert bytes_per_voxel(thick, classes=10, window_edge=500) == pytest.approx(4 + 4 + 40 + 4)
    assert bytes_per_voxel(thick, classes=10, window_edge=16, output_on_file=True) == pytest.approx(4 + 16)


def test_the_estimate_of_a_window_does_not_load_the_compiler_of_torch():
    code = (
        "import sys, torch\n"
        "from decathlete.inference.memory import window_bytes\n"
        "from decathlete.networks import UNet\n"
        "network = UNet(spatial_dims=3, in_channels=1, out_channels=2, channels=[4, 8, 8])\n"
        "print(window_bytes(network, (2, 1, 16, 16, 16)) > 0)\n"
        "print([name for name in ('torch._dynamo', 'sympy') if name in sys.modules])"
    )
    hide = "import sys\nsys.modules['ignite'] = None  # which loads it by itself\n"
    command = [sys.executable, "-c", hide + code]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    assert done.stdout.split("\n")[:2] == ["True", "[]"]


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv3d(2, 5, (3, 1, 3), stride=(2, 1, 1), padding=(1, 0, 2)),
        nn.Conv3d(2, 5, 3, padding="same"),
        nn.Conv3d(2, 5, 3, dilation=2),
        nn.ConvTranspose3d(2, 5, (2, 1, 3), stride=(2, 1, 2), output_padding=(1, 0, 1)),
        nn.BatchNorm3d(2),
        nn.LeakyReLU(),
    ],
)
def test_shapes_of_layers_are_those_that_torch_computes(layer):
    given = torch.rand(2, 2, 9, 8, 7)
    assert window_bytes(layer, given.shape) == layer(given).numel() * 4
