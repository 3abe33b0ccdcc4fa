"""A U-Net whose strides and kernels are set level by level and axis by axis, in 2D and 3D."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, List, Union  # noqa: UP035  (TorchScript reads List and Union, not list[...] | ...)

import torch
from torch import nn

from decathlete.errors import ConfigError, nearest
from decathlete.networks.blocks import (
    LayerName,
    ResidualBlock,
    convolution,
    initialize,
    named_layer,
    negative_slope,
    per_axis,
    upsampling,
)

UPSAMPLING = ("deconv", "nearest", "linear")
RESIDUAL_ORDERS = ("post", "pre")


class UNet(nn.Module):
    """Class scores (logits) for each pixel or voxel: (B, in_channels, *spatial) to (B, out_channels, *spatial).

    Level i of the encoder halves (or whatever ``strides[i]`` says) the grid in its first convolution and has
    ``channels[i]`` features. The decoder brings the features up again, joins those of the encoder at the same level and
    convolves. This is nnU-Net's plain U-Net (Isensee 2021) for ``strides[0] = 1``.

    With ``strides[0] = 2`` the complete network works on the halved grid and one transposed convolution, 8 scores for
    the 8 voxels of each feature vector, leads to the full one: several times faster on a CPU, where the convolutions of
    the finest level take most of the time.

    Size: every axis of the input must be divisible by its entry of the attribute ``divisor``, the product of the
    strides along it.

    Training with ``deep_supervision``: a list of scores, finest first, each of the next coarser decoder level's size.
    Evaluation: always one tensor. The heads of the coarser levels stay in the state dict, so that weights go from one
    mode to the other.

    Scripts with ``torch.jit.script``; traces and exports to ONNX in evaluation mode.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: classes, with background.
        channels: features at each level, finest first; at least two levels.
        strides: one entry a level: a number, or one number an axis, e.g. ``(1, 2, (2, 2, 1))``. None: 1, then 2s.
        kernel_sizes: odd, one number for all, or one entry a level, e.g. ``((3, 3, 1), (3, 3, 3), 3)``.
        convs_per_stage: convolutions of a level in the encoder, one number or one a level. A level of residual blocks
            does not use it in the encoder.
        decoder_convs: the same for the decoder, one number or one a level but the coarsest. None: as the encoder.
        num_res_units: residual blocks (two convolutions each) a level of the encoder, one number or one a level;
            0 for plain convolutions.
        residual_order: ``post`` (nnU-Net) or ``pre`` activation, see ``ResidualBlock``.
        norm: as MONAI spells it: ``"BATCH"``, ``("GROUP", {"num_groups": 8})``. Note that a bare ``"INSTANCE"`` has no
            scale and shift of its own; the default has them, as nnU-Net. None for no norm.
        act: as MONAI spells it; a bare ``"LEAKYRELU"`` has slope 0.01.
        dropout: probability, after each norm.
        deep_supervision: True for heads at all decoder levels but the coarsest, as nnU-Net weighs them; a number for
            that many heads beside the finest.
        upsample: ``deconv``, or ``nearest`` or ``linear`` interpolation after a 1x1 convolution.
        channels_last: keep weights, and with them all features, channels-last in memory (faster for batch norm on CPU,
            for half precision on GPU; slower for instance norm on CPU).

    Raises:
        ConfigError: arguments that do not fit, with both values.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int] = (32, 64, 128, 256),
        strides: Sequence[int | Sequence[int]] | None = None,
        kernel_sizes: int | Sequence[int | Sequence[int]] = 3,
        convs_per_stage: int | Sequence[int] = 2,
        decoder_convs: int | Sequence[int] | None = None,
        num_res_units: int | Sequence[int] = 0,
        residual_order: str = "post",
        norm: LayerName | Sequence | None = ("INSTANCE", {"affine": True}),
        act: LayerName | Sequence | None = "LEAKYRELU",
        dropout: float = 0.0,
        deep_supervision: bool | int = False,
        upsample: str = "deconv",
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        where = type(self).__name__
        if spatial_dims not in (2, 3):
            raise ConfigError(where, "spatial_dims must be 2 or 3", str(spatial_dims))
        _check_counts(where, "in_channels", [in_channels])
        _check_counts(where, "out_channels", [out_channels])
        _check_counts(where, "channels", list(channels))
        levels = len(channels)
        if levels < 2:
            raise ConfigError(where, "channels must have at least 2 levels", f"{levels}: {list(channels)}")
        if strides is None:
            strides = (1,) + (2,) * (levels - 1)
        steps = _per_level(where, "strides", strides, levels, spatial_dims)
        kernels = _per_level(where, "kernel_sizes", kernel_sizes, levels, spatial_dims)
        _check_kernels(where, kernels, steps)
        convs = _counts(where, "convs_per_stage", convs_per_stage, levels, 1)
        back_convs = (
            convs[:-1] if decoder_convs is None else _counts(where, "decoder_convs", decoder_convs, levels - 1, 1)
        )
        res_units = _counts(where, "num_res_units", num_res_units, levels, 0)
        _check_word(where, "upsample", upsample, UPSAMPLING)
        _check_word(where, "residual_order", residual_order, RESIDUAL_ORDERS)
        if not 0.0 <= dropout < 1.0:
            raise ConfigError(where, "dropout must be at least 0 and below 1", str(dropout))
        norm, act = named_layer("norm", norm, where), named_layer("act", act, where)

        self.spatial_dims, self.in_channels, self.out_channels = spatial_dims, in_channels, out_channels
        self.divisor = tuple(math.prod(s[axis] for s in steps) for axis in range(spatial_dims))
        self.extra_heads = _extra_heads(where, deep_supervision, levels - 1)
        self.deep_supervision = bool(deep_supervision)
        self.norm_name = str(norm[0]) if norm else ""
        layers: dict[str, Any] = {"norm": norm, "act": act, "dropout": float(dropout)}

        unit = (1,) * spatial_dims

        self.encoder = nn.ModuleList()
        width = in_channels
        for i, out in enumerate(channels):
            block = partial(ResidualBlock, order=residual_order) if res_units[i] else convolution
            number = res_units[i] or convs[i]
            self.encoder.append(_stage(block, number, spatial_dims, width, out, kernels[i], steps[i], layers))
            width = out

        # in the order of running: coarsest first
        self.ups, self.decoder = nn.ModuleList(), nn.ModuleList()
        for i in reversed(range(levels - 1)):
            out = channels[i]
            self.ups.append(upsampling(spatial_dims, channels[i + 1], out, steps[i + 1], upsample))
            self.decoder.append(
                _stage(convolution, back_convs[i], spatial_dims, 2 * out, out, kernels[i], unit, layers)
            )

        # the same order; a head that has nothing to do is an Identity without weights
        self.heads = nn.ModuleList()
        for i in reversed(range(levels - 1)):
            if i > self.extra_heads:
                self.heads.append(nn.Identity())
            elif i == 0 and math.prod(steps[0]) > 1:
                self.heads.append(upsampling(spatial_dims, channels[0], out_channels, steps[0], upsample))
            else:
                self.heads.append(convolution(spatial_dims, channels[i], out_channels, unit))

        slope = negative_slope(act)
        self.apply(lambda module: initialize(module, slope))
        for head in self.heads:  # no activation follows a head
            head.apply(lambda module: initialize(module, 1.0))
        if channels_last:
            self.to(memory_format=torch.channels_last if spatial_dims == 2 else torch.channels_last_3d)

    def forward(self, x: torch.Tensor) -> Union[torch.Tensor, List[torch.Tensor]]:  # noqa: UP006, UP007
        """Return scores for ``x`` (B, in_channels, *spatial); in training with deep supervision a list, finest first.

        Raises:
            ConfigError: another number of channels or axes, or a size that ``divisor`` does not divide, or one
                that leaves the norm a single value (scripted and traced networks do not check).
        """
        if not torch.jit.is_scripting():
            self._check(x)
        skips: List[torch.Tensor] = []  # noqa: UP006
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        outputs: List[torch.Tensor] = []  # noqa: UP006
        level = len(skips) - 2
        for up, stage, head in zip(self.ups, self.decoder, self.heads):  # noqa: B905  (TorchScript has no strict=)
            x = stage(torch.cat([up(x), skips[level]], dim=1))
            if level == 0 or (self.training and level <= self.extra_heads):
                outputs.insert(0, head(x))
            level -= 1
        if self.training and self.deep_supervision:
            return outputs
        return outputs[0]

    def _check(self, x: torch.Tensor) -> None:
        if torch.jit.is_tracing():
            return
        where = type(self).__name__
        if x.ndim != self.spatial_dims + 2 or x.shape[1] != self.in_channels:
            raise ConfigError(where, f"expected images with {self.in_channels} channels and {self.spatial_dims} axes",
                              f"shape {tuple(x.shape)}",
                              "Compare in_channels and spatial_dims with the images")  # fmt: skip
        size = tuple(x.shape[2:])
        if any(n % d for n, d in zip(size, self.divisor, strict=True)):
            raise ConfigError(where, f"each axis must be divisible by the product of its strides, {self.divisor}",
                              f"size {size}",
                              "Change patch_size or roi_size, or pad with monai.transforms.DivisiblePadd")  # fmt: skip
        values = math.prod(n // d for n, d in zip(size, self.divisor, strict=True))
        if self.norm_name == "BATCH" and self.training:
            values *= x.shape[0]
        if values == 1 and (self.norm_name == "INSTANCE" or (self.norm_name == "BATCH" and self.training)):
            raise ConfigError(where, f"{self.norm_name} norm needs more than 1 value per channel at the coarsest level",
                              f"1 value, from size {size} over strides {self.divisor}",
                              "Use a larger patch_size or roi_size, or fewer strides")  # fmt: skip


def _stage(
    block: Callable[..., nn.Module],
    number: int,
    spatial_dims: int,
    given: int,
    out: int,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    layers: dict[str, Any],
) -> nn.Sequential:
    """``number`` blocks, the first of which takes ``given`` features and steps by ``stride``."""
    first = block(spatial_dims, given, out, kernel, stride, **layers)
    unit = (1,) * spatial_dims
    return nn.Sequential(first, *(block(spatial_dims, out, out, kernel, unit, **layers) for _ in range(number - 1)))


def _extra_heads(where: str, deep_supervision: bool | int, decoder_levels: int) -> int:
    if deep_supervision is True:
        return max(min(1, decoder_levels - 1), decoder_levels - 2)
    if not 0 <= deep_supervision < decoder_levels:
        raise ConfigError(where, f"deep_supervision must be less than the {decoder_levels} decoder levels",
                          str(deep_supervision))  # fmt: skip
    return int(deep_supervision)


def _per_level(where: str, name: str, value: int | Sequence, levels: int, spatial_dims: int) -> list[tuple[int, ...]]:
    entries = [value] * levels if isinstance(value, int) else list(value)
    if len(entries) != levels:
        raise ConfigError(where, f"{name} must have one entry for each of the {levels} levels of channels",
                          f"{len(entries)} entries: {list(entries)}",
                          "Begin with the finest; 1 keeps full resolution" if name == "strides" else "")  # fmt: skip
    return [per_axis(f"{name}[{i}]", entry, spatial_dims, where) for i, entry in enumerate(entries)]


def _counts(where: str, name: str, value: int | Sequence[int], levels: int, least: int) -> list[int]:
    counts = [value] * levels if isinstance(value, int) else list(value)
    if len(counts) != levels:
        raise ConfigError(where, f"{name} must be one number or {levels} numbers",
                          f"{len(counts)} numbers: {list(counts)}")  # fmt: skip
    _check_counts(where, name, counts, least)
    return counts


def _check_counts(where: str, name: str, values: Sequence[int], least: int = 1) -> None:
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(where, f"{name} must be whole numbers of at least {least}", repr(value))


def _check_kernels(where: str, kernels: Sequence[tuple[int, ...]], strides: Sequence[tuple[int, ...]]) -> None:
    for i, (kernel, stride) in enumerate(zip(kernels, strides, strict=True)):
        if any(k % 2 == 0 for k in kernel):
            raise ConfigError(where, f"kernel_sizes[{i}] must be odd", str(list(kernel)))
        if any(s > k + 1 for s, k in zip(stride, kernel, strict=True)) or any(
            s > 1 and k == 1 for s, k in zip(stride, kernel, strict=True)
        ):
            raise ConfigError(where, f"strides[{i}] skips voxels that kernel_sizes[{i}] does not cover",
                              f"stride {stride} with kernel {kernel}",
                              "Set a smaller stride, or a larger kernel")  # fmt: skip


def _check_word(where: str, name: str, word: str, known: Sequence[str]) -> None:
    if word not in known:
        raise ConfigError(where, f"unknown {name}", repr(word), nearest(str(word), known))
