"""Cases after their deterministic transforms, kept in memory where they fit, else on disk."""

from __future__ import annotations

import contextlib
import enum
import functools
import hashlib
import json
import logging
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, Literal

import monai
import nibabel
import numpy as np
import torch
from monai.data import CacheDataset, Dataset, MetaTensor
from monai.transforms import Compose, RandomizableTrait, Transform, reset_ops_id
from monai.utils import convert_to_tensor

import decathlete
from decathlete.failures import find_error
from decathlete.files import atomic_write, cache_folder, disk_errors, file_sha256, lock, remove_leftovers
from decathlete.machine import free_device_bytes, free_memory_bytes

logger = logging.getLogger(__name__)

_GZIP_END = 8  # bytes: CRC-32 and length of the content, RFC 1952
_INLINE_BYTES = 1024  # an affine stays readable in the JSON; voxels go to .npy
KEPT_DAYS = 60
_REMEDY = "Free disk space, or set DECATHLETE_CACHE to another folder"
# attributes that change with use: a generator, the names that a reader read last, whether operations are recorded
_STATE = {"R", "filenames", "_tracing"}


class CachedDataset(CacheDataset):
    """MONAI's CacheDataset that uses the disk when half of the free memory cannot hold all cases.

    What is kept is a case after the transforms before the first random one; the rest is drawn anew each time. The
    size is estimated from the first case. On disk, a case is found by a hash of those transforms with their settings
    and sources, of the versions of the packages that matter, and of each source file's path, size and time of change;
    entries are written completely or not at all, and a damaged one is made again. Entries that nobody read for 60 days
    are deleted when the disk is next chosen; all may be deleted at any time.

    Args:
        data: cases, dictionaries that give files by their paths.
        transform: a Compose, or transforms in order.
        mode: ``auto``, ``ram``, ``disk``, or ``none`` to transform each time anew.
        cache_dir: folder of the entries on disk; by default ``$DECATHLETE_CACHE``, else ``~/.cache/decathlete``.
        device: a GPU that keeps the cases, if half of its free memory holds them all; then batches need no transfer,
            and random crops are made there. Only without worker processes of the loader. By default, memory keeps them.
        num_workers: threads that fill the memory.
        progress: show a bar while the memory fills, if stderr is a terminal.
        kwargs: further arguments of CacheDataset, such as ``copy_cache``.

    Attributes:
        mode: what was chosen, ``ram``, ``disk`` or ``none``.

    Raises:
        DecathleteError: a case cannot be read; the error is the reader's own.
    """

    def __init__(
        self,
        data: Sequence,
        transform: Sequence[Callable] | Callable | None = None,
        mode: Literal["auto", "ram", "disk", "none"] = "auto",
        cache_dir: str | Path | None = None,
        device: str | torch.device | None = None,
        num_workers: int | None = 1,
        progress: bool = True,
        **kwargs: Any,
    ) -> None:
        if mode not in ("auto", "ram", "disk", "none"):
            raise ValueError(f"mode (={mode!r}) must be 'auto', 'ram', 'disk' or 'none'")
        self._asked = mode
        self.mode: str = mode
        self.device = None if device is None else torch.device(device)
        self.cache_dir = cache_folder(cache_dir)
        super().__init__(
            data, transform or [], num_workers=num_workers, progress=progress and sys.stderr.isatty(), **kwargs
        )

    def set_data(self, data: Sequence) -> None:
        """Take other cases, choose memory or disk anew, and fill the memory."""
        self.data = data
        self._chain = content_hash(describe(self.transform.transforms[: first_random(self.transform)]))
        self._first: Any = None
        self.mode = self._choose() if self._asked == "auto" else self._asked
        if self.mode == "ram":
            super().set_data(data)
            self._move()
        else:
            self.cache_num = 0
            self._cache: list = []
        if self.mode == "disk":
            prune(self.cache_dir, KEPT_DAYS)
        self._first = None

    def _choose(self) -> str:
        if not len(self.data):
            return "ram"
        self._first = self._load_cache_item(0)
        needed = size_bytes(self._first) * len(self.data)
        # torchrun's processes on one machine each keep their own copy
        free = free_memory_bytes() / int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        mode = "ram" if needed <= free / 2 else "disk"
        where = "memory" if mode == "ram" else f"{self.cache_dir} (more than half of the free memory)"
        logger.info("%d cases of about %.2f GiB in all are kept in %s", len(self.data), needed / 2**30, where)
        return mode

    def _move(self) -> None:
        """Take what is kept to the device, where it fits."""
        if self.device is None:
            return
        needed, free = size_bytes(self._cache), free_device_bytes(self.device)
        fits = needed <= free / 2
        where = str(self.device) if fits else f"memory (more than half of what is free on {self.device})"
        logger.info("%.2f GiB of cases are kept in %s", needed / 2**30, where)
        if fits:
            self._cache = [self._on_device(item) for item in self._cache]

    def _on_device(self, item: Any) -> Any:
        """A case on the device, but for lists, such as where each class is: crops read single numbers of them."""
        if isinstance(item, Mapping):
            return {key: value if isinstance(value, list) else self._on_device(value) for key, value in item.items()}
        return convert_to_tensor(item, device=self.device, track_meta=True)

    def _load_cache_item(self, idx: int) -> Any:
        if idx == 0 and self._first is not None:
            return self._first
        with own_errors():
            return super()._load_cache_item(idx)

    def _transform(self, index: int) -> Any:
        with own_errors():
            if self.mode == "ram":
                return super()._transform(index)
            if self.mode == "none":
                return Dataset._transform(self, index)
        item = self._from_disk(index)
        start = first_random(self.transform)
        return item if start is None else self.transform(item, start=start)

    def _from_disk(self, index: int) -> Any:
        case = self.data[index]
        key = content_hash([self._chain, package_versions(), describe_case(case)])
        path = self.cache_dir / key[:2] / f"{key}.json"
        item = load_entry(path)
        if item is None:
            item = self._load_cache_item(index)
            save_entry(path, item)
        return item


