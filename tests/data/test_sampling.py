"""Shares of drawn slices are those that were asked for."""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter

import numpy as np
import pytest
import torch
from torch import distributed as dist
from torch.utils.data import DataLoader

from decathlete.data import ForegroundSampler
from decathlete.errors import ConfigError, DataError


class _Slices(torch.utils.data.Dataset):
    """100 slices, of which 4 hold class 1 and one of these class 2 as well."""

    def __init__(self, foreground=(10, 20, 30, 40), second=(40,)) -> None:
        self.counts = np.zeros((100, 3), np.int64)
        self.counts[:, 0] = 50
        self.counts[list(foreground), 1] = 7
        self.counts[list(second), 2] = 1

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, index: int) -> int:
        return index


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_share_of_foreground_slices_is_the_one_asked_for(share):
    torch.manual_seed(0)
    drawn = Counter(ForegroundSampler(_Slices(), share, num_samples=8000))
    foreground = sum(drawn[i] for i in (10, 20, 30, 40))
    assert foreground == pytest.approx(8000 * share, abs=200)  # 4.5 standard deviations
    for i in (10, 20, 30, 40):  # each slice of a kind as often
        assert drawn[i] == pytest.approx(2000 * share, abs=200)


def test_without_a_share_all_slices_are_drawn_alike():
    torch.manual_seed(0)
    drawn = Counter(ForegroundSampler(_Slices(), None, num_samples=100_000))
    assert min(drawn.values()) > 850
    assert max(drawn.values()) < 1150


def test_share_may_be_of_some_classes():
    torch.manual_seed(0)
    drawn = Counter(ForegroundSampler(_Slices(), 0.5, classes=[2], num_samples=4000))
    assert drawn[40] == pytest.approx(2000, abs=150)


def test_an_epoch_has_as_many_slices_as_there_are():
    assert len(ForegroundSampler(_Slices())) == 100
    assert len(list(ForegroundSampler(_Slices(), num_samples=7))) == 7


def test_the_seed_repeats_an_epoch_and_another_changes_it():
    sampler = ForegroundSampler(_Slices())

    def draw(seed: int) -> list[int]:
        torch.manual_seed(seed)
        return list(sampler)

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_gives_the_share_with_any_number_of_workers(workers):
    torch.manual_seed(0)
    dataset = _Slices()
    loader = DataLoader(dataset, 10, sampler=ForegroundSampler(dataset, num_samples=1000), num_workers=workers)
    drawn = torch.cat(list(loader))
    assert torch.isin(drawn, torch.tensor([10, 20, 30, 40])).sum() == pytest.approx(500, abs=75)


def _draw_in_process(rank: int, store: str, queue) -> None:
    os.environ["LOCAL_RANK"] = str(rank)  # as torchrun does
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    sampler = ForegroundSampler(_Slices(), 0.5, num_samples=2001)
    torch.manual_seed(rank)  # as the trainer does, which seeds from (seed, epoch, rank)
    queue.put((rank, len(sampler), list(sampler)))
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_share_an_epoch_and_draw_differently(tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [
        context.Process(target=_draw_in_process, args=(rank, str(tmp_path / "store"), queue)) for rank in range(2)
    ]
    for process in processes:
        process.start()
    results = dict((rank, (length, drawn)) for rank, length, drawn in (queue.get(timeout=60) for _ in processes))
    for process in processes:
        process.join(60)
    for length, drawn in results.values():
        assert length == len(drawn) == 1001
        assert sum(i in (10, 20, 30, 40) for i in drawn) == pytest.approx(500, abs=75)
    assert results[0][1] != results[1][1]


def test_where_every_slice_has_foreground_all_are_drawn_alike():
    torch.manual_seed(0)
    drawn = Counter(ForegroundSampler(_Slices(foreground=range(100)), 0.3, num_samples=10_000))
    assert len(drawn) == 100
    with pytest.raises(DataError, match=r"every slice holds one of the classes.*null"):
        ForegroundSampler(_Slices(foreground=range(100)), 0.0)


def test_no_slice_with_foreground_is_told_with_the_remedy():
    with pytest.raises(DataError, match=r"no slice holds any of the classes.*Set the share to null"):
        ForegroundSampler(_Slices(foreground=(), second=()))
    assert len(ForegroundSampler(_Slices(foreground=(), second=()), None)) == 100


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"share": 1.5}, "share.*1.5"),
        ({"classes": [3]}, r"classes.*0 to 2.*\[3\]"),
        ({"num_samples": 0}, "num_samples.*0"),
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments, words):
    with pytest.raises(ConfigError, match=words):
        ForegroundSampler(_Slices(), **arguments)
