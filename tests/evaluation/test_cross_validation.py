"""Folds run through the real command, with a bundle whose training writes the right weights at once."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from decathlete.bundle.trust import trust
from decathlete.cli import main
from decathlete.errors import DataError, TrainingError, UsageError
from decathlete.evaluation import cross_validate
from decathlete.evaluation.cross_validation import fold_numbers
from decathlete.evaluation.report import read_rows

from .conftest import label_map, oblique_affine, save

# one convolution of 1 voxel: score 2kx - k^2 for class k, largest for the k nearest to the voxel's value x
SHARED = """
imports: [$import glob, $import os]
bundle_root: .
output_dir: runs
dataset_dir: data
labels: {background: 0, head: 1, tail: 2}
device: $torch.device('cpu')
shift: 0.0
network_def: {_target_: torch.nn.Conv3d, in_channels: 1, out_channels: 3, kernel_size: 1}
network: $@network_def.to(@device)
inferer: {_target_: SimpleInferer}
"""
TRAIN = (
    SHARED
    + """
fold: 0
resume: false
minutes: null
fails: 0
images: "$sorted(glob.glob(@dataset_dir + '/imagesTr/*.nii.gz'))"
cases: "$[{'image': i, 'label': i.replace('images', 'labels'), 'case_id': os.path.basename(i)[:-7]} for i in @images]"
weights:
  weight: "$torch.tensor([0.0, 2.0, 4.0]).reshape(3, 1, 1, 1, 1)"
  bias: "$torch.tensor([0.0, -1.0, -4.0]) + @shift"
train:
  dataset: {_target_: Dataset, data: "$[c for n, c in enumerate(@cases) if n % 2 != @fold]"}
validate:
  dataset: {_target_: Dataset, data: "$[c for n, c in enumerate(@cases) if n % 2 == @fold]"}
training:
- $1 / (1 - @fails)
- $os.makedirs(@output_dir, exist_ok=True)
- $torch.save(@weights, @output_dir + '/model_final.pt')
"""
)
INFERENCE = (
    SHARED
    + """
preprocessing:
  _target_: Compose
  transforms:
  - {_target_: LoadImaged, keys: image}
  - {_target_: EnsureChannelFirstd, keys: image}
postprocessing:
  _target_: Compose
  transforms:
  - {_target_: AsDiscreted, keys: pred, argmax: true}
"""
)


@pytest.fixture
def oracle(tmp_path: Path) -> Path:
    """Bundle whose training writes weights that read the classes off the image."""
    configs = tmp_path / "oracle" / "configs"
    configs.mkdir(parents=True)
    (configs / "train.yaml").write_text(TRAIN)
    (configs / "inference.yaml").write_text(INFERENCE)
    trust(configs.parent)
    return configs.parent


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four cases whose image shows the label; in case_3 the image shows the head one voxel off."""
    folder = tmp_path / "Task99_Boxes"
    for n in range(4):
        save(folder / "labelsTr" / f"case_{n}.nii.gz", label_map())
        image = nib.Nifti1Image(label_map(shift=n == 3).astype(np.float32), oblique_affine())
        (folder / "imagesTr").mkdir(exist_ok=True)
        nib.save(image, folder / "imagesTr" / f"case_{n}.nii.gz")
    return folder


@pytest.mark.parametrize(
    ("text", "numbers"), [("0-4", [0, 1, 2, 3, 4]), ("2", [2]), ("3,0", [0, 3]), ("0,2-3", [0, 2, 3])]
)
def test_folds_are_read(text, numbers):
    assert fold_numbers(text) == numbers


@pytest.mark.parametrize("text", ["", "5", "a", "1-", "3-2", "0-9", "all"])
def test_folds_that_are_not_there_are_refused(text):
    with pytest.raises(UsageError):
        fold_numbers(text)


