"""The one strict reader of NIfTI files: a file is read rightly, or refused in a line that names file and rule.

nibabel interprets the header's fields (quaternions, scaling, byte order). What it lets pass is checked here: the gzip
checksum and trailer, sizes before anything is allocated, the affine, voxels that are not finite, label values.
"""

from __future__ import annotations

import gzip
import logging
import math
import os
import zlib
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from monai.config import KeysCollection, PathLike
from monai.data import ImageReader
from monai.transforms import MapTransform
from nibabel.volumeutils import apply_read_scaling
from numpy.typing import NDArray

from decathlete.errors import DataError, GeometryError, listed
from decathlete.files import check_content

logger = logging.getLogger(__name__)

MAX_VOXELS = 2**30  # 1024^3: more than any CT of a whole body, 4 GiB as float32
PAIR_TOLERANCE_MM = 1e-3
_MAX_OFFSET = 2**26  # bytes of header and extensions before the voxels; those in use have some megabytes
_GZIP_MAGIC = b"\x1f\x8b"
_DEFLATE_MAX_RATIO = 1032  # zlib's documented limit: no stream unpacks to more than this
_SPACING_MM = (1e-3, 100.0)
_PARTIAL_SHARE = 1e-3  # of a mask's voxels that may lie between 0 and 1; a map of probabilities has far more
_FAR_MM = 1e4  # an origin farther than 10 m from zero is no scanner's
_DTYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
_NOT_INTENSITIES = {1: "one bit a voxel", 32: "complex64", 128: "RGB colour", 1536: "float128", 1792: "complex128",
                    2048: "complex256", 2304: "RGBA colour"}  # fmt: skip
_UNITS = {1: "metres", 3: "micrometres"}
_SINGLE, _PAIR = (".nii", ".nii.gz"), (".hdr", ".img", ".hdr.gz", ".img.gz")


