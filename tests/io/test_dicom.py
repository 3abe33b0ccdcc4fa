from __future__ import annotations

import io
import json
import logging
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, RLELossless

from decathlete.errors import DataError
from decathlete.io.dicom import check_inflation, peek, quiet_pydicom, read_dicom_frame
from decathlete.io.series import series_in


def cases(shared: Path) -> list[dict]:
    everything = json.loads((shared / "data" / "bad_inputs" / "cases.json").read_text())
    return [case for case in everything if case["kind"] == "dicom-file"]


@pytest.fixture
def control(shared) -> pydicom.Dataset:
    """A sound CT slice, 32 x 32, rows 0.7 and columns 0.8 mm apart."""
    return pydicom.dcmread(shared / "data" / "bad_inputs" / "dicom" / "made" / "valid_reference.dcm")


def test_every_bad_and_hard_file_is_read_rightly_or_refused(shared):
    wrong = []
    for case in cases(shared):
        path = shared / "data" / "bad_inputs" / case["path"]
        try:
            frame = read_dicom_frame(path)
        except DataError as error:
            if case["verdict"] == "read" or str(path) not in str(error) or len(str(error).splitlines()) != 1:
                wrong.append(f"{case['path']} ({case['should']}): {error}")
            continue
        truth = case["truth"]
        if case["verdict"] == "refuse":
            wrong.append(f"{case['path']}: read, {case['should']}")
        elif truth and truth["shape"][2] == 1:
            i, j = np.indices(frame.array.shape)
            found = [frame.array.sum(dtype=float), (frame.array * (i + 2.0 * j)).sum()]
            same = np.allclose(found, [truth["sum"], truth["moment"]]) and np.allclose(frame.affine, truth["affine"])
            if not same or list(frame.array.shape) != truth["shape"][:2]:
                wrong.append(f"{case['path']}: {found}, {frame.affine}")
    assert wrong == []
    assert len(cases(shared)) == 127


def test_the_same_slice_in_other_transfer_syntaxes_is_the_same(shared):
    folder = shared / "data" / "bad_inputs" / "dicom" / "real"
    plain = read_dicom_frame(folder / "MR_small.dcm").array
    for name in ("implicit", "bigendian", "expb", "RLE", "jpeg_ls_lossless", "jp2klossless"):
        np.testing.assert_array_equal(read_dicom_frame(folder / f"MR_small_{name}.dcm").array, plain, err_msg=name)


@pytest.mark.parametrize(
    ("slope", "intercept", "expected"),
    [("2", "0", (2, 0)), ("1", "50", (1, 50)), ("2", None, (2, 0)), (None, "50", (1, 50)), (None, None, (1, 0))],
)
def test_slope_and_intercept_each_count_alone(control, tmp_path, slope, intercept, expected):
    for name, value in (("RescaleSlope", slope), ("RescaleIntercept", intercept)):
        delattr(control, name)
        if value is not None:
            setattr(control, name, value)
    control.save_as(tmp_path / "a.dcm")
    np.testing.assert_array_equal(
        read_dicom_frame(tmp_path / "a.dcm").array, control.pixel_array.T * float(expected[0]) + expected[1]
    )


def test_a_deflated_file_that_unpacks_without_end_is_refused(shared):
    path = shared / "data" / "bad_inputs" / "dicom" / "made" / "deflate_bomb_32MB.dcm"
    with pytest.raises(DataError, match="unpacks to more than"):
        read_dicom_frame(path, max_pixels=2**20)


def element(group: int, number: int, kind: bytes, value: bytes) -> bytes:
    long = kind in (b"OB", b"OW", b"UN", b"SQ")
    length = struct.pack("<HI", 0, len(value)) if long else struct.pack("<H", len(value))
    return struct.pack("<HH", group, number) + kind + length + value


DEFLATED = element(2, 0x10, b"UI", b"1.2.840.10008.1.2.1.99")


