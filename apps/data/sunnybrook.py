"""The Sunnybrook cardiac set: cine MRI frames as DICOM, contours of the left ventricle as text, paired by name.

Two layouts are known: ``link.csv`` with ``dicoms/<patient_id>/59.dcm`` and
``contourfiles/<original_id>/i-contours/IM-0001-0059-icontour-manual.txt`` (the widely copied set), and one patient's
folder with ``DICOM/IM-0001-0059.dcm`` and ``contours-manual/IRCCI-expert`` (as the challenge gave them out).
"""

from __future__ import annotations

import csv
import hashlib
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from decathlete.data.folders import dataset_folder
from decathlete.data.folds import split
from decathlete.errors import DataError, listed
from decathlete.files import is_file_or_broken_link, nifti_files
from decathlete.io.contours import CONTOUR_ORIGIN, distances_to_contour, read_contour
from decathlete.io.dicom import read_dicom_frame, read_dicom_header
from decathlete.names import read_text
from decathlete.progress import ProgressBar

logger = logging.getLogger(__name__)

NAME = "sunnybrook"
TOUCH_PX = 2.0  # annotators' contours touch and cross by up to 0.7; those of another heart leave by 10
KINDS = ("inner", "outer")
Severity = Literal["FAULT", "left out", "note"]

_CONTOUR_NAME = re.compile(r"IM-\d+-(\d+)-([io])contour-manual\.txt", re.IGNORECASE)
_FRAME_NAME = re.compile(r"(?:IM-\d+-)?(\d+)(?:\.dcm)?", re.IGNORECASE)
_SIDE_FILES = ("desktop.ini", "thumbs.db", "dicomdir")


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be, and what came of it.

    Attributes:
        path: file or folder that it is about.
        message: what is wrong, and what is left out for it.
        severity: ``FAULT``: files are damaged or missing, and what needs them is left out; ``left out``: a mistake of
            the set itself whose truth is known; ``note``: nothing is left out.
    """

    path: Path
    message: str
    severity: Severity = "FAULT"

    def __str__(self) -> str:
        return self.message if self.message.startswith(str(self.path)) else f"{self.path}: {self.message}"


@dataclass
class Frame:
    """One frame and its contours; None where there is none, or it was left out."""

    patient: str
    number: int
    image: Path
    inner: Path | None = None
    outer: Path | None = None

    @property
    def case_id(self) -> str:
        """``SCD0000101_0059``: patient and number of the frame."""
        return f"{self.patient}_{self.number:04d}"

    def as_case(self) -> dict[str, Any]:
        """Item of a case list, paths as text."""
        contours = {kind: None if (path := getattr(self, kind)) is None else str(path) for kind in KINDS}
        return {"image": str(self.image), **contours, "case_id": self.case_id, "patient": self.patient}


@dataclass
class SunnybrookIndex:
    """What a folder holds.

    Attributes:
        folder: the folder that was asked for.
        frames: every sound frame, by patient and number, with its sound contours.
        findings: what was wrong or is worth knowing, by patient.
        original_ids: patient to the name that its contours go by.
    """

    folder: Path
    frames: list[Frame] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    original_ids: dict[str, str] = field(default_factory=dict)

    @property
    def pairs(self) -> list[Frame]:
        """Frames with both contours."""
        return [frame for frame in self.frames if frame.inner and frame.outer]

    @property
    def contoured(self) -> list[Frame]:
        """Frames with at least one contour."""
        return [frame for frame in self.frames if frame.inner or frame.outer]

    def table(self) -> list[str]:
        """Counts per patient, and their sum, as lines of equal columns."""
        rows = [("patient", "contours of", "frames", "inner", "outer", "both")]
        for patient, original in self.original_ids.items():
            rows.append((patient, original, *_counts([f for f in self.frames if f.patient == patient])))
        rows.append(("all", "", *_counts(self.frames)))
        widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
        return [
            "  ".join(
                word.ljust(w) if n < 2 else word.rjust(w) for n, (word, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]


def is_sunnybrook(folder: str | Path) -> bool:
    """Whether a folder looks like this set, in either layout; a folder called DICOM alone is anybody's."""
    root = _root(Path(folder))
    if root is None or any((root / name).exists() for name in ("link.csv", "dicoms", "contours-manual")):
        return root is not None
    return any(re.fullmatch(r"(?i)IM-\d+-\d+\.dcm", path.name) for path in (root / "DICOM").iterdir())


