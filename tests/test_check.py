"""`decathlete check`: what would stop a run is found before it, and told in one line each."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from decathlete.check import check
from decathlete.cli import main
from decathlete.data import make_phantoms
from decathlete.errors import DataError, UsageError

CONFIG = {
    "bundle_root": "bundles/blob",
    "dataset_dir": "data/Task04_Hippocampus",
    "fold": 0,
    "batch_size": 2,
    "patch_size": [16, 16, 16],
    "channels": 1,
    "device": "$torch.device('cpu')",
    "imports": ["$from decathlete.data import datalist"],
    "network_def": {
        "_target_": "UNet",
        "spatial_dims": 3,
        "in_channels": 1,
        "out_channels": 3,
        "channels": [4, 8],
        "strides": [2],
    },
    "network": "$@network_def.to(@device)",
    "train": {
        "preprocessing": {
            "_target_": "LoadImaged",
            "keys": ["image", "label"],
            "reader": "decathlete.transforms.NiftiReader",
        },
        "dataset": {
            "_target_": "CacheDataset",
            "data": "$datalist(@dataset_dir, @fold, 'training')",
            "transform": "@train::preprocessing",
        },
        "inferer": {"_target_": "SimpleInferer"},
        "handlers": [],
        "trainer": {"max_epochs": 3},
    },
    "validate": {"dataset": {"data": "$datalist(@dataset_dir, @fold, 'validation')"}},
}
INFERENCE = {
    **{k: CONFIG[k] for k in ("bundle_root", "dataset_dir", "device", "network_def", "network")},
    "dataset": {"_target_": "Dataset", "data": [], "transform": None},
    "inferer": {"_target_": "SimpleInferer"},
    "evaluator": {"network": "@network"},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_phantoms("hippocampus", 5, tmp_path_factory.mktemp("data"), shape=(24, 24, 24))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    configs = tmp_path / "blob" / "configs"
    configs.mkdir(parents=True)
    _write(configs / "train.yaml", CONFIG)
    _write(configs / "inference.yaml", INFERENCE)
    (configs / "metadata.json").write_text(json.dumps({"version": "0.1.0", "task": "blobs"}))
    return configs.parent


def _write(file: Path, content: dict, **changes) -> None:
    file.write_text(yaml.safe_dump(json.loads(json.dumps(content)) | changes))


def _faults(report) -> list[str]:
    return [line for line in report.lines if line.startswith("FAULT")]


def test_sound_bundle_with_its_data(bundle, data):
    report = check(bundle, dataset_dir=data)
    assert _faults(report) == []
    assert report.ok
    text = "\n".join(report.lines)
    for part in ("4 training cases, 1 validation cases", "every file is readable", "GiB for all cases", "3 epochs"):
        assert part in text
    assert "model.pt does not exist: train first" in text


def test_faults_of_a_config_are_all_found(bundle, data):
    _write(bundle / "configs/train.yaml", CONFIG, network="$@netwrk_def", optimizer={"_target_": "torch.optim.Adamm"})
    train = json.loads(json.dumps(CONFIG["train"]))
    del train["inferer"]
    _write(bundle / "configs/inference.yaml", INFERENCE, handlers=[{"_target_": "NoSuchHandler"}], train=train)
    found = "\n".join(_faults(check(bundle, dataset_dir=data)))
    assert "train.yaml, network: refers to '@netwrk_def', which is not in the config" in found
    assert "train.yaml, optimizer::_target_: 'torch.optim.Adamm' cannot be imported" in found
    assert "inference.yaml, handlers::0::_target_: 'NoSuchHandler'" in found


def test_patch_that_memory_cannot_hold_is_told_and_not_tried(bundle, data):
    _write(bundle / "configs" / "train.yaml", CONFIG, patch_size=[2048, 2048, 2048])
    report = check(bundle, data)
    (line,) = (line for line in report.lines if "one patch of 2048x2048x2048 takes about" in line)
    assert float(line.partition("about ")[2].split()[0]) > 64  # the image alone is 32 GiB, the scores are 96
    assert "its time is not measured" in line
    assert not any("an epoch" in line for line in report.lines)
    assert report.ok  # the training may be meant for another machine


def test_batch_that_memory_cannot_hold_is_told_beside_the_time(bundle, data):
    _write(bundle / "configs" / "train.yaml", CONFIG, batch_size=10**6)
    lines = check(bundle, data).lines
    assert [line for line in lines if "training on 1000000 patches of 16x16x16 takes about" in line]
    assert [line for line in lines if "an epoch" in line]


def test_missing_id_that_monai_needs(bundle, data):
    content = {k: v for k, v in INFERENCE.items() if k != "inferer"}
    _write(bundle / "configs/inference.yaml", content)
    assert any("inferer: MONAI's tools need this id" in fault for fault in _faults(check(bundle, dataset_dir=data)))


def test_missing_data_is_a_fault_that_says_what_to_run(bundle, tmp_path):
    (fault,) = _faults(check(bundle, dataset_dir=tmp_path / "Task04_Hippocampus"))
    assert "Run 'decathlete data hippocampus'" in fault


def test_fault_in_the_data_is_named_by_its_file(bundle, data, tmp_path):
    folder = Path(shutil.copytree(data, tmp_path / "Task04_Hippocampus"))
    label = sorted((folder / "labelsTr").glob("*.nii.gz"))[0]
    label.write_bytes(label.read_bytes()[:-20])
    assert any(str(label) in fault for fault in _faults(check(bundle, dataset_dir=folder)))


def test_weights_of_another_network(bundle, data):
    (bundle / "models").mkdir()
    torch.save({"w": torch.zeros(3)}, bundle / "models/model.pt")
    assert any("model.pt" in fault for fault in _faults(check(bundle, dataset_dir=data)))


def test_data_folder_through_the_command(data, tmp_path, capsys):
    assert main(["check", str(data)]) == 0
    assert "5 cases checked, 1 channel(s), labels [0, 1, 2]" in capsys.readouterr().out
    folder = Path(shutil.copytree(data, tmp_path / "Task04_Hippocampus"))
    next((folder / "imagesTr").iterdir()).write_bytes(b"")
    assert main(["check", str(folder)]) == 1
    assert "the file is empty" in capsys.readouterr().out


def test_missing_and_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="Run 'decathlete data spleen'"):
        check("data/Task09_Spleen")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="\\(0 cases"):
        check(tmp_path / "empty")
    with pytest.raises(UsageError, match="name of a packaged bundle"):
        check("hipocampus")


_COMMAND_ROWS = [
    "truncated_gz.nii.gz",
    "bad_crc.nii.gz",
    "huge_dims.nii.gz",
    "nan_voxels.nii.gz",
    "rgb24.nii.gz",
    "image_4d_three_volumes.nii.gz",
    "sform_qform_disagree.nii.gz",
    "affine_nan.nii.gz",
    "lfs_pointer.nii.gz",
    "zero_bytes.nii.gz",
    "valid_reference.nii.gz",
    "valid_nifti2.nii.gz",
]
_COMMAND_PAIRS = ["label_value_7", "shape_differs", "label_value_half", "label_missing", "affine_rounding", "valid"]


def _data_set(folder: Path, image: Path, label: Path) -> Path:
    for part, source in (("imagesTr", image), ("labelsTr", label)):
        (folder / part).mkdir(parents=True)
        if source.is_file():
            shutil.copy(source, folder / part / "case.nii.gz")
    labels = {"labels": {"0": "background", "1": "A"}, "modality": {"0": "CT"}}
    pair = {"image": "imagesTr/case.nii.gz", "label": "labelsTr/case.nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(labels | {"training": [pair]}))
    return folder


@pytest.mark.parametrize("name", [*_COMMAND_ROWS, *_COMMAND_PAIRS])
def test_bad_inputs_through_the_command(shared, tmp_path, capsys, name):
    bad = shared / "data/bad_inputs/nifti"
    rows = {Path(r["path"]).name: r for r in json.loads((bad.parent / "cases.json").read_text(encoding="utf-8"))}
    pair = bad / "pairs" / (name if name in _COMMAND_PAIRS else "valid")
    image = pair / "image.nii.gz" if name in _COMMAND_PAIRS else bad / name
    status = main(["check", str(_data_set(tmp_path / "set", image, pair / "label.nii.gz"))])
    out = capsys.readouterr().out
    assert status == (0 if rows[name]["verdict"] == "read" else 1), out
    assert ("case.nii.gz" in out) == (status == 1)


def test_bad_data_set_through_data_verify(shared, tmp_path, capsys, caplog):
    pair = shared / "data/bad_inputs/nifti/pairs/affine_shifted"
    _data_set(tmp_path / "Task04_Hippocampus", pair / "image.nii.gz", pair / "label.nii.gz")
    assert main(["data", "hippocampus", "--output", str(tmp_path), "--verify"]) == 1
    assert "the affines of label and image differ" in caplog.text
    assert "1 fault, named above" in capsys.readouterr().err


def test_a_decathlon_folder_beside_its_dicom_is_the_decathlons(data, tmp_path, capsys):
    folder = Path(shutil.copytree(data, tmp_path / "own" / "Task04_Hippocampus"))
    (folder / "DICOM").mkdir()
    assert main(["check", str(folder)]) == 0
    assert "5 cases checked" in capsys.readouterr().out


def test_nnunets_raw_folders_are_looked_over(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DECATHLETE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "raw" / "Dataset004"
    for part, end in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        (folder / part).mkdir(parents=True)
        for file in (data / part).glob("*.nii.gz"):
            shutil.copy(file, folder / part / file.name.replace(".nii.gz", end))
    about = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "a": 1, "b": 2}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(about))
    assert main(["check", str(folder)]) == 0
    assert "5 cases: every file is readable" in capsys.readouterr().out
    next((folder / "labelsTr").iterdir()).unlink()
    assert main(["check", str(folder)]) == 1
    assert "has no label" in capsys.readouterr().err
