"""Statistics against hand arithmetic; missing and infinite scores; the two files."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from decathlete.errors import DataError
from decathlete.evaluation.report import METRICS, read_rows, summarise, table, write_report

nan, inf = math.nan, math.inf


def rows(scores, metric="dice", classes=("head", "tail")):
    """Rows of scores[case][class] for one metric; the others are 1."""
    return [
        {"case": f"case_{n}", "class": name} | dict.fromkeys(METRICS, 1.0) | {metric: value}
        for n, values in enumerate(scores)
        for name, value in zip(classes, values, strict=True)
    ]


def test_means_medians_and_deviations():
    found = summarise(rows([(0.5, 1.0), (0.7, 0.8), (0.9, 0.9)]))
    head = found["classes"]["head"]["dice"]
    assert (head["mean"], head["median"], head["n"]) == (pytest.approx(0.7), 0.7, 3)
    assert head["std"] == pytest.approx(np.sqrt(0.08 / 3))
    assert found["mean"]["dice"]["mean"] == pytest.approx((0.7 + 0.9) / 2)
    assert found["worst_cases"][0] == {"case": "case_0", "dice": 0.75}


def test_missing_class_is_left_out_and_counted():
    found = summarise(rows([(0.5, nan), (0.7, 0.8)]))
    tail = found["classes"]["tail"]["dice"]
    assert (tail["mean"], tail["n"], tail["n_missing"]) == (0.8, 1, 1)
    assert found["mean"]["dice"]["mean"] == pytest.approx((0.6 + 0.8) / 2)  # of class means
    assert found["mean"]["dice"]["median"] == pytest.approx((0.5 + 0.75) / 2)  # of case means


def test_class_that_no_case_has_leaves_the_mean_alone():
    found = summarise(rows([(0.5, nan), (0.7, nan)]))
    assert math.isnan(found["classes"]["tail"]["dice"]["mean"])
    assert found["mean"]["dice"]["mean"] == pytest.approx(0.6)
    assert found["mean"]["dice"]["ci95"] == pytest.approx([0.5, 0.7])


def test_infinite_distance_is_not_hidden_in_the_mean():
    head = summarise(rows([(1.0, 1.0), (2.0, 1.0), (inf, 1.0)], "hd95_mm"))["classes"]["head"]["hd95_mm"]
    assert (head["mean"], head["median"], head["mean_of_finite"], head["n_infinite"]) == (inf, 2.0, 1.5, 1)


def test_interval_equals_a_bootstrap_of_scipy():
    from scipy.stats import bootstrap

    scores = np.random.default_rng(3).beta(20, 3, 40)
    ours = summarise(rows(scores[:, None], classes=("head",)))["mean"]["dice"]["ci95"]
    theirs = bootstrap((scores,), np.mean, n_resamples=10_000, method="percentile", rng=1).confidence_interval
    assert ours == pytest.approx(list(theirs), abs=2e-3)


def test_one_case_has_no_interval():
    found = summarise(rows([(0.5, 0.7)]))
    assert np.isnan(found["mean"]["dice"]["ci95"]).all()
    assert table(found).splitlines()[1].split()[:3] == ["head", "0.5000", "-"]


def test_interval_repeats():
    made = [summarise(rows([(0.5, 1.0), (0.7, 0.8), (0.9, 0.9)])) for _ in range(2)]
    assert made[0] == made[1]


def test_files_hold_what_was_found(tmp_path):
    scores = rows([(0.5, nan), (0.7, 0.25)])
    summary = write_report(scores, tmp_path, {"case_x": "broken"}, label_sha256="abc")
    values = json.loads(summary.summary_json.read_text())
    assert values["classes"]["tail"]["dice"]["mean"] == 0.25
    assert (values["failed"], values["label_sha256"]) == ({"case_x": "broken"}, "abc")
    assert summary.metrics_csv.read_text().splitlines()[:3] == [
        "case,class,dice,iou,nsd_1mm,hd95_mm,volume_ml,reference_volume_ml",
        "case_0,head,0.5,1,1,1,1,1",
        "case_0,tail,,1,1,1,1,1",
    ]
    np.testing.assert_equal(read_rows(summary.metrics_csv), scores)


def test_json_writes_infinity_as_null(tmp_path):
    summary = write_report(rows([(inf, 1.0)], "hd95_mm"), tmp_path)
    assert json.loads(summary.summary_json.read_text())["mean"]["hd95_mm"]["mean"] is None
    assert read_rows(summary.metrics_csv)[0]["hd95_mm"] == inf


def test_folds_are_summarised_apart(tmp_path):
    scores = [row | {"fold": n // 2} for n, row in enumerate(rows([(0.5, 0.7), (0.9, 0.9)]))]
    summary = write_report(scores, tmp_path)
    assert {k: v["dice"] for k, v in summary.values["folds"].items()} == {"0": pytest.approx(0.6), "1": 0.9}
    assert read_rows(summary.metrics_csv)[0]["fold"] == 0


def test_table_aligns_and_shows_the_mean():
    lines = table(summarise(rows([(0.5, 1.0), (0.7, nan)]))).splitlines()
    assert len({len(line) for line in lines[:4]}) == 1
    assert lines[3].split()[:2] == ["mean", "0.8000"]


def test_table_can_be_made_from_the_file_where_null_stands_for_what_is_missing(tmp_path):
    summary = write_report(rows([(0.5, 1.0)]), tmp_path)  # one case has no interval
    content = json.loads(summary.summary_json.read_text())
    assert content["mean"]["dice"]["ci95"] == [None, None]
    assert table(content) == summary.table()


def test_another_table_is_refused(tmp_path):
    (tmp_path / "metrics.csv").write_text("case,class\na,b\n")
    with pytest.raises(DataError, match="columns case, class, dice"):
        read_rows(tmp_path / "metrics.csv")
