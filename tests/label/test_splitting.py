"""Cases that are held out."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from decathlete.bundle import bundle_folder
from decathlete.bundle.configs import load
from decathlete.data import datalist, make_phantoms
from decathlete.errors import UsageError
from decathlete.label.guard import check_name
from decathlete.label.splitting import data_overrides, own_validation, split

_spec = importlib.util.spec_from_file_location("hostile", Path(__file__).parents[1] / "hostile.py")
hostile = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(hostile)
TEXTS, TOUCH = hostile.TEXTS, hostile.TOUCH


def cases(count: int) -> list[dict[str, str]]:
    return [{"case_id": f"case_{n:03d}", "image": "i", "label": "l"} for n in range(count)]


@pytest.mark.parametrize(
    ("count", "share", "held_out"), [(2, 0.2, 1), (3, 0.2, 1), (10, 0.2, 2), (4, 0.9, 3), (3, 0.5, 2)]
)
def test_one_case_at_least_is_held_out_and_one_is_trained_on(count, share, held_out):
    training, validation = split(cases(count), share)
    assert len(validation) == held_out
    assert sorted(c["case_id"] for c in training + validation) == [c["case_id"] for c in cases(count)]


@pytest.mark.parametrize(("count", "share"), [(1, 0.2), (1, 0.9), (5, 0.0), (5, -1)])
def test_where_none_can_be_held_out_all_are_trained_on_and_watched(count, share):
    assert split(cases(count), share) == (cases(count), cases(count))


def test_held_out_cases_mostly_stay_when_others_come():
    before = {c["case_id"] for c in split(cases(20), 0.25)[1]}
    after = {c["case_id"] for c in split(cases(24), 0.25)[1]}
    assert len(before & after) >= 3  # of 5; by place in the list none would have to


def test_the_split_does_not_depend_on_the_order():
    ids = [{c["case_id"] for c in split(given, 0.3)[1]} for given in (cases(10), cases(10)[::-1])]
    assert ids[0] == ids[1]


def test_names_of_images_are_not_run_by_the_training_that_they_enter(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [text for text in TEXTS if _is_name(text)]
    assert f"${TOUCH}" in names
    assert len(names) > 60
    pairs = [{"image": f"/studies/{name}.nii.gz", "label": f"/l/{name}.nii.gz", "case_id": name} for name in names]
    values = data_overrides(pairs, pairs[:1], tmp_path / "runs" / "$x#y")
    parser = load("hippocampus", "train", values)
    assert parser.get_parsed_content("train::dataset::data") == pairs
    assert parser.get_parsed_content("validate::dataset::data") == pairs[:1]
    assert parser.get_parsed_content("output_dir") == str(tmp_path / "runs" / "$x#y")
    assert not Path("touched").exists()


def _is_name(text: str) -> bool:
    told = ""
    try:
        check_name(text, "image")
    except UsageError as error:
        told = str(error)
    assert told.isprintable()
    return not told


def test_a_bundles_own_validation_cases_are_those_of_its_fold(tmp_path):
    data = make_phantoms("hippocampus", 5, tmp_path)
    found = own_validation(bundle_folder("hippocampus"), {"dataset_dir": data, "fold": 0})
    assert found == [
        {key: case[key] for key in ("image", "label", "case_id")} for case in datalist(data, 0, "validation")
    ]
    assert 1 <= len(found) < 5
