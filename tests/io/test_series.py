from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from decathlete.errors import DataError
from decathlete.io.series import read_dicom_series, read_series, series_folder, series_in

_spec = importlib.util.spec_from_file_location("hostile", Path(__file__).parents[1] / "hostile.py")
hostile = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(hostile)
TEXTS = hostile.TEXTS
AFFINE = np.array([[-0.8, 0, 0, 20], [0, -1.2, 0, 30], [0, 0, 2.5, -40], [0, 0, 0, 1]])


@pytest.fixture
def array():
    return np.arange(5 * 6 * 4).reshape(5, 6, 4) - 40


def test_a_series_has_its_place_in_space_in_the_header_too(tmp_path, write_slices, array):
    volume = read_series(write_slices(tmp_path / "ct", array, AFFINE))
    np.testing.assert_array_equal(volume.array, array)
    for affine in (volume.affine, volume.header.get_sform(), volume.header.get_qform()):
        np.testing.assert_allclose(affine, AFFINE, atol=1e-5)
    assert volume.header.get_xyzt_units()[0] == "mm"
    assert [path.name for path in volume.slices] == [f"1.2.3.4_{n}.dcm" for n in (3, 10, 17, 24)]


def test_slices_wider_than_int16_get_a_header_of_nifti_2(tmp_path, write_slices):
    volume = read_series(write_slices(tmp_path / "ct", np.zeros((40_000, 2, 2)), AFFINE))
    assert volume.header["dim"].tolist() == [3, 40_000, 2, 2, 1, 1, 1, 1]
    assert volume.header["sizeof_hdr"] == 540  # NIfTI-2
    np.testing.assert_allclose(volume.header.get_sform(), AFFINE, atol=1e-5)


def test_several_series_are_listed(tmp_path, write_slices, array):
    write_slices(tmp_path, array, AFFINE, series="1.2.7", SeriesDescription="venous")
    write_slices(tmp_path, array[:, :, :1], AFFINE, series="1.2.9", Modality="MR")
    with pytest.raises(
        DataError, match=r"several series in one folder \(1\.2\.7 \(CT 'venous', 4 slices\), 1\.2\.9 \(MR, 1 slice\)"
    ):
        series_folder(tmp_path)
    with pytest.raises(DataError, match=r"1\.2\.7 .*1\.2\.9"):
        read_series(tmp_path)


def test_series_in_sub_folders_are_listed(tmp_path, write_slices, array):
    for name in ("arterial", "venous"):
        write_slices(tmp_path / name, array, AFFINE, series=f"1.2.{len(name)}")
    with pytest.raises(DataError, match=r"arterial: 1\.2\.8 \(CT, 4 slices\), venous: 1\.2\.6 .*Give one"):
        series_folder(tmp_path)


def test_what_is_no_slice_is_passed_over(tmp_path, write_slices, array):
    write_slices(tmp_path, array, AFFINE)
    write_slices(tmp_path, array[:, :, :1], AFFINE, series="1.2.8", Modality="SEG")
    (tmp_path / "notes.txt").write_text("a text")
    (tmp_path / "damaged.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 40)
    assert [str(series) for series in series_in(tmp_path)] == ["1.2.3.4 (CT, 4 slices)"]


def test_a_folder_without_dicom_is_none(tmp_path):
    (tmp_path / "a.txt").write_text("a text")
    assert series_folder(tmp_path) is None


def test_texts_of_headers_are_told_in_one_line_and_run_nowhere(tmp_path, write_slices, array, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for n, text in enumerate(TEXTS):
        try:
            folder = write_slices(
                tmp_path / str(n),
                array[:, :, :1],
                AFFINE,
                SeriesDescription=text,
                PatientID=text,
                StudyDescription=text,
            )
        except (ValueError, UnicodeError, TypeError):  # which DICOM cannot hold
            continue
        write_slices(folder, array[:, :, :1], AFFINE, series="1.2.9", SeriesDescription=text)
        with pytest.raises(DataError) as error:
            series_folder(folder)
        assert str(error.value).isprintable()
    assert not Path("touched").exists()


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
