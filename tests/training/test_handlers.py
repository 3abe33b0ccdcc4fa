from __future__ import annotations

import contextlib
import errno
import importlib.util
import itertools
import json
import logging
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from urllib.request import Request, urlopen

import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.engines.utils import IterationEvents
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from decathlete.bundle.checkpoints import load_weights
from decathlete.errors import CheckpointError, ConfigError
from decathlete.training import Checkpoint, EarlyStop, Progress, TensorBoard, ValidationHandler, WeightAverage, handlers

_spec = importlib.util.spec_from_file_location("tiny", Path(__file__).with_name("tiny.py"))
tiny = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny)


def validator_of(trainer):
    """The evaluator that tiny.build put into the trainer."""
    handlers = trainer._event_handlers[Events.EPOCH_COMPLETED]
    return next(
        h[0].__self__.validator for h in handlers if isinstance(getattr(h[0], "__self__", None), ValidationHandler)
    )


# --- Checkpoint


def test_a_run_leaves_best_final_and_resumable_weights(tmp_path):
    tiny.build(tmp_path, max_epochs=2).run()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.pt", "model.pt", "model_final.pt"]
    for name in ("last.pt", "model.pt", "model_final.pt"):
        load_weights(tiny.network(1), tmp_path / name)


def test_the_last_checkpoint_holds_what_a_resumed_run_needs(tmp_path):
    tiny.build(tmp_path, max_epochs=2, seed=5).run()
    content = torch.load(tmp_path / "last.pt", weights_only=True)
    assert (content["epoch"], content["iteration"], content["seed"]) == (2, 8, 5)
    assert content["optimizer"]["state"]
    assert content["best"]["epoch"] == 2


def test_the_best_weights_are_those_of_the_best_validation(tmp_path):
    trainer = tiny.build(tmp_path, max_epochs=3, val_interval=1)
    validator = validator_of(trainer)
    scores = iter([0.3, 0.9, 0.5])
    kept = {}

    @validator.on(Events.EPOCH_COMPLETED)
    def score(engine):  # stands in for the metric after its comparison
        value = next(scores)
        if value > engine.state.best_metric or engine.state.epoch == 1:
            engine.state.best_metric, engine.state.best_metric_epoch = value, engine.state.epoch
        else:
            engine.state.best_metric_epoch = 2
        kept[engine.state.epoch] = {k: v.clone() for k, v in engine.network.state_dict().items()}

    trainer.run()
    best = torch.load(tmp_path / "model.pt", weights_only=True)
    assert all(torch.equal(best[k], kept[2][k]) for k in best)


def test_without_validation_the_final_weights_are_the_best(tmp_path):
    trainer = tiny.build(tmp_path / "unused", max_epochs=1)
    Checkpoint(tmp_path).attach(trainer)
    trainer.run()
    assert (tmp_path / "model.pt").is_file()
    assert (tmp_path / "model_final.pt").is_file()


def test_a_full_disk_stops_the_run_and_keeps_the_checkpoint_of_before(tmp_path, monkeypatch):
    tiny.build(tmp_path, max_epochs=1).run()
    before = (tmp_path / "last.pt").read_bytes()

    def full(content, part):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match=r"last\.pt.*No space left.*--resume"):
        tiny.build(tmp_path, max_epochs=2, resume=True).run()
    assert (tmp_path / "last.pt").read_bytes() == before


def test_resume_refuses_another_network_and_names_the_keys(tmp_path):
    tiny.build(tmp_path, max_epochs=1).run()
    content = torch.load(tmp_path / "last.pt", weights_only=True)
    content["network"]["9.weight"] = content["network"].pop("0.weight")
    torch.save(content, tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match=r"missing 0\.weight; unexpected 9\.weight"):
        tiny.build(tmp_path, resume=True).run()


def test_resume_refuses_weights_alone(tmp_path):
    torch.save(tiny.network().state_dict(), tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match="a training cannot resume from this file"):
        tiny.build(tmp_path, resume=True).run()


def test_resume_refuses_another_fold(tmp_path):
    for fold, resume in ((0, False), (1, True)):
        trainer = tiny.build(tmp_path / "other", max_epochs=1)
        Checkpoint(tmp_path, resume=resume, settings={"fold": fold}).attach(trainer)
        if not resume:
            trainer.run()
    with pytest.raises(CheckpointError, match="fold was 0 and is 1"):
        trainer.run()


def test_resume_without_a_checkpoint_starts_from_the_beginning(tmp_path, caplog):
    caplog.set_level(logging.INFO, "decathlete")
    trainer = tiny.build(tmp_path, max_epochs=1, resume=True)
    trainer.run()
    assert trainer.state.iteration == 4
    assert "starts from the beginning" in caplog.text


