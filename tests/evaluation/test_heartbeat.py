from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest

from decathlete.data import index_sunnybrook, make_sunnybrook_phantoms
from decathlete.errors import DataError, GeometryError
from decathlete.evaluation import heart_function
from decathlete.evaluation.heartbeat import FrameArea, drawn_areas, frame_area, write_heart_function
from decathlete.io.dicom import read_dicom_frame


def beat(areas: list[list[float]], distance: float = 8.0) -> list[FrameArea]:
    """Frames of ``areas`` in mm2, (slices, phases), with as much muscle as cavity; out of order."""
    frames = [
        FrameArea(f"{z}_{t}", z * distance, 10.0 + 40 * t, area, area)
        for z, row in enumerate(areas)
        for t, area in enumerate(row)
    ]
    return frames[::-1]


def test_volumes_are_areas_times_the_distance_of_slices():
    found = heart_function(beat([[2000, 1000, 1500], [1000, 500, 750]]))
    assert found.cavity_ml.tolist() == [24, 12, 18]  # 3000 mm2 x 8 mm
    metrics = found.metrics()
    assert (metrics["edv_ml"], metrics["esv_ml"], metrics["ejection_fraction"]) == (24, 12, 0.5)
    assert (metrics["end_diastole_phase"], metrics["end_systole_phase"]) == (1, 2)
    assert metrics["muscle_g"] == pytest.approx(24 * 1.05)
    assert found.time_ms.tolist() == [10, 50, 90]
    assert "ejection fraction 50%" in str(found)


def test_phases_that_nobody_drew_are_left_open():
    found = heart_function(beat([[2000, math.nan, 1000], [math.nan, math.nan, 500]]))
    assert found.cavity_ml[[0, 2]].tolist() == [16, 12]
    assert math.isnan(found.cavity_ml[1])
    assert found.metrics()["end_systole_phase"] == 3


@pytest.mark.parametrize(
    ("frames", "error", "said"),
    [
        (beat([[1, 2]]), GeometryError, "expected two or more slices"),
        (beat([[1, 2], [1, 2]])[:-1], DataError, r"1 in the slice of 0_1, 2 in another"),
        (beat([[1], [2]]), DataError, "the same number in every slice"),
        ([f for f in beat([[1, 2]] * 4) if f.height_mm != 16], GeometryError, "8 to 16 mm"),
        (beat([[math.nan, 0.0], [0.0, 0.0]]), DataError, "no frame shows a cavity"),
        ([], GeometryError, r"\(0 given\)"),
    ],
)
def test_what_is_no_heartbeat_is_refused(frames, error, said):
    with pytest.raises(error, match=said):
        heart_function(frames)


def test_phantoms_have_the_volumes_that_they_were_drawn_with(tmp_path):
    folder = make_sunnybrook_phantoms(1, tmp_path, size=96, slices=3, phases=4)
    index = index_sunnybrook(folder)
    drawn = heart_function(drawn_areas(index.frames), folder)
    assert (drawn.slices, len(drawn.cavity_ml)) == (3, 4)
    assert np.isfinite(drawn.cavity_ml).tolist() == [False, True, False, True]  # smallest and largest cavity
    assert (drawn.end_systole, drawn.end_diastole) == (1, 3)
    header = read_dicom_frame(index.frames[0].image).header
    assert drawn.distance_mm == pytest.approx(float(header.SpacingBetweenSlices), rel=1e-4)
    assert np.isfinite(drawn.muscle_ml).tolist() == [False, False, False, True]  # outer contours of the last phase


def test_volumes_of_a_real_patient_are_those_of_its_contours(shared):
    index = index_sunnybrook(shared / "data" / "sunnybrook")
    found = heart_function(drawn_areas(f for f in index.frames if f.patient == "SCD0000301")).metrics()
    assert found["edv_ml"] == pytest.approx(230, abs=1)
    assert found["esv_ml"] == pytest.approx(180, abs=1)
    assert found["ejection_fraction"] == pytest.approx(0.22, abs=0.005)
    assert (found["slices"], found["phases"]) == (10, 20)
    assert found["slice_distance_mm"] == pytest.approx(8, abs=0.01)


def test_a_frame_without_time_or_place_is_refused(tmp_path):
    folder = make_sunnybrook_phantoms(1, tmp_path, size=96, slices=2, phases=2)
    path = next(folder.rglob("1.dcm"))
    import pydicom

    header = pydicom.dcmread(path)
    del header.TriggerTime
    header.save_as(path)
    with pytest.raises(DataError, match=r"1\.dcm: no TriggerTime in this frame"):
        frame_area(path, np.ones((96, 96)))


def test_table_metrics_and_chart_are_written(tmp_path):
    found, drawn = heart_function(beat([[2000, 1000]] * 2)), heart_function(beat([[2100, math.nan]] * 2))
    table, metrics, picture = write_heart_function(found, tmp_path, drawn)
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["cavity_ml"] for row in rows] == ["32", "16"]
    assert [row["drawn_cavity_ml"] for row in rows] == ["33.6", ""]
    assert json.loads(metrics.read_text())["edv_ml"] == 32
    assert picture.read_bytes().startswith(b"\x89PNG")
