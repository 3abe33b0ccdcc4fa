"""The overrides of the benchmarks fit the bundles that they are for."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import pytest
import torch

from decathlete.bundle.configs import load
from decathlete.data import make_phantoms
from decathlete.data.tasks import TASKS
from decathlete.workflow import BundleWorkflow

PLANNED = ("brain_tumour", "liver", "prostate", "pancreas", "hepatic_vessel", "spleen", "colon")


@pytest.fixture
def benchmark_named(root, monkeypatch) -> Callable[[str], ModuleType]:
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    return importlib.import_module


@pytest.fixture
def phantoms(benchmark_named) -> ModuleType:
    return benchmark_named("phantoms")


@pytest.fixture
def gpu(benchmark_named) -> ModuleType:
    return benchmark_named("gpu")


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


@pytest.mark.parametrize("bundle", ["hippocampus", "spleen", "brain_tumour", "prostate"])
def test_ways_of_training_on_a_gpu_fit_the_bundles(gpu, bundle):
    options = argparse.Namespace(set={"device": "cpu"}, workers=None)
    for way in gpu.WAYS:
        values = gpu.overrides(bundle, way, options)
        BundleWorkflow(bundle, "training", **values)  # an id that the bundle has not is refused
        network = load(bundle, "train", {**values, **({"network": "@network_def"} if "network" in values else {})})
        assert isinstance(network.get_parsed_content("network_def"), torch.nn.Module)


@pytest.mark.parametrize("way", ["plain", "on_card"])
def test_iterations_are_counted_after_the_warm_up(gpu, tmp_path, way):
    data = make_phantoms("hippocampus", 3, tmp_path)
    small = {"patch_size": [32, 32, 32], "margin_size": [36, 36, 36], "batch_size": 2, "num_workers": 0}
    options = argparse.Namespace(set=small, workers=None)
    values = gpu.overrides("hippocampus", way, options)
    found = gpu.train("hippocampus", str(data), values, "cpu", iterations=3, warm_up=2)
    assert len(found["marks"]) == 3
    assert all(0 < wait < whole for wait, whole in found["marks"])
    assert found["tflop"] > 0
    row = {"bundle": "hippocampus", "way": way, **found}
    assert "iterations/s" in gpu.line(row)
    assert "exit status 1" in gpu.line({**row, "failed": "exit status 1, see above"})


def test_the_plan_for_the_first_gpu_knows_its_bundles_and_ways(gpu, benchmark_named):
    first = benchmark_named("first_gpu")
    assert set(first.WAYS) <= set(gpu.WAYS)
    options = argparse.Namespace(set={}, workers=None)
    for bundle in first.BUNDLES:
        assert all(isinstance(gpu.overrides(bundle, way, options), dict) for way in first.WAYS)


def test_time_without_a_kernel_is_what_no_kernel_covers(gpu):
    def kernel(start, end, device=torch.autograd.DeviceType.CUDA):
        return SimpleNamespace(time_range=SimpleNamespace(start=start, end=end), device_type=device)

    cpu = kernel(0, 100, torch.autograd.DeviceType.CPU)
    events = [kernel(10, 20), kernel(12, 15), kernel(18, 30), kernel(40, 50), cpu]  # 10 of 40 without
    assert gpu.without_kernel(SimpleNamespace(events=lambda: events)) == pytest.approx(0.25)
