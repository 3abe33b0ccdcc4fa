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
    """A clock that the iterations move by ``speed`` and the work of the cores by ``core_s``; validation takes 100 s."""

    def __init__(self) -> None:
        self.now = self.busy = 0.0

    def perf_counter(self) -> float:
        return self.now

    def process_time(self) -> float:
        return self.busy


def budgeted(
    monkeypatch, minutes: float, epoch_length: int = 7, state: dict | None = None, validation_s: float = 100.0,
    deadline: bool = False, speed=lambda iteration: 1.0, core_s=lambda iteration: 0.5,
):  # fmt: skip
    clock = Clock()
    monkeypatch.setattr(schedule, "time", clock)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    policy = PolySchedule(optimizer(), power=0.9, minutes=minutes, deadline=deadline)
    seen: list[float] = []

    def step(engine, batch):
        clock.now += speed(engine.state.iteration)
        clock.busy += core_s(engine.state.iteration)
        seen.append(policy.optimizer.param_groups[0]["lr"])

    engine = Engine(step)
    if state is not None:
        policy.load_state_dict(state)
    policy.attach(engine)

    @engine.on(Events.EPOCH_COMPLETED)
    def validate(engine):
        clock.now += validation_s

    engine.run([0] * epoch_length, max_epochs=1)
    policy.clock = clock
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


def test_a_machine_that_gets_slower_is_said_with_its_cause_and_keeps_the_iterations(monkeypatch, caplog):
    def slow(iteration):
        return 1.0 if iteration <= 41 else 10.0

    _, _, seen = budgeted(monkeypatch, minutes=2, speed=slow)
    assert len(seen) == 120
    line, *more = [record.message for record in caplog.records if record.levelname == "WARNING"]
    # a look every 3 iterations, and half of what the one before found: after 44, 41 x 1 s + 3 x 10 s + 76 x 5.5 s
    assert line.startswith("2 minutes: the training will take about 8.2 minutes, at 5.500 s for each iteration now")
    assert len(more) == 1  # a further quarter: 13 minutes
    assert "this process got 2% of its 2 cores, 25% before: other programs use them" in line
    assert "--deadline" in line


def test_work_that_grows_is_not_called_other_programs(monkeypatch, caplog):
    budgeted(monkeypatch, 2, speed=lambda n: 1.0 if n < 42 else 4.0, core_s=lambda n: 0.5 if n < 42 else 2.0)
    line = next(record.message for record in caplog.records if record.levelname == "WARNING")
    assert "(this process got 25% of its 2 cores)" in line


@pytest.mark.parametrize(("factor", "last"), [(3.0, 0.1), (10.0, 0.2), (30.0, 0.4)])
def test_with_a_deadline_a_slow_machine_does_fewer_iterations_in_the_same_time(monkeypatch, factor, last):
    policy, engine, seen = budgeted(
        monkeypatch, 10, deadline=True, validation_s=0.0, speed=lambda n: 1.0 if n <= 200 else factor
    )
    assert policy.clock.now <= 600 * 1.2
    assert len(seen) == policy.total == engine.state.iteration == engine.state.total_iterations < 400
    assert seen == sorted(seen, reverse=True)  # the rate falls on, without a step back
    assert seen[-1] < last  # and to its end, as far as the few iterations left allow


def test_with_a_deadline_a_machine_that_gets_free_again_does_more_iterations(monkeypatch):
    policy, _, seen = budgeted(
        monkeypatch, 10, deadline=True, validation_s=0.0, speed=lambda n: 1.0 if n <= 100 or n > 130 else 5.0
    )
    assert 450 <= policy.clock.now <= 650
    assert len(seen) > 300


def test_with_a_deadline_validation_counts(monkeypatch):
    policy, _, seen = budgeted(monkeypatch, 10, epoch_length=10, deadline=True, validation_s=10.0)
    assert policy.clock.now == pytest.approx(600, rel=0.15)
    assert policy.trained_s == len(seen) < 360  # the half of the time went into validation


def test_without_a_change_of_speed_a_deadline_changes_no_rate(monkeypatch):
    plain = budgeted(monkeypatch, 2, validation_s=0.0)[2]
    assert budgeted(monkeypatch, 2, validation_s=0.0, deadline=True)[2] == plain


def test_a_resumed_run_repeats_what_was_fitted(monkeypatch):
    policy = budgeted(monkeypatch, 10, deadline=True, validation_s=0.0, speed=lambda n: 1.0 if n <= 200 else 5.0)[0]
    again = PolySchedule(optimizer(), power=0.9, minutes=10, deadline=True)
    again.load_state_dict(policy.state_dict())
    assert again.total == policy.total
    assert [again.factor(n) for n in range(220, 280)] == [policy.factor(n) for n in range(220, 280)]


@pytest.mark.parametrize("minutes", [0, -1, "soon"])
def test_a_budget_that_is_no_positive_number_is_refused(minutes):
    with pytest.raises(ConfigError, match="minutes: expected a number above 0"):
        PolySchedule(optimizer(), minutes=minutes)


def test_a_deadline_without_a_budget_is_refused():
    with pytest.raises(ConfigError, match="deadline: there is no time budget"):
        PolySchedule(optimizer(), deadline=True)
