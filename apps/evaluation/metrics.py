"""Overlap, surface distance and volume of masks on one grid, in float64.

**Surface.** The surface of a mask is the set of its voxels with a face neighbour outside. Everything beyond the array
is outside, so the result does not depend on how tightly an image was cropped. This is the surface of MONAI's
`get_mask_edges`, of SimpleITK's `LabelContour` and of `mask & ~binary_erosion(mask)` in SciPy. Distances are measured
from a voxel's centre to the nearest centre of the other surface, in mm.

**Surface elements.** ``nsd(..., elements=True)`` scores the surface as DeepMind's `surface-distance` does, and with it
the evaluator of the Medical Segmentation Decathlon: between voxel centres, each element weighted by its area.

**Empty masks.** Both empty: NaN, the case is missing for this class. One empty: Dice, IoU and NSD 0, HD95 inf.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion
from scipy.spatial import KDTree

from decathlete.errors import DataError, GeometryError, shape_text

Mask = NDArray[np.bool_]

# Spacings come from float32 headers: ten voxels of 0.1 mm measure 1.0000000149 mm, and should count as within 1 mm.
TOLERANCE_SLACK_MM = 1e-6


def dice(pred: Mask, label: Mask) -> float:
    """Twice the overlap divided by the sum of the two sizes, 0 to 1; NaN if both masks are empty."""
    pred, label = _checked(pred, label)
    total = np.count_nonzero(pred) + np.count_nonzero(label)
    return 2 * np.count_nonzero(pred & label) / total if total else np.nan


def iou(pred: Mask, label: Mask) -> float:
    """Overlap divided by union, 0 to 1; NaN if both masks are empty."""
    pred, label = _checked(pred, label)
    union = np.count_nonzero(pred | label)
    return np.count_nonzero(pred & label) / union if union else np.nan


def pooled_soft_dice(pairs: Iterable[tuple[NDArray, Mask]]) -> float:
    """One Dice of probabilities over the voxels of all cases together: 2 sum(p y) / (sum p + sum y).

    Some projects report this metric. **It must not be compared with a mean of** :func:`dice` **over cases**, as in the
    decathlon: here the weight of a case is the size of its structure. One large tumour that is found well outweighs
    many small ones that are missed, and a false positive in an empty case costs almost nothing. The result also depends
    on which cases are pooled, and on which grid.

    Args:
        pairs: probabilities in 0 .. 1 and reference mask of one class in each case, both with the same shape. They are
            read one by one and not kept, so a generator needs the memory of one case. With masks in place of
            probabilities, the result is the pooled Dice of hard predictions.

    Returns:
        0 to 1; NaN without cases, or if nothing is predicted and labelled in any case.

    Raises:
        GeometryError: a pair whose shapes differ.
        DataError: values outside 0 .. 1, such as logits.
    """
    overlap = total = 0.0
    for probability, label in pairs:
        p, label = np.asarray(probability), np.asarray(label, dtype=bool)
        if p.shape != label.shape:
            found = f"{shape_text(p.shape)} and {shape_text(label.shape)}"
            raise GeometryError("metrics", "probabilities and mask have different shapes", found)
        if p.size and not (p.min() >= 0 and p.max() <= 1 + 1e-5):  # NaN fails too
            raise DataError("metrics", "expected probabilities from 0 to 1", f"{p.min():g} to {p.max():g}",
                            "Take the softmax or sigmoid of logits")  # fmt: skip
        overlap += float(p[label].sum(dtype=np.float64))
        total += float(p.sum(dtype=np.float64)) + np.count_nonzero(label)
    return 2 * overlap / total if total else np.nan


def volume_ml(mask: Mask, spacing: Sequence[float]) -> float:
    """Volume of a mask in ml (1000 cubic mm)."""
    return np.count_nonzero(mask) * float(np.prod(spacing)) / 1000


def nsd(
    pred: Mask, label: Mask, spacing: Sequence[float], tolerance_mm: float = 1.0, *, elements: bool = False
) -> float:
    """Normalized surface Dice: fraction of both surfaces that is within a tolerance of the other one, 0 to 1.

    Args:
        pred: boolean mask, shape (X, Y, Z) or (X, Y).
        label: boolean mask of the same shape.
        spacing: voxel edge lengths in mm, one per array axis.
        tolerance_mm: largest distance that counts as agreement.
        elements: score surface elements by area, as DeepMind's `surface-distance` and the decathlon's evaluator do;
            the default counts surface voxels, as MONAI and the Metrics Reloaded paper do.

    Returns:
        Fraction of the surfaces; NaN if both masks are empty, 0.0 if exactly one is.

    Raises:
        GeometryError: the masks differ in shape, or the spacing does not fit them.

    Source: Nikolov et al. 2021 (arXiv 1809.04430), equation for surface DSC at tolerance.
    """
    if elements:
        return _nsd_of_elements(pred, label, spacing, tolerance_mm)
    return _fraction_within(*surface_distances(pred, label, spacing), tolerance_mm)


def hd95(pred: Mask, label: Mask, spacing: Sequence[float]) -> float:
    """Robust Hausdorff distance in mm: the larger of the two directed 95th percentiles, linearly interpolated.

    The same as MONAI's `compute_hausdorff_distance(percentile=95)` with spacing; with percentile 100 it would be
    SimpleITK's Hausdorff distance of the surfaces. Arguments and errors as in :func:`nsd`; NaN if both masks are empty,
    inf if one is.
    """
    return _percentile(*surface_distances(pred, label, spacing), 95)


def surface_distances(
    pred: Mask, label: Mask, spacing: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distances in mm from each surface voxel of ``pred`` to the surface of ``label``, and the other way round.

    If the other mask is empty, every distance is inf; if a mask itself is empty, its array has length 0.
    """
    pred, label = _checked(pred, label)
    scale = _checked_spacing(spacing, pred.ndim)
    box = _bounding_box(pred | label)
    if box is None:
        return np.empty(0), np.empty(0)
    # the box around both masks is enough: beyond it everything is outside, as beyond the array
    pred_points, label_points = _surface_voxels(pred[box]), _surface_voxels(label[box])
    return _nearest_mm(pred_points, label_points, scale), _nearest_mm(label_points, pred_points, scale)


