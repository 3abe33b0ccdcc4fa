"""Frames of the left ventricle as volumes of one slice, and their contours as one label map.

A frame is an image (X, Y, 1) that lies where its scanner says. So it is processed like any volume: by the transforms,
slice by slice by a network, and back on its own grid.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import LoadImaged, MapTransform
from numpy.typing import NDArray
from scipy import ndimage

from decathlete.errors import DataError
from decathlete.io.contours import (
    CAVITY,
    MUSCLE,
    NO_INNER,
    NO_OUTER,
    contour_mask,
    label_of_contours,
    read_contour,
)
from decathlete.transforms.load import NiftiReader


class FrameLabeld(MapTransform):
    """The label map of a frame from its contour files: 0 background, 1 cavity, 2 muscle, 3 and 4 unknown.

    Where only the inner contour is given, what lies outside of it is 3 (background or muscle); where only
    the outer one is given, what lies inside is 4 (cavity or muscle). Where both are given and cross, the inner one
    counts. An item that names a NIfTI label map under its key, with the same values, has it loaded instead.

    Args:
        keys: where the label goes, a MetaTensor without a channel, of the image's shape, affine and meta data.
        image_key: the loaded image, (X, Y, 1) for contours.
        contour_keys: the files of the inner and the outer contour, None for one that was not drawn; taken out.

    Raises:
        DataError: a contour that cannot be read or lies outside its image, an item with neither contour nor label,
            or contours for a stack of slices.
    """

    def __init__(
        self,
        keys: KeysCollection = "label",
        image_key: str = "image",
        contour_keys: Sequence[str] = ("inner", "outer"),
    ) -> None:
        super().__init__(keys)
        self.image_key, self.contour_keys = image_key, tuple(contour_keys)
        values = [0, CAVITY, MUSCLE, NO_OUTER, NO_INNER]
        self._load = LoadImaged(self.keys, reader=NiftiReader, kind="label", allowed_labels=values)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return ``data`` with the label in place of the contours' paths."""
        d = dict(data)
        inner, outer = (d.pop(key, None) for key in self.contour_keys)
        if self.keys[0] in d:
            return self._load(d)
        image = d[self.image_key]
        path = inner or outer
        if path is None:
            raise DataError(d.get("case_id", "item"), "a training item needs a contour or a label map, and has neither",
                            "", "Add one, or leave the item out")  # fmt: skip
        if image.ndim != 3 or image.shape[2] != 1:
            raise DataError(path, "contours can only be drawn on an image of one slice", f"shape {tuple(image.shape)}")
        shape = tuple(image.shape[:2])
        masks = [None if p is None else contour_mask(read_contour(p), shape, where=p) for p in (inner, outer)]
        label = torch.from_numpy(label_of_contours(*masks)[:, :, None])
        meta = {**image.meta, "filename_or_obj": str(path)} if isinstance(image, MetaTensor) else {}
        for key in self.keys:
            d[key] = MetaTensor(label, meta=meta)
        return d


class ContourChannelsd(MapTransform):
    """Label maps (1, *spatial) as three channels: background, inside the inner, inside the outer contour.

    A contour that was not drawn (values 3 and 4) leaves its channel empty, which MONAI's metrics pass over. In the
    order of the channels, the first that holds is the label, as in a one-hot map, so pictures of it are right too.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return ``data`` with each label map replaced, float32."""
        d = dict(data)
        for key in self.key_iterator(d):
            label = d[key]
            outer = (label == CAVITY) | (label == MUSCLE) | (label == NO_INNER)
            outer = outer & ~(label == NO_OUTER).any()
            d[key] = torch.cat([label == 0, label == CAVITY, outer]).float()
        return d


class OneVentricled(MapTransform):
    """Label maps with at most one left ventricle a slice: round, in one piece, without holes.

    In each slice, regions of pixels that touch at an edge are compared; the largest is kept, its holes become muscle,
    and what is attached by a narrow neck is removed: a morphological opening by a disc. Inside of what is left the
    largest region of cavity is kept, treated alike; other cavity becomes muscle.

    Args:
        keys: label maps (1, X, Y, Z) or (1, X, Y) of values 0, 1 and 2.
        opening: radius of the disc, as a fraction of that of a circle of the region's area; 0 for no opening.
        reach: how far from the slice's centre, in mm, the middle of a region may lie to be compared: a short-axis frame
            is planned on the ventricle, and what is bright far from there is another organ. None: anywhere.
        allow_missing_keys: skip keys that a case does not have.
    """

    def __init__(
        self,
        keys: KeysCollection,
        opening: float = 0.5,
        reach: float | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.opening, self.reach = opening, reach

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return ``data`` with each label map cleaned, of the same type and meta data."""
        d = dict(data)
        for key in self.key_iterator(d):
            label = torch.as_tensor(d[key])
            found = np.asarray(label.cpu())[0]
            slices = found[:, :, None] if found.ndim == 2 else found
            spacing = np.ones(2)
            if isinstance(d[key], MetaTensor):
                spacing = np.linalg.norm(d[key].affine.cpu().numpy()[:, :2], axis=0)
            planes = [one_ventricle(plane, self.opening, self.reach, spacing) for plane in np.moveaxis(slices, 2, 0)]
            clean = np.stack(planes, axis=2)
            new = torch.from_numpy(clean.reshape(label.shape)).to(label)
            d[key] = MetaTensor(new, meta=d[key].meta) if isinstance(d[key], MetaTensor) else new
        return d


def one_ventricle(
    plane: NDArray[Any],
    opening: float = 0.5,
    reach: float | None = None,
    spacing: Sequence[float] | NDArray = (1.0, 1.0),
) -> NDArray[Any]:
    """A slice's label map (X, Y) as `OneVentricled` leaves it; ``spacing`` in mm."""
    heart = _opened(_largest(plane > 0 if reach is None else _near_centre(plane > 0, reach, spacing)), opening)
    cavity = _opened(_largest(heart & (plane == CAVITY)), opening)
    return np.where(cavity, CAVITY, np.where(heart, MUSCLE, 0)).astype(plane.dtype)


def _near_centre(mask: NDArray[np.bool_], reach: float, spacing: Sequence[float] | NDArray) -> NDArray[np.bool_]:
    """Those connected regions whose centre of mass is within ``reach`` mm of the slice's centre."""
    parts, count = ndimage.label(mask)
    middles = np.array(ndimage.center_of_mass(mask, parts, range(1, count + 1))).reshape(count, 2)
    distance = np.linalg.norm((middles - (np.array(mask.shape) - 1) / 2) * spacing, axis=1)
    return np.isin(parts, 1 + np.flatnonzero(distance <= reach))


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    parts, count = ndimage.label(mask)
    largest = mask if count < 2 else parts == 1 + np.bincount(parts.ravel())[1:].argmax()
    return ndimage.binary_fill_holes(largest)


def _opened(region: NDArray[np.bool_], fraction: float) -> NDArray[np.bool_]:
    """What discs that fit into the region cover, of its largest such part; the region itself where none fits."""
    radius = fraction * np.sqrt(np.count_nonzero(region) / np.pi)
    centres = _largest(ndimage.distance_transform_edt(region) > radius)
    if not centres.any() or radius == 0:
        return region
    return region & (ndimage.distance_transform_edt(~centres) <= radius)
