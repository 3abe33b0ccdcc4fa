"""The largest component of a class: what it does to the scores, and what the commands say of it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from decathlete.bundle.labels import Scored
from decathlete.cli import main
from decathlete.errors import UsageError
from decathlete.evaluation import cross_validate, evaluate
from decathlete.evaluation.components import ALL, compare_components, largest_component

from .conftest import LABELS, label_map, save


@pytest.fixture
def strays(tmp_path):
    """Three cases whose predicted heads have a piece apart, and one whose reference has it too."""
    for number in range(4):
        pred, label = label_map(), label_map()
        pred[8, 7, 0] = 1
        if number == 3:
            label[8, 7, 0] = 1
        save(tmp_path / "pred" / f"case_{number}.nii.gz", pred)
        save(tmp_path / "ref" / f"case_{number}.nii.gz", label)
    return tmp_path / "pred", tmp_path / "ref"


def pairs_of(folders):
    return {file.name: (file, folders[1] / file.name) for file in sorted(folders[0].glob("*.nii.gz"))}


def test_pieces_that_touch_by_an_edge_alone_are_apart():
    label = np.zeros((4, 4, 4), np.uint8)
    label[:2, 0, 0] = label[2, 1, 0] = 1  # the second has no face in common with the first
    label[3, 3, 3] = 2
    assert np.argwhere(largest_component(label, [1]) == 1).tolist() == [[0, 0, 0], [1, 0, 0]]
    assert largest_component(label, [1])[3, 3, 3] == 2
    assert np.count_nonzero(largest_component(label, [1, 2])) == 2


def test_each_class_is_judged_by_its_own_dice(strays):
    head = compare_components(pairs_of(strays), LABELS).steps["head"]
    one_side = 16 / 17  # eight voxels in both, the stray one in the prediction or, cut off there, in the reference
    assert head["reference"] == pytest.approx((3 * one_side + 1) / 4)
    assert head["dice"] == pytest.approx((3 + one_side) / 4)
    assert (head["better"], head["worse"], head["cases"], head["changed"], head["labels"]) == (3, 1, 4, 4, [1])


def test_what_is_one_piece_does_not_change(strays):
    steps = compare_components(pairs_of(strays), LABELS).steps
    assert (steps["tail"]["difference"], steps["tail"]["changed"]) == (0, 0)
    assert steps[ALL]["difference"] < 0  # head and tail lie apart: one of them would go
    assert steps[ALL]["labels"] == [1, 2]


def test_regions_are_judged_together(strays):
    steps = compare_components(pairs_of(strays), LABELS, Scored({"whole": (1, 2)})).steps
    # sixteen voxels in the whole, of which seventeen were drawn
    assert steps["head"]["reference"] == pytest.approx((3 * 32 / 33 + 1) / 4)


def test_ignored_voxels_are_left_out(strays, tmp_path):
    label = label_map()
    label[8, 7, 0] = 9  # nobody judged the stray one
    pair = strays[0] / "case_0.nii.gz", save(tmp_path / "judged.nii.gz", label)
    head = compare_components({"a": pair}, LABELS, Scored(ignore=(9,))).steps["head"]
    assert head["reference"] == head["dice"] == 1


def test_a_class_that_no_case_holds_has_no_step(tmp_path):
    label = label_map()
    label[label == 2] = 0
    pair = save(tmp_path / "p.nii.gz", label), save(tmp_path / "r.nii.gz", label)
    assert "tail" not in compare_components({"a": pair}, LABELS).steps


def test_evaluate_says_which_transform_helps(bundle, strays, capsys):
    for folder in strays:
        (folder / "case_3.nii.gz").unlink()
    assert main(["evaluate", str(bundle), "--prediction", str(strays[0]), "--label", str(strays[1]),
                 "--largest-component"]) == 0  # fmt: skip
    said = capsys.readouterr().out
    assert "applied_labels: [1], connectivity: 1}" in said
    assert "applied_labels: [2]" not in said
    values = json.loads((strays[0] / "summary.json").read_text())["largest_component"]
    assert values["head"]["better"] == 3
    assert values["head"]["difference"] == pytest.approx(1 / 17)


def test_without_a_sure_gain_nothing_is_advised(bundle, strays, folders, capsys):
    for given in (strays, folders):
        evaluate(bundle, *given, largest_component=True)
    said = capsys.readouterr().out
    assert "KeepLargest" not in said
    assert "no gain with an interval above 0" in said


def test_maps_of_one_piece_are_called_so(tmp_path, bundle, capsys):
    array = np.where(label_map() == 1, 1, 0)
    evaluate(bundle, save(tmp_path / "p.nii.gz", array), save(tmp_path / "r.nii.gz", array), largest_component=True)
    assert "each class is a single component in every label map" in capsys.readouterr().out


def test_an_ordinary_evaluation_says_nothing_of_it(bundle, strays, capsys):
    evaluate(bundle, *strays)
    assert "component" not in capsys.readouterr().out
    assert "largest_component" not in json.loads((strays[0] / "summary.json").read_text())


def test_contours_are_refused_before_the_first_training(tmp_path):
    from decathlete.data import make_sunnybrook_phantoms

    data = make_sunnybrook_phantoms(5, tmp_path / "data")
    with pytest.raises(UsageError, match="--largest-component: the references of sunnybrook are not label maps"):
        cross_validate("sunnybrook", "0", output=tmp_path / "runs", dataset_dir=data, largest_component=True)
    assert not list((tmp_path / "runs").glob("fold_0/*.pt"))
