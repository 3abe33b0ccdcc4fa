"""Memory that a training step takes, from shapes alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from decathlete.planning.footprint import FIXED_GIB, WORKING, step_gib

CPU = torch.device("cpu")
VOXELS = 128**3


class Watched(nn.Module):
    """Two convolutions with a ReLU between, and a count of its passes."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv3d(1, 4, 1), nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, 2, 1))
        self.seen = []

    def forward(self, x):
        self.seen.append(x)
        return self.layers(x)


def test_step_keeps_what_each_layer_needs_for_its_gradient():
    # the image for the first convolution, its 4 channels for the norm, 4 after the norm and the ReLU for what follows
    network = Watched()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    kept = (1 + 4 + 4) * VOXELS * 4
    assert step_gib(network, (1, 1, 128, 128, 128), False, CPU) == pytest.approx(
        FIXED_GIB + WORKING * kept / 2**30, rel=1e-3
    )
    assert step_gib(network, (3, 1, 128, 128, 128), False, CPU) == pytest.approx(
        FIXED_GIB + WORKING * 3 * kept / 2**30, rel=1e-3
    )
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.layers[0].weight.grad is None


def test_network_that_looks_at_values_is_not_told():
    class Looks(Watched):
        def forward(self, x):
            return self.layers(x) if x.sum() > 0 else x

    assert step_gib(Looks(), (1, 1, 8, 8, 8), False, CPU) is None
