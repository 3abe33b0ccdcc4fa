"""The one strict reader of single DICOM slices: a file is read correctly, or one line says what is wrong with it.

pydicom parses the file and decodes the pixels, in any transfer syntax that it and its decoders know. What it does not
check is checked here: sizes before memory is allocated, bits above BitsStored, rescaling, spacing, direction cosines.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import threading
import warnings
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.filereader import read_dataset, read_file_meta_info
from pydicom.multival import MultiValue
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, RLELossless

from decathlete.errors import DataError, GeometryError
from decathlete.files import check_content

logger = logging.getLogger(__name__)

MAX_PIXELS = 2**26  # 8192 x 8192: more than any slice has, 256 MiB as float32
MODALITIES = ("CT", "MR", "NM", "PT")  # slices of patients, unlike RTDOSE, SEG or pictures in reports
_HEADER_BYTES = 2**24  # of a slice without its pixels: far more than any scanner writes
_COSINE_TOLERANCE = 1e-3  # scanners write six digits; this is a twentieth of a degree
_SPACING_MM = (1e-3, 100.0)
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class DicomFrame:
    """A slice with its position in space.

    Attributes:
        array: rescaled intensities, float32, (X, Y): X along the file's rows (column number), Y down its columns.
        affine: 4x4 float64, from (x, y, slice) indices to RAS+ millimetres; the third column is the slice's normal
            times SliceThickness, or times 1 where that is not stated.
        spacing: mm between pixel centres along X and Y.
        header: the data set without its pixels.
        notes: what was assumed, one line each; usually empty.
        path: the file that was read.
    """

    array: NDArray[np.float32]
    affine: NDArray[np.float64]
    spacing: tuple[float, float]
    header: pydicom.Dataset
    notes: list[str]
    path: Path


def read_dicom_frame(
    path: str | Path, *, modalities: Collection[str] = MODALITIES, max_pixels: int = MAX_PIXELS
) -> DicomFrame:
    """Read a DICOM file that holds one gray slice, strictly.

    Stored values become ``slope * value + intercept``. A missing slope counts as 1 and a missing intercept as 0.

    Args:
        path: the file, under any name.
        modalities: values of Modality that are accepted.
        max_pixels: larger slices are refused before anything is unpacked.

    Raises:
        DataError: the file is missing, damaged, not DICOM, or not a gray image of one frame; its transfer syntax is
            unknown; values are missing, not numbers or out of range.
        GeometryError: spacing, position or orientation are impossible.
    """
    path = Path(path)
    notes: list[str] = []
    with quiet_pydicom():
        header = _header(path, True, modalities, max_pixels)
        stored = _stored_pixels(path, header, notes)
        slope, intercept = _rescaling(path, header, notes)
        array = np.asarray(stored.T * np.float64(slope) + intercept, dtype=np.float32)
        if not np.isfinite(array).all():
            raise DataError(path, "pixels are not finite after rescaling", f"slope {slope}, intercept {intercept}")
        affine, spacing = frame_geometry(header, path, notes)
    for note in notes:
        logger.info("%s: %s", path, note)
    del header.PixelData
    return DicomFrame(np.ascontiguousarray(array), affine, spacing, header, notes, path)


def read_dicom_header(
    path: str | Path,
    *,
    modalities: Collection[str] = MODALITIES,
    max_pixels: int = MAX_PIXELS,
) -> pydicom.Dataset:
    """Header of a gray slice, checked as far as possible without its pixels.

    Raises:
        DataError: as `read_dicom_frame`, except for faults of the pixels.
    """
    with quiet_pydicom():
        header = _header(Path(path), False, modalities, max_pixels)
        _parse_values(header)
    return header


def _header(path: Path, pixels: bool, modalities: Collection[str], max_pixels: int) -> pydicom.Dataset:
    data = _bytes(path)
    try:
        check_inflation(path, max_pixels)
        header = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=not pixels)
        _check_image(path, header, modalities, max_pixels)
    except DataError:
        raise
    except RecursionError as error:
        raise DataError(path, "sequences are nested too deeply") from error
    except Exception as error:  # a damaged file makes pydicom raise anything
        raise DataError(path, "damaged DICOM file", _reason(error), "Export it again") from error
    return header


def peek(path: str | Path, tags: Sequence[str]) -> pydicom.Dataset | None:
    """Values of ``tags`` in the header of a file, to choose among files; None if it is not DICOM.

    For a file that cannot be read the result is empty; the strict reader says why.
    """
    try:
        with Path(path).open("rb") as file:
            if file.read(132)[128:] != b"DICM":
                return None
        with quiet_pydicom():
            check_inflation(Path(path))
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(tags))
            _parse_values(header)
            return header
    except Exception:  # a damaged file makes pydicom raise anything
        return pydicom.Dataset()


class _Quiet:
    """Keeps the warnings of pydicom out of the log and of Python's warnings while anyone reads.

    Readers may be threads: two overlapping `warnings.catch_warnings` would leave the filters of one behind.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readers = 0
        self._undo = contextlib.ExitStack()
        self._said: dict[int, list[str]] = {}  # of threads that read

    @contextlib.contextmanager
    def __call__(self) -> Iterator[list[str]]:
        """Silence pydicom ("Invalid value for VR UI" for every Sunnybrook frame) and yield the list of its warnings.

        Afterwards the warning filters and the level of pydicom's log are as before.
        """
        me = threading.get_ident()
        with self._lock:
            if self._readers == 0:
                self._begin()
            self._readers += 1
            before, self._said[me] = self._said.get(me), []
        try:
            yield self._said[me]
        finally:
            with self._lock:
                if before is None:
                    del self._said[me]
                else:
                    self._said[me] = before
                self._readers -= 1
                if self._readers == 0:
                    self._undo.close()

    def _begin(self) -> None:
        self._undo.enter_context(warnings.catch_warnings())
        warnings.simplefilter("always")
        show = warnings.showwarning

        def listen(message: Warning | str, *args: Any, **kwargs: Any) -> None:
            said = self._said.get(threading.get_ident())
            if said is None:
                show(message, *args, **kwargs)  # of a thread that does not read DICOM
            else:
                said.append(" ".join(str(message).split()))

        warnings.showwarning = listen
        log = logging.getLogger("pydicom")  # gets the tracebacks of decoders, whose errors we report
        self._undo.callback(log.setLevel, log.level)
        log.setLevel(logging.CRITICAL)


