"""Stored voxels as an image or as label values, with what cannot be either refused."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decathlete.errors import DataError, listed

_PARTIAL_SHARE = 1e-3  # of a mask's voxels that may lie between 0 and 1; a map of probabilities has far more


def check_byte_order(path: Path, stored: NDArray) -> None:
    """Refuse voxels that are far smoother once their bytes are swapped: only the header has the order it states."""
    sample = stored[:, :, stored.shape[2] // 2].reshape(stored.shape[0], -1)
    if sample.shape[0] < 2 or sample.dtype.itemsize < 2:
        return

    def roughness(values: NDArray) -> float:
        values = values.astype(np.float64)
        return float(np.abs(np.diff(values, axis=0)).mean())

    as_stated, swapped = roughness(sample), roughness(sample.byteswap())
    if swapped * 4 < as_stated:
        raise DataError(path, "header and voxels have one byte order",
                        f"neighbours that differ by {as_stated:.3g} as stated, by {swapped:.3g} with bytes swapped",
                        "Convert the image again")  # fmt: skip


def _extremes(path: Path, voxels: NDArray) -> tuple[Any, Any]:
    """Smallest and largest voxel, all finite."""
    low, high = voxels.min(), voxels.max()
    if voxels.dtype.kind == "f" and not (np.isfinite(low) and np.isfinite(high)):
        odd = ~np.isfinite(voxels)
        first = tuple(int(i) for i in np.argwhere(odd)[0])
        raise DataError(path, "voxels are finite", f"{int(odd.sum())} that are not, the first at {first}",
                        "Write the image again without NaN and infinity")  # fmt: skip
    return low, high


def image_voxels(path: Path, voxels: NDArray, notes: list[str]) -> NDArray[np.float32]:
    """Intensities as float32, all finite."""
    low, high = _extremes(path, voxels)
    if max(abs(float(low)), abs(float(high))) > float(np.finfo(np.float32).max):
        raise DataError(path, "intensities fit float32", f"values from {low:g} to {high:g}", "Scale the intensities")
    if low == high:
        notes.append(f"every voxel is {low:g}")
    array = voxels.astype(np.float32)
    if voxels.dtype.kind in "iu" and max(-int(low), int(high)) > 2**24:
        # compared as integers: a comparison as float64 would round both sides alike
        changed = int((array.astype(np.longdouble) != voxels.astype(np.longdouble)).sum())
        if changed:
            notes.append(f"{changed} whole numbers beyond 2^24 were rounded to float32")
    return array


def label_voxels(path: Path, voxels: NDArray, notes: list[str], allowed: Collection[int] | None) -> NDArray:
    """Class numbers as uint8 or int16: whole numbers from 0, and ``allowed`` ones where those are given."""
    low, high = _extremes(path, voxels)
    if low < -1e-3:
        raise DataError(path, "label values are not negative", f"{low:g}", "Map the value to background or a class")
    if high > np.iinfo(np.int16).max:
        raise DataError(path, "label values are class numbers", f"{high:g}", "Give the label, not the image")
    array = _whole(path, voxels, notes).astype(np.uint8 if high < 255.5 else np.int16)
    counts = np.bincount(array.ravel(order="K"), minlength=1)
    present = np.flatnonzero(counts)
    unknown = [] if allowed is None else sorted(set(present.tolist()) - {int(v) for v in allowed})
    if unknown:
        found = listed(f"{value} ({counts[value]} voxels)" for value in unknown)
        rule = f"label values are among {{{', '.join(str(v) for v in sorted(allowed or ()))}}}"
        raise DataError(path, rule, found, "Correct the file, or map the values")
    if len(present) == 1:
        notes.append("the label is empty" if present[0] == 0 else f"every voxel has label {present[0]}")
    return array


def _whole(path: Path, voxels: NDArray, notes: list[str]) -> NDArray:
    """Voxels rounded to whole numbers; refused where one is more than 1e-3 away from any.

    A mask of 0 and 1 may have a few voxels between: editors leave them at the edge, and NFBS's own masks have them.
    """
    if voxels.dtype.kind != "f":
        return voxels
    whole = np.rint(voxels)
    away = np.abs(voxels - whole)
    if (worst := float(away.max())) > 1e-3:
        odd = away > 1e-3
        if voxels.max() <= 1 and odd.sum() <= _PARTIAL_SHARE * np.count_nonzero(voxels > 0.5):
            notes.append(f"{int(odd.sum())} voxels of the mask lie between 0 and 1 and were rounded")
            return whole
        example = float(voxels[tuple(np.argwhere(odd)[0])])
        raise DataError(path, "label values are whole numbers", f"{int(odd.sum())} that are not, such as {example:g}",
                        "Resample labels by nearest neighbour")  # fmt: skip
    if worst > 0:
        notes.append(f"label values rounded to whole numbers, by {worst:.1g} at most")
    return whole
