"""A folder with one DICOM series as a scan; a folder with several is refused, and they are listed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydicom import Dataset

from decathlete.errors import DataError, listed
from decathlete.transforms.dicom import MODALITIES, peek
from decathlete.transforms.dicom_series import read_dicom_series
from decathlete.transforms.read import Volume, header_of

_TAGS = ["Modality", "SeriesInstanceUID", "SeriesDescription"]


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
    """Slices that bear one SeriesInstanceUID."""

    uid: str
    modality: str
    description: str
    slices: int

    def __str__(self) -> str:
        name = f" '{self.description[:64]}'" if self.description else ""  # DICOM's own limit
        return f"{self.uid} ({self.modality}{name}, {self.slices} slice{'s' if self.slices > 1 else ''})"


def read_series(folder: str | Path) -> SeriesVolume:
    """The series in a folder as a volume (X, Y, Z), X along the rows of the slices, with a header to write NIfTI with.

    Raises:
        DataError, GeometryError: as `read_dicom_series`; several series are listed.
    """
    folder = Path(folder)
    found = series_in(folder)
    _refuse_several(folder, found)
    volume = read_dicom_series(folder)
    header = header_of(volume.array.shape, volume.affine)
    affine = header.get_sform()  # to the digits of NIfTI, so that the same scan as a NIfTI file gives the same labels
    modality = found[0].modality if found else ""
    return SeriesVolume(volume.array, affine, header, list(volume.notes), folder, list(volume.paths), modality)


def series_in(folder: str | Path) -> list[Series]:
    """Series of images directly in ``folder``, in the order of their UIDs, from the headers alone.

    Files that are no DICOM or no image of a patient's slice (SEG, reports) are passed over.
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
    """The folder itself if it holds one series, None if it holds no DICOM images, nor any of its sub-folders.

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
        raise DataError(folder, "a series is given by the folder of its slices", f"series in sub-folders: "
                        f"{listed(below, most=20)}", "Give one of the sub-folders, or several")  # fmt: skip
    return None


def _refuse_several(folder: Path, found: list[Series]) -> None:
    if len(found) > 1:
        raise DataError(
            folder,
            "the folder holds one series",
            f"{len(found)}: {listed(found, most=20)}",
            "Put each into a folder of its own",
        )


def _images(folder: Path) -> Iterator[tuple[Path, Dataset]]:
    for path in sorted(folder.iterdir()):
        header = None if path.name.startswith((".", "DICOMDIR")) else peek(path, _TAGS)
        if header is not None and header.get("Modality") in MODALITIES:
            yield path, header
