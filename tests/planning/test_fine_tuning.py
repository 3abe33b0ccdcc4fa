"""Weights of one bundle as the start of another."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from decathlete.bundle import packaged_root
from decathlete.bundle.configs import load
from decathlete.errors import CheckpointError, UsageError
from decathlete.networks import UNet
from decathlete.planning import load_fitting, new_bundle
from decathlete.planning.fine_tuning import find_weights, network_of
from decathlete.workflow import BundleWorkflow

_spec = importlib.util.spec_from_file_location("boxes", Path(__file__).with_name("boxes.py"))
boxes = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(boxes)


def test_layers_that_fit_are_copied_and_heads_stay_new(tmp_path):
    old, network = UNet(3, 1, 3, channels=(4, 8)), UNet(3, 1, 3, channels=(4, 8))
    torch.save(old.state_dict(), tmp_path / "old.pt")
    head = network.heads[0].weight.clone() if hasattr(network.heads[0], "weight") else None
    new = load_fitting(network, tmp_path / "old.pt")
    assert all(name.startswith("heads.") for name in new)
    before, after = old.state_dict(), network.state_dict()
    assert [n for n in after if n not in new and not torch.equal(after[n], before[n])] == []
    assert head is None or torch.equal(network.heads[0].weight, head)


def test_weights_as_other_trainers_save_them_fit_too(tmp_path):
    old, network = UNet(3, 1, 3, channels=(4, 8)), UNet(3, 1, 2, channels=(4, 8))
    wrapped = {"state_dict": {f"module.{name}": value for name, value in old.state_dict().items()}, "epoch": 3}
    torch.save(wrapped, tmp_path / "old.pt")
    assert find_weights(tmp_path / "old.pt") == tmp_path / "old.pt"
    assert all(name.startswith("heads.") for name in load_fitting(network, tmp_path / "old.pt"))


def test_another_network_is_refused(tmp_path):
    torch.save(UNet(3, 1, 2, channels=(4, 8)).state_dict(), tmp_path / "old.pt")
    with pytest.raises(CheckpointError, match="fewer than half of the layers"):
        load_fitting(UNet(3, 1, 2, channels=(6, 12)), tmp_path / "old.pt")


def test_the_network_of_a_bundles_weights_is_the_bundles():
    network = network_of(packaged_root() / "hippocampus" / "models" / "model.pt")
    assert (
        network.divisor == load(packaged_root() / "hippocampus", "inference").get_parsed_content("network_def").divisor
    )


def test_weights_that_are_not_there_are_told(tmp_path):
    with pytest.raises(UsageError, match="neither a bundle's folder"):
        find_weights(tmp_path / "none.pt")


def test_a_bundle_starts_from_the_weights_of_another_with_other_classes(tmp_path, monkeypatch, capsys):
    weights = packaged_root() / "hippocampus" / "models" / "model.pt"
    if not weights.is_file():
        pytest.skip("no weights in the hippocampus bundle")
    monkeypatch.chdir(tmp_path)
    data = boxes.write_decathlon(tmp_path / "data", classes=1)
    folder = new_bundle("tuned", data, memory_gib=4.0, device="cpu", pretrained=weights)
    assert "new layers: heads." in capsys.readouterr().out
    flow = BundleWorkflow(folder, "training", dataset_dir=str(data), output_dir=str(tmp_path / "run"), device="cpu")
    flow.initialize()
    given, own = torch.load(weights, weights_only=True), flow.parser.get_parsed_content("network").state_dict()
    same = [name for name in own if not name.startswith("heads.") and torch.equal(own[name], given[name])]
    assert len(same) == sum(not name.startswith("heads.") for name in own)
