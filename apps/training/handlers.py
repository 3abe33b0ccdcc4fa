"""Validation, early stop, progress and TensorBoard of a training."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import monai.handlers
import torch
from ignite.engine import Events
from monai.data import MetaTensor
from monai.engines.utils import IterationEvents
from monai.utils import CommonKeys
from torch.utils.data.distributed import DistributedSampler
from tqdm import tqdm

from decathlete.bundle.checkpoints import load_weights, unwrap
from decathlete.errors import ConfigError, DataError
from decathlete.machine import peak_memory_gib

logger = logging.getLogger(__name__)

_BAR_S = 1.0  # between two values of the loss beside the bar


class ValidationHandler(monai.handlers.ValidationHandler):
    """MONAI's ValidationHandler, which validates after the last epoch too, whatever the interval is.

    A warning in the log names the cases that are trained on and validated on. Where an inferer leaves its output off
    the device, which was too small for it, postprocessing runs there; the label maps come back for the metrics, which
    cannot join scores from two devices. A training that was interrupted during a validation resumes with it.
    """

    def attach(self, engine: Any) -> None:
        """Follow a trainer."""
        engine.add_event_handler(Events.STARTED, self._check_number)
        engine.add_event_handler(Events.STARTED, self._tell_shared_cases)
        self.validator.add_event_handler(IterationEvents.FORWARD_COMPLETED, _label_beside_prediction)
        self.validator.add_event_handler(IterationEvents.MODEL_COMPLETED, _maps_on_the_device)
        if not self.epoch_level:
            super().attach(engine)
            return
        engine.add_event_handler(Events.STARTED, self._validate_if_missing)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._validate_if_due)
        if self.exec_at_start:
            engine.add_event_handler(Events.STARTED, self)

    def _validate_if_due(self, engine: Any) -> None:
        if engine.state.epoch % self.interval == 0 or engine.state.epoch >= engine.state.max_epochs:
            self(engine)

    def _validate_if_missing(self, engine: Any) -> None:
        if getattr(engine.state, "awaits_validation", False):  # of a checkpoint that was written before a validation
            self._validate_if_due(engine)
            engine.state.awaits_validation = False

    def _check_number(self, engine: Any) -> None:
        """Refuse a process without a case, which would have no metric to gather."""
        loader, processes = self.validator.data_loader, idist.get_world_size()
        cases = len(getattr(loader, "dataset", ()))
        if 0 < cases < processes and isinstance(getattr(loader, "sampler", None), DistributedSampler):
            raise DataError("validate::sampler", "fewer validation cases than processes", f"{cases} and {processes}",
                            "Use decathlete.training.ValidationSampler")  # fmt: skip

    def _tell_shared_cases(self, engine: Any) -> None:
        trained, validated = _case_ids(engine), _case_ids(self.validator)
        if (shared := trained & validated) and getattr(engine.state, "rank", 0) == 0:
            logger.warning(
                "%d of %d validation cases are also training cases: their scores say nothing about new scans",
                len(shared), len(validated),
            )  # fmt: skip


class StrictCheckpointLoader:
    """Fills an engine's network with the weights of a file as the run starts, every key matched.

    MONAI's CheckpointLoader does not name the keys in which another network's weights differ. MONAI's federated client
    leaves this loader out as it does MONAI's own, by the word in its name: its weights come from the server.

    Args:
        network: the network of the engine.
        path: a plain state dict, or one under ``model``.

    Raises:
        CheckpointError: from the run: no such file, no weights, or another network's.
    """

    def __init__(self, network: torch.nn.Module, path: str | Path) -> None:
        self.network, self.path = network, path

    def attach(self, engine: Any) -> None:
        """Follow an engine."""
        engine.add_event_handler(Events.STARTED, lambda e: load_weights(unwrap(self.network), self.path))


LoadWeights = StrictCheckpointLoader  # its name in bundles that were made before


class EarlyStop:
    """Ends a training whose key metric has not risen for some epochs; a resumed run continues to count.

    Args:
        validator: the evaluator with the key metric.
        patience: epochs since the best one; ``None`` never stops.
    """

    def __init__(self, validator: Any, patience: int | None = None) -> None:
        self.validator, self.patience = validator, patience

    def attach(self, engine: Any) -> None:
        """Follow a trainer; to be attached after the ValidationHandler and the handler that restores a checkpoint."""
        if self.patience is not None:
            engine.add_event_handler(Events.STARTED, self._stop_if_stale)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._stop_if_stale)

    def _stop_if_stale(self, engine: Any) -> None:
        best = self.validator.state.best_metric_epoch
        if best > 0 and engine.state.epoch - best >= (self.patience or 0):
            logger.info("early stop: no better validation since epoch %d", best)
            engine.terminate()


class Progress:
    """A bar with loss, validation metric and time left on stderr; lines now and then where stderr is no terminal.

    Each validation gets a line of its own.

    Args:
        validator: the evaluator whose key metric is shown.
        every_s: seconds between two lines.
    """

    def __init__(self, validator: Any = None, every_s: float = 30.0) -> None:
        self.validator, self.every_s = validator, every_s
        self._bar: tqdm | None = None
        self._line_at = self._started = 0.0
        self._first = 0

    def attach(self, engine: Any) -> None:
        """Follow a trainer; to be attached after the handler that restores a checkpoint."""
        if getattr(engine.state, "rank", 0) != 0:
            return
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._show)
        if self.validator is not None:
            self.validator.add_event_handler(Events.COMPLETED, self._tell_validation, engine)
        for event in (Events.COMPLETED, Events.EXCEPTION_RAISED):
            engine.add_event_handler(event, self._close)

    def _start(self, engine: Any) -> None:
        self._started = self._line_at = time.monotonic()
        self._first = engine.state.iteration
        if sys.stderr.isatty():
            self._bar = tqdm(total=_total(engine), initial=self._first, unit="it", desc="training", dynamic_ncols=True)

    def _show(self, engine: Any) -> None:
        total, now = _total(engine), time.monotonic()
        if self._bar is not None:
            if total != self._bar.total:
                self._bar.total = total
            if now - self._line_at >= _BAR_S:  # a GPU is waited for to know the loss
                self._line_at = now
                self._bar.set_postfix(self._facts(engine), refresh=False)
            self._bar.update(engine.state.iteration - self._bar.n)
            return
        last = total is not None and engine.state.iteration >= total
        if now - self._line_at < self.every_s and not last and engine.state.iteration != self._first + 1:
            return
        self._line_at = now
        left = ""
        done = engine.state.iteration - self._first
        if total is not None and done > 1:
            left = f", {tqdm.format_interval((now - self._started) / done * (total - engine.state.iteration))} left"
        text = ", ".join(f"{k} {v}" for k, v in self._facts(engine).items())
        print(
            f"training: iteration {engine.state.iteration} of {total or '?'}, {text}{left}", file=sys.stderr, flush=True
        )

    def _tell_validation(self, evaluator: Any, engine: Any) -> None:
        state = evaluator.state
        if state.key_metric_name not in state.metrics:
            return
        best = f"best {state.best_metric:.4f} after epoch {state.best_metric_epoch}"
        value = f"{state.key_metric_name} {state.metrics[state.key_metric_name]:.4f}"
        tqdm.write(f"validation: epoch {engine.state.epoch}, {value} ({best})", file=sys.stderr)

    def _facts(self, engine: Any) -> dict[str, str]:
        facts = {"epoch": str(engine.state.epoch), "loss": f"{loss_of(engine.state.output):.4f}"}
        if self.validator is not None:
            name = self.validator.state.key_metric_name
            if name in self.validator.state.metrics:
                facts[name] = f"{self.validator.state.metrics[name]:.4f}"
        return facts

    def _close(self, engine: Any, *error: BaseException) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        if error:
            raise error[0]


class TensorBoard:
    """Loss, learning rate, speed and memory while training, metrics and pictures of each validation, hyperparameters.

    Scalars: ``train/loss``, ``train/learning_rate``, ``train/samples_per_second`` (with loading, without validation),
    ``train/data_wait`` (fraction of that time in which the process waited for the loader; augmentation is no wait),
    ``train/gpu_idle`` (on a GPU, the fraction in which it had nothing to do from one iteration to the next),
    ``train/memory_gib`` (the GPU's peak, else that of this process); of each validation ``validation/<metric>`` and,
    where the metric keeps its details, ``validation/<metric>/<class>``. Pictures: ``validation/<case>``, the slice with
    most foreground, reference as outline and prediction as fill; of several axes side by side. At the end the
    hyperparameters (the checkpoint's settings, and those of network and optimizer) with the last metrics.

    Trainings whose folders lie in one folder, such as folds, stand side by side in a TensorBoard of that one.

    Args:
        log_dir: folder of the event file.
        validator: the evaluator.
        labels: class name to label value, background at 0.
        interval: iterations between two values of loss and learning rate.
        pictures: cases to draw at each validation.
        axes: axes across the drawn slices; [0, 1, 2] for sagittal, coronal and axial ones of a volume in RAS order.
    """

    def __init__(
        self,
        log_dir: str | Path,
        validator: Any = None,
        labels: Mapping[str, int] | None = None,
        interval: int = 10,
        pictures: int = 3,
        axes: Sequence[int] = (2,),
    ) -> None:
        self.log_dir, self.validator, self.interval, self.pictures = Path(log_dir), validator, interval, pictures
        self.axes = tuple(axes)
        if not self.axes or any(axis not in (0, 1, 2) for axis in self.axes):
            raise ConfigError("TensorBoard, axes", "expected one or more of the axes 0, 1 and 2", repr(list(axes)))
        self.labels = dict(labels or {})
        self._writer: Any = None
        self._trainer: Any = None
        self._drawn = 0
        self._samples, self._seconds, self._waited, self._batch_from = 0, 0.0, 0.0, 0.0
        self._borders: list[Any] = []  # events on a GPU: end of an iteration, begin of the next, its end, ...

    def attach(self, engine: Any) -> None:
        """Follow a trainer and its validator."""
        if getattr(engine.state, "rank", 0) != 0:
            return
        self._trainer = engine
        engine.add_event_handler(Events.STARTED, self._open)
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._start_clock)
        engine.add_event_handler(Events.GET_BATCH_COMPLETED, self._add_wait)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._write_progress)
        engine.add_event_handler(Events.COMPLETED, self._write_hyperparameters)
        engine.add_event_handler(Events.COMPLETED, self._close)
        if self.validator is not None:
            self.validator.add_event_handler(Events.EPOCH_STARTED, self._restart_pictures)
            self.validator.add_event_handler(IterationEvents.MODEL_COMPLETED, self._draw)
            self.validator.add_event_handler(Events.EPOCH_COMPLETED, self._write_metrics)

    def _open(self, engine: Any) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # what a killed run wrote after its last checkpoint is deleted: the resumed run writes it again
        self._writer = SummaryWriter(str(self.log_dir), purge_step=engine.state.iteration + 1, flush_secs=30)

    def _start_clock(self, engine: Any) -> None:
        self._batch_from = time.perf_counter()

    def _add_wait(self, engine: Any) -> None:
        self._waited += time.perf_counter() - self._batch_from
        self._mark_border(engine)

    def _mark_border(self, engine: Any) -> None:
        if torch.device(engine.state.device).type == "cuda":
            self._borders.append(torch.cuda.Event(enable_timing=True))
            self._borders[-1].record()

    def _gpu_idle_s(self) -> float:
        """Seconds in which the GPU had nothing to do, from each iteration to the next; the work itself is done."""
        gaps = zip(self._borders[1::2], self._borders[2::2], strict=False)
        return sum(end.elapsed_time(begin) for end, begin in gaps) / 1000

    def _write_progress(self, engine: Any) -> None:
        step = engine.state.iteration
        self._samples += _batch_size(engine.state.batch) * idist.get_world_size()
        self._seconds += time.perf_counter() - self._batch_from
        self._mark_border(engine)
        if step % self.interval and step != 1:
            return
        self._writer.add_scalar("train/loss", loss_of(engine.state.output), step)
        self._writer.add_scalar("train/learning_rate", engine.optimizer.param_groups[0]["lr"], step)
        self._writer.add_scalar("train/samples_per_second", self._samples / self._seconds, step)
        self._writer.add_scalar("train/data_wait", self._waited / self._seconds, step)
        if self._borders:
            self._writer.add_scalar("train/gpu_idle", self._gpu_idle_s() / self._seconds, step)
        self._writer.add_scalar("train/memory_gib", peak_memory_gib(engine.state.device), step)
        self._samples, self._seconds, self._waited = 0, 0.0, 0.0
        self._borders = []

    def _write_hyperparameters(self, engine: Any) -> None:
        from torch.utils.tensorboard.summary import hparams

        metrics = {} if self.validator is None else self.validator.state.metrics
        # scalars of that name are there, from the last validation
        final = {f"validation/{k}": float(v) for k, v in metrics.items() if isinstance(v, (int, float))}
        for part in hparams(hyperparameters(engine), final):
            self._writer.file_writer.add_summary(part)

    def _restart_pictures(self, evaluator: Any) -> None:
        self._drawn = 0

    def _draw(self, evaluator: Any) -> None:
        if self._writer is None or self._drawn >= self.pictures:
            return
        from decathlete.drawing.panels import overlay_planes
        from decathlete.training.trainer import case_names

        output = evaluator.state.output
        batch = evaluator.state.batch
        for number, case in enumerate(output if isinstance(output, list) else []):
            if self._drawn >= self.pictures or not isinstance(case.get(CommonKeys.LABEL), torch.Tensor):
                return
            maps = [_label_values(case[key]) for key in (CommonKeys.LABEL, CommonKeys.PRED)]
            image = case[CommonKeys.IMAGE]
            spacing = image.pixdim.tolist() if isinstance(image, MetaTensor) else None
            picture = overlay_planes(image, *maps, axes=self.axes, spacing=spacing)
            name = (case_names(batch[number]) or [str(self._drawn)])[0]
            self._writer.add_image(
                f"validation/{Path(name).name}", picture, self._trainer.state.iteration, dataformats="HWC"
            )
            self._drawn += 1

    def _write_metrics(self, evaluator: Any) -> None:
        if self._writer is None:
            return
        step = self._trainer.state.iteration
        for name, value in evaluator.state.metrics.items():
            if isinstance(value, (int, float)):
                self._writer.add_scalar(f"validation/{name}", value, step)
            for label, mean in class_means(evaluator, name, self.labels).items():
                self._writer.add_scalar(f"validation/{name}/{label}", mean, step)
        self._writer.flush()

    def _close(self, engine: Any) -> None:
        self._writer.close()
        self._writer = None


def _label_beside_prediction(evaluator: Any) -> None:
    output = evaluator.state.output
    pred, label = output[CommonKeys.PRED], output[CommonKeys.LABEL]
    if isinstance(pred, torch.Tensor) and isinstance(label, torch.Tensor):
        output[CommonKeys.LABEL] = label.to(pred.device)


def _maps_on_the_device(evaluator: Any) -> None:
    output = evaluator.state.output
    for case in output if isinstance(output, list) else [output]:
        for key in (CommonKeys.PRED, CommonKeys.LABEL):
            if isinstance(case.get(key), torch.Tensor):
                case[key] = case[key].to(evaluator.state.device)


def class_means(evaluator: Any, metric: str, labels: Mapping[str, int]) -> dict[str, float]:
    """Class name to the mean of a metric over the cases; empty where the metric does not keep a value per class.

    Args:
        evaluator: after a validation.
        metric: its name.
        labels: class name to label value, background at 0.
    """
    names = [name for name, value in sorted(labels.items(), key=lambda item: item[1]) if value]
    details = evaluator.state.metric_details.get(metric)
    if not isinstance(details, torch.Tensor) or details.ndim != 2 or details.shape[1] != len(names):
        return {}
    return dict(zip(names, details.float().nanmean(dim=0).tolist(), strict=True))


def hyperparameters(trainer: Any) -> dict[str, str | float | int | bool]:
    """What a training was made with, by name; plain values."""
    network, group = unwrap(trainer.network), trainer.optimizer.param_groups[0]
    found = {
        **getattr(trainer.state, "settings", {}),
        "network": type(network).__name__,
        "parameters": sum(p.numel() for p in network.parameters()),
        "loss": type(trainer.loss).__name__,
        "optimizer": type(trainer.optimizer).__name__,
        "lr": peaks[0] if (peaks := getattr(trainer.schedule, "peaks", None)) else group["lr"],
        "weight_decay": group.get("weight_decay", 0.0),
        "iterations": trainer.state.iteration,
        "processes": idist.get_world_size(),
        "device": torch.device(trainer.state.device).type,
    }
    return {k: v if isinstance(v, (str, float, int, bool)) else str(v) for k, v in found.items()}


def _batch_size(batch: Any) -> int:
    """Samples of a batch, a list of cases or a dictionary of tensors."""
    return len(batch) if isinstance(batch, list) else len(next(iter(batch.values())))


def loss_of(output: Any) -> float:
    """The loss in a trainer's output."""
    loss = output[0][CommonKeys.LOSS]
    return float(loss.detach() if isinstance(loss, torch.Tensor) else loss)


def _case_ids(engine: Any) -> set[str]:
    """``case_id`` of all cases of an engine's data, where its data set lists them."""
    cases = getattr(getattr(engine.data_loader, "dataset", None), "data", None)
    if not isinstance(cases, (list, tuple)):
        return set()
    return {str(case["case_id"]) for case in cases if isinstance(case, Mapping) and "case_id" in case}


def _label_values(label: torch.Tensor) -> torch.Tensor:
    """Label map (1, *spatial), from itself or from one channel a class."""
    return label.argmax(dim=0, keepdim=True) if label.shape[0] > 1 else label


def _total(engine: Any) -> int | None:
    """Iterations of the whole training, ``None`` while a time budget is being measured."""
    if hasattr(engine.state, "total_iterations"):
        return engine.state.total_iterations
    return engine.state.max_epochs * engine.state.epoch_length
