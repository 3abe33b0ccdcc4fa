"""Scans with a shortened field of view, or a face that was blanked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from decathlete.errors import ConfigError


class CutAway:
    """All that lies beyond a random plane is removed from the image: a short field of view, or a face that was blanked.

    The plane has a random direction and passes the foreground at a distance between the two ``margins``; what is beyond
    takes each channel's smallest value. Labels stay. For batches that ``BatchAugment`` gave.

    Args:
        prob: fraction of samples that are shortened.
        margins: smallest and largest distance between foreground and plane, in voxels.
        image_key: key of the image, (B, C, *spatial).
        label_key: key of the class fractions, (B, num_classes, *spatial), background first.
    """

    def __init__(
        self,
        prob: float = 0.3,
        margins: Sequence[float] = (3.0, 20.0),
        image_key: str = "image",
        label_key: str = "label",
    ) -> None:
        if len(margins) != 2 or not 0 <= margins[0] <= margins[1]:
            raise ConfigError("CutAway, margins", "expected a smallest and a largest number, 0 or more", str(margins))
        self.prob, self.margins, self.image_key, self.label_key = prob, tuple(margins), image_key, label_key

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return a copy of ``batch`` with its image replaced; other keys are passed on."""
        out = dict(batch)
        image, label = batch[self.image_key], batch[self.label_key]
        chosen = torch.rand(len(image)) < self.prob
        if not bool(chosen.any()):
            return out
        image = image.clone()
        axes = [torch.arange(n, device=image.device, dtype=torch.float32) for n in image.shape[2:]]
        for n in torch.nonzero(chosen)[:, 0].tolist():
            direction = F.normalize(torch.randn(len(axes)), dim=0).tolist()
            margin = self.margins[0] + float(torch.rand(())) * (self.margins[1] - self.margins[0])
            place = sum(
                d * axis.view([-1 if a == k else 1 for a in range(len(axes))])
                for k, (d, axis) in enumerate(zip(direction, axes, strict=True))
            )
            # without a look at the values, which a GPU would have to be waited for
            inside = label[n, 0] < 0.5
            farthest = place.masked_fill(~inside, -torch.inf).amax()  # type: ignore[union-attr]
            beyond = (place > farthest + margin) & inside.any()
            low = image[n].flatten(1).amin(1).view(-1, *[1] * len(axes))
            image[n] = torch.where(beyond, low, image[n])
        out[self.image_key] = image
        return out
