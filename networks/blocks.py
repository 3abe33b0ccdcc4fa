"""The blocks that the U-Nets are built of: convolutions with norm and activation, residual units, argument checks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from monai.networks.blocks import Convolution, UpSample
from monai.networks.layers.factories import Act, Norm, split_args
from monai.networks.layers.utils import get_act_layer, get_norm_layer
from torch import nn

from decathlete.errors import ConfigError, nearest

LayerName = str | tuple[str, dict]

# these may write over their input: their gradient needs no more than the sign of the result
_INPLACE = {"RELU", "LEAKYRELU"}


def per_axis(name: str, value: int | Sequence[int], spatial_dims: int, where: str) -> tuple[int, ...]:
    """One positive whole number for each axis, from one number or a sequence.

    Raises:
        ConfigError: another length than ``spatial_dims``, or a number below 1.
    """
    numbers = (value,) * spatial_dims if isinstance(value, int) else tuple(value)
    if len(numbers) != spatial_dims:
        raise ConfigError(where, f"{name} must be one number or spatial_dims={spatial_dims} numbers",
                          f"{len(numbers)} numbers: {list(numbers)}")  # fmt: skip
    if any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in numbers):
        raise ConfigError(where, f"{name} must be whole numbers of at least 1", str(list(numbers)))
    return numbers


def named_layer(kind: str, name: LayerName | Sequence | None, where: str) -> tuple[str, dict] | None:
    """Norm or activation in MONAI's spelling (``"BATCH"`` or ``("GROUP", {"num_groups": 8})``), None for none.

    ReLU and leaky ReLU are made to work in place unless ``inplace`` is given: they follow a norm or a sum, whose
    gradients do not need their own results.

    Args:
        kind: ``"norm"`` or ``"act"``.
        name: the spelling; a list, as in YAML, is accepted.
        where: config key for the error message.

    Raises:
        ConfigError: a name that MONAI does not know.
    """
    if name is None or name == "":
        return None
    word, options = split_args(tuple(name) if not isinstance(name, str) else name)
    factory = Norm if kind == "norm" else Act
    if str(word).upper() not in factory.names:
        raise ConfigError(where, f"unknown {kind}", repr(word), nearest(str(word).upper(), factory.names))
    options = dict(options)
    if kind == "act" and str(word).upper() in _INPLACE:
        options.setdefault("inplace", True)
    return str(word).upper(), options


def negative_slope(act: LayerName | None) -> float:
    """Slope below zero that He's initialization corrects for: 1 without activation, 0 where it is not a leaky ReLU."""
    if act is None:
        return 1.0
    word, options = split_args(act)
    if word != "LEAKYRELU":
        return 0.0
    return float(options.get("negative_slope", 0.01))  # 0.01 is PyTorch's default


def convolution(
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    kernel_size: tuple[int, ...],
    stride: int | tuple[int, ...] = 1,
    norm: LayerName | None = None,
    act: LayerName | None = None,
    dropout: float = 0.0,
) -> Convolution:
    """MONAI's convolution, norm, dropout, activation; size in / stride comes out where the stride divides the size.

    There is no bias before a norm: nnU-Net keeps one, but instance and batch norm subtract it again with the mean, so
    it would only cost time.
    """
    return Convolution(
        spatial_dims,
        in_channels,
        out_channels,
        strides=stride,
        kernel_size=kernel_size,
        padding=tuple((k - 1) // 2 for k in kernel_size),
        norm=norm,
        act=act,
        dropout=dropout or None,  # a layer with p=0 still costs a pass over the features in training
        bias=norm is None,
        conv_only=norm is None and act is None and not dropout,
    )


class ResidualBlock(nn.Module):
    """Two convolutions around which the input goes by unchanged: (B, C, *spatial) to (B, C', *spatial / stride).

    ``post``: ``act(norm(conv(act(norm(conv(x))))) + shortcut(x))``, the block of nnU-Net's residual encoder (He 2016a).
    ``pre``: ``conv(act(norm(conv(act(norm(x)))))) + shortcut(x)`` (He 2016b); the sum itself is passed on unchanged.

    The shortcut is the input itself. Where the shape changes it is averaged over the stride, so that every voxel
    counts, and brought to the new channels by a 1x1 convolution (followed by a norm in the ``post`` form).
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, ...],
        stride: tuple[int, ...],
        norm: LayerName | None,
        act: LayerName | None,
        dropout: float = 0.0,
        order: str = "post",
    ) -> None:
        super().__init__()
        n, one = spatial_dims, (1,) * spatial_dims
        self.before: nn.Module = nn.Identity()
        self.after: nn.Module = nn.Identity()
        if order == "post":
            self.conv1 = convolution(n, in_channels, out_channels, kernel_size, stride, norm, act, dropout)
            self.conv2 = convolution(n, out_channels, out_channels, kernel_size, one, norm, None, dropout)
            self.after = get_act_layer(act) if act else nn.Identity()
        else:
            # the activation must not work in place here: without a norm it would write over the shortcut's input
            self.before = nn.Sequential(
                get_norm_layer(norm, n, in_channels) if norm else nn.Identity(),
                get_act_layer(act if norm else _not_in_place(act)) if act else nn.Identity(),
            )
            self.conv1 = convolution(n, in_channels, out_channels, kernel_size, stride, norm, act, dropout)
            self.conv2 = convolution(n, out_channels, out_channels, kernel_size, one, None, None, dropout)
        shortcut: list[nn.Module] = []
        if math.prod(stride) > 1:
            pool = nn.AvgPool2d if n == 2 else nn.AvgPool3d
            shortcut.append(pool(stride, stride))
        if in_channels != out_channels:
            shortcut.append(convolution(n, in_channels, out_channels, one, one, norm if order == "post" else None))
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the sum of both paths."""
        return self.after(self.conv2(self.conv1(self.before(x))) + self.shortcut(x))


def _not_in_place(act: LayerName | None) -> LayerName | None:
    if act is None:
        return None
    word, options = split_args(act)
    return word, {k: v for k, v in dict(options).items() if k != "inplace"}


def upsampling(spatial_dims: int, in_channels: int, out_channels: int, factor: tuple[int, ...], mode: str) -> nn.Module:
    """Features brought to ``factor`` times their size, by MONAI's ``UpSample``.

    ``deconv`` is a transposed convolution whose kernel is its stride: no voxel gets more terms than its neighbour,
    hence no checkerboard. ``nearest`` and ``linear`` change the channels first, where there are fewer voxels.
    """
    if mode == "deconv":
        return UpSample(spatial_dims, in_channels, out_channels, factor, mode="deconv")
    corners = False if mode == "linear" else None  # voxel edges, not centres, stay in place
    return UpSample(
        spatial_dims, in_channels, out_channels, factor, mode="nontrainable", interp_mode=mode, align_corners=corners
    )


def initialize(module: nn.Module, slope: float) -> None:
    """He's normal weights for an activation with ``slope`` below zero, biases 0.

    A transposed convolution whose kernel is its stride feeds each voxel from ``in_channels`` terms and no activation
    follows: its variance is 1 / in_channels, where PyTorch's rule would count the wrong axis.
    """
    if isinstance(module, (nn.ConvTranspose2d, nn.ConvTranspose3d)):
        nn.init.normal_(module.weight, std=module.in_channels**-0.5)
    elif isinstance(module, (nn.Conv2d, nn.Conv3d)):
        nn.init.kaiming_normal_(module.weight, a=slope)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)
