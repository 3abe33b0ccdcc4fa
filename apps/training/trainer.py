"""The training engine of all bundles."""

from __future__ import annotations

import contextlib
import logging
import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Events
from monai.data import MetaTensor
from monai.data.utils import set_rnd
from monai.engines import SupervisedTrainer, default_prepare_batch
from monai.engines.utils import IterationEvents
from monai.engines.workflow import Workflow
from monai.inferers import Inferer, SimpleInferer
from monai.utils import CommonKeys

from decathlete.compat import drop_iterator
from decathlete.distributed.faults import FaultElsewhereError
from decathlete.distributed.processes import average_statistics, in_group
from decathlete.errors import ConfigError, TrainingError
from decathlete.training.average import WeightAverage
from decathlete.training.losses import over_processes
from decathlete.training.precision import amp_dtype, autocast, check_convolutions, describe_gpu
from decathlete.training.schedule import PolySchedule

logger = logging.getLogger(__name__)


class Trainer(SupervisedTrainer):
    """MONAI's SupervisedTrainer with bfloat16 on any device, clipped gradients and a stop at the first NaN.

    The forward pass runs under :func:`decathlete.training.autocast`, the loss in float32. At the start of every epoch
    all random state is set from ``(seed, epoch, rank)``, so that a run that is stopped and resumed at an epoch's
    border draws what the unbroken run draws. A network that returns a list (deep supervision) has all of it go into
    the loss; metrics see the finest, which is the first.

    On a GPU nothing waits for the result of an iteration: whether loss and gradients were finite is looked up after
    the next one was queued, and at the end of the epoch before anything is saved.

    In a training of several processes, a Dice over the batch is one over the batches of all of them
    (:func:`decathlete.training.losses.over_processes`), and gradients that are accumulated over iterations
    (``accumulation_steps``) are exchanged once a step.

    Args:
        seed: origin of all randomness while training.
        clip_norm: largest L2 norm of all gradients together; ``None`` leaves them as they are.
        channels_last: memory format of network and images; faster with batch norm on CPU and with tensor cores.
        schedule: sets the learning rate; without one the optimizer's stays.
        average: averaged copy of the weights, kept up to date.
        batch_transform: random augmentation of a whole batch: a callable that takes and returns
            ``{"image": (B, C, *spatial), "label": (B, 1, *spatial)}`` on the device, with the keys of the batch that
            its ``extra_keys`` names, if it has any.
        decollate: split each batch into cases for postprocessing and metrics; by default only where there are such.
            Either way ``state.output`` is a list, as MONAI's handlers expect: of cases, or of one whole batch.
        deterministic: on a GPU, the same weights from the same seed; False lets cuDNN try which of its convolutions are
            fastest for the patch.
        kwargs: as MONAI's SupervisedTrainer; ``amp=True`` means the fastest type that the device computes in.

    Raises:
        ConfigError: ``max_epochs`` is no positive whole number; a fused optimizer where float16 needs a gradient
            scaler; worker processes that would read cases from a GPU.
        DeviceError: from ``run``, where the GPU computes wrong convolutions.
        TrainingError: from ``run``, where a loss or a gradient is not finite; names the batch's cases.
    """

    def __init__(
        self,
        device: str | torch.device,
        max_epochs: int,
        train_data_loader: Any,
        network: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_function: Callable,
        *,
        seed: int = 0,
        clip_norm: float | None = 12.0,  # nnU-Net's default
        channels_last: bool = False,
        schedule: PolySchedule | None = None,
        average: WeightAverage | None = None,
        batch_transform: Callable[[dict], Mapping] | None = None,
        inferer: Inferer | None = None,
        prepare_batch: Callable = default_prepare_batch,
        amp: bool = False,
        decollate: bool | None = None,
        deterministic: bool = True,
        **kwargs: Any,
    ) -> None:
        if isinstance(max_epochs, bool) or not isinstance(max_epochs, int) or max_epochs < 1:
            raise ConfigError("max_epochs", "expected a whole number of 1 or more", repr(max_epochs))
        device = torch.device(device)
        self.seed, self.clip_norm, self.channels_last = seed, clip_norm, channels_last
        self.deterministic, self._format = deterministic, amp_dtype(device, amp)
        self.batch_transform, self.schedule, self.average = batch_transform, schedule, average
        self._prepare = prepare_batch
        self.loss = loss_function  # as given
        self._loss = over_processes(loss_function) if in_group() else loss_function
        self._names: list[str] = []
        kept = getattr(getattr(train_data_loader, "dataset", None), "device", None)
        if kept is not None and torch.device(kept).type != "cpu" and getattr(train_data_loader, "num_workers", 0):
            raise ConfigError("train::dataset::device", "worker processes cannot read cases that are kept on a GPU",
                              f"num_workers {train_data_loader.num_workers}", "Set num_workers to 0")  # fmt: skip
        needs_scaler = amp_dtype(device, amp) == torch.float16
        if needs_scaler and getattr(optimizer, "_step_supports_amp_scaling", False):
            # it divides by the scale within its step, after the gradients were clipped
            raise ConfigError("optimizer", "a fused optimizer cannot be combined with clipping in float16",
                              f"{type(optimizer).__name__}, fused", "Set fused to false, or amp to false")  # fmt: skip
        if decollate is None:
            decollate = kwargs.get("postprocessing") is not None or kwargs.get("key_train_metric") is not None
        # `amp` of MONAI's engine means torch.autocast("cuda") and a GradScaler; only float16 needs the scaler
        kwargs.setdefault("optim_set_to_none", True)
        kwargs.setdefault("non_blocking", True)  # batches in pinned memory travel while the card computes
        self._finite = _Finite(self)
        kwargs["train_handlers"] = [self._finite, *(kwargs.get("train_handlers") or [])]  # ahead of what saves weights
        super().__init__(
            device,
            max_epochs,
            train_data_loader,
            network,
            optimizer,
            self._loss_in_float32,
            prepare_batch=self._prepare_batch,
            amp=needs_scaler,
            amp_kwargs={"dtype": torch.float16},
            inferer=_Autocast(inferer or SimpleInferer(), device, amp),
            decollate=decollate,
            **kwargs,
        )
        if channels_last:
            for ndim, layout in _CHANNELS_LAST.items():
                for p in network.parameters():
                    if p.ndim == ndim:
                        p.data = p.data.contiguous(memory_format=layout)
        optimizer.register_step_pre_hook(self._clip_gradients)
        self.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        self.add_event_handler(IterationEvents.LOSS_COMPLETED, self._check_loss)
        if in_group():  # before the average takes them in
            self.add_event_handler(Events.ITERATION_COMPLETED, lambda e: average_statistics(self.network))
        if not decollate:
            self.add_event_handler(IterationEvents.MODEL_COMPLETED, self._wrap_output)
        for part in (schedule, average):  # after the handlers, which may load weights at the start
            if part is not None:
                part.attach(self)

    def run(self) -> None:  # type: ignore[override]
        """Train until ``state.max_epochs``; a second call continues from there."""
        self.scaler: Any = torch.amp.GradScaler(self.state.device.type) if self.amp else None
        if self.state.device.type == "cuda":
            if self.state.rank == 0:
                check_convolutions(self.state.device, self._format)
                logger.info("%s", describe_gpu(self.state.device, self._format, self.deterministic))
            torch.backends.cudnn.deterministic = self.deterministic
            torch.backends.cudnn.benchmark = not self.deterministic
        Workflow.run(self)

    def _iteration(self, engine: Any, batchdata: Any) -> dict:
        with self._without_exchange():
            output = super()._iteration(engine, batchdata)
        self._finite.queue()
        return output

    def _without_exchange(self) -> Any:
        """Context in which processes keep their gradients to themselves, unless this iteration ends in a step."""
        steps, length, done = self.accumulation_steps, self.state.epoch_length, self.state.iteration
        if steps == 1 or not hasattr(self.network, "no_sync"):
            return contextlib.nullcontext()
        number = (done - 1) % length + 1 if length else done  # MONAI's count, by which it steps
        return contextlib.nullcontext() if number % steps == 0 or number == length else self.network.no_sync()

    def _start_epoch(self, engine: Any) -> None:
        seed_everything(self.seed, self.state.epoch, self.state.rank)
        own = int(np.random.SeedSequence([self.seed, self.state.epoch, self.state.rank, 1]).generate_state(1)[0])
        set_rnd(getattr(self.data_loader, "dataset", None), own)
        set_rnd(self.batch_transform, own + 1)
        # a new iterator each epoch: one that lived on would carry its sampler's state over the border
        drop_iterator(self)

    def _prepare_batch(self, batchdata: Any, device: Any, non_blocking: bool = False, **kwargs: Any) -> tuple:
        self._names = case_names(batchdata)
        if torch.device(device).type == "cuda" and isinstance(batchdata, Mapping):
            # a copy from other memory waits for all that the GPU has yet to do
            batchdata = {key: _pinned(value) for key, value in batchdata.items()}
        image, label, *rest = self._prepare(batchdata, device, non_blocking, **kwargs)
        batch = {CommonKeys.IMAGE: _plain(image), CommonKeys.LABEL: _plain(label)}
        if self.batch_transform is not None:
            for key in getattr(self.batch_transform, "extra_keys", ()):
                if key in batchdata:
                    batch[key] = _plain(batchdata[key]).to(device, non_blocking=non_blocking)
            batch = dict(self.batch_transform(batch))
        image = batch[CommonKeys.IMAGE]
        if self.channels_last and image.ndim in _CHANNELS_LAST:
            image = image.contiguous(memory_format=_CHANNELS_LAST[image.ndim])
        return (image, batch[CommonKeys.LABEL], *rest)

    def _loss_in_float32(self, pred: Any, label: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self.state.device.type, enabled=False):
            pred = [p.float() for p in pred] if isinstance(pred, (list, tuple)) else pred.float()
            return self._loss(pred, label)

    def _check_loss(self, engine: Any) -> None:
        output = self.state.output
        self._finite.see("loss", output[CommonKeys.LOSS], self._names, self._parts(output))
        if isinstance(output[CommonKeys.PRED], (list, tuple)):
            output[CommonKeys.PRED] = output[CommonKeys.PRED][0]

    def _clip_gradients(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        gradients = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.clip_grad_norm_(gradients, self.clip_norm if self.clip_norm else float("inf"))
        self._finite.see("norm of the gradients", norm, self._names)

    def _wrap_output(self, engine: Any) -> None:
        self.state.output = [self.state.output]

    @staticmethod
    def _parts(output: Mapping) -> list[torch.Tensor]:
        """What a loss over several processes was made of in this one; empty where it is the only one."""
        pred = output[CommonKeys.PRED]
        return [*(pred if isinstance(pred, (list, tuple)) else [pred]), output[CommonKeys.LABEL]] if in_group() else []


class _Finite:
    """Stops a training at a loss or gradient that is not finite, without making a GPU wait.

    On a CPU a value is looked at as it comes. On a GPU the values of an iteration travel to pinned memory while the
    next one is computed, and are looked at then, or at the end of the epoch.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self._seen: list[tuple[str, torch.Tensor, torch.Tensor, list[str], int]] = []  # of this iteration
        self._sent: tuple[Any, torch.Tensor, list] | None = None  # of the one before

    def attach(self, engine: Any) -> None:
        """Follow the trainer."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, lambda e: self._look(self._sent))

    def see(self, what: str, value: torch.Tensor, names: list[str], parts: Sequence[torch.Tensor] = ()) -> None:
        """Take in a number; where all ``parts`` of it are finite, another process is the cause."""
        value = value.detach().float()
        own = torch.stack([torch.isfinite(part).all() for part in parts]).all() if parts else torch.zeros_like(value)
        if value.device.type == "cpu":
            self._judge(what, float(value), bool(own), names, self.trainer.state.iteration)
        else:
            self._seen.append((what, value, own.float(), names, self.trainer.state.iteration))

    def queue(self) -> None:
        """Send off what this iteration gave, and look at what the one before did."""
        before, self._sent = self._sent, None
        if self._seen:
            numbers = torch.stack([number for seen in self._seen for number in seen[1:3]])
            numbers = numbers.to("cpu", non_blocking=True)  # pinned
            arrived = torch.cuda.Event()
            arrived.record()
            self._sent, self._seen = (arrived, numbers, self._seen), []
        self._look(before)

    def _look(self, sent: tuple[Any, torch.Tensor, list] | None) -> None:
        if sent is None:
            return
        arrived, numbers, seen = sent
        arrived.synchronize()
        for (what, _, _, names, iteration), (value, own) in zip(seen, numbers.view(-1, 2).tolist(), strict=True):
            self._judge(what, value, bool(own), names, iteration)

    def _judge(self, what: str, value: float, elsewhere: bool, names: list[str], iteration: int) -> None:
        if math.isfinite(value):
            return
        state = self.trainer.state
        if what != "loss":
            elsewhere = state.rank != 0
            if in_group():  # the mean over all processes: each of them is here, and any may be the cause
                names = [f"{', '.join(own)} (process {n})" for n, own in enumerate(_gather(names))]
        raise (FaultElsewhereError if elsewhere else TrainingError)(
            f"iteration {iteration} (epoch {state.epoch}), cases {', '.join(names) or 'unknown (no case ids)'}",
            f"the {what} is not a finite number",
            str(value),
            "Look at these cases with 'decathlete check', lower the learning rate, or set amp to false",
        )


class _Autocast(Inferer):
    """An inferer under autocast."""

    def __init__(self, inferer: Inferer, device: torch.device, amp: bool) -> None:
        self.inferer, self.device, self.amp = inferer, device, amp

    def __call__(self, inputs: torch.Tensor, network: Callable, *args: Any, **kwargs: Any) -> Any:
        with autocast(self.device, self.amp):
            return self.inferer(inputs, network, *args, **kwargs)


_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def seed_everything(seed: int, epoch: int = 0, rank: int = 0) -> None:
    """Set the random state of Python, NumPy and torch from three numbers; each triple gives another state."""
    python, numpy_, torch_ = np.random.SeedSequence([seed, epoch, rank]).generate_state(3)
    random.seed(int(python))
    np.random.seed(int(numpy_))
    torch.manual_seed(int(torch_))  # CUDA's generators too


def case_names(batch: Any) -> list[str]:
    """What a batch calls its cases: ``case_id``, else the image files' names, else nothing."""
    if not isinstance(batch, Mapping):
        return [name for part in batch for name in case_names(part)] if isinstance(batch, (list, tuple)) else []
    image = batch.get(CommonKeys.IMAGE)
    names = batch.get("case_id")
    if names is None and isinstance(image, MetaTensor):
        names = image.meta.get("filename_or_obj")
    if names is None:
        return []
    return [str(n) for n in names] if isinstance(names, (list, tuple)) else [str(names)]


def _gather(names: list[str]) -> list[list[str]]:
    """The case names of every process, by rank."""
    texts = idist.all_gather("\n".join(names) or " ")
    return [text.strip().split("\n") for text in texts]  # type: ignore[union-attr]


def _pinned(value: Any) -> Any:
    return value.pin_memory() if isinstance(value, torch.Tensor) and value.device.type == "cpu" else value


def _plain(tensor: Any) -> Any:
    """Without MONAI's metadata, which every torch function of the network would drag along."""
    return tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor
