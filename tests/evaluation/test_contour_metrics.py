from __future__ import annotations

import csv
import json
import math
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from decathlete.errors import DataError, WorkError
from decathlete.evaluation import ContourMetricsWriter, average_perpendicular_distance
from decathlete.evaluation.contour_metrics import (
    contour_table,
    read_contour_rows,
    score_contour,
    score_frame,
    summarise_contours,
    write_contour_rows,
)
from decathlete.io.contours import distances_to_contour, trace_contour, write_contour

SQUARE = np.array([[10.0, 10], [20, 10], [20, 20], [10, 20]])


def disc(radius: float, size: int = 64) -> np.ndarray:
    x, y = np.indices((size, size)) - size / 2
    return np.hypot(x, y) < radius


def circle(radius: float, size: int = 64) -> np.ndarray:
    at = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    return size / 2 + 1 + radius * np.stack([np.cos(at), np.sin(at)], axis=1)


def test_distance_to_a_contour_is_that_to_its_nearest_edge_or_corner():
    points = [[15, 8], [23, 24], [10, 15], [15, 15]]
    np.testing.assert_allclose(distances_to_contour(points, SQUARE), [2, 5, 0, 5])


def test_the_outline_of_a_mask_runs_between_its_pixels_and_the_others():
    mask = np.zeros((8, 8), bool)
    mask[2:5, 3:5] = True
    mask[7, 7] = True  # a smaller region
    outline = trace_contour(mask)
    assert outline.min(axis=0).tolist() == [2.5, 3.5]  # pixels 3 to 5 and 4 to 5, counted from 1
    assert outline.max(axis=0).tolist() == [5.5, 5.5]
    assert trace_contour(np.zeros((4, 4))).shape == (0, 2)


def test_a_contour_two_mm_off_is_two_mm_off():
    # circles of 20 and 18 pixels about one centre, pixels of 1 mm; then of 1.5 mm
    assert average_perpendicular_distance(circle(20), circle(18), (1, 1)) == pytest.approx(2, abs=0.01)
    assert average_perpendicular_distance(circle(20), circle(18), (1.5, 1.5)) == pytest.approx(3, abs=0.015)
    assert average_perpendicular_distance(circle(20), circle(20), (1, 1)) == pytest.approx(0, abs=1e-9)
    assert average_perpendicular_distance(np.empty((0, 2)), circle(20), (1, 1)) == math.inf


def test_how_densely_a_contour_is_drawn_plays_no_part():
    dense = np.vstack([np.linspace(SQUARE[0], SQUARE[1], 500, endpoint=False), SQUARE[1:]])
    moved = SQUARE + np.array([0, 3])
    found = [average_perpendicular_distance(c, moved, (1, 1)) for c in (SQUARE, dense)]
    assert found[0] == pytest.approx(found[1], abs=1e-3)


def test_scores_of_discs():
    found = score_contour(disc(18), disc(20), circle(20), (2, 2))
    a, b = np.count_nonzero(disc(18)), np.count_nonzero(disc(20))
    assert found["dice"] == pytest.approx(2 * a / (a + b))
    assert found["iou"] == pytest.approx(a / b)
    assert found["apd_mm"] == pytest.approx(4, abs=0.3)  # a mask's outline cuts corners
    assert found["area_mm2"] == 4 * a
    missed = score_contour(disc(0), disc(20), None, (2, 2))
    assert (missed["dice"], missed["apd_mm"]) == (0, math.inf)


def test_means_are_over_all_and_over_good_contours():
    rows = [
        {"contour": "endocardium", "dice": 0.9, "iou": 0.82, "apd_mm": 1.0},
        {"contour": "endocardium", "dice": 0.6, "iou": 0.43, "apd_mm": 6.0},
        {"contour": "endocardium", "dice": 0.0, "iou": 0.0, "apd_mm": math.inf},
    ]
    found = summarise_contours(rows)["endocardium"]
    assert found["dice"] == pytest.approx(0.5)
    assert (found["dice_of_good"], found["apd_mm_of_good"], found["apd_mm_where_predicted"]) == (0.9, 1.0, 3.5)
    assert (found["share_good"], found["not_predicted"]) == (pytest.approx(1 / 3), 1)
    assert found["share_iou_above_0.75"] == pytest.approx(1 / 3)
    assert "33%" in contour_table({"endocardium": found})


