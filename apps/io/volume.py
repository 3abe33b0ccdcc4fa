"""A volume with its place in space, and whether two of them lie on one grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from decathlete.errors import GeometryError

PAIR_TOLERANCE_MM = 1e-3


@dataclass(frozen=True)
class Volume:
    """A volume with its place in space.

    Attributes:
        array: image float32, label uint8 or int16; (X, Y, Z), or (X, Y, Z, C) for several channels.
        affine: 4x4 float64, from voxel indices to RAS+ millimetres.
        header: nibabel header for a result on this grid: native byte order, and the input's sform, qform, codes and
            units.
        notes: what was assumed, one line each; usually empty.
        path: the file that was read.
    """

    array: NDArray
    affine: NDArray[np.float64]
    header: nib.Nifti1Header
    notes: list[str]
    path: Path

    @property
    def spacing(self) -> tuple[float, ...]:
        """Voxel edge lengths in mm, one per spatial axis."""
        return tuple(float(s) for s in np.linalg.norm(self.affine[:3, :3], axis=0))

    @property
    def is_placed(self) -> bool:
        """Whether the file states its position in space (sform or qform)."""
        return bool(self.header["sform_code"] > 0 or self.header["qform_code"] > 0)


def header_of(shape: Sequence[int], affine: NDArray[np.float64]) -> nib.Nifti1Header:
    """Header for float32 voxels that did not come from NIfTI, with ``affine`` in mm; NIfTI-2 if an axis is long."""
    header = nib.Nifti2Header() if max(shape) > np.iinfo(np.int16).max else nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_data_dtype(np.float32)
    header.set_slope_inter(None, None)
    header.set_zooms(np.linalg.norm(affine[:3, :3], axis=0))
    header.set_sform(affine, code=1)
    header.set_qform(affine, code=1)
    header.set_xyzt_units("mm")
    return header


def check_pair(image: Volume, label: Volume, *, tolerance_mm: float = PAIR_TOLERANCE_MM) -> None:
    """Refuse a label that does not lie on its image voxel by voxel.

    Raises:
        GeometryError: shapes differ, affines differ by more than ``tolerance_mm`` in an entry, or only one of the two
            states its position in space.
    """
    first, second = (Grid(v.path, v.array.shape[:3], v.affine, v.is_placed) for v in (image, label))
    check_same_grid(first, second, tolerance_mm)


@dataclass(frozen=True)
class Grid:
    """Voxels of a file and where they lie."""

    path: Path
    shape: tuple[int, ...]
    affine: NDArray
    is_placed: bool

    @classmethod
    def of_metadata(cls, meta: Mapping[str, Any]) -> Grid:
        """Grid of the file that MONAI's metadata describe, as NiftiReader and NibabelReader leave them."""
        codes = [int(meta.get(name, 1)) for name in ("sform_code", "qform_code")]
        return cls(
            Path(str(meta.get("filename_or_obj", "case"))),
            tuple(int(n) for n in meta["spatial_shape"]),
            np.asarray(meta["original_affine"], dtype=np.float64),
            max(codes) > 0,
        )

    @property
    def spacing(self) -> str:
        """Voxel edge lengths in mm, for a message."""
        return numbers_text(np.linalg.norm(self.affine[:3, :3], axis=0), " x ")


def check_same_grid(image: Grid, label: Grid, tolerance_mm: float) -> None:
    """Refuse a label whose grid is not its image's; errors as `check_pair`."""
    if image.shape != label.shape:
        raise GeometryError(
            label.path,
            "label and image differ in shape",
            f"label {shape_text(label.shape)}, image {shape_text(image.shape)}: {image.path.name}",
            "Give the label that was drawn on this image, or resample it",
        )
    if image.is_placed != label.is_placed:
        raise GeometryError(
            label.path if image.is_placed else image.path,
            f"the position in space is unknown, but that of {(label if label.is_placed else image).path.name} is known",
            "sform_code 0, qform_code 0",
            "Copy the header of the other file",
        )
    check_handedness(label.path, {"label": label.affine, "image": image.affine},
                      "Flip the label to the orientation of its image")  # fmt: skip
    difference = np.abs(image.affine - label.affine)
    row, column = np.unravel_index(int(difference.argmax()), (4, 4))
    if difference.max() > tolerance_mm:
        what = ("x", "y", "z")[row] + (" of the origin" if column == 3 else f" along axis {column}")
        raise GeometryError(
            label.path,
            f"the affines of label and image differ by more than {tolerance_mm:g} mm",
            f"by {difference.max():.6g} mm in {what}: label {label.affine[row, column]:.6g}, image "
            f"{image.affine[row, column]:.6g}; spacing {label.spacing} and {image.spacing} mm; image {image.path.name}",
            "Resample the label to the image's grid",
        )


def check_handedness(path: Path, affines: Mapping[str, NDArray], remedy: str) -> None:
    """Refuse two affines of which one mirrors the other: left would be right in one of the two."""
    if len({np.linalg.det(affine[:3, :3]) > 0 for affine in affines.values()}) > 1:
        axes = " and ".join(f"{''.join(nib.aff2axcodes(affine))} of the {name}" for name, affine in affines.items())
        raise GeometryError(path, f"{' and '.join(affines)} are mirror images of each other", f"axes {axes}", remedy)


def shape_text(shape: Sequence[int]) -> str:
    """A shape for a message, such as ``64 x 64 x 30``."""
    return " x ".join(str(n) for n in shape)


def numbers_text(values: Any, between: str = ", ") -> str:
    """Numbers for a message, to six digits."""
    return between.join(f"{float(v):.6g}" for v in np.ravel(values))
