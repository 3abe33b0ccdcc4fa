"""The strict readers of scans for MONAI's chains, and the checks of what they loaded."""

from __future__ import annotations

import os
from collections.abc import Collection, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from monai.config import KeysCollection, PathLike
from monai.data import ImageReader, MetaTensor
from monai.transforms import MapTransform
from numpy.typing import NDArray

from decathlete.errors import DataError
from decathlete.io.contours import CONTOUR_ORIGIN, contour_mask, read_contour
from decathlete.io.dicom import MAX_PIXELS, MODALITIES, read_dicom_frame
from decathlete.io.frames import read_frame
from decathlete.io.nifti import MAX_VOXELS, PAIR, SINGLE, read_nifti
from decathlete.io.volume import PAIR_TOLERANCE_MM, Grid, Volume, check_pair, check_same_grid


class NiftiReader(ImageReader):
    """`read_nifti` for ``LoadImaged(keys, reader="decathlete.transforms.NiftiReader")``, with NibabelReader's metadata.

    Several files given as one image become its channels, as with NibabelReader; they must share one grid. Arguments
    are those of `read_nifti`, and pass through LoadImaged: ``LoadImaged("label", reader=..., kind="label")``.
    """

    def __init__(
        self,
        kind: Literal["image", "label"] = "image",
        channels: int = 1,
        allowed_labels: Collection[int] | None = None,
        max_voxels: int = MAX_VOXELS,
    ) -> None:
        super().__init__()
        if kind not in ("image", "label"):
            raise ValueError(f"kind (={kind!r}) must be 'image' or 'label'")
        if channels < 1:
            raise ValueError(f"channels (={channels}) must be at least 1")
        self.kind, self.channels = kind, channels
        self.allowed_labels, self.max_voxels = allowed_labels, max_voxels

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Whether all names end as NIfTI files do."""
        names = [filename] if isinstance(filename, (str, os.PathLike)) else filename
        return all(str(name).lower().endswith(SINGLE + PAIR) for name in names)

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> list[Path]:
        """Names of the files only: after an error here, LoadImage would try another, less strict reader."""
        return [Path(data)] if isinstance(data, (str, os.PathLike)) else [Path(name) for name in data]

    def get_data(self, img: list[Path]) -> tuple[NDArray, dict[str, Any]]:
        """Array (X, Y, Z), (X, Y, Z, C) or, from several files, (C, X, Y, Z); and its metadata."""
        channels = self.channels if len(img) == 1 else 1
        volumes = [
            read_nifti(
                path, kind=self.kind, channels=channels, allowed_labels=self.allowed_labels, max_voxels=self.max_voxels
            )
            for path in img
        ]
        for other in volumes[1:]:
            check_pair(volumes[0], other)
        array = volumes[0].array if len(volumes) == 1 else np.stack([v.array for v in volumes])
        return array, self._metadata(volumes[0], len(volumes))

    def _metadata(self, volume: Volume, files: int) -> dict[str, Any]:
        channel_dim = 0 if files > 1 else (-1 if volume.array.ndim == 4 else float("nan"))
        return {
            **{k: v for k, v in dict(volume.header).items() if v.dtype.kind not in "SUO"},
            "original_pixdim": volume.header["pixdim"].copy(),
            "affine": volume.affine.copy(),
            "original_affine": volume.affine.copy(),
            "as_closest_canonical": False,
            "spatial_shape": np.asarray(volume.array.shape[:3]),  # int64: NIfTI-2 and DICOM have longer axes than int16
            "space": "RAS",
            "original_channel_dim": channel_dim,
        }


class FrameReader(NiftiReader):
    """`read_frame` for ``LoadImaged(keys, reader="decathlete.transforms.FrameReader")``."""

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Any name: DICOM files often have no suffix."""
        return True

    def get_data(self, img: list[Path]) -> tuple[NDArray, dict[str, Any]]:
        """Array (X, Y, Z), Z = 1 for a DICOM frame; and its metadata."""
        if len(img) != 1:
            raise DataError(img[0], "expected one DICOM frame or one NIfTI file per item", f"{len(img)} files")
        volume = read_frame(img[0])
        return volume.array, self._metadata(volume, 1)


