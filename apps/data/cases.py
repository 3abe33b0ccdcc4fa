"""Cases of a data set in the layout of the Medical Segmentation Decathlon, split into folds."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from decathlete.data import nfbs
from decathlete.data.folds import split
from decathlete.data.kinds import WORDS, kind_of, read_description
from decathlete.data.tasks import Task, get_task, task_of_folder
from decathlete.errors import DataError
from decathlete.files import (
    NIFTI_SUFFIXES,
    check_content,
    is_file_or_broken_link,
    nifti_files,
    strip_nifti_suffix,
)
from decathlete.names import same_name

logger = logging.getLogger(__name__)

Case = dict[str, Any]
_FOLDERS = {"training": ("imagesTr", "labelsTr"), "test": ("imagesTs", None)}


def datalist(
    dataset_dir: str | Path,
    fold: int | str = "all",
    part: Literal["training", "validation", "all", "test"] = "training",
    task: Task | str | None = None,
) -> list[Case]:
    """Cases as ``{"image": path, "label": path, "case_id": id}``, sorted by id; without ``label`` for ``part="test"``.

    The cases are those of ``dataset.json`` where there is one, else ``imagesTr/*.nii.gz`` with ``labelsTr`` under the
    same names. Listed cases whose files are both missing are left out, with a line in the log. A folder
    in NFBS's layout gives its heads with their brain masks; all sessions of a subject are in one part.

    Args:
        dataset_dir: the data set's folder.
        fold: 0 to 4, or ``all``: train on every case and validate on every case.
        part: of the fold; ``all`` for every labelled case, ``test`` for the cases without public labels.
        task: whose official ids the folds go by; by default the one that the folder is named after, if any. ``nfbs``
            has none: its folds go by the subjects that are there.

    Raises:
        DataError: the folder is missing or empty, a file (or the target of a link) is missing, or an entry leads
            out of the folder.
        UsageError: an unknown fold or task.
    """
    if part not in ("training", "validation", "all", "test"):
        raise ValueError(f"part (={part!r}) must be 'training', 'validation', 'all' or 'test'")
    folder = Path(dataset_dir)
    task = _official(folder, task)
    cases = list_cases(folder, "test" if part == "test" else "training")
    missing = [
        path
        for case in cases
        for key in ("image", "label")
        for path in paths_of(case.get(key))
        if not os.path.isfile(path)  # also False for a name that no file system takes
    ]
    if missing:
        check_content(missing[0])
        raise DataError(missing[0], "no such file", f"{len(missing)} missing in total",
                        "Add the missing images and labels, or remove their cases from dataset.json")  # fmt: skip
    if part in ("all", "test"):
        return cases
    patients = [case["case_id"] for case in cases]
    if nfbs.is_nfbs(folder):
        patients = [nfbs.patient_of(case_id) for case_id in patients]
    train, validation = split(sorted(set(patients)) if nfbs.is_nfbs(folder) else patients, fold, task)
    wanted = set(train if part == "training" else validation)
    return [case for case, patient in zip(cases, patients, strict=True) if patient in wanted]


def _official(folder: Path, task: Task | str | None) -> Task | None:
    """Task whose official ids count."""
    if task is None:
        return task_of_folder(folder)
    if isinstance(task, str):
        return None if nfbs.is_name(task) else get_task(task)
    return task


def list_cases(folder: str | Path, part: Literal["training", "test"] = "training") -> list[Case]:
    """Cases that a data set lists, sorted by id, even if one of a case's two files is missing.

    Raises:
        DataError: the folder is missing or empty, or an entry of ``dataset.json`` leads out of it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise _no_cases(folder, "no such folder")
    images, labels = _FOLDERS[part]
    description = read_description(folder)
    if nfbs.is_nfbs(folder):
        cases = nfbs.list_heads(folder) if part == "training" else []
    elif description is None or (part == "test" and not description.get("test")):
        cases = _from_folders(folder, images, labels)
    else:
        cases = [_from_entry(folder, entry, n, part) for n, entry in enumerate(_entries(folder, description, part))]
        # a link whose content was not fetched counts as there: it must become an error, not a case left out
        files = [paths_of(case["image"]) + paths_of(case.get("label")) for case in cases]
        there = [case for case, paths in zip(cases, files, strict=True) if any(map(is_file_or_broken_link, paths))]
        if len(there) < len(cases):
            logger.warning(
                "%s: %d of %d listed cases have no files and are left out", folder, len(cases) - len(there), len(cases)
            )
        cases = there
    if not cases and part == "training":
        raise _no_cases(folder, "0 cases")
    return sorted(cases, key=lambda case: case["case_id"])


def data_hash(cases: Iterable[Mapping[str, Any]]) -> str:
    """SHA-256 over the files of the cases, whatever their folder; the order of the cases does not matter.

    A ``.nii.gz`` enters with its size, its start and the checksum at its end, so that no image is unpacked; other
    files enter completely.
    """
    lines = []
    for case in cases:
        for key in ("image", "label", "inner", "outer", "tissues"):  # inner, outer: files of contours
            for path in map(Path, paths_of(case.get(key))):
                lines.append(f"{key}/{path.name}:{_digest(path)}")
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if path.name.lower().endswith(".gz"):
            size = os.fstat(file.fileno()).st_size
            digest.update(f"{size}:".encode() + file.read(4096))
            file.seek(max(0, size - 8))
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def _no_cases(folder: Path, found: str) -> DataError:
    if nfbs.is_nfbs(folder):
        return DataError(folder, f"expected heads as A000.../sub-A000..._ses-NFB3{nfbs.IMAGE}", found,
                         "Run 'decathlete data nfbs' or pass --dataset_dir")  # fmt: skip
    inside = sorted(p.parent.name for p in folder.glob("*/imagesTr")) if folder.is_dir() else []
    if inside:
        return DataError(folder, "expected the folder of one data set, with imagesTr in it",
                         f"it holds the data sets {', '.join(inside)}", f"Pass {folder / inside[0]}")  # fmt: skip
    kind = kind_of(folder)
    if kind not in (None, "msd"):
        remedy = (
            "Make a bundle of it with 'decathlete new'"
            if kind == "nnunet"
            else "Use the bundle sunnybrook"
            if kind == "sunnybrook"
            else "Convert the images to NIfTI first"
        )
        return DataError(folder, "expected the Decathlon's layout: imagesTr/*.nii.gz with labelsTr, or a dataset.json",
                         WORDS[kind], remedy)  # fmt: skip
    task = task_of_folder(folder)
    return DataError(folder, "expected imagesTr/*.nii.gz with labelsTr, or a dataset.json", found,
                     f"Run 'decathlete data {task.name if task else 'TASK'}' or pass --dataset_dir")  # fmt: skip


