from __future__ import annotations

import functools
import importlib.util
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset
from monai.handlers import from_engine

from decathlete.errors import ConfigError, TrainingError
from decathlete.training import Trainer, autocast, seed_everything
from decathlete.training import trainer as trainer_module
from decathlete.transforms import BatchAugment, DrawFromLabels

_spec = importlib.util.spec_from_file_location("tiny", Path(__file__).with_name("tiny.py"))
tiny = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny)


def weights(folder: Path, name: str = "model_final.pt") -> dict:
    return torch.load(folder / name, weights_only=True)


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_few_steps_learn_a_blob(tmp_path):
    trainer = tiny.build(tmp_path, max_epochs=15, lr=0.05)
    trainer.run()
    state = weights(tmp_path)
    net = tiny.network().eval()
    net.load_state_dict(state)
    case = tiny.blobs(1)[0]
    pred = net(case["image"][None]).argmax(1)
    truth = case["label"].bool()
    assert 2 * (pred.bool() & truth).sum() / (pred.sum() + truth.sum()) > 0.9


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_the_same_seed_gives_bit_identical_weights_after_20_iterations(tmp_path, workers):
    for n in (1, 2):
        seed_everything(n)  # what ran before must not matter
        tiny.build(tmp_path / str(n), workers=workers, seed=3).run()
    assert equal(weights(tmp_path / "1"), weights(tmp_path / "2"))


def test_another_seed_gives_other_weights(tmp_path):
    for seed in (1, 2):
        tiny.build(tmp_path / str(seed), max_epochs=1, seed=seed).run()
    assert not equal(weights(tmp_path / "1"), weights(tmp_path / "2"))


def test_a_resumed_run_ends_with_the_weights_of_an_unbroken_one(tmp_path):
    tiny.build(tmp_path / "whole").run()

    class KilledError(Exception):
        pass

    def kill(engine):
        if engine.state.iteration == 11:  # in the middle of epoch 3
            raise KilledError

    broken = tiny.build(tmp_path / "broken")
    broken.add_event_handler(Events.ITERATION_COMPLETED, kill)
    with pytest.raises(KilledError):
        broken.run()
    seed_everything(77)
    resumed = tiny.build(tmp_path / "broken", resume=True)
    resumed.run()
    assert resumed.state.iteration == 20
    for name in ("model_final.pt", "model.pt"):
        assert equal(weights(tmp_path / "whole", name), weights(tmp_path / "broken", name))


@pytest.mark.slow
def test_a_run_killed_with_sigkill_and_resumed_ends_with_the_weights_of_an_unbroken_one(tmp_path):
    def start(folder: str, mode: str) -> subprocess.Popen:
        script = [sys.executable, Path(__file__).with_name("tiny.py"), tmp_path / folder, mode, "0"]
        return subprocess.Popen([str(s) for s in script], stderr=subprocess.DEVNULL)

    assert start("whole", "new").wait() == 0
    broken = start("broken", "new")
    while not (tmp_path / "broken" / "last.pt").is_file() and broken.poll() is None:
        time.sleep(0.001)
    broken.send_signal(signal.SIGKILL)
    assert broken.wait() == -signal.SIGKILL
    assert not (tmp_path / "broken" / "model_final.pt").exists()
    assert start("broken", "resume").wait() == 0
    for name in ("model_final.pt", "model.pt"):
        assert equal(weights(tmp_path / "whole", name), weights(tmp_path / "broken", name))


def test_nan_in_an_image_stops_the_run_and_names_the_cases(tmp_path):
    data = tiny.blobs()
    data[5]["image"] = torch.full_like(data[5]["image"], float("nan"))
    with pytest.raises(
        TrainingError, match=r"iteration \d+ \(epoch 1\), cases .*blob_5.*loss is not a finite number \(nan\)"
    ):
        tiny.build(tmp_path, data=data).run()


def test_an_endless_gradient_stops_the_run_before_the_weights_change(tmp_path):
    class Steep(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.sum() * 0

        @staticmethod
        def backward(ctx, g):
            return torch.full((2, 2, 8, 8, 8), float("inf"))

    trainer = tiny.build(tmp_path, loss_function=lambda pred, label: Steep.apply(pred))
    before = [p.clone() for p in trainer.network.parameters()]
    with pytest.raises(TrainingError, match=r"cases blob_\d, blob_\d.*gradients is not a finite number"):
        trainer.run()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.network.parameters(), strict=True))


def test_a_fused_optimizer_is_refused_where_float16_needs_a_scaler(tmp_path, monkeypatch):
    # the scale is taken off within its step, so the gradients that are clipped before would be 65,536 times too large
    monkeypatch.setattr(trainer_module, "amp_dtype", lambda device, amp: torch.float16)
    monkeypatch.setattr(torch.optim, "AdamW", functools.partial(torch.optim.AdamW, fused=True))
    with pytest.raises(ConfigError, match=r"optimizer: a fused optimizer cannot be .* \(AdamW, fused\). Set fused to"):
        tiny.build(tmp_path)