def index_sunnybrook(folder: str | Path, progress: bool = False, pixels: bool = False) -> SunnybrookIndex:
    """Frames of a folder with the contours that belong to them; what is not sound is named and left out.

    A contour is left out where it cannot be read, leaves the image, has no frame, or stands beside another of the
    same frame and kind. An inner contour that leaves its outer one by more than 2 pixels makes the pair contradictory
    and both are left out; but where one of the two is the same file as another patient's, that copy alone is left out.

    Args:
        folder: the set's folder, or the one above ``final_data``, or one patient's.
        progress: show a bar on stderr.
        pixels: read every frame's pixels too, and compare them, instead of the headers of frames with contours.

    Raises:
        DataError: the folder is missing or of another layout; link.csv cannot be read; not one sound frame is left.
    """
    folder = Path(folder)
    root = _root(folder)
    if root is None:
        found = "another layout" if folder.is_dir() else "no such folder"
        rule = "expected link.csv, dicoms/ and contourfiles/, or one patient's DICOM/ and contours-manual/"
        raise DataError(folder, rule, found, f"Run 'decathlete data {NAME}' or pass --dataset_dir")
    index = SunnybrookIndex(folder)
    patients = list(_patients(root, index))
    for patient, original, dicoms, contours in patients:
        index.original_ids[patient] = original
        index.frames += _pair(patient, dicoms, contours, index.findings)
    frames = [f for f in index.frames if pixels or f.inner or f.outer]
    bar = ProgressBar(frames, desc=f"read {folder.name}", unit="frame", disable=not progress)
    polygons: dict[Path, NDArray[np.float64]] = {}
    contents: dict[bytes, list[Frame]] = defaultdict(list)
    unreadable = [frame for frame in bar if not _sound(frame, polygons, index.findings, contents if pixels else None)]
    index.frames = [frame for frame in index.frames if frame not in unreadable]
    _drop_copied_frames(index)
    for alike in contents.values():
        if len(alike := [frame for frame in alike if frame in index.frames]) > 1:
            names = listed(frame.case_id for frame in alike[1:])
            one_patient = len({frame.patient for frame in alike}) == 1
            message = f"{names} hold the same pixels; none is left out"
            index.findings.append(Finding(alike[0].image, message, "note" if one_patient else "FAULT"))
    _drop_copied_contours(index, polygons)
    _drop_contradictions(index, polygons)
    _note_what_is_missing(index)
    index.findings.sort(key=lambda finding: str(finding.path))
    if not index.frames:
        raise DataError(folder, "no readable DICOM frame found", str(index.findings[0]) if index.findings else "",
                        "Copy the data again")  # fmt: skip
    return index


def sunnybrook_datalist(
    dataset_dir: str | Path,
    fold: int | str = "all",
    part: Literal["training", "validation", "contoured", "frames"] = "training",
) -> list[dict[str, Any]]:
    """Items ``{"image", "inner", "outer", "case_id", "patient"}``, one a frame; contours are paths or None.

    Patients are never split between folds; with five patients a fold leaves one out.

    Args:
        dataset_dir: the set's folder.
        fold: 0 to 4, or ``all``: train on every patient and validate on every patient.
        part: of the fold, frames with a contour; ``contoured`` for all of those, ``frames`` for every frame.

    Raises:
        DataError: as `index_sunnybrook`, or no frame has a contour.
        UsageError: an unknown fold.
    """
    if part not in ("training", "validation", "contoured", "frames"):
        raise ValueError(f"part (={part!r}) must be 'training', 'validation', 'contoured' or 'frames'")
    index = index_sunnybrook(dataset_dir)
    if part == "frames":
        return [frame.as_case() for frame in index.frames]
    if not index.contoured:
        raise DataError(dataset_dir, "no frame with a usable contour found", "",
                        f"Run 'decathlete check {dataset_dir}'")  # fmt: skip
    wanted = {frame.patient for frame in index.contoured}
    if part != "contoured":
        wanted = set(split(wanted, fold)[part == "validation"])
    return [frame.as_case() for frame in index.contoured if frame.patient in wanted]


