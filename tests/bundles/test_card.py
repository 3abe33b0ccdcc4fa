"""Trainings and predictions on a card that is not there: nothing on two devices, and next to nothing waits."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events

from decathlete.bundle import bundle_names, packaged_root
from decathlete.data import fetch, make_phantoms
from decathlete.data.tasks import TASKS
from decathlete.errors import TrainingError
from decathlete.inference import Predictor
from decathlete.training import precision
from decathlete.workflow import BundleWorkflow

from .card import CARD, Card
from .small import SLICES, patch_of, read, slim

SMALL: dict[str, dict[str, Any]] = {
    "heart": SLICES["heart"],
    "lung": {**SLICES["lung"], "drop_mm": 0},
    "nfbs": {"spacing": [5, 5, 5], "head_size": [48, 48, 64], "patch_size": [48, 48, 64], "roi_size": [48, 48, 64],
             "bias_correction": False},
    "sunnybrook": {"crop_size": [96, 96, -1], "roi_size": [96, 96]},
    "hippocampus": {"margin_size": [20, 20, 20], "roi_size": [16, 16, 16]},
}  # fmt: skip
ITERATIONS = 5


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    """Where each test draws the data set of its bundle."""
    return tmp_path_factory.mktemp("phantoms")


@pytest.fixture(autouse=True)
def small_convolution(monkeypatch):
    """The one that is tried before a training."""
    monkeypatch.setattr(precision, "_TESTED_EDGE", 8)


def small(name: str, config: str) -> dict[str, Any]:
    """Overrides of a bundle's config that make network, patches and windows small."""
    bundle = packaged_root() / name
    values = {"patch_size": patch_of(bundle), **slim(bundle), **SMALL.get(name, {})}
    known = read(bundle, config)
    return {key: value for key, value in values.items() if key.replace("#", "::") in known}


def prepared(name: str, phantoms: Path, folder: Path, **values: Any) -> BundleWorkflow:
    """A small training of a few iterations on the card."""
    task = TASKS.get(name.removesuffix("_3d"))
    made = make_phantoms(task, 5, phantoms, shape=(48, 40, 24)) if task else fetch(name, phantoms, phantom=5)
    loader = {"_target_": "DataLoader", "dataset": "@train::dataset", "batch_size": "@batch_size", "num_workers": 0,
              "pin_memory": False, "sampler": {"_target_": "torch.utils.data.RandomSampler", "replacement": True,
              "data_source": "@train::dataset", "num_samples": f"$@batch_size * {ITERATIONS}"}}  # fmt: skip
    overrides = {"dataset_dir": str(made), "output_dir": str(folder), "device": f"$torch.device('{CARD}')",
                 "batch_size": 2, "max_epochs": 1, "num_workers": 0, "train::dataloader": loader,
                 **small(name, "train"), **values}  # fmt: skip
    workflow = BundleWorkflow(name, "training", distributed=False, logging_file=False, **overrides)
    workflow.initialize()
    return workflow


def waits_of(trainer: Any, card: Card) -> list[Counter]:
    """What each iteration after the third waits for, with its batch and its handlers."""
    start, found = [0], []

    @trainer.on(Events.GET_BATCH_STARTED)
    def begin(engine: Any) -> None:
        start[0] = len(card.log)

    @trainer.on(Events.ITERATION_COMPLETED)
    def end(engine: Any) -> None:
        if engine.state.iteration > 3:
            found.append(Counter(card.log[start[0] :]))

    trainer.run()
    return found


@pytest.mark.parametrize(("name", "capability"), [
    ("hippocampus", (9, 0)),
    *(pytest.param(name, (9, 0), marks=pytest.mark.slow) for name in bundle_names() if name != "hippocampus"),
    *(pytest.param(name, (7, 5), marks=pytest.mark.slow) for name in ("hippocampus", "spleen")),
])  # fmt: skip
def test_an_iteration_on_a_card_waits_for_next_to_nothing(name, capability, phantoms, tmp_path, monkeypatch):
    with Card(monkeypatch, capability) as card:
        workflow = prepared(name, phantoms, tmp_path)
        waits = waits_of(workflow.parser.get_parsed_content("train::trainer"), card)
        case = workflow.parser.get_parsed_content("validate::dataset::data")[0]
        predictor = Predictor(name, tmp_path / "model_final.pt", CARD, overrides=small(name, "inference"))
        volume = predictor.read(case["image"])
        predictor(volume.array, volume.affine)
    assert card.mixed == []
    scaler = 3 if capability < (8, 0) else 0  # two copies of the scale, one look at the overflow
    assert len(waits) == ITERATIONS - 3
    for found in waits:
        kinds = Counter(kind for (kind, _), number in found.items() for _ in range(number))
        assert kinds["sync"] <= 2 + scaler, found
        assert kinds["copy"] <= 2, found


@pytest.mark.slow
def test_a_validation_joins_the_scores_of_volumes_on_and_off_the_card(phantoms, tmp_path, monkeypatch):
    with Card(monkeypatch) as card:
        two = {"validate::dataset::data": "$datalist(@dataset_dir, 0, 'training', 'hippocampus')[:2]"}
        workflow = prepared("hippocampus", phantoms, tmp_path, roi_size=[16, 16, 16], **two)
        card.free = [60 << 30, 1000]
        workflow.run()
    assert card.mixed == []
    assert (tmp_path / "model.pt").is_file()


def test_a_loss_that_is_no_number_stops_the_run_before_anything_is_saved(phantoms, tmp_path, monkeypatch):
    with Card(monkeypatch):
        trainer = prepared("hippocampus", phantoms, tmp_path).parser.get_parsed_content("train::trainer")
        inner = trainer._loss

        def loss(pred: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
            return inner(pred, label) * (float("nan") if trainer.state.iteration == ITERATIONS else 1)

        trainer._loss = loss
        with pytest.raises(TrainingError, match=rf"iteration {ITERATIONS} \(epoch 1\), cases hippo.*loss is not a fin"):
            trainer.run()
    assert not (tmp_path / "last.pt").exists()
