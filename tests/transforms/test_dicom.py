from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pydicom
import pytest
from monai.transforms import LoadImaged

from decathlete.errors import DataError
from decathlete.transforms import DicomReader, read_dicom_frame


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


def test_a_frame_loads_as_a_channel_with_its_spacing(control, tmp_path):
    control.save_as(tmp_path / "no_suffix")
    image = LoadImaged("image", reader=DicomReader(), ensure_channel_first=True)({"image": tmp_path / "no_suffix"})[
        "image"
    ]
    assert image.shape == (1, 32, 32)
    np.testing.assert_allclose(image.pixdim.tolist()[:2], [0.8, 0.7])
    np.testing.assert_allclose(np.diag(image.affine), [0.8, 0.7, 1, 1])


def test_a_deflated_file_that_unpacks_without_end_is_refused(shared):
    path = shared / "data" / "bad_inputs" / "dicom" / "made" / "deflate_bomb_32MB.dcm"
    with pytest.raises(DataError, match="unpacks to at most"):
        read_dicom_frame(path, max_pixels=2**20)
