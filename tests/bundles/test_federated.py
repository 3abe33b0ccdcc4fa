"""MONAI's federated client over a bundle, in this process."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from monai.fl.client import MonaiAlgo
from monai.fl.utils.exchange_object import ExchangeObject

from decathlete.bundle import packaged_root
from decathlete.data import make_phantoms

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def client(tmp_path_factory) -> MonaiAlgo:
    """A client whose bundle has weights of its own, on phantoms."""
    root = tmp_path_factory.mktemp("federated")
    data = make_phantoms("hippocampus", 5, root / "data")
    shutil.copytree(packaged_root() / "hippocampus", root / "hippocampus")
    (root / "out").mkdir()
    shutil.copy(root / "hippocampus" / "models" / "model.pt", root / "out" / "model_final.pt")
    places = {"dataset_dir": str(data), "output_dir": str(root / "out"), "val_interval": 100}
    algo = MonaiAlgo(
        str(root / "hippocampus"),
        config_train_filename="configs/train.yaml",
        train_kwargs=dict(places),
        config_evaluate_filename=["configs/train.yaml", "configs/evaluate.yaml"],
        eval_kwargs=dict(places),
        send_weight_diff=False,
    )
    algo.initialize()
    return algo


def weights(client: MonaiAlgo) -> dict[str, torch.Tensor]:
    file = Path(client.bundle_root) / "models" / "model.pt"
    return torch.load(file, weights_only=True)


def test_the_servers_weights_are_those_that_are_evaluated(client):
    good = client.evaluate(ExchangeObject(weights=weights(client))).metrics
    blank = {name: torch.zeros_like(value) for name, value in weights(client).items()}
    assert good["val_mean_dice"] > 0.3
    assert {"val_anterior_mean_dice", "val_posterior_mean_dice"} < set(good)
    assert client.evaluate(ExchangeObject(weights=blank)).metrics["val_mean_dice"] == 0


def test_two_rounds_train_on_from_the_servers_weights(client):
    start = weights(client)
    for epoch in (1, 2):
        client.train(ExchangeObject(weights=start))
        found = client.get_weights()
        trained = {name: value.clone() for name, value in found.weights.items()}  # as over a network
        assert client.trainer.state.epoch == epoch
        assert found.statistics["num_executed_iterations"] > 0
        assert set(trained) == set(start)
        assert any(not torch.equal(trained[name], start[name]) for name in start)
        start = trained
