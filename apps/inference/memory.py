"""Peak memory of a prediction, estimated from shapes before anything is allocated."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from monai.transforms import Compose, Resized, Spacingd
from monai.utils import fall_back_tuple
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from decathlete.compat import ConvBase, DropoutBase, NormBase
from decathlete.errors import DecathleteError
from decathlete.transforms.resample import ResampleSpacingd

PROCESS_GIB = 0.6  # Python with torch and MONAI imported
LIVE_OUTPUTS = 6  # of a network at a time: skip connections, and what goes in and out of a layer
SLAB_GIB = 0.2  # what restore_to_grid works on at a time
FLOAT = 4
MONAIS = 12  # bytes a voxel where MONAI resamples: float64, and float32
OURS = 8  # axis by axis in float32: what goes in and out, and what lies between two axes
KEEPS_SHAPE = (
    NormBase, nn.GroupNorm, nn.LayerNorm, DropoutBase,
    nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh,
)  # fmt: skip
SUMS = (torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__iadd__)
GRID = 48  # bytes a voxel of MONAI's sampling grid: three float64 coordinates, before and after scaling


def estimate_gib(
    shape: Sequence[int],
    spacing: Sequence[float],
    *,
    channels: int,
    classes: int,
    preprocessing: Compose,
    window_bytes: int = 0,
    window_edge: float = 0,
    restores_logits: bool = True,
    probabilities: bool = False,
    networks: int = 1,
    output_on_file: bool = False,
) -> float:
    """Upper estimate of the memory that one case takes, in GiB, with the process's own.

    Args:
        shape: spatial shape of the file.
        spacing: its voxel edges in mm.
        channels, classes: of the network's input and output.
        preprocessing: deterministic chain; Spacingd and Resized in it set the size of the network's grid. Crops are not
            counted.
        window_bytes: see :func:`window_bytes`.
        window_edge: voxels of a window along the first axis, so far are the windows' weights kept; 0 without windows.
        restores_logits: whether all classes stand on the original grid at once.
        probabilities: whether they are kept there.
        networks: members of the ensemble.
        output_on_file: whether the sums of windows are kept in a file, which takes no memory that cannot be had back.
    """
    original = math.prod(shape)
    sizes, preparing = [float(n) for n in shape], 0.0
    for after, bytes_each, grid_bytes in _resampling(preprocessing, shape, spacing) or [(sizes, MONAIS, 0)]:
        voxels = math.prod(sizes) + math.prod(after)
        sizes, preparing = after, max(preparing, channels * voxels * bytes_each + math.prod(after) * grid_bytes)
    resampled = math.prod(sizes)
    # what the windows add up to: all classes, and their weights, kept for one row of windows
    sums = classes * resampled * FLOAT
    weights = resampled * min(1.0, window_edge / min(sizes)) * FLOAT
    kept = (1 if networks == 1 else 3) - output_on_file
    predicting = channels * resampled * FLOAT + sums * kept + weights + window_bytes
    restoring = original + sums * min(kept, 1)
    if restores_logits or probabilities:
        restoring += classes * original * FLOAT + original * 8  # argmax gives int64
    if probabilities:
        restoring += 2 * classes * original * FLOAT
    read = channels * original * FLOAT  # the file's voxels stay until the statistics are made
    return PROCESS_GIB + SLAB_GIB + (read + max(preparing, predicting, restoring)) / 2**30


def _resampling(
    preprocessing: Compose, shape: Sequence[int], spacing: Sequence[float]
) -> list[tuple[list[float], int, int]]:
    """Each transform that changes the number of voxels: axes after it, bytes a voxel before and after, of its grid."""
    size, edges = [float(n) for n in shape], [float(s) for s in spacing]
    steps = []
    for transform in preprocessing.flatten().transforms:
        before, bytes_each, grid_bytes = size, MONAIS, 0
        if isinstance(transform, (Spacingd, ResampleSpacingd)):
            ours = isinstance(transform, ResampleSpacingd)
            wanted = [float(s) for s in (transform.pixdim if ours else transform.spacing_transform.pixdim)]
            wanted = (wanted * len(edges) if len(wanted) == 1 else wanted)[: len(edges)]
            if not all(s > 0 for s in wanted):
                continue
            if ours:
                bytes_each = OURS
            elif any(abs(a - b) > 1e-3 for a, b in zip(sorted(edges), sorted(wanted), strict=False)):
                grid_bytes = GRID
            size = [n * s / w for n, s, w in zip(size, edges, wanted, strict=False)] + size[len(wanted) :]
        elif isinstance(transform, Resized):
            target = transform.resizer.spatial_size
            if transform.resizer.size_mode == "longest":
                target = [n * target / max(size) for n in size]
            size = [float(n) for n in fall_back_tuple(target, size)]
        else:
            continue
        edges = [s * b / n for s, b, n in zip(edges, before, size, strict=False)]
        steps.append((size, bytes_each, grid_bytes))
    return steps


def window_bytes(network: nn.Module, shape: Sequence[int]) -> int:
    """Bytes that a forward pass without gradients holds for an input of ``shape`` (B, C, *spatial), in float32.

    The network runs on shapes alone (torch's meta device); 0 for one that does not (one that looks at values, or
    takes no such size). For most layers torch would import its compiler there, which takes longer than to predict a
    small scan: their shapes are computed here.
    """
    sizes: list[int] = []

    def note(_module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.numel() * FLOAT)

    try:
        ghost = copy.deepcopy(network).to("meta").eval()
        for module in ghost.modules():
            if isinstance(module, ConvBase):
                module.forward = partial(_convolved, module)  # type: ignore[method-assign]
            elif isinstance(module, KEEPS_SHAPE):
                module.forward = lambda inputs: _empty(inputs.shape)  # type: ignore[method-assign]
            if not list(module.children()):
                module.register_forward_hook(note)
        with torch.no_grad(), _Joins():
            ghost(_empty(shape))
    except (RuntimeError, NotImplementedError, TypeError, DecathleteError):
        return 0
    return sum(sorted(sizes)[-LIVE_OUTPUTS:])


def _convolved(conv: ConvBase, inputs: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
    """What a convolution returns for an input on the meta device."""
    spatial = list(output_size or ())[-len(conv.kernel_size) :]
    given = inputs.shape[-len(conv.kernel_size) :]
    for axis, n in enumerate(given if not spatial else ()):
        kernel, stride = conv.dilation[axis] * (conv.kernel_size[axis] - 1) + 1, conv.stride[axis]
        padding = conv.padding if isinstance(conv.padding, str) else 2 * conv.padding[axis]
        padding = {"same": kernel - 1, "valid": 0}.get(padding, padding)  # type: ignore[call-overload]
        if conv.transposed:
            spatial.append((n - 1) * stride - padding + kernel + conv.output_padding[axis])
        else:
            spatial.append((n + padding - kernel) // stride + 1)
    batch = inputs.shape[:1] if inputs.ndim == len(given) + 2 else ()
    return _empty((*batch, conv.out_channels, *spatial))


class _Joins(TorchFunctionMode):
    """Skip connections of tensors on the meta device: their shapes, without torch's own way to them."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.cat and not (kwargs or {}).keys() - {"dim"}:
            shapes = [list(tensor.shape) for tensor in args[0]]
            dim = (kwargs or {}).get("dim", args[1] if len(args) > 1 else 0)
            joined = shapes[0].copy()
            joined[dim] = sum(shape[dim] for shape in shapes)
            if any(shape[:dim] + shape[dim:][1:] != joined[:dim] + joined[dim:][1:] for shape in shapes):
                raise RuntimeError("sizes that do not fit together")
            return _empty(joined)
        if function in SUMS and all(isinstance(a, Tensor) and a.shape == args[0].shape for a in args) and not kwargs:
            return _empty(args[0].shape)
        return function(*args, **(kwargs or {}))


def _empty(shape: Sequence[int]) -> Tensor:
    return torch.empty(tuple(shape), device="meta")
