"""The README's stock commands, as they stand, from the checkout's root, on a few real cases."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from decathlete.bundle import bundle_names, packaged_root
from decathlete.data import datalist, fetch, make_phantoms
from decathlete.data.tasks import TASKS

from .small import SLICES, patch_of, slim

CONFIGS = "bundles/hippocampus/configs"
pytestmark = pytest.mark.slow
SMALL = {  # what the bundles that are not made of 3D patches need, to be small
    "heart": SLICES["heart"],
    "lung": {**SLICES["lung"], "drop_mm": 0},
    "nfbs": {"spacing": [5, 5, 5], "head_size": [48, 48, 64], "patch_size": [48, 48, 64], "roi_size": [48, 48, 64],
             "bias_correction": False},
    "sunnybrook": {"crop_size": [96, 96, -1], "roi_size": [96, 96]},
}  # fmt: skip


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
    return run_in(root, data)


def run_in(root: Path, data: Path) -> Callable[..., str]:
    """A function that runs MONAI's own command from the checkout's root, with the data in ``data``."""

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
    assert "continuing after epoch 2" in text
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


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    """Where each test draws the data set of its bundle."""
    return tmp_path_factory.mktemp("phantoms")


@pytest.mark.parametrize("name", bundle_names())
def test_the_short_command_trains_each_bundle_on_phantoms(root, phantoms, tmp_path, name):
    task = TASKS.get(name.removesuffix("_3d"))
    if task:
        make_phantoms(task, 5, phantoms, shape=(48, 40, 24))
    else:
        fetch(name, phantoms, phantom=5)
    bundle = packaged_root() / name
    values = {"patch_size": patch_of(bundle), "batch_size": 2, **slim(bundle), **SMALL.get(name, {})}
    words = [w for key, value in values.items() for w in (f"--{key}", json.dumps(value))]
    text = run_in(root, phantoms)("training", "--config", f"bundles/{name}", "--max_epochs", "1",
                                  "--output_dir", str(tmp_path), *words)  # fmt: skip
    assert "iteration" in text
    assert {"model.pt", "model_final.pt", "last.pt"} <= {p.name for p in tmp_path.iterdir()}


def test_mlflow_tracks_a_training_as_monai_has_it(monai, tmp_path):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    words = f"training --config_file {CONFIGS}/train.yaml --tracking mlflow --max_epochs 2 --batch_size 2".split()
    monai(*words, "--output_dir", str(tmp_path))
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlruns.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "monai_experiment"]
    (tracked,) = client.search_runs([experiment.experiment_id])
    assert tracked.info.status == "FINISHED"
    assert {"train_loss", "val_mean_dice_network_grid", "lr_group_0"} <= set(tracked.data.metrics)
    assert len(client.get_metric_history(tracked.info.run_id, "train_loss")) == 4
    assert tracked.data.params["max_epochs"] == "2"
