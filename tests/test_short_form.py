"""The short form of MONAI's command line: what is translated, and what is never touched."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from decathlete.bundle import bundle_folder
from decathlete.errors import ConfigError, UsageError
from decathlete.names import inert
from decathlete.short_form import module_run, translate

TRAIN = """
bundle_root: bundles/tiny
dataset_dir: data/Task04_Hippocampus
max_epochs: 3
fold: 0
train:
  trainer: {max_epochs: 3}
training:
- "$print('trained', @max_epochs, @bundle_root, sep='|')"
failing: {_target_: decathlete.data.tasks.get_task, name: hipocampus}
run: "@failing"
"""
OTHERS = {
    "inference": "bundle_root: bundles/tiny\ninferring:\n- \"$print('inferred', @bundle_root, sep='|')\"\n",
    "evaluate": "evaluating:\n- \"$print('evaluated', @max_epochs, sep='|')\"\n",
    "multi_gpu_train": "training:\n- \"$print('rank', __import__('os').environ['RANK'], sep='|')\"\n",
}


@pytest.fixture
def work(tmp_path) -> Path:
    """A working directory whose path has a space, with the bundle ``bundles/tiny``."""
    configs = tmp_path / "a place" / "bundles" / "tiny" / "configs"
    configs.mkdir(parents=True)
    for name, text in {"train": TRAIN, **OTHERS}.items():
        (configs / f"{name}.yaml").write_text(text)
    return tmp_path / "a place"


@pytest.fixture
def tiny(work, monkeypatch) -> Path:
    """The bundle's folder, with ``work`` as working directory."""
    monkeypatch.chdir(work)
    return work / "bundles" / "tiny"


def words(line: str, **environ: str) -> list[str] | None:
    return translate(line.split(), environ, io.StringIO())


@pytest.mark.parametrize(
    ("line", "module"),
    [
        ("python -m monai.bundle run", "monai.bundle"),
        ("python -um monai.bundle run", "monai.bundle"),
        ("python -mmonai.bundle run", "monai.bundle"),
        ("python -umMonai", "Monai"),
        ("python -W ignore -m monai.bundle", "monai.bundle"),
        ("python -Wignore -X dev -m monai.bundle", "monai.bundle"),
        ("python -uW ignore -Bm monai.bundle", "monai.bundle"),
        ("python --check-hash-based-pycs never -m monai.bundle", "monai.bundle"),
        ("python -m torch.distributed.run -m monai.bundle run", "torch.distributed.run"),
        ("python /venv/bin/torchrun -m monai.bundle run", None),
        ("python script.py -m monai.bundle", None),
        ("python -c pass -m monai.bundle", None),
        ("python -Wm monai.bundle", None),
        ("python - -m monai.bundle", None),
        ("python -m", None),
        ("python", None),
    ],
)
def test_module_is_read_as_the_interpreter_reads_it(line, module):
    assert module_run(line.split()) == module


@pytest.mark.parametrize(
    "line",
    [
        "",
        "run training --config_file configs/train.yaml",
        "run training --config_file=configs/train.yaml --config bundles/tiny",
        "run training",
        "run --help",
        "run training -- --config bundles/tiny",
        "run_workflow --config bundles/tiny",
        "verify_metadata --config bundles/tiny",
        "run training --configs bundles/tiny",
    ],
)
def test_other_commands_stay_as_they_are(line, tiny):
    assert words(line) is None


@pytest.mark.parametrize(
    "line",
    [
        "run training --config bundles/tiny",
        "run training --config=bundles/tiny",
        "run --config bundles/tiny training",
        "run --run_id training --config bundles/tiny",
        "run --run_id=training --config bundles/tiny/",
        "run training --config ./bundles/../bundles/tiny",
    ],
)
def test_bundle_becomes_its_training_config_and_root(line, tiny):
    flags = words(line)
    assert flags[flags.index("--config_file") + 1] == str(tiny / "configs" / "train.yaml")
    assert flags[flags.index("--bundle_root") + 1] == str(tiny)
    assert "training" in flags or "--run_id=training" in flags
    assert not [w for w in flags if w.startswith("--config=") or w == "--config"]


