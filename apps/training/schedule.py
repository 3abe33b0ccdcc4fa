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

SKIPPED = 5  # first iterations: memory is laid out and kernels are chosen there
MEASURED = 10  # iterations that a forecast rests on, at least
MEASURED_SHARE = 0.1  # and at least this share of the budget
MEASURED_S = 20.0  # but no more seconds than this
ENDLESS = 1_000_000_000  # epochs, until a budget has been turned into a number


class PolySchedule:
    """Sets the learning rate of each iteration: ``lr * (1 - i / total) ** power``, after a linear warm-up.

    ``total`` is ``max_epochs * epoch_length`` of the trainer as it starts, so ``--train::trainer::max_epochs`` moves
    the schedule. With ``minutes`` it comes from a wall-time budget instead: the first iterations are timed
    (validation and set-up apart), the number that fits is fixed once, kept in the checkpoint, and training ends
    there. The clock plays no part after that, so a resumed run repeats it.

    Args:
        optimizer: the learning rates that it was made with are the schedule's peak.
        power: 1 falls linearly; 0.9 is nnU-Net's.
        warmup: iterations over which the rate rises linearly to its peak.
        minutes: wall time of the training iterations; ``None`` trains ``max_epochs``.

    Raises:
        ConfigError: a budget or warm-up that is not a positive number.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, power: float = 0.9, warmup: int = 0, minutes: float | None = None
    ) -> None:
        if minutes is not None and not (isinstance(minutes, (int, float)) and minutes > 0):
            raise ConfigError("minutes", "must be a number above 0, or null for max_epochs", repr(minutes))
        if warmup < 0:
            raise ConfigError("warmup", "must be 0 or a number of iterations", repr(warmup))
        self.optimizer, self.power, self.warmup, self.minutes = optimizer, power, warmup, minutes
        self.peaks = [group["lr"] for group in optimizer.param_groups]
        self.total: int | None = None  # iterations
        self.trained_s = 0.0  # wall time of the iterations so far
        self._times: list[float] = []
        self._mark = 0.0

    def attach(self, engine: Any) -> None:
        """Follow a trainer; a handler that restores a checkpoint is to be attached before."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_clock)
        engine.add_event_handler(Events.ITERATION_STARTED, self._set_rate)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._count)

    def factor(self, iteration: int) -> float:
        """Share of the peak rate in an iteration, the first of which is 1."""
        done = iteration - 1
        warm = min(1.0, iteration / self.warmup) if self.warmup else 1.0
        if self.total is None:  # being measured: the start of the curve
            return warm
        return warm * max(0.0, 1 - done / max(1, self.total)) ** self.power

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: the budget, its iterations, and the time they took."""
        return {"minutes": self.minutes, "total": self.total if self.minutes else None, "trained_s": self.trained_s}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the budget of a checkpoint; a new budget in its place is measured anew."""
        self.trained_s = float(state.get("trained_s", 0.0))
        if self.minutes is not None and state.get("minutes") == self.minutes:
            self.total = state.get("total")

    def _start(self, engine: Any) -> None:
        self._times = []
        if self.minutes is None:
            self.total = engine.state.max_epochs * engine.state.epoch_length
        elif self.total is None:
            engine.state.max_epochs = ENDLESS
        else:
            self._end_at(engine, self.total)
        engine.state.total_iterations = self.total

    def _start_clock(self, engine: Any) -> None:
        self._mark = time.perf_counter()

    def _set_rate(self, engine: Any) -> None:
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * self.factor(engine.state.iteration)

    def _count(self, engine: Any) -> None:
        now = time.perf_counter()
        self.trained_s += now - self._mark
        self._times.append(now - self._mark)
        self._mark = now
        if self.minutes is None:
            return
        if self.total is None:
            self._forecast(engine)
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
            total = engine.state.iteration + max(0, int((budget_s - self.trained_s) / mean))
        if idist.get_world_size() > 1:
            total = int(idist.broadcast(float(total), src=0))  # type: ignore[arg-type]
        if not total:
            return
        self.total = engine.state.total_iterations = total
        self._end_at(engine, total)
        logger.info(
            "%g minutes: %d iterations (%d epochs) at %.3f s each, forecast from %d of them",
            self.minutes, total, engine.state.max_epochs, sum(self._times) / len(self._times), len(self._times),
        )  # fmt: skip

    @staticmethod
    def _end_at(engine: Any, total: int) -> None:
        engine.state.max_epochs = max(engine.state.epoch, -(-total // engine.state.epoch_length))
