"""Two processes of a test, forked: what they need is imported already."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist

from tests.inference.conftest import bundle, make_bundle  # noqa: F401


@pytest.fixture
def in_two_processes(tmp_path) -> Callable:
    """Call ``function(rank, *args)`` in each of two processes that train together, and return what both return."""
    return lambda function, *args: _run(function, tmp_path, *args)


def _run(function: Callable, folder: Path, *args: Any, timeout_s: float = 600) -> list:
    context = multiprocessing.get_context("fork")
    queue, read = context.Queue(), context.Event()
    processes = [
        context.Process(target=_start, args=(function, rank, folder / "store", queue, read, args), daemon=True)
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    results = {}
    for _ in processes:
        rank, error, result = queue.get(timeout=timeout_s)
        assert not error, error
        results[rank] = result
    read.set()
    for process in processes:
        process.join(timeout_s)
    return [results[0], results[1]]


def _start(function: Callable, rank: int, store: Path, queue: Any, read: Any, args: tuple) -> None:
    os.environ.update(LOCAL_RANK=str(rank), RANK=str(rank), WORLD_SIZE="2")  # as torchrun does
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        queue.put((rank, "", function(rank, *args)))
        dist.barrier()
        read.wait(60)  # tensors go through memory that ends with this process
    except Exception:
        queue.put((rank, traceback.format_exc(), None))
    dist.destroy_process_group()
