"""The bytes of a file, gzipped or not: exactly as many as its header states, otherwise an error."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decathlete.errors import DataError

_MAGIC = b"\x1f\x8b"
_DEFLATE_MAX_RATIO = 1032  # zlib's documented limit: no stream unpacks to more than this


def is_gzipped(path: Path, start: bytes) -> bool:
    """Whether the file is compressed, by its first bytes; an error if its name says otherwise."""
    named, packed = path.name.lower().endswith(".gz"), start.startswith(_MAGIC)
    if not start:
        raise DataError(path, "the file is empty", remedy="Copy or download it again")
    if named and not packed:
        found = "other bytes"
        if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
            found = "a web page"
        elif start[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c", b"\x1c\x02\0\0", b"\0\0\x02\x1c"):
            found = "an image that is not compressed"
        raise DataError(
            path, "the name ends in .gz, but the data are not gzip", found, "Get the file itself, or rename it to .nii"
        )
    if packed and not named:
        raise DataError(path, "the data are gzip, but the name does not end in .gz", remedy="Rename it to .nii.gz")
    return packed


def unpacked(path: Path, needed: int) -> NDArray[np.uint8]:
    """The ``needed`` bytes of the file; fewer, more, or a damaged gzip stream are errors."""
    size = path.stat().st_size
    with path.open("rb") as file:
        packed = is_gzipped(path, file.read(32))
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
            raise corrupt(path, error) from error
        if filled + len(out) > len(data):
            raise _wrong_length(path, len(data) + 1, len(data))
        data[filled : filled + len(out)] = np.frombuffer(out, np.uint8)
        filled += len(out)
        if stream.eof:
            pending = (stream.unused_data or file.read(1 << 20)).lstrip(b"\0")  # gzip allows zeros as padding
            if pending and not pending.startswith(_MAGIC):
                raise DataError(path, "other bytes follow the compressed data", remedy="Copy or download it again")
            stream = zlib.decompressobj(wbits=31) if pending else stream
        else:
            pending = stream.unconsumed_tail or file.read(1 << 20)
    if not stream.eof:
        raise DataError(path, "the compressed data are incomplete", f"they end after {filled:,} unpacked bytes",
                        "Copy or download it again")  # fmt: skip
    if filled < len(data):
        raise _wrong_length(path, filled, len(data))


def _wrong_length(path: Path, size: int | None, needed: int) -> DataError:
    found = "the file is too small to unpack to that"
    if size is not None:
        found = f"{size:,} bytes" if size < needed else "there are more"
    return DataError(path, f"expected {needed:,} bytes of header and voxels by the shape in the header", found,
                     "Copy or download it again, or correct the header")  # fmt: skip


def corrupt(path: Path, error: Exception) -> DataError:
    """An error of zlib or gzip as an error of ours."""
    rule = "the gzip checksum does not match" if "check" in str(error) else "the compressed data are damaged"
    return DataError(path, rule, str(error).split(": ")[-1], "Copy or download it again")