quiet_pydicom = _Quiet()


def frame_geometry(
    header: pydicom.Dataset, path: str | Path, notes: list[str] | None = None
) -> tuple[NDArray[np.float64], tuple[float, float]]:
    """Affine (as `DicomFrame.affine`) and spacing (X, Y) in mm from the header of a slice.

    Raises:
        DataError: PixelSpacing is missing, or a value is not a number.
        GeometryError: a spacing that is not positive, direction cosines that are not orthonormal.
    """
    notes = [] if notes is None else notes
    down, along = _numbers(path, header, "PixelSpacing", 2)  # between rows first: DICOM PS3.3, 10.7.1.3
    low, high = _SPACING_MM
    if not (low <= down <= high and low <= along <= high):
        raise GeometryError(path, f"PixelSpacing is not between {low:g} and {high:g} mm", f"{down:g} and {along:g}")
    thickness = _numbers(path, header, "SliceThickness", 1) if _stated(header, "SliceThickness") else [1.0]
    affine = np.eye(4)
    if not (_stated(header, "ImagePositionPatient") and _stated(header, "ImageOrientationPatient")):
        notes.append("position or orientation is not stated: the slice is placed at the origin, with its rows along x")
        affine[:3, :3] = np.diag([along, down, max(thickness[0], low)])
        return _LPS_TO_RAS @ affine, (along, down)
    row, column = np.reshape(_numbers(path, header, "ImageOrientationPatient", 6), (2, 3))
    lengths = np.linalg.norm([row, column], axis=1)
    if np.abs(lengths - 1).max() > _COSINE_TOLERANCE:
        raise GeometryError(path, "direction cosines do not have length 1", f"{lengths[0]:.4g} and {lengths[1]:.4g}")
    if abs(row @ column) > _COSINE_TOLERANCE:
        angle = math.degrees(math.acos(np.clip(row @ column, -1, 1)))
        raise GeometryError(path, "rows and columns are not at right angles", f"{angle:.1f} degrees")
    affine[:3, 0], affine[:3, 1] = row * along, column * down
    affine[:3, 2] = np.cross(row, column) * (thickness[0] if low <= thickness[0] <= high else 1.0)
    affine[:3, 3] = _numbers(path, header, "ImagePositionPatient", 3)
    return _LPS_TO_RAS @ affine, (along, down)


