"""What a training leaves in its output folder: best, final and resumable weights."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Events

from decathlete.bundle.checkpoints import (
    BEST,
    FINAL,
    LAST,
    match_weights,
    plain_weights,
    read_checkpoint,
    save_checkpoint,
    unwrap,
)
from decathlete.errors import CheckpointError

logger = logging.getLogger(__name__)


class Checkpoint:
    """Writes ``last.pt`` (all that a resumed run needs), ``model.pt`` (best) and ``model_final.pt`` (at the end).

    ``model.pt`` and ``model_final.pt`` are plain state dicts of the averaged weights, where there is an average.
    ``model.pt`` has the best key metric of the validator; without any validation it is the final one. ``last.pt``
    holds under ``model`` the same averaged weights, and beside them network, optimizer, schedule, scaler, epoch,
    iteration, best metric and the seed, from which all random state of an epoch is derived. All files are written
    completely or not at all. ``last.pt`` is written before a validation, which may fail, and again after it.

    In a training of several processes the first one writes and all read, so ``output_dir`` is a folder that all
    machines share. Processes that torchrun starts anew after a failure (``--max-restarts``) resume from what this very
    run wrote, whatever ``resume`` says.

    Attach it before handlers that read the trainer's state at the start: first in ``train::handlers``.

    Args:
        output_dir: folder of the files.
        validator: the evaluator whose key metric chooses ``model.pt``.
        resume: continue from ``last.pt``, if there is one.
        settings: what must not change in a resumed run, by name (fold, seed, batch size, ...); plain values.
        every_epochs: epochs between two writings of ``last.pt``.
        every_s: and at least this many seconds.

    Raises:
        CheckpointError: from the run: a full disk (the files of before survive), or a ``last.pt`` to resume that is
            another network's, was made with other settings, or is no checkpoint.
    """

    def __init__(
        self,
        output_dir: str | Path,
        validator: Any = None,
        resume: bool = False,
        settings: Mapping[str, Any] | None = None,
        every_epochs: int = 1,
        every_s: float = 20.0,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.validator, self.resume = validator, resume
        self.settings = {k: _plain_value(v) for k, v in (settings or {}).items()}
        self.every_epochs, self.every_s = every_epochs, every_s
        self._saved_at = float("-inf")
        self._ready = False

    def attach(self, engine: Any) -> None:
        """Follow a :class:`~decathlete.training.Trainer`, whose network, optimizer, schedule and average are saved."""
        self.trainer = engine
        engine.state.settings = self.settings  # for handlers that describe the training
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._save_if_due)  # before the validation, attached later

    def _start(self, engine: Any) -> None:
        try:
            self.output_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(self.output_dir, "output_dir cannot be written to",
                                  error.strerror or str(error), "Choose another --output_dir") from error  # fmt: skip
        resume = self.resume or self._is_restarted()
        if resume and (self.output_dir / LAST).is_file():
            self._restore(engine, self.output_dir / LAST)
        elif resume:
            logger.info("resume: there is no %s yet, so the training starts from the beginning", self.output_dir / LAST)
        elif (self.output_dir / LAST).is_file() and engine.state.rank == 0:
            logger.warning("%s holds an earlier run, which this one replaces (resume is off)", self.output_dir)
        if idist.get_world_size() > 1:
            self._check_alike(engine)
        if not self._ready:  # attached only now, so that these come after all other handlers of the epoch
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._save_after_validation)
            engine.add_event_handler(Events.COMPLETED, self._save_final)
            if self.validator is not None:
                self.validator.add_event_handler(Events.EPOCH_COMPLETED, self._save_best)
            self._ready = True

    def _is_restarted(self) -> bool:
        """Whether torchrun started this process anew, and ``last.pt`` is of the same start of torchrun."""
        if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0" or not (self.output_dir / LAST).is_file():
            return False
        return read_checkpoint(self.output_dir / LAST).get("torchrun") == _torchrun()

    def _check_alike(self, engine: Any) -> None:
        """Refuse processes that start from different iterations, as where machines have an output_dir each."""
        starts = idist.all_gather(float(engine.state.iteration))
        if len(set(starts)) > 1:  # type: ignore[arg-type]
            found = ", ".join(f"{int(i)} (process {n})" for n, i in enumerate(starts))  # type: ignore[arg-type]
            raise CheckpointError(self.output_dir / LAST, "processes resume from different iterations", found,
                                  "Choose an --output_dir that all machines share")  # fmt: skip

    def _restore(self, engine: Any, path: Path) -> None:
        content = read_checkpoint(path)
        missing = [k for k in ("network", "optimizer", "epoch", "iteration", "best", "settings") if k not in content]
        if missing:
            raise CheckpointError(path, "a training cannot resume from this file", f"no {', '.join(missing)}",
                                  f"Use the {LAST} of a run; {BEST} only holds weights")  # fmt: skip
        saved = content["settings"]
        changed = [f"{k} was {saved[k]} and is {v}" for k, v in self.settings.items() if k in saved and saved[k] != v]
        if changed:
            raise CheckpointError(path, "settings differ from those of the run to resume", "; ".join(changed),
                                  "Pass the old settings, or another --output_dir")  # fmt: skip
        match_weights(unwrap(self.trainer.network), content["network"], f"{path}, network")
        if self.trainer.average is not None:
            match_weights(self.trainer.average.network, content["model"], f"{path}, model")
        self.trainer.optimizer.load_state_dict(content["optimizer"])
        if self.trainer.schedule is not None and content.get("schedule"):
            self.trainer.schedule.load_state_dict(content["schedule"])
        if getattr(engine, "scaler", None) is not None and content.get("scaler"):
            engine.scaler.load_state_dict(content["scaler"])  # type: ignore[attr-defined]
        engine.state.epoch, engine.state.iteration = content["epoch"], content["iteration"]
        if "seed" in content and hasattr(engine, "seed"):
            engine.seed = content["seed"]
        if self.validator is not None:
            state = self.validator.state
            state.best_metric, state.best_metric_epoch = content["best"]["metric"], content["best"]["epoch"]
        engine.state.awaits_validation = content.get("awaits_validation", False)
        if engine.state.max_epochs is not None and engine.state.epoch >= engine.state.max_epochs:
            logger.info("resume: %s is at epoch %d of %d, nothing is left to train", path, engine.state.epoch,
                        engine.state.max_epochs)  # fmt: skip
            return
        logger.info(
            "resume: continuing after epoch %d (iteration %d) of %s", engine.state.epoch, engine.state.iteration, path
        )

    def _weights(self) -> dict[str, torch.Tensor]:
        return plain_weights(self.trainer.average.network if self.trainer.average is not None else self.trainer.network)

    def _save_if_due(self, engine: Any) -> None:
        state = engine.state
        due = state.epoch % self.every_epochs == 0 and time.monotonic() - self._saved_at >= self.every_s
        if due or state.epoch >= (state.max_epochs or 0):
            self._save_last(engine)

    def _save_after_validation(self, engine: Any) -> None:
        if self._validated(engine) or engine.should_terminate:  # by an early stop
            self._save_last(engine)

    def _validated(self, engine: Any) -> bool:
        return self.validator is not None and self.validator.state.epoch == engine.state.epoch

    def _save_last(self, engine: Any) -> None:
        state = engine.state
        if state.rank != 0:
            return
        best = self.validator.state if self.validator is not None else None
        scaler = getattr(engine, "scaler", None)
        save_checkpoint(
            {
                "model": self._weights(),
                "network": plain_weights(self.trainer.network),
                "optimizer": self.trainer.optimizer.state_dict(),
                "schedule": self.trainer.schedule.state_dict() if self.trainer.schedule is not None else {},
                "scaler": scaler.state_dict() if scaler is not None else {},
                "epoch": state.epoch,
                "iteration": state.iteration,
                "seed": getattr(engine, "seed", 0),
                "best": {
                    "metric": float(best.best_metric) if best else -1.0,
                    "epoch": best.best_metric_epoch if best else -1,
                },
                "awaits_validation": not self._validated(engine),
                "settings": self.settings,
                "torchrun": _torchrun(),
            },
            self.output_dir / LAST,
        )
        self._saved_at = time.monotonic()

    def _save_best(self, evaluator: Any) -> None:
        if evaluator.state.rank == 0 and evaluator.state.best_metric_epoch == evaluator.state.epoch:
            save_checkpoint(self._weights(), self.output_dir / BEST)

    def _save_final(self, engine: Any) -> None:
        if engine.state.rank != 0:
            return
        save_checkpoint(self._weights(), self.output_dir / FINAL)
        logger.info("%s holds the weights: %s the final ones, %s the best validated", self.output_dir, FINAL, BEST)
        if self.validator is None or self.validator.state.best_metric_epoch == -1:
            save_checkpoint(self._weights(), self.output_dir / BEST)
            logger.info("there was no validation: %s holds the final weights", self.output_dir / BEST)


def _torchrun() -> str:
    """What distinguishes this start of torchrun from others; empty in a process by itself."""
    return os.environ.get("TORCHELASTIC_RUN_ID", "")


def _plain_value(value: Any) -> Any:
    """A value that a checkpoint can hold without a pickle."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain_value(v) for v in value]
    return str(value)
