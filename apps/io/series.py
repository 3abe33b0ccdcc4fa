"""A folder of DICOM slices as one volume: sorted by position, never by name, and refused if it is not one grid.

A folder with several series is refused, and they are listed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from decathlete.errors import DataError, GeometryError, listed
from decathlete.files import is_file_or_broken_link
from decathlete.io.dicom import MODALITIES, DicomFrame, peek, quiet_pydicom, read_dicom_frame
from decathlete.io.volume import Volume, header_of

_TAGS = ["Modality", "SeriesInstanceUID", "SeriesDescription"]
_NO_IMAGES = ("RTSTRUCT", "RTPLAN", "RTDOSE", "SEG", "SR", "PR", "KO", "REG", "DOC")
_SAME_PLACE_MM = 0.01
_UNEVEN = 0.01  # of the mean distance: positions are rounded when written
_SIDEWAYS_MM = 0.1
_COSINES = 1e-3


@dataclass(frozen=True)
class DicomVolume:
    """A volume made of slices.

    Attributes:
        array: rescaled intensities, float32, (X, Y, Z): X along the rows of the slices, Y down their columns, Z along
            the normal (row direction x column direction).
        affine: 4x4 float64, from voxel indices to RAS+ millimetres.
        paths: files in the order of Z.
        notes: what was assumed or left out, one line each.
    """

    array: NDArray[np.float32]
    affine: NDArray[np.float64]
    paths: list[Path]
    notes: list[str]


def read_dicom_series(folder: str | Path) -> DicomVolume:
    """Read the one series of slices in ``folder``; sub-folders are not searched.

    Side files, DICOM objects without an image, and other files with another suffix are left out, with a note. The
    distance of slices comes from their positions, not from SliceThickness.

    Raises:
        DataError: there is no slice; a slice cannot be read; the slices are of several patients, series, modalities or
            frames of reference; two have the same SOPInstanceUID.
        GeometryError: slices differ in size, spacing or orientation, two have the same position, distances differ, or
            the positions are not on one line along the normal.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(folder, "no such folder")
    notes: list[str] = []
    with quiet_pydicom():
        frames = [read_dicom_frame(path) for path in _slices(folder, notes)]
        if not frames:
            raise DataError(
                folder,
                "no DICOM slice in the folder",
                remedy="Sub-folders are not searched: give the folder of the slices",
            )
        _check_identity(folder, frames)
        _check_grid(frames)
        return _stacked(folder, frames, notes)


def _slices(folder: Path, notes: list[str]) -> list[Path]:
    paths = []
    for path in sorted(p for p in folder.iterdir() if is_file_or_broken_link(p)):
        if path.name.startswith((".", "DICOMDIR")):
            continue
        header = peek(path, ["Modality"])
        if header is not None and header.get("Modality") in _NO_IMAGES:
            notes.append(f"{path.name} is left out: its Modality is {header.Modality}")
        elif header is not None or path.suffix.lower() in ("", ".dcm", ".ima"):
            paths.append(path)  # if it cannot be read, leaving it out would leave a gap
        else:
            notes.append(f"{path.name} is left out: not DICOM")
    return paths


def _check_identity(folder: Path, frames: Sequence[DicomFrame]) -> None:
    for tag, rule in (
        ("PatientID", "slices of several patients"),
        ("SeriesInstanceUID", "slices of several series"),
        ("Modality", "slices of several modalities"),
        ("FrameOfReferenceUID", "slices in several frames of reference"),
    ):
        first = {str(frame.header.get(tag)): frame.path.name for frame in reversed(frames)}
        if len(first) > 1:
            found = listed(f"{tag} {value}: {name}" for value, name in sorted(first.items(), key=lambda item: item[1]))
            raise DataError(folder, rule, found, "Put each into a folder of its own")
    seen: dict[str, DicomFrame] = {}
    for frame in frames:
        uid = frame.header.get("SOPInstanceUID")
        other = seen.setdefault(str(uid), frame) if uid else frame
        if other is not frame:
            same = np.array_equal(other.array, frame.array)
            found = f"SOPInstanceUID {uid}, {'equal' if same else 'different'} pixels"
            raise DataError(frame.path, f"has the same UID as {other.path.name}", found, "Remove one of the two")


def _check_grid(frames: Sequence[DicomFrame]) -> None:
    for frame in frames:
        for tag in ("ImagePositionPatient", "ImageOrientationPatient"):
            if not frame.header.get(tag):
                raise DataError(frame.path, f"no {tag}", remedy="Export the series again")
    first = frames[0]
    checks: list[tuple[str, Callable[[DicomFrame], Any], float]] = [
        ("size", lambda frame: frame.array.shape, 0),
        ("PixelSpacing", lambda frame: frame.spacing, 1e-3),
        ("orientation", lambda frame: tuple(float(v) for v in frame.header.ImageOrientationPatient), _COSINES),
    ]
    for what, value, tolerance in checks:
        for frame in frames:
            if not np.allclose(value(frame), value(first), rtol=0, atol=tolerance):
                found = f"{_short(value(frame))} and {_short(value(first))}"
                raise GeometryError(frame.path, f"differs from {first.path.name} in {what}", found)