def test_a_new_run_over_an_earlier_one_says_so(tmp_path, caplog):
    for _ in range(2):
        tiny.build(tmp_path, max_epochs=1).run()
    assert "holds an earlier run, which this one replaces" in caplog.text


def test_resume_of_a_finished_run_changes_nothing(tmp_path):
    tiny.build(tmp_path, max_epochs=2).run()
    before = torch.load(tmp_path / "model_final.pt", weights_only=True)
    tiny.build(tmp_path, max_epochs=2, resume=True).run()
    after = torch.load(tmp_path / "model_final.pt", weights_only=True)
    assert all(torch.equal(before[k], after[k]) for k in before)


# --- ValidationHandler, EarlyStop


def test_validation_runs_every_interval_and_after_the_last_epoch(tmp_path):
    trainer = tiny.build(tmp_path, max_epochs=5, val_interval=2)
    epochs = []
    validator_of(trainer).add_event_handler(Events.COMPLETED, lambda e: epochs.append(e.state.epoch))
    trainer.run()
    assert epochs == [2, 4, 5]


def test_validation_on_trained_cases_is_told(tmp_path, caplog):
    trainer = tiny.build(tmp_path, max_epochs=1)  # trains on blob_0 to blob_7, validates on blob_0 and blob_1
    trainer.run()
    assert "2 of 2 validation cases are also training cases" in caplog.text
    caplog.clear()
    tiny.build(tmp_path, max_epochs=1, data=tiny.blobs()[2:]).run()
    assert "also training cases" not in caplog.text


def test_early_stop_ends_after_patience_epochs_without_a_better_metric(tmp_path):
    trainer = tiny.build(tmp_path, max_epochs=9, val_interval=1)
    validator_of(trainer).metric_cmp_fn = lambda now, best: False  # the first one stays the best
    EarlyStop(validator_of(trainer), patience=3).attach(trainer)
    trainer.run()
    assert trainer.state.epoch == 4
    assert (tmp_path / "model_final.pt").is_file()
    assert torch.load(tmp_path / "last.pt", weights_only=True)["epoch"] == 4


def test_a_training_that_stopped_early_is_not_resumed(tmp_path):
    def train(resume: bool):
        trainer = tiny.build(tmp_path, max_epochs=9, val_interval=1, resume=resume)
        validator_of(trainer).metric_cmp_fn = lambda now, best: False
        EarlyStop(validator_of(trainer), patience=2).attach(trainer)
        trainer.run()
        return trainer.state.epoch, torch.load(tmp_path / "model_final.pt", weights_only=True)

    (epoch, before), (epoch_after, after) = train(resume=False), train(resume=True)
    assert (epoch, epoch_after) == (3, 3)
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_a_checkpoint_is_written_before_a_validation_and_the_resumed_run_makes_up_for_it(tmp_path):
    class LostError(Exception):
        pass

    def fail(engine):
        raise LostError

    tiny.build(tmp_path / "whole", max_epochs=2, val_interval=1).run()
    broken = tiny.build(tmp_path / "broken", max_epochs=2, val_interval=1)
    validator_of(broken).add_event_handler(Events.ITERATION_COMPLETED, fail)
    with pytest.raises(LostError):
        broken.run()
    content = torch.load(tmp_path / "broken" / "last.pt", weights_only=True)
    assert (content["epoch"], content["best"]["epoch"]) == (1, -1)
    resumed, epochs = tiny.build(tmp_path / "broken", max_epochs=2, val_interval=1, resume=True), []
    validator_of(resumed).add_event_handler(Events.COMPLETED, lambda e: epochs.append(e.state.epoch))
    resumed.run()
    assert epochs == [1, 2]
    for name in ("model.pt", "model_final.pt"):
        whole, again = (torch.load(tmp_path / folder / name, weights_only=True) for folder in ("whole", "broken"))
        assert all(torch.equal(whole[k], again[k]) for k in whole)


# --- WeightAverage


def test_average_by_hand():
    net = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        net.weight.fill_(0.0)
        average = WeightAverage(net, decay=0.5)
        net.weight.fill_(11.0)
        average.update(1)  # keeps min(0.5, 2 / 11) of 0
        assert average.network.weight.item() == pytest.approx(9.0)
        net.weight.fill_(1.0)
        average.update(1000)  # keeps 0.5
        assert average.network.weight.item() == pytest.approx(5.0)


def test_average_takes_batch_norm_statistics_without_sharing_them():
    net = torch.nn.BatchNorm1d(2)
    average = WeightAverage(net, decay=0.0)
    net(torch.full((4, 2), 3.0))
    average.update(1)
    assert torch.equal(average.network.running_mean, net.running_mean)
    assert average.network.num_batches_tracked.item() == 1
    net(torch.full((4, 2), 9.0))
    assert not torch.equal(average.network.running_mean, net.running_mean)


