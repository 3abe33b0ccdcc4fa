"""Where class names come from."""

from __future__ import annotations

import json

import pytest

from decathlete.bundle import bundle_labels
from decathlete.bundle.labels import foreground
from decathlete.errors import ConfigError


@pytest.fixture
def bundle(tmp_path):
    """Folder of a bundle with two classes."""
    folder = tmp_path / "two_boxes"
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "inference.yaml").write_text("labels: {background: 0, head: 1, tail: 2}\n")
    return folder


def test_names_come_from_the_inference_config(bundle):
    assert bundle_labels(bundle) == {1: "head", 2: "tail"}


def test_names_come_from_metadata_where_the_config_has_none(bundle):
    (bundle / "configs" / "inference.yaml").write_text("labels: $dict(a=1)\n")
    channels = {"2": "tail", "0": "background", "1": "head"}
    outputs = {"network_data_format": {"outputs": {"pred": {"channel_def": channels}}}}
    (bundle / "configs" / "metadata.json").write_text(json.dumps(outputs))
    assert list(bundle_labels(bundle).items()) == [(1, "head"), (2, "tail")]


def test_bundle_without_names_is_refused(bundle):
    (bundle / "configs" / "inference.yaml").write_text("spacing: [1, 1, 1]\n")
    with pytest.raises(ConfigError, match=r"labels: \{background: 0"):
        bundle_labels(bundle)


@pytest.mark.parametrize("labels", [{"a": 1.5}, {"a": True}, {"a": 1, "b": 1}, {"background": 0}])
def test_labels_that_mean_nothing_are_refused(labels):
    with pytest.raises(ConfigError):
        foreground(labels)