def first_random(transform: Compose) -> int | None:
    """Number of the first transform whose result may differ from call to call; None where there is none."""
    return transform.get_index_of_first(lambda t: isinstance(t, RandomizableTrait) or not isinstance(t, Transform))


def size_bytes(item: Any) -> int:
    """Bytes of all tensors and arrays in nested dictionaries and lists."""
    if isinstance(item, Mapping):
        return sum(size_bytes(value) for value in item.values())
    if isinstance(item, (list, tuple)):
        return sum(size_bytes(value) for value in item)
    return int(item.nbytes) if isinstance(item, (torch.Tensor, np.ndarray)) else 0


def describe(value: Any, _above: tuple[int, ...] = ()) -> Any:
    """What a transform or its settings are, as JSON, the same in every process: names, values, and sources of code."""
    if value is None or (isinstance(value, (bool, int, float, str)) and not isinstance(value, enum.Enum)):
        return value
    if id(value) in _above:
        return "above"
    inner = functools.partial(describe, _above=(*_above, id(value)))
    if isinstance(value, enum.Enum):
        return str(value.value)
    if isinstance(value, (torch.Tensor, np.ndarray)):
        array = np.ascontiguousarray(value.cpu() if isinstance(value, torch.Tensor) else value)
        return [str(array.dtype), list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()]
    if isinstance(value, Mapping):
        return {str(k): inner(v) for k, v in sorted(value.items(), key=lambda item: str(item[0]))}
    if isinstance(value, (list, tuple)):
        return [inner(v) for v in value]
    if isinstance(value, (set, frozenset)):
        return sorted(json.dumps(inner(v)) for v in value)
    if isinstance(value, functools.partial):
        return [inner(value.func), inner(value.args), inner(value.keywords)]
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        return [_name(value), _code(value.__code__), inner(value.__defaults__), inner(cells)]
    if isinstance(value, type) or not hasattr(value, "__dict__"):
        return [_name(value if isinstance(value, type) else type(value)), str(value) if _is_plain(value) else ""]
    state = {k: v for k, v in vars(value).items() if k not in _STATE}
    return [_name(type(value)), _source(type(value).__module__), inner(state)]


