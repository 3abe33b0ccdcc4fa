"""N4 bias field correction: the smooth uneven gain of an MR scan, found from the image alone and divided out.

The algorithm is that of Tustison et al. 2010, doi 10.1109/TMI.2010.2046908, as ITK has it: sharpen the histogram of
the log image, smooth what that changed with a cubic B-spline (Lee et al. 1997, doi 10.1109/2945.620490), repeat, and
double the spline's mesh from level to level. Two engines give the same field up to rounding: ``itk`` is ITK's own
filter, which takes voxel by voxel; ``separable`` fits the same spline axis by axis, as voxels on a grid allow, in a
small part of the time (``benchmarks/bias_field.py``).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type
from numpy.typing import ArrayLike, NDArray

from decathlete.errors import ConfigError, DataError, GeometryError
from decathlete.machine import cores

logger = logging.getLogger(__name__)

Engine = Literal["separable", "itk"]

# ITK's defaults
_BINS = 200  # of the histogram, and of Otsu's
_FWHM = 0.15  # of the Gaussian that blurs the log histogram
_WIENER_NOISE = 0.01
_FIRST_SPANS = 1  # of the spline along each axis on the first level; doubled from level to level
_ORDER = 3
_FLAT = 1e-5  # log intensities that differ by less hold no field
_LEAST_VOXELS = (_FIRST_SPANS + _ORDER) ** 3  # as many as the first level has control points
_SLAB_BYTES = 1 << 22


def correct_bias_field(
    image: ArrayLike,
    affine: ArrayLike | None = None,
    shrink_factor: int | Sequence[int] = 3,
    iterations: Sequence[int] = (20, 10, 10, 5),
    convergence_threshold: float = 0.0,
    mask: ArrayLike | Literal["otsu"] | None = "otsu",
    threads: int | None = None,
    return_field: bool = False,
    engine: Engine = "separable",
) -> Any:
    """The image divided by its bias field, float32; with ``return_field`` also the field.

    The field is fitted on every n-th voxel and evaluated as a smooth spline on the complete grid. It is positive, and
    known up to a constant factor only; ``corrected * field`` is the image again. Where no voxel was fitted, far from
    the head, it is 1. Voxels of 0 or less have no logarithm: they take no part in the fit and are divided like the
    others. An image with fewer than 64 voxels to fit, or without contrast in them (constant, nowhere positive), has no
    field: it is returned unchanged, with a field of 1 and a line in the log.

    The same call gives the same result; another number of threads changes the last bits of ``itk``'s only.

    Args:
        image: shape (X, Y, Z), any real dtype.
        affine: 4x4, whose spacing keeps thick slices from being thinned out; None for voxels of equal edges.
        shrink_factor: every n-th voxel is fitted along the axis of the finest spacing, and along the others a voxel
            about every so many mm; four voxels an axis stay, where it has them. Three numbers are taken as they are.
        iterations: largest number on each level; as many levels as numbers.
        convergence_threshold: a level ends early when an iteration changes the field by less (coefficient of
            variation of the ratio of the fields); ITK's default is 0.001. 0, as ANTs has it, runs all iterations.
        mask: voxels to fit: nonzero ones of an array of the image's shape, those above Otsu's threshold, or with None
            all above 0.
        threads: number of threads; None for all cores.
        return_field: return ``(corrected, field)``.
        engine: ``separable`` or ``itk``.

    Raises:
        DataError: voxels that are not finite, or not three axes.
        GeometryError: a mask of another shape, or an affine without spacing.
        ConfigError: an invalid shrink factor, iterations, threads, mask or engine.
    """
    _check_settings(shrink_factor, iterations, convergence_threshold, threads, engine)
    voxels = np.asarray(image)
    if voxels.ndim != 3 or not voxels.size:
        raise DataError("image", "expected a volume with three axes", f"shape {voxels.shape}")
    voxels = voxels.astype(np.float32, copy=False)
    if not np.isfinite(voxels).all():
        raise DataError("image", "the image has voxels that are infinite or not a number",
                        f"{(~np.isfinite(voxels)).sum()} voxels", "Repair the file, or leave it out")  # fmt: skip
    grids = [
        _shrunk_axis(n, f) for n, f in zip(voxels.shape, _factors(voxels.shape, affine, shrink_factor), strict=True)
    ]
    picked = np.ix_(*grids)
    shrunk = voxels[picked]
    inside = _mask(shrunk, mask, voxels.shape, picked)
    if inside.sum() < _LEAST_VOXELS or np.ptp(np.log(shrunk[inside])) < _FLAT:
        logger.warning(
            "no bias field can be fitted: too few voxels above 0, or no contrast; the image is left unchanged"
        )
        corrected = voxels.copy()
        return (corrected, np.ones_like(corrected)) if return_field else corrected
    fit = _fit_itk if engine == "itk" else _fit_separable
    lattice = fit(shrunk, inside, tuple(iterations), convergence_threshold, threads)
    corrected, field = np.empty_like(voxels), np.empty_like(voxels) if return_field else None
    _divide(voxels, lattice, grids, threads or cores(), corrected, field)
    return (corrected, field) if return_field else corrected


class N4BiasFieldCorrectiond(MapTransform):
    """Divide images (C, X, Y, Z) by their bias fields, channel by channel, as `correct_bias_field` does.

    Nothing is random: `decathlete.data.CachedDataset` keeps the result, on disk too. Meta data stay as they are.

    Args:
        keys: images.
        shrink_factor, iterations, convergence_threshold, threads, engine: as `correct_bias_field`.
        mask: ``otsu``, None, or the key of a mask (1, X, Y, Z) or (C, X, Y, Z) in the case.
        field_postfix: where given, the field is kept under the key with this behind it; not with an underscore in
            front where MONAI's Spacingd follows, which takes such keys for meta data.
        allow_missing_keys: skip keys that a case does not have.

    Raises:
        DataError: as `correct_bias_field`, with the file's name.
        ConfigError: an invalid setting, when the transform is made.
    """

    def __init__(
        self,
        keys: KeysCollection,
        shrink_factor: int | Sequence[int] = 3,
        iterations: Sequence[int] = (20, 10, 10, 5),
        convergence_threshold: float = 0.0,
        mask: str | None = "otsu",
        threads: int | None = None,
        engine: Engine = "separable",
        field_postfix: str | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        _check_settings(shrink_factor, iterations, convergence_threshold, threads, engine)
        self.shrink_factor, self.iterations = shrink_factor, tuple(iterations)
        self.convergence_threshold, self.mask = convergence_threshold, mask
        self.threads, self.engine, self.field_postfix = threads, engine, field_postfix

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The case with its images corrected, float32."""
        d = dict(data)
        for key in self.key_iterator(d):
            image = d[key]
            try:
                corrected, fields = self._correct(image, d)
            except DataError as error:
                where = image.meta.get("filename_or_obj", key) if isinstance(image, MetaTensor) else key
                raise type(error)(where, error.rule, error.found, error.remedy) from error
            d[key] = convert_to_dst_type(corrected, image, dtype=np.float32)[0]
            if self.field_postfix:
                d[f"{key}{self.field_postfix}"] = convert_to_dst_type(fields, image, dtype=np.float32)[0]
        return d

    def _correct(self, image: Any, data: Mapping[Hashable, Any]) -> tuple[NDArray, NDArray]:
        array = image.cpu().numpy() if isinstance(image, torch.Tensor) else np.asarray(image)
        affine = image.affine.cpu().numpy() if isinstance(image, MetaTensor) else None
        pairs = [
            correct_bias_field(
                channel,
                affine,
                self.shrink_factor,
                self.iterations,
                self.convergence_threshold,
                self._channel_mask(data, number),
                self.threads,
                return_field=True,
                engine=self.engine,
            )
            for number, channel in enumerate(array)
        ]
        corrected, fields = zip(*pairs, strict=True)
        return np.stack(corrected), np.stack(fields)

    def _channel_mask(self, data: Mapping[Hashable, Any], number: int) -> Any:
        if self.mask is None or self.mask == "otsu":
            return self.mask
        mask = data[self.mask]
        mask = mask.cpu().numpy() if isinstance(mask, torch.Tensor) else np.asarray(mask)
        return mask[min(number, len(mask) - 1)]


