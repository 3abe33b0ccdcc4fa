"""Blended windows are MONAI's, wherever they lie; where memory runs out, they move, with the same values."""

from __future__ import annotations

import errno
import gc
import math
import multiprocessing
import os
import tempfile
import time

import pytest
import torch
from monai.inferers import SlidingWindowInferer
from torch import nn

from decathlete.errors import ConfigError, DataError
from decathlete.inference import SliceWise, SlidingWindow, blending
from decathlete.inference.blending import Buffer, blend

CPU = torch.device("cpu")
OUT_OF_MEMORY = "DefaultCPUAllocator: can't allocate memory"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DECATHLETE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def volume():
    return torch.randn(2, 1, 21, 17, 9, generator=torch.Generator().manual_seed(0))


def network():
    torch.manual_seed(0)
    return nn.Conv3d(1, 3, 3, padding=1).eval()


def is_mapped(tensor: torch.Tensor) -> bool:
    """Whether the values lie in a mapped file."""
    pointer = tensor.data_ptr()
    with open("/proc/self/maps") as maps:
        for line in maps:
            start, stop = (int(n, 16) for n in line.split()[0].split("-"))
            if start <= pointer < stop:
                return "(deleted)" in line
    raise AssertionError("no such address")


@pytest.mark.parametrize("place", ["auto", "device", "cpu", "file"])
@pytest.mark.parametrize("mode", ["gaussian", "constant"])
@torch.no_grad()
def test_everywhere_the_values_are_monais(volume, place, mode, cache):
    ours = blend(volume, (8, 8, 4), network(), (0.5, 0.25, 0.0), mode, batch_size=3, place=place)
    theirs = SlidingWindowInferer((8, 8, 4), 3, (0.5, 0.25, 0.0), mode)(volume, network())
    torch.testing.assert_close(ours, theirs)
    assert is_mapped(ours) == (place == "file")
    assert not list(cache.glob("*"))  # the file has no name


@pytest.mark.parametrize("slab_voxels", [1, 500])
@torch.no_grad()
def test_slabs_of_any_thickness_are_divided_by_their_windows_weights(volume, slab_voxels, monkeypatch):
    whole = blend(volume, (8, 8, 4), network())
    monkeypatch.setattr(blending, "SLAB_VOXELS", slab_voxels)  # one row of voxels, or three
    assert torch.equal(whole, blend(volume, (8, 8, 4), network()))


@torch.no_grad()
def test_places_differ_in_nothing(volume):
    kept = [SlidingWindow((8, 8, 4), output_on=place)(volume, network()) for place in ("cpu", "file")]
    assert torch.equal(*kept)
    planes = nn.Conv2d(1, 2, 3, padding=1)
    kept = [SliceWise((8, 8), output_on=place)(volume, planes) for place in ("cpu", "file")]
    assert torch.equal(*kept)
    assert [is_mapped(one) for one in kept] == [False, True]


def test_a_file_is_taken_where_the_values_exceed_what_is_free(monkeypatch):
    monkeypatch.setattr(blending, "free_memory_bytes", lambda: 4 * 1000.0)
    monkeypatch.setattr(blending, "total_memory_bytes", lambda: 4 * 1000.0)
    assert Buffer((800,), CPU).place == "cpu"
    buffer = Buffer((801,), CPU)
    assert buffer.place == "file"
    assert buffer.tensor.count_nonzero() == 0
    monkeypatch.setattr(blending, "total_memory_bytes", lambda: 4 * 1500.0)  # others have taken a third: 300 stay free
    assert [Buffer((n,), CPU).place for n in (700, 701)] == ["cpu", "file"]
    monkeypatch.setattr(blending, "total_memory_bytes", lambda: math.inf)  # a system that does not tell
    assert [Buffer((n,), CPU).place for n in (800, 801)] == ["cpu", "file"]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert [Buffer((n,), CPU).place for n in (100, 101)] == ["cpu", "file"]


