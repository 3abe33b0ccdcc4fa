"""A training's state in the form that viewers show."""

from __future__ import annotations

import json

import pytest
from ignite.engine import Engine, Events

from decathlete.label.stats import TrainStats, ended, read_stats, started, write_stats


@pytest.fixture
def trainer():
    """An engine with the state of MONAI's trainers."""
    engine = Engine(lambda engine, batch: batch)
    engine.get_stats = lambda: {"rank": 0, "total_epochs": engine.state.max_epochs}
    return engine


def test_each_epoch_is_written(trainer, tmp_path):
    seen = []
    TrainStats(tmp_path / "train_stats.json").attach(trainer)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda e: seen.append(read_stats(tmp_path / "train_stats.json")))
    trainer.run([1, 2], max_epochs=3)
    assert [(stats["epoch"], stats["total_epochs"]) for stats in seen] == [(1, 3), (2, 3), (3, 3)]
    assert all("current_time" in stats and "best_metric" not in stats for stats in seen)  # nothing was validated


def test_a_training_that_has_ended_has_a_total_time():
    stats = started(5, 0.0)
    assert ended(stats) == {"epoch": 0, "total_epochs": 5, "start_ts": 0, "total_time": stats["current_time"]}


def test_no_file_is_no_stats(tmp_path):
    assert read_stats(tmp_path / "none.json") == {}


def test_a_class_that_no_case_has_is_null(tmp_path):
    write_stats(tmp_path / "a.json", {"eval": {"metrics": {"val_cyst_mean_dice": float("nan")}}})
    assert json.loads((tmp_path / "a.json").read_text())["eval"]["metrics"] == {"val_cyst_mean_dice": None}