def _bytes(path: Path) -> bytes:
    if path.is_dir():
        raise DataError(path, "this is a folder, not a DICOM file")
    check_content(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(path, "the file cannot be read", error.strerror or str(error)) from error
    if not data:
        raise DataError(path, "the file is empty", remedy="Copy it again")
    if data[128:132] != b"DICM":
        raise DataError(path, "not a DICOM file", "no DICM after 128 bytes")
    return data


def check_inflation(path: Path, max_pixels: int = MAX_PIXELS) -> None:
    """Refuse a deflated file that would unpack to more than its header and the pixels that the header states.

    pydicom would unpack all of it before any value can be read.

    Raises:
        DataError: it unpacks to more, or it is damaged.
    """
    if read_file_meta_info(path).get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return
    with path.open("rb") as file:
        file.seek(132)
        read_dataset(file, is_implicit_VR=False, is_little_endian=True, stop_when=lambda tag, *_: tag >> 16 != 2)
        packed = file.read()
    try:
        unpack = zlib.decompressobj(-zlib.MAX_WBITS)
        start = unpack.decompress(packed, _HEADER_BYTES)
        header = read_dataset(io.BytesIO(start), is_implicit_VR=False, is_little_endian=True,
                              stop_when=lambda tag, *_: tag >= 0x7FE00008)  # fmt: skip
        sides = [header.get(name) for name in ("Rows", "Columns", "BitsAllocated")]
        sides.append(header.get("NumberOfFrames") or 1)
        pixels = math.prod(sides) // 8 if all(isinstance(side, int) and side > 0 for side in sides) else 0
        limit, total, rest = _HEADER_BYTES + min(pixels, 4 * max_pixels), len(start), unpack.unconsumed_tail
        while rest and not unpack.eof:
            total += len(unpack.decompress(rest, 1 << 20))
            rest = unpack.unconsumed_tail
            if total > limit:
                raise DataError(
                    path, f"unpacks to more than the {limit:,} bytes of its image", remedy="Export it again"
                )
    except zlib.error as error:
        raise DataError(path, "the deflated data are damaged", str(error), "Export it again") from error


def _parse_values(header: pydicom.Dataset) -> None:
    """Have pydicom parse all values now: later it would warn whoever reads them."""
    for tag in list(header.keys()):
        with contextlib.suppress(Exception):  # a value that nobody reads may be wrong
            header[tag]


def _check_image(path: Path, header: pydicom.Dataset, modalities: Collection[str], max_pixels: int) -> None:
    modality = header.get("Modality")
    if modality not in modalities:
        found = f"Modality {modality}" if modality else "no Modality"
        raise DataError(path, f"not an image of {' or '.join(modalities)}", found)
    if "MOSAIC" in (header.get("ImageType") or ()):
        raise DataError(path, "expected one slice", "a mosaic: ImageType MOSAIC", "Export the series as single slices")
    rows, columns = (int(_numbers(path, header, name, 1)[0]) for name in ("Rows", "Columns"))
    if not (rows > 0 and columns > 0 and rows * columns <= max_pixels):
        raise DataError(path, f"expected 1 to {max_pixels:,} pixels", f"{rows} rows x {columns} columns")
    samples, colour = header.get("SamplesPerPixel"), str(header.get("PhotometricInterpretation"))
    if samples != 1 or colour not in ("MONOCHROME1", "MONOCHROME2"):
        raise DataError(path, "not a gray image", f"{samples or 'no'} samples per pixel, {colour}")
    frames = _numbers(path, header, "NumberOfFrames", 1)[0] if _stated(header, "NumberOfFrames") else 1
    if frames != 1:
        raise DataError(path, "expected one slice", f"{frames:g} frames", "Export the series as single slices")
    allocated, stored = (int(_numbers(path, header, name, 1)[0]) for name in ("BitsAllocated", "BitsStored"))
    if allocated not in (8, 16, 32) or not 1 <= stored <= allocated:
        raise DataError(
            path, "BitsAllocated must be 8, 16 or 32, and BitsStored 1 to BitsAllocated", f"{allocated} and {stored}"
        )
    if header.get("HighBit", stored - 1) != stored - 1:
        raise DataError(path, "HighBit must be BitsStored - 1", f"HighBit {header.HighBit}, BitsStored {stored}")
    _transfer_syntax(path, header)


def _stored_pixels(path: Path, header: pydicom.Dataset, notes: list[str]) -> NDArray[Any]:
    """Stored values (rows, columns) in any transfer syntax, with the bits above BitsStored corrected."""
    if not header.get("PixelData"):
        raise DataError(path, "there are no pixels", "no PixelData", "It is not an image, or incomplete: copy it again")
    syntax, allocated = _transfer_syntax(path, header), int(header.BitsAllocated)
    if not syntax.is_compressed:
        needed, found = header.Rows * header.Columns * allocated // 8, len(header.PixelData)
        if found < needed:
            raise DataError(path, f"expected {needed:,} bytes for {header.Rows} x {header.Columns} pixels",
                            f"{found:,} bytes", "Copy or export it again")  # fmt: skip
        if found > needed + 1:
            notes.append(f"{found - needed} bytes after the last pixel are ignored")
    else:
        _check_compressed(path, header, syntax)
    with quiet_pydicom() as said:
        try:
            array = header.pixel_array
        except Exception as error:  # each decoder has errors of its own
            rule = f"pixels in {syntax.name}, {syntax}, cannot be decoded"
            raise DataError(path, rule, _reason(error), "Export it uncompressed") from error
        notes.extend(f"decoder: {text}" for text in said if syntax.is_compressed)
    if array.shape != (header.Rows, header.Columns):
        raise DataError(path, f"expected {header.Rows} x {header.Columns} pixels", " x ".join(map(str, array.shape)))
    if header.get("LossyImageCompression") == "01":
        notes.append("the pixels were compressed with losses")
    if header.PhotometricInterpretation == "MONOCHROME1":
        notes.append("MONOCHROME1 inverts only the display; the values are used as they are")
    if _stated(header, "PixelPaddingValue"):
        notes.append(f"pixels with PixelPaddingValue {header.PixelPaddingValue} are kept as they are")
    shift = 8 * array.dtype.itemsize - int(header.BitsStored)
    # old scanners keep overlays above BitsStored; the sign is the highest stored bit
    return (array << shift) >> shift if shift > 0 else array


def _check_compressed(path: Path, header: pydicom.Dataset, syntax: UID) -> None:
    """Refuse compressed pixels of another size than the header states, before a decoder allocates memory for them."""
    for name in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):  # index of the frames, and there is only one
        if name in header:
            del header[name]
    data, parts, place = header.PixelData, [], 0
    while data[place : place + 4] == b"\xfe\xff\x00\xe0":  # items; the first is the table of offsets
        end = place + 8 + int.from_bytes(data[place + 4 : place + 8], "little")
        parts.append(data[place + 8 : end])
        place = end
    stream, size = b"".join(parts[1:]), (int(header.Rows), int(header.Columns))
    if syntax == RLELossless:
        limit = 2 * math.prod(size) * int(header.BitsAllocated) // 8 + 2**16  # some writers pad
        if _unpacked_rle(stream, limit) > limit:
            raise DataError(path, f"unpacks to more than {limit:,} bytes for {size[0]} x {size[1]} pixels",
                            remedy="Export it again")  # fmt: skip
        return
    for rows, columns, samples in _stated_sizes(stream):
        if (rows, columns, samples) != (*size, 1):
            raise DataError(path, f"expected {size[0]} x {size[1]} pixels and 1 sample in the compressed image",
                            f"{rows} x {columns} and {samples}", "Export it again")  # fmt: skip


