"""The one strict reader of NIfTI files: a file is read correctly, or one line says what is wrong with it.

nibabel interprets the header (quaternions, scaling, byte order). What it does not check is checked here: the gzip
checksum, sizes before memory is allocated, the affine, voxels that are not finite, label values.
"""

from __future__ import annotations

import gzip
import logging
import math
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
from nibabel.volumeutils import apply_read_scaling
from numpy.typing import NDArray

from decathlete.errors import DataError
from decathlete.files import check_content
from decathlete.io.affine import affine_of
from decathlete.io.packed import corrupt, is_gzipped, unpacked
from decathlete.io.volume import Volume, shape_text
from decathlete.io.voxels import check_byte_order, image_voxels, label_voxels

logger = logging.getLogger(__name__)

MAX_VOXELS = 2**30  # 1024^3: more than any CT of a whole body, 4 GiB as float32
_MAX_OFFSET = 2**26  # bytes of header and extensions before the voxels; those in use have some megabytes
_DTYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
_NOT_INTENSITIES = {1: "one bit per voxel", 32: "complex64", 128: "RGB colour", 1536: "float128", 1792: "complex128",
                    2048: "complex256", 2304: "RGBA colour"}  # fmt: skip
SINGLE, PAIR = (".nii", ".nii.gz"), (".hdr", ".img", ".hdr.gz", ".img.gz")  # endings of names


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
        kind: ``"label"`` expects integers (to 1e-3) that are not negative, and returns an integer array.
        channels: how many volumes the file must hold along a fourth axis.
        allowed_labels: label values that may occur; ``None`` allows any.
        max_voxels: larger shapes are refused before anything is unpacked.

    Raises:
        DataError: the file is missing, damaged, not NIfTI, not finite, or holds other values than expected.
        GeometryError: the affine is not finite, singular, sheared, out of range or in other units, or sform and qform
            contradict each other.

    What had to be assumed is logged, once per file.
    """
    try:
        with np.errstate(all="ignore"):  # what overflows is caught as not finite
            return _read(Path(path), kind, channels, allowed_labels, max_voxels)
    except OSError as error:  # no permission, a name too long, a disk that fails
        raise DataError(path, "the file cannot be read", error.strerror or str(error)) from error


def _read(path: Path, kind: str, channels: int, allowed_labels: Collection[int] | None, max_voxels: int) -> Volume:
    header_path, voxel_path = _files(path)
    header = _header(header_path, single=header_path == voxel_path)
    notes: list[str] = []
    shape, dtype, offset = _layout(header_path, header, channels, max_voxels, notes)
    affine = affine_of(header_path, header, shape, notes)
    slope, inter = _scaling(header_path, header, notes)
    count = math.prod(shape)
    data = unpacked(voxel_path, offset + count * dtype.itemsize)
    if header_path == voxel_path:
        _check_extensions(data[header.sizeof_hdr : offset], header, notes)
    stored = data[offset:].view(dtype).reshape(shape, order="F")
    if not dtype.isnative and dtype.kind in "iu":
        check_byte_order(path, stored)
    voxels = stored if slope is None else apply_read_scaling(stored, slope, inter)
    convert = image_voxels if kind == "image" else label_voxels
    array = convert(path, voxels, notes, **({} if kind == "image" else {"allowed": allowed_labels}))
    _say_once(path, notes)
    return Volume(array, affine, _header_to_write(header), notes, path)


def read_nifti_header(path: str | Path) -> nib.Nifti1Header:
    """Header of a NIfTI file; shape and spacing are not checked yet.

    `nibabel.load` would unpack the extensions of the header too, and a small file can hold any number of zeros there.

    Raises:
        DataError: the file is missing, or has no NIfTI header.
    """
    try:
        header_path, voxel_path = _files(Path(path))
        return _header(header_path, single=header_path == voxel_path)
    except OSError as error:
        raise DataError(path, "the file cannot be read", error.strerror or str(error)) from error


def _files(path: Path) -> tuple[Path, Path]:
    """Header file and voxel file (the same for a single file); both exist."""
    lower = path.name.lower()
    if path.is_dir():
        raise DataError(path, "this is a folder, not an image file")
    if path.name.startswith("._"):
        raise DataError(path, "this is a side file of macOS, not an image", remedy="Delete it")
    if not lower.endswith(SINGLE + PAIR):
        raise DataError(
            path, "the name does not end in .nii, .nii.gz, .hdr or .img", remedy="Convert the image to NIfTI"
        )
    check_content(path)
    if not path.exists():
        raise DataError(path, "no such file")
    if lower.endswith(SINGLE):
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
                candidates[0], f"the .{wanted} file of the pair is missing", remedy=f"Put it beside {path.name}"
            )
        pair.append(there)
    return pair[0], pair[1]


def _header(path: Path, single: bool) -> nib.Nifti1Header:
    """Header of the file with sizeof_hdr and magic checked, in the file's byte order."""
    with path.open("rb") as file:
        start = file.read(544)
    if is_gzipped(path, start):
        try:
            with gzip.open(path) as file:
                start = file.read(544)
        except (EOFError, OSError, zlib.error) as error:
            raise corrupt(path, error) from error
        if not start:
            raise DataError(path, "the gzip file is empty", remedy="Copy or download it again")
    if len(start) < 348:
        found = f"{len(start)} bytes: {start[:20]!r}" if start[:20].isascii() else f"{len(start)} bytes"
        raise DataError(path, "too short for a NIfTI header of 348 bytes", found, "Copy or download it again")
    for order in ("<", ">"):
        size = int(np.frombuffer(start[:4], order + "i4")[0])
        if size in (348, 540):
            break
    else:
        raise DataError(path, "not a NIfTI file: expected the header size 348 or 540 at the start",
                        f"{int(np.frombuffer(start[:4], '<i4')[0])}", "Convert the image to NIfTI")  # fmt: skip
    kind = nib.Nifti1Header if size == 348 else nib.Nifti2Header
    if len(start) < size:
        raise DataError(
            path, f"too short for its header of {size} bytes", f"{len(start)} bytes", "Copy or download it again"
        )
    magic = start[344:348] if size == 348 else start[4:8]
    digit = b"1" if size == 348 else b"2"
    wanted = (b"n+" if single else b"ni") + digit + b"\0"
    if magic != wanted:
        found = f"{magic!r}"
        if magic == b"\0\0\0\0":
            found += ", as in Analyze 7.5, which does not tell left from right"
        what = "single file" if single else "pair of files"
        raise DataError(path, f"expected {wanted!r}, the NIfTI magic of a {what}", found, "Convert the image to NIfTI")
    if size == 540 and start[8:12] != b"\r\n\x1a\n":
        raise DataError(path, "line ends were changed in transfer", f"{start[8:12]!r} in the NIfTI-2 header",
                        "Copy it again, as a binary file")  # fmt: skip
    return kind(start[:size], endianness=order, check=False)


