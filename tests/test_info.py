"""`decathlete info`: what it says is what the cards, the configs and the machine say, and it runs nothing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch

from decathlete import info
from decathlete.bundle import Bundle, bundle_names, packaged_root
from decathlete.bundle.places import names_with_weights
from decathlete.bundle.trust import trust
from decathlete.cli import main
from decathlete.info import bundle_facts, facts_text, installed_facts
from decathlete.training.precision import amp_dtype

ROOT = Path(__file__).resolve().parent.parent
NAMES = bundle_names()
# where the card has each result: how its row or sentence begins, up to the number
PLACES = {
    ("hippocampus", "mean_dice_five_folds"): "| mean | ",
    ("hippocampus", "dice_anterior_five_folds"): "| anterior | ",
    ("hippocampus", "dice_posterior_five_folds"): "| posterior | ",
    ("heart", "mean_dice_five_folds"): "| Dice and cross-entropy (default) | **",
    ("heart_3d", "mean_dice_five_folds"): "| `heart_3d` | **",
    ("nfbs", "dice_one_adult"): "| one adult, 1 mm (ABIDE) | ",
    ("nfbs", "dice_mni152_average"): "| MNI152 average, 2 mm | ",
    ("nfbs", "dice_patient_with_glioma"): "| a patient with glioma, with contrast agent, 5.5 mm slices | ",
    ("nfbs", "mean_dice_five_folds_drawn_heads"): "binary masks on the 1 mm grid of each head: Dice ",
    ("sunnybrook", "mean_dice_endocardium_left_out_patients"): "| endocardium | 96 | ",
    ("sunnybrook", "mean_dice_epicardium_left_out_patients"): "| epicardium | 37 | ",
}


def card(name: str) -> str:
    return " ".join((packaged_root() / name / "docs" / "README.md").read_text(encoding="utf-8").split())


def run(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "decathlete.cli", "info", *words], capture_output=True, text=True)


# --- metadata and cards


@pytest.mark.parametrize("name", NAMES)
def test_card_and_metadata_say_the_same_accuracy(name):
    stated = Bundle(name).metadata["eval_metrics"]
    assert set(stated) == {metric for bundle, metric in PLACES if bundle == name}
    performance = card(name).partition("## Performance")[2].partition("## Input and output")[0]
    for metric, value in stated.items():
        assert re.findall(re.escape(PLACES[name, metric]) + r"([\d.]+)", performance) == [f"{value:.4f}".rstrip("0")]
    assert bool(stated) == (name in names_with_weights())
    assert bool(stated) != ("No trained weights are included" in performance)


@pytest.mark.parametrize("name", NAMES)
def test_what_metadata_say_in_words_stands_in_the_card(name):
    metadata, text = Bundle(name).metadata, card(name)
    told = [*metadata["limits"], *metadata["eval_data"], metadata["input_scan"]]
    assert [words for words in told if words not in text] == []
    assert len(metadata["limits"]) > 0
    assert bool(metadata["eval_data"]) == bool(metadata["eval_metrics"])


@pytest.mark.parametrize("name", NAMES)
def test_the_licence_in_the_metadata_is_the_one_beside_the_card(name):
    licences = Bundle(name).metadata["licences"]
    file = (packaged_root() / name / "docs" / "data_license.txt").read_text(encoding="utf-8")
    stated = licences["training data"].partition(";")[0]
    assert stated.replace("none stated", "none") in file
    assert licences["code and configs"] == "Apache-2.0"
    assert f"Code and configs: {licences['code and configs']}" in card(name)
    assert ("weights" in licences) == (name in names_with_weights())


@pytest.mark.parametrize("name", names_with_weights())
def test_the_results_are_those_of_the_weights_in_the_bundle(name):
    weights = (packaged_root() / name / "models" / "model.pt").read_bytes()
    assert Bundle(name).metadata["weights_sha256"] == sha256(weights).hexdigest()


def test_bundles_with_weights_are_those_that_predict_without_a_training():
    assert names_with_weights() == [name for name in NAMES if Bundle(name).weights.is_file()]
    assert names_with_weights() == ["heart", "heart_3d", "hippocampus", "nfbs", "sunnybrook"]


def test_help_of_predict_names_the_bundles_with_weights(capsys):
    with pytest.raises(SystemExit):
        main(["predict", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert f"these have weights: {', '.join(names_with_weights())}" in text


# --- one bundle


def test_a_bundle_says_what_it_takes_and_gives():
    facts = bundle_facts("nfbs")
    assert facts["gives"]["files"] == ["SCAN_brain.nii.gz", "SCAN_brainmask.nii.gz"]
    assert facts["gives"]["classes"] == {"1": "brain"}
    assert facts["takes"]["modality"] == "MR"
    assert facts["takes"]["channels"] == 1
    facts = bundle_facts("brain_tumour")
    assert facts["takes"]["channel_names"] == ["FLAIR", "T1w", "T1gd", "T2w"]
    assert facts["weights"] == {"file": None, "bytes": None, "are_measured": None}
    assert bundle_facts("sunnybrook")["gives"]["contours"] is True


def test_slices_beside_a_slice_are_no_channels_of_the_scan():
    assert bundle_facts("heart")["takes"]["channels"] == 1


@pytest.mark.parametrize("name", NAMES)
def test_a_packaged_bundle_fits_on_one_screen_and_has_no_problem(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    facts = bundle_facts(name)
    assert facts["problems"] == []
    lines = facts_text(facts).splitlines()
    assert len(lines) <= 45
    assert max(map(len, lines)) <= 100
    assert "Not for clinical use." in facts_text(facts)


def test_other_weights_than_the_measured_ones_are_named(tmp_path, monkeypatch):
    folder = tmp_path / "hippocampus"
    shutil.copytree(packaged_root() / "hippocampus", folder)
    assert bundle_facts(folder)["weights"]["are_measured"] is True
    (folder / "models" / "model.pt").write_bytes(b"those of another training")
    facts = bundle_facts(folder)
    assert facts["weights"]["are_measured"] is False
    assert "WARNING       the results below were measured with other weights" in facts_text(facts)


def test_nothing_of_a_foreign_bundle_is_run(tmp_path):
    configs = tmp_path / "foreign" / "configs"
    configs.mkdir(parents=True)
    bomb = f"$open('{tmp_path}/ran', 'w')"
    (configs / "inference.yaml").write_text(f'labels: {{background: 0, lung: 1}}\nbad: "{bomb}"\ncheckpoint: "{bomb}"')
    (configs / "metadata.json").write_text(json.dumps({"version": bomb, "task": "a\u202eb", "eval_metrics": [1]}))
    done = run(str(tmp_path / "foreign"))
    assert done.returncode == 0, done.stderr
    assert "trust         not looked at" in done.stdout
    assert "1 lung" in done.stdout
    assert "\u202e" not in done.stdout
    assert not (tmp_path / "ran").exists()


def test_a_foreign_bundle_that_was_trusted_is_named_so(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    folder = tmp_path / "foreign"
    shutil.copytree(packaged_root() / "spleen" / "configs", folder / "configs")
    assert bundle_facts(folder)["trusted"] is None
    trust(folder)
    assert bundle_facts(folder)["trusted"] is True
    (folder / "configs" / "train.yaml").open("a").write("\nother: 1\n")
    assert bundle_facts(folder)["trusted"] is None


@pytest.mark.parametrize(("name", "text", "word"), [
    ("metadata.json", "{", "not readable as JSON"),
    ("metadata.json", "[]", "expected keys with values"),
    ("inference.yaml", "a: [", "not readable as YAML"),
    ("inference.yaml", "labels: {lung: much}", "expected a name and a whole number"),
    ("inference.yaml", "labels: {lung: 1}\noutputs: 3", "expected a mapping"),
    ("inference.yaml", "spacing: 3", "no class names"),
])  # fmt: skip
def test_a_damaged_file_is_named_and_the_rest_is_said(tmp_path, name, text, word):
    configs = tmp_path / "configs"
    configs.mkdir()
    (configs / "inference.yaml").write_text("labels: {background: 0, lung: 1}")
    (configs / "metadata.json").write_text('{"version": "1.2.3"}')
    (configs / name).write_text(text)
    facts = bundle_facts(tmp_path)
    assert [word in problem for problem in facts["problems"]] == [True]
    assert "PROBLEM" in facts_text(facts)
    assert facts["version"] == "1.2.3" or name == "metadata.json"


@pytest.mark.parametrize("strange", [None, 3, "words", [1, {}], {"image": 1}, {"a": {"b": []}}])
def test_metadata_of_any_kind_are_shown(tmp_path, strange):
    configs = tmp_path / "configs"
    configs.mkdir()
    (configs / "inference.yaml").write_text("labels: {background: 0, lung: 1}")
    keys = ("version", "task", "description", "eval_metrics", "eval_data", "licences", "limits", "network_data_format",
            "weights_sha256", "input_scan", "data_source")  # fmt: skip
    (configs / "metadata.json").write_text(json.dumps(dict.fromkeys(keys, strange)))
    facts = bundle_facts(tmp_path)
    assert facts["gives"]["classes"] == {"1": "lung"}
    assert "1 lung" in facts_text(facts)
    json.dumps(facts, allow_nan=False)


def test_an_unknown_bundle_is_an_invalid_command_line(capsys):
    assert main(["info", "hipocampus"]) == 2
    assert "Did you mean 'hippocampus'?" in capsys.readouterr().err


# --- the installation


def test_the_installation_lists_every_bundle_and_this_python(tmp_path, monkeypatch):
    monkeypatch.setenv("DECATHLETE_CACHE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "100")
    (tmp_path / "ab").mkdir()
    (tmp_path / "ab" / "entry.npy").write_bytes(bytes(1000))
    (tmp_path / "other").write_bytes(bytes(24))
    facts = installed_facts()
    assert [bundle["name"] for bundle in facts["bundles"]] == NAMES
    assert facts["packages"]["torch"] == torch.__version__
    assert facts["packages"]["numpy"] == np.__version__
    assert facts["cache"] == {"folder": str(tmp_path), "bytes": 1024, "complete": True}
    lines = facts_text(facts).splitlines()
    assert len(lines) <= 45
    assert max(map(len, lines)) <= 100
    assert [line.split()[0] for line in lines[-len(NAMES) - 2 : -2]] == NAMES
    json.dumps(facts, allow_nan=False)


def test_a_large_cache_is_not_counted_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setenv("DECATHLETE_CACHE", str(tmp_path))
    monkeypatch.setattr(info, "MOST_FILES", 3)
    for n in range(5):
        (tmp_path / str(n)).write_bytes(bytes(10))
    facts = installed_facts()
    assert facts["cache"] == {"folder": str(tmp_path), "bytes": 30, "complete": False}
    assert f"{tmp_path}, more than 0.0 MiB" in facts_text(facts)


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a machine without a GPU")
def test_device_and_precision_are_those_that_torch_takes():
    facts = installed_facts()
    assert facts["device"] == "cpu"
    assert facts["precision"] == str(amp_dtype("cpu")).removeprefix("torch.")


# --- the JSON


def keys(content: dict, place: str = "") -> set[str]:
    """Names of the keys, in the spelling of the page; what stands below a name of the data is left out."""
    found = set()
    for key, value in content.items():
        inner = key in ("machine", "cache", "weights", "takes", "gives") and isinstance(value, dict)
        found |= keys(value, f"{key}.") if inner else {place + key}
    return found


@pytest.mark.parametrize(("words", "heading"), [([], "Of the installation:"), (["spleen"], "Of one bundle:")])
def test_the_json_has_the_keys_that_the_page_states(words, heading, capsys):
    assert main(["info", *words, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    page = (ROOT / "docs" / "info.md").read_text(encoding="utf-8")
    table = page.partition(heading)[2].strip().partition("\n\n")[0]
    stated = re.findall(r"`([^`]+)`", "\n".join(row.split(" | ")[0] for row in table.splitlines()))
    assert sorted(stated) == sorted(keys(facts))
    if not words:
        short = stated_of_one(page)
        assert all(sorted(keys(bundle)) == sorted(short) for bundle in facts["bundles"])


def stated_of_one(page: str) -> list[str]:
    """Keys from `name` to `licences` in the second table of the page."""
    names = re.findall(r"`([^`]+)`", "\n".join(
        row.split(" | ")[0] for row in page.partition("Of one bundle:")[2].splitlines() if row.startswith("| `")
    ))  # fmt: skip
    return names[names.index("name") : names.index("licences") + 1]
