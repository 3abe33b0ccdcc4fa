"""Images drawn from label maps: what a network must see to work on scans unlike its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from decathlete.errors import ConfigError


class DrawFromLabels:
    """An image of random contrast for each label map: every label gets a brightness of its own, each time another.

    A network that learns from such images sees shapes where it would otherwise learn one scanner's grey values
    (Billot et al., SynthSeg, 2023, and Hoopes et al., SynthStrip, 2022, whose idea it is). Any map will do that divides
    the scan into parts, the surroundings too; a finer one draws better. Noise, resolution, bias field and gamma are
    ``BatchAugment``'s, which calls this between its geometric and its intensity part.

    Args:
        prob: share of samples that are drawn; the others keep their image, and so do samples whose map is all 0.
        mean: smallest and largest brightness of a label.
        deviation: smallest and largest standard deviation of the texture inside of a label.
        smoothness: largest width of that texture's grain, in voxels; from sample to sample between 1 and this.
        dark_background: share of drawn images in which label 0 is 0, as air is.
    """

    def __init__(
        self,
        prob: float = 0.5,
        mean: Sequence[float] = (0.0, 1.0),
        deviation: Sequence[float] = (0.01, 0.1),
        smoothness: float = 8.0,
        dark_background: float = 0.8,
    ) -> None:
        for name, limits in (("mean", mean), ("deviation", deviation)):
            if len(limits) != 2 or not 0 <= limits[0] <= limits[1]:
                raise ConfigError(f"DrawFromLabels, {name}", "must be a smallest and a largest number, 0 or more",
                                  str(list(limits)))  # fmt: skip
        if smoothness < 1:
            raise ConfigError("DrawFromLabels, smoothness", "must be 1 voxel or more", str(smoothness))
        self.prob, self.mean, self.deviation = prob, tuple(mean), tuple(deviation)
        self.smoothness, self.dark_background = smoothness, dark_background

    def __call__(self, image: Tensor, labels: Tensor, whole: Tensor | None = None) -> Tensor:
        """``image`` with a share of its samples drawn anew.

        Args:
            image: (B, C, *spatial), of mean 0 and deviation 1 over the scan that it was cut from; so are drawn ones.
            labels: (B, 1, *spatial), whole numbers 0 and above, of any type.
            whole: maps of the scans that ``labels`` were cut from, (B, 1, *any); by default ``labels`` itself.
        """
        drawn = torch.rand(len(image)) < self.prob
        if not bool(drawn.any()):
            return image
        out = image.clone()
        whole = labels if whole is None else whole
        for n in torch.nonzero(drawn)[:, 0].tolist():
            counts = torch.bincount(whole[n].flatten().long())
            if len(counts) > 1:
                for channel in range(image.shape[1]):
                    out[n, channel] = self._draw(labels[n, 0].long(), counts.double())
        return out

    def _draw(self, labels: Tensor, counts: Tensor) -> Tensor:
        number = len(counts)
        mean = self.mean[0] + torch.rand(number) * (self.mean[1] - self.mean[0])
        deviation = self.deviation[0] + torch.rand(number) * (self.deviation[1] - self.deviation[0])
        if float(torch.rand(())) < self.dark_background:
            mean[0] = deviation[0] = 0.0
        share = (counts / counts.sum()).cpu()
        centre = (share * mean).sum()
        spread = (share * ((mean - centre) ** 2 + deviation**2)).sum().sqrt().clamp_min(1e-3)
        mean, deviation = ((mean - centre) / spread).float(), (deviation / spread).float()
        return mean.to(labels.device)[labels] + deviation.to(labels.device)[labels] * self._texture(labels)

    def _texture(self, like: Tensor) -> Tensor:
        """Noise of unit variance, half of it fine, half of a random grain."""
        grain = 1 + float(torch.rand(())) * (self.smoothness - 1)
        coarse = torch.randn(1, 1, *(max(2, round(n / grain)) for n in like.shape))
        mode = "trilinear" if like.ndim == 3 else "bilinear"
        coarse = F.interpolate(coarse, size=tuple(like.shape), mode=mode, align_corners=True)[0, 0]
        texture = 0.7 * torch.randn(like.shape) + 0.7 * coarse / coarse.std().clamp_min(1e-3)
        return texture.to(like.device)