def header_of(side: int = 16, bits: int = 16, frames: str = "1 ") -> bytes:
    """The start of a CT image's data set, of square frames."""
    return b"".join(
        [
            element(8, 0x60, b"CS", b"CT"),
            element(0x28, 2, b"US", struct.pack("<H", 1)),
            element(0x28, 4, b"CS", b"MONOCHROME2 "),
            element(0x28, 8, b"IS", frames.encode()),
            *(element(0x28, number, b"US", struct.pack("<H", side)) for number in (0x10, 0x11)),
            *(element(0x28, number, b"US", struct.pack("<H", bits)) for number in (0x100, 0x101)),
        ]
    )


ZEROS = 2**28  # 256 MiB, which deflate to 1.2 MB in a moment, to 0.3 MB with patience


def deflated(start: bytes, zeros: int) -> bytes:
    pack = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    parts = [pack.compress(start)] + [pack.compress(bytes(2**22)) for _ in range(zeros // 2**22)]
    return b"".join([*parts, pack.flush()])


@pytest.fixture(scope="module")
def bombs(tmp_path_factory) -> Path:
    """A folder of slices of 16 x 16 pixels that unpack to 256 MiB, told in several ways."""
    folder = tmp_path_factory.mktemp("bombs")
    pixels = deflated(header_of() + struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OW", 0, ZEROS), ZEROS)
    private = deflated(element(8, 0x60, b"CS", b"CT") + struct.pack("<HH2sHI", 9, 0x1001, b"UN", 0, ZEROS), ZEROS)
    start = b"\0" * 128 + b"DICM"
    lengths = {"no_length": b"", "long": struct.pack("<I", 10**6), "short": struct.pack("<I", 1)}
    for name, length in lengths.items():
        meta = (element(2, 0, b"UL", length) if length else b"") + DEFLATED
        (folder / f"{name}.dcm").write_bytes(start + meta + pixels)
    (folder / "private.dcm").write_bytes(start + DEFLATED + private)
    other = element(2, 2, b"UI", b"1.2.840.10008.5.1.4.1.1.2\0") + element(2, 1, b"OB", b"\0\1")
    (folder / "unordered.dcm").write_bytes(start + other + DEFLATED + pixels)
    return folder


@pytest.mark.parametrize("name", ["no_length", "long", "short", "private", "unordered"])
def test_what_deflates_to_more_than_its_pixels_takes_no_memory(bombs, said_within, name):
    said = said_within(150, read_dicom_frame, bombs / f"{name}.dcm")
    assert "unpacks to more than the 16,77" in said


def test_a_listing_of_series_unpacks_no_more_than_a_reader(bombs, said_within):
    assert said_within(150, lambda folder: series_in(folder), bombs) == "read: []"
    assert said_within(150, lambda path: peek(path, ["Modality"]), bombs / "no_length.dcm") == "read: "


def test_a_sound_deflated_slice_without_the_length_of_its_file_meta_is_read(control, tmp_path):
    plain = io.BytesIO()
    control.save_as(plain)
    data = plain.getvalue()
    start = 144 + int.from_bytes(data[140:144], "little")
    (tmp_path / "a.dcm").write_bytes(data[:132] + DEFLATED + deflated(data[start:], 0))
    np.testing.assert_array_equal(
        read_dicom_frame(tmp_path / "a.dcm").array,
        control.pixel_array.T * control.RescaleSlope + control.RescaleIntercept,
    )


def compressed(control: pydicom.Dataset, syntax: str, stream: bytes, path: Path) -> Path:
    """The control with other pixels, 8 bits deep."""
    stream += b"\0" * (len(stream) % 2)
    control.BitsAllocated = control.BitsStored = 8
    control.HighBit, control.PixelRepresentation = 7, 0
    control.file_meta.TransferSyntaxUID = syntax
    item = b"\xfe\xff\x00\xe0"
    control.PixelData = item + bytes(4) + item + struct.pack("<I", len(stream)) + stream
    control["PixelData"].is_undefined_length = True
    control.save_as(path)
    return path


def test_rle_that_unpacks_to_more_than_its_pixels_takes_no_memory(control, said_within, tmp_path):
    runs = struct.pack("<16I", 1, 64, *[0] * 14) + b"\x81\0" * 2**22  # 128 zeros each: 512 MiB
    said = said_within(150, read_dicom_frame, compressed(control, RLELossless, runs, tmp_path / "a.dcm"))
    assert "unpacks to more than 67,584 bytes for 32 x 32 pixels" in said


@pytest.mark.parametrize(("kind", "syntax"), [("JPEG2000", JPEG2000Lossless), ("JPEG", JPEGBaseline8Bit)])
def test_compressed_pixels_of_another_size_than_the_header_are_refused(control, tmp_path, kind, syntax):
    """16 x 64 pixels are as many bytes as 32 x 32: a decoder that counts bytes alone would scramble them."""
    for size, name in (((32, 32), "same"), ((16, 64), "other")):
        file = io.BytesIO()
        Image.fromarray(np.arange(1024, dtype=np.uint8).reshape(size)).save(file, kind, no_jp2=True)
        path = compressed(control, syntax, file.getvalue(), tmp_path / f"{name}.dcm")
        if name == "same":
            assert read_dicom_frame(path).array.shape == (32, 32)
            continue
        with pytest.raises(DataError, match=r"32 x 32 pixels and 1 sample in .*\(16 x 64 and 1"):
            read_dicom_frame(path)


def test_a_small_file_that_claims_a_giant_codestream_is_refused_before_it_is_decoded(control, said_within, tmp_path):
    file = io.BytesIO()
    Image.fromarray(np.arange(1024, dtype=np.uint8).reshape(32, 32)).save(file, "JPEG2000", no_jp2=True)
    stream = bytearray(file.getvalue())
    for place in (8, 12, 24, 28):  # width, height, and those of the tiles
        stream[place : place + 4] = (30_000).to_bytes(4, "big")
    path = compressed(control, JPEG2000Lossless, bytes(stream), tmp_path / "a.dcm")
    assert "(30000 x 30000 and 1" in said_within(150, read_dicom_frame, path)


def test_sequences_nested_thousands_deep_are_refused_in_one_line(said_within, tmp_path):
    nested = b""
    for _ in range(4000):
        nested += struct.pack("<HH2sHI", 8, 0x1140, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
            "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
        )
    meta = element(2, 0x10, b"UI", b"1.2.840.10008.1.2.1\0")
    (tmp_path / "a.dcm").write_bytes(b"\0" * 128 + b"DICM" + meta + nested)
    said = said_within(150, read_dicom_frame, tmp_path / "a.dcm")
    assert said.startswith("DataError")
    assert "\n" not in said


def test_reading_leaves_pydicoms_log_and_the_warning_filters_as_they_were(shared):
    """Four threads at once, whose starts and ends overlap in any order."""
    path = shared / "data" / "bad_inputs" / "dicom" / "real" / "MR_small_RLE.dcm"
    log, before = logging.getLogger("pydicom"), list(warnings.filters)
    level, show = log.level, warnings.showwarning

    def read() -> None:
        for _ in range(10):
            read_dicom_frame(path)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (log.level, warnings.showwarning, list(warnings.filters)) == (level, show, before)


def test_a_reader_keeps_its_own_warnings_and_lets_those_of_others_through():
    with warnings.catch_warnings(record=True) as others:
        warnings.simplefilter("always")
        with quiet_pydicom() as said, quiet_pydicom() as inner:
            warnings.warn("ours", stacklevel=1)
            thread = threading.Thread(target=lambda: warnings.warn("theirs", stacklevel=1))
            thread.start()
            thread.join()
        assert (said, inner) == ([], ["ours"])
    assert [str(warning.message) for warning in others] == ["theirs"]


def test_frames_count_as_pixels_of_a_deflated_file(said_within, tmp_path):
    """40 frames of 1024 x 1024 at 8 bits are 40 MiB, and as many are in the file; with one frame stated, too many."""
    pixels = struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OB", 0, 40 * 2**20)
    for frames, said in (("40", "read: None"), ("1 ", "DataError")):
        data = deflated(header_of(1024, 8, frames) + pixels, 40 * 2**20)
        (tmp_path / "a.dcm").write_bytes(b"\0" * 128 + b"DICM" + DEFLATED + data)
        assert said_within(150, check_inflation, tmp_path / "a.dcm").startswith(said)
