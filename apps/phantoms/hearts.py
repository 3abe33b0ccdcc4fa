"""Artificial cine frames of the left ventricle with contours, in the layout of the Sunnybrook set."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decathlete.errors import UsageError
from decathlete.io.contours import CONTOUR_ORIGIN, write_contour
from decathlete.phantoms.cases import check_same_phantoms, write_phantoms
from decathlete.progress import ProgressBar

MAX_PATIENTS = 99
_VERSION = 1  # raise it when the same seed would draw something else
_BLOOD, _MUSCLE, _LUNG, _FAT = 210.0, 75.0, 20.0, 260.0
_ANGLES = np.linspace(0, 2 * np.pi, 90, endpoint=False)


def make_sunnybrook_phantoms(
    n: int,
    folder: str | Path,
    seed: int = 0,
    size: int = 128,
    slices: int = 6,
    phases: int = 10,
) -> Path:
    """Write ``n`` artificial patients and return the set's folder, ``folder/sunnybrook``.

    Frame ``k`` is slice ``(k - 1) // phases`` at phase ``(k - 1) % phases``, from base to apex, as in the real set.
    Every slice has an inner contour at the smallest and at the largest cavity, and an outer one at the largest, which
    is the last phase; the papillary muscles lie inside the inner contour. The folder appears when all is written; the
    same call again keeps it, and patient i is the same whatever ``n`` is.

    Args:
        n: patients, 1 to 99.
        folder: where the set's folder goes.
        seed: 0 or more.
        size: pixels along X and Y, at least 96; a pixel has about 1.4 mm.
        slices: per patient, at least 2.
        phases: per slice, at least 2.

    Raises:
        UsageError: a number out of range.
        DataError: the folder holds other data.
    """
    for name, value, low, high in (
        ("--phantom", n, 1, MAX_PATIENTS),
        ("--seed", seed, 0, 2**31),
        ("size", size, 96, 512),
        ("slices", slices, 2, 30),
        ("phases", phases, 2, 60),
    ):
        if not low <= value <= high:
            raise UsageError(name, f"must be from {low} to {high}", str(value))
    target = Path(folder) / "sunnybrook"
    made_from = {"version": _VERSION, "patients": n, "seed": seed, "size": size, "slices": slices, "phases": phases}

    def write(part: Path) -> None:
        _write(part / "final_data", made_from)
        (part / "phantom.json").write_text(json.dumps(made_from) + "\n", encoding="utf-8")

    return write_phantoms(target, made_from, write, _holds)


def _holds(target: Path, made_from: dict[str, int]) -> bool:
    """Whether ``target`` holds exactly these phantoms; False where it does not exist or is empty."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return False
    try:
        there = json.loads((target / "phantom.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        there = None
    check_same_phantoms(target, there, made_from)
    return True


def _write(root: Path, made_from: dict[str, int]) -> None:
    slices, phases = made_from["slices"], made_from["phases"]
    lines = ["patient_id,original_id"]
    numbers = range(1, made_from["patients"] + 1)
    for number in ProgressBar(numbers, desc="sunnybrook phantoms", unit="patient"):
        patient, original = f"PHANTOM{number:02d}", f"SC-PH-{number}"
        lines.append(f"{patient},{original}")
        rng = np.random.default_rng([made_from["seed"], number])
        heart = _Heart(rng, made_from["size"], slices, phases)
        uid = _uid(made_from["seed"], number)
        (root / "dicoms" / patient).mkdir(parents=True)
        for k in range(slices * phases):
            level, phase = divmod(k, phases)
            file = root / "dicoms" / patient / f"{k + 1}.dcm"
            _save(heart.draw(level, phase, rng), heart, level, phase, k + 1, patient, uid, file)
            for kind in ("inner", "outer"):
                if phase == phases - 1 or (kind == "inner" and phase == phases // 2 - 1):
                    name = f"IM-0001-{k + 1:04d}-{kind[0]}contour-manual.txt"
                    write_contour(
                        heart.contour(level, phase, kind),
                        root / "contourfiles" / original / f"{kind[0]}-contours" / name,
                    )
    (root / "link.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


class _Heart:
    """One patient: outlines in pixels by slice and phase, and their picture."""

    def __init__(self, rng: np.random.Generator, size: int, slices: int, phases: int) -> None:
        self.size, self.slices, self.phases = size, slices, phases
        self.spacing_mm = round(float(rng.uniform(1.25, 1.45)), 4)
        self.distance_mm = float(rng.choice([8.0, 10.0]))
        self.beat_ms = float(round(rng.uniform(700, 1000)))
        self.centre = size / 2 + rng.uniform(-6, 6, 2)
        self.radius_mm = rng.uniform(24, 29)  # of the cavity, largest, at the base
        self.wall_mm = rng.uniform(8.5, 12)
        self.shrinkage = rng.uniform(0.18, 0.32)  # of the radius, at the smallest
        self.waves = rng.uniform(0.0, 0.05, 3), rng.uniform(0, 2 * np.pi, 3)
        self.papillary = rng.uniform([0.6, 3.4], [1.4, 4.2])  # angles of the two muscles
        turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        self.row, self.column = turn[:, 0], turn[:, 1]
        self.position_mm = rng.uniform(-80, 80, 3)

    def radii(self, level: int, phase: int, angle: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Inner and outer radius in pixels along ``angle``."""
        contraction = (1 - np.cos(2 * np.pi * (phase + 1) / self.phases)) / 2  # 0 at the last phase, the largest
        taper = np.sqrt(1 - 0.8 * (level / self.slices) ** 2)
        sizes, starts = self.waves
        shape = 1 + sum(a * np.cos((n + 2) * angle + s) for n, (a, s) in enumerate(zip(sizes, starts, strict=True)))
        inner = self.radius_mm * taper * (1 - self.shrinkage * contraction) * shape
        largest = self.radius_mm * taper
        muscle_mm2 = (largest + self.wall_mm) ** 2 - largest**2  # muscle keeps its volume when it contracts
        return inner / self.spacing_mm, np.sqrt(inner**2 + muscle_mm2) / self.spacing_mm

    def contour(self, level: int, phase: int, kind: str) -> NDArray[np.float64]:
        """Points in steps of half a pixel, as people drew them, not closed."""
        radius = self.radii(level, phase, _ANGLES)[kind == "outer"]
        points = self.centre + radius[:, None] * np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)
        points = np.round(2 * (points + CONTOUR_ORIGIN)) / 2
        return points[(points != np.roll(points, 1, axis=0)).any(axis=1)]

    def draw(self, level: int, phase: int, rng: np.random.Generator) -> NDArray[np.int16]:
        """Stored values (rows, columns)."""
        y, x = np.mgrid[: self.size, : self.size].astype(float)
        dx, dy = x - self.centre[0], y - self.centre[1]
        rho, angle = np.hypot(dx, dy), np.arctan2(dy, dx)
        inner, outer = self.radii(level, phase, angle)
        largest = self.radii(0, self.phases - 1, np.zeros(1))[1][0]
        image = np.full(x.shape, _LUNG)
        body = np.hypot((x - self.size / 2) / 0.47, (y - self.size / 2) / 0.42) / self.size
        image += (_FAT - _LUNG) * _inside(0.04 - np.abs(body - 0.95), 0.01)
        # the right ventricle lies round the left one's left side, a crescent of blood
        crescent = np.minimum(largest * 1.15 - np.hypot(dx + largest, 0.8 * dy), rho - outer - 1.5)
        image += (_BLOOD - 10 - image) * _inside(crescent)
        image += (_MUSCLE - image) * _inside(outer - rho)
        image += (_BLOOD - image) * _inside(inner - rho)
        for at in self.papillary:
            away = np.hypot(dx - 0.62 * inner * np.cos(at), dy - 0.62 * inner * np.sin(at))
            image += (_MUSCLE - image) * _inside(0.17 * inner - away)
        image *= 1 + 0.1 * (dy / self.size)  # the coil sees the chest wall better
        noise = rng.normal(0, 9, (2, *image.shape))
        return np.hypot(image + noise[0], noise[1]).round().astype(np.int16)  # magnitude of a complex signal


def _inside(distance: NDArray[np.float64], softness: float = 0.7) -> NDArray[np.float64]:
    """1 inside, 0 outside, with a border as soft as partial volumes make it."""
    return 1 / (1 + np.exp(-np.clip(distance / (softness / 2), -50, 50)))


def _save(
    pixels: NDArray[np.int16], heart: _Heart, level: int, phase: int, number: int, patient: str, uid: str, path: Path
) -> None:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    meta: Any = FileMetaDataset()  # Any: pydicom takes text for UIDs, its types ask for more
    meta.FileMetaInformationGroupLength = 0  # filled in when written
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"  # MR Image Storage
    meta.MediaStorageSOPInstanceUID = f"{uid}.{number}"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = _uid("decathlete")
    d: Any = FileDataset(path, {}, file_meta=meta, preamble=b"\0" * 128, is_implicit_VR=False, is_little_endian=True)
    d.SOPClassUID, d.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    d.StudyInstanceUID, d.SeriesInstanceUID, d.FrameOfReferenceUID = uid, f"{uid}.0", f"{uid}.0.0"
    d.Modality, d.Manufacturer, d.SeriesDescription = "MR", "decathlete phantom", "PHANTOM, no patient"
    d.PatientName, d.PatientID = f"{patient}^phantom", patient
    d.InstanceNumber, d.SeriesNumber = number, 1
    d.SliceThickness, d.SpacingBetweenSlices = _decimals(heart.distance_mm), _decimals(heart.distance_mm)
    d.CardiacNumberOfImages, d.NominalInterval = heart.phases, int(heart.beat_ms)
    d.TriggerTime = _decimals(phase * heart.beat_ms / heart.phases)
    normal = np.cross(heart.row, heart.column)
    place = heart.position_mm + level * heart.distance_mm * normal
    d.ImagePositionPatient = [_decimals(v) for v in place]
    d.ImageOrientationPatient = [_decimals(v) for v in (*heart.row, *heart.column)]
    d.SliceLocation = _decimals(float(place @ normal))
    d.PixelSpacing = [_decimals(heart.spacing_mm)] * 2
    d.SamplesPerPixel, d.PhotometricInterpretation = 1, "MONOCHROME2"
    d.Rows, d.Columns = pixels.shape
    d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 16, 16, 15, 1
    d.RescaleSlope, d.RescaleIntercept = "1", "0"
    d.PixelData = pixels.astype("<i2").tobytes()
    d["PixelData"].VR = "OW"
    d.save_as(path)


def _decimals(value: float) -> str:
    return f"{value:.6f}"


def _uid(*words: Any) -> str:
    """UID made of the words: the same words, the same UID."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, '/'.join(map(str, words))).int >> 24}"