def _check_settings(
    shrink_factor: int | Sequence[int],
    iterations: Sequence[int],
    convergence_threshold: float,
    threads: int | None,
    engine: str,
) -> None:
    factors = [shrink_factor] if isinstance(shrink_factor, int) else list(shrink_factor)
    if len(factors) not in (1, 3) or any(not isinstance(f, int) or f < 1 for f in factors):
        raise ConfigError("shrink_factor", "must be a whole number above 0, or three of them", repr(shrink_factor))
    if not 1 <= len(iterations) <= 8 or any(not isinstance(n, int) or n < 1 for n in iterations):
        raise ConfigError("iterations", "must be 1 to 8 whole numbers above 0, one per level", repr(iterations))
    if not 0 <= convergence_threshold < math.inf:
        raise ConfigError("convergence_threshold", "must be a number, 0 or more", repr(convergence_threshold))
    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise ConfigError("threads", "must be a whole number above 0, or null", repr(threads))
    if engine not in ("separable", "itk"):
        raise ConfigError("engine", "must be 'separable' or 'itk'", repr(engine))


def _factors(shape: Sequence[int], affine: ArrayLike | None, shrink_factor: int | Sequence[int]) -> list[int]:
    """Step between fitted voxels along each axis."""
    if not isinstance(shrink_factor, int):
        return list(shrink_factor)
    spacing = np.ones(3)
    if affine is not None:
        spacing = np.linalg.norm(np.asarray(affine, dtype=np.float64)[:3, :3], axis=0)
        if not (np.isfinite(spacing).all() and (spacing > 0).all()):
            raise GeometryError("affine", "the spacing must be above 0 on every axis", f"spacing {spacing}")
    step_mm = shrink_factor * spacing.min()
    enough = [max(1, n // (_ORDER + 1)) for n in shape]  # an axis keeps as many voxels as a span has control points
    return [min(max(1, round(step_mm / s)), most) for s, most in zip(spacing, enough, strict=True)]


def _shrunk_axis(n: int, factor: int) -> NDArray[np.intp]:
    """Every ``factor``-th index of an axis, as far from one end as from the other."""
    return np.arange((n - 1) % factor // 2, n, factor)


def _mask(shrunk: NDArray, mask: Any, shape: tuple[int, ...], picked: tuple[NDArray, ...]) -> NDArray[np.bool_]:
    """Voxels of the shrunk image to fit."""
    positive = shrunk > 0
    if mask is None:
        return positive
    if isinstance(mask, str):
        if mask != "otsu":
            raise ConfigError("mask", "must be 'otsu', null or an array", repr(mask))
        return positive & (shrunk > otsu_threshold(shrunk))
    given = np.asarray(mask)
    if given.shape != shape:
        raise GeometryError("mask", "mask and image differ in shape", f"mask {given.shape}, image {shape}")
    return positive & (given[picked] != 0)


def otsu_threshold(voxels: NDArray) -> float:
    """Threshold that leaves the least variance within the two classes (Otsu 1979, doi 10.1109/TSMC.1979.4310076)."""
    low, high = float(voxels.min()), float(voxels.max())
    if low == high:
        return low
    counts, edges = np.histogram(voxels, _BINS, (low, high))
    centers = (edges[:-1] + edges[1:]) / 2
    below, total = np.cumsum(counts)[:-1], counts.sum()
    sums = np.cumsum(counts * centers)
    with np.errstate(invalid="ignore", divide="ignore"):
        difference = sums[:-1] / below - (sums[-1] - sums[:-1]) / (total - below)
        between = np.nan_to_num(below * (total - below) * difference**2)
    return float(edges[1 + int(between.argmax())])


# --- the spline: control points on a lattice, a cubic piece a span (ITK's BSplineScatteredDataPointSetToImageFilter)


def _basis(positions: NDArray, spans: int) -> NDArray[np.float32]:
    """Weights (n, spans + 3) of the control points at ``positions`` from 0 to 1 along an axis."""
    u = np.clip(positions, 0, 1) * spans
    first = np.minimum(u.astype(int), spans - 1)
    t = u - first
    pieces = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
    weights = np.zeros((len(u), spans + _ORDER), np.float32)
    for number, piece in enumerate(pieces):
        weights[np.arange(len(u)), first + number] = piece / 6
    return weights


def _contract(array: NDArray, matrices: Sequence[NDArray]) -> NDArray:
    """``array`` (a, b, c) multiplied along each axis by a matrix (a, A), (b, B), (c, C): shape (A, B, C)."""
    for matrix in matrices:
        array = np.tensordot(array, matrix, axes=(0, 0))  # the axis that is done goes to the end
    return array


def _refined(lattice: NDArray) -> NDArray:
    """The same spline with twice as many spans along each axis."""
    for axis in range(3):
        p = np.moveaxis(lattice, axis, 0)
        fine = np.empty((2 * len(p) - _ORDER, *p.shape[1:]), p.dtype)
        fine[0::2] = (p[:-1] + p[1:]) / 2
        fine[1::2] = (p[:-2] + 6 * p[1:-1] + p[2:]) / 8
        lattice = np.moveaxis(fine, 0, axis)
    return lattice


def _unit(n: int) -> NDArray:
    return np.linspace(0, 1, n) if n > 1 else np.zeros(1)


# --- the two engines: log field of the shrunk image as control points


def _fit_separable(
    shrunk: NDArray, inside: NDArray[np.bool_], iterations: tuple[int, ...], threshold: float, threads: int | None
) -> NDArray:
    log_image = np.log(shrunk[inside])
    uncorrected, field = log_image, np.zeros_like(log_image)
    spans = _FIRST_SPANS
    lattice = np.zeros((spans + _ORDER,) * 3, np.float32)
    grid = np.zeros(shrunk.shape, np.float32)
    for level, most in enumerate(iterations):
        if level:
            lattice, spans = _refined(lattice), 2 * spans
        weights = [_basis(_unit(n), spans) for n in shrunk.shape]
        squares = [w**2 for w in weights]
        omega = _contract(inside.astype(np.float32), squares)
        # of a tensor product's weights the sum of squares, by which a voxel's part is divided, is a product too
        cubes = [w**3 / s.sum(1, keepdims=True) for w, s in zip(weights, squares, strict=True)]
        reached = omega > np.finfo(np.float32).eps
        for _ in range(most):
            grid[inside] = uncorrected - _sharpened(uncorrected)
            delta = _contract(grid, cubes)
            lattice = lattice + np.divide(delta, omega, out=np.zeros_like(omega), where=reached)
            before, field = field, _contract(lattice, [w.T for w in weights])[inside]
            uncorrected = log_image - field
            if threshold > 0:
                ratio = np.exp((before - field).astype(np.float64))
                if ratio.std() / ratio.mean() <= threshold:
                    break
    return lattice


def _sharpened(values: NDArray) -> NDArray:
    """Log intensities mapped to what they most likely were before the field blurred their histogram."""
    low, high = float(values.min()), float(values.max())
    slope = (high - low) / (_BINS - 1)
    if slope <= 0:
        return values
    position = (values - np.float32(low)) / np.float32(slope)
    index = np.minimum(position.astype(np.intp), _BINS - 2)
    share = position - index
    counts = np.bincount(index, 1 - share, _BINS) + np.bincount(index + 1, share, _BINS)

    size = 2 ** (math.ceil(math.log2(_BINS)) + 1)  # zeros around the histogram keep its ends apart
    start = (size - _BINS) // 2
    padded = np.zeros(size)
    padded[start : start + _BINS] = counts
    width = _FWHM / slope  # in bins
    distance = np.minimum(np.arange(size), size - np.arange(size))
    gaussian = 2 * math.sqrt(math.log(2) / math.pi) / width * np.exp(-4 * math.log(2) * (distance / width) ** 2)
    blur = np.fft.rfft(gaussian).real  # of an even function
    wiener = blur / (blur**2 + _WIENER_NOISE)
    sharp = np.maximum(np.fft.irfft(np.fft.rfft(padded) * wiener, size), 0)
    levels = low + (np.arange(size) - start) * slope
    above = np.fft.irfft(np.fft.rfft(levels * sharp) * blur, size)
    below = np.fft.irfft(np.fft.rfft(sharp) * blur, size)
    expected = np.divide(above, below, out=np.zeros(size), where=below != 0)[start : start + _BINS].astype(np.float32)
    return expected[index] + (expected[index + 1] - expected[index]) * share


def _fit_itk(
    shrunk: NDArray, inside: NDArray[np.bool_], iterations: tuple[int, ...], threshold: float, threads: int | None
) -> NDArray:
    import itk

    shape = shrunk.shape
    pad = [(0, max(0, _ORDER + 1 - n)) for n in shape]  # ITK divides by the number of voxels less one
    # 1 outside the mask: what comes out there is the field's inverse
    image = itk.image_from_array(np.pad(np.where(inside, shrunk, np.float32(1)), pad, constant_values=1))
    mask = itk.image_from_array(np.pad(inside.astype(np.uint8), pad))
    n4 = itk.N4BiasFieldCorrectionImageFilter[type(image), type(mask), type(image)].New(Input=image, MaskImage=mask)
    n4.SetNumberOfFittingLevels([len(iterations)] * 3)
    n4.SetMaximumNumberOfIterations(list(iterations))
    n4.SetConvergenceThreshold(threshold)
    if threads:
        n4.SetNumberOfWorkUnits(threads)
    n4.Update()
    log_field = np.log(itk.array_view_from_image(image) / itk.array_view_from_image(n4.GetOutput()))
    # the lattice has no bridge to NumPy, but the field is its spline: the control points by least squares, axis by axis
    spans = _FIRST_SPANS * 2 ** (len(iterations) - 1)
    inverses = [np.linalg.pinv(_basis(_unit(n), spans).astype(np.float64)).T for n in log_field.shape]
    lattice = _contract(log_field.astype(np.float64), inverses)
    if log_field.shape != shape:  # on the padded axes the image ends before the spline does
        fields = _contract(lattice, [_basis(_unit(n), spans).astype(np.float64).T for n in log_field.shape])
        fields = fields[: shape[0], : shape[1], : shape[2]]
        lattice = _contract(fields, [np.linalg.pinv(_basis(_unit(n), spans).astype(np.float64)).T for n in shape])
    return lattice.astype(np.float32)


# --- the field on the complete grid


def _divide(
    voxels: NDArray,
    lattice: NDArray,
    grids: Sequence[NDArray],
    threads: int,
    corrected: NDArray,
    field: NDArray | None,
) -> None:
    """Write the image divided by the spline's exponential, and that itself, in slabs along the first axis."""
    weights = []
    for n, grid, points in zip(voxels.shape, grids, lattice.shape, strict=True):
        length = max(int(grid[-1] - grid[0]), 1)
        weights.append(_basis((np.arange(n) - grid[0]) / length, points - _ORDER))  # beyond the ends: as at the ends
    plane = np.tensordot(np.tensordot(lattice, weights[2], (2, 1)), weights[1], (1, 1))  # (points, Z, Y)
    plane = np.ascontiguousarray(plane.transpose(0, 2, 1)).reshape(len(lattice), -1)

    def slab(part: slice) -> None:
        log_field = (weights[0][part] @ plane).reshape(-1, *voxels.shape[1:])
        gain = np.exp(log_field, out=log_field)
        np.divide(voxels[part], gain, out=corrected[part])
        if field is not None:
            field[part] = gain

    rows = math.ceil(_SLAB_BYTES / voxels[0].nbytes)  # whatever the threads: the sums' order depends on it
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(slab, (slice(start, start + rows) for start in range(0, len(voxels), rows))))
