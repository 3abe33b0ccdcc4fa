"""Inference over windows, in the number format of training."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.utils import ensure_tuple_rep, fall_back_tuple
from torch import Tensor

from decathlete.errors import ConfigError, GeometryError
from decathlete.inference.blending import Buffer, blend, or_fall_back
from decathlete.training.precision import autocast

MOST_WINDOWS = 4  # at a time
CPU_BATCH_VOXELS = 2**18  # on a processor; measured: python benchmarks/inference.py batches


class SlidingWindow(Inferer):
    """A sliding window under autocast, with mirrored copies by option; the output is float32 logits.

    The windows and their weights are those of MONAI's SlidingWindowInferer. Where the output lies is chosen by its
    size: on the device, else in the machine's memory, else in a memory-mapped file; see
    `decathlete.inference.blending`. A volume that one window covers takes a plain forward pass, without the weights and
    sums of blending.

    Args:
        roi_size: window; components that are not positive take the volume's size.
        sw_batch_size: windows that the network sees at a time; None for four, or on a processor, where larger batches
            take more memory and more time, as many of four as hold `CPU_BATCH_VOXELS` voxels, and one at least.
        overlap, mode, sigma_scale, padding_mode, cval: as in MONAI's SlidingWindowInferer, with other defaults.
        amp: forward pass in bfloat16 where the device has it (see ``decathlete.training.precision``).
        mirror_axes: spatial axes (0, 1, 2) to mirror: each window is predicted in all combinations, 2 to the power of
            their number, and the **logits** are averaged, as where windows overlap.
        divisible: the padded volume and window are multiples of this, which the network's strides may ask for.
        output_on: where the output is to lie: "auto", "device", "cpu" or "file".

    Attributes:
        disagreement: set to True, the output has one more channel: the bits by which the mirrored copies disagree,
            `disagreement_bits`.
    """

    def __init__(
        self,
        roi_size: Sequence[int] | int,
        sw_batch_size: int | None = None,
        overlap: Sequence[float] | float = 0.5,
        mode: str = "gaussian",
        amp: bool = True,
        mirror_axes: Sequence[int] | None = None,
        divisible: Sequence[int] | int = 1,
        sigma_scale: Sequence[float] | float = 0.125,
        padding_mode: str = "constant",
        cval: float = 0.0,
        output_on: str = "auto",
    ) -> None:
        super().__init__()
        fractions = overlap if isinstance(overlap, Sequence) else [overlap]
        if not all(0 <= fraction < 1 for fraction in fractions):
            raise ConfigError(f"{type(self).__name__}, overlap", "expected at least 0 and below 1", str(overlap))
        self.roi_size, self.sw_batch_size, self.overlap, self.mode = roi_size, sw_batch_size, overlap, mode
        self.amp, self.mirror_axes, self.divisible = amp, tuple(mirror_axes or ()), divisible
        self.sigma_scale, self.padding_mode, self.cval = sigma_scale, padding_mode, cval
        self.output_on = output_on
        self.disagreement = False

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        """Float32 logits (B, num_classes, *spatial) of ``inputs`` (B, C, *spatial); a MetaTensor of a MetaTensor."""
        size = tuple(inputs.shape[2:])
        if any(not 0 <= axis < len(size) for axis in self.mirror_axes):
            raise ValueError(f"mirror_axes (={self.mirror_axes}) must be among the {len(size)} spatial axes, from 0")
        plain = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        window = self.window(size)
        low = [max(w - n, 0) // 2 for w, n in zip(window, size, strict=True)]
        high = [max(w - n, 0) - before for w, n, before in zip(window, size, low, strict=True)]
        if any(low) or any(high):
            pad = [n for pair in reversed(list(zip(low, high, strict=True))) for n in pair]
            plain = F.pad(plain, pad, mode=self.padding_mode, value=self.cval)

        batch = self.windows_at_a_time(window, plain.device)

        def forward(x: Tensor) -> Tensor:
            return self._forward(x, network, *args, **kwargs)

        if tuple(plain.shape[2:]) == window:
            out = torch.cat([forward(part) for part in plain.split(batch)])
        else:
            out = blend(plain.float(), window, forward, self.overlap, self.mode, self.sigma_scale, batch,
                        self.output_on)  # fmt: skip
        out = out[(..., *(slice(before, before + n) for before, n in zip(low, size, strict=True)))]
        # an evaluator's postprocessing expects a MetaTensor of a MetaTensor, as MONAI's inferers give
        return MetaTensor(out).copy_meta_from(inputs, copy_attr=False) if isinstance(inputs, MetaTensor) else out

    def window(self, size: Sequence[int]) -> tuple[int, ...]:
        """Spatial shape of the windows of a volume of spatial shape ``size``; smaller volumes are padded to it."""
        roi = fall_back_tuple(self.roi_size, tuple(size))
        return tuple(-(-n // k) * k for n, k in zip(roi, ensure_tuple_rep(self.divisible, len(size)), strict=True))

    def windows_at_a_time(self, window: Sequence[int], device: torch.device) -> int:
        """Windows of spatial shape ``window`` that the network sees at a time on ``device``."""
        if self.sw_batch_size is not None:
            return self.sw_batch_size
        if device.type != "cpu":
            return MOST_WINDOWS
        return min(max(CPU_BATCH_VOXELS // math.prod(window), 1), MOST_WINDOWS)

    def _forward(self, x: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        total: Tensor | None = None
        soft: list[Tensor] = []
        copies = [c for n in range(len(self.mirror_axes) + 1) for c in itertools.combinations(self.mirror_axes, n)]
        with autocast(x.device, self.amp):
            for axes in copies:
                dims = [axis + 2 for axis in axes]
                out = finest(network(x.flip(dims) if dims else x, *args, **kwargs)).float()
                out = out.flip(dims) if dims else out
                if self.disagreement:
                    soft.append(out.softmax(1))
                total = out if total is None else total.add_(out)
        mean = total / len(copies) if len(copies) > 1 else total  # type: ignore[operator]
        return torch.cat([mean, disagreement_bits(soft, 1)], 1) if self.disagreement else mean  # type: ignore


class SliceWise(SlidingWindow):
    """A volume predicted slice by slice with a 2D network, several slices at a time; the output is float32 logits.

    In memory at a time: the logits of the volume, and those of one batch of slices.

    Args:
        roi_size: window in the plane of a slice, two numbers, in the order of the slice's axes in the volume. Larger
            slices are covered by windows, smaller ones padded; numbers that are not positive take the slice's size.
        sw_batch_size: slices that the network sees at a time, None as there; where a slice takes several windows,
            windows.
        overlap, mode, amp, divisible, sigma_scale, padding_mode, cval: as in :class:`SlidingWindow`, in the plane.
        output_on: as there.
        axis: spatial axis (0, 1, 2) along which the slices lie.
        neighbours: slices on either side that go in as channels (2.5D). For slice z they are those of z - neighbours,
            then of the next one, up to z + neighbours, each with all its channels; the volume's first and last slice
            stand for those beyond. The network takes C * (2 * neighbours + 1) channels.
        mirror_axes: axes of the slice (0, 1) to mirror, with the logits averaged.

    Raises:
        ConfigError: an axis, a window or a number of neighbours that cannot be.
    """

    def __init__(
        self,
        roi_size: Sequence[int],
        sw_batch_size: int | None = None,
        overlap: Sequence[float] | float = 0.5,
        mode: str = "gaussian",
        amp: bool = True,
        mirror_axes: Sequence[int] | None = None,
        divisible: Sequence[int] | int = 1,
        axis: int = 2,
        neighbours: int = 0,
        sigma_scale: Sequence[float] | float = 0.125,
        padding_mode: str = "constant",
        cval: float = 0.0,
        output_on: str = "auto",
    ) -> None:
        if not isinstance(roi_size, Sequence) or len(roi_size) != 2:
            raise ConfigError("SliceWise, roi_size", "expected two numbers, a window in the slice", str(roi_size))
        if axis not in (0, 1, 2):
            raise ConfigError("SliceWise, axis", "expected 0, 1 or 2", str(axis))
        if neighbours != int(neighbours) or neighbours < 0:
            raise ConfigError("SliceWise, neighbours", "expected a number of slices, 0 or more", str(neighbours))
        super().__init__(roi_size, sw_batch_size, overlap, mode, amp, mirror_axes, divisible, sigma_scale, padding_mode,
                         cval, output_on)  # fmt: skip
        self.axis, self.neighbours = axis, int(neighbours)

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        """Float32 logits (B, num_classes, X, Y, Z) of ``inputs`` (B, C, X, Y, Z); a MetaTensor of a MetaTensor."""
        if inputs.ndim != 5:
            raise GeometryError("SliceWise", "expected volumes, (B, C, X, Y, Z)", f"shape {tuple(inputs.shape)}")
        volumes = (inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs).movedim(self.axis + 2, 1)
        count = volumes.shape[1]  # volumes: (B, slices, C, *plane)
        reach = torch.arange(-self.neighbours, self.neighbours + 1)
        buffer: Buffer | None = None
        step = self.windows_at_a_time(self.window(volumes.shape[3:]), inputs.device)
        for number, slices in enumerate(volumes):
            for start in range(0, count, step):
                places = torch.arange(start, min(start + step, count))
                near = (places[:, None] + reach).clamp_(0, count - 1).to(slices.device)
                # (n, 2 * neighbours + 1, C, *plane): slice after slice, each with its channels
                stack = slices[near].flatten(1, 2)
                plane = super().__call__
                logits = or_fall_back(lambda: plane(stack, network, *args, **kwargs), buffer)  # noqa: B023
                if buffer is None:
                    shape = [len(volumes), logits.shape[1], *inputs.shape[2:]]
                    buffer = Buffer(shape, logits.device, self.output_on)
                out = buffer.tensor
                out[number].movedim(self.axis + 1, 0)[start : start + len(places)] = logits.to(out.device)
        if buffer is None:
            raise GeometryError("SliceWise", "a volume without slices", f"shape {tuple(inputs.shape)}")
        return MetaTensor(out).copy_meta_from(inputs, copy_attr=False) if isinstance(inputs, MetaTensor) else out


def disagreement_bits(probabilities: Sequence[Tensor], dim: int) -> Tensor:
    """Bits by which predictions disagree, voxel by voxel; ``dim`` has length 1.

    The entropy of their mean less the mean of their entropies (mutual information, Houlsby et al. 2011): 0 where all
    say the same, however uncertain they are, 1 where half of them are sure of one class and half of another.

    Args:
        probabilities: class probabilities, one tensor a prediction.
        dim: axis of the classes.
    """
    mean = torch.stack(list(probabilities)).mean(0) if len(probabilities) > 1 else probabilities[0]
    own = sum(entropy_bits(p, dim) for p in probabilities) / len(probabilities)
    return (entropy_bits(mean, dim) - own).clamp_(min=0)


def entropy_bits(probabilities: Tensor, dim: int) -> Tensor:
    """Entropy of class probabilities along ``dim``, which keeps length 1."""
    return -torch.xlogy(probabilities, probabilities).sum(dim, keepdim=True) / math.log(2)


def finest(output: Any) -> Tensor:
    """The full-resolution output: the first of a deeply supervised network's list, or a dictionary's first value."""
    if isinstance(output, Mapping):
        return finest(next(iter(output.values())))
    return finest(output[0]) if isinstance(output, (list, tuple)) else output
