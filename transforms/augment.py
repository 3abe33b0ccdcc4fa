"""Random transforms that work on a whole batch of tensors, on the device where the batch is.

A batch is moved, turned and stretched by one call of ``grid_sample``, image and class shares together, on CPU or GPU;
MONAI's dictionary transforms resample case by case and key by key before the batch is made, and know no soft labels
(``benchmarks/augmentation.py`` times the two).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from decathlete.errors import ConfigError

_LABEL_MODES = ("soft", "shares", "nearest")
_PADDINGS = ("zeros", "min")
_AXES = ("all", "one")


class BatchAugment:
    """Crop, turn, stretch, mirror and bend a batch, then change the image's intensities.

    Every random number is drawn from torch's global generator of the CPU, so ``torch.manual_seed`` repeats a batch on
    any device. Each sample draws its own numbers.

    Args:
        patch_size: spatial shape of what comes out, in voxels. The batch that goes in may be larger: what is turned in
            at the corners is then image, not padding.
        num_classes: with background; needed for ``label_mode="soft"``.
        prob: share of samples that are turned, stretched and bent; the others are only shifted and mirrored.
        rotation: largest angle in radians, about each axis (3D) or in the plane (2D); in 3D also one number an axis, so
            that slices far apart are turned within themselves only: ``(0, 0, 0.4)``.
        scale: largest relative change of size, the same for all axes; each axis changes by up to half as much again.
        translation: largest shift in voxels, one number or one per axis.
        mirror_axes: spatial axes that are mirrored in half of the samples each. Label values do not change sides.
        elastic: standard deviation in voxels of the displacement at the control points; 0 turns it off.
        control_points: number of control points along each axis.
        intensity_scale: the image is multiplied by a number in ``1 ± intensity_scale``.
        intensity_shift: then a number in ``± intensity_shift`` is added, for images of unit standard deviation.
        noise: largest standard deviation of Gaussian noise.
        noise_prob: share of samples with noise.
        gamma: largest absolute logarithm of the exponent applied between the image's extremes.
        gamma_prob: share of samples with a gamma change.
        blur: smallest and largest standard deviation in voxels of a Gaussian blur.
        blur_prob: share of blurred samples; 0, as for the next two, turns it off and draws nothing for it.
        contrast: smallest and largest factor of the distance from each channel's mean.
        contrast_prob: share of samples with another contrast.
        contrast_keep_range: cut off what that takes out of the channel's range, as nnU-Net does.
        low_resolution: smallest and largest factor by which the axes are shortened (nearest voxel) and then brought
            back (linear), as a coarser scan would have been; at most 1. The label stays as it is.
        low_resolution_prob: share of samples of low resolution.
        low_resolution_axes: ``all`` alike, or ``one``, drawn for each sample, as in a scan of thick slices.
        curve: standard deviation of the logarithm of the slopes of a rising curve of ``curve_pieces`` straight pieces
            that takes the image's intensities between its extremes to others, as another sequence would.
        curve_prob: share of samples with such a curve.
        curve_pieces: number of its pieces.
        bias: largest standard deviation of the logarithm of a smooth field that multiplies the distance from each
            channel's smallest value.
        bias_prob: share of samples with such a field.
        padding: what is beyond the image: ``zeros``, or ``min``, the smallest value of each sample's channel (air).
        spacing: voxel edge lengths in mm, so that a rotation turns the body and not the voxels; default all equal.
        label_mode: ``soft`` returns class shares, shape (B, num_classes, *patch_size), interpolated linearly: a border
            that falls between two voxels stays there, where nearest moves it by up to half a voxel; ``shares`` does
            the same for labels that are shares already, one channel a class without background; ``nearest`` returns
            label values, shape (B, 1, *patch_size).
        image_key: key of the image, shape (B, C, *spatial).
        label_key: key of the label map, shape (B, 1, *spatial), values 0 to num_classes - 1; for ``shares``
            (B, num_classes - 1, *spatial), values 0 to 1.
        draw: puts other images in the place of some, from moved image, moved map and whole map of tissues
            (``DrawFromLabels``).
        tissue_key: key of that map, (B, 1, *spatial); a batch without it is not drawn.

    Raises:
        ConfigError: an argument that cannot be, when the object is made.
    """

    def __init__(
        self,
        patch_size: Sequence[int],
        num_classes: int | None = None,
        prob: float = 0.8,
        rotation: float | Sequence[float] = 0.4,
        scale: float = 0.15,
        translation: float | Sequence[float] = 3.0,
        mirror_axes: Sequence[int] = (),
        elastic: float = 0.0,
        control_points: int = 6,
        intensity_scale: float = 0.25,
        intensity_shift: float = 0.25,
        noise: float = 0.15,
        noise_prob: float = 0.3,
        gamma: float = 0.3,
        gamma_prob: float = 0.3,
        blur: Sequence[float] = (0.5, 1.0),
        blur_prob: float = 0.0,
        contrast: Sequence[float] = (0.75, 1.25),
        contrast_prob: float = 0.0,
        contrast_keep_range: bool = True,
        low_resolution: Sequence[float] = (0.5, 1.0),
        low_resolution_prob: float = 0.0,
        low_resolution_axes: str = "all",
        curve: float = 0.5,
        curve_prob: float = 0.0,
        curve_pieces: int = 6,
        bias: float = 0.3,
        bias_prob: float = 0.0,
        padding: str = "zeros",
        spacing: Sequence[float] | None = None,
        label_mode: str = "soft",
        image_key: str = "image",
        label_key: str = "label",
        draw: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
        tissue_key: str = "tissues",
    ) -> None:
        self.patch_size = tuple(int(n) for n in patch_size)
        dims = len(self.patch_size)
        if dims not in (2, 3):
            raise ConfigError("BatchAugment, patch_size", "must have 2 or 3 numbers", f"{dims}: {self.patch_size}")
        if label_mode not in _LABEL_MODES:
            raise ConfigError("BatchAugment, label_mode", f"must be one of {_LABEL_MODES}", repr(label_mode))
        if padding not in _PADDINGS:
            raise ConfigError("BatchAugment, padding", f"must be one of {_PADDINGS}", repr(padding))
        if low_resolution_axes not in _AXES:
            raise ConfigError("BatchAugment, low_resolution_axes", f"must be one of {_AXES}", repr(low_resolution_axes))
        if curve_pieces < 1 or curve < 0:
            raise ConfigError("BatchAugment, curve", "has 1 piece or more and a deviation of 0 or more",
                              f"{curve_pieces} and {curve}")  # fmt: skip
        if label_mode == "soft" and not num_classes:
            raise ConfigError("BatchAugment, num_classes", "is needed for label_mode 'soft'", repr(num_classes))
        if any(not 0 <= axis < dims for axis in mirror_axes):
            raise ConfigError("BatchAugment, mirror_axes", f"must be axes 0 to {dims - 1}", str(list(mirror_axes)))
        self.num_classes = num_classes
        self.prob, self.scale, self.elastic = prob, scale, elastic
        angles = 3 if dims == 3 else 1
        turns = tuple(rotation) if isinstance(rotation, Sequence) else (rotation,) * angles
        if len(turns) != angles:
            raise ConfigError("BatchAugment, rotation", f"must be one number or {angles}", f"{len(turns)}: {turns}")
        self.rotation = torch.tensor([float(angle) for angle in turns])
        self.control_points = control_points
        shifts = translation if isinstance(translation, Sequence) else (translation,) * dims
        self.translation = torch.tensor([float(t) for t in shifts])
        self.mirror_axes = tuple(mirror_axes)
        self.intensity_scale, self.intensity_shift = intensity_scale, intensity_shift
        self.noise, self.noise_prob, self.gamma, self.gamma_prob = noise, noise_prob, gamma, gamma_prob
        self.blur, self.blur_prob = _limits("blur", blur, math.inf), blur_prob
        self.contrast, self.contrast_prob = _limits("contrast", contrast, math.inf), contrast_prob
        self.contrast_keep_range = contrast_keep_range
        self.low_resolution = _limits("low_resolution", low_resolution, 1.0)
        self.low_resolution_prob, self.one_axis = low_resolution_prob, low_resolution_axes == "one"
        self.bias, self.bias_prob, self.draw, self.tissue_key = bias, bias_prob, draw, tissue_key
        self.curve, self.curve_prob, self.curve_pieces = curve, curve_prob, curve_pieces
        self.spacing = torch.tensor([float(s) for s in spacing] if spacing is not None else [1.0] * dims)
        if len(self.translation) != dims or len(self.spacing) != dims:
            raise ConfigError(
                "BatchAugment",
                f"translation and spacing need {dims} numbers each, one per axis",
                f"{len(self.translation)} and {len(self.spacing)}",
            )
        self.padding = padding
        self.label_mode, self.image_key, self.label_key = label_mode, image_key, label_key

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return a copy of ``batch`` with image and label replaced; other keys are passed on."""
        out = dict(batch)
        image, label = _plain(batch[self.image_key]).float(), _plain(batch[self.label_key])
        grid = self._grid(image.shape[0], image.shape[2:]).to(image.device)
        low = image.amin(tuple(range(2, image.ndim)), keepdim=True) if self.padding == "min" else None
        image = image if low is None else image - low  # sampling pads with zeros
        if self.label_mode == "nearest":
            out[self.label_key] = _sample(label.float(), grid, "nearest").to(label.dtype)
            moved = _sample(image, grid, "bilinear")
        else:
            # background is what the others leave: one channel less to interpolate, and outside the volume it is 1; all
            # channels in one call, since finding a point's neighbours costs more than weighing them
            if self.label_mode == "shares":
                foreground = list(label.float().split(1, 1))
            else:
                foreground = [(label == c).float() for c in range(1, self.num_classes or 2)]
            moved, shares = _sample(torch.cat([image, *foreground], 1), grid, "bilinear").split(
                [image.shape[1], len(foreground)], 1
            )
            out[self.label_key] = torch.cat([(1 - shares.sum(1, keepdim=True)).clamp_min(0), shares], 1)
        moved = moved if low is None else moved + low
        if self.draw is not None and self.tissue_key in batch:
            tissues = _plain(batch[self.tissue_key])
            there = _sample(tissues.float(), grid, "nearest").to(tissues.dtype)
            moved = self.draw(moved, there, tissues)
            out[self.tissue_key] = there
        out[self.image_key] = self._change_intensity(moved)
        return out

    def _grid(self, samples: int, shape: Sequence[int]) -> Tensor:
        """Where each voxel of the patches is taken from: (B, *patch_size, dims) in grid_sample's coordinates."""
        dims = len(self.patch_size)
        matrix = self._matrices(samples)  # (B, dims, dims), acts on mm from the patch's centre
        axes = [torch.arange(n) - (n - 1) / 2 for n in self.patch_size]
        points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).view(-1, dims)  # (V, dims) in voxels
        matrix = matrix * self.spacing / self.spacing[:, None]
        where = points @ matrix.transpose(1, 2) + (torch.rand(samples, 1, dims) * 2 - 1) * self.translation
        where = where.view(samples, *self.patch_size, dims)
        if self.elastic:
            bend = torch.randn(samples, dims, *(self.control_points,) * dims) * self.elastic
            mode = "trilinear" if dims == 3 else "bilinear"
            bend = F.interpolate(bend, size=self.patch_size, mode=mode, align_corners=True).movedim(1, -1)
            where = where + bend * (torch.rand(samples) < self.prob).float().view(-1, *(1,) * (dims + 1))
        half = torch.tensor([max((n - 1) / 2, 0.5) for n in shape])
        return (where / half).flip(-1)  # grid_sample counts the axes from the last

    def _matrices(self, samples: int) -> Tensor:
        """Draw one linear map per sample, from the patch's millimetres to the batch's: (B, dims, dims)."""
        dims = len(self.patch_size)
        moved = (torch.rand(samples) < self.prob).float()[:, None]
        angles = (torch.rand(samples, 3 if dims == 3 else 1) * 2 - 1) * self.rotation * moved
        common = (torch.rand(samples, 1) * 2 - 1) * self.scale
        each = (torch.rand(samples, dims) * 2 - 1) * self.scale / 2
        stretch = 1 + (common + each) * moved
        for axis in self.mirror_axes:
            stretch[:, axis] *= 1 - 2 * (torch.rand(samples) < 0.5).float()
        return rotation_matrices(angles) @ torch.diag_embed(stretch)

    def _change_intensity(self, image: Tensor) -> Tensor:
        """Scale, shift, noise, blur, contrast, resolution and gamma, each sample with its own numbers."""
        shape = (image.shape[0], *(1,) * (image.ndim - 1))

        def draw() -> Tensor:
            return torch.rand(shape).to(image.device)

        image = image * (1 + (draw() * 2 - 1) * self.intensity_scale) + (draw() * 2 - 1) * self.intensity_shift
        if self.noise and self.noise_prob:
            sigma = self.noise * draw() * (draw() < self.noise_prob)
            if bool(sigma.any()):
                image = image + torch.randn(image.shape).to(image.device) * sigma
        if self.blur_prob:
            image = _change_some(image, self.blur_prob, self.blur, _blurred)
        if self.contrast_prob:
            contrast = functools.partial(_contrasted, keep_range=self.contrast_keep_range)
            image = _change_some(image, self.contrast_prob, self.contrast, contrast)
        if self.low_resolution_prob:
            coarsened = functools.partial(_coarsened, one_axis=self.one_axis)
            image = _change_some(image, self.low_resolution_prob, self.low_resolution, coarsened)
        if self.bias_prob and self.bias:
            image = _change_some(image, self.bias_prob, (0.0, self.bias), _biased)
        if self.curve_prob and self.curve:
            curved = functools.partial(_curved, pieces=self.curve_pieces)
            image = _change_some(image, self.curve_prob, (self.curve, self.curve), curved)
        if self.gamma and self.gamma_prob:
            exponent = torch.exp((draw() * 2 - 1) * self.gamma * (draw() < self.gamma_prob))
            axes = tuple(range(1, image.ndim))
            low = image.amin(axes, keepdim=True)
            span = (image.amax(axes, keepdim=True) - low).clamp_min(1e-6)
            image = ((image - low) / span).pow(exponent) * span + low
        return image