def score(pred: Mask, label: Mask, spacing: Sequence[float], tolerance_mm: float = 1.0) -> dict[str, float]:
    """All metrics of one class in one case; surfaces are measured only once.

    Returns:
        ``dice``, ``iou``, ``nsd``, ``hd95_mm``, ``volume_ml``, ``reference_volume_ml``.
    """
    pred, label = _checked(pred, label)
    box = _bounding_box(pred | label)
    volumes = {"volume_ml": volume_ml(pred, spacing), "reference_volume_ml": volume_ml(label, spacing)}
    if box is None:
        return dict.fromkeys(("dice", "iou", "nsd", "hd95_mm"), np.nan) | volumes
    pred, label = pred[box], label[box]
    distances = surface_distances(pred, label, spacing)
    return {
        "dice": dice(pred, label),
        "iou": iou(pred, label),
        "nsd": _fraction_within(*distances, tolerance_mm),
        "hd95_mm": _percentile(*distances, 95),
    } | volumes


def _fraction_within(there: NDArray[np.float64], back: NDArray[np.float64], tolerance_mm: float) -> float:
    total = there.size + back.size
    limit = tolerance_mm + TOLERANCE_SLACK_MM
    return (np.count_nonzero(there <= limit) + np.count_nonzero(back <= limit)) / total if total else np.nan


def _percentile(there: NDArray[np.float64], back: NDArray[np.float64], percent: float) -> float:
    if not there.size and not back.size:
        return np.nan
    if not there.size or not back.size:
        return np.inf
    return float(max(np.percentile(there, percent), np.percentile(back, percent)))


