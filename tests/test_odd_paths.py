"""Folders whose names mean something to MONAI's configs, to YAML or to a shell: each way of a path into a config."""

from __future__ import annotations

import io
import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from decathlete.bundle import bundle_folder
from decathlete.bundle.configs import load
from decathlete.bundle.trust import trust
from decathlete.cli import main
from decathlete.inference import Predictor
from decathlete.label.serving import copy_bundles
from decathlete.names import inert
from decathlete.short_form import translate
from decathlete.workflow import BundleWorkflow, run

ODD = "a#1 $b @c %d @::e %::f 'g\"h é: [i"
STARTS = ("$data", "@data", "%data", "$(x)", "@::x", "%::x", "#x", "$1", "-x", "~x")
TRAIN = """
imports: [$import json, $import pathlib]
bundle_root: bundles/tiny
dataset_dir: data/Task04_Hippocampus
output_dir: out
cases: []
start: {_target_: builtins.dict, path: none}
training:
- "$pathlib.Path(@output_dir, 'seen.json').write_text(json.dumps(
  [@bundle_root, @dataset_dir, @output_dir, @cases, @start['path']]))"
"""


@pytest.fixture
def work(tmp_path, monkeypatch) -> Path:
    """A working directory of an odd name, with a bundle, data and a folder for output, each of that name too."""
    folder = tmp_path / ODD
    configs = folder / "bundles" / ODD / "configs"
    configs.mkdir(parents=True)
    (configs / "train.yaml").write_text(TRAIN)
    (configs / "multi_gpu_train.yaml").write_text("{}\n")
    (configs / "metadata.json").write_text("{}")
    trust(configs.parent)  # it writes down what it was given
    for name in (ODD, *STARTS):
        (folder / "data" / name / "imagesTr").mkdir(parents=True)
        (folder / "out" / name).mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("DECATHLETE_DATA", raising=False)
    return folder


def seen(folder: str | Path) -> list:
    return json.loads(Path(folder, "seen.json").read_text())


@pytest.mark.parametrize("text", [ODD, *STARTS, f"/x/{ODD}", "a\nb", "\udcff"])
def test_text_and_path_survive_the_parser_of_monai_wherever_they_stand(text):
    from monai.bundle import ConfigParser

    config = {"a": inert(text), "b": [inert(Path(text))], "c": {"d": "$@a + '/x'", "e": "@a", "f": "@b"}}
    config |= {"g": inert({"h": [text, {"i": Path(text)}]}), "j": {"_target_": "builtins.dict", "k": inert(text)}}
    parser = ConfigParser(config)
    assert parser.get_parsed_content("c") == {"d": f"{text}/x", "e": text, "f": [text]}
    assert parser.get_parsed_content("g") == {"h": [text, {"i": text}]}
    assert parser.get_parsed_content("j") == {"k": text}


def test_what_a_user_means_as_an_expression_stays_one():
    values = {"a": "$1 + 1 # two", "b": ["@a", "%a"], "c": 3, "d": (1, 2), "e": "plain::text"}
    assert inert(values, expressions=True) == values
    assert inert(Path("$x"), expressions=True) == "$'$x'"


@pytest.mark.parametrize("name", [ODD, *STARTS])
def test_training_gets_the_folders_as_they_are(work, name):
    data, out = Path("data", name), Path("out", name)
    cases = [{"image": str(data / "b#1.nii.gz"), "case_id": "$1 / 0"}]
    values = {"dataset_dir": data, "output_dir": out, "cases": inert(cases)}
    values["start"] = {"_target_": "builtins.dict", "path": Path(name)}
    assert run("training", Path("bundles", ODD), values) == 0
    assert seen(out) == [str(work / "bundles" / ODD), str(data), str(out), cases, name]


@pytest.mark.parametrize("name", ["$data", "@data", "%data", "#x", "-x"])
def test_folder_of_the_working_directory_may_start_with_any_sign(work, name):
    shutil.copytree(work / "data" / ODD, work / name)
    words = ["run", "training", "--config", f"bundles/{ODD}", f"--dataset_dir={name}", f"--output_dir={name}"]
    assert main(words) == 0
    assert seen(name)[1:3] == [name, name]


@pytest.mark.parametrize("name", [ODD, "a: b", "b # c", "2024-01-01", "12:30:45", "[x", "{y", "'z", "- w", "`v", "!!u"])
def test_text_of_an_override_is_no_yaml_but_for_numbers_words_and_brackets(work, name):
    path = f"x/{name}"
    words = [
        "run",
        "training",
        "--config",
        f"bundles/{ODD}",
        "--dataset_dir",
        f"data/{ODD}",
        "--output_dir",
        f"out/{ODD}",
    ]
    assert main([*words, "--start::path", path]) == 0
    assert seen(Path("out", ODD))[4] == path


