"""Predictions that need more memory than there is are refused before it is allocated."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from decathlete.errors import DeviceError
from decathlete.machine import free_memory_bytes

if TYPE_CHECKING:
    from decathlete.inference.predictor import Predictor


def check_memory(predictor: Predictor, file: Path, probabilities: bool, memory_gib: float | None) -> None:
    """Refuse from the header alone, before the voxels are read: a small file can unpack to more than there is.

    Args:
        memory_gib: what the prediction may take; None: what is free.

    Raises:
        DeviceError: the estimate exceeds it.
    """
    from decathlete.io.nifti import MAX_VOXELS, read_nifti_header

    try:
        header = read_nifti_header(file)
        with np.errstate(all="ignore"):
            affine = header.get_best_affine()
        shape, spacing = header.get_data_shape()[:3], np.linalg.norm(affine[:3, :3], axis=0)
    except Exception:  # what is wrong with the file, the strict reader says
        return
    if math.prod(shape) > MAX_VOXELS or not (np.isfinite(spacing) & (spacing > 0)).all():
        return  # a header that claims this is refused by the reader, for a better reason
    check_fits(predictor, file, shape, spacing.tolist(), probabilities, memory_gib)


def check_fits(
    predictor: Predictor,
    file: Path,
    shape: Sequence[int],
    spacing: Sequence[float],
    probabilities: bool,
    memory_gib: float | None,
) -> None:
    """Refuse a prediction of voxels ``shape`` and ``spacing`` (mm) that needs more memory than there is.

    One that fits with the network's output in a file gets one.

    Raises:
        DeviceError: the estimate exceeds ``memory_gib``, or without it what is free.
    """
    from decathlete.inference.memory import PROCESS_GIB

    free = memory_gib is None
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # torchrun's on this machine
    limit = free_memory_bytes() / processes / 2**30 + PROCESS_GIB if memory_gib is None else memory_gib
    needed = predictor.memory_gib(shape, spacing, probabilities)
    predictor.keep_output(on_file=needed > limit)
    if needed > limit and predictor.memory_gib(shape, spacing, probabilities, output_on_file=True) > limit:
        raise DeviceError(
            file,
            f"needs about {needed:.1f} GiB of memory, more than "
            + (f"the {limit:.1f} GiB that are free" if free else f"--memory {limit:g}"),
            f"for {'x'.join(map(str, shape))} voxels",
            ("Free memory" if free else "Allow more")
            + ", crop the image"
            + (", or leave --save-probabilities out" if probabilities else ""),
        )