def test_average_takes_in_weights_that_two_layers_share_once():
    net = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False))
    net[1].weight = net[0].weight
    with torch.no_grad():
        net[0].weight.fill_(0.0)
        average = WeightAverage(net, decay=0.5)
        net[0].weight.fill_(1.0)
    average.update(1000)
    assert average.network[0].weight.item() == average.network[1].weight.item() == 0.5


def test_average_replaces_its_copy_by_weights_that_were_loaded_before_the_start():
    net = torch.nn.Linear(1, 1, bias=False)
    average, engine = WeightAverage(net, decay=0.5), Engine(lambda engine, batch: None)
    average.attach(engine)
    with torch.no_grad():
        net.weight.fill_(7.0)
    engine.run([0])
    assert average.network.weight.item() == 7.0


def test_a_label_follows_an_output_that_lies_elsewhere(tmp_path):
    trainer = tiny.build(tmp_path, max_epochs=1)
    validator = validator_of(trainer)
    validator.state.output = {"pred": torch.empty(2, device="meta"), "label": torch.ones(2), "image": torch.ones(2)}
    validator.fire_event(IterationEvents.FORWARD_COMPLETED)
    devices = {key: value.device.type for key, value in validator.state.output.items()}
    assert devices == {"pred": "meta", "label": "meta", "image": "cpu"}


def test_label_maps_come_back_to_the_device_for_the_metrics(tmp_path):
    trainer = tiny.build(tmp_path, max_epochs=1)
    validator = validator_of(trainer)
    validator.state.device = torch.device("meta")
    validator.state.output = [{"pred": torch.ones(1, 2), "label": torch.ones(1, 2), "image": torch.ones(1, 2)}]
    handlers._maps_on_the_device(validator)
    devices = {key: value.device.type for key, value in validator.state.output[0].items()}
    assert devices == {"pred": "meta", "label": "meta", "image": "cpu"}


# --- TensorBoard, Progress


def test_tensorboard_has_loss_rate_dice_per_class_and_pictures(tmp_path):
    trainer = tiny.build(tmp_path / "run", max_epochs=2)
    board = TensorBoard(tmp_path / "logs", validator_of(trainer), {"background": 0, "blob": 1}, interval=2, pictures=1)
    board.attach(trainer)
    trainer.run()
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    assert set(events.Tags()["scalars"]) >= {"train/loss", "train/learning_rate", "validation/val_mean_dice"}
    assert [e.step for e in events.Scalars("train/loss")] == [1, 2, 4, 6, 8]
    assert [e.step for e in events.Scalars("validation/val_mean_dice/blob")] == [8]
    assert events.Tags()["images"] == ["validation/blob_0"]


def test_tensorboard_has_speed_and_memory(tmp_path):
    trainer = tiny.build(tmp_path / "run", max_epochs=2)
    TensorBoard(tmp_path / "logs", interval=2).attach(trainer)
    before = time.perf_counter()
    trainer.run()
    seconds = time.perf_counter() - before
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    speed, memory = events.Scalars("train/samples_per_second"), events.Scalars("train/memory_gib")
    assert [e.step for e in speed] == [e.step for e in memory] == [1, 2, 4, 6, 8]
    assert sum(n / e.value for n, e in zip([2, 2, 4, 4, 4], speed, strict=True)) < seconds  # 8 batches of 2 samples
    assert 0.05 < memory[0].value <= memory[-1].value < 64


def test_tensorboard_tells_how_long_the_network_waited(tmp_path, monkeypatch):
    ticks = itertools.count()  # of a clock that moves by one whenever it is read: asked, given, computed
    monkeypatch.setattr(handlers, "time", SimpleNamespace(perf_counter=lambda: next(ticks), monotonic=time.monotonic))
    trainer = tiny.build(tmp_path / "run", max_epochs=1)
    TensorBoard(tmp_path / "logs", interval=2).attach(trainer)
    trainer.run()
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    assert [e.value for e in events.Scalars("train/data_wait")] == [0.5, 0.5, 0.5]


