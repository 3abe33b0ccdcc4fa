"""Resampling to a spacing as nnU-Net does it: cubic splines, and no interpolation along a thick axis.

MONAI's Spacingd takes one order for all axes, a sampling grid of three float64 coordinates a voxel, and with cubic
splines SciPy in one thread. Here the axes are taken one after the other, each by a product with a small matrix: the
splines are separable, so the values are SciPy's, and a CT of 512 x 512 x 300 takes seconds.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.transforms import Spacingd as MonaiSpacingd
from scipy import ndimage
from torch import Tensor

from decathlete.errors import ConfigError, GeometryError

ANISOTROPY = 3.0  # nnU-Net: an axis this many times thicker than the finest one is resampled apart
MODES = ("cubic", "linear", "label")
SAME = 1e-3  # relative difference of two spacings that count as one


def resample_to_spacing(
    x: Tensor, spacing: Sequence[float], target: Sequence[float], mode: str = "cubic", anisotropy: float = ANISOTROPY
) -> Tensor:
    """``x`` (C, X, Y, Z) on a grid of spacing ``target``, centred on the same volume.

    The new grid has ``round(n * spacing / target)`` voxels along an axis, at least one. Beyond the outermost voxel
    centres the edge's values continue.

    Args:
        x: image; or label, whole numbers.
        spacing: voxel edges of ``x`` in mm, one an axis.
        target: of the result.
        mode: ``cubic`` splines; ``linear``; or ``label``: each value's fraction is interpolated linearly and the
            largest wins, so that no value is invented and borders are smoother than with the nearest voxel.
        anisotropy: where one axis of ``x``, else of the target, is over this many times thicker than the finest, the
            nearest voxel is taken along it: neighbouring slices so far apart have too little in common.

    Returns:
        float32; with ``label`` the type of ``x``.

    Source: Isensee et al. 2021, supplementary note 2, and nnU-Net 2, ``default_resampling.py``.
    """
    if mode not in MODES:
        raise ConfigError("resample_to_spacing, mode", f"must be one of {', '.join(MODES)}", repr(mode))
    thick = thick_axis(spacing, anisotropy)
    thick = thick_axis(target, anisotropy) if thick is None else thick
    sizes = resampled_shape(x.shape[1:], spacing, target)
    ratios = [1.0 if abs(t / s - 1) < SAME else t / s for s, t in zip(spacing, target, strict=True)]
    orders = [0 if axis == thick else 3 if mode == "cubic" else 1 for axis in range(len(sizes))]
    # what shrinks most goes first: less is left for the others
    axes = sorted((a for a in range(len(sizes)) if ratios[a] != 1.0), key=lambda a: -ratios[a])

    def moved(volume: Tensor) -> Tensor:
        for axis in axes:
            volume = _along(volume, axis, sizes[axis], ratios[axis], orders[axis])
        return volume

    if mode != "label":
        return moved(x.float())
    if all(orders[axis] == 0 for axis in axes):
        return moved(x)
    first, *others = _values(x)
    if not others:
        return moved(x.float()).to(x.dtype)
    total = largest = moved((x == others[0]).float())
    best = torch.full_like(total, others[0], dtype=x.dtype)
    for value in others[1:]:  # one class after the other: the fractions of all would be as many volumes
        fraction = moved((x == value).float())
        best[fraction > largest] = value
        largest, total = torch.maximum(largest, fraction), total + fraction
    best[1 - total >= largest] = first  # what the others leave, background as a rule
    return best


def _values(label: Tensor) -> list[float]:
    """The values of a label map, from the smallest on."""
    low, high = float(label.min()), float(label.max())
    if low >= 0 and high < 64:  # a pass each takes less than sorting all voxels
        found = [float(v) for v in range(int(low), int(high) + 1) if bool((label == v).any())]
        if found and found[0] == low and found[-1] == high:
            return found
    return [float(v) for v in torch.unique(label)]


def resampled_shape(shape: Sequence[int], spacing: Sequence[float], target: Sequence[float]) -> tuple[int, ...]:
    """Voxels along each axis after `resample_to_spacing`."""
    return tuple(
        int(n) if abs(t / s - 1) < SAME else max(1, round(n * s / t))
        for n, s, t in zip(shape, spacing, target, strict=True)
    )


def thick_axis(spacing: Sequence[float], anisotropy: float = ANISOTROPY) -> int | None:
    """The one axis over ``anisotropy`` times thicker than the finest; None where there is none, or more than one."""
    thick = [axis for axis, s in enumerate(spacing) if s > anisotropy * min(spacing)]
    return thick[0] if len(thick) == 1 else None


class ResampleSpacingd(MapTransform):
    """`resample_to_spacing` along the voxel axes of images with an affine, which is moved along.

    In place of MONAI's Spacingd; RestoreGridd brings predictions back by the affine.

    Args:
        keys: (C, X, Y, Z) with an affine.
        pixdim: wanted spacing in mm, (X, Y, Z): after Orientationd, those of the body.
        mode: ``cubic``, ``linear`` or ``label``, one for all or one a key.
        anisotropy: as in `resample_to_spacing`.
        allow_missing_keys: skip keys that a case does not have.

    Raises:
        ConfigError: an invalid mode or spacing, when the transform is made.
        GeometryError: an image without an affine, or not of three axes.
    """

    def __init__(
        self,
        keys: KeysCollection,
        pixdim: Sequence[float],
        mode: str | Sequence[str] = "cubic",
        anisotropy: float = ANISOTROPY,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        modes = [mode] * len(self.keys) if isinstance(mode, str) else list(mode)
        if len(modes) != len(self.keys) or any(m not in MODES for m in modes):
            raise ConfigError("ResampleSpacingd, mode",
                              f"must be one of {', '.join(MODES)}, for all keys or one per key", str(mode))  # fmt: skip
        self.pixdim, self.mode, self.anisotropy = tuple(float(s) for s in pixdim), modes, float(anisotropy)
        if len(self.pixdim) != 3 or not all(0 < s < 1e3 for s in self.pixdim):
            raise ConfigError("ResampleSpacingd, pixdim", "must be three spacings in mm", str(list(pixdim)))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return ``data`` with the images resampled."""
        d = dict(data)
        for key, mode in self.key_iterator(d, self.mode):
            d[key] = self._resampled(d[key], mode, key)
        return d

    def _resampled(self, image: Any, mode: str, key: Hashable) -> MetaTensor:
        if not isinstance(image, MetaTensor) or image.ndim != 4:
            raise GeometryError(f"ResampleSpacingd, {key}", "expected a volume (C, X, Y, Z) with an affine",
                                f"{type(image).__name__} of shape {tuple(image.shape)}",
                                "Load it with LoadImaged, and keep track_meta=True")  # fmt: skip
        affine = image.affine.double()
        spacing = [float(s) for s in affine[:3, :3].norm(dim=0)]
        out = resample_to_spacing(image.as_tensor(), spacing, self.pixdim, mode, self.anisotropy)
        ratio = torch.tensor(
            [1.0 if abs(t / s - 1) < SAME else t / s for s, t in zip(spacing, self.pixdim, strict=True)]
        )
        ratio = ratio.to(affine)
        before, after = (torch.tensor(s[1:]).to(affine) for s in (image.shape, out.shape))
        moved = affine.clone()
        moved[:3, :3] = affine[:3, :3] * ratio
        # the middle of the volume stays where it is
        moved[:3, 3] += affine[:3, :3] @ ((before - 1) / 2 - ratio * (after - 1) / 2)
        meta = {key: value for key, value in image.meta.items() if key != "affine"}  # the scan keeps its own
        return MetaTensor(out, affine=moved, meta=meta, applied_operations=[*image.applied_operations])


