"""Methods without learning that find the blood inside the outer contour: thresholds, clusters, edges, filling."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage import exposure, feature, filters, measure, morphology, segmentation

Mask = NDArray[np.bool_]
Values = NDArray[np.floating]

LOCAL_WINDOW = 0.6  # width of a local threshold's window, as a fraction of the outer contour's
# chosen on the five public patients: with smaller values edges stay open, and the flood stops at the coil's shading
CANNY_SIGMA_PX, CANNY_GAP_PX = 1.5, 3
FLOOD_TOLERANCE = 2.0  # standard deviations inside the outer contour
_EM_STEPS, _EM_TOLERANCE = 200, 1e-6

POSTPROCESSING = ("plain", "holes filled", "convex hull", "hull of the largest component")

# from the values inside the outer contour, one axis, to the value above which a pixel is blood
THRESHOLDS: dict[str, Callable[[Values], float]] = {
    "Otsu": filters.threshold_otsu,
    "isodata": filters.threshold_isodata,
    "Li": filters.threshold_li,
    "mean": filters.threshold_mean,
    "minimum": filters.threshold_minimum,
    "triangle": filters.threshold_triangle,
    "Yen": filters.threshold_yen,
    "multi-Otsu, lower of two": lambda values: float(filters.threshold_multiotsu(values, classes=3)[0]),
    "k-means": lambda values: kmeans_threshold(values),
    "Gaussian mixture": lambda values: mixture_threshold(values),
    "contrast stretching, then Otsu": lambda values: stretched_otsu(values),
    "equalized histogram, then Otsu": lambda values: equalized_otsu(values),
}


def kmeans_threshold(values: Values) -> float:
    """Middle between the centres of two clusters; starts at the quartiles, so it is the same each time."""
    low, high = np.percentile(values, (25, 75))
    for _ in range(_EM_STEPS):
        middle = (low + high) / 2
        below, above = values[values <= middle], values[values > middle]
        if not len(below) or not len(above) or (below.mean(), above.mean()) == (low, high):
            break
        low, high = below.mean(), above.mean()
    return float((low + high) / 2)


def mixture_threshold(values: Values) -> float:
    """Value between the means of two Gaussians at which both are equally likely, fitted by expectation maximisation.

    NaN if there is no such value: one component is the more likely one everywhere between the means.
    """
    values = np.asarray(values, dtype=np.float64)
    middle = kmeans_threshold(values)
    groups = values[values <= middle], values[values > middle]
    if not all(map(len, groups)):
        return math.nan
    weight = np.array([len(g) for g in groups]) / len(values)
    mean = np.array([g.mean() for g in groups])
    least = (1e-3 * values.std()) ** 2 + 1e-12  # a component may not shrink to a point
    variance = np.array([g.var() for g in groups]) + least
    likelihood = -np.inf
    for _ in range(_EM_STEPS):
        density = weight * np.exp(-((values[:, None] - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)
        total = density.sum(axis=1) + 1e-300
        probability = density / total[:, None]
        count = probability.sum(axis=0) + 1e-12
        weight, mean = count / len(values), (probability * values[:, None]).sum(axis=0) / count
        variance = (probability * (values[:, None] - mean) ** 2).sum(axis=0) / count + least
        before, likelihood = likelihood, float(np.log(total).mean())
        if likelihood - before < _EM_TOLERANCE:
            break
    order = np.argsort(mean)
    at = np.linspace(mean[order[0]], mean[order[1]], 512)[:, None]
    score = np.log(weight[order]) - (at - mean[order]) ** 2 / (2 * variance[order]) - np.log(variance[order]) / 2
    wins = np.flatnonzero(score[:, 1] > score[:, 0])
    return float(at[wins[0], 0]) if len(wins) and wins[0] > 0 else math.nan


def stretched_otsu(values: Values) -> float:
    """Otsu after stretching the 2nd to 98th percentile to the full range, as a value before the stretching."""
    low, high = np.percentile(values, (2, 98))
    if high <= low:
        return math.nan
    stretched = exposure.rescale_intensity(values, in_range=(low, high), out_range=(0.0, 1.0))
    return float(low + filters.threshold_otsu(stretched) * (high - low))


def equalized_otsu(values: Values) -> float:
    """Otsu after equalizing the histogram, as a value before that: about the median, whatever the image shows."""
    equalized = exposure.equalize_hist(values)
    below = values[equalized <= filters.threshold_otsu(equalized)]
    return float(below.max()) if len(below) else math.nan


def threshold_masks(image: Values, inside: Mask) -> dict[str, tuple[Mask, float]]:
    """Blood by each of `THRESHOLDS`, with the threshold; NaN and an empty mask if no threshold is found."""
    found = {}
    for name, find in THRESHOLDS.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about images with few different values, which are handled below
                value = float(find(image[inside]))
        except (RuntimeError, ValueError, IndexError):  # no two peaks, or too few values
            value = math.nan
        found[name] = (inside & (image > value), value)
    return found


def other_masks(image: Values, inside: Mask) -> dict[str, Mask]:
    """Blood by methods that look at neighbouring pixels: local thresholds, edges, flood filling."""
    columns = np.flatnonzero(inside.any(axis=1))
    width = int(LOCAL_WINDOW * (columns[-1] - columns[0] + 1)) // 2 * 2 + 1
    unit = _unit(image, inside)  # Sauvola's formula knows the range of the values
    return {
        "local mean": inside & (unit > filters.threshold_local(unit, width, method="mean")),
        "Niblack": inside & (unit > filters.threshold_niblack(unit, width)),
        "Sauvola": inside & (unit > filters.threshold_sauvola(unit, width, r=0.5)),
        "Canny edges, filled": canny_mask(image, inside),
        "flood filling": flood_mask(image, inside),
    }


def canny_mask(image: Values, inside: Mask) -> Mask:
    """The area inside closed edges: Canny edges inside the outer contour, gaps closed, holes filled."""
    within = ndimage.binary_erosion(inside, iterations=2)  # the outer contour's own edge surrounds everything
    edges = feature.canny(_unit(image, inside), sigma=CANNY_SIGMA_PX) & within
    closed = ndimage.binary_closing(edges, morphology.disk(CANNY_GAP_PX))
    return ndimage.binary_opening(ndimage.binary_fill_holes(closed), morphology.disk(1)) & inside


def flood_mask(image: Values, inside: Mask) -> Mask:
    """The pixels connected to the brightest place that differ from it by less than two standard deviations."""
    smooth = ndimage.gaussian_filter(np.asarray(image, dtype=np.float64), 1.0)
    deep = ndimage.binary_erosion(inside, iterations=4)
    where = np.where(deep if deep.any() else inside, ndimage.gaussian_filter(smooth, 2.0), -np.inf)
    seed = tuple(int(n) for n in np.unravel_index(int(where.argmax()), where.shape))
    walled = np.where(inside, smooth, smooth.min() - 1e6)
    return segmentation.flood(walled, seed, tolerance=FLOOD_TOLERANCE * float(smooth[inside].std())) & inside


def postprocessed(mask: Mask) -> dict[str, Mask]:
    """The mask after each of `POSTPROCESSING`: papillary muscles are dark, but inside the inner contour."""
    parts, count = measure.label(mask, return_num=True)
    largest = mask if count < 2 else parts == 1 + np.bincount(parts.ravel())[1:].argmax()
    return dict(zip(POSTPROCESSING, (mask, ndimage.binary_fill_holes(mask), _hull(mask), _hull(largest)), strict=True))


def iou(a: Mask, b: Mask) -> float:
    """Intersection over union; 1 for two empty masks."""
    union = np.count_nonzero(a | b)
    return float(np.count_nonzero(a & b) / union) if union else 1.0


def dice_of(value: float) -> float:
    """The Dice for an intersection over union."""
    return 2 * value / (1 + value)


def _hull(mask: Mask) -> Mask:
    if np.count_nonzero(mask) < 3:
        return mask
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pixels in one line have no hull
        return morphology.convex_hull_image(mask)


def _unit(image: Values, inside: Mask) -> Values:
    low, high = np.percentile(image[inside], (2, 98))
    return np.clip((image - low) / max(high - low, 1e-12), 0, 1)
