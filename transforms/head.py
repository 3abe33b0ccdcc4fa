"""A window of one size on every head scan, laid on the head itself."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Crop, MapTransform, Pad
from numpy.typing import NDArray
from scipy import ndimage

from decathlete.errors import ConfigError, DataError, GeometryError
from decathlete.transforms.bias_field import otsu_threshold

_TOP_MM2 = 300.0  # area of the head's first slice from above: smaller ones are noise, hair or a cap's seam


class CropHeadd(MapTransform):
    """Crop or pad to ``spatial_size`` so that every head lies at the same place of the window.

    The window ends ``above_mm`` over the top of the head and is centred on the head from left to right and from back to
    front, measured over the ``depth_mm`` below the top, where neither neck nor shoulders are. The head is the largest
    connected piece above Otsu's threshold of the first key's first channel. Beyond the scan the window holds each
    image's smallest value. Affines move along, so that RestoreGridd brings predictions back.

    Args:
        keys: image first, then what lies on it, (C, X, Y, Z) with axes in RAS order; a label after it keeps its values.
        spatial_size: voxels of the window, three numbers.
        above_mm: distance from the top of the head to the window's upper end.
        depth_mm: part of the head that is centred, from its top.
        allow_missing_keys: skip keys that a case does not have.

    Raises:
        ConfigError: invalid sizes, when the transform is made.
        DataError: an empty scan.
        GeometryError: an image without three axes, or keys of different shapes.
    """

    def __init__(
        self,
        keys: KeysCollection,
        spatial_size: Sequence[int],
        above_mm: float = 10.0,
        depth_mm: float = 150.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.spatial_size = tuple(spatial_size)
        if len(self.spatial_size) != 3 or any(not isinstance(n, int) or n < 1 for n in self.spatial_size):
            raise ConfigError("CropHeadd, spatial_size", "must be three whole numbers above 0", repr(spatial_size))
        if not (above_mm >= 0 and depth_mm > 0):
            raise ConfigError("CropHeadd", "above_mm must be 0 or more, and depth_mm above 0",
                              f"{above_mm} and {depth_mm}")  # fmt: skip
        self.above_mm, self.depth_mm = above_mm, depth_mm

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The case with its window."""
        d = dict(data)
        start: NDArray[np.intp] | None = None
        shape: tuple[int, ...] = ()
        for key in self.key_iterator(d):
            if start is None:
                start, shape = self._start(d[key]), tuple(d[key].shape[1:])
            if tuple(d[key].shape[1:]) != shape:
                raise GeometryError(_name(d[key]), "the images of a case differ in shape",
                                    f"shapes {tuple(d[key].shape[1:])} and {shape}")  # fmt: skip
            d[key] = self._cut(d[key], start)
        return d

    def _start(self, image: torch.Tensor) -> NDArray[np.intp]:
        """Index of the window's first voxel along each axis; may be below 0."""
        if image.ndim != 4:
            raise GeometryError(_name(image), "expected a head scan with three axes", f"shape {tuple(image.shape)}")
        voxels = image[0].cpu().numpy()
        spacing = np.ones(3)
        if isinstance(image, MetaTensor):
            spacing = np.linalg.norm(image.affine.cpu().numpy()[:3, :3], axis=0)
        head = _largest(voxels > otsu_threshold(voxels))
        area = head.sum((0, 1)) * spacing[0] * spacing[1]
        if not area.any():
            raise DataError(_name(image), "the scan is empty: all voxels have the same value", "", "Check the file")
        top = int(np.flatnonzero(area >= min(_TOP_MM2, area.max()))[-1])
        part = head[:, :, max(0, top + 1 - max(1, round(self.depth_mm / spacing[2]))) : top + 1]
        start = np.empty(3, dtype=np.intp)
        for axis, others in ((0, (1, 2)), (1, (0, 2))):
            there = np.flatnonzero(part.any(others))
            start[axis] = (there[0] + there[-1] + 1 - self.spatial_size[axis]) // 2
        start[2] = top + 1 + round(self.above_mm / spacing[2]) - self.spatial_size[2]
        return start

    def _cut(self, image: torch.Tensor, start: NDArray[np.intp]) -> torch.Tensor:
        end = start + self.spatial_size
        shape = np.array(image.shape[1:])
        inside = [
            slice(max(0, a), min(n, b)) for a, b, n in zip(start.tolist(), end.tolist(), shape.tolist(), strict=True)
        ]
        padding = [
            (max(0, -a), max(0, b - n)) for a, b, n in zip(start.tolist(), end.tolist(), shape.tolist(), strict=True)
        ]
        lowest = float(image.min())
        cropped = Crop()(image, inside)
        return Pad()(cropped, to_pad=[(0, 0), *padding], mode="constant", value=lowest)


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Largest connected piece; nothing of nothing."""
    pieces, count = ndimage.label(mask)
    return mask if count < 2 else pieces == 1 + int(np.argmax(np.bincount(pieces.ravel())[1:]))


def _name(image: Any) -> str:
    return str(image.meta.get("filename_or_obj", "image")) if isinstance(image, MetaTensor) else "image"
