"""Overlapping windows blended into one volume, which is kept where it fits."""

from __future__ import annotations

import logging
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from monai.data.utils import compute_importance_map, dense_patch_slices
from torch import Tensor

from decathlete.errors import ConfigError, DataError
from decathlete.failures import is_out_of_memory
from decathlete.files import cache_folder
from decathlete.machine import free_device_bytes, free_memory_bytes, memory_in_turn, total_memory_bytes

logger = logging.getLogger(__name__)

PLACES = ("device", "cpu", "file")
FRACTION_OF_FREE = 0.8  # the rest is for what comes after: resampling, the next layer's buffers
LEFT_OF_ALL = 0.2  # of the machine's memory, for the same of all processes that predict on it at once
SLAB_VOXELS = 2**24  # of the volume, worked on at a time
FLOAT = 4


class Buffer:
    """Zeros, float32, in the first of three places where they fit: the device, the machine's memory, a temporary file.

    What is free is asked before, by one process on the machine at a time, which takes it before the next one asks.
    Where memory runs out nevertheless, now or later (`fall_back`), the next place is taken; values are the same in all
    of them. The file is memory-mapped and has no name: it goes with the last tensor on it.

    Args:
        shape: of the tensor.
        device: what computes.
        place: "auto", or the one to begin with.

    Attributes:
        tensor: the values.
        place: where they are.

    Raises:
        ConfigError: an unknown place.
        DataError: the disk is full too.
    """

    def __init__(self, shape: Sequence[int], device: torch.device, place: str = "auto") -> None:
        self.shape, self.device = tuple(int(n) for n in shape), device
        if place not in ("auto", *PLACES):
            raise ConfigError("sliding window, output_on", f"expected auto, {', '.join(PLACES)}", repr(place))
        with memory_in_turn():
            self.place = self._first_that_fits() if place == "auto" else place
            self.tensor = self._allocate()

    @property
    def bytes(self) -> int:
        """Size of the values."""
        return math.prod(self.shape) * FLOAT

    def fall_back(self, error: BaseException) -> None:
        """Move the values to the next place, because of ``error``; raised again if there is none, or if it is another.

        The processor's memory is no other place than that of a device that is the processor.
        """
        after = self._next()
        if after is None or not is_out_of_memory(error):
            raise error
        self._move(after)
        logger.warning("memory ran out: the network's output continues in %s", _NAMES[self.place])

    def _move(self, place: str) -> None:
        before = self.tensor
        with memory_in_turn():
            self.place = place if place == "file" or self._fits_memory() else "file"
            self.tensor = self._allocate().copy_(before)
        if before.device.type == "cuda":
            del before
            torch.cuda.empty_cache()

    def _next(self) -> str | None:
        places = PLACES if self.device.type != "cpu" else ("cpu", "file")
        own = "cpu" if self.device.type == "cpu" and self.place == "device" else self.place
        later = places[places.index(own) + 1 :]
        return later[0] if later else None

    def _first_that_fits(self) -> str:
        if self.device.type == "cuda" and self.bytes <= FRACTION_OF_FREE * free_device_bytes(self.device):
            return "device"
        if self._fits_memory():
            return "cpu"
        logger.info("the network's output of %.1f GiB is kept in %s", self.bytes / 2**30, _NAMES["file"])
        return "file"

    def _fits_memory(self) -> bool:
        free, total = free_memory_bytes(), total_memory_bytes()
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # torchrun's on this machine, which begin together
        left = LEFT_OF_ALL * total if total < math.inf else 0
        return self.bytes <= min(FRACTION_OF_FREE * free / processes, free - left)

    def _allocate(self) -> Tensor:
        while True:
            try:
                if self.place == "file":
                    return _mapped(self.shape)
                return torch.zeros(self.shape, device=self.device if self.place == "device" else "cpu")
            except (RuntimeError, MemoryError) as error:
                after = self._next()
                if after is None or not is_out_of_memory(error):
                    raise
                self.place = after if self._fits_memory() else "file"


_NAMES = {"cpu": "the machine's memory", "file": "a temporary file"}


def _mapped(shape: tuple[int, ...]) -> Tensor:
    """Zeros in a file without a name, whose place on the disk is taken now: a full one later would end the process."""
    folder, size = cache_folder(), max(1, math.prod(shape) * FLOAT)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            return torch.from_numpy(np.memmap(file, dtype=np.float32, mode="w+", shape=shape))
    except OSError as error:
        wrong = f"the network's output ({size / 2**30:.1f} GiB) fits neither into memory nor on the disk"
        raise DataError(folder, wrong, str(error),
                        "Free some space, or set DECATHLETE_CACHE to another folder") from error  # fmt: skip


