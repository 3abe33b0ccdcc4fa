"""Peak memory of a prediction, estimated from shapes before anything is allocated."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from monai.transforms import Compose, Resized, Spacingd
from monai.utils import fall_back_tuple
from torch import Tensor, nn

from decathlete.errors import DecathleteError
from decathlete.transforms.resample import ResampleSpacingd

PROCESS_GIB = 0.6  # Python with torch and MONAI imported
LIVE_OUTPUTS = 6  # of a network at a time: skip connections, and what goes in and out of a layer
SLAB_GIB = 0.2  # what restore_to_grid works on at a time
FLOAT = 4


def estimate_gib(
    shape: Sequence[int],
    spacing: Sequence[float],
    *,
    channels: int,
    classes: int,
    preprocessing: Compose,
    window_bytes: int = 0,
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
        restores_logits: whether all classes stand on the original grid at once.
        probabilities: whether they are kept there.
        networks: members of the ensemble.
        output_on_file: whether the sums of windows are kept in a file, which takes no memory that cannot be had back.
    """
    original, double = math.prod(shape), 8  # MONAI resamples in float64
    resampled, preparing = float(original), 0.0
    for after, with_grid in _resampling(preprocessing, shape, spacing) or [(resampled, False)]:
        step = channels * (resampled + after) * (double + FLOAT)
        if with_grid:
            step += after * 2 * 3 * double  # the sampling grid: three coordinates, before and after scaling
        resampled, preparing = after, max(preparing, step)
    sums = (classes + 1) * resampled * FLOAT
    kept = (1 if networks == 1 else 3) - output_on_file
    predicting = channels * resampled * FLOAT + sums * kept + window_bytes
    restoring = original + (0 if kept == 0 else classes * resampled * FLOAT)
    if restores_logits or probabilities:
        restoring += classes * original * FLOAT + original * double  # argmax gives int64
    if probabilities:
        restoring += 2 * classes * original * FLOAT
    read = channels * original * FLOAT  # the file's voxels stay until the statistics are made
    return PROCESS_GIB + SLAB_GIB + (read + max(preparing, predicting, restoring)) / 2**30


def _resampling(preprocessing: Compose, shape: Sequence[int], spacing: Sequence[float]) -> list[tuple[float, bool]]:
    """Voxels after each transform that changes their number, and whether it interpolates on a sampling grid."""
    size, edges = [float(n) for n in shape], [float(s) for s in spacing]
    steps = []
    for transform in preprocessing.flatten().transforms:
        before, with_grid = size, False
        if isinstance(transform, (Spacingd, ResampleSpacingd)):
            cubic = isinstance(transform, ResampleSpacingd)
            wanted = [float(s) for s in (transform.pixdim if cubic else transform.spacing_transform.pixdim)]
            wanted = (wanted * len(edges) if len(wanted) == 1 else wanted)[: len(edges)]
            if not all(s > 0 for s in wanted):
                continue
            # ours goes axis by axis, without a grid
            with_grid = not cubic and any(
                abs(a - b) > 1e-3 for a, b in zip(sorted(edges), sorted(wanted), strict=False)
            )
            size = [n * s / w for n, s, w in zip(size, edges, wanted, strict=False)] + size[len(wanted) :]
        elif isinstance(transform, Resized):
            target = transform.resizer.spatial_size
            if transform.resizer.size_mode == "longest":
                target = [n * target / max(size) for n in size]
            size = [float(n) for n in fall_back_tuple(target, size)]
        else:
            continue
        edges = [s * b / n for s, b, n in zip(edges, before, size, strict=False)]
        steps.append((math.prod(size), with_grid))
    return steps


def window_bytes(network: nn.Module, shape: Sequence[int]) -> int:
    """Bytes that a forward pass without gradients holds for an input of ``shape`` (B, C, *spatial), in float32.

    The network runs on shapes alone (torch's meta device); 0 for one that does not (one that looks at values, or
    takes no such size).
    """
    sizes: list[int] = []

    def note(_module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.numel() * FLOAT)

    try:
        ghost = copy.deepcopy(network).to("meta").eval()
        for module in ghost.modules():
            if not list(module.children()):
                module.register_forward_hook(note)
        with torch.no_grad():
            ghost(torch.empty(tuple(shape), device="meta"))
    except (RuntimeError, NotImplementedError, TypeError, DecathleteError):
        return 0
    return sum(sorted(sizes)[-LIVE_OUTPUTS:])