def test_jobs_that_know_nothing_of_each_other_do_not_take_the_same_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # of the lock that they share
    processes = multiprocessing.get_context("fork")
    taken, places, zeros = processes.Value("i", 0), processes.Queue(), torch.zeros
    monkeypatch.setattr(blending, "total_memory_bytes", lambda: 4000.0)
    monkeypatch.setattr(blending, "free_memory_bytes", lambda: 4000.0 - taken.value)

    def slow(shape, device):
        time.sleep(0.05)  # so long takes the writing of many zeros
        with taken:
            taken.value += 4 * math.prod(shape)
        return zeros(shape, device=device)

    def job():
        together.wait(60)
        places.put(Buffer((300,), CPU).place)

    monkeypatch.setattr(blending.torch, "zeros", slow)
    together = processes.Barrier(4)
    jobs = [processes.Process(target=job, daemon=True) for _ in range(4)]
    for job in jobs:
        job.start()
    # 1200 bytes each: 4000 and 2800 that are free leave enough, of 1600 only 400 would be left
    assert sorted(places.get(timeout=60) for _ in jobs) == ["cpu", "cpu", "file", "file"]
    for job in jobs:
        job.join(60)
    assert list(tmp_path.glob(".lock*")) == []


def test_a_device_that_is_full_leads_to_a_file_where_memory_is_short_too(monkeypatch):
    zeros = torch.zeros

    def full(shape, device):
        if str(device) == "meta":
            raise RuntimeError(OUT_OF_MEMORY)
        return zeros(shape, device=device)

    monkeypatch.setattr(blending.torch, "zeros", full)
    assert Buffer((10,), torch.device("meta"), "device").place == "cpu"
    monkeypatch.setattr(blending, "free_memory_bytes", lambda: 4.0)
    assert Buffer((10,), torch.device("meta"), "device").place == "file"


def test_an_allocation_that_fails_goes_to_the_next_place(monkeypatch):
    def none_left(*_args, **_kwargs):
        raise RuntimeError(OUT_OF_MEMORY)

    monkeypatch.setattr(blending.torch, "zeros", none_left)
    assert Buffer((10,), CPU, "cpu").place == "file"


class Hungry(nn.Module):
    """Finds no memory at its third call."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.calls = inner, 0

    def forward(self, x):
        self.calls += 1
        if self.calls == 3:
            raise RuntimeError(OUT_OF_MEMORY)
        return self.inner(x)


@torch.no_grad()
def test_windows_that_find_no_memory_move_their_sums_and_go_on(volume, caplog):
    hungry = Hungry(network())
    moved = SlidingWindow((8, 8, 4), amp=False)(volume, hungry)
    assert "memory ran out: the network's output continues in a temporary file" in caplog.text
    assert is_mapped(moved)
    calm = Hungry(network())
    calm.calls = 3
    assert torch.equal(moved, SlidingWindow((8, 8, 4), amp=False)(volume, calm))
    assert hungry.calls == calm.calls - 3 + 1  # one batch of windows again, not all of them


@torch.no_grad()
def test_slices_that_find_no_memory_move_their_volume_and_go_on(volume):
    planes = nn.Conv2d(1, 2, 3, padding=1)
    moved = SliceWise((-1, -1), amp=False)(volume, Hungry(planes))
    assert is_mapped(moved)
    assert torch.equal(moved, SliceWise((-1, -1), amp=False)(volume, planes))


def test_memory_that_never_suffices_and_other_errors_are_told(volume):
    def starved(_x):
        raise RuntimeError(OUT_OF_MEMORY)

    with pytest.raises(RuntimeError, match="can't allocate"):
        blend(volume, (8, 8, 4), starved)
    hungry, calls = network(), []

    def wrong(x):
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("shapes differ")
        return hungry(x)

    with pytest.raises(RuntimeError, match="shapes differ"), torch.no_grad():
        blend(volume, (8, 8, 4), wrong)
    assert len(calls) == 2


def test_a_full_disk_is_one_line(monkeypatch, cache):
    def full(*_args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(blending.os, "posix_fallocate", full)
    with pytest.raises(DataError, match=rf"{cache}: the network's output \(0.0 GiB\).*No space left"):
        Buffer((10,), CPU, "file")


def test_what_cannot_be_is_refused(volume):
    with pytest.raises(ConfigError, match="output_on: expected auto, device, cpu, file"):
        SlidingWindow((8, 8, 4), output_on="moon")(volume, network())
    for overlap in (1.0, -0.1, (0.5, 0.5)):
        with pytest.raises(ConfigError, match="overlap"):
            SlidingWindow((8, 8, 4), overlap=overlap)(volume, network())


def test_the_file_goes_with_its_last_tensor(cache):
    def mapped():
        with open("/proc/self/maps") as maps:
            return sum(str(cache) in line for line in maps)

    tensor = Buffer((3, 4, 5), CPU, "file").tensor
    part = tensor[1:]
    del tensor
    part += 1
    assert (float(part.sum()), mapped()) == (40, 1)
    del part
    gc.collect()
    assert mapped() == 0