def _checked(pred: Mask, label: Mask) -> tuple[Mask, Mask]:
    pred, label = np.asarray(pred, dtype=bool), np.asarray(label, dtype=bool)
    if pred.shape != label.shape:
        found = f"{shape_text(pred.shape)} and {shape_text(label.shape)}"
        raise GeometryError("metrics", "the masks have different shapes", found)
    return pred, label


def _checked_spacing(spacing: Sequence[float], dimensions: int) -> NDArray[np.float64]:
    scale = np.asarray(spacing, dtype=np.float64)
    if scale.shape != (dimensions,) or not np.isfinite(scale).all() or (scale <= 0).any():
        rule = f"expected a spacing of {dimensions} positive numbers in mm, one per array axis"
        raise GeometryError("metrics", rule, ", ".join(f"{edge:g}" for edge in scale.ravel()) or "none")
    return scale


def _bounding_box(mask: Mask) -> tuple[slice, ...] | None:
    """Slices of the smallest box around ``mask``; None if it is empty."""
    box = []
    for axis in range(mask.ndim):
        held = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        if not held.size:
            return None
        box.append(slice(int(held[0]), int(held[-1]) + 1))
    return tuple(box)


def _surface_voxels(mask: Mask) -> NDArray[np.int64]:
    """Indices of the voxels with a face neighbour outside the mask, shape (N, dimensions)."""
    return np.argwhere(mask & ~binary_erosion(mask))  # for erosion, everything beyond the array is outside


def _nearest_mm(
    points: NDArray[np.int64], others: NDArray[np.int64], scale: NDArray[np.float64]
) -> NDArray[np.float64]:
    if not len(others):
        return np.full(len(points), np.inf)
    # A tree over the surface voxels: a distance transform would visit every voxel of the box, twice.
    # On a regular grid, balancing the tree costs more than it saves.
    tree = KDTree(others * scale, balanced_tree=False, compact_nodes=False)
    _, nearest = tree.query(points * scale)
    # from voxel indices: in floating point 1.2 - 0.2 is not 1.0, but (12 - 2) * 0.1 is
    steps = (points - others[nearest]) * scale
    return np.sqrt(np.einsum("ij,ij->i", steps, steps))


def _nsd_of_elements(pred: Mask, label: Mask, spacing: Sequence[float], tolerance_mm: float) -> float:
    pred, label = _checked(pred, label)
    scale = _checked_spacing(spacing, pred.ndim)
    box = _bounding_box(pred | label)
    if box is None:
        return np.nan
    points, areas = zip(*(_surface_elements(mask[box], tuple(scale)) for mask in (pred, label)), strict=True)
    limit = tolerance_mm + TOLERANCE_SLACK_MM
    near = [_nearest_mm(points[n], points[1 - n], scale) <= limit for n in (0, 1)]
    return float(sum(areas[n][near[n]].sum() for n in (0, 1)) / sum(areas[n].sum() for n in (0, 1)))


def _surface_elements(mask: Mask, spacing: tuple[float, ...]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Elements of the surface between voxel centres: their indices, shape (N, dimensions), and areas in mm²."""
    padded = np.pad(mask, 1)
    corners = list(product((0, 1), repeat=mask.ndim))
    code = np.zeros([n - 1 for n in padded.shape], dtype=np.uint8)
    for corner in corners:  # first corner in the highest bit, as the table counts
        code <<= 1
        code |= padded[tuple(slice(c, c + n) for c, n in zip(corner, code.shape, strict=True))]
    held = (code != 0) & (code != 2 ** len(corners) - 1)
    return np.argwhere(held), _area_table(spacing)[code[held]]


@lru_cache(maxsize=32)
def _area_table(spacing: tuple[float, ...]) -> NDArray[np.float64]:
    """Area (in 2D: length) of the element for each pattern of corner voxels, from MONAI's copy of DeepMind's table."""
    from monai.metrics.utils import get_code_to_measure_table

    table, _ = get_code_to_measure_table(spacing)
    return table.numpy().astype(np.float64)