def frame_files(folder: str | Path) -> list[Path]:
    """Frames of one patient's folder, by number; the NIfTI files of a folder that holds such.

    Raises:
        DataError: the folder holds neither, or the complete set: frame names are unique only within a patient.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(folder, "no such folder", "", "Give the folder of one patient's frames")
    if volumes := nifti_files(folder):
        return volumes
    if (folder / "DICOM").is_dir():
        folder = folder / "DICOM"
    files = [path for path in _entries(folder) if is_file_or_broken_link(path)]
    numbered = sorted((int(match[1]), path) for path in files if (match := _FRAME_NAME.fullmatch(path.name)))
    frames = [path for _, path in numbered]
    frames += [path for path in files if path not in frames and may_be_dicom(path)]
    if not frames:
        patients = _patient_folders(folder)
        found = f"{len(patients)} patients' folders" if patients else ""
        remedy = (
            f"Give one patient's folder, such as {patients[0]}"
            if patients
            else "Give the folder of one patient's frames"
        )
        raise DataError(folder, "no frames found, such as 59.dcm, and no NIfTI files", found, remedy)
    return frames


def patient_folder(dataset_dir: str | Path, patient: str | None = None) -> str:
    """Folder of a patient's frames, of the first one where none is named; for ``inference.yaml``.

    Raises:
        DataError: no such patient, or no set.
    """
    folders = _patient_folders(Path(dataset_dir))
    wanted = [folder for folder in folders if patient in (None, folder.name)]
    if not wanted:
        raise DataError(dataset_dir, f"no frames of {patient or 'any patient'} found",
                        f"patients: {listed(folder.name for folder in folders)}" if folders else "")  # fmt: skip
    return str(wanted[0])


def may_be_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its suffix or its first bytes."""
    if path.suffix.lower() in (".dcm", ".ima"):
        return True
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:  # a link into nowhere, or nobody's to read
        return False


def _patient_folders(folder: Path) -> list[Path]:
    root = _root(folder)
    found = [] if root is None else _entries(root / "dicoms") if (root / "dicoms").is_dir() else [root]
    return [path for path in found if path.is_dir()]


def leaves_by_px(inner: NDArray[np.float64], outer: NDArray[np.float64]) -> float:
    """How far the inner polygon (N, 2) gets outside the outer one, in pixels; 0 where it stays inside."""
    from matplotlib.path import Path as Polygon

    out = inner[~Polygon(outer).contains_points(inner)]
    if not len(out):
        return 0.0
    return float(distances_to_contour(out, outer).max())


def _root(folder: Path) -> Path | None:
    """Folder of link.csv, or of one patient's DICOM folder."""
    for candidate in (folder, folder / "final_data", folder / NAME / "final_data"):
        if (candidate / "link.csv").is_file() or (candidate / "dicoms").is_dir():
            return candidate
    return folder if (folder / "DICOM").is_dir() or (folder / "contours-manual").is_dir() else None


def _patients(root: Path, index: SunnybrookIndex) -> Iterator[tuple[str, str, Path, Path]]:
    """Patient, name of its contours, folder of frames, folder of contours; sorted by patient."""
    if not (root / "dicoms").is_dir() and not (root / "link.csv").is_file():
        yield root.name, root.name, root / "DICOM", root / "contours-manual"
        return
    rows = _linked(root / "link.csv", index)
    for patient, original in rows:
        yield patient, original, root / "dicoms" / patient, root / "contourfiles" / original
    for name, known in (("dicoms", {p for p, _ in rows}), ("contourfiles", {o for _, o in rows})):
        for path in _entries(root / name):
            if path.is_dir() and path.name not in known:
                index.findings.append(Finding(path, "is not in link.csv: the patient is left out"))