class DicomReader(ImageReader):
    """`read_dicom_frame` for ``LoadImaged(keys, reader="decathlete.transforms.DicomReader")``: 2D images (X, Y).

    ``affine`` holds only the spacing: MONAI's 2D transforms use its upper left corner, which would not be the spacing
    of an oblique slice. The position in space is in the metadata as ``frame_affine``.
    """

    def __init__(self, modalities: Collection[str] = MODALITIES, max_pixels: int = MAX_PIXELS) -> None:
        super().__init__()
        self.modalities, self.max_pixels = tuple(modalities), max_pixels

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Any name: DICOM files often have no suffix."""
        return True

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> list[Path]:
        """Names of the files only: after an error here, LoadImage would try another, less strict reader."""
        return [Path(data)] if isinstance(data, (str, os.PathLike)) else [Path(name) for name in data]

    def get_data(self, img: list[Path]) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Array (X, Y), and its metadata."""
        if len(img) != 1:
            raise DataError(img[0], "expected one slice per item", f"{len(img)} files")
        frame = read_dicom_frame(img[0], modalities=self.modalities, max_pixels=self.max_pixels)
        affine = np.diag([*frame.spacing, 1.0, 1.0])
        return frame.array, {
            "affine": affine,
            "original_affine": affine.copy(),
            "frame_affine": frame.affine,
            "spatial_shape": np.asarray(frame.array.shape),
            "space": "RAS",
            "original_channel_dim": float("nan"),
        }


class CheckPaird(MapTransform):
    """Refuse a case whose label is not on the grid of its image, as `check_pair` does, at any point after loading.

    It reads the metadata that NiftiReader and NibabelReader leave of the original files. With one key, as in
    prediction, it does nothing.

    Args:
        keys: image first, then what must be on its grid.
        tolerance_mm: largest difference between two entries of the affines.
        allow_missing_keys: ignore keys that a case does not have.
    """

    def __init__(
        self, keys: KeysCollection, tolerance_mm: float = PAIR_TOLERANCE_MM, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.tolerance_mm = tolerance_mm

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The case, unchanged.

        Raises:
            GeometryError: as `check_pair`.
        """
        grids = [Grid.of_metadata(data[key].meta) for key in self.key_iterator(data)]
        for other in grids[1:]:
            check_same_grid(grids[0], other, self.tolerance_mm)
        return dict(data)


class ContourMaskd(MapTransform):
    """Replace the contour files of an item by one label with a channel per contour, and flag which of them were drawn.

    An item ``{"image": (1, X, Y), "inner": path, "outer": None}`` becomes ``{"image": ..., "label": (2, X, Y),
    "drawn": (2,)}``: 1 inside the contour and 0 outside. A contour that is None gives zeros and a 0 in
    ``drawn``, so that a loss can leave the channel out. The items can be collated.

    Args:
        keys: the contours, in the order of the channels.
        image_key: image that gives the label its grid and affine.
        label_key: key of the label, a MetaTensor of float32.
        drawn_key: key of the flags, a tensor of float32.
        origin: coordinate of the centre of the first pixel.

    Raises:
        DataError: a contour cannot be read, or is outside the image.
    """

    def __init__(
        self,
        keys: KeysCollection = ("inner", "outer"),
        image_key: str = "image",
        label_key: str = "label",
        drawn_key: str = "drawn",
        origin: float = CONTOUR_ORIGIN,
    ) -> None:
        super().__init__(keys)
        self.image_key, self.label_key, self.drawn_key, self.origin = image_key, label_key, drawn_key, origin

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return ``data`` with label and flags in place of the contours' paths."""
        d = dict(data)
        image = d[self.image_key]
        shape = tuple(image.shape[1:])
        if len(shape) != 2:
            raise DataError(
                "ContourMaskd", "contours need an image of one slice, (C, X, Y)", f"shape {tuple(image.shape)}"
            )
        paths = [d.pop(key, None) for key in self.keys]
        masks = [
            np.zeros(shape, dtype=bool) if p is None else contour_mask(read_contour(p), shape, self.origin, p)
            for p in paths
        ]
        label = torch.from_numpy(np.stack(masks).astype(np.float32))
        affine = image.affine.clone() if isinstance(image, MetaTensor) else None
        d[self.label_key] = MetaTensor(label, affine=affine)
        d[self.drawn_key] = torch.tensor([float(p is not None) for p in paths])
        return d