def describe_case(case: Any) -> Any:
    """A case as JSON; each path of a file with the file's size and time of change, and a gzip file's own checksum.

    A file that was corrected and given the times of the one before (``cp -p``) is another one by its checksum.
    """
    if isinstance(case, Mapping):
        return {str(k): describe_case(v) for k, v in sorted(case.items())}
    if isinstance(case, (list, tuple)):
        return [describe_case(v) for v in case]
    if isinstance(case, (str, os.PathLike)):
        path = os.path.abspath(case)
        if os.path.isfile(path):
            stat = os.stat(path)
            return [path, stat.st_size, stat.st_mtime_ns, *_gzip_checksum(path, stat.st_size)]
        return os.fspath(case)
    return describe(case)


def _gzip_checksum(path: str, size: int) -> list[str]:
    if not path.lower().endswith(".gz") or size < _GZIP_END:
        return []
    with open(path, "rb") as file:
        file.seek(-_GZIP_END, os.SEEK_END)
        return [file.read().hex()]


def save_entry(path: Path, item: Any) -> None:
    """Write a transformed case as JSON at ``path`` with its voxels as ``.npy`` beside it; the JSON comes last.

    A case that JSON and arrays cannot hold is not written, with a line in the log.

    Raises:
        DataError: the disk is full or cannot be written to.
    """
    arrays: list[np.ndarray] = []
    try:
        content = _encode(item, arrays)
    except TypeError as error:
        logger.warning("%s: not cached on disk: %s", path, error)
        return
    with disk_errors(path, "the cache cannot be written", _REMEDY), lock(path):
        for number, array in enumerate(arrays):
            with atomic_write(_array_path(path, number)) as part, part.open("wb") as file:
                np.save(file, array, allow_pickle=False)
        with atomic_write(path) as part:
            part.write_text(json.dumps({"arrays": [_checksum(a) for a in arrays], "item": content}))


def prune(cache_dir: Path, days: float) -> None:
    """Delete the entries that were neither written nor read in the last ``days``, and what killed processes left.

    What cannot be deleted, or is being written, is kept.
    """
    oldest = time.time() - days * 86400
    for folder in cache_dir.glob("[0-9a-f][0-9a-f]"):
        remove_leftovers(folder)
        keys = {path.stem for path in folder.glob("*.json")}
        keys |= {path.stem.rpartition("-")[0] for path in folder.glob("*-*.npy")}
        for key in keys:
            path = folder / f"{key}.json"
            remove_unused(path, path, oldest, functools.partial(_remove_entry, path))


def _remove_entry(path: Path) -> None:
    for file in (path, *path.parent.glob(f"{path.stem}-*.npy")):
        file.unlink(missing_ok=True)


def remove_unused(entry: Path, index: Path, oldest: float, remove: Callable[[], None]) -> None:
    """Call ``remove`` if nobody writes an entry, and nobody has used it since ``oldest``; errors of the disk pass.

    Args:
        entry: what is locked while it is written.
        index: its file that is written last, and touched when it is read; where it is missing, the entry was never
            finished.
        oldest: seconds since 1970.
        remove: deletes the entry.
    """

    def is_used() -> bool:
        return index.is_file() and index.stat().st_mtime >= oldest

    with contextlib.suppress(OSError):
        # unfinished entries are removed at once, unless there are no locks that say whether they are being written
        if not is_used():
            with lock(entry, wait=False, sure=not index.is_file()) as mine:
                if mine and not is_used():
                    remove()


def load_entry(path: Path) -> Any:
    """The case that `save_entry` wrote, or None where there is none or it is damaged."""
    if not path.is_file():
        return None
    with contextlib.suppress(OSError):  # for `prune`; a folder of somebody else's is read all the same
        os.utime(path)
    try:
        content = json.loads(path.read_text())
        arrays = []
        for number, checksum in enumerate(content["arrays"]):
            array = np.load(_array_path(path, number), allow_pickle=False)
            if _checksum(array) != checksum:
                raise ValueError(f"checksum of array {number} differs")
            arrays.append(array)
        return _decode(content["item"], arrays)
    except (OSError, ValueError, KeyError, TypeError, EOFError, IndexError) as error:
        logger.warning("%s: damaged, made again (%s)", path, error)
        return None


