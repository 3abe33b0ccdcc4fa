"""Outputs for frames of the left ventricle: contours as text, and the volumes of a heartbeat."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from decathlete.errors import DataError
from decathlete.files import NIFTI_SUFFIXES

logger = logging.getLogger(__name__)

_NUMBER = re.compile(r"\d+", re.ASCII)


def write_contours(label: NDArray[Any], folder: str | Path, case: str) -> list[Path]:
    """Write the outlines of a label map (X, Y, Z) of 1 cavity and 2 muscle as the challenge's text files.

    Frame 59 gives ``IM-0001-0059-icontour-auto.txt`` and ``...-ocontour-auto.txt``, another name
    ``<case>-icontour...``, and a volume of several slices ``<case>-slice-003-icontour...``, counted from 1. Where
    nothing was found no file is written, and one of an earlier prediction goes.
    """
    from decathlete.io.contours import trace_contour, write_contour

    name = f"IM-0001-{int(case):04d}" if _NUMBER.fullmatch(case) else case
    written = []
    for z in range(label.shape[2]):
        stem = name if label.shape[2] == 1 else f"{name}-slice-{z + 1:03d}"
        for kind, mask in (("i", label[:, :, z] == 1), ("o", label[:, :, z] > 0)):
            path = Path(folder) / f"{stem}-{kind}contour-auto.txt"
            points = trace_contour(mask)
            if len(points):
                write_contour(points[:-1], path)
                written.append(path)
            else:
                path.unlink(missing_ok=True)
    return written


def heartbeats(labels: Mapping[Path, Path], folder: str | Path) -> dict[Path, Any]:
    """Volumes over the heartbeat of each folder of DICOM frames whose slices have all phases: written and printed.

    Args:
        labels: frame to its predicted label map; NIfTI files among them are passed over.
        folder: where ``heart_function.csv``, ``.json`` and ``.png`` go; with frames of several folders, where folders
            of their names go.

    Returns:
        Folder of frames to its `HeartFunction`; what cannot be one is reported in a line of the log.
    """
    frames = [path for path in labels if not path.name.lower().endswith(NIFTI_SUFFIXES)]
    if len(frames) < 4:  # two slices at two phases
        return {}
    from decathlete.evaluation.heartbeat import frame_area, groups_of, heart_function, write_heart_function
    from decathlete.io.nifti import read_nifti

    found = {}
    groups = groups_of(frames)
    for place, own in groups.items():
        try:
            areas = [frame_area(path, read_nifti(labels[path], kind="label").array[:, :, 0]) for path in own]
            found[place] = heart_function(areas, place)
        except DataError as error:
            logger.warning("no volumes over the heartbeat: %s", error)
            continue
        target = Path(folder) if len(groups) == 1 else Path(folder) / place.name
        drawn = _drawn(place, {path.name for path in own})
        write_heart_function(found[place], target, drawn, f"{place.name}\n{found[place]}")
        print(f"{place.name}: {found[place]}" + (f"; drawn contours: {drawn}" if drawn else ""), file=sys.stdout)
    return found


def _drawn(place: Path, names: set[str]) -> Any:
    """Volumes of the contours that were drawn on these frames of a folder; None where it is no patient's of the set."""
    from decathlete.data.sunnybrook import index_sunnybrook, is_sunnybrook
    from decathlete.evaluation.heartbeat import drawn_areas, heart_function

    root = place.parent.parent
    if place.parent.name != "dicoms" or not is_sunnybrook(root):
        return None
    try:
        index = index_sunnybrook(root)
        own = [f for f in index.frames if f.patient == place.name and f.image.name in names]
        return heart_function(drawn_areas(own), place)
    except DataError as error:
        logger.warning("no volumes of drawn contours: %s", error)
        return None
