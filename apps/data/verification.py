"""A data set checked file by file, before anything takes time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decathlete.data import nfbs
from decathlete.data.cases import list_cases, paths_of
from decathlete.data.kinds import read_description
from decathlete.data.tasks import Task, get_task, task_of_folder
from decathlete.errors import DataError, one_line
from decathlete.files import nifti_files
from decathlete.io.nifti import read_nifti
from decathlete.io.volume import Volume, check_pair
from decathlete.progress import ProgressBar


@dataclass(frozen=True)
class Fault:
    """One thing wrong with one file."""

    path: Path
    message: str

    def __str__(self) -> str:
        names_path = self.message.startswith((str(self.path), one_line(str(self.path))))
        return one_line(self.message if names_path else f"{self.path}: {self.message}")

    def as_error(self, remedy: str) -> DataError:
        """The fault as an error that begins with the path; ``remedy`` follows the message."""
        said = one_line(self.message).removeprefix(f"{one_line(str(self.path))}: ")
        return DataError(self.path, said.rstrip("."), "", remedy)


def verify(
    folder: str | Path, task: Task | str | None = None, progress: bool = True, limit: int | None = None
) -> list[Fault]:
    """Faults of a data set's files; an empty list means that all can be trained on.

    Every image and label must be readable and finite, a pair must share shape and affine, label values must be among
    those stated, there must be as many channels as stated, and no two images may hold the same voxels. What is stated
    is in ``dataset.json`` (``modality``, ``labels``), else in the table of tasks. The check continues after a fault.
    The extracted brains of NFBS are checked too: they must be on the grid of their heads.

    Args:
        folder: the data set's folder.
        task: whose channels and labels count where there is no ``dataset.json``; by default by the folder's name.
        progress: show a bar on stderr.
        limit: check only this many cases, spread evenly.

    Raises:
        DataError: the folder is missing or holds no case.
    """
    folder = Path(folder)
    channels, labels = stated(folder, task)
    cases = list_cases(folder) + list_cases(folder, "test")
    lost, brains = list(strays(folder, cases)), nfbs.has_brains(folder)
    if limit is not None and limit < len(cases):
        cases = [cases[n * len(cases) // limit] for n in range(limit)]
    faults: list[Fault] = []
    seen: dict[str, Path] = {}
    for case in ProgressBar(cases, desc=f"check {folder.name}", unit="case", disable=not progress):
        image = _read(faults, case["image"], kind="image", channels=channels)
        if image is not None:
            digest = hashlib.sha256(str(image.array.shape).encode() + image.array.tobytes()).hexdigest()
            first = seen.setdefault(digest, image.path)
            if first != image.path:
                faults.append(Fault(image.path, f"holds the same voxels as {first.name}"))
        if "label" not in case:
            continue
        label = _read(faults, case["label"], kind="label", channels=1, allowed_labels=labels)
        if image is not None and label is not None:
            try:
                check_pair(image, label)
            except DataError as error:
                faults.append(Fault(label.path, str(error)))
        if image is not None and brains:
            _check_on(faults, image, nfbs.brain_of(case["label"]))
    return faults + lost


def _check_on(faults: list[Fault], image: Volume, path: str) -> None:
    """Note what is wrong with another image that must lie on ``image``."""
    other = _read(faults, path, kind="image")
    if other is not None:
        try:
            check_pair(image, other)
        except DataError as error:
            faults.append(Fault(other.path, str(error)))


def stated(folder: str | Path, task: Task | str | None = None) -> tuple[int, list[int] | None]:
    """Number of channels and label values that a data set states; 1 and None where nothing is stated.

    Raises:
        DataError: ``dataset.json`` has other things in their place.
    """
    folder = Path(folder)
    facts = get_task(task) if isinstance(task, str) else task or task_of_folder(folder)
    description = read_description(folder) or {}
    channels = len(facts.channels) if facts else 1
    labels = [0, *facts.labels.values()] if facts else None
    if nfbs.is_nfbs(folder):
        channels, labels = len(nfbs.CHANNELS), [0, *nfbs.LABELS.values()]
    try:
        if modality := description.get("modality") or description.get("channel_names"):
            channels = len(modality)
        if given := description.get("labels"):
            # MSD writes {"1": "liver"}, nnU-Net v2 {"liver": 1}, or {"whole": [1, 2]} for regions
            numbers = [key if str(key).isdecimal() else value for key, value in given.items()]
            lists = [number if isinstance(number, list) else [number] for number in numbers]
            labels = sorted({0, *(int(number) for values in lists for number in values)})
    except (AttributeError, TypeError, ValueError) as error:
        raise DataError(folder / "dataset.json", "modality or labels cannot be understood", str(error),
                        "Write them as MSD does: {\"0\": \"background\", \"1\": \"liver\"}") from error  # fmt: skip
    return channels, labels


def _read(faults: list[Fault], entry: str | list[str], **wanted: Any) -> Volume | None:
    paths = paths_of(entry)
    if len(paths) > 1:
        wanted["channels"] = 1
    volumes = []
    for path in paths:
        try:
            volumes.append(read_nifti(path, **wanted))
        except DataError as error:
            faults.append(Fault(Path(path), str(error)))
    return volumes[0] if volumes else None


def strays(folder: Path, cases: list[dict[str, Any]]) -> Iterator[Fault]:
    """Labels that belong to no case."""
    for path in nfbs.masks_without_head(folder):
        yield Fault(path, "belongs to no case: its head is missing")
    known = {Path(case["label"]).name for case in cases if "label" in case}
    if (folder / "labelsTr").is_dir():
        for path in nifti_files(folder / "labelsTr"):
            if path.name not in known:
                yield Fault(
                    path,
                    "belongs to no case: its image is missing, or not listed in dataset.json. "
                    "Add it, or remove the label",
                )
