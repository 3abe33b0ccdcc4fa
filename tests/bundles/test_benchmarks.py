"""The overrides of the benchmarks fit the bundles that they are for."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest
import torch

from decathlete.data.tasks import TASKS
from decathlete.workflow import BundleWorkflow, load

PLANNED = ("brain_tumour", "liver", "prostate", "pancreas", "hepatic_vessel", "spleen", "colon")


@pytest.fixture
def phantoms(root, monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    return importlib.import_module("phantoms")


@pytest.mark.parametrize("bundle", PLANNED)
def test_small_networks_take_their_patches_of_at_most_64_voxels_an_edge(phantoms, bundle):
    values = phantoms.small(bundle)
    assert max(values["patch_size"]) <= 64
    BundleWorkflow(bundle, "training", **values)  # an id that the bundle has not is refused
    network = load(bundle, "train", values).get_parsed_content("network_def").eval()
    image = torch.zeros(1, len(TASKS[bundle].channels), *values["patch_size"])
    with torch.no_grad():
        assert network(image).shape == (1, TASKS[bundle].num_classes, *values["patch_size"])


def test_lesions_have_another_goal_than_organs(phantoms):
    found = {name: phantoms.goal_of("", name) for name in ("liver", "spleen", "cancer", "enhancing tumour", "edema")}
    assert found == {"liver": 0.8, "spleen": 0.8, "cancer": 0.6, "enhancing tumour": 0.6, "edema": 0.6}


def test_a_class_that_no_case_holds_is_said_to(phantoms):
    result = {"bundle": "liver", "dice": {"cancer": None}, "cases": 2, "iterations": 9, "training_s": 3.0}
    (row,) = phantoms.lines(result, phantoms.goal_of)
    assert "no case" in row
    assert "below" not in row
