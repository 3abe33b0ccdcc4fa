"""The geometric part of an augmentation: a batch moved, turned, stretched, mirrored and bent."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from decathlete.errors import ConfigError
from decathlete.transforms.parcel import Parcel

LABEL_MODES = ("soft", "shares", "nearest")
_PADDINGS = ("zeros", "min")


class Move:
    """Moves image and label of a batch alike, by one call of ``grid_sample``; the arguments are ``BatchAugment``'s."""

    def __init__(
        self,
        patch_size: Sequence[int],
        num_classes: int | None,
        prob: float,
        rotation: float | Sequence[float],
        scale: float,
        translation: float | Sequence[float],
        mirror_axes: Sequence[int],
        elastic: float,
        control_points: int,
        padding: str,
        spacing: Sequence[float] | None,
        label_mode: str,
    ) -> None:
        self.patch_size = tuple(int(n) for n in patch_size)
        dims = len(self.patch_size)
        if dims not in (2, 3):
            raise ConfigError("BatchAugment, patch_size", "expected 2 or 3 numbers", f"{dims}: {self.patch_size}")
        for name, value, known in (("label_mode", label_mode, LABEL_MODES), ("padding", padding, _PADDINGS)):
            if value not in known:
                raise ConfigError(f"BatchAugment, {name}", f"expected one of {', '.join(known)}", repr(value))
        if label_mode == "soft" and not num_classes:
            raise ConfigError("BatchAugment, num_classes", "label_mode soft needs the number of classes",
                              repr(num_classes))  # fmt: skip
        if any(not 0 <= axis < dims for axis in mirror_axes):
            raise ConfigError("BatchAugment, mirror_axes", f"expected axes 0 to {dims - 1}", str(list(mirror_axes)))
        angles = 3 if dims == 3 else 1
        turns = tuple(rotation) if isinstance(rotation, Sequence) else (rotation,) * angles
        if len(turns) != angles:
            raise ConfigError("BatchAugment, rotation", "expected one number" + f" or {angles}" * (angles > 1),
                              f"{len(turns)}: {turns}")  # fmt: skip
        shifts = translation if isinstance(translation, Sequence) else (translation,) * dims
        edges = spacing if spacing is not None else [1.0] * dims
        if len(shifts) != dims or len(edges) != dims:
            raise ConfigError("BatchAugment", f"translation and spacing need {dims} numbers each, one per axis",
                              f"{len(shifts)} and {len(edges)}")  # fmt: skip
        self.num_classes, self.padding, self.label_mode = num_classes, padding, label_mode
        self.prob, self.scale, self.elastic = prob, scale, elastic
        self.control_points, self.mirror_axes = control_points, tuple(mirror_axes)
        self.rotation = torch.tensor([float(angle) for angle in turns])
        self.translation = torch.tensor([float(t) for t in shifts])
        self.spacing = torch.tensor([float(s) for s in edges])

    def plan(self, shape: Sequence[int], parcel: Parcel) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
        """Draw the numbers for a batch of ``shape`` (B, C, *spatial).

        Returns:
            A function of image and label that gives both moved, and the grid that moved them.
        """
        grid = self._grid(shape[0], shape[2:], parcel)

        def move(image: Tensor, label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            where = grid(image.device)
            return (*self._move(image, label, where), where)

        return move

    def _move(self, image: Tensor, label: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
        low = image.amin(tuple(range(2, image.ndim)), keepdim=True) if self.padding == "min" else None
        image = image if low is None else image - low  # sampling pads with zeros
        if self.label_mode == "nearest":
            there = sample(label.float(), grid, "nearest").to(label.dtype)
            moved = sample(image, grid, "bilinear")
        else:
            # background is what the others leave: one channel less to interpolate, and outside the volume it is 1; all
            # channels in one call, since finding a point's neighbours costs more than weighing them
            if self.label_mode == "shares":
                foreground = list(label.float().split(1, 1))
            else:
                foreground = [(label == c).float() for c in range(1, self.num_classes or 2)]
            moved, classes = sample(torch.cat([image, *foreground], 1), grid, "bilinear").split(
                [image.shape[1], len(foreground)], 1
            )
            there = torch.cat([(1 - classes.sum(1, keepdim=True)).clamp_min(0), classes], 1)
        return (moved if low is None else moved + low), there

    def _grid(self, samples: int, shape: Sequence[int], parcel: Parcel) -> Callable[[torch.device], Tensor]:
        """Where each voxel of the patches is taken from: (B, *patch_size, dims) in grid_sample's coordinates."""
        dims = len(self.patch_size)
        matrix = self._matrices(samples)  # (B, dims, dims), acts on mm from the patch's centre
        matrix_there = parcel.add(matrix * self.spacing / self.spacing[:, None])
        shift = parcel.add((torch.rand(samples, 1, dims) * 2 - 1) * self.translation)
        half = parcel.add(torch.tensor([max((n - 1) / 2, 0.5) for n in shape]))
        nodes = bent = None
        if self.elastic:
            nodes = parcel.add(torch.randn(samples, dims, *(self.control_points,) * dims) * self.elastic)
            bent = parcel.add((torch.rand(samples) < self.prob).float().view(-1, *(1,) * (dims + 1)))

        def grid(device: torch.device) -> Tensor:
            axes = [torch.arange(n, device=device) - (n - 1) / 2 for n in self.patch_size]
            points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).view(-1, dims)  # (V, dims) in voxels
            where = points @ matrix_there().transpose(1, 2) + shift()
            where = where.view(samples, *self.patch_size, dims)
            if nodes is not None and bent is not None:
                where = where + smooth(nodes(), self.patch_size).movedim(1, -1) * bent()
            return (where / half()).flip(-1)  # grid_sample counts the axes from the last

        return grid

    def _matrices(self, samples: int) -> Tensor:
        """Draw one linear map per sample, from the patch's millimetres to the batch's: (B, dims, dims)."""
        dims = len(self.patch_size)
        moved = (torch.rand(samples) < self.prob).float()[:, None]
        angles = (torch.rand(samples, 3 if dims == 3 else 1) * 2 - 1) * self.rotation * moved
        common = (torch.rand(samples, 1) * 2 - 1) * self.scale
        each = (torch.rand(samples, dims) * 2 - 1) * self.scale / 2
        stretch = 1 + (common + each) * moved
        for axis in self.mirror_axes:
            stretch[:, axis] *= 1 - 2 * (torch.rand(samples) < 0.5).float()
        return rotation_matrices(angles) @ torch.diag_embed(stretch)


def smooth(nodes: Tensor, size: Sequence[int]) -> Tensor:
    """Values at control points (B, C, *nodes) interpolated linearly to (B, C, *size)."""
    mode = "trilinear" if len(size) == 3 else "bilinear"
    return F.interpolate(nodes, size=tuple(size), mode=mode, align_corners=True)


def sample(volume: Tensor, grid: Tensor, mode: str) -> Tensor:
    """The volume (B, C, *spatial) at the points of a grid, 0 outside."""
    return F.grid_sample(volume, grid, mode=mode, padding_mode="zeros", align_corners=True)


def rotation_matrices(angles: Tensor) -> Tensor:
    """Rotation matrices for angles in radians: (B, 1) gives (B, 2, 2); (B, 3), about x, y, z in turn, (B, 3, 3)."""
    cos, sin = torch.cos(angles), torch.sin(angles)
    if angles.shape[1] == 1:
        return torch.stack([cos, -sin, sin, cos], -1).view(-1, 2, 2)
    out = torch.eye(3).repeat(len(angles), 1, 1)
    for axis, (i, j) in enumerate(((1, 2), (0, 2), (0, 1))):
        turn = torch.eye(3).repeat(len(angles), 1, 1)
        sign = -1.0 if axis == 1 else 1.0  # a turn about y takes z to x
        turn[:, i, i] = turn[:, j, j] = cos[:, axis]
        turn[:, i, j] = -sign * sin[:, axis]
        turn[:, j, i] = sign * sin[:, axis]
        out = turn @ out
    return out
