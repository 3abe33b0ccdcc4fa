"""Learning rate by iteration, over a number of epochs or a wall-time budget."""

from __future__ import annotations

import logging
import time
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Events

from decathlete.errors import ConfigError

logger = logging.getLogger(__name__)

BUSY = 0.6  # of the process's share of its cores before; below it, other programs take them
EXCESS = 0.25  # of the time that is left; a forecast further off is revised
SLACK = 0.05  # of the budget; less is not worth a revision
LOOKS = 50  # at the speed, in a training
SETTLED = 0.1  # of the budget; so long the rest is not made longer again, since speeds on busy machines jump
SKIPPED = 5  # first iterations: memory is laid out and kernels are chosen there
MEASURED = 10  # iterations that a forecast rests on, at least
MEASURED_SHARE = 0.1  # and at least this share of the budget
MEASURED_S = 20.0  # but no more seconds than this
ENDLESS = 1_000_000_000  # epochs, until a budget has been turned into a number


class PolySchedule:
    """Sets the learning rate of each iteration: ``lr * (1 - i / total) ** power``, after a linear warm-up.

    ``total`` is ``max_epochs * epoch_length`` of the trainer as it starts, so ``--train::trainer::max_epochs`` moves
    the schedule. With ``minutes`` it comes from a wall-time budget instead: the first iterations are timed
    (validation and set-up apart), the number that fits is fixed, kept in the checkpoint, and training ends there.

    Where the measured speed turns out to be another one, a line in the log says what the training will take, and why.
    With ``deadline`` the rest of the schedule is then fitted to the time left: the rate falls to zero from where it
    is, over fewer or more iterations. Validation counts then too. What was fitted is in the checkpoint, so a resumed
    run repeats it.

    Args:
        optimizer: the learning rates that it was made with are the schedule's peak.
        power: 1 falls linearly; 0.9 is nnU-Net's.
        warmup: iterations over which the rate rises linearly to its peak.
        minutes: wall time of the training iterations; ``None`` trains ``max_epochs``.
        deadline: keep to ``minutes`` on a machine that gets slower or faster.

    Raises:
        ConfigError: a budget or warm-up that is not a positive number, or a deadline without a budget.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        power: float = 0.9,
        warmup: int = 0,
        minutes: float | None = None,
        deadline: bool = False,
    ) -> None:
        if minutes is not None and not (isinstance(minutes, (int, float)) and minutes > 0):
            raise ConfigError("minutes", "expected a number above 0, or null for max_epochs", repr(minutes))
        if deadline and minutes is None:
            raise ConfigError("deadline", "there is no time budget to keep to", "minutes is null", "Set minutes")
        if warmup < 0:
            raise ConfigError("warmup", "expected a number of iterations, 0 or more", repr(warmup))
        self.optimizer, self.power, self.warmup = optimizer, power, warmup
        self.minutes, self.deadline = minutes, deadline
        self.peaks = [group["lr"] for group in optimizer.param_groups]
        self.total: int | None = None  # iterations
        self.trained_s = 0.0  # wall time of the iterations so far
        self._other_s = 0.0  # and of what was between them: validation, writing of checkpoints
        self._fitted = (0, 0.0)  # iterations done when the rest was fitted last, and the part of the schedule done then
        self._times: list[float] = []
        self._look_at = 0  # iteration of the next look at the speed
        self._core_s = 0.0  # that all cores worked in these times
        self._core_share: float | None = None  # until the forecast
        self._mean_s = 0.0  # of an iteration, over the last looks
        self._settled_s = 0.0  # time spent when the rest was fitted last
        self._said_s = 0.0  # what the log says that the training takes
        self._mark: tuple[float, float] | None = None  # wall time and time of all cores, as the last iteration ended

    def attach(self, engine: Any) -> None:
        """Follow a trainer; a handler that restores a checkpoint is to be attached before."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_clock)
        engine.add_event_handler(Events.ITERATION_STARTED, self._set_rate)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._count)

    def factor(self, iteration: int) -> float:
        """Fraction of the peak rate in an iteration, the first of which is 1."""
        done = iteration - 1
        warm = min(1.0, iteration / self.warmup) if self.warmup else 1.0
        if self.total is None:  # being measured: the start of the curve
            return warm
        return warm * max(0.0, 1 - self._part(done)) ** self.power

    def _part(self, done: int) -> float:
        """Part of the schedule that is behind after ``done`` iterations."""
        fitted_at, part = self._fitted
        return part + (done - fitted_at) * (1 - part) / max(1, (self.total or 0) - fitted_at)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: the budget, its iterations, how they were fitted, and the time they took."""
        return {
            "minutes": self.minutes,
            "total": self.total if self.minutes else None,
            "trained_s": self.trained_s,
            "other_s": self._other_s,
            "fitted": list(self._fitted),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the budget of a checkpoint; a new budget in its place is measured anew."""
        self.trained_s = float(state.get("trained_s", 0.0))
        self._other_s = float(state.get("other_s", 0.0))
        if self.minutes is not None and state.get("minutes") == self.minutes:
            self.total = state.get("total")
            iteration, part = state.get("fitted", self._fitted)
            self._fitted = int(iteration), float(part)

    def _start(self, engine: Any) -> None:
        self._times, self._core_s, self._core_share, self._mark = [], 0.0, None, None
        if self.minutes is None:
            self.total = engine.state.max_epochs * engine.state.epoch_length
        elif self.total is None:
            engine.state.max_epochs = ENDLESS
        else:
            self._end_at(engine, self.total)
            self._said_s = 60 * self.minutes
            self._look_next(engine)
        engine.state.total_iterations = self.total

    def _start_clock(self, engine: Any) -> None:
        mark, self._mark = self._mark, _now()
        self._other_s += self._mark[0] - mark[0] if mark else 0.0

    def _set_rate(self, engine: Any) -> None:
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * self.factor(engine.state.iteration)

    def _count(self, engine: Any) -> None:
        (wall, cores), self._mark = self._mark or (0.0, 0.0), _now()
        self.trained_s += self._mark[0] - wall
        self._times.append(self._mark[0] - wall)
        self._core_s += self._mark[1] - cores
        if self.minutes is None:
            return
        if self.total is None:
            self._forecast(engine)
        elif engine.state.iteration == self._look_at < self.total:
            self._look(engine)
        if self.total is not None and engine.state.iteration >= self.total:
            engine.terminate_epoch()  # the epoch's handlers still run, and it is the last one

    def _forecast(self, engine: Any) -> None:
        """Turn the budget into a number of iterations once enough of them were timed; the first process decides."""
        budget_s = 60 * float(self.minutes or 0)
        measured = self._times[SKIPPED:]
        enough = len(measured) >= MEASURED and sum(measured) >= min(MEASURED_SHARE * budget_s, MEASURED_S)
        over = self.trained_s >= budget_s
        total = 0
        if enough or over:
            mean = sum(measured) / len(measured) if measured else self.trained_s / len(self._times)
            total = engine.state.iteration + max(0, int((budget_s - self._spent_s()) / mean))
        total = _of_first_process(total)
        if not total:
            return
        self._said_s = budget_s
        self._set_total(engine, total)
        self._mean_s = sum(self._times[SKIPPED:]) / max(1, len(self._times) - SKIPPED)
        self._share_of_cores()
        logger.info(
            "%g minutes: %d iterations (%d epochs) at %.3f s each, forecast from %d of them",
            self.minutes, total, engine.state.max_epochs, sum(self._times) / len(self._times), len(self._times),
        )  # fmt: skip
        self._look_next(engine)

    def _look(self, engine: Any) -> None:
        """Revise the forecast where the speed since the last look is another one; the first process decides."""
        total, done = self.total or 0, engine.state.iteration
        budget_s = 60 * float(self.minutes or 0)
        latest = sum(self._times) / len(self._times)
        self._mean_s = (self._mean_s + latest) / 2 if self._mean_s else latest
        mean = self._mean_s + (self._other_s / done if self.deadline else 0.0)
        left_s, budget_left_s = mean * (total - done), max(0.0, budget_s - self._spent_s())
        over_s = left_s - budget_left_s
        is_slower = over_s > max(EXCESS * budget_left_s, SLACK * budget_s)
        is_faster = (
            -over_s > max(EXCESS * left_s, SLACK * budget_s) and self._spent_s() - self._settled_s > SETTLED * budget_s
        )
        cause = self._share_of_cores()
        if self.deadline:
            fitting = done + int(budget_left_s / mean) if is_slower or is_faster else total
            if (fitting := _of_first_process(fitting)) != total:
                self._fitted, self._settled_s = (done, self._part(done)), self._spent_s()
                self._set_total(engine, fitting)
                logger.info("%g minutes: %d iterations instead of %d, at %.3f s each now (%s)",
                            self.minutes, fitting, total, mean, cause)  # fmt: skip
        elif is_slower and self._spent_s() + left_s > (1 + EXCESS) * self._said_s:
            self._said_s = self._spent_s() + left_s
            logger.warning(
                "%g minutes: the training will take about %.1f minutes, at %.3f s for each iteration now (%s). "
                "With --deadline it does fewer iterations instead.", self.minutes, self._said_s / 60, mean, cause,
            )  # fmt: skip
        self._look_next(engine)

    def _look_next(self, engine: Any) -> None:
        self._times, self._core_s = [], 0.0
        self._look_at = engine.state.iteration + max(3, (self.total or 0) // LOOKS)

    def _spent_s(self) -> float:
        """Seconds of the budget that are gone: of the iterations, with a deadline also of what was between them."""
        return self.trained_s + (self._other_s if self.deadline else 0.0)

    def _share_of_cores(self) -> str:
        """What the process got of its cores lately, and whether other programs have taken them since the forecast."""
        threads = torch.get_num_threads()
        share = self._core_s / max(1e-9, sum(self._times) * threads)
        first = self._core_share = share if self._core_share is None else self._core_share
        text = f"this process got {share:.0%} of its {threads} cores"
        return f"{text}, {first:.0%} before: other programs use them" if share < BUSY * first else text

    def _set_total(self, engine: Any, total: int) -> None:
        self.total = engine.state.total_iterations = total
        self._end_at(engine, total)

    @staticmethod
    def _end_at(engine: Any, total: int) -> None:
        engine.state.max_epochs = max(engine.state.epoch, -(-total // engine.state.epoch_length))


def _now() -> tuple[float, float]:
    """Wall time, and time that all cores have worked for this process; seconds."""
    return time.perf_counter(), time.process_time()


def _of_first_process(number: int) -> int:
    """The number that the first of all processes has."""
    return int(idist.broadcast(float(number), src=0)) if idist.get_world_size() > 1 else number  # type: ignore[arg-type]
