from __future__ import annotations

import copy
import importlib.util
from pathlib import Path

import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset, DistributedSampler
from monai.engines import SupervisedEvaluator
from monai.handlers import MeanDice, from_engine
from monai.losses import DiceCELoss, DiceFocalLoss, DiceLoss

from decathlete.distributed import processes
from decathlete.distributed.processes import average_statistics, distributed, sums_over_processes
from decathlete.errors import ConfigError, DataError, DeviceError
from decathlete.training import (
    ContourLoss,
    DiceCE,
    Trainer,
    ValidationHandler,
    ValidationSampler,
    WeightAverage,
    join_processes,
)
from decathlete.training.losses import over_processes

_spec = importlib.util.spec_from_file_location("tiny", Path(__file__).parent.parent / "training" / "tiny.py")
tiny = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny)


def test_a_process_that_torchrun_did_not_start_is_told_how(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(DeviceError, match="torchrun --nproc_per_node 2"):
        join_processes()


def test_more_processes_than_gpus_are_refused_with_both_numbers(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(DeviceError, match="4 processes, 2 GPUs"):
        join_processes()


def test_a_launcher_may_show_each_process_one_gpu(monkeypatch):
    class JoinedError(Exception):
        pass

    def join(*args, **kwargs):
        raise JoinedError(kwargs["device_id"])

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(processes, "process_store", lambda: None)
    monkeypatch.setattr(processes.dist, "init_process_group", join)
    for name, value in {"LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "4", "RANK": "3", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with pytest.raises(JoinedError, match="cuda:0"):  # NCCL is told the device
        join_processes()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")  # one GPU for all
    with pytest.raises(DeviceError, match=r"4 processes, 1 GPUs"):
        join_processes()


def test_a_time_out_of_nothing_is_refused(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(ConfigError, match="timeout_minutes"):
        join_processes(timeout_minutes=0)


def _gradient_of_a_product(rank: int) -> tuple[float, float]:
    """The square of a sum: each process's term is its rank plus one, times a weight that is 3."""
    weight = torch.tensor(3.0, requires_grad=True)
    (total,) = sums_over_processes([(rank + 1) * weight])
    (total**2).backward()
    with torch.no_grad():
        (alone,) = sums_over_processes([torch.tensor(float(rank))])
    assert alone == rank  # nothing is exchanged without a gradient
    return total.item(), weight.grad.item()


def test_sums_over_processes_have_the_gradients_of_the_whole(in_two_processes):
    (total, first), (same, second) = in_two_processes(_gradient_of_a_product)
    assert total == same == 9  # 1 * 3 + 2 * 3
    assert (first + second) / 2 == 2 * 9 * 3  # the mean of both is that of (3 w)^2 at w = 3


def _network() -> torch.nn.Module:
    torch.manual_seed(5)
    layers = torch.nn.Conv3d(1, 6, 3, padding=1), torch.nn.InstanceNorm3d(6, affine=True), torch.nn.ReLU()
    return torch.nn.Sequential(*layers, torch.nn.Conv3d(6, 2, 3, padding=1))


def _shares() -> list[dict]:
    """Blobs of unequal size, labels as shares of two classes."""
    cases = tiny.blobs(8)
    for n, case in enumerate(cases):
        label = case["label"].clone()
        label[:, : n % 4] = 0
        case["label"] = torch.cat([1 - label, label])
    return cases


def _losses(rank: int | None, loss_function: torch.nn.Module, steps: int = 1) -> list[float]:
    """Loss of 20 iterations without any randomness: 4 cases each in one process, 2 in each of two."""
    data = Dataset(_shares())
    sampler = None if rank is None else DistributedSampler(data, shuffle=False, even_divisible=True)
    loader = DataLoader(data, batch_size=(4 if rank is None else 2) // steps, sampler=sampler, num_workers=0)
    network = _network() if rank is None else distributed(_network(), "cpu")
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    trainer = Trainer("cpu", 10, loader, network, optimizer, copy.deepcopy(loss_function), accumulation_steps=steps,
                      average=WeightAverage(network))  # fmt: skip
    losses: list[float] = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: losses.append(e.state.output[0]["loss"].item()))
    trainer.run()
    return losses


LABELS = {"background": 0, "blob": 1}


@pytest.mark.parametrize(
    "loss",
    [
        DiceCE(LABELS),
        DiceCE(LABELS, batch=False),
        DiceCE(LABELS, as_monai=True),
        DiceCELoss(softmax=True, include_background=False, batch=True),
        DiceFocalLoss(softmax=True, batch=True),
    ],
    ids=["DiceCE", "DiceCE of samples", "DiceCE as MONAI's", "MONAI's DiceCE", "MONAI's DiceFocal"],
)
def test_two_processes_with_half_the_batch_learn_as_one_with_the_whole(in_two_processes, loss):
    whole = _losses(None, loss)
    halves = torch.tensor(in_two_processes(_losses, loss)).mean(0)
    assert len(whole) == 20
    assert whole[-1] < 0.9 * whole[0]
    assert halves.tolist() == pytest.approx(whole, rel=1e-4)


def test_gradients_of_several_iterations_make_one_step_in_two_processes_too(in_two_processes):
    loss = DiceCE(LABELS, batch=False)
    whole = _losses(None, loss)
    parts = torch.tensor(in_two_processes(_losses, loss, 2)).mean(0).reshape(-1, 2).mean(1)  # 2 iterations a step
    assert parts.tolist() == pytest.approx(whole, rel=1e-4)


def _contour_loss(rank: int | None) -> tuple[float, torch.Tensor]:
    """Loss and gradient of a weight for 4 frames, one of which has no outer contour; of 2 in each of two processes."""
    generator = torch.Generator().manual_seed(0)
    scores, classes = torch.randn(4, 3, 8, 8, generator=generator), torch.randint(0, 3, (4, 8, 8), generator=generator)
    classes[1] = torch.where(classes[1] == 1, 1, 3)
    shares = torch.nn.functional.one_hot(classes, 5).movedim(-1, 1).float()
    own = slice(None) if rank is None else slice(2 * rank, 2 * rank + 2)
    weight = torch.ones(3, 1, 1, requires_grad=True)
    loss = ContourLoss()(scores[own] * weight, shares[own])
    loss.backward()
    return loss.item(), weight.grad


def test_contour_loss_counts_the_contours_of_all_processes(in_two_processes):
    whole, gradient = _contour_loss(None)
    (first, a), (second, b) = in_two_processes(_contour_loss)
    assert first == second == pytest.approx(whole, rel=1e-5)
    assert torch.allclose((a + b) / 2, gradient, rtol=1e-4)


def test_a_loss_that_cannot_sum_over_processes_says_so(caplog):
    over_processes(DiceCELoss(softmax=True, to_onehot_y=True, batch=True))
    assert caplog.text == ""
    loss = DiceCELoss(softmax=True, squared_pred=True, batch=True)
    assert over_processes(loss).dice.batch
    assert "DiceLoss only sums over the batch of its own process" in caplog.text


@pytest.mark.parametrize("options", [{"softmax": True}, {"sigmoid": True, "include_background": False}])
def test_dice_over_processes_is_monais_in_one_process(options):
    scores, values = torch.randn(2, 3, 5, 5), torch.randint(0, 3, (2, 1, 5, 5))
    loss = DiceLoss(to_onehot_y=True, batch=True, **options)
    assert over_processes(loss)(scores, values).item() == pytest.approx(loss(scores, values).item(), rel=1e-6)


def _statistics(rank: int) -> tuple[list[float], list[float]]:
    """Running means of a network and of its average after two iterations with batch norm, on different cases."""
    data = Dataset(tiny.blobs(4))
    loader = DataLoader(data, batch_size=1, sampler=DistributedSampler(data, shuffle=False, even_divisible=True))
    network = distributed(tiny.network(), "cpu")
    average = WeightAverage(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    Trainer("cpu", 1, loader, network, optimizer, DiceCELoss(softmax=True, to_onehot_y=True), average=average).run()
    return network.module[1].running_mean.tolist(), average.network[1].running_mean.tolist()


def test_batch_norm_on_cpus_keeps_the_mean_of_all_statistics(in_two_processes):
    first, second = in_two_processes(_statistics)
    assert first == second


def _mean_of_statistics(rank: int) -> float:
    network = distributed(torch.nn.BatchNorm3d(1, momentum=1.0), "cpu")
    network(torch.full((1, 1, 2, 2, 2), float(rank)))
    average_statistics(network)
    return network.module.running_mean.item()


def test_statistics_of_ones_and_zeros_have_their_mean(in_two_processes):
    assert in_two_processes(_mean_of_statistics) == [0.5, 0.5]


def _dice(rank: int, number: int) -> tuple[float, int]:
    """Mean Dice of predictions that are right, empty and right; of three cases the first process has two."""
    cases = [{"image": torch.ones(1, 4, 4, 4) * (n != 1), "label": torch.ones(1, 4, 4, 4)} for n in range(number)]
    data = Dataset(cases)
    sampler = ValidationSampler(data)
    dice = MeanDice(False, num_classes=2, output_transform=from_engine(["pred", "label"]))
    evaluator = SupervisedEvaluator(torch.device("cpu"), DataLoader(data, sampler=sampler), torch.nn.Identity(),
                                    key_val_metric={"dice": dice})  # fmt: skip
    evaluator.run()
    return evaluator.state.metrics["dice"], len(evaluator.state.metric_details["dice"])


def test_each_validation_case_counts_once_where_processes_do_not_divide_them(in_two_processes):
    for dice, count in in_two_processes(_dice, 3):
        assert (dice, count) == (pytest.approx(2 / 3), 3)


def test_a_single_validation_case_is_every_processs(in_two_processes):
    assert in_two_processes(_dice, 1) == [(1.0, 2), (1.0, 2)]


def _train_with_one_case_to_validate(rank: int) -> str:
    data = Dataset(tiny.blobs(1))
    validator = SupervisedEvaluator(torch.device("cpu"), DataLoader(data, sampler=DistributedSampler(data)), _network())
    try:
        ValidationHandler(1, validator)._check_number(None)
    except DataError as error:
        return str(error)
    return ""


def test_monais_sampler_is_refused_where_it_would_leave_a_process_without_a_case(in_two_processes):
    first, second = in_two_processes(_train_with_one_case_to_validate)
    assert first == second
    assert "validate::sampler: fewer validation cases than processes (1 and 2). Use" in first


def _epochs(rank: int) -> list[list[int]]:
    """Cases of two epochs of 7 cases, as the trainer's sampler gives them to a process."""
    sampler = DistributedSampler(Dataset(list(range(7))), even_divisible=True, shuffle=True, seed=1)
    epochs = []
    for epoch in (1, 2):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
    return epochs


def test_an_epoch_holds_every_case_in_one_of_the_processes_and_is_shuffled_anew(in_two_processes):
    first, second = in_two_processes(_epochs)
    for a, b in zip(first, second, strict=True):
        assert len(a) == len(b) == 4
        assert set(a) | set(b) == set(range(7))
    assert first[0] != first[1]