def _entries(folder: Path, description: Mapping[str, Any], part: str) -> Sequence[Any]:
    entries = description.get(part, [])
    if not isinstance(entries, list):
        raise DataError(folder / "dataset.json", f"'{part}' must be a list", type(entries).__name__, "Correct the file")
    return entries


def _from_entry(folder: Path, entry: Any, number: int, part: str) -> Case:
    where = f"{folder / 'dataset.json'}, {part}[{number}]"
    if isinstance(entry, str):
        entry = {"image": entry}
    keys = ("image", "label") if part == "training" else ("image",)
    if not isinstance(entry, dict) or any(key not in entry for key in keys):
        raise DataError(where, f"an entry must give {' and '.join(keys)}", f"{entry!r:.200}", "Correct the file")
    case: Case = {key: _inside(folder, entry[key], where) for key in keys}
    first = case["image"][0] if isinstance(case["image"], list) else case["image"]
    return case | {"case_id": same_name(strip_nifti_suffix(Path(first).name))}


def _inside(folder: Path, entry: Any, where: str) -> str | list[str]:
    if isinstance(entry, list) and entry:
        return [str(_inside(folder, item, where)) for item in entry]
    if not isinstance(entry, str):
        raise DataError(where, "a file must be given by its name", f"{entry!r:.200}", "Correct the file")
    path = PurePosixPath(entry.replace("\\", "/"))
    if not path.parts or path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        raise DataError(where, "a file lies outside the data set's folder", f"'{entry:.200}'",
                        "Use paths relative to dataset.json, inside its folder")  # fmt: skip
    return str(stored(folder / path))


def stored(path: Path) -> Path:
    """The file, spelt as its folder has it: letters may be composed otherwise, and the suffix be in capitals."""
    if is_file_or_broken_link(path) or not path.parent.is_dir():
        return path
    return _by_name(path.parent).get(_plain(path.name), path)


def _by_name(folder: Path) -> dict[str, Path]:
    """Files of a folder by the form in which names are compared."""
    return {_plain(path.name): path for path in sorted(folder.iterdir(), reverse=True)}


def _plain(name: str) -> str:
    case = strip_nifti_suffix(name)
    return same_name(case) + name[len(case) :].lower()


def _from_folders(folder: Path, images: str, labels: str | None) -> list[Case]:
    if not (folder / images).is_dir():
        return []
    cases = []
    there = {} if labels is None or not (folder / labels).is_dir() else _by_name(folder / labels)
    for image in nifti_files(folder / images):
        case: Case = {"image": str(image), "case_id": same_name(strip_nifti_suffix(image.name))}
        if labels:
            same = (_plain(image.name), *(case["case_id"] + suffix for suffix in NIFTI_SUFFIXES))
            known = [there[name] for name in same if name in there]
            case["label"] = str(known[0] if known else folder / labels / image.name)
        cases.append(case)
    return cases


def paths_of(entry: str | list[str] | None) -> list[str]:
    """Files of an entry of a case: one, a list of them, or none."""
    return [] if entry is None else [entry] if isinstance(entry, str) else entry