@dataclass(frozen=True)
class Volume:
    """A volume with its place in space.

    Attributes:
        array: image float32, label uint8 or int16; (X, Y, Z), or (X, Y, Z, C) where several channels were asked for.
        affine: 4x4 float64, from voxel indices to RAS+ millimetres.
        header: nibabel header to write a result with: native byte order, the input's sform, qform, codes and units.
        notes: what was assumed, a line each; empty for a file without oddities.
        path: the file it came from.
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
        """Whether the file states its place in space (an sform or a qform)."""
        return bool(self.header["sform_code"] > 0 or self.header["qform_code"] > 0)


def read_nifti(
    path: str | Path,
    *,
    kind: Literal["image", "label"] = "image",
    channels: int = 1,
    allowed_labels: Collection[int] | None = None,
    max_voxels: int = MAX_VOXELS,
) -> Volume:
    """Read a NIfTI file (1 or 2, ``.nii``, ``.nii.gz``, or a ``.hdr``/``.img`` pair) strictly.

    Args:
        path: the file; of a pair, either one.
        kind: ``"label"`` asks for whole numbers (to 1e-3), not negative, and gives an integer array.
        channels: volumes along a fourth axis that the file must hold.
        allowed_labels: label values that may occur; ``None`` allows all that a label map may hold.
        max_voxels: larger shapes are refused before anything is unpacked.

    Raises:
        DataError: the file is missing, damaged, not NIfTI, not finite, or holds other values than asked for.
        GeometryError: the affine is not finite, singular, sheared, out of range, in other units, or stated twice
            in two ways.

    Notes of what was assumed are logged, once per file.
    """
    try:
        with np.errstate(all="ignore"):  # what overflows is caught as not finite
            return _read(Path(path), kind, channels, allowed_labels, max_voxels)
    except OSError as error:  # no permission, a name too long, a disk that fails
        raise DataError(path, "the file can be read", error.strerror or str(error)) from error


def _read(path: Path, kind: str, channels: int, allowed_labels: Collection[int] | None, max_voxels: int) -> Volume:
    header_path, voxel_path = _files(path)
    header = _header(header_path, single=header_path == voxel_path)
    notes: list[str] = []
    shape, dtype, offset = _layout(header_path, header, channels, max_voxels, notes)
    affine = _affine(header_path, header, shape, notes)
    slope, inter = _scaling(header_path, header, notes)
    count = math.prod(shape)
    data = _unpacked(voxel_path, offset + count * dtype.itemsize)
    if header_path == voxel_path:
        _check_extensions(data[header.sizeof_hdr : offset], header, notes)
    stored = data[offset:].view(dtype).reshape(shape, order="F")
    if not dtype.isnative and dtype.kind in "iu":
        _check_byte_order(path, stored)
    voxels = stored if slope is None else apply_read_scaling(stored, slope, inter)
    convert = _image_voxels if kind == "image" else _label_voxels
    array = convert(path, voxels, notes, **({} if kind == "image" else {"allowed": allowed_labels}))
    _say_once(path, notes)
    return Volume(array, affine, _header_to_write(header), notes, path)


def read_nifti_header(path: str | Path) -> nib.Nifti1Header:
    """Header of a NIfTI file, for a look ahead of `read_nifti`; shape and spacing in it are not checked yet.

    `nibabel.load` unpacks the header's extensions too, and a small file can hold any number of zeros there.

    Raises:
        DataError: the file is missing, or has no NIfTI header.
    """
    try:
        header_path, voxel_path = _files(Path(path))
        return _header(header_path, single=header_path == voxel_path)
    except OSError as error:
        raise DataError(path, "the file can be read", error.strerror or str(error)) from error


def check_pair(image: Volume, label: Volume, *, tolerance_mm: float = PAIR_TOLERANCE_MM) -> None:
    """Refuse a label that does not lie on its image voxel by voxel.

    Raises:
        GeometryError: shapes differ, affines differ by more than ``tolerance_mm`` in an entry, or only one of the two
            states its place in space.
    """
    first, second = (_Grid(v.path, v.array.shape[:3], v.affine, v.is_placed) for v in (image, label))
    _check_same_grid(first, second, tolerance_mm)


class CheckPaird(MapTransform):
    """Refuse a case whose label does not lie on its image, as `check_pair` does, anywhere after the loading.

    Reads what NiftiReader and NibabelReader leave in the metadata of the original files; with one key, as in
    prediction, it does nothing.

    Args:
        keys: image first, then what has to lie on it.
        tolerance_mm: largest difference between two entries of the affines.
        allow_missing_keys: pass over keys that a case has not.
    """

    def __init__(
        self, keys: KeysCollection, tolerance_mm: float = PAIR_TOLERANCE_MM, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.tolerance_mm = tolerance_mm

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The case as it came.

        Raises:
            GeometryError: as `check_pair`.
        """
        grids = [_Grid.of_metadata(data[key].meta) for key in self.key_iterator(data)]
        for other in grids[1:]:
            _check_same_grid(grids[0], other, self.tolerance_mm)
        return dict(data)


@dataclass(frozen=True)
class _Grid:
    """Voxels of a file and where they lie."""

    path: Path
    shape: tuple[int, ...]
    affine: NDArray
    is_placed: bool

    @classmethod
    def of_metadata(cls, meta: Mapping[str, Any]) -> _Grid:
        codes = [int(meta.get(name, 1)) for name in ("sform_code", "qform_code")]
        return cls(
            Path(str(meta.get("filename_or_obj", "case"))),
            tuple(int(n) for n in meta["spatial_shape"]),
            np.asarray(meta["original_affine"], dtype=np.float64),
            max(codes) > 0,
        )

    @property
    def spacing(self) -> str:
        return _numbers(np.linalg.norm(self.affine[:3, :3], axis=0))


