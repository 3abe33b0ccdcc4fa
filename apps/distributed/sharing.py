"""Many cases over many processes: which process predicts which case; no two write the same file.

Each of torchrun's processes begins with its own part of the cases and then takes those that others have not begun. Jobs
that know nothing of each other do the same on one output folder. A lock on a hidden file per case keeps them apart; the
system releases it when a process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from decathlete.distributed.torchrun import in_torchrun
from decathlete.errors import DataError
from decathlete.files import atomic_write, disk_errors, lock
from decathlete.names import read_text

AS_LONG_AS_IT_TAKES = timedelta(days=365)


@contextlib.contextmanager
def claim(target: Path, wait: bool = False, **words: str) -> Iterator[bool]:
    """Whether this process may write ``target`` while the block lasts (:func:`decathlete.files.lock`).

    Args:
        target: file to be written; it need not exist.
        wait: wait until the file is free, instead of answering no.
        words: of the message, as `decathlete.files.disk_errors` takes them.

    Raises:
        DataError: the folder cannot be written to.
    """
    with contextlib.ExitStack() as stack:
        with disk_errors(target, **words):
            mine = stack.enter_context(lock(target, wait))
        yield mine


class Share:
    """This process's part of a prediction.

    Args:
        rank: number of this process; by default torchrun's.
        size: how many processes there are.

    Attributes:
        elsewhere: files that another process has claimed and not finished.
    """

    def __init__(self, rank: int | None = None, size: int | None = None) -> None:
        asked = rank is None and size is None
        self.rank = int(os.environ.get("RANK", 0)) if asked and in_torchrun() else rank or 0
        self.size = self.processes() if asked else size or 1
        self.elsewhere: list[Path] = []
        self._store: Any = None
        if asked and self.size > 1:
            from decathlete.distributed.faults import process_store

            self._store = process_store()  # all meet now: the first one may have to serve it

    @staticmethod
    def processes() -> int:
        """How many processes torchrun started, on all machines; 1 without it."""
        return int(os.environ["WORLD_SIZE"]) if in_torchrun() else 1

    def device(self) -> str | None:
        """A GPU for this one of several processes; None for a single process, or without GPUs."""
        if self._store is None:
            return None
        import torch

        local = int(os.environ["LOCAL_RANK"])
        return f"cuda:{local % torch.cuda.device_count()}" if torch.cuda.is_available() else None

    def claimed(
        self,
        files: Sequence[Path],
        targets: Mapping[Path, Mapping[str, Path]],
        overwrite: bool = False,
        settled: Callable[[Path], bool] | None = None,
    ) -> Iterator[Path]:
        """Files that this process is to look at, each claimed until the next one is asked for.

        First the finished ones of its own part (every ``size``-th file), then the others of its part; then what other
        processes have neither finished nor claimed, unless ``overwrite`` asks for finished ones to be made again.
        At the end it tries the claimed ones again, since their owner may have been killed.

        Args:
            files: all inputs.
            targets: the output files of each input.
            overwrite: finished ones are made again.
            settled: whether an input needs no prediction; by default, whether all its output files exist.
        """
        settled = settled or (lambda file: is_finished(targets[file]))
        own, todo = self.own(files), self.own(files)
        if not overwrite:
            finished = [file for file in own if settled(file)]
            yield from finished
            # those of others from the end, which they reach last
            there = set(finished)
            todo = [file for file in own if file not in there]
            todo += [file for n, file in enumerate(files) if n % self.size != self.rank][::-1]
        passed: list[Path] = []
        done = (lambda file: False) if overwrite else settled
        yield from self._free(todo, targets, done, passed)
        yield from self._free(passed, targets, done, self.elsewhere)

    def own(self, files: Sequence[Path]) -> Sequence[Path]:
        """The files that this process begins with."""
        return files[self.rank :: self.size]

    @staticmethod
    def _free(
        files: Iterable[Path],
        targets: Mapping[Path, Mapping[str, Path]],
        settled: Callable[[Path], bool],
        passed: list[Path],
    ) -> Iterator[Path]:
        for file in files:
            if settled(file):
                continue
            with claim(targets[file]["label"]) as mine:
                if mine:  # who takes it looks again: it may have been finished before it was claimed
                    yield file
                else:
                    passed.append(file)

    def gather(self, result: Any) -> list[Any]:
        """The results of all processes, in the first one; nothing in the others, which wait for its `release`.

        Args:
            result: plain values that JSON holds.
        """
        if self._store is None:
            return [result]
        self._store.set(f"predicted/{self.rank}", json.dumps(result))
        if self.rank:
            with contextlib.suppress(Exception):  # the store may end with the first process
                self._store.wait(["predicted/reported"], AS_LONG_AS_IT_TAKES)
            return []
        keys = [f"predicted/{rank}" for rank in range(self.size)]
        self._store.wait(keys, AS_LONG_AS_IT_TAKES)
        return [json.loads(self._store.get(key)) for key in keys]

    def release(self) -> None:
        """Let the other processes end, once the first has reported what all of them did."""
        if self._store is not None and not self.rank:
            self._store.set("predicted/reported", "1")


def is_finished(parts: Mapping[str, Path]) -> bool:
    """Whether all files of a case exist; each is written completely or not at all."""
    return all(part.is_file() for part in parts.values())


def read_json(path: Path) -> dict[str, Any]:
    """What an earlier run wrote; empty where the file is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    except OSError as error:
        raise DataError(path, "a file of an earlier run cannot be read", error.strerror or str(error),
                        "Correct its permissions, or choose another --output") from error  # fmt: skip
    return content if isinstance(content, dict) else {}


def add_to_json(content: Mapping[str, Any], path: Path, under: str | None = None, **more: Any) -> None:
    """Add entries to a JSON file that other processes also write to; other entries are kept.

    Args:
        content: entries.
        path: the file.
        under: name of the object inside the file's object that takes them; None: the file's object.
        more: further entries of the file's object.

    Raises:
        DataError: the file cannot be written.
    """
    with claim(path, wait=True):
        merged = {**read_json(path), **more}
        place = merged if under is None else merged.get(under)
        together = dict(sorted({**(place if isinstance(place, dict) else {}), **content}.items()))
        merged = together if under is None else {**merged, under: together}
        with disk_errors(path), atomic_write(path) as part:
            part.write_text(json.dumps(merged, indent=2) + "\n", encoding="utf-8")


def listed_inputs(path: Path) -> list[Path]:
    """Paths in a text file, one a line; without empty lines and those that begin with ``#``.

    A relative path counts from the list's folder.

    Raises:
        DataError: the file is not text, or holds no path.
    """
    try:
        lines = read_text(path).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(path, "the list of inputs cannot be read", str(error),
                        "It must be a text file in UTF-8 with one path per line") from error  # fmt: skip
    found = [path.parent / line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not found:
        raise DataError(path, "the list of inputs holds no path", "", "Write one path per line")
    return found
