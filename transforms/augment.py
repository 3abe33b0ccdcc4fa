"""Random transforms that work on a whole batch of tensors, on the device where the batch is.

A batch is moved, turned and stretched by one call of ``grid_sample``, image and class fractions together, on CPU or
GPU; MONAI's dictionary transforms resample case by case and key by key before the batch is made, and know no soft
labels (``benchmarks/augmentation.py`` times the two).

Its parts have modules of their own: `moves`, `draw`, `intensities`. Each first draws its numbers on the CPU (bytes:
matrices, control points, weights); they travel in one `parcel`; then all voxels are computed on the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from decathlete.transforms.draw import DrawFromLabels
from decathlete.transforms.intensities import ChangeIntensities
from decathlete.transforms.moves import Move, sample
from decathlete.transforms.parcel import Parcel


class BatchAugment:
    """Crop, turn, stretch, mirror and bend a batch, then change the image's intensities.

    Random numbers come from torch's global generators, so ``torch.manual_seed`` repeats a batch on the same device. On
    a GPU the noise of each voxel is drawn there, all other numbers on the CPU. Each sample draws its own numbers.

    Args:
        patch_size: spatial shape of what comes out, in voxels. The batch that goes in may be larger: what is turned in
            at the corners is then image, not padding.
        num_classes: with background; needed for ``label_mode="soft"``.
        prob: fraction of samples that are turned, stretched and bent; the others are only shifted and mirrored.
        rotation: largest angle in radians, about each axis (3D) or in the plane (2D); in 3D also one number an axis, so
            that slices far apart are turned within themselves only: ``(0, 0, 0.4)``.
        scale: largest relative change of size, the same for all axes; each axis changes by up to half as much again.
        translation: largest shift in voxels, one number or one per axis.
        mirror_axes: spatial axes that are mirrored in half of the samples each. Label values do not change sides.
        elastic: standard deviation in voxels of the displacement at the control points; 0 turns it off.
        control_points: number of control points along each axis.
        intensity_scale: the image is multiplied by a number in ``1 ± intensity_scale``.
        intensity_shift: then a number in ``± intensity_shift`` is added, for images of unit standard deviation.
        noise: largest standard deviation of Gaussian noise.
        noise_prob: fraction of samples with noise.
        gamma: largest absolute logarithm of the exponent applied between the image's extremes.
        gamma_prob: fraction of samples with a gamma change.
        blur: smallest and largest standard deviation in voxels of a Gaussian blur.
        blur_prob: share of blurred samples; 0, as for the next two, turns it off and draws nothing for it.
        contrast: smallest and largest factor of the distance from each channel's mean.
        contrast_prob: fraction of samples with another contrast.
        contrast_keep_range: cut off what that takes out of the channel's range, as nnU-Net does.
        low_resolution: smallest and largest factor by which the axes are shortened (nearest voxel) and then brought
            back (linear), as a coarser scan would have been; at most 1. The label stays as it is.
        low_resolution_prob: fraction of samples of low resolution.
        low_resolution_axes: ``all`` alike, or ``one``, drawn for each sample, as in a scan of thick slices.
        curve: standard deviation of the logarithm of the slopes of a rising curve of ``curve_pieces`` straight pieces
            that takes the image's intensities between its extremes to others, as another sequence would.
        curve_prob: fraction of samples with such a curve.
        curve_pieces: number of its pieces.
        bias: largest standard deviation of the logarithm of a smooth field that multiplies the distance from each
            channel's smallest value.
        bias_prob: fraction of samples with such a field.
        padding: what is beyond the image: ``zeros``, or ``min``, the smallest value of each sample's channel (air).
        spacing: voxel edge lengths in mm, so that a rotation turns the body and not the voxels; default all equal.
        label_mode: ``soft`` returns class fractions, shape (B, num_classes, *patch_size), interpolated linearly: a
            border that falls between two voxels stays there, where nearest moves it by up to half a voxel; ``shares``
            does the same for labels that are fractions already, one channel a class without background; ``nearest``
            returns label values, shape (B, 1, *patch_size).
        image_key: key of the image, shape (B, C, *spatial).
        label_key: key of the label map, shape (B, 1, *spatial), values 0 to num_classes - 1; for ``shares``
            (B, num_classes - 1, *spatial), values 0 to 1.
        draw: replaces the images of some samples by drawn ones, from the map of tissues.
        tissue_key: key of that map, (B, 1, *spatial); a batch without it is not drawn.

    Raises:
        ConfigError: an invalid argument, when the object is made.
    """

    def __init__(
        self,
        patch_size: Sequence[int],
        num_classes: int | None = None,
        prob: float = 0.8,
        rotation: float | Sequence[float] = 0.4,
        scale: float = 0.15,
        translation: float | Sequence[float] = 3.0,
        mirror_axes: Sequence[int] = (),
        elastic: float = 0.0,
        control_points: int = 6,
        intensity_scale: float = 0.25,
        intensity_shift: float = 0.25,
        noise: float = 0.15,
        noise_prob: float = 0.3,
        gamma: float = 0.3,
        gamma_prob: float = 0.3,
        blur: Sequence[float] = (0.5, 1.0),
        blur_prob: float = 0.0,
        contrast: Sequence[float] = (0.75, 1.25),
        contrast_prob: float = 0.0,
        contrast_keep_range: bool = True,
        low_resolution: Sequence[float] = (0.5, 1.0),
        low_resolution_prob: float = 0.0,
        low_resolution_axes: str = "all",
        curve: float = 0.5,
        curve_prob: float = 0.0,
        curve_pieces: int = 6,
        bias: float = 0.3,
        bias_prob: float = 0.0,
        padding: str = "zeros",
        spacing: Sequence[float] | None = None,
        label_mode: str = "soft",
        image_key: str = "image",
        label_key: str = "label",
        draw: DrawFromLabels | None = None,
        tissue_key: str = "tissues",
    ) -> None:
        self.move = Move(patch_size, num_classes, prob, rotation, scale, translation, mirror_axes, elastic,
                         control_points, padding, spacing, label_mode)  # fmt: skip
        self.draw = draw
        self.intensities = ChangeIntensities(
            intensity_scale, intensity_shift, noise, noise_prob, gamma, gamma_prob, blur, blur_prob,
            contrast, contrast_prob, contrast_keep_range, low_resolution, low_resolution_prob, low_resolution_axes,
            curve, curve_prob, curve_pieces, bias, bias_prob,
        )  # fmt: skip
        self.image_key, self.label_key, self.tissue_key = image_key, label_key, tissue_key

    @property
    def extra_keys(self) -> tuple[str, ...]:
        """What it needs of a batch beside image and label, where it is there."""
        return (self.tissue_key,) if self.draw is not None else ()

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return a copy of ``batch`` with image and label replaced; other keys are passed on."""
        out, parcel = dict(batch), Parcel()
        image, label = _plain(batch[self.image_key]).float(), _plain(batch[self.label_key])
        tissues = _plain(batch[self.tissue_key]) if self.draw is not None and self.tissue_key in batch else None
        patch = (*image.shape[:2], *self.move.patch_size)
        move, draw = self.move.plan(image.shape, parcel), None
        if self.draw is not None and tissues is not None:
            draw = self.draw.plan(patch, tissues, parcel)
        change = self.intensities.plan(patch, image.device, parcel)
        parcel.send(image.device)
        image, out[self.label_key], grid = move(image, label)
        if draw is not None and tissues is not None:
            out[self.tissue_key] = sample(tissues.float(), grid, "nearest").to(tissues.dtype)
            image = draw(image, out[self.tissue_key])
        out[self.image_key] = change(image)
        return out


def _plain(x: Tensor) -> Tensor:
    # MetaTensor's dispatch costs more than the arithmetic here
    return x.as_tensor() if hasattr(x, "as_tensor") else x
