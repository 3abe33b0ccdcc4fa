"""A scan smoothed as far as the coarser grid needs on which it will be sampled."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from scipy import ndimage

from decathlete.errors import ConfigError

_WIDTH = float(np.sqrt(8 * np.log(2)))  # full width at half maximum of a Gaussian of deviation 1


class SmoothForSpacingd(MapTransform):
    """Gaussian blur ahead of ``Spacingd``, so that what falls between the new voxels is not lost.

    Linear interpolation from 1 to 2 mm reads every second voxel and no other: noise stays as it was, and a label's
    border moves by up to half a voxel. Blurred before, a voxel is a mean over its size, and a mask of 0 and 1 becomes
    the fraction that lies inside. Along each axis the blur widens a point from the old voxel's width to the new one's
    (full widths at half maximum): a deviation of sqrt(new² - old²) / 2.355 mm. An axis that is not made coarser is left
    alone. The result is float32, the affine stays.

    Args:
        keys: (C, X, Y, Z), or any number of axes after the channels, with an affine.
        pixdim: edge lengths in mm of the grid to come, one an axis, or one for all.
        allow_missing_keys: skip keys that a case lacks.

    Raises:
        ConfigError: invalid edge lengths, when the transform is made.
    """

    def __init__(self, keys: KeysCollection, pixdim: Sequence[float] | float, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.pixdim = np.atleast_1d(np.asarray(pixdim, dtype=float))
        if not (np.isfinite(self.pixdim).all() and (self.pixdim > 0).all()):
            raise ConfigError("SmoothForSpacingd, pixdim", "expected edge lengths in mm above 0", repr(pixdim))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The case with its keys blurred."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self._blur(d[key])
        return d

    def _blur(self, image: torch.Tensor) -> torch.Tensor:
        dims = image.ndim - 1
        spacing = np.ones(dims)
        if isinstance(image, MetaTensor):
            spacing = np.linalg.norm(image.affine.cpu().numpy()[:dims, :dims], axis=0)
        sigma = np.sqrt(np.maximum(0, (np.broadcast_to(self.pixdim, (dims,)) / spacing) ** 2 - 1)) / _WIDTH
        voxels = image.cpu().numpy().astype(np.float32)
        blurred = ndimage.gaussian_filter(voxels, (0, *sigma), mode="nearest")
        out = torch.from_numpy(blurred).to(image.device)
        return MetaTensor(out, meta=image.meta) if isinstance(image, MetaTensor) else out
