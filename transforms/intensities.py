"""The intensity part of an augmentation: what another scanner, sequence or resolution would have changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from decathlete.errors import ConfigError
from decathlete.transforms.moves import smooth
from decathlete.transforms.parcel import Parcel

_AXES = ("all", "one")

Change = Callable[[Tensor], Tensor]


class ChangeIntensities:
    """Scale, shift, noise, blur, contrast, resolution, field, curve and gamma, each sample with its own numbers.

    See ``BatchAugment`` for the arguments.
    """

    def __init__(
        self,
        intensity_scale: float,
        intensity_shift: float,
        noise: float,
        noise_prob: float,
        gamma: float,
        gamma_prob: float,
        blur: Sequence[float],
        blur_prob: float,
        contrast: Sequence[float],
        contrast_prob: float,
        contrast_keep_range: bool,
        low_resolution: Sequence[float],
        low_resolution_prob: float,
        low_resolution_axes: str,
        curve: float,
        curve_prob: float,
        curve_pieces: int,
        bias: float,
        bias_prob: float,
    ) -> None:
        if low_resolution_axes not in _AXES:
            raise ConfigError("BatchAugment, low_resolution_axes", f"expected one of {', '.join(_AXES)}",
                              repr(low_resolution_axes))  # fmt: skip
        if curve_pieces < 1 or curve < 0:
            raise ConfigError("BatchAugment, curve", "expected 1 piece or more and a deviation of 0 or more",
                              f"{curve_pieces} and {curve}")  # fmt: skip
        self.intensity_scale, self.intensity_shift = intensity_scale, intensity_shift
        self.noise, self.noise_prob, self.gamma, self.gamma_prob = noise, noise_prob, gamma, gamma_prob
        self.blur, self.blur_prob = _limits("blur", blur, math.inf), blur_prob
        self.contrast, self.contrast_prob = _limits("contrast", contrast, math.inf), contrast_prob
        self.contrast_keep_range = contrast_keep_range
        self.low_resolution = _limits("low_resolution", low_resolution, 1.0)
        self.low_resolution_prob, self.one_axis = low_resolution_prob, low_resolution_axes == "one"
        self.bias, self.bias_prob = bias, bias_prob
        self.curve, self.curve_prob, self.curve_pieces = curve, curve_prob, curve_pieces

    def plan(self, shape: Sequence[int], device: torch.device, parcel: Parcel) -> Change:
        """Draw the numbers for images of ``shape`` (B, C, *spatial) on ``device``; a function that changes them."""
        one_each = (shape[0], *(1,) * (len(shape) - 1))
        changes: list[Change] = []

        def some(prob: float, limits: tuple[float, float], plan: Callable[[Tensor], Change]) -> None:
            """A change of the samples that are drawn, each by its own number within ``limits``."""
            chosen = torch.nonzero(torch.rand(shape[0]) < prob)[:, 0]
            numbers = limits[0] + torch.rand(shape[0]) * (limits[1] - limits[0])
            if not len(chosen):
                return
            where, change = parcel.add(chosen), plan(numbers[chosen])
            changes.append(lambda image: image.index_copy(0, where(), change(image[where()])))

        factor = parcel.add(1 + (torch.rand(one_each) * 2 - 1) * self.intensity_scale)
        shift = parcel.add((torch.rand(one_each) * 2 - 1) * self.intensity_shift)
        changes.append(lambda image: image * factor() + shift())
        if self.noise and self.noise_prob:
            sigma = self.noise * torch.rand(one_each) * (torch.rand(one_each) < self.noise_prob)
            if bool(sigma.any()):
                changes.append(_noisy(sigma, noise_of(shape, device), parcel))
        if self.blur_prob:
            some(self.blur_prob, self.blur, lambda sigma: _blurred(sigma, parcel))
        if self.contrast_prob:
            some(self.contrast_prob, self.contrast, lambda f: _contrasted(f, self.contrast_keep_range, parcel))
        if self.low_resolution_prob:
            plan = lambda f: _coarsened(f, shape[2:], self.one_axis, parcel)  # noqa: E731
            some(self.low_resolution_prob, self.low_resolution, plan)
        if self.bias_prob and self.bias:
            some(self.bias_prob, (0.0, self.bias), lambda deviation: _biased(deviation, len(shape) - 2, parcel))
        if self.curve_prob and self.curve:
            limits = (self.curve, self.curve)
            some(self.curve_prob, limits, lambda deviation: _curved(deviation, self.curve_pieces, parcel))
        if self.gamma and self.gamma_prob:
            log = (torch.rand(one_each) * 2 - 1) * self.gamma * (torch.rand(one_each) < self.gamma_prob)
            changes.append(_gamma(torch.exp(log), parcel))

        def change(image: Tensor) -> Tensor:
            for one in changes:
                image = one(image)
            return image

        return change


def noise_of(shape: Sequence[int], device: torch.device) -> Callable[[], Tensor]:
    """Normal noise: on a CPU drawn now, in the order of all numbers; on a GPU when it is needed, by its own generator.

    ``torch.manual_seed`` sets both.
    """
    if device.type != "cpu":
        return lambda: torch.randn(tuple(shape), device=device)
    noise = torch.randn(tuple(shape))
    return lambda: noise


def _noisy(sigma: Tensor, noise: Callable[[], Tensor], parcel: Parcel) -> Change:
    there = parcel.add(sigma)
    return lambda image: image + noise() * there()


def _blurred(sigma: Tensor, parcel: Parcel) -> Change:
    """Gaussian blur with each sample's ``sigma`` (B,) in voxels; beyond the edge, the edge's value."""
    reach = max(1, math.ceil(3 * float(sigma.max())))
    steps = torch.arange(-reach, reach + 1)
    weights = torch.exp(-0.5 * (steps / sigma.clamp_min(1e-3)[:, None]) ** 2)  # (B, steps)
    there = parcel.add(weights / weights.sum(1, keepdim=True))

    def change(image: Tensor) -> Tensor:
        parts = there().view(len(image), len(steps), *(1,) * (image.ndim - 1))
        for axis in range(2, image.ndim):
            n = image.shape[axis]
            near = torch.arange(-reach, n + reach, device=image.device).clamp(0, n - 1)
            padded = image.index_select(axis, near)
            # one axis after the other, sum of shifted copies: a grouped convolution is slower, and on CUDA not
            # repeatable
            image = sum(padded.narrow(axis, k, n) * parts[:, k] for k in range(len(steps)))  # type: ignore[assignment]
        return image

    return change


def _contrasted(factor: Tensor, keep_range: bool, parcel: Parcel) -> Change:
    """Distances from each channel's mean multiplied by each sample's ``factor`` (B,)."""
    there = parcel.add(factor)

    def change(image: Tensor) -> Tensor:
        axes = tuple(range(2, image.ndim))
        mean = image.mean(axes, keepdim=True)
        changed = mean + (image - mean) * there().view(-1, *(1,) * (image.ndim - 1))
        return changed.clamp(image.amin(axes, keepdim=True), image.amax(axes, keepdim=True)) if keep_range else changed

    return change


def _coarsened(factor: Tensor, size: Sequence[int], one_axis: bool, parcel: Parcel) -> Change:
    """Each sample on a grid of ``factor`` (B,) times the voxels an axis, and back: nearest there, linear back.

    What ``F.interpolate`` with ``nearest-exact`` and ``linear`` gives for one sample, without a loop over samples of
    different sizes: both are one axis after the other, so a voxel is a mean of two of the image's on each axis.
    """
    dims, samples = len(size), len(factor)
    drawn = torch.randint(2, dims + 2, (samples,)) if one_axis else None
    plans = []
    for axis, n in enumerate(size, 2):
        here = factor if drawn is None else torch.where(drawn == axis, factor, torch.ones(()))
        coarse = (n * here).round().clamp(1, n)[:, None]  # (B, 1) voxels of the coarse axis
        place = ((torch.arange(n) + 0.5) * coarse / n - 0.5).clamp_min(0)  # (B, n) on the coarse axis
        below = place.floor()
        shape = (samples, *(n if a == axis else 1 for a in range(1, dims + 2)))
        ends = []
        for voxel in (below, torch.minimum(below + 1, coarse - 1)):
            source = ((voxel + 0.5) * n / coarse).floor().long().clamp(0, n - 1)
            ends.append(parcel.add(source.view(shape)))
        plans.append((axis, ends, parcel.add((place - below).view(shape))))

    def change(image: Tensor) -> Tensor:
        for axis, ends, weight in plans:
            low, high = (torch.take_along_dim(image, source(), axis) for source in ends)
            image = torch.lerp(low, high, weight())
        return image

    return change


def _biased(deviation: Tensor, dims: int, parcel: Parcel) -> Change:
    """Distances from each channel's smallest value times a smooth field, the same for all channels."""
    nodes = torch.randn(len(deviation), 1, *(4,) * dims) * deviation.view(-1, *(1,) * (dims + 1))
    there = parcel.add(nodes)

    def change(image: Tensor) -> Tensor:
        field = smooth(there(), image.shape[2:]).exp()
        low = image.amin(tuple(range(2, image.ndim)), keepdim=True)
        return (image - low) * field + low

    return change


