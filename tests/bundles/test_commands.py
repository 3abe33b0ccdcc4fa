"""The README's stock commands, as they stand, from the checkout's root, on a few real cases."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from decathlete.data import datalist

CONFIGS = "bundles/hippocampus/configs"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(hippocampus_data, tmp_path_factory) -> Path:
    """Four cases to train and two to validate in fold 0, where $DECATHLETE_DATA points."""
    root = tmp_path_factory.mktemp("data with a space")
    for folder in ("imagesTr", "labelsTr"):
        (root / "Task04_Hippocampus" / folder).mkdir(parents=True)
    for part, number in (("training", 4), ("validation", 2)):
        for case in datalist(hippocampus_data, 0, part, "hippocampus")[:number]:
            for key, folder in (("image", "imagesTr"), ("label", "labelsTr")):
                shutil.copy(case[key], root / "Task04_Hippocampus" / folder)
    return root


@pytest.fixture
def monai(root, data):
    def start(*arguments: str, launcher: tuple[str, ...] = (sys.executable,)) -> str:
        done = subprocess.run(
            [*launcher, "-m", "monai.bundle", "run", *arguments], cwd=root, capture_output=True, text=True, check=False,
            env={**os.environ, "DECATHLETE_DATA": str(data), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout + done.stderr

    return start


def test_training_evaluating_and_inferring_run_as_the_readme_says(monai, tmp_path):
    run, pred = str(tmp_path / "run"), str(tmp_path / "pred")
    monai(
        "training", "--config_file", f"{CONFIGS}/train.yaml", "--train::trainer::max_epochs", "2", "--output_dir", run
    )
    text = monai("training", "--config_file", f"{CONFIGS}/train.yaml", "--train#trainer#max_epochs", "3",
                 "--output_dir", run, "--resume", "true")  # fmt: skip
    assert "going on after epoch 2" in text
    assert "iteration 3 of 3" in text
    files = f"['{CONFIGS}/train.yaml','{CONFIGS}/evaluate.yaml']"
    assert "posterior" in monai("evaluating", "--config_file", files, "--output_dir", run)
    assert {"metrics.csv", "summary.json", "model.pt", "model_final.pt"} <= {p.name for p in Path(run).iterdir()}
    monai(
        "inferring",
        "--config_file",
        f"{CONFIGS}/inference.yaml",
        "--checkpoint",
        f"{run}/model.pt",
        "--output_dir",
        pred,
    )
    assert len(list(Path(pred).glob("*.nii.gz"))) == 6


def test_two_processes_train_together(monai, tmp_path):
    torchrun = (str(Path(sys.executable).with_name("torchrun")), "--standalone", "--nproc_per_node", "2")
    files = f"['{CONFIGS}/train.yaml','{CONFIGS}/multi_gpu_train.yaml']"
    text = monai("training", "--config_file", files, "--batch_size", "1", "--train::trainer::max_epochs", "1",
                 "--output_dir", str(tmp_path), launcher=torchrun)  # fmt: skip
    assert "iteration 2 of 2" in text  # 4 cases, 2 processes, batches of 1
    assert (tmp_path / "model_final.pt").is_file()


def test_a_wall_time_budget_ends_the_training(monai, tmp_path):
    text = monai(
        "training", "--config_file", f"{CONFIGS}/train.yaml", "--minutes", "0.05", "--output_dir", str(tmp_path)
    )
    assert "0.05 minutes:" in text
    assert (tmp_path / "model_final.pt").is_file()
