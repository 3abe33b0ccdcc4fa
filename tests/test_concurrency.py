"""Files, locks and caches used at once by two processes of four threads, of which one may be killed at any time.

Each run draws from its number what every thread does. What a thread finished it notes in a file of its own; in the end
all that was noted must be there, and after one more process has looked in, nothing else.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import random
import shutil
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Transform

from decathlete.data.cache import KEPT_DAYS, load_entry, prune, save_entry
from decathlete.data.slice_store import SliceDataset
from decathlete.distributed.sharing import add_to_json, claim
from decathlete.files import atomic_folder, atomic_write, lock

FORK = multiprocessing.get_context("fork")
UMASK = 0o027
THREADS, OPERATIONS, ENTRIES, CASES = 4, 5, 4, 6
KINDS = ("write", "count", "merge", "entry", "prune", "claim", "bundle", "slices")


@pytest.fixture
def folder():
    """A folder in memory where there is one: each file is synced, which takes long on a disk."""
    place = tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    before = os.umask(UMASK)
    yield Path(place)
    os.umask(before)
    shutil.rmtree(place)


class Drawn(Transform):
    """A volume that follows from its number."""

    def __call__(self, data):
        values = torch.full((1, 4, 4, 2), float(data["number"]))
        return {"image": MetaTensor(values), "label": (values > 1).to(torch.uint8)}


def _entry(key: int) -> dict:
    return {"voxels": np.full((8, 8, 8), key, np.float32), "more": torch.full((400,), key), "key": key}


def _entry_path(folder: Path, key: int) -> Path:
    return folder / "cache" / f"{key:02x}" / f"{key:064x}.json"


class Thread(threading.Thread):
    """Does what its numbers draw, and notes what it has done."""

    def __init__(self, folder: Path, run: int, process: int, number: int) -> None:
        super().__init__()
        self.folder, self.random, self.name = folder, random.Random(f"{run} {process} {number}"), f"{process}{number}"
        self.error: Exception | None = None

    def run(self) -> None:
        """Some operations, and the first error."""
        try:
            with open(self.folder / "notes" / self.name, "w", buffering=1) as self.notes:
                for number in range(OPERATIONS):
                    getattr(self, f"_{self.random.choice(KINDS)}")(number)
        except Exception as error:
            self.error = error

    def _note(self, kind: str, what: object) -> None:
        self.notes.write(f"{kind} {what}\n")

    def _write(self, number: int) -> None:
        name, letter = self.random.choice("abc"), self.random.choice("xyz")
        with atomic_write(self.folder / "out" / f"{name}.nii.gz") as part, part.open("w") as file:
            for _ in range(3):
                file.write(letter * 2000)
                file.flush()
        assert len(set((self.folder / "out" / f"{name}.nii.gz").read_text())) == 1
        self._note("file", name)

    def _count(self, number: int) -> None:
        path = self.folder / "out" / "count.txt"
        with lock(path):
            before = int(path.read_text())
            with atomic_write(path) as part:
                part.write_text(str(before + 1))
            self._note("count", before)

    def _merge(self, number: int) -> None:
        add_to_json({f"{self.name} {number}": number}, self.folder / "out" / "volumes.json")
        self._note("merge", f"{self.name} {number}")

    def _entry(self, number: int) -> None:
        key = self.random.randrange(ENTRIES)
        save_entry(_entry_path(self.folder, key), _entry(key))
        self._note("entry", key)
        assert load_entry(_entry_path(self.folder, key))["key"] == key

    def _prune(self, number: int) -> None:
        prune(self.folder / "cache", KEPT_DAYS)

    def _claim(self, number: int) -> None:
        case = self.random.randrange(CASES)
        target = self.folder / "out" / f"case_{case}.json"
        with claim(target) as mine:
            if mine and not target.is_file():
                with atomic_write(target) as part:
                    part.write_text(self.name)
                self._note("case", case)

    def _bundle(self, number: int) -> None:
        try:
            with atomic_folder(self.folder / "out" / "bundle") as part:
                (part / "configs").mkdir()
                (part / "configs" / "train.yaml").write_text(self.name)
        except OSError:  # another one was first, with all that is in it
            assert (self.folder / "out" / "bundle" / "configs" / "train.yaml").is_file()

    def _slices(self, number: int) -> None:
        numbers = [self.random.randrange(3) for _ in range(2)]
        data = [{"number": n, "case_id": str(n)} for n in numbers]
        dataset = SliceDataset(data, [Drawn()], cache_dir=self.folder / "cache", num_workers=1, progress=False)
        assert [float(dataset[2 * n]["image"].max()) for n in range(2)] == numbers


def _process(folder: Path, run: int, number: int) -> None:
    threads = [Thread(folder, run, number, n) for n in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    faults = [f"{type(thread.error).__name__}: {thread.error}" for thread in threads if thread.error]
    if os.umask(UMASK) != UMASK:
        faults.append("the umask is another one")
    (folder / "notes" / f"faults_{number}").write_text("\n".join(faults))


def _look_in(folder: Path) -> None:
    """What any later run does that writes into the same folders."""
    with atomic_write(folder / "out" / "later.json") as part:
        part.write_text("{}")
    prune(folder / "cache", KEPT_DAYS)
    SliceDataset([{"number": 0}], [Drawn()], cache_dir=folder / "cache", num_workers=1, progress=False)


def _prepare(folder: Path) -> None:
    for name in ("notes", "out"):
        (folder / name).mkdir(parents=True)
    (folder / "out" / "count.txt").write_text("0")
    for key in range(ENTRIES // 2):  # long unused: gone by the first look, unless it is written again before
        save_entry(_entry_path(folder, key), _entry(key))
        os.utime(_entry_path(folder, key), (1, 1))


def _serve(pipe) -> None:
    for function, arguments in iter(pipe.recv, None):
        function(*arguments)
        pipe.send("done")


class Worker:
    """A process that does what it is told; to start one for each run would take longer than the run."""

    def __init__(self) -> None:
        self.pipe, other = multiprocessing.Pipe()
        self.process = FORK.Process(target=_serve, args=(other,), daemon=True)
        self.process.start()

    def begin(self, function, *arguments) -> None:
        """Start a work."""
        self.pipe.send((function, arguments))

    def wait(self) -> None:
        """Until it is done."""
        assert self.pipe.poll(300), "somebody waits for ever"
        assert self.pipe.recv() == "done"

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.join(60)


@pytest.fixture
def workers():
    """Two that work at once, and one that looks in later."""
    logging.disable()
    workers = [Worker() for _ in range(3)]
    yield workers
    for worker in workers:
        worker.kill()
    logging.disable(logging.NOTSET)


def _run(folder: Path, run: int, workers: list[Worker]) -> None:
    _prepare(folder)
    for number in range(2):
        workers[number].begin(_process, folder, run, number)
    killed = run % 4 == 0
    if killed:
        time.sleep(random.Random(run).uniform(0, 0.03))
        workers[1].kill()
        workers[1] = Worker()
    else:
        workers[1].wait()
    workers[0].wait()
    for number in range(1 if killed else 2):
        assert (folder / "notes" / f"faults_{number}").read_text() == ""
    workers[2].begin(_look_in, folder)
    workers[2].wait()
    _check(folder, killed)


def _check(folder: Path, killed: bool) -> None:
    out, cache = folder / "out", folder / "cache"
    lines = [line for path in (folder / "notes").glob("[01]?") for line in path.read_text().splitlines()]
    notes = [line.split(maxsplit=1) for line in lines]
    noted = {kind: [what for k, what in notes if k == kind] for kind in ("file", "count", "merge", "entry", "case")}
    # the killed process may have been between a thing done and its note
    more = THREADS if killed else 0
    assert len(noted["count"]) <= int((out / "count.txt").read_text()) <= len(noted["count"]) + more
    assert len(set(noted["count"])) == len(noted["count"])
    merged = json.loads((out / "volumes.json").read_text()) if noted["merge"] else {}
    assert set(noted["merge"]) <= set(merged)
    assert killed or len(noted["merge"]) == len(merged)
    assert len(set(noted["case"])) == len(noted["case"])  # each was made once
    for name in noted["file"]:
        content = (out / f"{name}.nii.gz").read_text()
        assert (len(content), len(set(content))) == (6000, 1)
    for key in map(int, noted["entry"]):
        np.testing.assert_array_equal(load_entry(_entry_path(folder, key))["voxels"], _entry(key)["voxels"])
    # nothing else
    left = [path for path in folder.rglob(".*") if path.name not in (".", "..")]
    assert left == []
    finished = {path.stem for path in cache.glob("??/*.json")}
    assert {path.stem.rpartition("-")[0] for path in cache.glob("??/*.npy")} <= finished
    assert all((entry / "index.json").is_file() for entry in cache.glob("slices/??/*"))
    for path in folder.rglob("*"):
        assert path.stat().st_mode & UMASK == 0, f"{path} has permissions that the umask takes away"


def _runs(folder: Path, workers: list[Worker], number: int) -> None:
    for run in range(number):
        try:
            _run(folder / str(run), run, workers)
        except AssertionError as error:
            raise AssertionError(f"run {run}") from error
        shutil.rmtree(folder / str(run))


def test_nothing_is_lost_or_left_by_threads_and_processes_at_once(folder, workers):
    _runs(folder, workers, 20)


@pytest.mark.slow
def test_nothing_is_lost_or_left_in_500_runs(folder, workers):
    _runs(folder, workers, 500)
