"""Faults of a data set, each with its file."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from decathlete.data import verify
from decathlete.data.verification import Fault, stated
from decathlete.errors import DataError

NAMES = [f"case_{n}" for n in range(7)]


@pytest.fixture
def folder(tmp_path: Path, write_dataset) -> Path:
    return write_dataset(tmp_path / "set", NAMES)


def _change(path: Path, values=None, affine=None) -> None:
    image = nib.load(path)
    values = np.asarray(image.dataobj) if values is None else values
    nib.save(nib.Nifti1Image(values, image.affine if affine is None else affine), path)


def test_sound_set_has_no_fault(folder):
    assert verify(folder, progress=False) == []


def test_each_fault_is_named_by_its_file_and_the_check_goes_on(folder):
    label = nib.load(folder / "labelsTr/case_1.nii.gz")
    _change(folder / "labelsTr/case_0.nii.gz", np.full((5, 6, 7), 4, np.uint8))
    _change(folder / "labelsTr/case_1.nii.gz", affine=label.affine + np.eye(4, k=3))
    _change(folder / "labelsTr/case_2.nii.gz", np.zeros((5, 6, 8), np.uint8))
    (folder / "labelsTr/case_3.nii.gz").unlink()
    (folder / "imagesTr/case_4.nii.gz").write_bytes(b"text")
    _change(folder / "imagesTr/case_5.nii.gz", np.full((5, 6, 7), np.nan, np.float32))
    _change(folder / "imagesTr/case_6.nii.gz", np.ones((5, 6, 7, 2), np.float32))
    found = {f"{fault.path.parent.name}/{fault.path.name[:6]}": str(fault) for fault in verify(folder, progress=False)}
    rules = {
        "labelsTr/case_0": "expected only the label values 0, 1 (also 4 in 210 voxels)",
        "labelsTr/case_1": "the affines of label and image differ",
        "labelsTr/case_2": "label 5 x 6 x 8, image 5 x 6 x 7",
        "labelsTr/case_3": "no such file",
        "imagesTr/case_4": "the name ends in .gz, but the data are not gzip",
        "imagesTr/case_5": "voxels are not finite (210, the first at 0, 0, 0)",
        "imagesTr/case_6": "expected one volume",
    }
    assert set(found) == set(rules)
    assert all(rule in found[name] for name, rule in rules.items()), found


def test_same_voxels_under_two_names_and_a_label_without_image(folder):
    shutil.copy(folder / "imagesTr/case_2.nii.gz", folder / "imagesTr/case_5.nii.gz")
    shutil.copy(folder / "labelsTr/case_2.nii.gz", folder / "labelsTr/case_9.nii.gz")
    same, stray = verify(folder, progress=False)
    assert str(same) == f"{folder / 'imagesTr/case_5.nii.gz'}: holds the same voxels as case_2.nii.gz"
    assert stray.path.name == "case_9.nii.gz"


def test_channels_are_those_stated(tmp_path, write_dataset):
    folder = write_dataset(tmp_path / "Task05_Prostate", ["prostate_00"], description=False)
    (fault,) = verify(folder, progress=False)
    assert "expected 2 channels along the fourth axis" in str(fault)


def test_labels_as_nnunet_writes_them(folder):
    text = (folder / "dataset.json").read_text().replace('{"0": "background", "1": "A"}', '{"background": 0, "A": 1}')
    (folder / "dataset.json").write_text(text)
    assert verify(folder, progress=False) == []
    (folder / "dataset.json").write_text(text.replace('"A": 1', '"A": "one"'))
    with pytest.raises(DataError, match=r"dataset\.json: modality or labels cannot"):
        verify(folder, progress=False)


@pytest.mark.parametrize("name", ["Task02_Heart", "Task05_Prostate", "Task01_BrainTumour"])
def test_real_sets_are_sound(shared, name):
    assert verify(shared / "data" / name, progress=False) == []


@pytest.mark.slow
def test_hippocampus_is_sound(hippocampus_data):
    assert verify(hippocampus_data, progress=False) == []


def test_odd_label_under_a_hippocampus_name_is_found(shared, hippocampus_data, tmp_path):
    for part in ("imagesTr", "labelsTr"):
        (tmp_path / part).mkdir()
    odd = shared / "data/bad_inputs/hippocampus_odd"
    shutil.copy(hippocampus_data / "imagesTr/hippocampus_001.nii.gz", tmp_path / "imagesTr/hippocampus_281.nii.gz")
    shutil.copy(odd / "label_281.nii.gz", tmp_path / "labelsTr/hippocampus_281.nii.gz")
    shutil.copy(odd / "image_118.nii.gz", tmp_path / "imagesTr/hippocampus_118.nii.gz")
    missing, shape = verify(tmp_path, "hippocampus", progress=False)
    assert missing.path.name == "hippocampus_118.nii.gz"
    assert "512 x 512 x 94" in str(shape)


def test_values_of_regions_are_stated_values(tmp_path):
    (tmp_path / "dataset.json").write_text('{"labels": {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}}')
    assert stated(tmp_path) == (1, [0, 1, 2, 3])


def test_files_whose_content_was_not_fetched_are_faults(folder):
    (folder / "imagesTr/case_1.nii.gz").unlink()
    (folder / "imagesTr/case_1.nii.gz").symlink_to("../.git/annex/objects/KEY")
    (folder / "labelsTr/case_2.nii.gz").write_text("/annex/objects/MD5E-s9--0.nii.gz\n")
    said = [str(fault) for fault in verify(folder, progress=False)]
    assert len(said) == 2
    assert f"{folder / 'imagesTr/case_1.nii.gz'}: the file's content is missing (a link to" in said[0]
    assert f"{folder / 'labelsTr/case_2.nii.gz'}: the file's content is missing (only a git-annex" in said[1]


def test_a_fault_as_an_error_names_its_file_once(tmp_path):
    path = tmp_path / "a.nii.gz"
    for message in (f"{path}: the affine is singular. Correct it.", "the affine is singular. Correct it."):
        error = Fault(path, message).as_error("Look at the data")
        assert str(error) == f"{path}: the affine is singular. Correct it. Look at the data."