@pytest.mark.slow
def test_folds_are_pooled_and_a_second_call_keeps_them(oracle, data, tmp_path, capfd):
    arguments = {"folds": "0-1", "output": tmp_path / "out", "dataset_dir": data}
    summary = cross_validate(oracle, **arguments)
    rows = read_rows(tmp_path / "out" / "metrics.csv")
    assert {(r["fold"], r["case"]) for r in rows} == {(0, "case_0"), (0, "case_2"), (1, "case_1"), (1, "case_3")}
    assert {r["case"]: r["dice"] for r in rows if r["class"] == "head"}["case_3"] == 0.5
    assert summary.mean_dice == (3.5 / 4 + 1) / 2
    assert summary.values["folds"]["1"]["dice"] == 0.875
    weights = tmp_path / "out" / "fold_0" / "model_final.pt"
    before = weights.stat().st_mtime_ns
    again = cross_validate(oracle, largest_component=True, **arguments)
    assert again.mean_dice == summary.mean_dice
    head = json.loads(again.summary_json.read_text())["largest_component"]["head"]
    assert (head["cases"], head["reference"], head["changed"]) == (4, 3.5 / 4, 0)
    assert weights.stat().st_mtime_ns == before
    said = capfd.readouterr()
    assert "fold 0 is already finished" in said.err
    assert "no gain with an interval above 0" in said.out


@pytest.mark.slow
def test_command_hands_overrides_to_training_and_prediction(oracle, data, tmp_path, capfd):
    (tmp_path / "published.csv").write_text("case,label,dice\ncase_1,1,0.25\n")
    words = ["--folds", "1", "--output", str(tmp_path / "out"), "--dataset_dir", str(data)]
    words += ["--reference", str(tmp_path / "published.csv")]
    words += ["--network_def::bias=false", "--weights=$@network.state_dict()"]  # fit no network but an unbiased one
    assert main(["cross-validate", str(oracle), *words]) == 0
    assert "0.2500" in capfd.readouterr().out


@pytest.mark.slow
def test_failed_training_is_named_and_its_folder_kept_for_the_same_settings(oracle, data, tmp_path):
    arguments = {"folds": "0", "output": tmp_path / "out", "dataset_dir": data}
    with pytest.raises(TrainingError, match=r"fold 0.*exit status 1"):
        cross_validate(oracle, overrides={"fails": 1}, **arguments)
    assert not (tmp_path / "out" / "metrics.csv").exists()
    assert json.loads((tmp_path / "out" / "fold_0" / "cross_validation.json").read_text())["stage"] == "training"
    with pytest.raises(UsageError, match="--fails was 1, now not given"):
        cross_validate(oracle, **arguments)


def test_folder_of_another_run_is_left_alone(oracle, data, tmp_path):
    (tmp_path / "out" / "fold_0").mkdir(parents=True)
    (tmp_path / "out" / "fold_0" / "last.pt").write_bytes(b"hours of work")
    with pytest.raises(UsageError, match="a run of another command"):
        cross_validate(oracle, "0", output=tmp_path / "out", dataset_dir=data)
    assert (tmp_path / "out" / "fold_0" / "last.pt").read_bytes() == b"hours of work"


def test_case_in_both_parts_is_refused(oracle, data, tmp_path):
    config = oracle / "configs" / "train.yaml"
    config.write_text(config.read_text().replace("if n % 2 != @fold", ""))
    trust(oracle)
    with pytest.raises(DataError, match=r"2 cases are in both .*\(case_0, case_2\)"):
        cross_validate(oracle, "0", output=tmp_path / "out", dataset_dir=data)


@pytest.mark.parametrize("overrides", [{"fold": 3}, {"output_dir": "x"}, {"lerning_rate": 1}])
def test_overrides_that_cannot_hold_are_refused_before_any_training(oracle, data, tmp_path, overrides):
    with pytest.raises(UsageError):
        cross_validate(oracle, "0", overrides, tmp_path / "out", dataset_dir=data)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_fold_is_scored_with_its_own_weights_and_their_predictions_alone(oracle, data, tmp_path):
    arguments = {"folds": "1", "output": tmp_path / "out", "dataset_dir": data}
    summary = cross_validate(oracle, **arguments)
    fold = tmp_path / "out" / "fold_1"
    label = fold / "predictions" / "case_1.nii.gz"
    right = label.read_bytes()
    save(label, np.zeros_like(label_map()))  # of an earlier training, as a kill between two may leave it
    state = json.loads((fold / "cross_validation.json").read_text())
    (fold / "cross_validation.json").write_text(json.dumps({**state, "stage": "trained"}))
    assert cross_validate(oracle, **arguments).mean_dice == summary.mean_dice
    assert label.read_bytes() == right
    (fold / "model_final.pt").write_bytes(b"weights of another run")
    with pytest.raises(UsageError, match=r"model_final\.pt: these weights have changed since this fold was trained"):
        cross_validate(oracle, **arguments)