def test_rows_read_back_as_written(tmp_path):
    row = {"case": "a_1", "slice": 1, "contour": "endocardium", "dice": 0.5, "iou": 1 / 3, "apd_mm": math.inf,
           "area_mm2": 12.0, "reference_area_mm2": 24.0}  # fmt: skip
    write_contour_rows([row], tmp_path / "contours.csv")
    assert read_contour_rows(tmp_path / "contours.csv") == [row | {"iou": pytest.approx(1 / 3, rel=1e-5)}]
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="columns case, slice"):
        read_contour_rows(tmp_path / "other.csv")


def test_a_frame_is_scored_against_what_was_drawn(tmp_path):
    write_contour(circle(12), tmp_path / "i.txt")
    write_contour(circle(18), tmp_path / "o.txt")
    label = np.where(disc(12), 1, np.where(disc(18), 2, 0))[:, :, None].astype(np.uint8)
    affine = np.diag([0.9, 0.9, 8, 1])
    reference = {"inner": str(tmp_path / "i.txt"), "outer": str(tmp_path / "o.txt")}
    contours, classes = score_frame("a_1", label, affine, reference)
    assert [row["contour"] for row in contours] == [row["class"] for row in classes] == ["endocardium", "epicardium"]
    assert min(row["dice"] for row in contours) > 0.98
    assert max(row["apd_mm"] for row in contours) < 0.5
    assert classes[0]["volume_ml"] == pytest.approx(np.count_nonzero(disc(12)) * 0.9 * 0.9 * 8 / 1000)
    assert classes[0]["nsd_1mm"] == 1  # of the outline, not of the whole slice
    contours, classes = score_frame("a_1", label, affine, {**reference, "outer": None})
    assert [row["contour"] for row in contours] == ["endocardium"]


def run(writer: ContourMetricsWriter, pred: np.ndarray, affine: np.ndarray, case: str) -> None:
    writer._reset()
    image = MetaTensor(torch.from_numpy(pred[None]), affine=torch.from_numpy(affine))
    state = SimpleNamespace(output=[{"pred": image}], batch=[{"case_id": case}], metrics={})
    engine = SimpleNamespace(state=state)
    writer._score(engine)
    writer._write(engine)


def test_slices_of_a_label_map_are_scored_one_by_one(tmp_path):
    label = np.zeros((64, 64, 3), np.uint8)
    label[disc(12), 1] = 1
    label[disc(10), 2] = 1
    nib.save(nib.Nifti1Image(label, np.eye(4)), tmp_path / "l.nii.gz")
    writer = ContourMetricsWriter([{"case_id": "a", "label": str(tmp_path / "l.nii.gz")}], tmp_path / "out")
    run(writer, label, np.eye(4), "a")
    rows = read_contour_rows(tmp_path / "out" / "contours.csv")
    assert [(row["slice"], row["contour"], row["dice"]) for row in rows if row["contour"] == "endocardium"] == [
        (2, "endocardium", 1.0), (3, "endocardium", 1.0)]  # fmt: skip
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["contours"]["endocardium"]["n"] == 2
    with (tmp_path / "out" / "metrics.csv").open() as file:
        assert [row["class"] for row in csv.DictReader(file)] == ["endocardium", "epicardium"]


def test_a_case_that_cannot_be_scored_is_named(tmp_path):
    (tmp_path / "i.txt").write_text("1 2\n")
    writer = ContourMetricsWriter([{"case_id": "a", "inner": str(tmp_path / "i.txt"), "outer": None}], tmp_path)
    with pytest.raises(WorkError, match=r"i\.txt: expected at least three distinct points"):
        run(writer, np.zeros((8, 8, 1), np.uint8), np.eye(4), "a")
