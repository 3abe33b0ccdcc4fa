"""Bundles are found by folder, by name, and by the name with `bundles/` before it."""

from __future__ import annotations

from pathlib import Path

import pytest

from decathlete.bundle import bundle_folder, bundle_names, config_file, config_files, dicom_modality, packaged_root
from decathlete.errors import ConfigError, UsageError


@pytest.fixture
def bundle(tmp_path) -> Path:
    folder = tmp_path / "mine"
    (folder / "configs").mkdir(parents=True)
    for name in ("train.yaml", "inference.json", "evaluate.yml", "multi_gpu_train.yaml"):
        (folder / "configs" / name).write_text("{}")
    return folder


def test_packaged_bundles_hold_hippocampus():
    assert "hippocampus" in bundle_names()


@pytest.mark.parametrize("name", ["hippocampus", "bundles/hippocampus"])
def test_name_finds_the_packaged_bundle_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert bundle_folder(name) == packaged_root() / "hippocampus"


def test_folder_comes_before_a_packaged_bundle_of_that_name(bundle, monkeypatch):
    bundle.rename(bundle.parent / "hippocampus")
    monkeypatch.chdir(bundle.parent)
    assert bundle_folder("hippocampus") == Path("hippocampus")


def test_unknown_bundle_is_answered_with_the_nearest():
    with pytest.raises(UsageError, match=r"hipocampus: .* \(no such folder\)\. Did you mean 'hippocampus'\?"):
        bundle_folder("hipocampus")


def test_folder_without_configs_is_named_as_such(tmp_path):
    with pytest.raises(UsageError, match=r"a folder without configs/train\.yaml"):
        bundle_folder(tmp_path)


def test_path_elsewhere_never_falls_back_to_a_packaged_bundle(tmp_path):
    with pytest.raises(UsageError, match="no such folder"):
        bundle_folder(tmp_path / "elsewhere" / "hippocampus")


@pytest.mark.parametrize(
    ("run_id", "distributed", "names"),
    [
        ("training", False, ["train.yaml"]),
        ("training", True, ["train.yaml", "multi_gpu_train.yaml"]),
        ("run", False, ["train.yaml"]),
        ("inferring", True, ["inference.json"]),
        ("evaluating", False, ["train.yaml", "evaluate.yml"]),
    ],
)
def test_run_id_chooses_the_config_files(bundle, run_id, distributed, names):
    assert [file.name for file in config_files(bundle, run_id, distributed)] == names


def test_unknown_run_id_is_answered_with_the_nearest(bundle):
    with pytest.raises(UsageError, match="Did you mean 'training'"):
        config_files(bundle, "trainin")


def test_missing_config_names_those_that_are_there(bundle):
    (bundle / "configs" / "train.yaml").unlink()
    with pytest.raises(ConfigError, match=r"train\.yaml.*evaluate\.yml, inference\.json, multi_gpu_train\.yaml"):
        config_file(bundle, "train")


@pytest.mark.parametrize(
    ("name", "code"),
    [("CT", "CT"), ("ct", "CT"), ("MR", "MR"), ("mri", "MR"), ("T1gd", "MR"), ("FLAIR", "MR"), ("PT", "PT"), ("", "")],
)
def test_a_modality_has_dicoms_code(name, code):
    assert dicom_modality(name) == code
