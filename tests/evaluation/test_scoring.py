"""Folders of label maps against references: pairing, geometry, what a failed case does to the rest."""

from __future__ import annotations

import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from decathlete.cli import main
from decathlete.errors import DataError
from decathlete.evaluation import evaluate

from .conftest import label_map, oblique_affine, save


def by_case(summary):
    return {(row["case"], row["class"]): row for row in summary.rows}


def test_scores_are_those_of_the_original_grid(bundle, folders):
    found = by_case(evaluate(bundle, *folders))
    moved = found["case_b", "head"]
    assert found["case_a", "head"]["dice"] == found["case_b", "tail"]["dice"] == 1.0
    assert moved["dice"] == 0.5  # half of a box of two voxels
    assert moved["hd95_mm"] == pytest.approx(0.7, abs=1e-6)  # one voxel along the first axis
    assert moved["nsd_1mm"] == 1.0
    assert moved["reference_volume_ml"] == pytest.approx(8 * 0.7 * 1.0 * 2.5 / 1000, rel=1e-6)


def test_files_and_table_are_written(bundle, folders, tmp_path, capsys):
    summary = evaluate(bundle, *folders, output=tmp_path / "scores")
    values = json.loads((tmp_path / "scores" / "summary.json").read_text())
    assert values["mean"]["dice"]["mean"] == summary.mean_dice == 0.875
    assert values["cases"] == 2
    assert len((tmp_path / "scores" / "metrics.csv").read_text().splitlines()) == 5
    assert "0.8750" in capsys.readouterr().out


def test_default_output_is_the_folder_of_predictions(bundle, folders):
    assert evaluate(bundle, *folders).metrics_csv == folders[0] / "metrics.csv"


def test_two_single_files_pair_whatever_their_names(bundle, folders):
    summary = evaluate(bundle, folders[0] / "case_b.nii.gz", folders[1] / "case_a.nii.gz")
    assert [row["case"] for row in summary.rows] == ["case_a", "case_a"]
    assert summary.mean_dice == 0.75


def test_reference_without_prediction_is_a_warning(bundle, folders, caplog):
    (folders[0] / "case_b.nii.gz").unlink()
    summary = evaluate(bundle, *folders)
    assert not summary.failed
    assert summary.values["not_predicted"] == ["case_b"]
    assert "no prediction for case_b" in caplog.text


def test_prediction_without_reference_has_failed(bundle, folders, capsys):
    shutil.copy(folders[0] / "case_a.nii.gz", folders[0] / "case_z.nii.gz")
    summary = evaluate(bundle, *folders)
    assert "no case_z.nii.gz" in summary.failed["case_z"]
    assert len(summary.rows) == 4
    assert "case_z" in capsys.readouterr().err


def test_other_shape_fails_that_case_with_both_shapes(bundle, folders):
    save(folders[0] / "case_b.nii.gz", label_map()[:, :, :6])
    summary = evaluate(bundle, *folders)
    assert "(9 x 8 x 6 and 9 x 8 x 7)" in summary.failed["case_b"]
    assert {row["case"] for row in summary.rows} == {"case_a"}


def test_other_affine_fails_that_case_with_both_affines(bundle, folders):
    affine = oblique_affine()
    affine[0, 3] += 0.01
    save(folders[0] / "case_b.nii.gz", label_map(), affine)
    message = evaluate(bundle, *folders).failed["case_b"]
    assert "-11.99" in message
    assert "-12" in message
    assert "0.001 mm" in message


def test_affine_within_the_tolerance_is_taken(bundle, folders):
    affine = oblique_affine()
    affine[0, 3] += 0.0005
    save(folders[0] / "case_b.nii.gz", label_map(), affine)
    assert not evaluate(bundle, *folders).failed


def test_unknown_label_value_is_named(bundle, folders):
    array = label_map()
    array[0, 0, 0] = 7
    save(folders[0] / "case_b.nii.gz", array)
    assert "7" in evaluate(bundle, *folders).failed["case_b"]


def test_empty_class_counts_as_missing(bundle, folders):
    for folder in folders:
        save(folder / "case_b.nii.gz", np.where(label_map() == 2, 0, label_map()))
    tail = evaluate(bundle, *folders).values["classes"]["tail"]["dice"]
    assert (tail["mean"], tail["n"], tail["n_missing"]) == (1.0, 1, 1)


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir()], ids=["missing", "empty"])
def test_missing_or_empty_folder_is_named(bundle, folders, side, make):
    shutil.rmtree(folders[side])
    make(folders[side])
    with pytest.raises(DataError) as caught:
        evaluate(bundle, *folders)
    assert str(folders[side]) in str(caught.value)


def test_one_case_in_two_files_is_refused(bundle, folders):
    nib.save(nib.load(folders[0] / "case_a.nii.gz"), folders[0] / "case_a.nii")
    with pytest.raises(DataError, match=r"case_a\.nii"):
        evaluate(bundle, *folders)


def test_no_common_name_leaves_earlier_results(bundle, folders, tmp_path):
    (folders[0] / "summary.json").write_text("earlier")
    for path in list(folders[0].glob("*.nii.gz")):
        path.rename(path.with_name("x_" + path.name))
    with pytest.raises(DataError, match="no prediction has the same name as a reference"):
        evaluate(bundle, *folders)
    assert (folders[0] / "summary.json").read_text() == "earlier"


@pytest.mark.parametrize(("broken", "status"), [(False, 0), (True, 1)])
def test_command_tells_failure_by_its_exit_status(bundle, folders, broken, status):
    if broken:
        (folders[0] / "case_b.nii.gz").write_bytes(b"not an image")
    assert main(["evaluate", str(bundle), "--prediction", str(folders[0]), "--label", str(folders[1])]) == status


def test_probabilities_beside_a_prediction_are_passed_over(bundle, folders):
    save(folders[0] / "case_a_probabilities.nii.gz", np.zeros((9, 8, 7, 3)))
    assert not evaluate(bundle, *folders).failed


def test_a_prediction_whose_content_was_not_fetched_has_failed(bundle, folders, capsys):
    (folders[0] / "case_b.nii.gz").unlink()
    (folders[0] / "case_b.nii.gz").symlink_to("../store/KEY.nii.gz")
    summary = evaluate(bundle, *folders)
    assert list(summary.failed) == ["case_b"]
    assert not summary.values["not_predicted"]
    assert "(a link to ../store/KEY.nii.gz, which does not exist" in capsys.readouterr().err
