"""Data sets: where they come from, their cases and folds, checks and caches. Imports nothing heavy by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from decathlete.lazy import lazy_names

if TYPE_CHECKING:
    from decathlete.data.cache import CachedDataset
    from decathlete.data.cases import data_hash, datalist
    from decathlete.data.download import download_task, fetch
    from decathlete.data.folders import dataset_folder
    from decathlete.data.folds import split
    from decathlete.data.sampling import ForegroundSampler
    from decathlete.data.slice_store import SliceDataset
    from decathlete.data.sunnybrook import index_sunnybrook, sunnybrook_datalist
    from decathlete.data.tasks import TASKS, Task, get_task
    from decathlete.data.verification import Fault, verify
    from decathlete.phantoms.cases import make_phantoms
    from decathlete.phantoms.hearts import make_sunnybrook_phantoms

__all__ = [
    "TASKS",
    "CachedDataset",
    "Fault",
    "ForegroundSampler",
    "SliceDataset",
    "Task",
    "data_hash",
    "datalist",
    "dataset_folder",
    "download_task",
    "fetch",
    "get_task",
    "index_sunnybrook",
    "make_phantoms",
    "make_sunnybrook_phantoms",
    "split",
    "sunnybrook_datalist",
    "verify",
]

__getattr__ = lazy_names(
    __name__,
    {
        "CachedDataset": "cache",
        "Fault": "verification",
        "ForegroundSampler": "sampling",
        "SliceDataset": "slice_store",
        "TASKS": "tasks",
        "Task": "tasks",
        "data_hash": "cases",
        "datalist": "cases",
        "dataset_folder": "folders",
        "download_task": "download",
        "fetch": "download",
        "get_task": "tasks",
        "index_sunnybrook": "sunnybrook",
        "make_phantoms": "decathlete.phantoms.cases",
        "make_sunnybrook_phantoms": "decathlete.phantoms.hearts",
        "split": "folds",
        "sunnybrook_datalist": "sunnybrook",
        "verify": "verification",
    },
)