def _curved(deviation: Tensor, pieces: int, parcel: Parcel) -> Change:
    """Intensities between each channel's extremes along a rising curve of straight pieces; the extremes stay."""
    slopes = torch.exp(torch.randn(len(deviation), pieces) * deviation[:, None])
    # (B, pieces + 1), 0 to 1
    there = parcel.add(F.pad(slopes.cumsum(1) / slopes.sum(1, keepdim=True), (1, 0)))

    def change(image: Tensor) -> Tensor:
        knots = there()
        low, span = _range(image, tuple(range(2, image.ndim)))
        place = (image - low) / span * pieces
        below = place.floor().clamp_(0, pieces - 1)
        index = below.long().flatten(1)
        height = torch.lerp(knots.gather(1, index), knots.gather(1, index + 1), (place - below).flatten(1))
        return height.view_as(image) * span + low

    return change


def _gamma(exponent: Tensor, parcel: Parcel) -> Change:
    there = parcel.add(exponent)

    def change(image: Tensor) -> Tensor:
        low, span = _range(image, tuple(range(1, image.ndim)))
        return ((image - low) / span).pow(there()) * span + low

    return change


def _range(image: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    low = image.amin(axes, keepdim=True)
    return low, (image.amax(axes, keepdim=True) - low).clamp_min(1e-6)


def _limits(name: str, limits: Sequence[float], most: float) -> tuple[float, float]:
    numbers = tuple(float(v) for v in limits)
    if len(numbers) != 2 or not 0 <= numbers[0] <= numbers[1] <= most or numbers[1] == 0 or math.isinf(numbers[1]):
        bound = "" if math.isinf(most) else f", at most {most:g}"
        raise ConfigError(f"BatchAugment, {name}", f"expected a smallest and a largest number, 0 or more{bound}",
                          str(list(limits)))  # fmt: skip
    return numbers[0], numbers[1]
