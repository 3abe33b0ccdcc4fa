"""Many cases over many processes: who predicts which, and that no two write one file.

Processes of torchrun each begin with a share of their own and then take what others have not begun. Jobs that know
nothing of each other do the same on one output folder. What keeps them apart is a lock on a hidden file of each case,
which the system takes back when a process ends, however it ends.
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
from decathlete.files import atomic_write, lock
from decathlete.names import read_text

AS_LONG_AS_IT_TAKES = timedelta(days=365)


@contextlib.contextmanager
def claim(target: Path, wait: bool = False) -> Iterator[bool]:
    """Whether ``target`` is this process's to write, for as long as the block lasts (:func:`decathlete.files.lock`).

    Args:
        target: file to be written; it need not be there.
        wait: until whoever has it is done, in place of the answer no.

    Raises:
        DataError: the folder cannot be written to.
    """
    with contextlib.ExitStack() as stack:
        try:
            mine = stack.enter_context(lock(target, wait))
        except OSError as error:
            raise DataError(target, "the output must be written", str(error),
                            "Free disk space, or choose another --output") from error  # fmt: skip
        yield mine


class Share:
    """This process's part of a prediction.

    Args:
        rank: number of this process; by default torchrun's.
        size: how many processes there are.

    Attributes:
        elsewhere: files that another process had claimed, and has not finished.
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
        """A GPU of its own for each of several processes; None: no choice is made here."""
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

        Of its own share, every ``size``-th file, those that are finished, then the others; after these, what other
        processes have neither finished nor claimed, unless ``overwrite`` says that finished ones are to be made again.
        At the end it asks again for those that were claimed, since their owner may have been killed.

        Args:
            files: all inputs.
            targets: the files that each is to have.
            overwrite: finished ones are made again.
            settled: whether there is nothing to predict for an input; by default whether all its files are there.
        """
        settled = settled or (lambda file: is_finished(targets[file]))
        own, todo = self.own(files), self.own(files)
        if not overwrite:
            finished = [file for file in own if settled(file)]
            yield from finished
            # of the others from the far end, which they come to last
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
                if not mine:
                    passed.append(file)
                elif not settled(file):  # it may just have been, before it was claimed
                    yield file

    def gather(self, result: Any) -> list[Any]:
        """What every process gives, in the first process; nothing in the others, which wait for its `release`.

        Args:
            result: plain values that JSON holds.
        """
        if self._store is None:
            return [result]
        self._store.set(f"predicted/{self.rank}", json.dumps(result))
        if self.rank:
            with contextlib.suppress(Exception):  # the store may end with the first process
                self._store.wait(["predicted/told"], AS_LONG_AS_IT_TAKES)
            return []
        keys = [f"predicted/{rank}" for rank in range(self.size)]
        self._store.wait(keys, AS_LONG_AS_IT_TAKES)
        return [json.loads(self._store.get(key)) for key in keys]

    def release(self) -> None:
        """Let the other processes go, once the first has told what all of them did."""
        if self._store is not None and not self.rank:
            self._store.set("predicted/told", "1")


def is_finished(parts: Mapping[str, Path]) -> bool:
    """Whether all files of a case are there; each is written whole or not at all."""
    return all(part.is_file() for part in parts.values())


def read_json(path: Path) -> dict[str, Any]:
    """What an earlier run wrote; nothing where the file is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    except OSError as error:
        raise DataError(path, "what an earlier run wrote can be read", error.strerror or str(error)) from error
    return content if isinstance(content, dict) else {}


def add_to_json(content: Mapping[str, Any], path: Path, under: str | None = None, **more: Any) -> None:
    """Put entries into a JSON object in a file that other processes write to as well; what else is in it stays.

    Args:
        content: entries.
        path: the file.
        under: name of the object in the file's own that takes them; None: the file's own.
        more: further entries of the file's own object.

    Raises:
        DataError: the file cannot be written.
    """
    with claim(path, wait=True):
        whole = {**read_json(path), **more}
        place = whole if under is None else whole.get(under)
        together = dict(sorted({**(place if isinstance(place, dict) else {}), **content}.items()))
        whole = together if under is None else {**whole, under: together}
        try:
            with atomic_write(path) as part:
                part.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise DataError(path, "the output must be written", str(error), "Free disk space") from error


def listed_inputs(path: Path) -> list[Path]:
    """Paths in a text file, one a line; empty lines and those that begin with ``#`` are passed over.

    A relative path counts from the list's folder.

    Raises:
        DataError: no text, or no path in it.
    """
    try:
        lines = read_text(path).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(path, "a list of inputs is a text file of one path a line", str(error),
                        "Save it as UTF-8") from error  # fmt: skip
    found = [path.parent / line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not found:
        raise DataError(path, "a list of inputs is a text file of one path a line", "no path")
    return found