def _change_some(
    image: Tensor, prob: float, limits: tuple[float, float], change: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """``image`` with a share ``prob`` of its samples changed, each by its own number within ``limits``."""
    samples = torch.nonzero(torch.rand(len(image)) < prob)[:, 0]
    numbers = limits[0] + torch.rand(len(image)) * (limits[1] - limits[0])
    if not len(samples):
        return image
    where = samples.to(image.device)
    return image.index_copy(0, where, change(image[where], numbers[samples]))


def _blurred(image: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur with each sample's ``sigma`` (B,) in voxels; beyond the edge, the edge's value."""
    reach = max(1, math.ceil(3 * float(sigma.max())))
    steps = torch.arange(-reach, reach + 1)
    weights = torch.exp(-0.5 * (steps / sigma.clamp_min(1e-3)[:, None]) ** 2)  # (B, steps)
    weights = (weights / weights.sum(1, keepdim=True)).to(image.device)
    for axis in range(2, image.ndim):
        n = image.shape[axis]
        padded = image.index_select(axis, torch.arange(-reach, n + reach).clamp(0, n - 1).to(image.device))
        # one axis after the other, sum of shifted copies: a grouped convolution is slower, and on CUDA not repeatable
        image = sum(
            padded.narrow(axis, k, n) * weights[:, k].view(-1, *(1,) * (image.ndim - 1)) for k in range(len(steps))
        )  # type: ignore[assignment]
    return image


def _contrasted(image: Tensor, factor: Tensor, keep_range: bool) -> Tensor:
    """Distances from each channel's mean multiplied by each sample's ``factor`` (B,)."""
    axes = tuple(range(2, image.ndim))
    mean = image.mean(axes, keepdim=True)
    changed = mean + (image - mean) * factor.to(image.device).view(-1, *(1,) * (image.ndim - 1))
    return changed.clamp(image.amin(axes, keepdim=True), image.amax(axes, keepdim=True)) if keep_range else changed


def _coarsened(image: Tensor, factor: Tensor, one_axis: bool = False) -> Tensor:
    """Each sample on a grid of ``factor`` (B,) times the voxels an axis, and back: nearest there, linear back.

    What ``F.interpolate`` with ``nearest-exact`` and ``linear`` gives for one sample, without a loop over samples of
    different sizes: both are one axis after the other, so a voxel is a mean of two of the image's on each axis.
    """
    drawn = torch.randint(2, image.ndim, (len(image),)) if one_axis else None
    for axis in range(2, image.ndim):
        n = image.shape[axis]
        here = factor if drawn is None else torch.where(drawn == axis, factor, torch.ones(()))
        coarse = (n * here).round().clamp(1, n)[:, None]  # (B, 1) voxels of the coarse axis
        place = ((torch.arange(n) + 0.5) * coarse / n - 0.5).clamp_min(0)  # (B, n) on the coarse axis
        below = place.floor()
        shape = (len(image), *(n if a == axis else 1 for a in range(1, image.ndim)))
        weight = (place - below).view(shape).to(image.device)
        ends = []
        for voxel in (below, torch.minimum(below + 1, coarse - 1)):
            source = ((voxel + 0.5) * n / coarse).floor().long().clamp(0, n - 1)
            ends.append(torch.take_along_dim(image, source.view(shape).to(image.device), axis))
        image = torch.lerp(ends[0], ends[1], weight)
    return image


def _biased(image: Tensor, deviation: Tensor) -> Tensor:
    """Distances from each channel's smallest value times a smooth field, the same for all channels."""
    dims = image.ndim - 2
    nodes = torch.randn(len(image), 1, *(4,) * dims) * deviation.view(-1, *(1,) * (dims + 1))
    mode = "trilinear" if dims == 3 else "bilinear"
    field = F.interpolate(nodes, size=tuple(image.shape[2:]), mode=mode, align_corners=True).exp().to(image.device)
    low = image.amin(tuple(range(2, image.ndim)), keepdim=True)
    return (image - low) * field + low


def _curved(image: Tensor, deviation: Tensor, pieces: int) -> Tensor:
    """Intensities between each channel's extremes along a rising curve of straight pieces; the extremes stay."""
    slopes = torch.exp(torch.randn(len(image), pieces) * deviation[:, None])
    knots = F.pad(slopes.cumsum(1) / slopes.sum(1, keepdim=True), (1, 0)).to(image.device)  # (B, pieces + 1), 0 to 1
    axes = tuple(range(2, image.ndim))
    low = image.amin(axes, keepdim=True)
    span = (image.amax(axes, keepdim=True) - low).clamp_min(1e-6)
    place = (image - low) / span * pieces
    below = place.floor().clamp_(0, pieces - 1)
    index = below.long().flatten(1)
    height = torch.lerp(knots.gather(1, index), knots.gather(1, index + 1), (place - below).flatten(1))
    return height.view_as(image) * span + low


def _limits(name: str, limits: Sequence[float], most: float) -> tuple[float, float]:
    numbers = tuple(float(v) for v in limits)
    if len(numbers) != 2 or not 0 <= numbers[0] <= numbers[1] <= most or numbers[1] == 0 or math.isinf(numbers[1]):
        bound = "" if math.isinf(most) else f", at most {most:g}"
        raise ConfigError(f"BatchAugment, {name}", f"must be a smallest and a largest number, 0 or more{bound}",
                          str(list(limits)))  # fmt: skip
    return numbers[0], numbers[1]


def rotation_matrices(angles: Tensor) -> Tensor:
    """Rotation matrices for angles in radians: (B, 1) gives (B, 2, 2); (B, 3), about x, y, z in turn, (B, 3, 3)."""
    cos, sin = torch.cos(angles), torch.sin(angles)
    if angles.shape[1] == 1:
        return torch.stack([cos, -sin, sin, cos], -1).view(-1, 2, 2)
    out = torch.eye(3).repeat(len(angles), 1, 1)
    for axis, (i, j) in enumerate(((1, 2), (0, 2), (0, 1))):
        turn = torch.eye(3).repeat(len(angles), 1, 1)
        sign = -1.0 if axis == 1 else 1.0  # a turn about y takes z to x
        turn[:, i, i] = turn[:, j, j] = cos[:, axis]
        turn[:, i, j] = -sign * sin[:, axis]
        turn[:, j, i] = sign * sin[:, axis]
        out = turn @ out
    return out


def _sample(volume: Tensor, grid: Tensor, mode: str) -> Tensor:
    return F.grid_sample(volume, grid, mode=mode, padding_mode="zeros", align_corners=True)


def _plain(x: Tensor) -> Tensor:
    # MetaTensor's dispatch costs more than the arithmetic here
    return x.as_tensor() if hasattr(x, "as_tensor") else x
