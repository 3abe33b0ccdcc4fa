"""Peak memory of a prediction, estimated from shapes before anything is allocated."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from monai.transforms import Compose, Spacingd
from torch import Tensor, nn

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
) -> float:
    """Upper estimate of the memory that one case takes, in GiB, with the process's own.

    Args:
        shape: spatial shape of the file.
        spacing: its voxel edges in mm.
        channels, classes: of the network's input and output.
        preprocessing: deterministic chain; a Spacingd in it sets the size of the network's grid. Crops are not counted.
        window_bytes: see :func:`window_bytes`.
        restores_logits: whether all classes stand on the original grid at once.
        probabilities: whether they are kept there.
        networks: members of the ensemble.
    """
    original = math.prod(shape)
    growth, resamples = _resampling(preprocessing, spacing)
    resampled = original * growth
    double = 8  # MONAI resamples in float64
    preparing = channels * (original + resampled) * (double + FLOAT)
    if resamples:
        preparing += resampled * 2 * 3 * double  # the sampling grid: three coordinates, before and after scaling
    sums = (classes + 1) * resampled * FLOAT
    predicting = channels * resampled * FLOAT + sums * (1 if networks == 1 else 3) + window_bytes
    restoring = classes * resampled * FLOAT + original
    if restores_logits or probabilities:
        restoring += classes * original * FLOAT + original * double  # argmax gives int64
    if probabilities:
        restoring += 2 * classes * original * FLOAT
    read = channels * original * FLOAT  # the file's voxels stay until the statistics are made
    return PROCESS_GIB + SLAB_GIB + (read + max(preparing, predicting, restoring)) / 2**30


def _resampling(preprocessing: Compose, spacing: Sequence[float]) -> tuple[float, bool]:
    """How many voxels the network's grid has for each voxel of the file, and whether voxels are interpolated for it."""
    growth, resamples = 1.0, False
    for transform in preprocessing.flatten().transforms:
        if isinstance(transform, Spacingd):
            wanted = [float(s) for s in transform.spacing_transform.pixdim]
            wanted = (wanted * len(spacing) if len(wanted) == 1 else wanted)[: len(spacing)]
            if all(s > 0 for s in wanted):
                growth = math.prod(spacing[: len(wanted)]) / math.prod(wanted)
                resamples = any(abs(a - b) > 1e-3 for a, b in zip(sorted(spacing), sorted(wanted), strict=False))
    return growth, resamples


def window_bytes(network: nn.Module, shape: Sequence[int]) -> int:
    """Bytes that a forward pass without gradients holds for an input of ``shape`` (B, C, *spatial), in float32.

    The network runs on shapes alone (torch's meta device); 0 for one that does not (one that looks at values).
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
    except (RuntimeError, NotImplementedError, TypeError):
        return 0
    return sum(sorted(sizes)[-LIVE_OUTPUTS:])
