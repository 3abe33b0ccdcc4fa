"""Function of the left ventricle: cavity volume over a heartbeat, ejection fraction, muscle mass."""

from __future__ import annotations

import csv
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decathlete.errors import DataError, GeometryError
from decathlete.files import atomic_write

MUSCLE_G_PER_ML = 1.05
SAME_SLICE_MM = 0.5
UNEVEN = 0.02  # fraction of the distance between slices


@dataclass(frozen=True)
class FrameArea:
    """Areas inside the contours of one frame.

    Attributes:
        name: name of the frame, for messages.
        height_mm: position of the slice along the normal of all slices.
        time_ms: time after the R wave.
        cavity_mm2: area inside the inner contour; NaN if it was not drawn.
        muscle_mm2: area between the contours; NaN if one of the two is missing.
    """

    name: str
    height_mm: float
    time_ms: float
    cavity_mm2: float
    muscle_mm2: float = math.nan


@dataclass(frozen=True)
class HeartFunction:
    """Volumes over a heartbeat.

    Attributes:
        time_ms: time of each phase after the R wave, mean over its slices, (phases,).
        cavity_ml: volume of the cavity, (phases,); NaN for a phase without a drawn frame.
        muscle_ml: volume of the muscle, likewise.
        slices: number of slices.
        distance_mm: distance between slices.
    """

    time_ms: NDArray[np.float64]
    cavity_ml: NDArray[np.float64]
    muscle_ml: NDArray[np.float64]
    slices: int
    distance_mm: float

    @property
    def end_diastole(self) -> int:
        """Phase of the largest cavity, from 0."""
        return int(np.nanargmax(self.cavity_ml))

    @property
    def end_systole(self) -> int:
        """Phase of the smallest cavity, from 0."""
        return int(np.nanargmin(self.cavity_ml))

    def metrics(self) -> dict[str, Any]:
        """``edv_ml``, ``esv_ml``, ``ejection_fraction``, ``muscle_g``, and the phases and slices behind them.

        The mass is that of the muscle at end-diastole; None if it was not drawn.
        """
        large, small = (float(self.cavity_ml[n]) for n in (self.end_diastole, self.end_systole))
        muscle = float(self.muscle_ml[self.end_diastole])
        return {
            "edv_ml": large,
            "esv_ml": small,
            "ejection_fraction": (large - small) / large if large else None,
            "muscle_g": None if math.isnan(muscle) else muscle * MUSCLE_G_PER_ML,
            "end_diastole_phase": self.end_diastole + 1,
            "end_systole_phase": self.end_systole + 1,
            "phases": len(self.cavity_ml),
            "slices": self.slices,
            "slice_distance_mm": self.distance_mm,
        }

    def __str__(self) -> str:
        m = self.metrics()
        fraction = "-" if m["ejection_fraction"] is None else f"{m['ejection_fraction']:.0%}"
        mass = "" if m["muscle_g"] is None else f", muscle {m['muscle_g']:.0f} g"
        return (
            f"end-diastole {m['edv_ml']:.0f} ml (phase {m['end_diastole_phase']}), end-systole {m['esv_ml']:.0f} ml "
            f"(phase {m['end_systole_phase']}), ejection fraction {fraction}{mass}"
        )


def heart_function(frames: Iterable[FrameArea], where: str | Path = "frames") -> HeartFunction:
    """Volumes by phase: the areas of a phase summed over the slices, times the measured distance between slices.

    Frames at the same height are a slice; sorted by time, they are the phases. Every slice must have all phases: with a
    missing frame, the heart would seem smaller.

    Args:
        frames: areas, in any order.
        where: the start of error messages.

    Raises:
        GeometryError: fewer than two slices, or unequal distances between them.
        DataError: a slice with fewer or more frames than the others, only one phase, or no cavity in any frame.
    """
    slices = _slices(frames)
    heights = np.array([np.mean([f.height_mm for f in frames]) for frames in slices])
    steps = np.diff(heights)
    if len(slices) < 2:
        raise GeometryError(
            where, "expected two or more slices", f"{len(slices)} given", "Pass all frames of the patient"
        )
    if np.ptp(steps) > UNEVEN * steps.mean() + 0.01:
        raise GeometryError(where, "the distances between slices differ", f"{steps.min():.4g} to {steps.max():.4g} mm",
                            "Add the missing slices")  # fmt: skip
    counts = [len(frames) for frames in slices]
    if min(counts) < max(counts) or max(counts) < 2:
        few = slices[int(np.argmin(counts))]
        found = f"{min(counts)} in the slice of {few[0].name}" + (
            f", {max(counts)} in another" if max(counts) > 1 else ""
        )
        raise DataError(where, "expected two or more phases of the heartbeat, the same number in every slice", found,
                        "Pass all frames of the patient")  # fmt: skip
    cavity, muscle, times = (
        np.array([[getattr(f, name) for f in frames] for frames in slices])  # (slices, phases)
        for name in ("cavity_mm2", "muscle_mm2", "time_ms")
    )
    if not np.nansum(cavity) > 0:
        raise DataError(where, "no frame shows a cavity")
    distance = float(steps.mean())
    return HeartFunction(
        times.mean(axis=0), _sum(cavity) * distance / 1000, _sum(muscle) * distance / 1000, len(slices), distance
    )