def _linked(file: Path, index: SunnybrookIndex) -> list[tuple[str, str]]:
    """Sound rows of link.csv, sorted; a name that stands for two patients is left out with both."""
    try:
        lines = list(csv.reader(read_text(file).splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(file, "link.csv, which pairs patients and contours, cannot be read", f"{error}",
                        "Save it as text in UTF-8") from error  # fmt: skip
    header = [word.strip().lower() for word in lines[0]] if lines else []
    if header != ["patient_id", "original_id"]:
        raise DataError(file, "the first line must be patient_id,original_id", f"{','.join(header)[:80]!r}")
    rows: list[tuple[str, str]] = []
    for number, line in enumerate(lines[1:], start=2):
        names = [word.strip() for word in line]
        if not any(names):
            continue
        if len(names) != 2 or not all(names) or any(set(n) & set("/\\\0") or n in (".", "..") for n in names):
            raise DataError(f"{file}, line {number}", "a line must be two folder names", f"{','.join(line)[:80]!r}")
        if (names[0], names[1]) in rows:
            index.findings.append(Finding(file, f"line {number} is there twice: {','.join(names)}", "note"))
        else:
            rows.append((names[0], names[1]))
    twice = {n for place in (0, 1) for n, count in Counter(row[place] for row in rows).items() if count > 1}
    for name in sorted(twice):
        partners = listed(",".join(row) for row in rows if name in row)
        index.findings.append(
            Finding(file, f"id {name} stands for two patients ({partners}): all of them are left out")
        )
    return sorted(row for row in rows if not twice & set(row))


def _pair(patient: str, dicoms: Path, contours: Path, findings: list[Finding]) -> list[Frame]:
    """Frames of a patient by number, with the contours that bear the same number."""
    by_number: dict[int, list[Path]] = defaultdict(list)
    for path in _entries(dicoms):
        match = _FRAME_NAME.fullmatch(path.name)
        if match and is_file_or_broken_link(path):
            by_number[int(match[1])].append(path)
        else:
            findings.append(Finding(path, "is no frame by its name: passed over", "note"))
    if not by_number:
        findings.append(Finding(dicoms, f"holds no frame: patient {patient} is left out"))
    frames = {}
    for number, paths in sorted(by_number.items()):
        if len(paths) > 1:
            findings.append(
                Finding(paths[1], f"is frame {number} a second time, beside {paths[0].name}: the frame is left out")
            )
        else:
            frames[number] = Frame(patient, number, paths[0])
    drawn: dict[tuple[int, str], list[Path]] = defaultdict(list)
    for path in _contour_files(contours, findings):
        match = _CONTOUR_NAME.fullmatch(path.name)
        if match:
            drawn[int(match[1]), "inner" if match[2].lower() == "i" else "outer"].append(path)
        else:
            findings.append(Finding(path, "is no inner or outer contour by its name: passed over", "note"))
    for (number, kind), paths in sorted(drawn.items()):
        if len(paths) > 1:
            both = " and ".join(path.name for path in paths)
            findings.append(
                Finding(paths[0].parent, f"two {kind} contours for frame {number}, {both}: both are left out")
            )
        elif number not in frames:
            what = "is there twice" if number in by_number else f"is missing in {dicoms.name}/"
            findings.append(Finding(paths[0], f"frame {number} {what}: the contour is left out"))
        else:
            setattr(frames[number], kind, paths[0])
    return list(frames.values())


def _contour_files(folder: Path, findings: list[Finding]) -> list[Path]:
    if not folder.is_dir():
        findings.append(Finding(folder, "no such folder: the patient has no contours", "note"))
        return []
    return sorted(p for p in folder.rglob("*") if is_file_or_broken_link(p) and not _is_side_file(p))


def _entries(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not _is_side_file(p)) if folder.is_dir() else []


def _is_side_file(path: Path) -> bool:
    return path.name.startswith(".") or path.name.lower() in _SIDE_FILES


def _sound(
    frame: Frame,
    polygons: dict[Path, NDArray[np.float64]],
    findings: list[Finding],
    contents: dict[bytes, list[Frame]] | None,
) -> bool:
    """Whether the frame can be read; its contours that cannot, or leave it, are taken from it.

    Polygons are added by path. With ``contents`` the pixels are read too, and the frame is added by their digest.
    """
    try:
        if contents is None:
            header = read_dicom_header(frame.image)
        else:
            image = read_dicom_frame(frame.image)
            header = image.header
            contents[hashlib.blake2b(image.array.tobytes()).digest()].append(frame)
    except DataError as error:
        findings.append(Finding(frame.image, f"{error} The frame is left out."))
        return False
    if (stated := header.get("InstanceNumber")) not in (None, "", frame.number):
        findings.append(Finding(frame.image, f"says InstanceNumber {stated}; it is taken by its name", "note"))
    size = np.array([header.Columns, header.Rows])
    for kind in KINDS:
        path = getattr(frame, kind)
        if path is None:
            continue
        try:
            points = read_contour(path)
            away = ((points - CONTOUR_ORIGIN < -0.5) | (points - CONTOUR_ORIGIN > size - 0.5)).any(axis=1)
            if away.any():
                x, y = points[away][0]
                raise DataError(path, f"the contour leaves the image of {size[0]} x {size[1]} pixels",
                                f"{away.sum()} of {len(points)} points outside, first {x:g}, {y:g}")  # fmt: skip
            polygons[path] = points
        except DataError as error:
            findings.append(Finding(path, f"{error} The contour is left out."))
            setattr(frame, kind, None)
    return True


def _drop_copied_frames(index: SunnybrookIndex) -> None:
    """A frame that another frame's file repeats byte by byte is left out: it would be trained and tested on."""
    for copies in _same_content((frame.image, frame) for frame in index.frames):
        names = listed(frame.case_id for frame in copies[1:])
        index.findings.append(Finding(copies[0].image, f"{names} hold the same bytes and are left out"))
        index.frames = [frame for frame in index.frames if frame not in copies[1:]]


def _drop_copied_contours(index: SunnybrookIndex, polygons: dict[Path, NDArray[np.float64]]) -> None:
    """Contour files found with two patients belong to the one whose other contours they fit."""
    drawn = [(getattr(frame, kind), (frame, kind)) for frame in index.frames for kind in KINDS if getattr(frame, kind)]
    shared: dict[tuple[str, ...], list[list[tuple[Frame, str]]]] = defaultdict(list)
    for copies in _same_content(drawn):
        patients = tuple(sorted({frame.patient for frame, _ in copies}))
        if len(patients) > 1:  # a contour copied from one frame to the next may be how it was drawn
            shared[patients].append(copies)
    for patients, groups in shared.items():
        # a patient's copies are judged together: nine contradictions say more than one
        holds = {p: [c for group in groups for c in group if c[0].patient == p] for p in patients}
        wrong = {p: max((_leaves(frame, polygons) for frame, _ in held), default=0.0) for p, held in holds.items()}
        owners = [p for p in patients if wrong[p] <= TOUCH_PX and any(f.inner and f.outer for f, _ in holds[p])]
        owner = owners[0] if len(owners) == 1 else None
        for patient in patients:
            if patient == owner:
                continue
            paths = sorted(getattr(frame, kind) for frame, kind in holds[patient])
            others = " and ".join(index.original_ids[p] for p in patients if p != patient)
            message = f"{len(paths)} files hold the same bytes as those of {others} with these names"
            if wrong[patient] > TOUCH_PX:
                message += f", and the inner contours leave them by up to {wrong[patient]:.0f} pixels"
            message += ": left out here, "
            message += f"kept for {index.original_ids[owner]}" if owner else "and there: it is unclear whose they are"
            message += f" ({', '.join(path.name for path in paths)})"
            index.findings.append(Finding(paths[0].parent, message, "left out"))
            for frame, kind in holds[patient]:
                setattr(frame, kind, None)


def _drop_contradictions(index: SunnybrookIndex, polygons: dict[Path, NDArray[np.float64]]) -> None:
    for frame in index.pairs:
        if (far := _leaves(frame, polygons)) > TOUCH_PX:
            message = f"the inner contour leaves the outer one by {far:.1f} pixels (files swapped?): both are left out"
            index.findings.append(Finding(frame.inner or frame.image, message))
            frame.inner = frame.outer = None
        elif far > 0:
            message = f"the inner contour touches or crosses the outer one, by {far:.1f} pixels: kept"
            index.findings.append(Finding(frame.inner or frame.image, message, "note"))


def _leaves(frame: Frame, polygons: dict[Path, NDArray[np.float64]]) -> float:
    return leaves_by_px(polygons[frame.inner], polygons[frame.outer]) if frame.inner and frame.outer else 0.0


def _note_what_is_missing(index: SunnybrookIndex) -> None:
    """Gaps in the frames' numbers, patients without contours, and frames with one contour of two."""
    for patient in index.original_ids:
        frames = [frame for frame in index.frames if frame.patient == patient]
        if not frames:
            continue
        where = frames[0].image.parent
        numbers = {frame.number for frame in frames}
        gaps = [n for n in range(1, max(numbers)) if n not in numbers]
        if gaps:
            message = f"{len(gaps)} of frames 1 to {max(numbers)} are not there: {_ranges(gaps)}"
            index.findings.append(Finding(where, message, "note"))
        if not any(f.inner or f.outer for f in frames):
            index.findings.append(Finding(where, f"no frame of {patient} has a sound contour", "note"))
        for kind, other in (KINDS, KINDS[::-1]):
            alone = [f.number for f in frames if getattr(f, kind) and not getattr(f, other)]
            if alone:
                message = f"{len(alone)} frames with {kind} and without {other} contour: {_ranges(alone)}"
                index.findings.append(Finding(where, message, "note"))


def _same_content(files: Iterable[tuple[Path, Any]]) -> list[list[Any]]:
    """Groups of two or more whose files hold the same bytes; only files of one size are read."""
    by_size: dict[int, list[tuple[Path, Any]]] = defaultdict(list)
    for path, what in files:
        by_size[path.stat().st_size].append((path, what))
    by_content: dict[bytes, list[Any]] = defaultdict(list)
    for group in by_size.values():
        for path, what in group if len(group) > 1 else ():
            by_content[hashlib.blake2b(path.read_bytes()).digest()].append(what)
    return [group for group in by_content.values() if len(group) > 1]


def _counts(frames: Sequence[Frame]) -> tuple[str, str, str, str]:
    inner, outer = (sum(getattr(f, kind) is not None for f in frames) for kind in KINDS)
    return str(len(frames)), str(inner), str(outer), str(sum(bool(f.inner and f.outer) for f in frames))


def _ranges(numbers: Sequence[int], most: int = 8) -> str:
    """``1-7, 9, 11-12`` of rising numbers."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return listed((f"{a}-{b}" if b > a else str(a) for a, b in runs), most)


def fetch_sunnybrook(output: str | Path = "data", phantom: int | None = None, seed: int = 0) -> Path:
    """The set's folder ``output/sunnybrook``: the existing one, after a check, or phantoms.

    The set is public domain (CC0; cite Radau et al. 2009), but its site hands it out to registered people only, so
    nothing is downloaded.

    Raises:
        DataError: it is not there, or its files have faults; each is logged by its file before.
    """
    if phantom is not None:
        from decathlete.phantoms.hearts import make_sunnybrook_phantoms

        return make_sunnybrook_phantoms(phantom, output, seed)
    folder = Path(output) / NAME
    if not is_sunnybrook(folder) and is_sunnybrook(usual := dataset_folder(NAME)):
        folder = Path(usual)
    if not is_sunnybrook(folder):
        raise DataError(folder, "the Sunnybrook set is not here, and it cannot be downloaded automatically",
                        "no final_data/link.csv",
                        "Get it from cardiacatlas.org, or make phantoms with --phantom N")  # fmt: skip
    index = index_sunnybrook(folder, progress=True, pixels=True)
    faults = [finding for finding in index.findings if finding.severity == "FAULT"]
    for finding in index.findings:
        if finding.severity != "note":
            logger.warning("%s", finding)
    if faults:
        raise DataError(folder, "some files of the data set are faulty", f"{len(faults)} faults, named above",
                        "Correct or remove these files")  # fmt: skip
    return folder
