from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine, Events

from decathlete.errors import ConfigError
from decathlete.training import PolySchedule, schedule


def optimizer(lr: float = 1.0) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def rates(policy: PolySchedule, max_epochs: int, epoch_length: int) -> list[float]:
    seen: list[float] = []
    engine = Engine(lambda e, b: seen.append(policy.optimizer.param_groups[0]["lr"]))
    policy.attach(engine)
    engine.run([0] * epoch_length, max_epochs=max_epochs)
    return seen


def test_power_one_falls_in_equal_steps():
    assert rates(PolySchedule(optimizer(2.0), power=1), 2, 2) == pytest.approx([2.0, 1.5, 1.0, 0.5])


def test_power_by_hand():
    assert rates(PolySchedule(optimizer(), power=0.9), 1, 2)[1] == pytest.approx(0.5**0.9)


def test_warm_up_rises_linearly_to_the_curve():
    seen = rates(PolySchedule(optimizer(), power=1, warmup=4), 1, 8)
    assert seen[:4] == pytest.approx([1 / 4, 2 / 4 * 7 / 8, 3 / 4 * 6 / 8, 5 / 8])


def test_each_parameter_group_keeps_its_own_peak():
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 0.1)]
    policy = PolySchedule(torch.optim.SGD(groups), power=1)
    rates(policy, 1, 2)
    assert [g["lr"] for g in policy.optimizer.param_groups] == pytest.approx([0.5, 0.05])


class Clock:
    """A clock that the iterations move: 1 s each, validation 100 s."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


def budgeted(monkeypatch, minutes: float, epoch_length: int = 7, state: dict | None = None, stop_at: int | None = None):
    clock = Clock()
    monkeypatch.setattr(schedule, "time", clock)
    policy = PolySchedule(optimizer(), minutes=minutes)
    seen: list[float] = []

    def step(engine, batch):
        clock.now += 1.0
        seen.append(policy.optimizer.param_groups[0]["lr"])

    engine = Engine(step)
    if state is not None:
        policy.load_state_dict(state)
    policy.attach(engine)

    @engine.on(Events.EPOCH_COMPLETED)
    def validate(engine):
        clock.now += 100.0

    engine.run([0] * epoch_length, max_epochs=1)
    return policy, engine, seen


def test_a_budget_of_two_minutes_is_120_iterations_of_a_second_without_validation(monkeypatch):
    policy, engine, seen = budgeted(monkeypatch, minutes=2)
    assert policy.total == len(seen) == engine.state.iteration == 120
    assert policy.trained_s == 120.0
    assert engine.state.epoch == engine.state.max_epochs == 18  # 17 of 7 iterations and one of 1
    assert seen[-1] == pytest.approx((1 - 119 / 120) ** 0.9)


def test_a_resumed_budget_keeps_its_number_of_iterations(monkeypatch):
    _, _, seen = budgeted(monkeypatch, minutes=2, state={"minutes": 2, "total": 30, "trained_s": 3.0})
    assert len(seen) == 30
    assert seen[1] == pytest.approx((1 - 1 / 30) ** 0.9)


def test_a_new_budget_is_measured_anew(monkeypatch):
    _, _, seen = budgeted(monkeypatch, minutes=2, state={"minutes": 1, "total": 30, "trained_s": 0.0})
    assert len(seen) == 120


@pytest.mark.parametrize("minutes", [0, -1, "soon"])
def test_a_budget_that_is_no_positive_number_is_refused(minutes):
    with pytest.raises(ConfigError, match="minutes: must be a number above 0"):
        PolySchedule(optimizer(), minutes=minutes)