def _unpacked_rle(stream: bytes, limit: int) -> int:
    """How many bytes the segments of an RLE frame unpack to, counted up to about ``limit``."""
    number = min(int.from_bytes(stream[:4], "little"), 15)
    starts = [int.from_bytes(stream[4 * n : 4 * n + 4], "little") for n in range(1, number + 1)]
    total = 0
    for start, end in zip(starts, [*starts[1:], len(stream)], strict=True):
        segment, place = stream[start:end], 0
        while place < len(segment) and total <= limit:
            head = segment[place]
            place += head + 2 if head < 128 else 1 + (head > 128)
            total += head + 1 if head < 128 else (257 - head) * (head > 128)
    return total


def _stated_sizes(stream: bytes) -> Iterator[tuple[int, int, int]]:
    """Rows, columns and samples of JPEG's or JPEG-LS's first frame, or of all JPEG 2000 codestreams there are."""

    def number(place: int, length: int) -> int:
        return int.from_bytes(stream[place : place + length], "big")

    if stream.startswith(b"\xff\xd8"):
        place = 2
        while place + 10 <= len(stream) and stream[place] == 0xFF:
            marker = stream[place + 1]
            if (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
                yield number(place + 5, 2), number(place + 7, 2), stream[place + 9]
                return
            place += 1 if marker == 0xFF else 2 + number(place + 2, 2)
        return
    place = stream.find(b"\xff\x4f\xff\x51")
    while place >= 0 and place + 42 <= len(stream):
        width, height, left, top = (number(place + 8 + 4 * n, 4) for n in range(4))
        yield height - top, width - left, number(place + 40, 2)
        place = stream.find(b"\xff\x4f\xff\x51", place + 4)


def _rescaling(path: Path, header: pydicom.Dataset, notes: list[str]) -> tuple[float, float]:
    if "ModalityLUTSequence" in header:
        raise DataError(path, "cannot rescale by a table of values", "ModalityLUTSequence")
    slope, intercept = (
        _numbers(path, header, name, 1)[0] if _stated(header, name) else default
        for name, default in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0))
    )
    if slope == 0:
        raise DataError(path, "RescaleSlope is 0, so all pixels would be equal")
    if header.Modality == "CT" and not _stated(header, "RescaleIntercept"):
        notes.append("no RescaleIntercept: values are used as stored and may not be HU")
    return slope, intercept


