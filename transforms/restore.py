"""Network output brought back to the grid of the scan, from affine and shape alone."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor

from decathlete.errors import GeometryError

SLAB_CHANNELS = 3
SLAB_VOXELS = 4_000_000  # of the original grid; about 100 MB of float32 for three classes with the sampling grid
SNAP = 1e-3  # voxels; affines are float32 in NIfTI headers, which moves far voxels by up to about 1e-4


def restore_to_grid(
    x: Tensor,
    affine: Any,
    original_affine: Any,
    original_shape: Sequence[int],
    mode: str = "linear",
    fill: str | float | Sequence[float] = "background",
    argmax: bool = False,
    slab_voxels: int = SLAB_VOXELS,
) -> Tensor:
    """``x`` on the original grid: each original voxel takes the value at its own place in space.

    Both affines map voxel indices to the same millimetres, so any chain of flips, permutations, crops, pads and
    resamplings between the two grids is undone in one step, whatever its order. Axes that fit voxel on voxel
    (flips, permutations, crops and pads by whole voxels) are copied, bit by bit; axis-aligned grids are interpolated
    one axis after the other; only grids that are rotated against each other need three-dimensional sampling.

    Args:
        x: (C, X', Y', Z') on the network's grid; (C, X', Y') for a 2D image.
        affine: 4x4, voxel indices of ``x`` to RAS mm (3x3 for a 2D image).
        original_affine: 4x4 of the original grid.
        original_shape: spatial shape of the original grid.
        mode: "linear" for logits and probabilities; "nearest" for label maps, which have no values between classes.
        fill: value further than half a voxel outside the network's grid (cropped away before prediction):
            "background": channel 0 wins: it gets the largest value of ``x``, the other channels its smallest; a lone
            channel gets its smallest value, at most 0. "border": the nearest edge's value. Else a number, or one a
            channel (multi-label logits, where no channel is background, want a low number).
        argmax: return the channel with the largest value, taken slab by slab, so that the restored
            channels are never in memory all at once. AsDiscreted's argmax must not follow.
        slab_voxels: output voxels restored at a time, fewer of more than three channels; bounds memory, has no
            effect on values.

    Returns:
        (C, X, Y, Z) on the device of ``x``: float32 if "linear", dtype of ``x`` if "nearest"; with ``argmax``
        (1, X, Y, Z) of uint8 (int16 beyond 256 channels).

    Raises:
        GeometryError: an affine that is not finite or cannot be inverted, or a shape of the wrong rank.
    """
    if mode not in ("linear", "nearest"):
        raise ValueError(f"mode must be 'linear' or 'nearest', got {mode!r}")
    x = x.as_tensor() if isinstance(x, MetaTensor) else x
    shape = [int(n) for n in original_shape]
    if not 1 <= x.ndim - 1 <= 3 or not 1 <= len(shape) <= 3:
        raise GeometryError("restore_to_grid",
                            "expected an image (C, X, Y, Z) or (C, X, Y), and a shape of 2 or 3 axes",
                            f"shapes {tuple(x.shape)} and {tuple(shape)}")  # fmt: skip
    values = _fill_values(x, fill, mode)
    source = x.reshape(*x.shape, *[1] * (4 - x.ndim))
    size = shape + [1] * (3 - len(shape))
    matrix = np.linalg.solve(_affine_4x4(affine, "network affine"), _affine_4x4(original_affine, "original affine"))

    order = _axis_order(matrix[:3, :3], size)
    sampler: _Aligned | _Oblique
    if order is None:
        sampler = _Oblique(source, matrix, size, mode)
    else:
        sampler = _Aligned(source.permute(0, *[a + 1 for a in order]), matrix[list(order)], size, mode)

    channels = 1 if argmax else x.shape[0]
    dtype = (torch.uint8 if x.shape[0] <= 256 else torch.int16) if argmax else sampler.dtype
    out = torch.empty((channels, *size), dtype=dtype, device=x.device)
    per_voxel = max(1.0, x.shape[0] / SLAB_CHANNELS)
    thickness = max(1, int(slab_voxels / per_voxel) // max(1, size[1] * size[2]))
    for start in range(0, size[0], thickness):
        stop = min(start + thickness, size[0])
        slab = sampler(start, stop, values)
        out[:, start:stop] = slab.argmax(0, keepdim=True).to(dtype) if argmax else slab
    return out.reshape(channels, *shape)


def _affine_4x4(affine: Any, name: str) -> np.ndarray:
    """4x4 float64 of an affine of any rank up to 3; the missing axes are unit steps."""
    matrix = torch.as_tensor(affine).detach().cpu().double().numpy()
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not 2 <= len(matrix) <= 4:
        raise GeometryError(name, "must be a 4x4 matrix", f"shape {matrix.shape}")
    rank = len(matrix) - 1
    full = np.eye(4)
    full[:rank, :rank] = matrix[:rank, :rank]
    full[:rank, 3] = matrix[:rank, rank]
    if not np.isfinite(full).all() or abs(np.linalg.det(full[:3, :3])) < 1e-12:
        raise GeometryError(name, "is not finite, or cannot be inverted", str(full.tolist()),
                            "Correct the affine in the image's header")  # fmt: skip
    return full


def _axis_order(linear: np.ndarray, size: Sequence[int]) -> tuple[int, int, int] | None:
    """Network axis that runs along each original axis, or None where the grids are rotated against each other."""
    # travel[i, j]: how far the walk along original axis j moves on network axis i, in voxels
    travel = np.abs(linear) * np.maximum(np.asarray(size) - 1, 1)
    order = tuple(int(i) for i in np.abs(linear).argmax(axis=0))
    if sorted(order) != [0, 1, 2]:
        return None
    for j, i in enumerate(order):
        travel[i, j] = 0
    return order if travel.max() < SNAP else None  # type: ignore[return-value]


def _fill_values(x: Tensor, fill: str | float | Sequence[float], mode: str) -> Tensor | None:
    """Value of each channel outside the network's grid; None keeps the nearest edge's."""
    channels = x.shape[0]
    if isinstance(fill, str):
        if fill == "border":
            return None
        if fill != "background":
            raise ValueError(f"fill must be 'background', 'border' or numbers, got {fill!r}")
        low, high = float(x.min()), float(x.max())
        numbers = [min(low, 0.0)] if channels == 1 else [high] + [low] * (channels - 1)
    else:
        numbers = [float(v) for v in fill] if isinstance(fill, Sequence) else [float(fill)] * channels
        if len(numbers) != channels:
            raise ValueError(f"fill has {len(numbers)} values for {channels} channels")
    return torch.tensor(numbers, device=x.device).to(x.dtype if mode == "nearest" else torch.float32)


class _Aligned:
    """Sampling where each original axis runs along one network axis: one axis at a time."""

    def __init__(self, x: Tensor, matrix: np.ndarray, size: Sequence[int], mode: str) -> None:
        self.nearest = mode == "nearest"
        self.dtype = x.dtype if self.nearest else torch.float32
        self.x = x if self.nearest else x.float()
        # places[a]: where the original voxels of axis a lie on the network's axis, in its voxels
        self.places = [matrix[a, a] * np.arange(size[a]) + matrix[a, 3] for a in range(3)]
        for a, place in enumerate(self.places):
            if np.abs(place - np.round(place)).max() < SNAP:
                self.places[a] = np.round(place)
        self.outside = [
            torch.from_numpy((p < -0.5 - SNAP) | (p > n - 0.5 + SNAP)).to(x.device)
            for p, n in zip(self.places, x.shape[1:], strict=True)
        ]

    def __call__(self, start: int, stop: int, values: Tensor | None) -> Tensor:
        slab = self.x
        for a in range(3):
            slab = self._along(slab, a, self.places[a][start:stop] if a == 0 else self.places[a])
        if values is not None:
            for a in range(3):
                outside = self.outside[a][start:stop] if a == 0 else self.outside[a]
                if bool(outside.any()):
                    index = (slice(None),) * (a + 1) + (outside,)
                    slab[index] = values.reshape(-1, 1, 1, 1)
        return slab

    def _along(self, x: Tensor, axis: int, place: np.ndarray) -> Tensor:
        place = np.clip(place, 0, x.shape[axis + 1] - 1)
        low = np.floor(place)
        if self.nearest or np.array_equal(low, place):
            index = torch.from_numpy(np.floor(place + 0.5).astype(np.int64)).to(x.device)
            return x.index_select(axis + 1, index)
        below = torch.from_numpy(low.astype(np.int64)).to(x.device)
        above = (below + 1).clamp_(max=x.shape[axis + 1] - 1)
        weight = torch.from_numpy((place - low).astype(np.float32)).to(x.device)
        weight = weight.reshape(-1, *[1] * (2 - axis))  # broadcasts along `axis`
        return x.index_select(axis + 1, below).lerp_(x.index_select(axis + 1, above), weight)


class _Oblique:
    """Sampling where the grids are rotated against each other."""

    def __init__(self, x: Tensor, matrix: np.ndarray, size: Sequence[int], mode: str) -> None:
        self.dtype = x.dtype if mode == "nearest" else torch.float32
        self.x, self.size = x.float()[None], size
        self.mode = "nearest" if mode == "nearest" else "bilinear"
        self.matrix = matrix

    def __call__(self, start: int, stop: int, values: Tensor | None) -> Tensor:
        device, bounds = self.x.device, self.x.shape[2:]
        steps = [np.arange(start, stop), np.arange(self.size[1]), np.arange(self.size[2])]
        grid = torch.empty((stop - start, self.size[1], self.size[2], 3), device=device)
        outside = torch.zeros(grid.shape[:3], dtype=torch.bool, device=device)
        for i in range(3):  # network axis
            parts = [
                torch.from_numpy((self.matrix[i, j] * s).astype(np.float32)).to(device) for j, s in enumerate(steps)
            ]
            place = (parts[0] + float(self.matrix[i, 3]))[:, None, None] + parts[1][:, None] + parts[2]
            outside |= (place < -0.5 - SNAP) | (place > bounds[i] - 0.5 + SNAP)
            grid[..., 2 - i] = (2 * place + 1) / bounds[i] - 1  # grid_sample counts axes from the last, corners at ±1
        slab = F.grid_sample(self.x, grid[None], mode=self.mode, padding_mode="border", align_corners=False)[0]
        slab = slab.to(self.dtype)
        if values is not None:
            slab = torch.where(outside, values.reshape(-1, 1, 1, 1), slab)
        return slab


class RestoreGridd(MapTransform):
    """Predictions on the network's grid brought to the grid that their image had in its file.

    The network's grid is read from the image after preprocessing (its affine and shape), the original one from
    the image's meta data (``original_affine``, ``spatial_shape``), which MONAI's LoadImaged sets. Made for the
    postprocessing of an evaluator (after decollation) and of MONAI Label. The output is a MetaTensor with
    the original affine and the image's meta, so that SaveImaged names and places it as the input.

    Args:
        keys: predictions, (C, *spatial), as large as the preprocessed image.
        orig_keys: image of each prediction; one for all, or one each.
        mode, fill, argmax, slab_voxels: as in :func:`restore_to_grid`.
        device: where to restore, such as "cpu" where the GPU cannot hold the original grid; None: where it is.
        allow_missing_keys: skip missing predictions.

    Raises:
        GeometryError: the image lost its meta data, or prediction and image differ in shape.
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        orig_keys: KeysCollection = "image",
        mode: str = "linear",
        fill: str | float | Sequence[float] = "background",
        argmax: bool = False,
        slab_voxels: int = SLAB_VOXELS,
        device: str | torch.device | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        origins = (orig_keys,) if isinstance(orig_keys, str) else tuple(orig_keys)  # type: ignore[arg-type]
        self.orig_keys = origins * len(self.keys) if len(origins) == 1 else origins
        if len(self.orig_keys) != len(self.keys):
            raise ValueError(f"{len(self.orig_keys)} orig_keys for {len(self.keys)} keys")
        self.mode, self.fill, self.argmax, self.slab_voxels, self.device = mode, fill, argmax, slab_voxels, device

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return ``data`` with each prediction on its image's original grid."""
        d = dict(data)
        for key, orig_key in self.key_iterator(d, self.orig_keys):
            image = d[orig_key]
            affine, original_affine, original_shape, meta = _grids(image, d.get(f"{orig_key}_meta_dict"), orig_key)
            pred = torch.as_tensor(d[key])
            if pred.shape[1:] != image.shape[1:]:
                raise GeometryError(key, f"must have the size of the preprocessed '{orig_key}'",
                                    f"shape {tuple(pred.shape[1:])}, not {tuple(image.shape[1:])}")  # fmt: skip
            if self.device is not None:
                pred = pred.to(self.device)
            restored = restore_to_grid(
                pred, affine, original_affine, original_shape, self.mode, self.fill, self.argmax, self.slab_voxels
            )
            original = torch.as_tensor(original_affine, dtype=torch.float64, device="cpu")
            d[key] = MetaTensor(restored, meta={**meta, "affine": original})
        return d


def _grids(image: Any, side: Any, key: Hashable) -> tuple[Tensor, Any, list[int], dict]:
    """Network affine, original affine, original shape and meta of a preprocessed image."""
    meta = dict(image.meta) if isinstance(image, MetaTensor) else {}
    if isinstance(side, Mapping):  # metadata dictionaries as before MetaTensor, if a chain still makes them
        meta = {**side, **meta}
    missing = [name for name in ("affine", "original_affine", "spatial_shape") if meta.get(name) is None]
    if missing:
        raise GeometryError(str(key), "the image lacks metadata needed to restore its grid",
                            f"no {', '.join(missing)}",
                            "Load it with LoadImaged, and keep track_meta=True")  # fmt: skip
    shape = [int(n) for n in np.asarray(torch.as_tensor(meta["spatial_shape"]).cpu()).ravel()]
    return meta["affine"], meta["original_affine"], shape, meta
