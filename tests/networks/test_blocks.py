"""Blocks: the sum of a residual block is real, names and starts are as said."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from decathlete.errors import ConfigError
from decathlete.networks.blocks import ResidualBlock, convolution, initialize, named_layer, negative_slope, upsampling


def residual(in_channels: int, out_channels: int, stride: int = 1, order: str = "post", norm="BATCH") -> ResidualBlock:
    act = ("LEAKYRELU", {"inplace": True, "negative_slope": 0.5})
    return ResidualBlock(3, in_channels, out_channels, (3, 3, 3), (stride,) * 3, norm, act, order=order)


def silence_convolutions(block: ResidualBlock) -> None:
    for branch in (block.conv1, block.conv2):
        for name, parameter in branch.named_parameters():
            if "conv" in name:
                nn.init.zeros_(parameter)


def test_post_activation_block_with_zeroed_convolutions_returns_its_activated_input():
    block = residual(2, 2)
    silence_convolutions(block)
    x = torch.randn(2, 2, 4, 4, 4)
    torch.testing.assert_close(block(x), torch.where(x > 0, x, 0.5 * x))


@pytest.mark.parametrize("norm", ["BATCH", None])
def test_pre_activation_block_with_zeroed_convolutions_returns_its_input(norm):
    block = residual(2, 2, order="pre", norm=norm)
    silence_convolutions(block)
    x = torch.randn(2, 2, 4, 4, 4)
    before = x.clone()
    torch.testing.assert_close(block(x), x)
    torch.testing.assert_close(x, before)


def test_shortcut_averages_over_the_stride_before_it_changes_channels():
    block = residual(1, 2, stride=2, order="pre", norm=None)
    silence_convolutions(block)
    with torch.no_grad():
        block.shortcut[1].conv.weight.copy_(torch.tensor([1.0, 10.0]).view(2, 1, 1, 1, 1))
        block.shortcut[1].conv.bias.zero_()
    x = torch.arange(8.0).view(1, 1, 2, 2, 2)
    torch.testing.assert_close(block(x).flatten(), torch.tensor([3.5, 35.0]))


def test_block_of_unchanged_shape_has_a_shortcut_without_weights():
    assert not list(residual(4, 4).shortcut.parameters())
    assert list(residual(4, 8).shortcut.parameters())


def test_convolution_before_a_norm_has_no_bias_and_without_norm_has_one():
    assert convolution(2, 1, 1, (3, 3), norm=("BATCH", {})).conv.bias is None
    assert convolution(2, 1, 1, (3, 3)).conv.bias is not None


def test_dropout_of_zero_adds_no_layer_and_another_is_set():
    def layers(p):
        return [m.p for m in convolution(2, 1, 1, (3, 3), norm=("BATCH", {}), dropout=p).modules() if hasattr(m, "p")]

    assert layers(0.0) == []
    assert layers(0.25) == [0.25]


@pytest.mark.parametrize("mode", ["deconv", "nearest", "linear"])
def test_upsampling_multiplies_each_axis_by_its_factor(mode):
    assert upsampling(3, 4, 2, (2, 4, 1), mode)(torch.rand(1, 4, 3, 3, 3)).shape == (1, 2, 6, 12, 3)


def test_names_take_monais_spelling_from_strings_and_from_yaml_lists():
    assert named_layer("norm", "batch", "X") == ("BATCH", {})
    assert named_layer("norm", ["GROUP", {"num_groups": 2}], "X") == ("GROUP", {"num_groups": 2})
    assert named_layer("norm", "", "X") is None
    assert named_layer("act", "RELU", "X") == ("RELU", {"inplace": True})


def test_unknown_norm_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match=r"'INSTANSE'.*Did you mean 'INSTANCE'"):
        named_layer("norm", "INSTANSE", "UNet")


def test_negative_slope_follows_the_activation():
    assert negative_slope(("LEAKYRELU", {"negative_slope": 0.2})) == 0.2
    assert negative_slope(("LEAKYRELU", {})) == 0.01
    assert negative_slope(("RELU", {})) == 0.0
    assert negative_slope(None) == 1.0


def test_initial_weights_have_hes_variance():
    torch.manual_seed(0)
    conv, deconv = nn.Conv3d(32, 64, 3), nn.ConvTranspose3d(64, 32, 2, stride=2)
    initialize(conv, 0.01)
    initialize(deconv, 0.01)
    assert conv.weight.std().item() == pytest.approx((2 / (1 + 0.01**2) / (32 * 27)) ** 0.5, rel=0.02)
    assert deconv.weight.std().item() == pytest.approx(64**-0.5, rel=0.03)
    assert not conv.bias.any()
