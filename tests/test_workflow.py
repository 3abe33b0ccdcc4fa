"""A bundle's folder becomes a workflow of MONAI, with overrides that must mean something."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigWorkflow

from decathlete.bundle.configs import load
from decathlete.bundle.overrides import _is_argument, check_overrides
from decathlete.bundle.trust import trust
from decathlete.data.folders import data_folder
from decathlete.errors import ConfigError, DataError, DeviceError, UsageError
from decathlete.workflow import BundleWorkflow, _out_of_memory, run

TRAIN = """
imports: [$import json, $import os, $import pathlib]
bundle_root: bundles/tiny
dataset_dir: data/Task04_Hippocampus
output_dir: out
fold: 0
batch_size: 8
patch_size: [40, 56, 40]
labels: {background: 0, anterior: 1}
network: {_target_: torch.nn.Linear, in_features: 4, out_features: 2}
optimizer: {_target_: torch.optim.AdamW, params: "$@network.parameters()", lr: 0.001}
optimizer_name: "$type(@optimizer).__name__"
report:
  seen: "$dict(root=@bundle_root, data=@dataset_dir, fold=@fold, batch=@batch_size)"
train:
  trainer: {max_epochs: 3}
  handlers:
  - {_target_: StatsHandler}
training:
- "$pathlib.Path(@output_dir + '.json').write_text(json.dumps(@report::seen))"
run: {_target_: decathlete.data.tasks.get_task, name: hipocampus}
"""
EVALUATE = "batch_size: 1\nevaluating: '@training'\n"
INFERENCE = "bundle_root: bundles/tiny\nroi_size: [8, 8, 8]\nsw_batch_size: 4\ninferring: '$1'\n"
MULTI_GPU = """
training:
- "$pathlib.Path(@output_dir + os.environ['RANK']).write_text(str(@fold))"
"""


@pytest.fixture
def tiny(tmp_path, monkeypatch) -> Path:
    """A bundle, beside a data folder with one file; the working directory holds both."""
    folder = tmp_path / "bundles" / "tiny"
    (folder / "configs").mkdir(parents=True)
    for name, text in (
        ("train", TRAIN),
        ("evaluate", EVALUATE),
        ("inference", INFERENCE),
        ("multi_gpu_train", MULTI_GPU),
    ):
        (folder / "configs" / f"{name}.yaml").write_text(text)
    (folder / "configs" / "metadata.json").write_text('{"version": "1"}')
    (tmp_path / "data" / "Task04_Hippocampus").mkdir(parents=True)
    (tmp_path / "data" / "Task04_Hippocampus" / "dataset.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("decathlete.bundle.configs.check_trust", lambda folder, config: None)  # it runs code of tests
    monkeypatch.delenv("DECATHLETE_DATA", raising=False)
    return folder


def seen(file: str = "out.json") -> dict:
    return json.loads(Path(file).read_text())


def test_load_sets_the_absolute_root_and_reads_the_metadata(tiny):
    parser = load("bundles/tiny", "train")
    assert parser.get_parsed_content("bundle_root") == str(tiny)
    assert parser["_meta_::version"] == "1"
    assert load(tiny, "evaluate")["batch_size"] == 1


@pytest.mark.parametrize("name", ["train::trainer::max_epochs", "train#trainer#max_epochs"])
def test_both_spellings_of_an_id_override(tiny, name):
    assert load(tiny, "train", {name: 2})["train"]["trainer"]["max_epochs"] == 2
    stock = ConfigWorkflow(str(tiny / "configs" / "train.yaml"), meta_file=None, logging_file=False, **{name: 2})
    assert stock.parser["train"]["trainer"]["max_epochs"] == 2


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("batchsize", "batch_size"),
        ("train::trainer::max_epoch", "train::trainer::max_epochs"),
        ("trian#trainer#max_epochs", "train::trainer::max_epochs"),
        ("optimizer::weight_decai", "optimizer::weight_decay"),
        ("labels::anteriour", "labels::anterior"),
        ("train::handlers::7", "train::handlers::0"),
    ],
)
def test_unknown_id_is_refused_with_the_nearest(tiny, wrong, nearest):
    with pytest.raises(ConfigError) as error:
        load(tiny, "train", {wrong: 1}, where="command line")
    wanted = f"train.yaml: no such id in this config ('{wrong.replace('#', '::')}', command line)"
    assert wanted in str(error.value)
    assert f"Did you mean '{nearest}'?" in str(error.value)


def test_argument_of_a_component_may_be_added(tiny):
    parser = load(tiny, "train", {"optimizer::weight_decay": 0.5, "train::handlers::0::tag_name": "x"})
    assert parser.get_parsed_content("optimizer").param_groups[0]["weight_decay"] == 0.5
    assert parser["train::handlers::0::tag_name"] == "x"


def test_component_that_takes_any_name_takes_any_override():
    config = {"a": {"_target_": "builtins.dict"}, "b": {"_target_": "$dict"}}
    assert check_overrides(config, {"a::new": 1, "b::new": 2}) == {"a::new": 1, "b::new": 2}


def test_config_that_is_no_yaml_is_named(tiny):
    (tiny / "configs" / "train.yaml").write_text("a: [1\n")
    with pytest.raises(ConfigError, match=r"train\.yaml: not readable as YAML or JSON.*\(.* line 2"):
        load(tiny, "train")


def test_run_passes_root_data_and_overrides_to_the_config(tiny, tmp_path):
    assert run("training", "bundles/tiny", {"fold": "3", "batch_size": 5}) == 0
    assert seen() == {"root": str(tiny), "data": "data/Task04_Hippocampus", "fold": 3, "batch": 5}


def test_evaluating_lays_evaluate_over_train(tiny):
    assert run("evaluating", tiny) == 0
    assert seen()["batch"] == 1


def test_data_of_the_environment_comes_before_the_default_and_after_the_given(tiny, tmp_path, monkeypatch):
    for name in ("env", "given"):
        (tmp_path / name / "Task04_Hippocampus" / "imagesTr").mkdir(parents=True)
    monkeypatch.setenv("DECATHLETE_DATA", str(tmp_path / "env"))
    run("training", tiny)
    assert seen()["data"] == str(tmp_path / "env" / "Task04_Hippocampus")
    run("training", tiny, {"dataset_dir": tmp_path / "given" / "Task04_Hippocampus"})
    assert seen()["data"] == str(tmp_path / "given" / "Task04_Hippocampus")


@pytest.mark.parametrize("name", ["@data", "$data", "%data", "a@#b", "a%::b"])
def test_folders_that_look_like_a_reference_stay_folders(tiny, tmp_path, monkeypatch, name):
    shutil.copytree(tmp_path / "data", tmp_path / name)
    monkeypatch.setenv("DECATHLETE_DATA", name)  # relative
    run("training", tiny)
    assert seen()["data"] == str(Path(name, "Task04_Hippocampus"))
    shutil.copytree(tiny, tmp_path / name / "tiny")
    assert load(tmp_path / name / "tiny", "train").get_parsed_content("bundle_root") == str(tmp_path / name / "tiny")


@pytest.mark.parametrize("text", ["\ufeff{}", "{", "[]"])
def test_metadata_of_another_kind_is_told_in_one_line(tiny, text):
    (tiny / "configs" / "metadata.json").write_text(text)
    if text.endswith("{}"):
        assert load(tiny, "train")["_meta_"] == {}
        return
    with pytest.raises(ConfigError, match=r"metadata\.json: (not readable|expected keys)"):
        load(tiny, "train")


def test_missing_and_empty_data_say_how_to_get_them(tiny, tmp_path):
    with pytest.raises(
        DataError, match=r"\(no such folder, set by --dataset_dir\)\. Run 'decathlete data hippocampus'"
    ):
        run("training", tiny, {"dataset_dir": "elsewhere/Task04_Hippocampus"})
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"an empty folder, set by --dataset_dir"):
        run("training", tiny, {"dataset_dir": "empty"})


def test_data_that_the_config_computes_are_left_to_it():
    assert data_folder("$'a' + 'b'") is None
    assert data_folder(None) is None


def test_error_inside_the_config_comes_out_as_ours(tiny):
    with pytest.raises(UsageError, match="hipocampus"):
        run("run", tiny)


def test_error_of_others_stays_what_it_is(tiny):
    with pytest.raises(RuntimeError, match="Failed to evaluate"):
        run("training", tiny, {"report::seen": "$1 / 0"})


def test_out_of_memory_names_the_smaller_setting(tiny):
    with pytest.raises(DeviceError, match=r"batch_size 8, patch_size \[40, 56, 40\]\)\. Try --batch_size 4"):
        run("training", tiny, {"report::seen": "$torch.empty(2**60)"})
    workflow = BundleWorkflow(tiny, "inferring")
    assert "(sw_batch_size 4, roi_size [8, 8, 8]). Try --sw_batch_size 2" in str(
        _out_of_memory(MemoryError(), workflow)
    )
    workflow = BundleWorkflow("hippocampus", "inferring")  # which leaves the number of windows to the inferer
    assert "Try --inferer::sw_batch_size 1, or --device cpu" in str(_out_of_memory(MemoryError(), workflow))


def test_unknown_bundle_and_run_are_refused(tiny):
    with pytest.raises(UsageError, match="no such folder"):
        run("training", "nowhere/tiny")
    with pytest.raises(UsageError, match="Did you mean 'inferring'"):
        run("infering", tiny)


@pytest.mark.parametrize("gpus", [0, -1])
def test_number_of_processes_is_positive(tiny, gpus):
    with pytest.raises(UsageError, match="--gpus: expected 1 or more"):
        run("training", tiny, gpus=gpus)


def test_mistakes_are_told_before_processes_start(tiny):
    with pytest.raises(ConfigError, match="Did you mean 'batch_size'"):
        run("training", tiny, {"batchsize": 1}, gpus=2)
    with pytest.raises(UsageError, match="only a training"):
        run("inferring", tiny, gpus=2)


def test_missing_and_too_few_cases_are_told_before_processes_start(tiny):
    config = tiny / "configs" / "train.yaml"
    text = config.read_text().replace("$import json", "$from decathlete.data import datalist, $import json")
    config.write_text(text.replace("\ntrain:\n", "\ntrain:\n  dataset: {data: $datalist(@dataset_dir)}\n"))
    with pytest.raises(DataError, match=r"0 cases.*decathlete data hippocampus"):
        run("training", tiny, gpus=2)
    with pytest.raises(DataError, match=r"train::dataset::data: fewer cases than processes.*\(1 for 2 processes"):
        run("training", tiny, {"train::dataset::data": "$[{'image': 'a.nii.gz'}]"}, gpus=2)


@pytest.mark.slow
def test_gpus_start_that_many_processes_over_the_overlay(tiny):
    command = [sys.executable, "-m", "decathlete.cli", "run", "training", "--config", "bundles/tiny", "--fold", "2"]
    trust(tiny)
    done = subprocess.run([*command, "--gpus", "2"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (Path("out0").read_text(), Path("out1").read_text()) == ("2", "2")


def test_workflow_is_one_of_monai(tiny):
    workflow = BundleWorkflow("bundles/tiny", "training", batch_size=2)
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    assert seen()["batch"] == 2
    assert workflow.version == "1"


def test_arguments_that_a_class_hands_on_are_known_and_others_refused():
    assert _is_argument(load("hippocampus", "train").config, "train::trainer::epoch_length")  # of MONAI's base
    assert not _is_argument(load("hippocampus", "train").config, "train::trainer::max_epoch")


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_absent_gpu_is_told_before_data_are_read(tiny):
    with pytest.raises(DeviceError, match="no CUDA GPU"):
        run("training", "hippocampus", {"device": "cuda", "dataset_dir": str(tiny)})


def test_tracking_without_mlflow_is_refused_before_the_data_are_read(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)  # as where it is not installed
    with pytest.raises(UsageError, match=r"--tracking: MLflow is not installed.*pip install 'decathlete\[mlflow\]'"):
        BundleWorkflow(tiny, "training", tracking="mlflow", dataset_dir="not there")


def test_tracking_by_settings_that_name_mlflow_needs_it_too(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    settings = tiny / "settings.json"
    settings.write_text('{"handlers_id": {}, "configs": {"tracking_uri": null, "t": {"_target_": "MLFlowHandler"}}}')
    with pytest.raises(UsageError, match="MLflow is not installed"):
        BundleWorkflow(tiny, "training", tracking=str(settings))


def test_another_word_for_tracking_is_refused(tiny):
    with pytest.raises(UsageError, match=r"--tracking: expected mlflow or a settings file.*\('wandb'"):
        BundleWorkflow(tiny, "training", tracking="wandb")
