"""Artificial data sets in the layout of the Medical Segmentation Decathlon, for tests and where data are missing."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from decathlete.data.tasks import Task, get_task, task_of_folder
from decathlete.errors import DataError, UsageError
from decathlete.files import atomic_folder, disk_errors
from decathlete.phantoms.anatomy import draw_case
from decathlete.progress import ProgressBar

MAX_CASES = 900  # three digits in a case's name; those from 901 on are test cases
# by task, 1 if not named: raise it when the same seed would draw something else: folders of another version are not
# mixed in
_VERSIONS = {"lung": 2}
_SMALLEST = (16, 16, 8)  # voxels; below this some organs fall between the voxels


def make_phantoms(
    task: Task | str, n: int, folder: str | Path, seed: int = 0, shape: Sequence[int] | None = None
) -> Path:
    """Write ``n`` artificial cases with their labels, and a few without, and return the data set's folder.

    The folder is ``folder/Task04_Hippocampus``, or ``folder`` itself where it has that name already. It appears when
    all is written; the same call again keeps it. Case i is the same whatever ``n`` is. Most images have axes in RAS
    order; about a third are stored as LAS, LPS or oblique, as real data are.

    Args:
        task: task or its name.
        n: labelled cases, 1 to 900; a quarter as many test images, at most three, come with them.
        folder: where the data set's folder goes.
        seed: 0 or more; same seed and same versions of NumPy and SciPy, same bytes.
        shape: voxels along (X, Y, Z) in RAS order, at least 16, 16, 8; without it, small images of a complete
            body. The anatomy fills any shape; the spacing stays the task's. Lung cancers take about a tenth of the
            slices, and from 200 slices on 1% or fewer.

    Raises:
        UsageError: a number or shape out of range.
        DataError: the folder holds other data.
    """
    task = task if isinstance(task, Task) else get_task(task)
    shape = check_request(n, seed, shape)
    folder = Path(folder)
    target = folder if task_of_folder(folder) == task else folder / task.folder
    made_from = {"version": _VERSIONS.get(task.name, 1), "seed": seed, "cases": n, "shape": shape}
    return write_phantoms(target, made_from, lambda part: _write(task, part, made_from))


def write_phantoms(
    target: Path, made_from: dict, write: Callable[[Path], None], holds: Callable[[Path, dict], bool] | None = None
) -> Path:
    """Let ``write`` fill a temporary folder that becomes ``target`` when all is written; existing phantoms are kept.

    Args:
        target: the data set's folder.
        made_from: what the phantoms are drawn from; ``write`` puts it where ``holds`` looks.
        write: fills the folder that it is given.
        holds: whether a folder holds exactly these phantoms, with a DataError where it holds others; by default, as
            ``dataset.json`` says under ``phantom``.

    Raises:
        DataError: ``target`` holds other data, or cannot be written.
    """
    holds = holds or _holds
    if holds(target, made_from):
        return target

    with disk_errors(target):
        try:
            with atomic_folder(target) as part:
                write(part)
        except OSError:
            if not (target.exists() and holds(target, made_from)):  # else another process was first
                raise
    return target


def check_request(n: int, seed: int, shape: Sequence[int] | None) -> list[int] | None:
    """The shape as whole numbers, or None.

    Raises:
        UsageError: a number or shape out of range.
    """
    if not 1 <= n <= MAX_CASES:
        raise UsageError("--phantom", f"the number of cases must be from 1 to {MAX_CASES}", str(n))
    if seed < 0:
        raise UsageError("--seed", "must be 0 or more", str(seed))
    if shape is None:
        return None
    voxels = [int(v) for v in shape]
    if len(voxels) != 3 or any(v < least for v, least in zip(voxels, _SMALLEST, strict=True)):
        raise UsageError("shape", "must be three numbers of voxels, at least 16, 16 and 8", str(tuple(shape)))
    return voxels


def check_same_phantoms(target: Path, there: object, made_from: dict) -> None:
    """Refuse a folder of other data (``there`` is None), or of phantoms that were made from something else."""
    if there is None:
        raise DataError(target, "the folder already holds other data, not phantoms", "", _elsewhere(target))
    if there != made_from:
        both = f"{_in_words(there)}; asked for: {_in_words(made_from)}"
        raise DataError(target, "the folder already holds other phantoms", both, _elsewhere(target))


def _elsewhere(target: Path) -> str:
    return f"Remove or rename {target}, or choose another --output"


def _in_words(made_from: object) -> str:
    return ", ".join(f"{key} {value}" for key, value in made_from.items()) if isinstance(made_from, dict) else "?"


def _holds(target: Path, made_from: dict) -> bool:
    """Whether ``target`` holds exactly these phantoms; False where it does not exist or is empty."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return False
    try:
        dataset = json.loads((target / "dataset.json").read_text("utf-8"))
        there = dataset.get("phantom")
        files = [entry[kind] for entry in dataset.get("training", []) for kind in ("image", "label")]
        files += dataset.get("test", [])
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        there, files = None, []
    check_same_phantoms(target, there, made_from)
    missing = [name for name in files if not (target / name).is_file()]
    if missing:
        raise DataError(target, "a file named in dataset.json is missing", missing[0], _elsewhere(target))
    return True