def _layout(
    path: Path, header: nib.Nifti1Header, channels: int, max_voxels: int, notes: list[str]
) -> tuple[tuple[int, ...], np.dtype, int]:
    """Expected shape, stored type and offset of the voxels; at most ``max_voxels``."""
    dims = [int(d) for d in header["dim"]]
    if not 1 <= dims[0] <= 7:
        raise DataError(
            path, "the number of axes is not between 1 and 7", f"dim[0] {dims[0]}", "Convert the image again"
        )
    shape = tuple(dims[1 : dims[0] + 1])
    if any(d < 1 for d in shape):
        raise DataError(path, "an axis has no voxels", f"shape {shape_text(shape)}", "Convert the image again")
    if math.prod(shape) > max_voxels * max(channels, 1):
        raise DataError(path, f"more than {max_voxels:,} voxels", f"shape {shape_text(shape)}",
                        "Crop the image, or raise max_voxels")  # fmt: skip
    shape = _wanted_shape(path, shape, channels)

    code = int(header["datatype"])
    if code not in _DTYPES:
        found = f"datatype {code}" + (f", {_NOT_INTENSITIES[code]}" if code in _NOT_INTENSITIES else "")
        raise DataError(
            path,
            "the data type is neither an integer nor a float of 8 to 64 bits",
            found,
            "Convert to one value per voxel",
        )
    dtype = np.dtype(header.endianness + _DTYPES[code])
    if int(header["bitpix"]) != dtype.itemsize * 8:
        notes.append(f"bitpix {int(header['bitpix'])} does not fit the datatype {dtype.name}; the datatype is used")

    offset = float(header["vox_offset"])
    first = 0 if header["magic"].item()[:2] == b"ni" else header.sizeof_hdr + 4
    if math.isfinite(offset) and offset > _MAX_OFFSET:  # few bytes of gzip can hold very many zeros
        raise DataError(path, f"vox_offset is above {_MAX_OFFSET:,} bytes", f"{offset:,.0f}",
                        "Convert the image again, without its extensions")  # fmt: skip
    if not (math.isfinite(offset) and offset >= first and offset == int(offset)):
        raise DataError(path, f"vox_offset is not an integer of at least {first}", f"{offset:g}",
                        "Convert the image again")  # fmt: skip
    return shape, dtype, int(offset)


