from __future__ import annotations

import subprocess
import sys

import pytest
from monai.apps import DecathlonDataset

from decathlete.data.tasks import TASKS, get_task, task_of_folder
from decathlete.errors import UsageError


@pytest.mark.parametrize(
    "name", ["hippocampus", "Hippocampus", "Task04_Hippocampus", "task04_hippocampus", "4", "04", 4]
)
def test_every_spelling_finds_the_task(name):
    assert get_task(name).folder == "Task04_Hippocampus"


@pytest.mark.parametrize("name", ["hepatic_vessel", "hepatic-vessel", "HepaticVessel", "8"])
def test_names_of_two_words_find_the_task(name):
    assert get_task(name).name == "hepatic_vessel"


@pytest.mark.parametrize(("bundle", "task"), [("heart_3d", "heart"), ("lung_3d", "lung")])
def test_a_bundle_in_3d_has_the_task_of_its_sibling_on_slices(bundle, task):
    assert get_task(bundle).name == task


@pytest.mark.parametrize("name", ["hippocampus_3d", "4_3d"])
def test_no_other_name_may_end_in_3d(name):
    with pytest.raises(UsageError, match="unknown task"):
        get_task(name)


def test_unknown_task_names_the_nearest():
    with pytest.raises(UsageError, match="Did you mean 'hippocampus'") as caught:
        get_task("hipocampus")
    assert caught.value.exit_status == 2


@pytest.mark.parametrize("name", ["", "0", "11", "task"])
def test_names_of_no_task_are_refused(name):
    with pytest.raises(UsageError, match="Known: brain_tumour, colon"):
        get_task(name)


def test_archives_are_those_of_monai():
    assert {t.folder: t.md5 for t in TASKS.values()} == DecathlonDataset.md5
    assert {t.folder: t.archive_url for t in TASKS.values()} == DecathlonDataset.resource


def test_archive_base_can_be_replaced(monkeypatch):
    monkeypatch.setenv("DECATHLETE_MSD_URL", "http://127.0.0.1:8000/msd/")
    assert get_task("spleen").archive_url == "http://127.0.0.1:8000/msd/Task09_Spleen.tar"


def test_lengths_are_in_the_order_of_the_array():
    spleen = get_task("spleen")
    assert spleen.spacing == (0.793, 0.793, 1.6)  # nnU-Net's plan says 1.6, 0.793, 0.793
    assert spleen.patch_size == (160, 192, 64)


def test_labels_count_up_from_one():
    assert dict(get_task("brain_tumour").labels) == {"edema": 1, "non-enhancing tumour": 2, "enhancing tumour": 3}
    assert all(list(t.labels.values()) == list(range(1, t.num_classes)) for t in TASKS.values())


def test_ct_tasks_alone_have_a_window():
    assert all((t.window is not None) == (t.modality == "CT") for t in TASKS.values())


def test_folder_tells_its_task(tmp_path, monkeypatch):
    (tmp_path / "Task09_Spleen").mkdir()
    monkeypatch.chdir(tmp_path / "Task09_Spleen")
    assert task_of_folder(".") is get_task("spleen")
    assert task_of_folder("data/Task02_Heart/") is get_task("heart")
    assert task_of_folder("data/mine") is None


def test_importing_the_table_imports_nothing_heavy():
    code = "import sys, decathlete.data.tasks; print({'numpy', 'torch', 'monai', 'nibabel'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