def or_fall_back(work: Callable[[], Tensor], buffer: Buffer | None) -> Tensor:
    """What ``work`` gives; where it runs out of memory, a buffer that exists falls back to its next place."""
    while True:
        try:
            return work()
        except (RuntimeError, MemoryError) as error:
            if buffer is None:
                raise
            buffer.fall_back(error)


def blend(
    volumes: Tensor,
    window: Sequence[int],
    forward: Callable[[Tensor], Tensor],
    overlap: float | Sequence[float] = 0.5,
    mode: str = "gaussian",
    sigma_scale: float | Sequence[float] = 0.125,
    batch_size: int = 4,
    place: str = "auto",
) -> Tensor:
    """Weighted mean of what ``forward`` gives for overlapping windows, as MONAI's ``sliding_window_inference``.

    Unlike there the result may lie elsewhere than the volumes (`Buffer`), chosen by its size, and where memory runs out
    in the middle of the work, it is moved.

    Args:
        volumes: (B, C, *spatial), no axis shorter than the window's.
        window: spatial shape of a window.
        forward: windows (n, C, *window) to values (n, D, *window), float32.
        overlap: fraction of a window's edge that its neighbour covers too, at least 0 and below 1; one number, or
            one an axis.
        mode: weights within a window, "gaussian" or "constant".
        sigma_scale: standard deviation of the Gaussian, in edges of the window.
        batch_size: windows that go forward at a time.
        place: "auto", or where the result begins to be kept: "device", "cpu", "file".

    Returns:
        (B, D, *spatial), float32.
    """
    size, window = tuple(volumes.shape[2:]), tuple(int(n) for n in window)
    weights = compute_importance_map(
        window, mode=mode, sigma_scale=sigma_scale, device=volumes.device, dtype=torch.float32
    )
    slices = dense_patch_slices(size, window, _steps(size, window, overlap))
    todo = [(b, where) for b in range(len(volumes)) for where in slices]
    buffer: Buffer | None = None
    for start in range(0, len(todo), batch_size):
        part = todo[start : start + batch_size]
        stacked = torch.stack([volumes[(b, slice(None), *where)] for b, where in part])
        values = or_fall_back(lambda: forward(stacked) * weights, buffer)  # noqa: B023
        kept = buffer = buffer or Buffer((len(volumes), values.shape[1], *size), volumes.device, place)
        sums = buffer.tensor
        for value, (b, where) in zip(values.to(sums.device), part, strict=True):
            sums[(b, slice(None), *where)] += value
    rows = or_fall_back(lambda: _rows(weights.to(kept.tensor.device), slices, size), kept)
    sums = kept.tensor
    for thick, total in _totals(rows, slices, size):
        sums[:, :, thick] /= total
    return sums


def _rows(weights: Tensor, slices: Sequence[tuple[slice, ...]], size: Sequence[int]) -> Tensor:
    """Sum of the weights of all windows that begin at the same place of the first axis, (window, *size[1:])."""
    rows = weights.new_zeros(len(weights), *size[1:])
    for where in (where for where in slices if where[0] == slices[0][0]):
        rows[(slice(None), *where[1:])] += weights
    return rows


def _totals(rows: Tensor, slices: Sequence[tuple[slice, ...]], size: Sequence[int]) -> Iterator[tuple[slice, Tensor]]:
    """Slabs across the first axis, and the sum of all weights in each: no tensor of the volume's size is made."""
    starts = sorted({where[0].start for where in slices})
    for thick in _slabs(size):
        stop = min(thick.stop, size[0])
        total = rows.new_zeros(stop - thick.start, *size[1:])
        for start in starts:
            first, last = max(start, thick.start), min(start + len(rows), stop)
            if first < last:
                total[first - thick.start : last - thick.start] += rows[first - start : last - start]
        yield thick, total


def _steps(size: Sequence[int], window: Sequence[int], overlap: float | Sequence[float]) -> tuple[int, ...]:
    """Voxels from a window to the next, per axis."""
    fractions = [overlap] * len(size) if isinstance(overlap, (int, float)) else list(overlap)
    if len(fractions) != len(size) or not all(0 <= fraction < 1 for fraction in fractions):
        raise ConfigError("sliding window, overlap", f"expected one number or {len(size)}, at least 0 and below 1",
                          str(overlap))  # fmt: skip
    return tuple(
        w if w == n else max(1, int(w * (1 - fraction))) for n, w, fraction in zip(size, window, fractions, strict=True)
    )


def _slabs(size: Sequence[int]) -> Iterator[slice]:
    thickness = max(1, SLAB_VOXELS // max(1, math.prod(size[1:])))
    for start in range(0, size[0], thickness):
        yield slice(start, start + thickness)
