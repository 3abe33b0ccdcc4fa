from __future__ import annotations

import pytest
import torch

from decathlete.errors import DeviceError
from decathlete.training import join_processes


def test_a_process_that_torchrun_did_not_start_is_told_how(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(DeviceError, match="torchrun --nproc_per_node 2"):
        join_processes()


def test_more_processes_than_gpus_are_refused_with_both_numbers(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(DeviceError, match="4 processes, 2 GPUs"):
        join_processes()