def test_data_folder_with_a_hash_is_looked_up_before_the_training(work, capsys):
    from decathlete.errors import DataError

    with pytest.raises(DataError, match="no such folder"):
        run("training", Path("bundles", ODD), {"dataset_dir": "data/not#there"})


@pytest.mark.slow
def test_processes_of_torchrun_get_the_folders_as_they_are(work):
    words = ["run", "training", "--config", f"bundles/{ODD}", "--gpus", "1", "--dataset_dir=data/$data",
             "--output_dir=out/@::x"]  # fmt: skip
    done = subprocess.run([sys.executable, "-m", "decathlete.cli", *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert seen("out/@::x")[:3] == [str(work / "bundles" / ODD), "data/$data", "out/@::x"]


def test_short_form_hands_odd_folders_to_monai_as_they_are(work):
    from monai.bundle import ConfigParser

    (work / "all" / "Task04_Hippocampus").mkdir(parents=True)
    words = translate(
        [
            "run",
            "training",
            "--config",
            f"bundles/{ODD}",
            "--output_dir",
            "out#1",
            "--start::path=p#q",
            "--meta_file",
            "m#n",
            "--cases",
            "['r#s']",
        ],
        {"DECATHLETE_DATA": str(work / "all")},
        io.StringIO(),
    )
    assert words is not None
    flags = dict(itertools.pairwise(words))
    assert (flags["--meta_file"], flags["--cases"]) == ("m#n", "['r#s']")  # MONAI's own, and a list
    parser = ConfigParser(
        {"root": flags["--bundle_root"], "data": flags["--dataset_dir"], "out": flags["--output_dir"]}
    )
    found = {name: parser.get_parsed_content(name) for name in ("root", "data", "out")}
    assert found == {
        "root": str(work / "bundles" / ODD),
        "data": str(work / "all" / "Task04_Hippocampus"),
        "out": "out#1",
    }
    (nested,) = (word.partition("=")[2] for word in words if word.startswith("--start::path="))
    assert ConfigParser({"p": nested}).get_parsed_content("p") == "p#q"


def test_copy_of_a_bundle_predicts_where_its_folder_is_odd(work):
    """As `decathlete serve` copies bundles; with weights, output and scan in such folders too."""
    (name,) = copy_bundles([bundle_folder("hippocampus")], work / "label")
    copy = work / "label" / "model" / name
    assert load(copy, "inference").get_parsed_content("checkpoint") == str(copy / "models" / "model.pt")
    scan = work / "data" / ODD / f"{ODD.replace('/', '')}.nii.gz"
    nib.save(nib.Nifti1Image(np.random.default_rng(0).random((16, 20, 16), dtype=np.float32), np.eye(4)), scan)
    label = Predictor(copy).predict_file(scan).label
    weights = work / "out" / "$data" / "model.pt"
    shutil.copy(copy / "models" / "model.pt", weights)
    assert main(["predict", str(copy), str(scan), "--output", f"out/{ODD}", "--checkpoint", str(weights)]) == 0
    (written,) = (work / "out" / ODD).glob("*.nii.gz")
    assert np.array_equal(np.asarray(nib.load(written).dataobj), label)


def test_training_of_a_copy_is_set_up_where_its_folder_is_odd(work):
    copy_bundles([bundle_folder("hippocampus")], work / "label")
    copy = work / "label" / "model" / "hippocampus"
    pairs = [{"image": str(work / f"{n}#.nii.gz"), "label": str(work / f"{n}@::.nii.gz"), "case_id": "$1/0"}
             for n in range(3)]  # fmt: skip
    loader, weights = "decathlete.training.StrictCheckpointLoader", copy / "models" / "model.pt"
    start = {"_target_": loader, "network": "@network", "path": weights}
    values = {"train::dataset::data": inert(pairs), "dataset_dir": work / "data" / ODD, "train::handlers": [start]}
    workflow = BundleWorkflow(copy, "training", output_dir=work / "out" / ODD, **values)
    assert workflow.parser.get_parsed_content("train::dataset::data") == pairs
    assert workflow.parser.get_parsed_content("output_dir") == str(work / "out" / ODD)
    (handler,) = workflow.parser.get_parsed_content("train::handlers")
    assert Path(handler.path) == weights
