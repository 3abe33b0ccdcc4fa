"""Cases of a data set: from dataset.json or from the folders, split into folds."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import pytest

from decathlete.data import data_hash, datalist, get_task
from decathlete.data.cases import list_cases
from decathlete.errors import DataError, UsageError

NAMES = [f"case_{n}" for n in range(7)]


@pytest.mark.parametrize("description", [True, False])
def test_folds_share_the_cases_out(tmp_path, description, write_dataset):
    folder = write_dataset(tmp_path / "my data", NAMES, description)
    held_out = [case["case_id"] for fold in range(5) for case in datalist(folder, fold, "validation")]
    assert sorted(held_out) == NAMES
    train = datalist(folder, "0", "training")
    assert not {c["case_id"] for c in train} & {c["case_id"] for c in datalist(folder, 0, "validation")}
    assert set(train[0]) == {"image", "label", "case_id"}
    assert Path(train[0]["label"]).is_file()


def test_fold_all_trains_and_validates_on_every_case(tmp_path, write_dataset):
    folder = write_dataset(tmp_path, NAMES)
    assert len(datalist(folder, "all", "training")) == len(datalist(folder, "all", "validation")) == 7


def test_hippocampus_folds_are_those_of_all_official_cases(hippocampus_data):
    # facts of nnU-Net's run: 40 of the 200 cases here are in its fold 0
    assert len(datalist(hippocampus_data, 0, "validation")) == 40
    assert len(datalist(hippocampus_data, 0, "training")) == 160
    assert datalist(hippocampus_data, 0, "training", task="hippocampus") == datalist(hippocampus_data, 0, "training")


def test_side_files_and_test_images(tmp_path, write_dataset):
    folder = write_dataset(tmp_path / "d", NAMES, description=False)
    (folder / "imagesTr/._case_0.nii.gz").write_bytes(b"\0")
    shutil.copytree(folder / "imagesTr", folder / "imagesTs")
    assert len(datalist(folder, "all")) == 7
    assert set(datalist(folder, part="test")[0]) == {"image", "case_id"}


def test_label_of_another_ending_is_found(tmp_path, write_dataset):
    folder = write_dataset(tmp_path, ["a.b"], description=False)
    nib.save(nib.load(folder / "labelsTr/a.b.nii.gz"), folder / "labelsTr/a.b.nii")
    (folder / "labelsTr/a.b.nii.gz").unlink()
    (case,) = datalist(folder, part="all")
    assert case["label"].endswith("a.b.nii")
    assert case["case_id"] == "a.b"


@pytest.mark.parametrize("make", [False, True])
def test_missing_or_empty_folder_says_how_to_get_the_data(tmp_path, make):
    folder = tmp_path / "Task09_Spleen"
    if make:
        folder.mkdir()
    with pytest.raises(DataError, match=r"imagesTr.*\((0 cases|no such folder)\). Run 'decathlete data spleen'"):
        datalist(folder, 0)


def test_folder_above_the_data_set_names_the_one_meant(tmp_path):
    (tmp_path / "Task09_Spleen" / "imagesTr").mkdir(parents=True)
    with pytest.raises(DataError, match=r"it holds the data sets Task09_Spleen.*Pass .*Task09_Spleen"):
        datalist(tmp_path, 0)


def test_missing_label_is_named(tmp_path, write_dataset):
    folder = write_dataset(tmp_path, NAMES)
    (folder / "labelsTr/case_3.nii.gz").unlink()
    with pytest.raises(DataError, match=r"labelsTr/case_3.nii.gz: no such file"):
        datalist(folder, 0)


def test_listed_cases_that_are_not_there_are_left_out_and_counted(tmp_path, caplog, write_dataset):
    folder = write_dataset(tmp_path, NAMES)
    for part in ("imagesTr", "labelsTr"):
        (folder / part / "case_3.nii.gz").unlink()
    assert len(datalist(folder, part="all")) == 6
    assert "1 of 7 listed cases have no files" in caplog.text


@pytest.mark.parametrize(
    "entry", ["../secret.nii.gz", "/etc/passwd", "imagesTr/../../x.nii.gz", "C:\\x.nii.gz", "..\\x"]
)
def test_entry_that_leads_out_of_the_folder_is_refused(tmp_path, entry, write_dataset, write_description):
    folder = write_dataset(tmp_path / "d", ["a"])
    write_description(folder, [(entry, "labelsTr/a.nii.gz")])
    with pytest.raises(DataError, match=r"dataset.json, training\[0\]: a file lies outside the data set's folder"):
        datalist(folder, "all")


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"training": {}}', '{"training": [{"image": "a"}]}', '{"training": [{"image": 3, "label": 4}]}'],
)
def test_broken_description_is_named(tmp_path, text):
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(DataError, match=r"dataset.json"):
        datalist(tmp_path, "all")


def test_several_files_of_one_case_stay_a_list(tmp_path, write_dataset, write_description):
    folder = write_dataset(tmp_path, ["a_0", "a_1"])
    write_description(folder, [(["imagesTr/a_0.nii.gz", "imagesTr/a_1.nii.gz"], "labelsTr/a_0.nii.gz")])
    (case,) = datalist(folder, "all")
    assert [Path(p).name for p in case["image"]] == ["a_0.nii.gz", "a_1.nii.gz"]


def test_unknown_fold_and_part(tmp_path, write_dataset):
    folder = write_dataset(tmp_path, NAMES)
    with pytest.raises(UsageError, match="fold"):
        datalist(folder, 5)
    with pytest.raises(ValueError, match="part"):
        datalist(folder, 0, "val")


def test_data_hash_knows_contents_and_not_the_folder(tmp_path, write_dataset):
    one, two = (write_dataset(tmp_path / name, NAMES) for name in ("one", "two"))
    cases = datalist(one, part="all")
    assert data_hash(cases) == data_hash(datalist(two, part="all")[::-1])
    shutil.copy(two / "labelsTr/case_1.nii.gz", two / "imagesTr/case_2.nii.gz")
    assert data_hash(cases) != data_hash(datalist(two, part="all"))


def test_task_object_is_taken_too(tmp_path, write_dataset):
    folder = write_dataset(tmp_path, ["la_003", "la_004", "la_005"])
    assert datalist(folder, "all", task=get_task("heart"))


@pytest.mark.parametrize("description", [True, False])
def test_cases_whose_content_was_not_fetched_are_no_fewer_cases(tmp_path, description, write_dataset, caplog):
    folder = write_dataset(tmp_path, NAMES, description)
    for path in (folder / "imagesTr" / "case_3.nii.gz", folder / "labelsTr" / "case_3.nii.gz"):
        path.unlink()
        path.symlink_to("../.git/annex/objects/KEY")
    assert len(list_cases(folder)) == 7
    assert "have no files" not in caplog.text
    with pytest.raises(DataError, match=r"imagesTr/case_3.nii.gz: the file's content is missing .a link to"):
        datalist(folder)