def test_run_without_an_id_is_the_training_config(tiny):
    assert words("run --config bundles/tiny")[2] == str(tiny / "configs" / "train.yaml")


def test_inferring_takes_the_inference_config(tiny):
    assert words("run inferring --config bundles/tiny")[3] == str(tiny / "configs" / "inference.yaml")


def test_evaluating_lays_evaluate_over_train(tiny):
    files = words("run evaluating --config bundles/tiny")[3]
    assert files == repr([str(tiny / "configs" / "train.yaml"), str(tiny / "configs" / "evaluate.yaml")])


def test_child_of_torchrun_gets_the_multi_gpu_overlay(tiny):
    files = words("run training --config bundles/tiny", LOCAL_RANK="1", WORLD_SIZE="2")[3]
    assert files == repr([str(tiny / "configs" / "train.yaml"), str(tiny / "configs" / "multi_gpu_train.yaml")])


def test_overrides_and_fire_flags_keep_their_place(tiny):
    flags = words("run training --fold 1 --config bundles/tiny --train#trainer#max_epochs=2 -- --trace")
    assert flags[:5] == ["run", "training", "--fold", "1", "--train#trainer#max_epochs=2"]
    assert flags[-2:] == ["--", "--trace"]


def test_tracking_is_handed_on_to_monai(tiny):
    Path("settings.json").write_text("{}")
    flags = words("run training --config bundles/tiny --tracking settings.json --max_epochs 2")
    assert flags[:6] == ["run", "training", "--tracking", "settings.json", "--max_epochs", "2"]
    assert flags[6:8] == ["--config_file", str(tiny / "configs" / "train.yaml")]


def test_given_bundle_root_and_data_are_kept(tiny, tmp_path):
    (tmp_path / "Task04_Hippocampus").mkdir()
    line = "run training --config bundles/tiny --bundle_root here --dataset_dir=there"
    assert words(line, DECATHLETE_DATA=str(tmp_path))[2:5] == ["--bundle_root", "here", "--dataset_dir=there"]
    assert words(line, DECATHLETE_DATA=str(tmp_path)).count("--bundle_root") == 1


def test_data_is_found_where_the_environment_says(tiny, tmp_path):
    (tmp_path / "Task04_Hippocampus").mkdir()
    flags = words("run training --config bundles/tiny", DECATHLETE_DATA=str(tmp_path))
    assert flags[-2:] == ["--dataset_dir", str(tmp_path / "Task04_Hippocampus")]
    assert "--dataset_dir" not in words("run training --config bundles/tiny", DECATHLETE_DATA=str(tmp_path / "none"))


def test_args_file_with_overrides_stays_beside_the_bundle(tiny):
    Path("args.yaml").write_text("max_epochs: 9\n")
    flags = words("run training --config bundles/tiny --args_file args.yaml")
    assert flags[2:4] == ["--args_file", "args.yaml"]
    assert "--config_file" in flags


def test_args_file_that_names_the_config_leaves_all_untouched(tiny):
    Path("args.yaml").write_text("config_file: configs/train.yaml\n")
    assert words("run training --config bundles/tiny --args_file args.yaml") is None


def test_line_says_which_bundle_is_meant(tiny, monkeypatch):
    log = io.StringIO()
    translate(["run", "training", "--config", "bundles/tiny"], {}, log)
    assert log.getvalue() == f"decathlete: --config bundles/tiny is the folder {tiny}\n"
    monkeypatch.chdir(tiny)
    log = io.StringIO()
    translate(["run", "training", "--config", "bundles/hippocampus"], {}, log)
    assert "is the packaged bundle" in log.getvalue()


def test_unknown_bundle_and_run_are_refused(tiny):
    with pytest.raises(UsageError, match="Did you mean 'hippocampus'"):
        words("run training --config bundles/hipocampus")
    with pytest.raises(UsageError, match="Did you mean 'training'"):
        words("run trainign --config bundles/tiny")
    with pytest.raises(UsageError, match="expected one bundle"):
        words("run training --config")
    (tiny / "configs" / "evaluate.yaml").unlink()
    with pytest.raises(ConfigError, match=r"no configs/evaluate\.yaml"):
        words("run evaluating --config bundles/tiny")


