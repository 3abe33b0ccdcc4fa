"""Training in several processes that torchrun starts, on one machine or many."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence, Sized
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from decathlete.distributed.faults import process_store, watch_processes
from decathlete.errors import ConfigError, DeviceError

logger = logging.getLogger(__name__)

BATCH_NORMS = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d, torch.nn.SyncBatchNorm)
THREADS_TURN_S = 0.5


def join_processes(timeout_minutes: float = 30) -> torch.device:
    """Join the group that torchrun describes in the environment; the device of this process.

    NCCL where every process has a GPU of its own, else gloo on the CPU. A second call changes nothing. From now on a
    failure of any process is reported once, with the process's name, and ends this one too.

    Args:
        timeout_minutes: how long a process waits for the others, such as for one that validates larger scans.

    Raises:
        DeviceError: not started by torchrun, or more processes than GPUs on this machine.
        ConfigError: a timeout that is not a number above 0.
    """
    if "LOCAL_RANK" not in os.environ:
        raise DeviceError("multi_gpu_train", "several processes must be started by torchrun", "LOCAL_RANK is not set",
                          "Run 'torchrun --nproc_per_node 2 -m monai.bundle run training ...'")  # fmt: skip
    if not timeout_minutes > 0:
        raise ConfigError("join_processes, timeout_minutes", "expected a number above 0", repr(timeout_minutes))
    local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", local + 1))
    alone = gpus == 1 and _shows_one_gpu()  # the launcher gave each process a GPU of its own
    if gpus and local_size > gpus and not alone:
        raise DeviceError("torchrun", "more processes than GPUs", f"{local_size} processes, {gpus} GPUs",
                          f"Pass --nproc_per_node {gpus}")  # fmt: skip
    device = torch.device("cuda", 0 if alone else local) if gpus else torch.device("cpu")
    if gpus:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        limit = timedelta(minutes=timeout_minutes)
        store, rank, size = process_store(), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        dist.init_process_group("nccl" if gpus else "gloo", store=store, rank=rank, world_size=size, timeout=limit,
                                device_id=device if gpus else None)  # fmt: skip
        watch_processes()
    if dist.get_rank() != 0:
        logging.disable(logging.INFO)  # one process logs what all of them do
    return device


def _shows_one_gpu() -> bool:
    """Whether the environment shows this process one GPU, as Slurm's ``--gpus-per-task=1`` does."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES", "").strip(" ,")
    return bool(shown) and "," not in shown


def leave_processes() -> None:
    """Leave the process group, if this process is in one."""
    if not dist.is_initialized():
        return
    gloo = dist.get_backend() == "gloo"
    dist.destroy_process_group()
    if gloo:
        # The group's threads live on: DistributedDataParallel holds it. A thread that has yet to let go of its last
        # tensor when the interpreter ends, since it had no turn before, aborts the process.
        time.sleep(THREADS_TURN_S)


def in_group() -> bool:
    """Whether this process trains together with others."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def distributed(network: torch.nn.Module, device: torch.device | str) -> torch.nn.parallel.DistributedDataParallel:
    """The network under DistributedDataParallel on ``device``.

    On GPUs batch norm sees the batches of all processes. PyTorch's synchronized batch norm takes no CPU tensors: there
    each process normalizes by its own batch, a line in the log says so, and the trainer keeps the running statistics,
    which prediction uses, at their mean over all processes.
    """
    device = torch.device(device)
    norms = [m for m in network.modules() if isinstance(m, BATCH_NORMS)]
    if device.type == "cuda":
        network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)
    elif norms and in_group() and dist.get_rank() == 0:
        logger.warning("batch norm on the CPU sees the batch of each of the %d processes by itself: keep batch_size, "
                       "which is each process's, or train in one process", dist.get_world_size())  # fmt: skip
    wrapped = torch.nn.parallel.DistributedDataParallel(
        network.to(device), device_ids=[device] if device.type == "cuda" else None
    )
    if norms:
        # else the first process's go to all others before each forward pass; synchronized ones are alike anyway
        wrapped.broadcast_buffers = False
    return wrapped


class ValidationSampler(torch.utils.data.Sampler[int]):
    """Cases that this process validates: each case in one of the processes, so that it counts once in their metrics.

    Where cases are fewer than processes, every process validates all of them: each counts as often as any other, and
    the mean is the same. MONAI's metrics cannot be gathered from a process that saw no case.

    Args:
        dataset: the cases; only their number matters.
    """

    def __init__(self, dataset: Sized) -> None:
        rank, size = (dist.get_rank(), dist.get_world_size()) if in_group() else (0, 1)
        number = len(dataset)
        self.indices = range(rank, number, size) if number >= size else range(number)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


def average_statistics(network: torch.nn.Module) -> None:
    """Replace a network's running statistics by their mean over the processes, where these have different ones."""
    buffers = [b for b in network.buffers() if b.is_floating_point() and not b.is_cuda]  # synchronized there
    if not buffers or getattr(network, "broadcast_buffers", True):
        return
    together = torch.cat([b.detach().flatten() for b in buffers])
    dist.all_reduce(together)
    parts = (together / dist.get_world_size()).split([b.numel() for b in buffers])
    with torch.no_grad():
        for buffer, part in zip(buffers, parts, strict=True):
            buffer.copy_(part.reshape(buffer.shape))


def sums_over_processes(sums: Sequence[Tensor]) -> list[Tensor]:
    """Each tensor summed over all processes, where these train together; else the tensors themselves.

    Gradients flow: after DistributedDataParallel's mean of the gradients, a loss of such sums has the gradients that
    one process would have with the complete batch. Without a gradient, as in validation, nothing is exchanged, since
    processes may then see different numbers of batches.
    """
    if not (in_group() and torch.is_grad_enabled() and any(s.requires_grad for s in sums)):
        return list(sums)
    flat = _Sum.apply(torch.cat([s.flatten() for s in sums]))
    parts = flat.split([s.numel() for s in sums])
    return [part.reshape(s.shape) for part, s in zip(parts, sums, strict=True)]


class _Sum(torch.autograd.Function):
    """Sum over processes. Each one's result depends on every one's input, so gradients are summed as well."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:  # type: ignore[override]
        tensor = tensor.clone()
        dist.all_reduce(tensor)
        return tensor

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient
