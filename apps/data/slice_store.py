"""Volumes after their deterministic transforms, kept on disk slice by slice, so that a slice is one short read."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import io
import json
import logging
import math
import os
import shutil
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from torch.utils.data import Dataset

from decathlete.data.cache import (
    KEPT_DAYS,
    content_hash,
    describe,
    describe_case,
    first_random,
    own_errors,
    package_versions,
    remove_unused,
)
from decathlete.distributed.sharing import claim
from decathlete.errors import ConfigError, DataError, GeometryError
from decathlete.files import atomic_write, cache_folder, disk_errors, remove_leftovers, strip_nifti_suffix
from decathlete.io.nifti import MAX_VOXELS, read_nifti_header
from decathlete.machine import cores, free_memory_bytes
from decathlete.progress import ProgressBar

logger = logging.getLogger(__name__)

_FORMAT = 1  # of an entry; raise it when older entries can no longer be read
_LABEL = "label"
_BLOCK = 16  # slices gathered at once: along the last axis one by one would read the complete volume for each of them
_CHAIN_COPIES = 3  # float32 volumes a key that a chain holds at its peak: reading, the volume, an operation's result
_BUILD_BYTES = 2 << 30  # of all chains that run at once, so that a training stays below 3 GiB
_MAX_LABEL = 1 << 16
_REMEDY = "Free disk space, or set DECATHLETE_CACHE to another folder; finished volumes are kept"
_FULL = {"what": "the slices cannot be written", "remedy": _REMEDY}


class SliceDataset(Dataset):
    """Slices of volumes, read one by one from files that hold the slices one after the other.

    The transforms before the first random one run once a volume, when the object is made; what they give lies in
    ``cache_dir/slices`` as one ``.npy`` per key, of shape (slices, C, U, V), with ``index.json`` beside it, which is
    written last. An entry is found by a hash of those transforms with their settings and sources, of keys and axis,
    of the versions of the packages that matter, and of each source file's path, size and time of change. Sizes are
    checked whenever an entry is opened and checksums once a process; a damaged entry is made again. Processes that
    need the same volumes at once share the work. Entries that nobody read for 60 days are deleted; all may be deleted
    at any time while nobody reads them.

    The transforms from the first random one on run on each slice.

    Args:
        data: cases, dictionaries that give files by their paths, and ``case_id``.
        transform: a Compose, or transforms in order. Those before the first random one give (C, X, Y, Z) per key.
        keys: what of a case is kept; ``label`` must have one channel with whole numbers.
        axis: spatial axis of the transformed volume along which slices are counted: 0, 1 or 2.
        neighbours: slices on either side that come as further channels of every key but ``label``; at the ends of a
            volume its outermost slice is repeated.
        num_classes: with background; by default one more than the largest label value that occurs.
        cache_dir: folder of the store; by default ``$DECATHLETE_CACHE``, else ``~/.cache/decathlete``.
        num_workers: volumes that are transformed at once; by default as many as cores and 2 GiB of memory hold.
        progress: show how far the building is.

    Attributes:
        data: the cases.
        transform: the Compose.
        counts: voxels of each class in each slice, shape (len(self), num_classes), int64; 0 without a label.
        cases: number of each slice's case, shape (len(self),).
        slices: number of each slice in its volume, shape (len(self),).

    Raises:
        DataError: there are no cases, a label value is out of range, or the disk is full or cannot be written to.
        GeometryError: image and label of a case differ in shape.
        ConfigError: an argument that cannot be, or transforms that do not give volumes.
    """

    def __init__(
        self,
        data: Sequence[Mapping],
        transform: Any,
        keys: Sequence[str] = ("image", "label"),
        axis: int = 2,
        neighbours: int = 0,
        num_classes: int | None = None,
        cache_dir: str | Path | None = None,
        num_workers: int | None = None,
        progress: bool = True,
    ) -> None:
        self.keys = (keys,) if isinstance(keys, str) else tuple(keys)
        if not self.keys or not all(isinstance(key, str) and key.isidentifier() for key in self.keys):
            raise ConfigError("SliceDataset, keys", "must be names, one or more", repr(keys))
        if axis not in (0, 1, 2):
            raise ConfigError("SliceDataset, axis", "must be 0, 1 or 2", repr(axis))
        if isinstance(neighbours, bool) or not isinstance(neighbours, int) or neighbours < 0:
            raise ConfigError("SliceDataset, neighbours", "must be a whole number, 0 or more", repr(neighbours))
        self.transform = transform if isinstance(transform, Compose) else Compose(transform)
        self.axis, self.neighbours, self.num_classes = int(axis), neighbours, num_classes
        self.cache_dir = cache_folder(cache_dir)
        self.num_workers, self.progress = num_workers, progress
        self.set_data(data)

    def set_data(self, data: Sequence[Mapping]) -> None:
        """Take other cases, and build those volumes that are missing."""
        if not len(data):
            raise DataError("SliceDataset", "no cases given", "", "Check dataset_dir and fold")
        self.data = data
        self._first_random = first_random(self.transform)
        chain = describe(self.transform.transforms[: self._first_random])
        shared = [_FORMAT, chain, self.keys, self.axis, package_versions()]
        keys = [content_hash([shared, describe_case(case)]) for case in data]
        wanted = dict(zip(keys, data, strict=True))
        volumes = self._open_all(list(wanted))
        missing = {key: case for key, case in wanted.items() if key not in volumes}
        if missing:
            there = next(iter(volumes.items()), None)
            self._build_all(missing, volumes, (wanted[there[0]], there[1]) if there else None)
        _prune(self.cache_dir, KEPT_DAYS)
        self._volumes = [volumes[key] for key in keys]
        self._index()

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> Any:
        """One slice.

        Returns:
            ``{"image": (C * (2 * neighbours + 1), U, V) float32, "label": (1, U, V), "case_id": str, "slice": int}``
            after the random transforms; channels go slice by slice, from the lowest.
        """
        number, z = int(self.cases[index]), int(self.slices[index])
        volume = self._volumes[number]
        item: dict[str, Any] = {name: self._planes(name, array, z) for name, array in volume.arrays.items()}
        item |= {"case_id": _case_id(self.data[number], number), "slice": z}
        if self._first_random is None:
            return item
        with own_errors():
            return self.transform(item, start=self._first_random)

    def _planes(self, name: str, array: _Array, z: int) -> torch.Tensor:
        if name == _LABEL:
            return torch.from_numpy(array.read(z, z + 1)[0]).to(getattr(torch, array.given_as))
        wanted = np.arange(z - self.neighbours, z + self.neighbours + 1).clip(0, array.shape[0] - 1)
        planes = array.read(wanted[0], wanted[-1] + 1)  # (slices, C, U, V)
        if len(planes) < len(wanted):
            planes = planes[wanted - wanted[0]]
        return torch.from_numpy(planes.reshape(-1, *array.shape[2:])).float()

    def _index(self) -> None:
        """Number the slices of all volumes and collect their voxel counts."""
        lengths = [volume.length for volume in self._volumes]
        self.cases = np.repeat(np.arange(len(lengths)), lengths)
        self.slices = np.concatenate([np.arange(length) for length in lengths])
        largest = max((max(volume.values, default=0) for volume in self._volumes), default=0)
        classes = largest + 1 if self.num_classes is None else self.num_classes
        self.counts = np.zeros((len(self.cases), classes), np.int64)
        first = 0
        for number, volume in enumerate(self._volumes):
            for value, voxels in zip(volume.values, volume.voxels.T, strict=True):
                if value >= classes:
                    raise DataError(_where(self.data[number], number),
                                    f"label values must be from 0 to {classes - 1}, as num_classes is {classes}",
                                    f"value {value} in {voxels.sum()} voxels",
                                    "Correct the label, or num_classes")  # fmt: skip
                self.counts[first : first + volume.length, value] = voxels
            first += volume.length

    def _open_all(self, keys: Sequence[str]) -> dict[str, _Volume]:
        """Sound entries that are there; checksums are computed in parallel."""
        with concurrent.futures.ThreadPoolExecutor(cores()) as pool:
            opened = pool.map(lambda key: _open(self._folder(key), key, self.keys), keys)
            return {key: volume for key, volume in zip(keys, opened, strict=True) if volume is not None}

    def _build_all(
        self, missing: Mapping[str, Mapping], volumes: dict[str, _Volume], there: tuple[Mapping, _Volume] | None
    ) -> None:
        """Add what is missing to ``volumes``; ``there`` is a case with its volume, by which sizes are estimated."""
        left = dict(missing)
        with ProgressBar(total=len(left), desc="slices", unit="volume", disable=not self.progress) as bar:
            if there is None:
                key, case = next(iter(left.items()))
                built = self._build(key, left.pop(key), wait=True)
                assert built is not None
                there = case, volumes.setdefault(key, built)
                bar.update()
            self._check_space(there, left.values(), sum(v.size_bytes for v in volumes.values()))
            pool = concurrent.futures.ThreadPoolExecutor(self._workers(missing.values()))
            try:
                work = {pool.submit(self._build, key, case, False): key for key, case in left.items()}
                for done in concurrent.futures.as_completed(work):
                    volume = done.result()
                    if volume is not None:
                        volumes[work[done]] = volume
                        bar.update()
            finally:
                pool.shutdown(cancel_futures=True)
            for key, case in left.items():  # what other processes were making
                if key not in volumes:
                    built = self._build(key, case, wait=True)
                    assert built is not None
                    volumes[key] = built
                    bar.update()

    def _check_space(self, there: tuple[Mapping, _Volume], left: Any, there_bytes: int) -> None:
        """Log how much disk space the store needs, and refuse more than is free."""
        case, volume = there
        voxels = _header_voxels(case, self.keys)
        sizes = [_header_voxels(other, self.keys) for other in left]
        needed = sum(volume.size_bytes * (size / voxels if size and voxels else 1) for size in sizes)
        logger.info("%s: slices take about %.2f GiB, of which %.2f GiB are there",
                    self.cache_dir / "slices", (needed + there_bytes) / 2**30, there_bytes / 2**30)  # fmt: skip
        free = shutil.disk_usage(self._folder("00").parent.parent).free
        if free < needed:
            raise DataError(self.cache_dir, "not enough disk space for the slices",
                            f"about {needed / 2**30:.2f} GiB needed, {free / 2**30:.2f} GiB free", _REMEDY)  # fmt: skip

    def _workers(self, cases: Any) -> int:
        if self.num_workers is not None:
            return max(1, self.num_workers)
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # torchrun's on this machine
        largest = max((_header_voxels(case, self.keys) or 0 for case in cases), default=0)
        memory = min(_BUILD_BYTES, free_memory_bytes() / 2) / processes
        fitting = int(memory / max(1, 4 * _CHAIN_COPIES * len(self.keys) * largest))
        return max(1, min(cores() // processes, fitting))

    def _build(self, key: str, case: Mapping, wait: bool) -> _Volume | None:
        """Transform a volume and write it; None where another process is making it and ``wait`` is false."""
        folder = self._folder(key)
        with claim(folder, wait, **_FULL) as is_ours:
            if not is_ours:
                return None
            built = _open(folder, key, self.keys, warn=False)  # by another process, just now
            if built is None:
                shutil.rmtree(folder, ignore_errors=True)  # damaged, or left by a process that was killed
                with own_errors():
                    item = self.transform(dict(case), end=self._first_random, threading=True)
                with disk_errors(folder, **_FULL):
                    self._write(folder, key, case, item)
                built = _open(folder, key, self.keys)
            if built is None:
                raise DataError(folder, "the slices just written cannot be read back", "",
                                "Check the disk, and run again")  # fmt: skip
            return built

    def _write(self, folder: Path, key: str, case: Mapping, item: Any) -> None:
        where = _where(case, 0)
        given = {name: self._slices_first(item, name, where) for name in self.keys}
        shapes = {name: (array.shape[0], *array.shape[2:]) for name, (array, _) in given.items()}
        if len(set(shapes.values())) > 1:
            found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
            raise GeometryError(where, "image and label differ in shape after the deterministic transforms",
                                f"slices, U, V: {found}", "Correct the label, or the transforms")  # fmt: skip
        values, voxels = _count(given[_LABEL][0], where) if _LABEL in given else ([], np.zeros((0, 0), int))
        affine = item[self.keys[0]].affine.tolist() if isinstance(item[self.keys[0]], MetaTensor) else None
        files = {}
        try:
            for name, (array, given_as) in given.items():
                # a label map of few classes takes a quarter of the space, and less time to read
                small = name == _LABEL and max(values) < 256
                path = folder / f"{name}.npy"
                checksum = _write_array(path, array, np.dtype(np.uint8) if small else array.dtype)
                files[name] = {"shape": array.shape, "dtype": given_as, "bytes": path.stat().st_size, "crc32": checksum}
                _verified.add(_state(path))
            index = {
                "format": _FORMAT,
                "key": key,
                "case_id": _case_id(case, 0),
                "axis": self.axis,
                "affine": affine,
                "files": files,
                "label_values": values,
                "label_voxels": voxels.tolist(),
            }
            with atomic_write(folder / "index.json") as part:
                part.write_text(json.dumps(index))
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _slices_first(self, item: Any, name: str, where: str) -> tuple[np.ndarray, str]:
        """A key's volume as (slices, C, U, V), and the type that the chain gave it."""
        if not isinstance(item, Mapping) or name not in item:
            found = f"keys {list(item)}" if isinstance(item, Mapping) else type(item).__name__
            raise ConfigError("SliceDataset, transform",
                              f"must give one dictionary with a volume '{name}' before the first random transform",
                              found)  # fmt: skip
        value = torch.as_tensor(item[name]).detach().cpu()
        value = value.as_tensor() if isinstance(value, MetaTensor) else value
        if value.ndim != 4 or (name == _LABEL and len(value) != 1):
            shape = "(1, X, Y, Z)" if name == _LABEL else "(C, X, Y, Z)"
            raise ConfigError("SliceDataset, transform", f"must give '{name}' of shape {shape}",
                              f"shape {tuple(value.shape)}")  # fmt: skip
        if not value.numel():
            raise DataError(where, "no slice is left after the deterministic transforms",
                            f"'{name}' of shape {tuple(value.shape)}", "Crop less, or leave the case out")  # fmt: skip
        given_as = str(value.dtype).removeprefix("torch.")
        array = (value.float() if value.dtype == torch.bfloat16 else value).numpy()  # numpy has no bfloat16
        return np.moveaxis(array, self.axis + 1, 0), given_as

    def _folder(self, key: str) -> Path:
        return self.cache_dir / "slices" / key[:2] / key


@dataclass(frozen=True)
class _Array:
    """A file of slices: (slices, C, U, V), one slice after the other from byte ``offset`` on."""

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int
    given_as: str

    def read(self, first: int, end: int) -> np.ndarray:
        """Slices ``first`` to ``end - 1``, as an array of its own: the file is not kept open or in memory."""
        found = np.empty((int(end - first), *self.shape[1:]), self.dtype)
        try:
            # one read into the array: half the time of a memory map, whose pages fault in one by one
            with open(self.path, "rb", buffering=0) as file:
                file.seek(self.offset + int(first) * math.prod(self.shape[1:]) * self.dtype.itemsize)
                if file.readinto(found.data) == found.nbytes:
                    return found
            what = "a shorter file"
        except OSError as error:
            what = error.strerror or str(error)
        raise DataError(self.path, "cached slices can no longer be read", what,
                        "Start again; missing slices are made again")  # fmt: skip


@dataclass(frozen=True)
class _Volume:
    """An entry of the store.

    Attributes:
        arrays: key to file.
        values: label values that occur.
        voxels: of each slice and value, shape (slices, len(values)).
        size_bytes: of all files.
    """

    arrays: dict[str, _Array]
    values: list[int]
    voxels: np.ndarray
    size_bytes: int

    @property
    def length(self) -> int:
        """Number of slices."""
        return next(iter(self.arrays.values())).shape[0]