def test_workers_are_refused_where_cases_are_kept_on_a_gpu():
    cases = Dataset(tiny.blobs())
    cases.device = torch.device("cuda")
    loader, network = DataLoader(cases, num_workers=2), tiny.network()
    with pytest.raises(ConfigError, match=r"train::dataset::device: worker .*\(num_workers 2\). Set num_workers to 0"):
        Trainer("cpu", 1, loader, network, torch.optim.SGD(network.parameters()), torch.nn.MSELoss())


def test_gradients_are_clipped_to_the_norm(tmp_path):
    trainer = tiny.build(tmp_path, max_epochs=1, clip_norm=1e-3)
    norms = []
    trainer.optimizer.register_step_pre_hook(
        lambda o, a, k: norms.append(float(torch.stack([p.grad.norm() for p in o.param_groups[0]["params"]]).norm()))
    )
    trainer.run()
    assert len(norms) == 4
    assert max(norms) <= 1.001e-3


def test_the_forward_pass_runs_in_bfloat16_and_the_loss_in_float32(tmp_path, monkeypatch):
    monkeypatch.setattr("decathlete.training.precision.amp_dtype", lambda device, amp=True: torch.bfloat16)
    seen = {}

    def loss(pred, label):
        seen["loss"] = pred.dtype
        return pred.mean() + label.mean()

    trainer = tiny.build(tmp_path, max_epochs=1, loss_function=loss)
    trainer.network.register_forward_hook(lambda m, i, o: seen.update(forward=o.dtype))
    trainer.run()
    assert seen == {"forward": torch.bfloat16, "loss": torch.float32}


def test_amp_off_is_float32():
    with autocast("cpu", amp=False):
        assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.float32


def test_all_scales_of_deep_supervision_reach_the_loss_and_the_finest_the_metrics(tmp_path):
    class Deep(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = tiny.network()

        def forward(self, x):
            y = self.inner(x)
            return [y, y[..., ::2, ::2, ::2]] if self.training else y

    from monai.losses import DeepSupervisionLoss, DiceCELoss

    trainer = tiny.build(tmp_path, max_epochs=1,
                         loss_function=DeepSupervisionLoss(DiceCELoss(to_onehot_y=True, softmax=True)))  # fmt: skip
    trainer.network = Deep()
    shapes = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: shapes.append(e.state.output[0]["pred"].shape))
    trainer.run()
    assert shapes[0] == (2, 2, 8, 8, 8)


def test_batch_transform_sees_plain_tensors_of_image_and_label(tmp_path):
    seen = []

    def brighten(batch):
        seen.append({k: (type(v), tuple(v.shape)) for k, v in batch.items()})
        return {**batch, "image": batch["image"] + 1}

    tiny.build(tmp_path, max_epochs=1, batch_transform=brighten).run()
    assert seen[0] == {"image": (torch.Tensor, (2, 1, 8, 8, 8)), "label": (torch.Tensor, (2, 1, 8, 8, 8))}


def test_batch_transform_gets_what_else_it_asks_for(tmp_path):
    draw = DrawFromLabels(prob=1.0)
    trainer = tiny.build(tmp_path, batch_transform=BatchAugment(patch_size=(8, 8, 8), num_classes=2, draw=draw))
    tissues = torch.arange(8).expand(2, 1, 8, 8, 8)
    batch = {"image": torch.zeros(2, 1, 8, 8, 8), "label": torch.zeros(2, 1, 8, 8, 8), "tissues": tissues}
    assert trainer.prepare_batch(batch, "cpu")[0].std() > 0.5  # drawn: the scan itself is empty
    assert trainer.prepare_batch({k: v for k, v in batch.items() if k != "tissues"}, "cpu")[0].std() < 0.5


def test_channels_last_trains_with_the_same_numbers(tmp_path):
    for layout in (False, True):
        tiny.build(tmp_path / str(layout), max_epochs=1, channels_last=layout).run()
    a, b = weights(tmp_path / "False"), weights(tmp_path / "True")
    assert all(torch.allclose(a[k].float(), b[k].float(), atol=1e-2) for k in a)


def test_monais_handlers_find_the_loss_where_they_look_for_it(tmp_path):
    trainer, losses = tiny.build(tmp_path, max_epochs=1), []
    loss_of = from_engine(["loss"], first=True)  # as of MLFlowHandler and StatsHandler
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: losses.append(float(loss_of(e.state.output))))
    trainer.run()
    assert len(losses) == 4
    assert all(0 < loss < 5 for loss in losses)