def _stacked(folder: Path, frames: list[DicomFrame], notes: list[str]) -> DicomVolume:
    x, y = frames[0].affine[:3, 0], frames[0].affine[:3, 1]
    normal = np.cross(x, y) / np.linalg.norm(np.cross(x, y))
    frames = sorted(frames, key=lambda frame: float(frame.affine[:3, 3] @ normal))
    places = np.array([frame.affine[:3, 3] for frame in frames])
    heights = places @ normal
    steps = np.diff(heights)
    for step, (a, b) in zip(steps, pairwise(frames), strict=True):
        if step < _SAME_PLACE_MM:
            times = ", ".join(
                f"{frame.path.name} at {t} ms" for frame in (a, b) if (t := frame.header.get("TriggerTime"))
            )
            raise GeometryError(b.path, f"has the same position as {a.path.name}", times, "Give one phase at a time")
    affine = frames[0].affine.copy()
    if len(frames) == 1:
        notes.append("one slice: its thickness is SliceThickness")
    else:
        _check_line(folder, places, heights, normal)
        if steps.max() - steps.min() > _UNEVEN * steps.mean():
            at = int(steps.argmax())
            raise GeometryError(
                folder, "the distances between slices differ", f"{steps.min():.4g} to {steps.max():.4g} mm, the "
                f"largest between {frames[at].path.name} and {frames[at + 1].path.name}", "Add the missing slices",
            )  # fmt: skip
        affine[:3, 2] = (places[-1] - places[0]) / (len(frames) - 1)
    notes += [f"{frame.path.name}: {note}" for frame in frames for note in frame.notes]
    return DicomVolume(np.stack([frame.array for frame in frames], axis=2), affine, [f.path for f in frames], notes)


def _check_line(folder: Path, places: NDArray[np.float64], heights: NDArray[np.float64], normal: NDArray[Any]) -> None:
    """Refuse slices that are shifted sideways: a single one, or all of them, as with a tilted gantry."""
    sideways = places - places[0] - np.outer(heights - heights[0], normal)
    far = np.linalg.norm(sideways, axis=1)
    if far.max() <= max(_SIDEWAYS_MM, 1e-3 * (heights[-1] - heights[0])):
        return
    tilt = np.degrees(np.arctan2(far[-1], heights[-1] - heights[0]))
    straight = np.outer((heights - heights[0]) / (heights[-1] - heights[0]), sideways[-1])
    if np.linalg.norm(sideways - straight, axis=1).max() <= _SIDEWAYS_MM:
        raise GeometryError(folder, "the slices do not follow their normal", f"gantry tilt of {tilt:.1f} degrees",
                            "Resample the series upright first")  # fmt: skip
    raise GeometryError(folder, "the positions of the slices are not on one line", f"one is {far.max():.3g} mm off")


@dataclass(frozen=True)
class SeriesVolume(Volume):
    """A series as a volume, whose ``path`` is the folder.

    Attributes:
        slices: files in the order of the third axis.
        modality: such as CT or MR.
    """

    slices: list[Path]
    modality: str


@dataclass(frozen=True)
class Series:
    """Slices with one SeriesInstanceUID."""

    uid: str
    modality: str
    description: str
    slices: int

    def __str__(self) -> str:
        name = f" '{self.description[:64]}'" if self.description else ""  # DICOM's own limit
        return f"{self.uid} ({self.modality}{name}, {self.slices} slice{'s' if self.slices > 1 else ''})"


def read_series(folder: str | Path) -> SeriesVolume:
    """The series in a folder as a volume (X, Y, Z), X along the rows of the slices, with a header for NIfTI.

    Raises:
        DataError, GeometryError: as `read_dicom_series`; several series are listed.
    """
    folder = Path(folder)
    found = series_in(folder)
    _refuse_several(folder, found)
    volume = read_dicom_series(folder)
    header = header_of(volume.array.shape, volume.affine)
    affine = (
        header.get_sform()
    )  # in the precision of NIfTI, so that the same scan as a NIfTI file gives the same labels
    modality = found[0].modality if found else ""
    return SeriesVolume(volume.array, affine, header, list(volume.notes), folder, list(volume.paths), modality)


def series_in(folder: str | Path) -> list[Series]:
    """Series of images directly in ``folder``, in the order of their UIDs, from the headers alone.

    Files that are not DICOM, or not a slice of a patient (SEG, reports), are ignored.
    """
    slices: dict[tuple[str, str], list[str]] = defaultdict(list)
    for _, header in _images(Path(folder)):
        key = str(header.get("SeriesInstanceUID", "without a UID")), str(header.Modality)
        slices[key].append(str(header.get("SeriesDescription") or ""))
    return [Series(uid, kind, max(said), len(said)) for (uid, kind), said in sorted(slices.items())]


def series_files(folder: str | Path) -> list[Path]:
    """Files of the images directly in ``folder``, sorted by name, from the headers alone."""
    return [path for path, _ in _images(Path(folder))]


def series_folder(folder: str | Path) -> Path | None:
    """The folder itself if it holds one series; None if neither it nor its sub-folders hold DICOM images.

    Raises:
        DataError: it holds several series, or its sub-folders hold some; all are listed.
    """
    folder = Path(folder)
    found = series_in(folder)
    if found:
        _refuse_several(folder, found)
        return folder
    below = [f"{sub.name}: {series}" for sub in sorted(folder.iterdir()) if sub.is_dir() for series in series_in(sub)]
    if below:
        raise DataError(folder, "no DICOM slice in the folder, but in its sub-folders", listed(below, most=20),
                        "Give one or more of the sub-folders")  # fmt: skip
    return None


def _refuse_several(folder: Path, found: list[Series]) -> None:
    if len(found) > 1:
        raise DataError(
            folder,
            "several series in one folder",
            listed(found, most=20),
            "Put each into a folder of its own",
        )


def _images(folder: Path) -> Iterator[tuple[Path, Dataset]]:
    for path in sorted(folder.iterdir()):
        header = None if path.name.startswith((".", "DICOMDIR")) else peek(path, _TAGS)
        if header is not None and header.get("Modality") in MODALITIES:
            yield path, header


def _short(value: Any) -> str:
    return " x ".join(f"{number:.5g}" for number in value)