def _encode(value: Any, arrays: list[np.ndarray]) -> Any:
    if isinstance(value, enum.Enum):
        return str(value.value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {"map": [[_encode(k, arrays), _encode(v, arrays)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        return {"list" if isinstance(value, list) else "tuple": [_encode(v, arrays) for v in value]}
    if isinstance(value, MetaTensor):
        if value.pending_operations:
            raise TypeError("an image with pending lazy transforms")
        operations = reset_ops_id(list(value.applied_operations))
        return {
            "meta_tensor": _encode_array(value.as_tensor(), arrays),
            "meta": _encode(value.meta, arrays),
            "operations": _encode(operations, arrays),
        }
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic)):
        return _encode_array(value, arrays)
    raise TypeError(f"a value of type {type(value).__name__}")


def _encode_array(value: torch.Tensor | np.ndarray | np.generic, arrays: list[np.ndarray]) -> dict[str, Any]:
    kind = "tensor" if isinstance(value, torch.Tensor) else "array"
    dtype = str(value.dtype)
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().contiguous()
        value = (value.view(torch.int16) if value.dtype == torch.bfloat16 else value).numpy()  # numpy has no bfloat16
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"an array of {array.dtype}")
    if array.nbytes <= _INLINE_BYTES:
        return {kind: array.tolist(), "dtype": dtype, "shape": list(array.shape)}
    arrays.append(np.ascontiguousarray(array))
    return {kind: {"number": len(arrays) - 1}, "dtype": dtype}


def _decode(value: Any, arrays: list[np.ndarray]) -> Any:
    if not isinstance(value, dict):
        return value
    if "map" in value:
        return {_decode(k, arrays): _decode(v, arrays) for k, v in value["map"]}
    if "list" in value:
        return [_decode(v, arrays) for v in value["list"]]
    if "tuple" in value:
        return tuple(_decode(v, arrays) for v in value["tuple"])
    if "meta_tensor" in value:
        tensor = _decode_array(value["meta_tensor"], arrays)
        operations = _decode(value["operations"], arrays)
        return MetaTensor(tensor, meta=_decode(value["meta"], arrays), applied_operations=operations)
    return _decode_array(value, arrays)


def _decode_array(value: dict[str, Any], arrays: list[np.ndarray]) -> torch.Tensor | np.ndarray:
    is_tensor = "tensor" in value
    stored, dtype = value["tensor" if is_tensor else "array"], value["dtype"].removeprefix("torch.")
    if isinstance(stored, dict):
        array = arrays[stored["number"]]
    else:
        array = np.array(stored, dtype="int16" if dtype == "bfloat16" else dtype).reshape(value["shape"])
    if not is_tensor:
        return array
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor


@contextlib.contextmanager
def own_errors() -> Iterator[None]:
    """Our error in place of what MONAI's transforms wrapped around it."""
    try:
        yield
    except Exception as error:
        if (ours := find_error(error)) is None or ours is error:
            raise
        raise ours from error


def _array_path(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}-{number}.npy")


def _checksum(array: np.ndarray) -> list[Any]:
    return [str(array.dtype), list(array.shape), zlib.crc32(array.reshape(-1).view(np.uint8).data)]


def package_versions() -> dict[str, str]:
    """Versions of the packages that the voxels of a transformed case may depend on."""
    modules = {"decathlete": decathlete, "monai": monai, "nibabel": nibabel, "numpy": np, "torch": torch}
    return {name: str(module.__version__) for name, module in modules.items()}


def content_hash(content: Any) -> str:
    """SHA-256 of what JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def _is_plain(value: Any) -> bool:
    """Whether the text of a value says all about it and no address in memory."""
    return isinstance(value, (np.generic, np.dtype, torch.dtype, torch.device, bytes, complex, slice, range, Path))


def _code(code: CodeType) -> list[Any]:
    constants = [_code(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return [hashlib.sha256(code.co_code).hexdigest(), constants, list(code.co_names)]


@functools.cache
def _source(module: str) -> str:
    """Hash of a module's file where no version stands for it: our own, and the user's."""
    if module.partition(".")[0] in ("monai", "torch", "numpy", "nibabel"):
        return ""
    path = getattr(sys.modules.get(module), "__file__", None)
    return file_sha256(path) if path and Path(path).is_file() else ""