def _check_same_grid(image: _Grid, label: _Grid, tolerance_mm: float) -> None:
    if image.shape != label.shape:
        raise GeometryError(
            label.path,
            "a label has its image's shape",
            f"label {_by(label.shape)} on image {_by(image.shape)} ({image.path.name})",
            "Give the label that was drawn on this image, or resample it",
        )
    if image.is_placed != label.is_placed:
        raise GeometryError(
            label.path if image.is_placed else image.path,
            "its place in space must be known, since that of its image or label is",
            "sform_code 0 and qform_code 0",
            "Copy the header of the other file",
        )
    _check_handedness(label.path, "label and image", {"label": label.affine, "image": image.affine},
                      "Bring the label into its image's orientation")  # fmt: skip
    difference = np.abs(image.affine - label.affine)
    row, column = np.unravel_index(int(difference.argmax()), (4, 4))
    if difference.max() > tolerance_mm:
        what = ("x", "y", "z")[row] + (" of the origin" if column == 3 else f" along axis {column}")
        raise GeometryError(
            label.path,
            f"label and image affines agree to {tolerance_mm:g} mm",
            f"a largest difference of {difference.max():.6g} mm, in {what}: label {label.affine[row, column]:.6g}, "
            f"image {image.affine[row, column]:.6g} ({image.path.name}); spacing {label.spacing} and {image.spacing}",
            "Resample the label onto the image's grid",
        )


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
        return all(str(name).lower().endswith(_SINGLE + _PAIR) for name in names)

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> list[Path]:
        """Names of the files only. LoadImage takes any error here as a reason to try another, less strict reader."""
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


def _files(path: Path) -> tuple[Path, Path]:
    """Header file and voxel file (the same for a single file), both there."""
    lower = path.name.lower()
    if path.is_dir():
        raise DataError(path, "an image is a file", "a folder of that name")
    if path.name.startswith("._"):
        raise DataError(path, "an image is not a side file", "a name that starts with '._'", "Delete what macOS left")
    if not lower.endswith(_SINGLE + _PAIR):
        raise DataError(path, "a NIfTI file ends in .nii, .nii.gz, .hdr or .img", f"'{path.name}'", "Convert the image")
    check_content(path)
    if not path.exists():
        raise DataError(path, "the file must exist", "no such file")
    if lower.endswith(_SINGLE):
        return path, path
    pair = []
    for wanted in ("hdr", "img"):
        end = ".gz" if lower.endswith(".gz") else ""
        stem = path.name[: len(path.name) - len(end) - 4]
        spelt = wanted.upper() if path.name[len(stem) + 1 :].isupper() else wanted
        candidates = [path.with_name(f"{stem}.{spelt}{ending}") for ending in (path.name[len(stem) + 4 :], "", ".gz")]
        there = next((c for c in candidates if c.is_file()), None)
        if there is None:
            raise DataError(
                candidates[0], f"a pair has its .{wanted} file", "no such file", f"Put it beside {path.name}"
            )
        pair.append(there)
    return pair[0], pair[1]