def test_hyperparameters_stand_with_the_last_metrics(tmp_path):
    trainer = tiny.build(tmp_path / "run", max_epochs=2)
    validator = validator_of(trainer)
    settings = {"fold": 3, "patch_size": [8, 8, 8]}
    Checkpoint(tmp_path / "run", validator, settings=settings, every_s=0).attach(trainer)
    TensorBoard(tmp_path / "logs", validator).attach(trainer)
    trainer.run()
    start = hparams_of(tmp_path / "logs", "_hparams_/session_start_info").session_start_info
    found = {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}
    assert found.pop("lr") == pytest.approx(0.01)
    assert found == {
        "fold": 3,
        "patch_size": "[8, 8, 8]",
        "network": "Sequential",
        "parameters": 674,
        "loss": "DiceCELoss",
        "optimizer": "AdamW",
        "weight_decay": 0.01,
        "iterations": 8,
        "processes": 1,
        "device": "cpu",
    }
    experiment = hparams_of(tmp_path / "logs", "_hparams_/experiment").experiment
    assert [metric.name.tag for metric in experiment.metric_infos] == ["validation/val_mean_dice"]


def hparams_of(folder, tag):
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    events = EventAccumulator(str(folder))
    events.Reload()
    return HParamsPluginData.FromString(events.SummaryMetadata(tag).plugin_data.content)


@pytest.mark.slow
def test_a_running_tensorboard_shows_folds_side_by_side(tmp_path):
    for fold in (0, 1):
        trainer = tiny.build(tmp_path / f"runs/fold_{fold}", max_epochs=2)
        TensorBoard(tmp_path / f"runs/fold_{fold}", validator_of(trainer), {"background": 0, "blob": 1}).attach(trainer)
        trainer.run()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(tmp_path / "runs"), "--port", str(port)]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        scalars = ask(server, port, "plugin/scalars/tags", lambda answer: len(answer) == 2)
        assert sorted(scalars) == ["fold_0", "fold_1"]
        for tags in scalars.values():
            assert {"train/loss", "train/memory_gib", "validation/val_mean_dice/blob"} <= set(tags)
        pictures = ask(server, port, "plugin/images/tags", lambda answer: len(answer) == 2)
        assert set(pictures["fold_1"]) == {"validation/blob_0", "validation/blob_1"}
        values = ask(server, port, "plugin/scalars/scalars?run=fold_0&tag=train/loss", bool)
        assert [step for _, step, _ in values] == [1]
        words = {"experimentName": "", "allowedStatuses": ["STATUS_SUCCESS"], "colParams": [], "sliceSize": 9}
        sessions = ask(server, port, "plugin/hparams/session_groups", bool, words)["sessionGroups"]
        assert [group["hparams"]["optimizer"] for group in sessions] == ["AdamW", "AdamW"]
        assert all(group["metricValues"] for group in sessions)
    finally:
        server.kill()
        server.wait()


def ask(server, port, path, is_there, body=None):
    """The server's answer, once it is up and has read what is asked for."""
    until = time.monotonic() + 120
    while True:
        assert server.poll() is None
        with contextlib.suppress(OSError):
            data = None if body is None else json.dumps(body).encode()
            request = Request(f"http://127.0.0.1:{port}/data/{path}", data, {"Content-Type": "application/json"})
            answer = json.load(urlopen(request, timeout=10))
            if is_there(answer):
                return answer
        assert time.monotonic() < until, path
        time.sleep(0.2)


def test_pictures_have_the_proportions_of_the_body(tmp_path):
    trainer = tiny.build(tmp_path / "run", max_epochs=1)
    validator = validator_of(trainer)
    for case in validator.data_loader.dataset.data:  # 8 x 8 voxels a slice, three times as long from back to front
        case["image"] = MetaTensor(case["image"], affine=torch.diag(torch.tensor([1.0, 3.0, 1.0, 1.0])))
    TensorBoard(tmp_path / "logs", validator, pictures=1).attach(trainer)
    trainer.run()
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    picture = events.Images("validation/blob_0")[0]
    assert picture.height == 3 * picture.width


def test_pictures_show_the_planes_that_are_asked_for(tmp_path):
    trainer = tiny.build(tmp_path / "run", max_epochs=1)
    TensorBoard(tmp_path / "logs", validator_of(trainer), pictures=1, axes=[0, 1, 2]).attach(trainer)
    trainer.run()
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    picture = events.Images("validation/blob_0")[0]
    assert (picture.height, picture.width) == (192, 3 * 192 + 2 * 4)  # 8 x 8 voxels of 24 pixels, gaps of 4
    with pytest.raises(ConfigError, match="axes 0, 1 and 2"):
        TensorBoard(tmp_path, axes=[3])


def test_progress_away_from_a_terminal_is_lines_with_the_end_in_sight(tmp_path, capsys):
    trainer = tiny.build(tmp_path, max_epochs=2)
    Progress(validator_of(trainer), every_s=0.0).attach(trainer)
    trainer.run()
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("validation: ")][-1].startswith("validation: epoch 2, ")
    lines = [line for line in lines if line.startswith("training: ")]
    assert len(lines) == 8
    assert lines[-1].startswith("training: iteration 8 of 8, epoch 2, loss ")
    assert lines[3].endswith("left")
