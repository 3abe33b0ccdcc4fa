"""Two tables of Dice side by side."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path

import pytest

from decathlete.errors import DataError
from decathlete.evaluation import compare
from decathlete.evaluation.report import METRICS, write_rows

_spec = importlib.util.spec_from_file_location("hostile", Path(__file__).parents[1] / "hostile.py")
hostile = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(hostile)
TEXTS = hostile.TEXTS


@pytest.fixture
def metrics_csv(tmp_path):
    scores = {("a", "head"): 0.9, ("a", "tail"): 0.8, ("b", "head"): 0.7, ("b", "tail"): 0.6, ("c", "head"): 0.5}
    rows = [{"case": c, "class": n} | dict.fromkeys(METRICS, 1.0) | {"dice": d} for (c, n), d in scores.items()]
    write_rows(rows, tmp_path / "metrics.csv")
    return tmp_path / "metrics.csv"


def reference(tmp_path, *lines):
    path = tmp_path / "reference.csv"
    path.write_text("\n".join(("task,fold,case,label,dice", *lines)) + "\n")
    return path


def test_cases_are_compared_class_by_class(metrics_csv, tmp_path):
    lines = ("T,0,a,1,0.8", "T,0,a,2,0.9", "T,0,b,1,0.5", "T,0,b,2,0.6", "T,0,z,1,0.1")
    found = compare(metrics_csv, reference(tmp_path, *lines))
    head = found.groups["head"]
    assert (head["dice"], head["reference"], head["difference"]) == pytest.approx((0.8, 0.65, 0.15))
    assert (head["better"], head["worse"], head["cases"]) == (2, 0, 2)
    assert found.groups["mean"]["difference"] == pytest.approx((0.0 + 0.1) / 2)
    assert found.unmatched == ["c"]


def test_labels_may_be_named_or_mapped(metrics_csv, tmp_path):
    named = compare(metrics_csv, reference(tmp_path, "T,0,a,tail,0.7"))
    assert [(r["class"], r["reference"]) for r in named.rows] == [("tail", 0.7)]
    mapped = compare(metrics_csv, reference(tmp_path, "T,0,a,5,0.7"), labels={5: "tail"})
    assert mapped.rows == named.rows


def test_table_shows_the_largest_loss_first(metrics_csv, tmp_path):
    text = compare(metrics_csv, reference(tmp_path, "T,0,a,1,0.8", "T,0,b,1,0.8")).table()
    assert text.splitlines()[-2].split() == ["b", "head", "0.7000", "0.8000", "-0.1000"]


def test_interval_encloses_the_difference(metrics_csv, tmp_path):
    group = compare(metrics_csv, reference(tmp_path, "T,0,a,1,0.8", "T,0,b,1,0.8")).groups["head"]
    assert group["ci95"] == pytest.approx([-0.1, 0.1])  # one case up by 0.1, the other down


def test_table_without_the_columns_is_refused(metrics_csv, tmp_path):
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="columns case, label, dice"):
        compare(metrics_csv, tmp_path / "other.csv")


def test_no_common_case_is_an_error(metrics_csv, tmp_path):
    with pytest.raises(DataError, match="no case and class in common with"):
        compare(metrics_csv, reference(tmp_path, "T,0,z,1,0.8"))


@pytest.mark.parametrize("text", TEXTS)
def test_cells_of_any_content_are_compared_or_refused_in_one_line(metrics_csv, tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "reference.csv"
    for row in ([text, "1", "0.5"], ["a", text, "0.5"], ["a", "1", text], ["a"], [text] * 5):
        with path.open("w", newline="", encoding="utf-8", errors="surrogatepass") as file:
            csv.writer(file).writerows([["case", "label", "dice"], row, ["b", "2", "0.5"]])
        told = ""
        try:
            assert {r["case"] for r in compare(metrics_csv, path).rows} <= {"a", "b"}
        except DataError as error:
            told = str(error)
        assert told.isprintable()
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("mark", ["utf-8-sig", "utf-16"])
def test_tables_may_begin_with_a_mark(metrics_csv, tmp_path, mark):
    path = tmp_path / "reference.csv"
    path.write_text("case,label,dice\na,1,0.8\n", encoding=mark)
    metrics_csv.write_text(metrics_csv.read_text(), encoding=mark)
    assert len(compare(metrics_csv, path).rows) == 1


def test_a_field_beyond_all_limits_is_told_in_one_line(metrics_csv, tmp_path):
    with pytest.raises(DataError, match="columns case, label, dice"):
        compare(metrics_csv, reference(tmp_path, f"T,0,{'x' * 200_000},1,0.8"))
