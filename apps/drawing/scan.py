"""An image with its reference and prediction, read strictly and turned to RAS order for drawing."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from decathlete.drawing.slices import as_volume
from decathlete.errors import DataError, GeometryError, listed, shape_text
from decathlete.files import strip_nifti_suffix

PLANES = {2: "axial", 1: "coronal", 0: "sagittal"}  # by the RAS axis across the plane, in the order shown
# letters at the left, right, top and bottom of each plane: seen from the feet, the front and the patient's left
LETTERS = {2: "RLAP", 1: "RLSI", 0: "APSI"}


@dataclass(frozen=True)
class Scan:
    """One channel of an image with its label maps; the axes run to the patient's right, front and head.

    Attributes:
        image: (X, Y, Z).
        label: reference, label values (X, Y, Z), or None.
        prediction: likewise.
        affine: from the indices of these arrays to RAS mm.
        name: the image file's name without its suffix; empty for an array.
    """

    image: NDArray[Any]
    label: NDArray[np.integer] | None
    prediction: NDArray[np.integer] | None
    affine: NDArray[np.float64]
    name: str = ""

    @property
    def spacing(self) -> NDArray[np.float64]:
        """Voxel edge lengths in mm, one per axis."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def maps(self) -> tuple[NDArray[np.integer] | None, NDArray[np.integer] | None]:
        """Reference and prediction."""
        return self.label, self.prediction

    @property
    def drawn_as(self) -> dict[Literal["outline", "fill"], str]:
        """How each map is drawn, and what the legend calls it."""
        kinds: dict[Literal["outline", "fill"], str] = {"outline": "reference", "fill": "prediction"}
        maps = zip(kinds.items(), self.maps, strict=True)
        return {kind: name if m.any() else f"{name}: empty" for (kind, name), m in maps if m is not None}

    def slice_at(
        self, axis: int, index: int
    ) -> tuple[NDArray[Any], NDArray[np.integer] | None, NDArray[np.integer] | None]:
        """Image, reference and prediction of a slice across an axis."""
        # not np.take, which copies the whole volume if it is not in C order
        at: tuple[slice | int, ...] = (*[slice(None)] * axis, index)
        label, prediction = (None if m is None else m[at] for m in self.maps)
        return self.image[at], label, prediction

    def position_mm(self, axis: int, index: int) -> float:
        """RAS coordinate across a slice, at the slice's centre."""
        centre = (np.array(self.image.shape) - 1) / 2
        centre[axis] = index
        return float((self.affine @ [*centre, 1])[axis])


def load_scan(
    image: Any,
    label: Any = None,
    prediction: Any = None,
    *,
    channel: int = 0,
    affine: NDArray[Any] | None = None,
) -> Scan:
    """Read an image and its label maps, and turn them to RAS order.

    Args:
        image: NIfTI file, or array or tensor (X, Y, Z), (C, X, Y, Z) or (X, Y).
        label: reference on the image's grid: file, or label values (X, Y, Z) with or without a leading axis.
        prediction: predicted label values likewise.
        channel: number of the image's channel, from 0.
        affine: voxel to RAS mm of arrays, 4x4; default: the image's own if it is a MetaTensor, else 1 mm in RAS order.

    Raises:
        DataError: a file cannot be read, or the image has no such channel.
        GeometryError: image and label maps are not on one grid.
    """
    values, placed, name, volume = _image(image, channel)
    affine = placed if affine is None else np.asarray(affine, dtype=float)
    maps = [_label_map(m, which, values, affine, volume) for m, which in ((label, "label"), (prediction, "prediction"))]
    orientation = nib.orientations.io_orientation(affine)
    label, prediction = (None if m is None else nib.orientations.apply_orientation(m, orientation) for m in maps)
    turned = affine @ nib.orientations.inv_ornt_aff(orientation, values.shape)
    return Scan(nib.orientations.apply_orientation(values, orientation), label, prediction, turned, name)


def class_names(labels: Mapping[int, str] | None, maps: Sequence[NDArray[Any] | None]) -> dict[int, str]:
    """Value to name of the foreground classes: those of ``labels``, by default the values that occur."""
    if labels is not None:
        from decathlete.bundle.labels import foreground

        return foreground(labels)
    present = {int(v) for m in maps if m is not None for v in np.unique(m) if v > 0}
    return {value: str(value) for value in sorted(present)}


def class_dice(
    label: NDArray[Any] | None, prediction: NDArray[Any] | None, names: Mapping[int, str]
) -> dict[int, float]:
    """Dice per class over the whole volume, NaN if neither map has the class; empty without both maps."""
    if label is None or prediction is None:
        return {}
    from decathlete.evaluation.metrics import dice

    return {value: dice(prediction == value, label == value) for value in names}


def _image(image: Any, channel: int) -> tuple[NDArray[Any], NDArray[np.float64], str, Any]:
    """Voxels (X, Y, Z) of the channel, affine, the case's name, and the volume if it was read from a file."""
    if isinstance(image, (str, os.PathLike)):
        from decathlete.io.nifti import read_nifti

        image = Path(image)
        channels = _channels_of(image)
        if not 0 <= channel < channels:
            raise _no_channel(image, channel, channels)
        volume = read_nifti(image, channels=channels)
        array = volume.array if channels == 1 else volume.array[..., channel]
        return array, volume.affine, strip_nifti_suffix(image.name), volume
    affine = np.asarray(getattr(image, "affine", np.eye(4)), dtype=float)
    channels = len(image) if np.ndim(image) == 4 else 1
    if not 0 <= channel < channels:
        raise _no_channel("image", channel, channels)
    return as_volume(image[channel] if np.ndim(image) == 4 else image), affine, "", None


def _no_channel(where: str | Path, channel: int, channels: int) -> DataError:
    return DataError(where, f"no channel {channel} in the image", f"channels: {listed(range(channels))}")


def _channels_of(path: Path) -> int:
    from decathlete.io.nifti import read_nifti_header

    try:
        shape = read_nifti_header(path).get_data_shape()
    except Exception:  # the strict reader says what is wrong with the file
        return 1
    return shape[3] if len(shape) == 4 else 1


def _label_map(
    values: Any, which: str, image: NDArray[Any], affine: NDArray[np.float64], volume: Any
) -> NDArray[np.integer] | None:
    if values is None:
        return None
    where = which
    if isinstance(values, (str, os.PathLike)):
        from decathlete.io.nifti import read_nifti
        from decathlete.io.volume import check_pair

        read = read_nifti(os.fspath(values), kind="label")
        if volume is not None:
            check_pair(volume, read)
        elif read.array.shape == image.shape and not np.allclose(read.affine, affine, atol=1e-3):
            raise GeometryError(values, "the affine differs from the image's by more than 0.001 mm",
                                remedy="Pass the affine of the image array (default: 1 mm in RAS order)")  # fmt: skip
        values, where = read.array, os.fspath(values)
    array = as_volume(values)
    if array.shape != image.shape:
        found = f"image {shape_text(image.shape)}, {which} {shape_text(array.shape)}"
        raise GeometryError(where, "image and label map are on different grids", found)
    return array if array.dtype.kind in "iu" else array.astype(np.int16)
