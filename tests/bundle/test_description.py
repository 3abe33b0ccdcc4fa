"""What a bundle says of itself, by hand-written configs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from decathlete.bundle import Bundle
from decathlete.errors import ConfigError, UsageError


@pytest.fixture
def folder(tmp_path) -> Path:
    configs = tmp_path / "mine" / "configs"
    configs.mkdir(parents=True)
    (configs / "inference.yaml").write_text("labels: {background: 0, a: 2, b: 1}\noutputs: {label: mask}\n")
    (configs / "train.yaml").write_text("regions: {all: [a, b]}\nignore: [9]\n")
    image = {"network_data_format": {"inputs": {"image": {"modality": "MRI"}}}}
    (configs / "metadata.json").write_text(json.dumps(image))
    return tmp_path / "mine"


def test_one_object_says_all(folder):
    bundle = Bundle(folder)
    assert (bundle.name, bundle.modality, bundle.labels) == ("mine", "MR", {1: "b", 2: "a"})
    assert (bundle.scored.regions, bundle.scored.ignore) == ({"all": (2, 1)}, (9,))
    assert bundle.outputs.label_name("scan") == "scan_mask"
    assert bundle.weights == folder / "models" / "model.pt"


def test_each_file_is_read_once(folder):
    bundle = Bundle(folder)
    first = bundle.config("inference")
    (folder / "configs" / "inference.yaml").unlink()
    assert bundle.config("inference") is first
    with pytest.raises(ConfigError, match=r"no configs/evaluate\.yaml"):
        bundle.config("evaluate")


def test_a_bundle_for_prediction_alone_has_neither_regions_nor_metadata(folder):
    for name in ("train.yaml", "metadata.json"):
        (folder / "configs" / name).unlink()
    bundle = Bundle(folder)
    assert (bundle.scored.regions, bundle.metadata, bundle.modality) == ({}, {}, "")


def test_a_damaged_train_config_is_not_taken_for_one_without_regions(folder):
    (folder / "configs" / "train.yaml").write_text("regions: {all: [a, b]\n")
    with pytest.raises(ConfigError, match=r"train\.yaml: not readable as YAML"):
        _ = Bundle(folder).scored


def test_weights_are_where_the_config_states_a_plain_path(folder):
    (folder / "configs" / "inference.yaml").write_text("checkpoint: /elsewhere/w.pt\n")
    assert Bundle(folder).weights == Path("/elsewhere/w.pt")
    (folder / "configs" / "inference.yaml").write_text("checkpoint: $@bundle_root + '/w.pt'\n")
    assert Bundle(folder).weights == folder / "models" / "model.pt"


def test_unknown_name_is_refused_at_once():
    with pytest.raises(UsageError, match="Did you mean 'hippocampus'"):
        Bundle("hipocampus")