_verified: set[tuple] = set()  # states of files whose checksum this process has computed


def _state(path: Path) -> tuple:
    stat = path.stat()
    return str(path), stat.st_size, stat.st_mtime_ns


def _open(folder: Path, key: str, keys: Sequence[str], warn: bool = True) -> _Volume | None:
    """The entry in ``folder``, or None where there is none or it is damaged."""
    index = folder / "index.json"
    if not index.is_file():
        return None
    try:
        content = json.loads(index.read_text())
        if (content["format"], content["key"]) != (_FORMAT, key):
            raise ValueError("index.json belongs to another entry")
        arrays = {name: _open_array(folder / f"{name}.npy", content["files"][name]) for name in keys}
        values = [int(value) for value in content["label_values"]]
        lengths = {array.shape[0] for array in arrays.values()}
        voxels = (
            np.array(content["label_voxels"], np.int64).reshape(-1, len(values)) if values else np.zeros((0, 0), int)
        )
        if len(lengths) != 1 or (values and len(voxels) not in lengths):
            raise ValueError("numbers of slices differ")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if warn:
            logger.warning("%s: damaged, made again (%s)", folder, error)
        return None
    with contextlib.suppress(OSError):  # for `_prune`; a folder of somebody else's is read all the same
        os.utime(index)
    return _Volume(arrays, values, voxels, sum(int(file["bytes"]) for file in content["files"].values()))


def _open_array(path: Path, stated: Mapping[str, Any]) -> _Array:
    """A file of slices that is as its index states, else ValueError."""
    state = _state(path)
    if state[1] != stated["bytes"]:
        raise ValueError(f"{path.name} has {state[1]} bytes, not {stated['bytes']}")
    if state not in _verified:
        if _crc32(path) != stated["crc32"]:
            raise ValueError(f"checksum of {path.name} differs")
        _verified.add(state)
    mapped = np.load(path, mmap_mode="r", allow_pickle=False)  # reads the header only
    if list(mapped.shape) != stated["shape"] or mapped.ndim != 4 or not mapped.flags.c_contiguous:
        raise ValueError(f"{path.name} has shape {mapped.shape}, not {stated['shape']}")
    if not isinstance(getattr(torch, stated["dtype"]), torch.dtype):
        raise ValueError(f"{stated['dtype']} is no type")
    return _Array(str(path), mapped.shape, mapped.dtype, mapped.offset, stated["dtype"])


def _crc32(path: Path) -> int:
    checksum = 0
    with path.open("rb", buffering=0) as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _write_array(path: Path, array: np.ndarray, dtype: np.dtype) -> int:
    """Write ``array`` as ``.npy``, first axis outermost, a few slices at a time; its checksum."""
    start = io.BytesIO()
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": array.shape}
    np.lib.format.write_array_header_1_0(start, header)
    checksum = zlib.crc32(start.getvalue())
    with atomic_write(path) as part, part.open("wb") as file:
        file.write(start.getvalue())
        for first in range(0, len(array), _BLOCK):
            block = np.ascontiguousarray(array[first : first + _BLOCK], dtype)
            file.write(block.data)
            checksum = zlib.crc32(block.data, checksum)
    return checksum


