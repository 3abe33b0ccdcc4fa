"""Stored voxels as intensities or as label values; an error if they cannot be."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decathlete.errors import DataError, listed

_PARTIAL_SHARE = 1e-3  # of the voxels of a mask may be between 0 and 1; a probability map has far more


def check_byte_order(path: Path, stored: NDArray) -> None:
    """Refuse voxels that are far smoother with their bytes swapped: then only the header has the stated byte order."""
    sample = stored[:, :, stored.shape[2] // 2].reshape(stored.shape[0], -1)
    if sample.shape[0] < 2 or sample.dtype.itemsize < 2:
        return

    def roughness(values: NDArray) -> float:
        values = values.astype(np.float64)
        return float(np.abs(np.diff(values, axis=0)).mean())

    as_stated, swapped = roughness(sample), roughness(sample.byteswap())
    if swapped * 4 < as_stated:
        raise DataError(path, "header and voxels seem to differ in byte order",
                        f"neighbours differ by {as_stated:.3g} as stated, by {swapped:.3g} with swapped bytes",
                        "Convert the image again")  # fmt: skip


def _extremes(path: Path, voxels: NDArray) -> tuple[Any, Any]:
    """Smallest and largest voxel, all finite."""
    low, high = voxels.min(), voxels.max()
    if voxels.dtype.kind == "f" and not (np.isfinite(low) and np.isfinite(high)):
        odd = ~np.isfinite(voxels)
        first = ", ".join(str(i) for i in np.argwhere(odd)[0])
        raise DataError(path, "some voxels are not finite", f"{int(odd.sum())}, the first at {first}",
                        "Write the image again without NaN and infinity")  # fmt: skip
    return low, high


def image_voxels(path: Path, voxels: NDArray, notes: list[str]) -> NDArray[np.float32]:
    """Intensities as float32, all finite."""
    low, high = _extremes(path, voxels)
    if max(abs(float(low)), abs(float(high))) > float(np.finfo(np.float32).max):
        raise DataError(path, "intensities do not fit into float32", f"{low:g} to {high:g}", "Scale the intensities")
    if low == high:
        notes.append(f"every voxel has the value {low:g}")
    array = voxels.astype(np.float32)
    if voxels.dtype.kind in "iu" and max(-int(low), int(high)) > 2**24:
        # compared as integers: a comparison as float64 would round both sides alike
        changed = int((array.astype(np.longdouble) != voxels.astype(np.longdouble)).sum())
        if changed:
            notes.append(f"{changed} integers beyond 2^24 were rounded to float32")
    return array


def label_voxels(path: Path, voxels: NDArray, notes: list[str], allowed: Collection[int] | None) -> NDArray:
    """Label values as uint8 or int16: integers from 0, and none but ``allowed`` if that is given."""
    low, high = _extremes(path, voxels)
    if low < -1e-3:
        raise DataError(path, "a label value is negative", f"{low:g}", "Map it to background or to a class")
    if high > np.iinfo(np.int16).max:
        raise DataError(path, "a label value is too large for a class", f"{high:g}", "Give the label, not the image")
    array = _integers(path, voxels, notes).astype(np.uint8 if high < 255.5 else np.int16)
    counts = np.bincount(array.ravel(order="K"), minlength=1)
    present = np.flatnonzero(counts)
    unknown = [] if allowed is None else sorted(set(present.tolist()) - {int(v) for v in allowed})
    if unknown:
        found = listed(f"{value} in {counts[value]} voxels" for value in unknown)
        rule = f"expected only the label values {', '.join(str(v) for v in sorted(allowed or ()))}"
        raise DataError(path, rule, f"also {found}", "Correct the file, or map the values")
    if len(present) == 1:
        notes.append("the label is empty" if present[0] == 0 else f"every voxel has the label {present[0]}")
    return array


def _integers(path: Path, voxels: NDArray, notes: list[str]) -> NDArray:
    """Voxels rounded to integers; an error if one is more than 1e-3 away from all integers.

    A mask of 0 and 1 may have a few voxels in between: editors leave them at edges, and the masks of NFBS have them.
    """
    if voxels.dtype.kind != "f":
        return voxels
    whole = np.rint(voxels)
    away = np.abs(voxels - whole)
    if (worst := float(away.max())) > 1e-3:
        odd = away > 1e-3
        if voxels.max() <= 1 and odd.sum() <= _PARTIAL_SHARE * np.count_nonzero(voxels > 0.5):
            notes.append(f"{int(odd.sum())} voxels of the mask were between 0 and 1 and were rounded")
            return whole
        example = float(voxels[tuple(np.argwhere(odd)[0])])
        raise DataError(path, "label values are not integers", f"{int(odd.sum())} voxels, such as {example:g}",
                        "Resample labels with nearest neighbour interpolation")  # fmt: skip
    if worst > 0:
        notes.append(f"label values were rounded to integers, by at most {worst:.1g}")
    return whole