def test_path_with_a_hash_survives_the_parser_of_monai(tmp_path):
    from monai.bundle import ConfigParser

    value = inert(tmp_path / "a#b@c")
    parser = ConfigParser({"root": value, "file": "$@root + '/x'"})
    assert parser.get_parsed_content("file") == str(tmp_path / "a#b@c" / "x")
    assert (inert("$1 # one", expressions=True), inert("plain"), inert(3)) == ("$1 # one", "plain", 3)


@pytest.mark.parametrize("flag", ["--max_epoch", "--max-epoch=2", "--trian::trainer::max_epochs", "--trian#x"])
def test_override_that_names_no_id_is_refused(flag):
    with pytest.raises(
        ConfigError,
        match=r"train.yaml: no such id in this config.*Did you mean '(max_epochs|train|train::.*)'",
    ):
        translate(["run", "training", "--config", "hippocampus", "--lr", "-1", flag, "2"])


def test_tracking_without_mlflow_is_refused(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)  # as where it is not installed
    with pytest.raises(UsageError, match="--tracking: MLflow is not installed"):
        words("run training --config bundles/tiny --tracking mlflow")


@pytest.mark.parametrize("file", ["configs/train.yaml", "['configs/train.yaml', 'configs/multi_gpu_train.yaml']"])
def test_stock_command_in_the_folder_of_a_bundle_gets_its_root(tiny, monkeypatch, file):
    config = tiny / "configs" / "train.yaml"
    config.write_text(TRAIN.replace("run:", "x: {_target_: decathlete.networks.UNet}\nrun:"))
    line = ["run", "training", "--config_file", file, "--max_epochs", "2"]
    assert translate(line, {}) is None  # from here, bundles/tiny is right
    monkeypatch.chdir(tiny)
    assert translate([*line, "--", "--trace"], {}) == [*line, "--bundle_root", inert(tiny), "--", "--trace"]
    assert translate([*line, "--bundle_root", "."], {}) is None


@pytest.mark.parametrize(
    "text",
    ["bundle_root: .\nx: decathlete.y\n", "bundle_root: $'a' + 'b'\nx: decathlete.y\n", "x: decathlete.y\n",
     "bundle_root: bundles/tiny\nx: another.y\n"],
)  # fmt: skip
def test_config_of_others_and_a_root_that_is_there_are_never_touched(tiny, monkeypatch, text):
    (tiny / "configs" / "train.yaml").write_text(text)
    monkeypatch.chdir(tiny)
    assert words("run training --config_file configs/train.yaml") is None


@pytest.mark.slow
def test_error_of_ours_is_the_last_line_of_the_stock_command_in_the_folder_of_a_bundle(tmp_path):
    folder = shutil.copytree(bundle_folder("hippocampus"), tmp_path / "mine")
    command = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", "configs/train.yaml"]
    environ = {k: v for k, v in os.environ.items() if k != "DECATHLETE_DATA"}
    done = subprocess.run(command, cwd=folder, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout
    assert done.stdout.splitlines()[-1].startswith("decathlete: data/Task04_Hippocampus: ")
    assert f"bundle_root: '{folder}'" in done.stdout


def test_id_inside_a_component_and_value_of_another_kind_are_refused_before_monai_starts(tiny):
    with pytest.raises(ConfigError, match=r"no such id.*Did you mean 'train::trainer::max_epochs'"):
        words("run training --config bundles/tiny --trainer::max_epochs 2")  # stands inside train
    with pytest.raises(ConfigError, match=r"max_epochs \(command line\): expected a number"):
        words("run training --config bundles/tiny --max_epochs many")


def test_a_negative_number_is_a_value_as_fire_reads_it(tiny):
    assert "-1" in words("run training --config bundles/tiny --max_epochs -1")