def frame_area(path: str | Path, label: NDArray[Any] | None = None, **masks: NDArray[np.bool_] | None) -> FrameArea:
    """Areas in a DICOM frame, from a label map (X, Y) with 1 cavity and 2 muscle, or masks ``inner`` and ``outer``.

    Raises:
        DataError: the frame cannot be read, or its position or TriggerTime is missing.
    """
    from decathlete.io.dicom import frame_geometry, read_dicom_header

    header = read_dicom_header(path)
    for tag in ("ImagePositionPatient", "ImageOrientationPatient", "TriggerTime"):
        if header.get(tag) in (None, ""):
            raise DataError(path, f"no {tag} in this frame", remedy="Export the frames with this DICOM attribute")
    affine, spacing = frame_geometry(header, path)
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    height = float(affine[:3, 3] @ normal / np.linalg.norm(normal))
    area = spacing[0] * spacing[1]
    if label is not None:
        masks = {"inner": label == 1, "outer": label > 0}
    inner, outer = masks.get("inner"), masks.get("outer")
    cavity = math.nan if inner is None else np.count_nonzero(inner) * area
    muscle = math.nan if inner is None or outer is None else np.count_nonzero(outer & ~inner) * area
    return FrameArea(Path(path).name, height, float(header.TriggerTime), cavity, muscle)


def drawn_areas(frames: Iterable[Any]) -> list[FrameArea]:
    """Areas of a patient's drawn contours; ``frames`` as from `decathlete.data.index_sunnybrook`."""
    from decathlete.io.contours import contour_mask, read_contour
    from decathlete.io.dicom import read_dicom_header

    areas = []
    for frame in frames:
        masks = {}
        for kind in ("inner", "outer"):
            if (path := getattr(frame, kind)) is not None:
                header = read_dicom_header(frame.image)
                masks[kind] = contour_mask(read_contour(path), (header.Columns, header.Rows), where=path)
        areas.append(frame_area(frame.image, **masks))
    return areas


def write_heart_function(
    found: HeartFunction, folder: str | Path, drawn: HeartFunction | None = None, title: str = ""
) -> list[Path]:
    """Write ``heart_function.csv``, ``.json`` and ``.png`` (table, metrics, chart) and return their paths.

    Args:
        found: the volumes.
        folder: folder of the files.
        drawn: volumes of drawn contours, shown as points in the chart and as another column.
        title: title of the chart.
    """
    table, metrics, picture = (Path(folder) / f"heart_function.{end}" for end in ("csv", "json", "png"))
    with atomic_write(table) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["phase", "time_ms", "cavity_ml", "muscle_ml"] + (["drawn_cavity_ml"] if drawn else []))
        for n, row in enumerate(zip(found.time_ms, found.cavity_ml, found.muscle_ml, strict=True)):
            values = [*row, *([drawn.cavity_ml[n]] if drawn else [])]
            writer.writerow([n + 1, *("" if math.isnan(v) else f"{v:.6g}" for v in values)])
    content = found.metrics() | ({"drawn": drawn.metrics()} if drawn else {})
    with atomic_write(metrics) as part:
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    _draw(found, drawn, title, picture)
    return [table, metrics, picture]


def _draw(found: HeartFunction, drawn: HeartFunction | None, title: str, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(found.time_ms, found.cavity_ml, "o-", color="#0072b2", label="predicted cavity")
    if np.isfinite(found.muscle_ml).any():
        axes.plot(found.time_ms, found.muscle_ml, ".:", color="#888888", label="predicted muscle")
    if drawn is not None:
        axes.plot(found.time_ms, drawn.cavity_ml, "s", color="#d55e00", label="drawn cavity")
        if np.isfinite(drawn.muscle_ml).any():
            axes.plot(found.time_ms, drawn.muscle_ml, "x", color="#444444", label="drawn muscle")
    axes.set(xlabel="time after the R wave, ms", ylabel="volume, ml", title=title or str(found), ylim=(0, None))
    axes.title.set_fontsize(8)
    axes.legend()
    with atomic_write(path) as part:
        figure.savefig(part, dpi=120)


def _slices(frames: Iterable[FrameArea]) -> list[list[FrameArea]]:
    """Frames by slice, from the lowest slice on, each slice sorted by time."""
    slices: list[list[FrameArea]] = []
    for frame in sorted(frames, key=lambda f: f.height_mm):
        if slices and frame.height_mm - slices[-1][-1].height_mm < SAME_SLICE_MM:
            slices[-1].append(frame)
        else:
            slices.append([frame])
    return [sorted(found, key=lambda f: f.time_ms) for found in slices]


def _sum(areas: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum over the slices that were drawn; NaN for a phase without any."""
    total = np.nansum(areas, axis=0)
    return np.where(np.isnan(areas).all(axis=0), np.nan, total)


def groups_of(frames: Sequence[Path]) -> dict[Path, list[Path]]:
    """Frames by folder."""
    found: dict[Path, list[Path]] = defaultdict(list)
    for frame in frames:
        found[frame.parent].append(frame)
    return dict(found)
