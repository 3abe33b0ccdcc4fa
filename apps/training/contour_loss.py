"""Loss of two contours of which one lies inside the other, where each may be missing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from decathlete.distributed.processes import sums_over_processes


class ContourLoss(nn.Module):
    """Dice and cross entropy of two masks, inside the inner and inside the outer contour, where they were drawn.

    The network gives scores of three classes, background, cavity and muscle. What is inside the inner contour is
    cavity, what is inside the outer one is cavity or muscle, so the outer mask holds the inner one whatever the
    network says, which two independent sigmoids would not promise.

    Where a contour was not drawn, its mask is known only on the other one's side: what lies inside the inner contour
    is inside the outer one too. Cross entropy counts the pixels that are known; Dice, of each frame by itself so that a
    small apex weighs as much as a large base, counts the masks that are known as a whole. In a training of several
    processes, the sums are those over the batches of all of them.

    Args:
        smooth: added to the Dice's numerator and denominator; pixels.

    Source: masks as sums of classes are the marginal probabilities of Shi et al., Marginal loss and exclusion loss for
    partially supervised multi-organ segmentation, Medical Image Analysis 70, 101979 (2021).
    """

    def __init__(self, smooth: float = 1.0) -> None:
        super().__init__()
        self.smooth = smooth

    def forward(self, scores: Tensor, shares: Tensor) -> Tensor:
        """One number for ``scores`` (B, 3, *spatial), logits, and class fractions ``shares`` (B, 5, *spatial).

        The fractions of each pixel are those of background, cavity, muscle, background or muscle (outer contour not
        drawn), and cavity or muscle (inner contour not drawn), as `decathlete.transforms.FrameLabeld` numbers them.
        """
        background, cavity, muscle = scores.log_softmax(1).unbind(1)
        inside = torch.stack([cavity, torch.logaddexp(cavity, muscle)], 1)  # (B, 2, *spatial), logarithms
        outside = torch.stack([torch.logaddexp(background, muscle), background], 1)
        truth = torch.stack([shares[:, 1], shares[:, 1] + shares[:, 2] + shares[:, 4]], 1)
        known = 1 - shares[:, 3:].flip(1)  # of the inner contour, then of the outer one
        entropy = -(truth * inside + (known - truth) * outside)
        pred = inside.exp()
        axes = tuple(range(2, scores.ndim))
        overlap = 2 * (pred * truth).sum(axes) + self.smooth
        dice = 1 - overlap / (pred.sum(axes) + truth.sum(axes) + self.smooth)  # (B, 2)
        drawn = (known.amin(axes) > 0).float()
        entropies, pixels, dices, masks = sums_over_processes(
            [entropy.sum(), known.sum(), (dice * drawn).sum(), drawn.sum()]
        )
        return entropies / pixels + dices / masks.clamp_min(1)
