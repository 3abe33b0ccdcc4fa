from __future__ import annotations

from pathlib import Path

import pytest

from decathlete.data import dataset_folder


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DECATHLETE_DATA", raising=False)


def test_data_lie_in_the_working_directory_by_default():
    assert dataset_folder("Task04_Hippocampus") == str(Path("data", "Task04_Hippocampus"))


def test_the_environment_names_another_root(tmp_path, monkeypatch):
    monkeypatch.setenv("DECATHLETE_DATA", str(tmp_path / "elsewhere"))
    assert dataset_folder("Task04_Hippocampus") == str(tmp_path / "elsewhere" / "Task04_Hippocampus")


def test_a_task_that_only_lies_nearby_is_found_there(tmp_path, monkeypatch):
    monkeypatch.setenv("DECATHLETE_DATA", str(tmp_path / "elsewhere"))
    (tmp_path / "data" / "Task09_Spleen").mkdir(parents=True)
    assert dataset_folder("Task09_Spleen") == str(Path("data", "Task09_Spleen"))
