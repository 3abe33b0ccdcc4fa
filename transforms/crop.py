"""Crops that update the affine, so that RestoreGridd can restore predictions: what was cropped becomes background."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Crop, Cropd
from torch import Tensor

from decathlete.errors import ConfigError, DataError, GeometryError


class _MeasuredCropd(Cropd):
    """One crop for all keys, measured on the first that is there, so that image and label stay voxel on voxel."""

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, Crop(), allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, Tensor], lazy: bool | None = None) -> dict[Hashable, Tensor]:
        """Return ``data`` with its keys cropped."""
        d = dict(data)
        slices: tuple[slice, ...] = ()
        for key in self.key_iterator(d):
            slices = slices or self.kept(d[key])
            d[key] = self.cropper(d[key], slices, lazy=self.lazy if lazy is None else lazy)
        return d

    def kept(self, image: Tensor) -> tuple[slice, ...]:
        """Voxels that stay, a slice for each spatial axis of ``image`` (C, *spatial)."""
        raise NotImplementedError


class CropBlankd(_MeasuredCropd):
    """Crop the outer planes in which every voxel has the one value of the border, 0 or any other.

    Such planes were filled in, by a program that pads or masks scans. They say nothing of the body, and shift the mean
    that the scan is normalized by. From each side of each axis, planes go as long as each channel is constant over them
    and has there the value that it has in the outermost plane. What remains is nnU-Net's box around the voxels that are
    not 0, of a scan in a field of zeros; a scan without such planes passes unchanged.

    Must come ahead of resampling, which blurs the scan's edge into the border.

    Args:
        keys: image first, which is measured, then what lies on it, (C, *spatial).
        slack: where the two borders of an axis differ by no more planes than this, as many are taken from both sides:
            the scan's centre stays where it was. One number an axis or one for all.
        allow_missing_keys: skip keys that a case does not have.

    Raises:
        ConfigError: a negative number, when the transform is made.
        GeometryError: as many numbers as the image has axes are needed.
        DataError: a scan of which nothing remains: all its voxels are alike.
    """

    def __init__(self, keys: KeysCollection, slack: Sequence[int] | int = 0, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.slack = _whole_numbers("CropBlankd, slack", slack)

    @property
    def requires_current_data(self) -> bool:
        """This transform needs the voxels, so a lazy chain must apply its pending transforms first."""
        return True

    def kept(self, image: Tensor) -> tuple[slice, ...]:
        """Voxels that stay, a slice for each spatial axis of ``image`` (C, *spatial)."""
        voxels = image.as_tensor() if isinstance(image, MetaTensor) else image
        if bool((voxels == voxels.flatten(1)[:, :1].view(-1, *[1] * (voxels.ndim - 1))).all()):
            found = ", ".join(f"{float(v):g}" for v in voxels.flatten(1)[:, 0])
            raise DataError(_name(image), "the scan is empty: all voxels have the same value", found, "Check the file")
        slices = []
        for axis, slack in enumerate(_per_axis("CropBlankd, slack", self.slack, voxels.shape[1:]), start=1):
            others = [a for a in range(1, voxels.ndim) if a != axis]
            low, high = voxels.amin(others), voxels.amax(others)  # of each plane: (C, planes)
            n, before, after = voxels.shape[axis], _blank(low, high), _blank(low.flip(1), high.flip(1))
            if abs(before - after) <= slack:
                before = after = min(before, after)
            # two flat halves are no border
            slices.append(slice(before, n - after) if before + after < n else slice(0, n))
        return tuple(slices)


class CropMargind(_MeasuredCropd):
    """Take a margin from both sides of each axis, as far as a least size allows.

    An axis of ``n`` voxels keeps ``n - 2 * margin`` of them, or ``min_size`` where that is more, or all ``n`` where
    it is no longer than ``min_size``. What is taken is taken evenly; an odd voxel comes off the far end::

        margin 32, min_size 256:    320 -> 256 (32 and 32)    301 -> 256 (22 and 23)    240 -> 240

    Args:
        keys: image and label, (C, *spatial).
        margin: voxels, one number an axis or one for all.
        min_size: voxels that stay at least, one number an axis or one for all; 0 sets no limit.
        allow_missing_keys: skip keys that a case does not have.

    Raises:
        ConfigError: a negative number, when the transform is made.
        GeometryError: as many numbers as the image has axes are needed.
        DataError: no limit, and a margin that leaves nothing of the image.
    """

    def __init__(
        self,
        keys: KeysCollection,
        margin: Sequence[int] | int,
        min_size: Sequence[int] | int = 1,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.margin = _whole_numbers("CropMargind, margin", margin)
        self.min_size = _whole_numbers("CropMargind, min_size", min_size)

    def kept(self, image: Tensor) -> tuple[slice, ...]:
        """Voxels that stay, a slice for each spatial axis of ``image`` (C, *spatial)."""
        shape = _shape(image)
        margins = _per_axis("CropMargind, margin", self.margin, shape)
        slices = []
        for n, margin, least in zip(
            shape, margins, _per_axis("CropMargind, min_size", self.min_size, shape), strict=True
        ):
            taken = min(2 * margin, max(n - least, 0))
            if taken >= n:
                raise DataError(_name(image), "no voxel is left between the margins",
                                f"{n} voxels on an axis, {margin} to remove on each side",
                                "Set a smaller margin, or a min_size")  # fmt: skip
            slices.append(slice(taken // 2, n - (taken - taken // 2)))
        return tuple(slices)


class DropLowestd(_MeasuredCropd):
    """Drop the slices at the low end of an axis, by their length in mm: after Orientationd to RAS, the lowest ones.

    Args:
        keys: image and label, (C, *spatial) with an affine.
        length_mm: divided by the spacing that the affine has along the axis and rounded to whole slices, a half up;
            0 drops none.
        axis: spatial axis; its index 0 is the low end.
        allow_missing_keys: skip keys that a case does not have.

    Raises:
        ConfigError: a length below 0, or an invalid axis, when the transform is made.
        GeometryError: an image without an affine, or without that axis.
        DataError: no slice is left.
    """

    def __init__(self, keys: KeysCollection, length_mm: float, axis: int = 2, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        if not 0 <= length_mm < math.inf:
            raise ConfigError("DropLowestd, length_mm", "must be 0 or more", str(length_mm))
        if axis not in (0, 1, 2):
            raise ConfigError("DropLowestd, axis", "must be 0, 1 or 2", str(axis))
        self.length_mm, self.axis = float(length_mm), axis

    def kept(self, image: Tensor) -> tuple[slice, ...]:
        """Voxels that stay, a slice for each spatial axis of ``image`` (C, *spatial)."""
        shape = _shape(image)
        if not isinstance(image, MetaTensor) or self.axis >= len(shape):
            found = f"{type(image).__name__} of shape {tuple(image.shape)}"
            raise GeometryError("DropLowestd", f"expected an image with an affine and axis {self.axis}", found,
                                "Load it with LoadImaged, and keep track_meta=True")  # fmt: skip
        spacing = float(torch.as_tensor(image.peek_pending_affine())[:3, self.axis].double().norm())
        # the small number: an affine of a float32 header may make a half a little less
        dropped = math.floor(self.length_mm / spacing + 0.5 + 1e-4)
        slices = shape[self.axis]
        if dropped >= slices:
            raise DataError(_name(image), f"no slice is left after the lowest {self.length_mm:g} mm are dropped",
                            f"{slices} slices of {spacing:.4g} mm, {dropped} to drop",
                            "Set a smaller length_mm, or leave this volume out")  # fmt: skip
        return tuple(slice(dropped if axis == self.axis else 0, n) for axis, n in enumerate(shape))


def _blank(low: Tensor, high: Tensor) -> int:
    """Planes from the first on that are constant, with the first one's value; both (C, planes)."""
    same = ((low == low[:, :1]) & (high == low[:, :1])).all(0)
    return int(same.long().cumprod(0).sum())


def _shape(image: Tensor) -> tuple[int, ...]:
    """Spatial shape; with the pending transforms of a lazy chain applied."""
    return tuple(int(n) for n in (image.peek_pending_shape() if isinstance(image, MetaTensor) else image.shape[1:]))


def _name(image: Tensor) -> str:
    return str(image.meta.get("filename_or_obj", "image")) if isinstance(image, MetaTensor) else "image"


def _whole_numbers(name: str, value: Any) -> tuple[int, ...]:
    numbers = tuple(value) if isinstance(value, Sequence) else (value,)
    if not numbers or any(n != int(n) or n < 0 for n in numbers):
        raise ConfigError(name, "must be whole numbers of voxels, 0 or more", str(value))
    return tuple(int(n) for n in numbers)


def _per_axis(name: str, numbers: tuple[int, ...], shape: Sequence[int]) -> tuple[int, ...]:
    if len(numbers) not in (1, len(shape)):
        raise GeometryError(name, f"must be one number, or one for each of the {len(shape)} axes", str(list(numbers)))
    return numbers * len(shape) if len(numbers) == 1 else numbers