def _transfer_syntax(path: Path, header: pydicom.Dataset) -> UID:
    uid = getattr(header, "file_meta", {}).get("TransferSyntaxUID")
    if not uid:
        raise DataError(path, "no TransferSyntaxUID", remedy="Export it again")
    if UID(uid).is_private or not UID(uid).is_transfer_syntax:
        raise DataError(
            path, "the transfer syntax is not one of the DICOM standard", str(uid), "Export it uncompressed"
        )
    return UID(uid)


def _stated(header: pydicom.Dataset, name: str) -> bool:
    """Whether a tag exists and is not empty."""
    return name in header and header[name].value not in (None, "") and header[name].VM > 0


def _numbers(path: str | Path, header: pydicom.Dataset, name: str, count: int) -> list[float]:
    try:
        value = header[name].value if name in header else None
        values = list(value) if isinstance(value, (MultiValue, list, tuple)) else [] if value in (None, "") else [value]
        numbers = [float(v) for v in values]
    except (TypeError, ValueError) as error:
        raise DataError(path, f"{name} is not a number", _reason(error)) from error
    if not numbers:
        raise DataError(path, f"no {name}")
    if len(numbers) != count:
        raise DataError(path, f"expected {count} value{'s' if count > 1 else ''} of {name}", f"{len(numbers)}")
    if not all(map(math.isfinite, numbers)):
        raise DataError(path, f"{name} is not finite", f"{numbers}")
    return numbers


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
