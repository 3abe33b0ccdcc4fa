from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from decathlete.errors import DataError
from decathlete.io.series import read_dicom_series


@pytest.fixture
def series(shared) -> Path:
    return shared / "data" / "bad_inputs" / "dicom" / "series"


def test_every_series_is_read_rightly_or_refused(shared):
    folder = shared / "data" / "bad_inputs"
    cases = [c for c in json.loads((folder / "cases.json").read_text()) if c["kind"] == "dicom-series"]
    wrong = []
    for case in cases:
        path = folder / case["path"]
        try:
            volume = read_dicom_series(path)
        except DataError as error:
            if case["verdict"] == "read" or str(path) not in str(error) or len(str(error).splitlines()) != 1:
                wrong.append(f"{case['path']} ({case['should']}): {error}")
            continue
        if case["verdict"] == "refuse":
            wrong.append(f"{case['path']}: read, {case['should']}")
        elif truth := case["truth"]:
            i, j, k = np.indices(volume.array.shape)
            found = [volume.array.sum(dtype=float), (volume.array * (i + 2.0 * j + 3 * k)).sum()]
            same = np.allclose(found, [truth["sum"], truth["moment"]])
            if not same or not np.allclose(volume.affine, truth["affine"], atol=1e-3):
                wrong.append(f"{case['path']}: {found}, {volume.affine}")
    assert wrong == []
    assert len(cases) == 58


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("missing_slice", r"2.5 to 5 mm, the largest between slice_03.dcm and slice_05.dcm"),
        ("gantry_tilt", r"tilt of 15.0 degrees"),
        ("origin_shifted_sideways", "one is 10 mm off"),
        ("duplicate_position", "slice_.*dcm: has the same position as slice_"),
        ("two_series_mixed", "SeriesInstanceUID .*, SeriesInstanceUID"),
        ("pixel_spacing_differs", r"slice_.*\.dcm: differs from slice_.*\.dcm in PixelSpacing"),
        ("one_slice_zero_bytes", r"slice_.*\.dcm: the file is empty"),
        ("cine_3_positions_4_phases", r"at .* ms"),
    ],
)
def test_a_fault_is_named(series, case, said):
    with pytest.raises(DataError, match=said):
        read_dicom_series(series / case)


def test_what_is_no_slice_is_left_out_by_name(series):
    notes = " ".join(read_dicom_series(series / "valid_with_strangers").notes)
    for name in ("README.txt", "report.pdf", "rtstruct.dcm"):
        assert f"{name} is left out" in notes


def test_the_same_series_in_two_transfer_syntaxes_is_the_same(shared):
    folder = shared / "data" / "bad_inputs" / "dicom" / "real"
    few, all_of_it = (read_dicom_series(folder / f"valid_series_{name}") for name in ("j2k", "jpegls"))
    assert [path.name for path in few.paths] == [path.name for path in all_of_it.paths[-2:]]
    np.testing.assert_array_equal(few.array, all_of_it.array[..., -2:])
