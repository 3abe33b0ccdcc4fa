"""What MONAI Label's own classes for bundles, and with them other people's apps, read from a bundle's files."""

from __future__ import annotations

import json
from pathlib import Path

import monai.transforms
import pytest
import yaml
from monai.transforms import SaveImaged

import decathlete.transforms
from decathlete.bundle import bundle_names, packaged_root

TRAIN = (
    "bundle_root", "device", "network", "network_def", "run",
    "train::trainer", "train::trainer::max_epochs", "train::dataset", "train::dataset::data", "train::handlers",
    "validate::dataset", "validate::dataset::data",
)  # fmt: skip
INFERENCE = ("bundle_root", "device", "network_def", "preprocessing", "inferer", "postprocessing")


def config(name: str, file: str) -> dict:
    return yaml.safe_load((packaged_root() / name / "configs" / file).read_text())


def has(content: dict, place: str) -> bool:
    for word in place.split("::"):
        if not isinstance(content, dict) or word not in content:
            return False
        content = content[word]
    return True


@pytest.mark.parametrize("name", bundle_names())
@pytest.mark.parametrize(("file", "ids"), [("train.yaml", TRAIN), ("inference.yaml", INFERENCE)])
def test_ids_are_where_they_are_looked_for(name, file, ids):
    content = config(name, file)
    assert [place for place in ids if not has(content, place)] == []


@pytest.mark.parametrize("name", bundle_names())
def test_data_are_looked_for_only_where_a_requests_data_stand(name):
    """With Slicer's empty run id MONAI evaluates every id; none may need the data set's folder."""
    content = config(name, "train.yaml")
    for part in ("train", "validate"):
        assert content[part]["dataset"].pop("data").startswith("$")
    assert [line for line in yaml.safe_dump(content, width=1000).splitlines() if "@dataset_dir" in line] == []


@pytest.mark.parametrize("name", bundle_names())
@pytest.mark.parametrize("file", ["train.yaml", "inference.yaml"])
def test_device_may_be_a_word(name, file):
    """MONAI Label overwrites it with a text, so that its attributes must not be asked for."""
    assert "@device." not in Path(packaged_root(), name, "configs", file).read_text()


@pytest.mark.parametrize("name", bundle_names())
def test_prediction_names_the_image_alone(name):
    content = config(name, "inference.yaml")
    chain = content.get("deterministic_transforms") or content["preprocessing"]["transforms"]
    assert [step for step in chain if "label" in str(step.get("keys"))] == []


@pytest.mark.parametrize("name", bundle_names())
@pytest.mark.parametrize("file", ["train.yaml", "inference.yaml"])
def test_resampling_lets_the_keys_of_a_request_alone(name, file):
    assert "{_target_: Spacingd" not in Path(packaged_root(), name, "configs", file).read_text()


@pytest.mark.parametrize("name", bundle_names())
def test_what_writes_is_recognized_by_servers_that_write_themselves(name):
    """MONAI Label goes by the class SaveImaged; MONAI Deploy has no file to name and goes by the word in a name."""
    steps = [
        step["_target_"].rpartition(".")[2] for step in config(name, "inference.yaml")["postprocessing"]["transforms"]
    ]
    writers = [step for step in steps if "Save" in step or "Write" in step]
    assert writers
    for step in writers:
        assert "SaveImage" in step
        assert issubclass(getattr(monai.transforms, step, None) or getattr(decathlete.transforms, step), SaveImaged)


@pytest.mark.parametrize("name", bundle_names())
def test_metadata_names_image_and_pred_first(name):
    formats = json.loads((packaged_root() / name / "configs" / "metadata.json").read_text())["network_data_format"]
    assert next(iter(formats["inputs"])) == "image"
    assert next(iter(formats["outputs"])) == "pred"
    assert formats["outputs"]["pred"]["channel_def"]["0"] == "background"
