"""Images drawn from label maps: what a network must see to work on scans unlike its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from decathlete.errors import ConfigError
from decathlete.transforms.intensities import noise_of
from decathlete.transforms.moves import smooth
from decathlete.transforms.parcel import Parcel


class DrawFromLabels:
    """An image of random contrast for each label map: every label gets a brightness of its own, each time another.

    A network that learns from such images sees shapes where it would otherwise learn one scanner's grey values
    (Billot et al., SynthSeg, 2023, and Hoopes et al., SynthStrip, 2022, whose idea it is). Any map will do that divides
    the scan into parts, the surroundings too; a finer one draws better. Noise, resolution, bias field and gamma are
    ``BatchAugment``'s, whose second part this is, after the geometric and before the intensity part.

    Args:
        prob: fraction of samples that are drawn; the others keep their image, and so do samples whose map is all 0.
        mean: smallest and largest brightness of a label.
        deviation: smallest and largest standard deviation of the texture inside of a label.
        smoothness: largest width of that texture's grain, in voxels; from sample to sample between 1 and this.
        dark_background: fraction of drawn images in which label 0 is 0, as air is.
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
                raise ConfigError(f"DrawFromLabels, {name}", "expected a smallest and a largest number, 0 or more",
                                  str(list(limits)))  # fmt: skip
        if smoothness < 1:
            raise ConfigError("DrawFromLabels, smoothness", "expected 1 voxel or more", str(smoothness))
        self.prob, self.mean, self.deviation = prob, tuple(mean), tuple(deviation)
        self.smoothness, self.dark_background = smoothness, dark_background

    def __call__(self, image: Tensor, labels: Tensor, whole: Tensor | None = None) -> Tensor:
        """``image`` with a fraction of its samples drawn anew.

        Args:
            image: (B, C, *spatial), of mean 0 and deviation 1 over the scan that it was cut from; so are drawn ones.
            labels: (B, 1, *spatial), whole numbers 0 and above, of any type.
            whole: maps of the scans that ``labels`` were cut from, (B, 1, *any); by default ``labels`` itself.
        """
        parcel = Parcel()
        draw = self.plan(image.shape, labels if whole is None else whole, parcel)
        parcel.send(image.device)
        return draw(image, labels)

    def plan(self, shape: Sequence[int], whole: Tensor, parcel: Parcel) -> Callable[[Tensor, Tensor], Tensor]:
        """Draw the numbers for images of ``shape``; a function of images and their maps that gives them drawn.

        How often each label occurs decides which numbers are needed: a GPU is waited for here, once a drawn sample.
        """
        drawn = torch.rand(shape[0]) < self.prob
        paintings: list[tuple[int, int, Callable[[Tensor], Tensor]]] = []
        for n in torch.nonzero(drawn)[:, 0].tolist():
            counts = torch.bincount(whole[n].flatten().long()).cpu()
            if len(counts) > 1:
                for channel in range(shape[1]):
                    paintings.append((n, channel, self._plan(counts.double(), shape[2:], whole.device, parcel)))

        def draw(image: Tensor, labels: Tensor) -> Tensor:
            out = image.clone() if paintings else image
            for n, channel, paint in paintings:
                out[n, channel] = paint(labels[n, 0].long())
            return out

        return draw

    def _plan(
        self, counts: Tensor, size: Sequence[int], device: torch.device, parcel: Parcel
    ) -> Callable[[Tensor], Tensor]:
        number = len(counts)
        mean = self.mean[0] + torch.rand(number) * (self.mean[1] - self.mean[0])
        deviation = self.deviation[0] + torch.rand(number) * (self.deviation[1] - self.deviation[0])
        if float(torch.rand(())) < self.dark_background:
            mean[0] = deviation[0] = 0.0
        share = counts / counts.sum()
        centre = (share * mean).sum()
        spread = (share * ((mean - centre) ** 2 + deviation**2)).sum().sqrt().clamp_min(1e-3)
        means, deviations = parcel.add(((mean - centre) / spread).float()), parcel.add((deviation / spread).float())
        texture = self._texture(size, device, parcel)
        return lambda labels: means()[labels] + deviations()[labels] * texture()

    def _texture(self, size: Sequence[int], device: torch.device, parcel: Parcel) -> Callable[[], Tensor]:
        """Noise of unit variance, half of it fine, half of a random grain."""
        grain = 1 + float(torch.rand(())) * (self.smoothness - 1)
        nodes = parcel.add(torch.randn(1, 1, *(max(2, round(n / grain)) for n in size)))
        fine = noise_of(size, device)

        def texture() -> Tensor:
            coarse = smooth(nodes(), size)[0, 0]
            return 0.7 * fine() + 0.7 * coarse / coarse.std().clamp_min(1e-3)

        return texture
