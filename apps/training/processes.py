"""Training in several processes that torchrun starts, on one machine or many."""

from __future__ import annotations

import logging
import os

import torch
from torch import distributed as dist

from decathlete.errors import DeviceError


def join_processes() -> torch.device:
    """Join the group that torchrun describes in the environment; the device of this process.

    NCCL where every process has a GPU of its own, else gloo on the CPU. A second call changes nothing.

    Raises:
        DeviceError: not started by torchrun, or more processes than GPUs on this machine.
    """
    if "LOCAL_RANK" not in os.environ:
        raise DeviceError("multi_gpu_train", "several processes are started by torchrun", "no LOCAL_RANK",
                          "torchrun --nproc_per_node 2 -m monai.bundle run training --config_file ...")  # fmt: skip
    local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", local + 1))
    if gpus and local_size > gpus:
        raise DeviceError("torchrun", "each process needs a GPU of its own", f"{local_size} processes, {gpus} GPUs",
                          f"Give --nproc_per_node {gpus}")  # fmt: skip
    device = torch.device("cuda", local) if gpus else torch.device("cpu")
    if gpus:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if gpus else "gloo", init_method="env://")
    if dist.get_rank() != 0:
        logging.disable(logging.INFO)  # one process tells what all of them do
    return device


def leave_processes() -> None:
    """Leave the group, if this process is in one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def distributed(network: torch.nn.Module, device: torch.device | str) -> torch.nn.parallel.DistributedDataParallel:
    """The network under DistributedDataParallel on ``device``; on GPUs batch norm sees the batches of all processes."""
    device = torch.device(device)
    if device.type == "cuda":
        network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)
    ids = [device] if device.type == "cuda" else None
    return torch.nn.parallel.DistributedDataParallel(network.to(device), device_ids=ids)
