"""Checks of a head scan before the network sees it, and of the predicted brain, with warnings in the log."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from numpy.typing import NDArray

from decathlete.errors import ConfigError, DataError, GeometryError

logger = logging.getLogger(__name__)

LEAST_VOXELS = 8  # along an axis; thick-slice scans of a head have 20 and more
LEAST_MM, MOST_MM = 100.0, 600.0  # a brain is 130 to 170 mm long in each direction; a scan beyond 600 mm is of a body
AIR_OF_CT = -500.0  # Hounsfield units
STRIPPED_ML = 2100.0  # extracted brains have up to 2,100 ml (templates), complete heads of adults 3,400 ml and more


class CheckHeadd(MapTransform):
    """Refuse a scan that holds no head, and warn of an unusual one; the case passes unchanged.

    Refused: fewer than 8 voxels along an axis (a slice, or a few), voxels that are all alike. A line in the log, with
    the file's name: values like a CT's, a skull that is stripped already, a field of view smaller than a brain or
    larger than a head.

    Args:
        keys: images, (C, X, Y, Z), as they are in their files.
        allow_missing_keys: skip keys that a case does not have.

    Raises:
        GeometryError: fewer than three axes, or too few voxels along one.
        DataError: voxels that are all alike.
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the case unchanged."""
        for key in self.key_iterator(data):
            voxels = np.asarray(torch.as_tensor(data[key]).detach().cpu())
            spacing = np.ones(3)
            if isinstance(data[key], MetaTensor):
                spacing = np.linalg.norm(data[key].affine.cpu().numpy()[:3, :3], axis=0)
            name = _name(data[key])
            self._refuse(voxels, name)
            for oddity in self._oddities(voxels[0], spacing):
                logger.warning("%s: %s", name, oddity)
        return dict(data)

    @staticmethod
    def _refuse(voxels: NDArray, name: str) -> None:
        shape = voxels.shape[1:]
        if len(shape) != 3 or min(shape) < LEAST_VOXELS:
            raise GeometryError(name, f"expected a head scan with at least {LEAST_VOXELS} voxels on each of three axes",
                                " x ".join(map(str, shape)), "Give the complete volume, not one slice")  # fmt: skip
        if voxels.min() == voxels.max():
            raise DataError(name, "the scan is empty: all voxels have the same value", f"{voxels.min():g}",
                            "Check the file")  # fmt: skip

    @staticmethod
    def _oddities(voxels: NDArray, spacing: NDArray) -> list[str]:
        found = []
        extent = np.array(voxels.shape) * spacing
        text = " x ".join(f"{n:.0f}" for n in extent)
        if extent.min() < LEAST_MM:
            found.append(f"the field of view, {text} mm, is smaller than a brain: its mask ends where the scan does")
        if extent.max() > MOST_MM:
            found.append(f"the field of view, {text} mm, is larger than a head: check that this is a head scan")
        cold = float((voxels < AIR_OF_CT).mean())
        if cold > 0.05:
            found.append(
                f"values like a CT's ({cold:.0%} of the voxels below {AIR_OF_CT:g}): made for T1-weighted MRI, "
                "so do not rely on the brain mask"
            )
        nothing = max((float((voxels == value).mean()), value) for value in {0.0, float(voxels.min())})
        volume_ml = (1 - nothing[0]) * voxels.size * float(np.prod(spacing)) / 1000
        if nothing[0] > 0.5 and volume_ml < STRIPPED_ML:
            found.append(
                f"the skull seems to be stripped already: all but {volume_ml:,.0f} ml is {nothing[1]:g}; made for "
                "complete heads, it may remove parts of the brain"
            )
        return found


class CheckVolumed(MapTransform):
    """Warn of a class that is missing from a label map, or of an unlikely volume; the case passes unchanged.

    The line in the log has the file's name and the volume.

    Args:
        keys: label maps, (1, X, Y, Z), MetaTensors on the scan's grid.
        volume_ml: smallest and largest likely volume.
        label: value of the class.
        name: what the class is called.
        allow_missing_keys: skip keys that a case does not have.

    Raises:
        ConfigError: volumes that are not a range, when the transform is made.
    """

    def __init__(
        self,
        keys: KeysCollection,
        volume_ml: tuple[float, float],
        label: int = 1,
        name: str = "brain",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if len(volume_ml) != 2 or not 0 <= volume_ml[0] < volume_ml[1]:
            raise ConfigError("CheckVolumed, volume_ml", "must be two increasing numbers, 0 or more",
                              ", ".join(map(str, volume_ml)))  # fmt: skip
        self.volume_ml, self.label, self.name = tuple(volume_ml), label, name

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the case unchanged."""
        low, high = self.volume_ml
        for key in self.key_iterator(data):
            label_map = data[key]
            spacing = np.linalg.norm(label_map.affine.cpu().numpy()[:3, :3], axis=0)
            voxels = int((label_map == self.label).sum())
            volume = voxels * float(np.prod(spacing)) / 1000
            if not voxels:
                logger.warning("%s: no %s found, the mask is empty", _name(label_map), self.name)
            elif not low <= volume <= high:
                logger.warning(
                    "%s: a %s of %s ml is unlikely (expected %g to %g ml): check the mask",
                    _name(label_map), self.name, f"{volume:,.0f}", low, high,
                )  # fmt: skip
        return dict(data)


def _name(image: Any) -> str:
    return str(image.meta.get("filename_or_obj", "image")) if isinstance(image, MetaTensor) else "image"