def _wanted_shape(path: Path, shape: tuple[int, ...], channels: int) -> tuple[int, ...]:
    if len(shape) < 3:
        raise DataError(path, "fewer than three axes", f"shape {shape_text(shape)}", "Stack the slices into a volume")
    rest = shape[3:]
    volumes = math.prod(rest)
    if volumes == channels and (volumes == 1 or len(rest) == 1 or math.prod(rest[1:]) == 1):
        return shape[:3] if channels == 1 else (*shape[:3], channels)
    wanted = "one volume" if channels == 1 else f"{channels} channels along the fourth axis"
    raise DataError(path, f"expected {wanted}", f"{volumes} in shape {shape_text(shape)}",
                    "Split or stack the volumes")  # fmt: skip


def _scaling(path: Path, header: nib.Nifti1Header, notes: list[str]) -> tuple[float | None, float]:
    """Slope and intercept; slope ``None`` if the voxels are used as stored."""
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if math.isinf(slope):
        raise DataError(path, "the scaling is not finite", f"scl_slope {slope}", "Correct the header")
    if slope == 0 or math.isnan(slope):
        if not (inter == 0 or math.isnan(inter)):
            notes.append(f"scl_slope {slope:g} means no scaling; scl_inter {inter:g} is ignored")
        return None, 0.0
    if not math.isfinite(inter):
        raise DataError(
            path, "the scaling is not finite", f"scl_slope {slope:g}, scl_inter {inter}", "Correct the header"
        )
    return (None, 0.0) if (slope, inter) == (1.0, 0.0) else (slope, inter)


def _check_extensions(between: NDArray[np.uint8], header: nib.Nifti1Header, notes: list[str]) -> None:
    """Note extensions that do not fit before the voxels; no extension is kept: they are comments on the input."""
    if len(between) < 4 or between[0] == 0:
        return
    place = 4
    while place + 8 <= len(between):
        size = int(between[place : place + 4].view(header.endianness + "i4")[0])
        if size < 8 or place + size > len(between):
            notes.append(f"a header extension states {size:,} bytes, but there are {len(between) - place}; ignored")
            return
        place += size


def _header_to_write(header: nib.Nifti1Header) -> nib.Nifti1Header:
    """Header for a result on the same grid: native byte order, no scaling, and an offset that nibabel sets itself."""
    header = header.as_byteswapped() if header.endianness != nib.volumeutils.native_code else header.copy()
    header["magic"] = b"n+2" if isinstance(header, nib.Nifti2Header) else b"n+1"
    header["vox_offset"] = 0
    header["scl_slope"] = header["scl_inter"] = np.nan
    return header


_said: set[tuple[str, str]] = set()


def _say_once(path: Path, notes: list[str]) -> None:
    line = "; ".join(notes)
    if line and (str(path), line) not in _said:
        _said.add((str(path), line))
        logger.warning("%s: %s", path, line)
