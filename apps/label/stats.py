"""How far a training is and how good its weights are, in the form that viewers show: MONAI Label's ``train_stats``."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from ignite.engine import Events

from decathlete.files import atomic_write
from decathlete.training.handlers import class_means

Stats = dict[str, Any]


class TrainStats:
    """Writes a file of ``train_stats`` as a training starts, after each validation and after each epoch.

    The keys are those of MONAI Label's own trainers: ``epoch``, ``total_epochs``, ``start_ts``, ``current_time``, and
    from the first validation on ``best_metric`` and ``eval``, with each metric of the latest validation and the Dice of
    each class as ``val_<class>_mean_dice``. Viewers show the first two as the bar and ``best_metric`` as the accuracy.

    Args:
        file: to write.
        validator: the evaluator.
        labels: class name to label value, background at 0.
    """

    def __init__(self, file: str | Path, validator: Any = None, labels: Mapping[str, int] | None = None) -> None:
        self.file, self.validator, self.labels = Path(file), validator, dict(labels or {})

    def attach(self, engine: Any) -> None:
        """Follow a trainer; to be attached after the ValidationHandler and the handler that restores a checkpoint."""
        if getattr(engine.state, "rank", 0) != 0:
            return
        self._start = time.time()
        for event in (Events.STARTED, Events.EPOCH_COMPLETED):
            engine.add_event_handler(event, self._write)

    def _write(self, engine: Any) -> None:
        stats = started(engine.state.max_epochs, self._start) | engine.get_stats() | {"epoch": engine.state.epoch}
        state = None if self.validator is None else self.validator.state
        if state is not None and state.best_metric_epoch > 0:
            metrics = {name: float(value) for name, value in state.metrics.items() if isinstance(value, (int, float))}
            of_classes = class_means(self.validator, state.key_metric_name, self.labels)
            best = float(state.best_metric)
            stats |= {
                "best_metric": best,
                "eval": {
                    "metrics": metrics | {f"val_{name}_mean_dice": value for name, value in of_classes.items()},
                    "key_metric_name": state.key_metric_name,
                    "best_metric": best,
                    "best_metric_epoch": state.best_metric_epoch,
                },
            }
        write_stats(self.file, stats)


def started(total_epochs: int, start: float) -> Stats:
    """What is known before the first epoch of a training that began at ``start`` (seconds since 1970)."""
    return {"epoch": 0, "total_epochs": total_epochs, "start_ts": int(start), "current_time": elapsed(start)}


def elapsed(start: float) -> str:
    """Time since ``start``, as ``0:01:23``."""
    return str(timedelta(seconds=int(time.time() - start)))


def ended(stats: Mapping[str, Any]) -> Stats:
    """The stats of a training that no longer runs: viewers take ``total_time`` as the sign of it."""
    return {"total_time" if name == "current_time" else name: value for name, value in stats.items()}


def write_stats(file: Path, stats: Mapping[str, Any]) -> None:
    """Write stats, whole or not at all; a number that is none becomes null."""
    plain = json.loads(json.dumps(stats), parse_constant=lambda _: None)
    with atomic_write(file) as part:
        part.write_text(json.dumps(plain, indent=2, allow_nan=False), encoding="utf-8")


def read_stats(file: Path) -> Stats:
    """Stats of a file, none where there is none."""
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