def _gzipped(path: Path, start: bytes) -> bool:
    """Whether the file is compressed, from its first bytes; refused where the name says otherwise."""
    named, packed = path.name.lower().endswith(".gz"), start.startswith(_GZIP_MAGIC)
    if not start:
        raise DataError(path, "an image holds data", "an empty file", "Copy or download it again")
    if named and not packed:
        found = "other bytes at the start"
        if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
            found = "a web page in place of the image"
        elif start[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c", b"\x1c\x02\0\0", b"\0\0\x02\x1c"):
            found = "an image that is not compressed"
        raise DataError(path, "a name in .gz means gzip data", found, "Get the file itself, or rename it to .nii")
    if packed and not named:
        raise DataError(path, "a name without .gz means data that are not compressed", "gzip data", "Rename to .nii.gz")
    return packed


def _header(path: Path, single: bool) -> nib.Nifti1Header:
    """Header of the file with sizeof_hdr and magic checked, in the file's byte order."""
    with path.open("rb") as file:
        start = file.read(544)
    if _gzipped(path, start):
        try:
            with gzip.open(path) as file:
                start = file.read(544)
        except (EOFError, OSError, zlib.error) as error:
            raise _corrupt(path, error) from error
        if not start:
            raise DataError(path, "an image holds data", "gzip data of 0 bytes", "Copy or download it again")
    if len(start) < 348:
        found = f"{len(start)} bytes: {start[:20]!r}" if start[:20].isascii() else f"{len(start)} bytes"
        raise DataError(path, "a NIfTI header has 348 bytes or more", found, "Copy or download it again")
    for order in ("<", ">"):
        size = int(np.frombuffer(start[:4], order + "i4")[0])
        if size in (348, 540):
            break
    else:
        raise DataError(path, "a NIfTI file starts with the header's size, 348 or 540",
                        f"{int(np.frombuffer(start[:4], '<i4')[0])}", "Convert the image to NIfTI")  # fmt: skip
    kind = nib.Nifti1Header if size == 348 else nib.Nifti2Header
    if len(start) < size:
        raise DataError(path, f"this NIfTI header has {size} bytes", f"{len(start)}", "Copy or download it again")
    magic = start[344:348] if size == 348 else start[4:8]
    digit = b"1" if size == 348 else b"2"
    wanted = (b"n+" if single else b"ni") + digit + b"\0"
    if magic != wanted:
        found = f"{magic!r}"
        if magic == b"\0\0\0\0":
            found += ", as in Analyze 7.5, which does not know left from right"
        raise DataError(path, f"a {'single file' if single else 'pair'} has the NIfTI magic {wanted!r}", found,
                        "Convert the image to NIfTI")  # fmt: skip
    if size == 540 and start[8:12] != b"\r\n\x1a\n":
        raise DataError(path, "NIfTI-2 keeps four bytes that show changed line ends", f"{start[8:12]!r}",
                        "The file was damaged in transfer: copy it again, as binary")  # fmt: skip
    return kind(start[:size], endianness=order, check=False)


def _layout(
    path: Path, header: nib.Nifti1Header, channels: int, max_voxels: int, notes: list[str]
) -> tuple[tuple[int, ...], np.dtype, int]:
    """Shape as wanted, stored type, and offset of the voxels; nothing larger than ``max_voxels``."""
    dims = [int(d) for d in header["dim"]]
    if not 1 <= dims[0] <= 7:
        raise DataError(path, "the number of axes, dim[0], is 1 to 7", f"{dims[0]}", "Convert the image again")
    shape = tuple(dims[1 : dims[0] + 1])
    if any(d < 1 for d in shape):
        raise DataError(path, "every axis is at least one voxel long", f"shape {_by(shape)}", "Convert the image again")
    if math.prod(shape) > max_voxels * max(channels, 1):
        raise DataError(path, f"a volume has at most {max_voxels:,} voxels", f"shape {_by(shape)}",
                        "Crop the image, or raise max_voxels")  # fmt: skip
    shape = _wanted_shape(path, shape, channels)

    code = int(header["datatype"])
    if code not in _DTYPES:
        found = f"datatype {code}" + (f" ({_NOT_INTENSITIES[code]})" if code in _NOT_INTENSITIES else "")
        raise DataError(path, "voxels are integers or floats of 8 to 64 bits", found, "Convert to one value a voxel")
    dtype = np.dtype(header.endianness + _DTYPES[code])
    if int(header["bitpix"]) != dtype.itemsize * 8:
        notes.append(f"bitpix {int(header['bitpix'])} disagrees with datatype {dtype.name}; went by the datatype")

    offset = float(header["vox_offset"])
    first = 0 if header["magic"].item()[:2] == b"ni" else header.sizeof_hdr + 4
    if math.isfinite(offset) and offset > _MAX_OFFSET:  # few bytes of gzip can hold very many zeros
        raise DataError(path, f"vox_offset is at most {_MAX_OFFSET:,} bytes", f"{offset:,.0f}",
                        "Convert the image again, without its extensions")  # fmt: skip
    if not (math.isfinite(offset) and offset >= first and offset == int(offset)):
        raise DataError(path, f"vox_offset is a whole number of at least {first}", f"{offset:g}",
                        "Convert the image again")  # fmt: skip
    return shape, dtype, int(offset)


def _wanted_shape(path: Path, shape: tuple[int, ...], channels: int) -> tuple[int, ...]:
    if len(shape) < 3:
        raise DataError(path, "a volume has three axes", f"shape {_by(shape)}", "Stack the slices into a volume")
    rest = shape[3:]
    volumes = math.prod(rest)
    if volumes == channels and (volumes == 1 or len(rest) == 1 or math.prod(rest[1:]) == 1):
        return shape[:3] if channels == 1 else (*shape[:3], channels)
    wanted = "one volume" if channels == 1 else f"{channels} channels along the fourth axis"
    raise DataError(path, f"{wanted} is wanted" if channels == 1 else f"{wanted} are wanted",
                    f"{volumes} (shape {_by(shape)})", "Choose or join the volumes")  # fmt: skip


def _scaling(path: Path, header: nib.Nifti1Header, notes: list[str]) -> tuple[float | None, float]:
    """Slope and intercept; slope ``None`` where the voxels are to be taken as stored."""
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if math.isinf(slope):
        raise DataError(path, "scaling is finite", f"scl_slope {slope}", "Correct the header")
    if slope == 0 or math.isnan(slope):
        if not (inter == 0 or math.isnan(inter)):
            notes.append(f"scl_slope {slope:g} means no scaling; scl_inter {inter:g} was left out")
        return None, 0.0
    if not math.isfinite(inter):
        raise DataError(path, "scaling is finite", f"scl_slope {slope:g}, scl_inter {inter}", "Correct the header")
    return (None, 0.0) if (slope, inter) == (1.0, 0.0) else (slope, inter)


def _affine(path: Path, header: nib.Nifti1Header, shape: tuple[int, ...], notes: list[str]) -> NDArray[np.float64]:
    """Affine in RAS+ mm, by the sform, else the qform, else the spacing alone."""
    codes = {name: int(header[name]) for name in ("sform_code", "qform_code")}
    for name, code in codes.items():
        if not 0 <= code <= 5:
            raise GeometryError(path, f"{name} is 0 to 5", f"{code}", "Correct the header")
    units = int(header["xyzt_units"]) & 7
    if units in _UNITS:
        raise GeometryError(path, "lengths are in millimetres", f"units {_UNITS[units]}", "Convert the header to mm")
    pixdim = np.asarray(header["pixdim"][1:4], dtype=np.float64)
    pixdim_good = bool(np.isfinite(pixdim).all() and (pixdim > 0).all())
    if codes["sform_code"] == 0 and not pixdim_good:
        raise GeometryError(path, "spacing is finite and above 0", f"pixdim {_numbers(pixdim)}", "Correct the header")

    if codes["sform_code"] > 0:
        affine = np.asarray(header.get_sform(), dtype=np.float64)
    elif codes["qform_code"] > 0:
        affine = _qform(path, header)
    else:
        affine = np.asarray(header.get_base_affine(), dtype=np.float64)
        affine[:3, 3] = -affine[:3, :3] @ ((np.asarray(shape[:3]) - 1) / 2)
        notes.append(f"no sform and no qform: orientation unknown, taken as LAS with spacing {_numbers(pixdim)} mm")
    _check_affine(path, affine)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    spacing_agrees = pixdim_good and np.abs(pixdim / spacing - 1).max() <= 1e-2
    if not spacing_agrees:
        notes.append(
            f"pixdim {_numbers(pixdim)} disagrees with the sform; spacing {_numbers(spacing)} mm is the sform's"
        )
    if codes["sform_code"] > 0 and codes["qform_code"] > 0:  # directions are compared whatever pixdim says
        _check_forms_agree(path, affine, _qform(path, header, None if spacing_agrees else spacing), shape)
    if np.abs(affine[:3, 3]).max() > _FAR_MM:
        notes.append(f"the origin is {np.abs(affine[:3, 3]).max() / 1000:,.0f} m away from zero")
    return affine


def _qform(path: Path, header: nib.Nifti1Header, spacing: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Affine by the qform, with ``spacing`` (mm) in place of that of pixdim."""
    quaternion = np.array([header[f"quatern_{axis}"] for axis in "bcd"], dtype=np.float64)
    if not np.isfinite(quaternion).all():
        raise GeometryError(path, "the qform's quaternion is finite", _numbers(quaternion), "Correct the header")
    qfac = float(header["pixdim"][0])
    if qfac < 0 and qfac != -1:  # the standard's own library reads -1 here and nibabel 1: one of them mirrors the image
        raise GeometryError(path, "the qform's handedness, pixdim[0], is 1 or -1", f"{qfac:g}", "Correct the header")
    header = header.copy()
    header["pixdim"][0] = -1 if qfac == -1 else 1  # by the standard, 0 reads as 1
    if spacing is not None:
        header["pixdim"][1:4] = spacing
    try:
        return np.asarray(header.get_qform(), dtype=np.float64)
    except ValueError as error:
        raise GeometryError(path, "the qform's quaternion is a rotation, b^2 + c^2 + d^2 at most 1",
                            _numbers(quaternion), "Correct the header") from error  # fmt: skip


def _check_affine(path: Path, affine: NDArray[np.float64]) -> None:
    if not np.isfinite(affine).all():
        raise GeometryError(path, "the affine is finite", _numbers(affine[:3].ravel()), "Correct the header")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if (spacing == 0).any():
        raise GeometryError(path, "the affine can be inverted", f"a column of zeros, spacing {_numbers(spacing)}",
                            "Correct the header")  # fmt: skip
    directions = affine[:3, :3] / spacing
    if abs(np.linalg.det(directions)) < 1e-3:
        raise GeometryError(path, "the affine can be inverted", f"columns in one plane: {_numbers(affine[:3, :3])}",
                            "Correct the header")  # fmt: skip
    if spacing.min() < _SPACING_MM[0] or spacing.max() > _SPACING_MM[1]:
        raise GeometryError(path, "spacing is between {:g} and {:g} mm".format(*_SPACING_MM), f"{_numbers(spacing)} mm",
                            "Correct the header")  # fmt: skip
    cosine = np.abs(directions.T @ directions - np.eye(3)).max()
    if cosine > 1e-2:  # 0.6 degrees; rounded headers stay far below
        raise GeometryError(path, "axes stand at right angles", f"{math.degrees(math.acos(cosine)):.1f} degrees",
                            "Resample the image onto a grid without shear")  # fmt: skip


def _check_forms_agree(path: Path, sform: NDArray, qform: NDArray, shape: tuple[int, ...]) -> None:
    _check_handedness(path, "sform and qform", {"sform": sform, "qform": qform},
                      "Correct the header, or set the code of the wrong one to 0")  # fmt: skip
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape[:3]])).reshape(3, -1)
    apart = np.linalg.norm((sform - qform)[:3, :3] @ corners + (sform - qform)[:3, 3:], axis=0).max()
    # a quarter of a voxel: a float32 quaternion near a half turn is off by 2e-4 rad, 0.1 mm over a large volume
    if apart > 0.25 * np.linalg.norm(sform[:3, :3], axis=0).min():
        raise GeometryError(path, "sform and qform agree", f"corners up to {apart:.3g} mm apart",
                            "Correct the header, or set the code of the wrong one to 0")  # fmt: skip


def _check_handedness(path: Path, both: str, affines: Mapping[str, NDArray], remedy: str) -> None:
    """Refuse two affines one of which is the other's mirror image: then left is right in one of the two."""
    if len({np.linalg.det(affine[:3, :3]) > 0 for affine in affines.values()}) > 1:
        axes = " and ".join(f"{''.join(nib.aff2axcodes(affine))} by the {name}" for name, affine in affines.items())
        raise GeometryError(path, f"{both} agree in handedness", f"a flip between them: axes {axes}", remedy)


def _unpacked(path: Path, needed: int) -> NDArray[np.uint8]:
    """The file's ``needed`` bytes; fewer or more, or a gzip stream that does not vouch for them, are refused."""
    size = path.stat().st_size
    with path.open("rb") as file:
        packed = _gzipped(path, file.read(32))
        file.seek(0)
        if not packed:
            if size != needed:
                raise _wrong_length(path, size, needed)
            return np.fromfile(file, np.uint8, needed)
        if needed > size * _DEFLATE_MAX_RATIO:
            raise _wrong_length(path, None, needed)
        data = np.empty(needed, np.uint8)
        _inflate(path, file, data)
    return data


def _inflate(path: Path, file: Any, data: NDArray[np.uint8]) -> None:
    """Fill ``data`` from a gzip file of one or more members; zlib checks each member's checksum and length."""
    filled, stream = 0, zlib.decompressobj(wbits=31)
    pending = file.read(1 << 20)
    while pending:
        try:
            # one byte more than is wanted shows a surplus without unpacking it
            out = stream.decompress(pending, len(data) - filled + 1)
        except zlib.error as error:
            raise _corrupt(path, error) from error
        if filled + len(out) > len(data):
            raise _wrong_length(path, len(data) + 1, len(data))
        data[filled : filled + len(out)] = np.frombuffer(out, np.uint8)
        filled += len(out)
        if stream.eof:
            pending = (stream.unused_data or file.read(1 << 20)).lstrip(b"\0")  # gzip allows zeros as padding
            if pending and not pending.startswith(_GZIP_MAGIC):
                raise DataError(path, "nothing follows the end of the compressed data", "other bytes after it",
                                "Copy or download it again")  # fmt: skip
            stream = zlib.decompressobj(wbits=31) if pending else stream
        else:
            pending = stream.unconsumed_tail or file.read(1 << 20)
    if not stream.eof:
        raise DataError(path, "compressed data end with a checksum", f"an early end after {filled:,} bytes unpacked",
                        "Copy or download it again")  # fmt: skip
    if filled < len(data):
        raise _wrong_length(path, filled, len(data))


def _wrong_length(path: Path, size: int | None, needed: int) -> DataError:
    found = "a file too small to unpack to that"
    if size is not None:
        found = f"{size:,}" if size < needed else "more"
    return DataError(path, f"header and voxels take {needed:,} bytes by the header's shape", found,
                     "Copy or download it again, or correct the header")  # fmt: skip


def _corrupt(path: Path, error: Exception) -> DataError:
    rule = "the gzip checksum matches" if "check" in str(error) else "compressed data are sound"
    return DataError(path, rule, str(error).split(": ")[-1], "Copy or download it again")


def _check_extensions(between: NDArray[np.uint8], header: nib.Nifti1Header, notes: list[str]) -> None:
    """Note extensions whose sizes do not fit before the voxels; none is kept: they are the input's own comments."""
    if len(between) < 4 or between[0] == 0:
        return
    place = 4
    while place + 8 <= len(between):
        size = int(between[place : place + 4].view(header.endianness + "i4")[0])
        if size < 8 or place + size > len(between):
            notes.append(f"a header extension claims {size:,} bytes where {len(between) - place} are; passed over")
            return
        place += size


def _check_byte_order(path: Path, stored: NDArray) -> None:
    """Refuse voxels that are far smoother once their bytes are swapped: only the header has the order it states."""
    sample = stored[:, :, stored.shape[2] // 2].reshape(stored.shape[0], -1)
    if sample.shape[0] < 2 or sample.dtype.itemsize < 2:
        return

    def roughness(values: NDArray) -> float:
        values = values.astype(np.float64)
        return float(np.abs(np.diff(values, axis=0)).mean())

    as_stated, swapped = roughness(sample), roughness(sample.byteswap())
    if swapped * 4 < as_stated:
        raise DataError(path, "header and voxels have one byte order",
                        f"neighbours that differ by {as_stated:.3g} as stated, by {swapped:.3g} with bytes swapped",
                        "Convert the image again")  # fmt: skip


def _extremes(path: Path, voxels: NDArray) -> tuple[Any, Any]:
    """Smallest and largest voxel, all finite."""
    low, high = voxels.min(), voxels.max()
    if voxels.dtype.kind == "f" and not (np.isfinite(low) and np.isfinite(high)):
        odd = ~np.isfinite(voxels)
        first = tuple(int(i) for i in np.argwhere(odd)[0])
        raise DataError(path, "voxels are finite", f"{int(odd.sum())} that are not, the first at {first}",
                        "Write the image again without NaN and infinity")  # fmt: skip
    return low, high


def _image_voxels(path: Path, voxels: NDArray, notes: list[str]) -> NDArray[np.float32]:
    low, high = _extremes(path, voxels)
    if max(abs(float(low)), abs(float(high))) > float(np.finfo(np.float32).max):
        raise DataError(path, "intensities fit float32", f"values from {low:g} to {high:g}", "Scale the intensities")
    if low == high:
        notes.append(f"every voxel is {low:g}")
    array = voxels.astype(np.float32)
    if voxels.dtype.kind in "iu" and max(-int(low), int(high)) > 2**24:
        # compared as integers: a comparison as float64 would round both sides alike
        changed = int((array.astype(np.longdouble) != voxels.astype(np.longdouble)).sum())
        if changed:
            notes.append(f"{changed} whole numbers beyond 2^24 were rounded to float32")
    return array


def _label_voxels(path: Path, voxels: NDArray, notes: list[str], allowed: Collection[int] | None) -> NDArray:
    low, high = _extremes(path, voxels)
    if low < -1e-3:
        raise DataError(path, "label values are not negative", f"{low:g}", "Map the value to background or a class")
    if high > np.iinfo(np.int16).max:
        raise DataError(path, "label values are class numbers", f"{high:g}", "Give the label, not the image")
    array = _whole(path, voxels, notes).astype(np.uint8 if high < 255.5 else np.int16)
    counts = np.bincount(array.ravel(order="K"), minlength=1)
    present = np.flatnonzero(counts)
    unknown = [] if allowed is None else sorted(set(present.tolist()) - {int(v) for v in allowed})
    if unknown:
        found = listed(f"{value} ({counts[value]} voxels)" for value in unknown)
        rule = f"label values are among {{{', '.join(str(v) for v in sorted(allowed or ()))}}}"
        raise DataError(path, rule, found, "Correct the file, or map the values")
    if len(present) == 1:
        notes.append("the label is empty" if present[0] == 0 else f"every voxel has label {present[0]}")
    return array


def _whole(path: Path, voxels: NDArray, notes: list[str]) -> NDArray:
    """Voxels rounded to whole numbers; refused where one is more than 1e-3 away from any.

    A mask of 0 and 1 may have a few voxels between: editors leave them at the edge, and NFBS's own masks have them.
    """
    if voxels.dtype.kind != "f":
        return voxels
    whole = np.rint(voxels)
    away = np.abs(voxels - whole)
    if (worst := float(away.max())) > 1e-3:
        odd = away > 1e-3
        if voxels.max() <= 1 and odd.sum() <= _PARTIAL_SHARE * np.count_nonzero(voxels > 0.5):
            notes.append(f"{int(odd.sum())} voxels of the mask lie between 0 and 1 and were rounded")
            return whole
        example = float(voxels[tuple(np.argwhere(odd)[0])])
        raise DataError(path, "label values are whole numbers", f"{int(odd.sum())} that are not, such as {example:g}",
                        "Resample labels by nearest neighbour")  # fmt: skip
    if worst > 0:
        notes.append(f"label values rounded to whole numbers, by {worst:.1g} at most")
    return whole


def _header_to_write(header: nib.Nifti1Header) -> nib.Nifti1Header:
    """Header for a result on the same grid: native byte order, no scaling, and an offset that nibabel sets itself."""
    header = header.as_byteswapped() if header.endianness != nib.volumeutils.native_code else header.copy()
    header["magic"] = b"n+2" if isinstance(header, nib.Nifti2Header) else b"n+1"
    header["vox_offset"] = 0
    header["scl_slope"] = header["scl_inter"] = np.nan
    return header


def header_of(shape: Sequence[int], affine: NDArray[np.float64]) -> nib.Nifti1Header:
    """Header for float32 voxels that came from no NIfTI file, placed by ``affine`` in mm; NIfTI-2 for long axes."""
    header = nib.Nifti2Header() if max(shape) > np.iinfo(np.int16).max else nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_data_dtype(np.float32)
    header.set_slope_inter(None, None)
    header.set_zooms(np.linalg.norm(affine[:3, :3], axis=0))
    header.set_sform(affine, code=1)
    header.set_qform(affine, code=1)
    header.set_xyzt_units("mm")
    return header


_said: set[tuple[str, str]] = set()


def _say_once(path: Path, notes: list[str]) -> None:
    line = "; ".join(notes)
    if line and (str(path), line) not in _said:
        _said.add((str(path), line))
        logger.warning("%s: %s", path, line)


def _by(shape: Sequence[int]) -> str:
    return "x".join(str(n) for n in shape)


def _numbers(values: Any) -> str:
    return "(" + ", ".join(f"{float(v):.6g}" for v in np.ravel(values)) + ")"
