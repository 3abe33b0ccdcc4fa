"""The files of a bundle: what they say, what they leave alone, and the contract of all bundles."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import pytest
import torch
import yaml

from decathlete.bundle import packaged_root
from decathlete.bundle.configs import load
from decathlete.check import check
from decathlete.cli import main
from decathlete.data import TASKS, get_task
from decathlete.errors import DataError, UsageError
from decathlete.planning import new_bundle, plan_of_task, write_bundle
from decathlete.planning.writer import align, render
from decathlete.workflow import BundleWorkflow

_spec = importlib.util.spec_from_file_location("boxes", Path(__file__).with_name("boxes.py"))
boxes = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(boxes)

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"memory_gib": 4.0, "device": "cpu"}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_task_of_the_table_gives_configs_that_parse(name, device):
    texts = render(plan_of_task(get_task(name), device=device))
    train = yaml.safe_load(texts["configs/train.yaml"])
    assert train["patch_size"] == list(get_task(name).patch_size)
    assert train["spacing"] == list(get_task(name).spacing)
    assert list(train["labels"].values()) == list(range(get_task(name).num_classes))
    assert "window" in train or get_task(name).window is None
    assert all(isinstance(train[key], (int, float)) for key in ("lr", "weight_decay"))  # 3e-5 would be text
    assert json.loads(texts["configs/metadata.json"])["network_data_format"]["inputs"]["image"]["num_channels"] == len(
        get_task(name).channels
    )


def test_the_networks_of_the_configs_are_the_plans():
    made = plan_of_task(get_task("prostate"), device="cuda")
    folder = write_bundle(made, "bundles/prostate_own")
    network = load(folder, "train").get_parsed_content("network_def")
    assert network.divisor == made.network.divisor
    assert network.extra_heads > 0


def test_gpu_plans_resample_with_cubic_splines_and_ours_in_both_files():
    texts = render(plan_of_task(get_task("pancreas"), device="cuda"))
    for name in ("configs/train.yaml", "configs/inference.yaml"):
        assert "ResampleSpacingd" in texts[name]
        assert "bilinear" not in texts[name]
    train = yaml.safe_load(texts["configs/train.yaml"])
    assert train["train"]["augmentation"]["mirror_axes"] == [0, 1, 2]
    assert "batch: false" not in texts["configs/train.yaml"]  # nnU-Net sums this task's Dice over the batch
    assert "batch: false" in render(plan_of_task(get_task("prostate"), device="cuda"))["configs/train.yaml"]


def test_regions_and_an_ignored_value_of_the_data_stand_in_the_bundle(tmp_path):
    labels = {"background": 0, "both": [1, 2], "second": 2, "ignore": 3}
    data = boxes.write_decathlon(tmp_path / "data", classes=3, labels=labels)
    folder = new_bundle("parts", data, **SMALL)
    train = yaml.safe_load((folder / "configs" / "train.yaml").read_text())
    assert train["labels"] == {"background": 0, "class 1": 1, "second": 2}
    assert train["regions"] == {"both": [1, 2], "second": [2]}
    assert train["ignore"] == [3]
    values = {"dataset_dir": str(data), "output_dir": str(tmp_path / "run"), "device": "cpu", "max_epochs": 1}
    for run_id in ("training", "evaluating"):
        flow = BundleWorkflow(folder, run_id, **values)
        flow.initialize()
        flow.run()
    assert {row["class"] for row in csv.DictReader((tmp_path / "run" / "metrics.csv").open())} == {"both", "second"}


def test_comments_of_values_stand_in_one_column():
    text = align("seed: 0  # a\nlr: 0.1  # b\n  inner: 1  # c\n" + "x" * 40 + ": 1  # d\n")
    assert [line.index("#") for line in text.splitlines()] == [32, 32, 12, 45]


def test_names_that_yaml_reads_otherwise_stay_names():
    made = replace(plan_of_task(get_task("heart")), classes={"background": 0, "no": 1, "tumour: core #2": 2, "é": 3})
    texts = render(made)
    for name in ("train", "inference"):
        assert yaml.safe_load(texts[f"configs/{name}.yaml"])["labels"] == made.classes
    formats = json.loads(texts["configs/metadata.json"])["network_data_format"]
    assert formats["outputs"]["pred"]["channel_def"]["2"] == "tumour: core #2"


@pytest.mark.parametrize(("stated", "code"), [("MRI", "MR"), ("T1w", "MR"), ("CT", "CT"), ("ultrasound", "ultrasound")])
def test_the_metadata_have_a_name_and_dicoms_code_of_the_modality(stated, code):
    made = replace(plan_of_task(get_task("spleen")), modality=stated, channels=(stated,), title=f"spleen in {stated}")
    metadata = json.loads(render(made)["configs/metadata.json"])
    assert metadata["name"] == f"Spleen in {stated}"
    assert metadata["network_data_format"]["inputs"]["image"]["modality"] == code


def test_the_card_says_which_channels_a_scan_needs_and_what_comes_out():
    card = render(plan_of_task(get_task("prostate")))["docs/README.md"]
    assert "segments PZ, TZ in MRI scans with 2 channels: T2, ADC." in card
    assert "| Input | one 4D NIfTI file per scan, with the channels in this order: T2, ADC |" in card
    assert "affine of the input: 0 background, 1 PZ, 2 TZ |" in card
    card = render(plan_of_task(get_task("spleen")))["docs/README.md"]
    assert "segments spleen in CT scans." in card


def test_card_licence_and_metadata_of_a_new_bundle_say_the_same():
    for name, licence in (("spleen", "CC-BY-SA 4.0"), ("prostate", "")):
        texts = render(replace(plan_of_task(get_task(name)), licence=licence))
        metadata = json.loads(texts["configs/metadata.json"])
        assert f"| Input | {metadata['input_scan']} |" in texts["docs/README.md"]
        assert [f"\n- {words}\n" in texts["docs/README.md"] for words in metadata["limits"]] == [True]
        assert f"Licence: {metadata['licences']['training data']}\n" in texts["docs/data_license.txt"]
        assert licence in metadata["licences"]["training data"]
        assert metadata["eval_metrics"] == {}


def test_each_number_of_a_planned_bundle_has_its_reason_beside_it(tmp_path):
    folder = new_bundle("boxes", boxes.write_decathlon(tmp_path / "data"), **SMALL)
    lines = (folder / "configs" / "train.yaml").read_text().splitlines()
    for name in ("spacing", "patch_size", "margin_size", "roi_size", "batch_size", "max_epochs"):
        (line,) = (line for line in lines if line.startswith(f"{name}:"))
        assert len(line.partition("# ")[2]) > 10, line
    assert (folder / "configs" / "fingerprint.json").is_file()
    assert yaml.safe_load("\n".join(lines))["bundle_root"] == "bundles/boxes"


def test_an_existing_folder_is_refused_and_weights_survive_overwriting(tmp_path):
    data = boxes.write_decathlon(tmp_path / "data")
    folder = new_bundle("boxes", data, **SMALL)
    (folder / "models").mkdir()
    (folder / "models" / "model.pt").write_bytes(b"weights")
    (folder / "configs" / "train.yaml").write_text("changed: true")
    with pytest.raises(UsageError, match="--overwrite"):
        new_bundle("boxes", data, **SMALL)
    assert (folder / "configs" / "train.yaml").read_text() == "changed: true"
    new_bundle("boxes", data, overwrite=True, **SMALL)
    assert (folder / "models" / "model.pt").read_bytes() == b"weights"
    assert "patch_size" in (folder / "configs" / "train.yaml").read_text()


@pytest.mark.parametrize("name", ["hippocampus", "heart"])
def test_a_packaged_bundle_is_never_written_over(tmp_path, name):
    with pytest.raises(UsageError, match="a bundle of the package cannot be overwritten"):
        new_bundle(name, tmp_path, packaged_root() / name, overwrite=True)


def test_the_bundle_looks_for_a_links_own_name(tmp_path):
    (tmp_path / "link").symlink_to(boxes.write_decathlon(tmp_path / "data"))
    folder = new_bundle("boxes", tmp_path / "link", **SMALL)
    assert "dataset_folder('link')" in (folder / "configs" / "train.yaml").read_text()


@pytest.mark.parametrize("name", ["anna's scans", 'a "b" \\c', "$x", "@labels", "50%", "a#b", "{{ 7 * 7 }}"])
def test_the_bundle_finds_a_folder_of_any_printable_name(tmp_path, name):
    data = boxes.write_decathlon(Path("data", name))
    folder = new_bundle("boxes", data, **SMALL)
    assert load(folder, "train").get_parsed_content("dataset_dir") == str(data)


def test_a_folder_whose_name_would_break_the_configs_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"unprintable characters \('a.nb'"):
        new_bundle("boxes", boxes.write_decathlon(tmp_path / "a\nb"), **SMALL)


def test_faulty_data_leave_nothing_behind(tmp_path, capsys):
    data = boxes.write_decathlon(tmp_path / "data", n=3)
    assert main(["new", "boxes", "--data", str(data), "--memory", "4"]) == 1
    assert "holds 3 cases" in capsys.readouterr().err
    assert not (tmp_path / "bundles").exists()


def test_explain_prints_the_plan_and_writes_nothing(tmp_path, capsys):
    data = boxes.write_decathlon(tmp_path / "data")
    assert main(["new", "boxes", "--data", str(data), "--memory", "4", "--device", "cpu", "--explain"]) == 0
    told = capsys.readouterr().out
    assert [word for word in ("spacing", "patch", "batch", "network", "memory", "epochs") if word not in told] == []
    assert not (tmp_path / "bundles").exists()


@pytest.mark.parametrize("name", ["a b", "../up", "1st", ""])
def test_names_that_are_no_folder_and_no_id_are_refused(tmp_path, name):
    with pytest.raises(UsageError, match="letters, digits"):
        new_bundle(name, tmp_path)


def test_bundles_of_several_files_a_case_are_checked_and_predict_from_them(tmp_path):
    data = boxes.write_nnunet(tmp_path / "raw", n=5)
    folder = new_bundle("pairs", data, **SMALL)
    assert check(folder, data).ok
    torch.save(load(folder, "inference").get_parsed_content("network_def").state_dict(), tmp_path / "w.pt")
    flow = BundleWorkflow(folder, "inferring", dataset_dir=str(data), checkpoint=str(tmp_path / "w.pt"), device="cpu")
    flow.initialize()
    flow.run()
    written = sorted((tmp_path / "predictions" / "pairs").iterdir())
    assert [p.name for p in written] == [f"case_{n}_0000.nii.gz" for n in range(5)]
    assert nib.load(written[0]).shape == boxes.SHAPE


@pytest.mark.parametrize("write", [boxes.write_decathlon, boxes.write_nnunet])
def test_one_case_that_was_accepted_trains_and_is_watched_itself(tmp_path, write):
    data = write(tmp_path / "data", n=1)
    folder = new_bundle("single", data, accept=True, **SMALL)
    values = {"dataset_dir": str(data), "output_dir": str(tmp_path / "run"), "device": "cpu", "max_epochs": 1}
    flow = BundleWorkflow(folder, "training", **values)
    flow.initialize()
    flow.run()
    assert (tmp_path / "run" / "model_final.pt").is_file()


def test_check_names_a_fault_of_files_found_by_patterns(tmp_path):
    data = boxes.write_nnunet(tmp_path / "raw", n=5)
    folder = new_bundle("pairs", data, **SMALL)
    (data / "labelsTr" / "case_3.nii.gz").unlink()
    report = check(folder, data)
    assert not report.ok
    assert "case_3 has no label" in "".join(report.lines)


def contract(folder: Path) -> subprocess.CompletedProcess:
    """Every test that the packaged bundles pass, on the bundles of a folder."""
    command = [sys.executable, "-m", "pytest", "-x", "-m", "not slow", "tests/bundles/test_contract.py"]
    env = {**os.environ, "DECATHLETE_TEST_BUNDLES": str(folder)}
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_written_bundles_pass_the_contract_of_all_bundles(tmp_path):
    new_bundle("whole_boxes", boxes.write_decathlon(tmp_path / "mr", classes=2), **SMALL)
    new_bundle("two_files", boxes.write_nnunet(tmp_path / "raw"), **SMALL)
    new_bundle("on_gpu", boxes.write_decathlon(tmp_path / "gpu"), memory_gib=2.0, device="cuda")
    done = contract(tmp_path / "bundles")
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "device"), [("spleen", "cpu"), ("hippocampus", "cuda")])
def test_bundles_of_the_table_pass_it_too(tmp_path, name, device):
    made = plan_of_task(get_task(name), f"my_{name}", device)
    small = tuple(2 * d * max(1, 8 // d) for d in made.network.divisor)  # the whole patch takes minutes here
    write_bundle(replace(made, patch_size=small, margin_size=small, roi_size=small), f"bundles/my_{name}")
    done = contract(tmp_path / "bundles")
    assert done.returncode == 0, done.stdout[-3000:]