def _write(task: Task, part: Path, made_from: dict) -> None:
    for name in ("imagesTr", "labelsTr", "imagesTs"):
        (part / name).mkdir()
    n, tests = made_from["cases"], min(3, (made_from["cases"] + 3) // 4)
    numbers = [*range(1, n + 1), *range(MAX_CASES + 1, MAX_CASES + 1 + tests)]
    for number in ProgressBar(numbers, desc=f"{task.folder} phantoms", unit="case"):
        # the generator knows the case alone: case i does not change with the number of cases
        rng = np.random.default_rng([made_from["seed"], task.number, number])
        image, label, spacing = draw_case(task.name, rng, made_from["shape"])
        image, label, affine = _as_stored(image, label, spacing, rng)
        name = f"{task.prefix}_{number:03d}.nii.gz"
        save_phantom(image, affine, part / ("imagesTr" if number <= n else "imagesTs") / name)
        if number <= n:
            save_phantom(label, affine, part / "labelsTr" / name)
    dataset = _dataset(task, numbers[:n], numbers[n:]) | {"phantom": made_from}
    (part / "dataset.json").write_text(json.dumps(dataset, indent=1) + "\n", "utf-8")


def _as_stored(
    image: np.ndarray, label: np.ndarray, spacing: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image and label with the axes flipped as some scanners store them, and the affine that puts them right."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -spacing * (np.array(label.shape) - 1) / 2 + np.round(rng.uniform(-40, 40, 3), 1)
    draw = rng.random()
    flips = (0,) if draw < 0.12 else (0, 1) if draw < 0.24 else ()
    for axis in flips:
        image, label = np.flip(image, axis), np.flip(label, axis)
        affine[:3, 3] += affine[:3, axis] * (label.shape[axis] - 1)
        affine[:3, axis] *= -1
    if 0.24 <= draw < 0.34:
        tilt = np.radians(rng.uniform(4, 12))
        i, j = rng.permutation(3)[:2]
        turn = np.eye(4)
        turn[[i, i, j, j], [i, j, i, j]] = np.cos(tilt), -np.sin(tilt), np.sin(tilt), np.cos(tilt)
        affine = turn @ affine
    return image, label, affine


def save_phantom(array: np.ndarray, affine: np.ndarray, path: Path) -> None:
    """Write a NIfTI file that says it is a phantom; the same voxels give the same bytes."""
    nifti = nib.Nifti1Image(np.ascontiguousarray(array), affine)
    nifti.header.set_xyzt_units("mm")
    nifti.header["descrip"] = b"phantom, not a patient"
    nifti.set_sform(affine, 1)
    nifti.set_qform(affine, 1)
    # no time and no name in the gzip header: the same case is the same bytes
    with path.open("wb") as file:
        with gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=4, mtime=0) as packed:
            packed.write(nifti.to_bytes())
        file.flush()
        os.fsync(file.fileno())


def _dataset(task: Task, training: Sequence[int], test: Sequence[int]) -> dict:
    names = {number: f"{task.prefix}_{number:03d}.nii.gz" for number in (*training, *test)}
    return {
        "name": task.folder[7:],
        "description": f"PHANTOMS: drawn by a program in the manner of MSD {task.folder}; no patient's data",
        "reference": "decathlete.phantoms.cases",
        "licence": "no rights claimed",
        "release": "1.0",
        "tensorImageSize": "4D" if len(task.channels) > 1 else "3D",
        "modality": {str(i): name for i, name in enumerate(task.channels)},
        "labels": {"0": "background"} | {str(value): name for name, value in task.labels.items()},
        "numTraining": len(training),
        "numTest": len(test),
        "training": [{"image": f"./imagesTr/{names[i]}", "label": f"./labelsTr/{names[i]}"} for i in training],
        "test": [f"./imagesTs/{names[i]}" for i in test],
    }