def _count(label: np.ndarray, where: str) -> tuple[list[int], np.ndarray]:
    """Label values that occur, and voxels of each slice and value, from (slices, 1, U, V).

    Raises:
        DataError: a value is not a whole number from 0 to 65535.
    """
    counts = []
    for first in range(0, len(label), _BLOCK):
        for plane in np.ascontiguousarray(label[first : first + _BLOCK]):
            rounded = plane.astype(np.int64) if np.isfinite(plane).all() else np.full(plane.shape, -1)
            if (rounded != plane).any() or rounded.min() < 0 or rounded.max() >= _MAX_LABEL:
                wrong = plane[(rounded != plane) | (rounded < 0) | (rounded >= _MAX_LABEL)]
                raise DataError(where, f"label values must be whole numbers from 0 to {_MAX_LABEL - 1}", f"{wrong[0]}",
                                "Correct the label; resample it with mode nearest")  # fmt: skip
            counts.append(np.bincount(rounded.ravel()))
    values = sorted({int(value) for count in counts for value in np.flatnonzero(count)})
    voxels = np.array([[count[value] if value < len(count) else 0 for value in values] for count in counts], np.int64)
    return values, voxels


def _prune(cache_dir: Path, days: float) -> None:
    """Delete the entries that were neither written nor read in the last ``days``, and what killed processes left.

    What cannot be deleted, or is being written, is kept.
    """
    oldest = time.time() - days * 86400
    for shard in (cache_dir / "slices").glob("[0-9a-f][0-9a-f]"):
        remove_leftovers(shard)
        for folder in shard.glob("[0-9a-f]*"):
            remove_unused(folder, folder / "index.json", oldest, functools.partial(shutil.rmtree, folder))


def _header_voxels(case: Mapping, keys: Sequence[str]) -> int | None:
    """Voxels of a case's first key by its headers; None where they do not say or cannot be."""
    given = case.get(keys[0])
    with contextlib.suppress(Exception):  # whatever is wrong with a file, its reader says it better
        paths = [given] if isinstance(given, (str, os.PathLike)) else list(given or [])
        voxels = sum(math.prod(map(int, read_nifti_header(Path(path)).get_data_shape())) for path in paths)
        return voxels if 0 < voxels <= MAX_VOXELS else None
    return None


def _case_id(case: Mapping, number: int) -> str:
    if case.get("case_id") is not None:
        return str(case["case_id"])
    image = case.get("image")
    image = image[0] if isinstance(image, (list, tuple)) and image else image
    return strip_nifti_suffix(Path(image).name) if isinstance(image, (str, os.PathLike)) else f"case {number}"


def _where(case: Mapping, number: int) -> str:
    """How a message names a case: by its label's file, else its image's, else its id."""
    paths = [case.get(key) for key in (_LABEL, "image")]
    return next((str(path) for path in paths if isinstance(path, (str, os.PathLike))), _case_id(case, number))