class Spacingd(MonaiSpacingd):
    """MONAI's Spacingd, which lets alone what else is in a case.

    MONAI's takes every key that begins with the image's for its meta data. MONAI Label's requests hold such a key,
    ``image_path``, whose value is a text.
    """

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:  # type: ignore[override]
        """The case with its images resampled."""
        known = {key: value for key, value in data.items() if key in self.keys or isinstance(value, Mapping)}
        return {**data, **super().__call__(known, lazy)}


def _along(x: Tensor, axis: int, size: int, ratio: float, order: int) -> Tensor:
    """``x`` (C, X, Y, Z) with ``size`` voxels along ``axis``, ``ratio`` old voxels apart."""
    n = x.shape[axis + 1]
    if order == 0:
        index = torch.from_numpy(_places(n, size, ratio).clip(0, n - 1).round().astype(np.int64))
        return x.index_select(axis + 1, index.to(x.device))
    weights = torch.from_numpy(_weights(n, size, ratio, order)).to(x.device)  # (size, n)
    if axis == 2:
        return x @ weights.T
    out = x.new_empty([size if a == axis + 1 else m for a, m in enumerate(x.shape)])
    for channel in range(x.shape[0]):
        if axis == 0:
            torch.mm(weights, x[channel].reshape(n, -1), out=out[channel].view(size, -1))
        else:  # slab by slab: a batched product would copy the matrix for each
            for slab in range(x.shape[1]):
                torch.mm(weights, x[channel, slab], out=out[channel, slab])
    return out


def _places(n: int, size: int, ratio: float) -> np.ndarray:
    """Where the voxels of the new axis lie on the old one, in its voxels; both have the same middle."""
    return (np.arange(size) - (size - 1) / 2) * ratio + (n - 1) / 2


@functools.lru_cache(maxsize=64)
def _weights(n: int, size: int, ratio: float, order: int) -> np.ndarray:
    """What each old voxel adds to each new one, (size, n) float32: SciPy's splines of every unit vector."""
    places = _places(n, size, ratio)[None]
    columns = [ndimage.map_coordinates(unit, places, order=order, mode="nearest") for unit in np.eye(n)]
    return np.stack(columns, axis=1).astype(np.float32)
