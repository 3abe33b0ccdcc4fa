"""Dice plus cross entropy over class fractions, with regions and voxels without a reference."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss, DiceLoss
from monai.networks import one_hot
from torch import Tensor, nn

from decathlete.distributed.processes import sums_over_processes
from decathlete.errors import ConfigError, nearest

logger = logging.getLogger(__name__)


class DiceCE(nn.Module):
    """Soft Dice plus cross entropy of softmax scores and class fractions: MONAI's DiceCELoss with two more options.

    **Regions** that overlap, such as BraTS' whole tumour, tumour core and enhancing tumour: both terms are then those
    of the regions, each against the rest. A region's probability is the sum of its classes', so the network still
    gives one score a class, and prediction, ensembles and MONAI Label need not know: the label map is the largest.

    **Ignored voxels** count in neither term. The fractions have one more channel, that of the ignored value; a voxel
    between ignored and annotated ones counts by its annotated fraction.

    In a training of several processes, sums over the batch are those over the batches of all of them.

    Args:
        labels: class name to value, with background at 0 and values 0, 1, 2, ... without a gap.
        regions: name to the classes that it is made of, by name or value; none: the classes themselves.
        ignore: the ignored label value, in a list, which is ``len(labels)``; none: every voxel counts.
        batch: sum up the Dice over the batch, as for small targets that are often absent from a patch; else each
            sample has its own.
        smooth: added to numerator and denominator of the Dice.
        as_monai: without regions and ignored voxels, let MONAI's DiceCELoss compute the same number: its sums are taken
            in another order, so its rounding differs, and with it the weights that a seed gives.

    Raises:
        ConfigError: invalid labels, regions or ignored value, when the loss is made.

    Source: Isensee et al. 2021, supplementary note 2; regions as in Isensee et al. 2020, arXiv 2011.00848, but by sums
    of softmax probabilities in place of a sigmoid for each.
    """

    def __init__(
        self,
        labels: Mapping[str, int],
        regions: Mapping[str, Sequence[str | int]] | None = None,
        ignore: Sequence[int] = (),
        batch: bool = True,
        smooth: float = 1e-5,
        as_monai: bool = False,
    ) -> None:
        super().__init__()
        if sorted(labels.values()) != list(range(len(labels))):
            raise ConfigError(
                "loss, labels", f"expected values 0 to {len(labels) - 1}, without a gap", str(dict(labels))
            )
        self.classes, self.ignores = len(labels), bool(ignore)
        if ignore and list(ignore) != [self.classes]:
            raise ConfigError(
                "loss, ignore", f"expected the value after the classes, [{self.classes}], or []", str(list(ignore))
            )
        self.regions = [[_value(c, labels, name) for c in parts] for name, parts in (regions or {}).items()]
        for name, parts in zip(regions or {}, self.regions, strict=True):
            if not parts or len(set(parts)) == self.classes or len(set(parts)) < len(parts):
                raise ConfigError(f"loss, regions, {name}", "expected some of the classes, each once", str(parts))
        self.batch, self.smooth = batch, smooth
        self.monai = None
        if as_monai and not self.regions and not self.ignores:
            self.monai = DiceCELoss(
                softmax=True, include_background=False, batch=batch, smooth_nr=smooth, smooth_dr=smooth
            )

    def forward(self, scores: Tensor, shares: Tensor) -> Tensor:
        """Loss of ``scores`` and the class fractions ``shares``, both (B, classes, *spatial).

        Where voxels are ignored, the fractions have one more channel.

        Raises:
            ConfigError: another number of channels.
        """
        wanted = self.classes + self.ignores
        if scores.shape[1] != self.classes or shares.shape[1] != wanted:
            raise ConfigError("loss", f"expected {self.classes} scores and {wanted} class fractions per voxel",
                              f"{scores.shape[1]} and {shares.shape[1]}",
                              "Compare labels and ignore with the network's out_channels and the augmentation's "
                              "num_classes")  # fmt: skip
        if self.monai is not None:
            return self.monai(scores, shares)
        judged = 1 - shares[:, -1:] if self.ignores else torch.ones_like(shares[:, :1])
        shares = shares[:, : self.classes]
        log = scores.log_softmax(1)
        if not self.regions:
            return self._sum_up(-(shares * log).sum(), judged, log[:, 1:].exp(), shares[:, 1:])
        odds, truth = [], []
        # channels one by one: an index by a list would copy it to the GPU, which waits for it
        logs, fractions = log.unbind(1), shares.unbind(1)
        for parts in self.regions:
            inside = torch.stack([logs[c] for c in parts], 1).logsumexp(1)
            rest = torch.stack([logs[c] for c in range(self.classes) if c not in parts], 1).logsumexp(1)
            odds.append(inside - rest)
            truth.append(torch.stack([fractions[c] for c in parts], 1).sum(1))
        odds_of, truth_of = torch.stack(odds, 1), torch.stack(truth, 1)
        each = F.softplus(odds_of) * judged - odds_of * truth_of  # binary cross entropy; truth is at most judged
        return self._sum_up(each.sum(), judged, odds_of.sigmoid(), truth_of, len(self.regions))

    def _sum_up(self, entropy: Tensor, judged: Tensor, probability: Tensor, truth: Tensor, each: int = 1) -> Tensor:
        """Cross entropy, summed over voxels and ``each`` region, as a mean, plus Dice."""
        axes = [0, *range(2, truth.ndim)] if self.batch else [*range(2, truth.ndim)]
        both = (probability * truth).sum(axes)
        total = (probability * judged).sum(axes) + truth.sum(axes)
        voxels = judged.sum()
        if self.batch:
            entropy, voxels, both, total = sums_over_processes([entropy, voxels, both, total])
        else:  # samples are as many in every process
            entropy, voxels = sums_over_processes([entropy, voxels])
        dice = (1 - (2 * both + self.smooth) / (total + self.smooth)).mean()
        return entropy / (voxels.clamp_min(1.0) * each) + dice


class _DiceOverProcesses(DiceLoss):
    """MONAI's DiceLoss over a batch, whose sums are those of the batches of all processes."""

    def __init__(self, dice: DiceLoss) -> None:
        names = ("include_background", "to_onehot_y", "sigmoid", "softmax", "smooth_nr", "smooth_dr")
        super().__init__(batch=True, **{name: getattr(dice, name) for name in names})

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """One number for scores and class fractions, both (B, classes, *spatial)."""
        pred = input.sigmoid() if self.sigmoid else input.softmax(1) if self.softmax and input.shape[1] > 1 else input
        if self.to_onehot_y and input.shape[1] > 1:
            target = one_hot(target, num_classes=input.shape[1])
        if not self.include_background and input.shape[1] > 1:
            pred, target = pred[:, 1:], target[:, 1:]
        axes = [0, *range(2, pred.ndim)]
        both, total = sums_over_processes([(pred * target).sum(axes), pred.sum(axes) + target.sum(axes)])
        return (1 - (2 * both + self.smooth_nr) / (total + self.smooth_dr)).mean()


def over_processes(loss: Any) -> Any:
    """A loss whose parts that are MONAI's ``DiceLoss(batch=True)`` sum over the batches of all processes.

    Its means over voxels or samples need no change, since batches are equally large in every process. A part that
    cannot be changed stays, with a warning in the log that it only sees the batch of its own process.
    """
    if isinstance(loss, DiceLoss) and loss.batch and not isinstance(loss, _DiceOverProcesses):
        weighted = loss.class_weight is not None or loss.other_act is not None or loss.ignore_index is not None
        plain = loss.reduction == "mean" and not (loss.squared_pred or loss.jaccard)
        if type(loss) is DiceLoss and plain and not (weighted or loss.soft_label):
            return _DiceOverProcesses(loss)
        logger.warning("%s only sums over the batch of its own process", type(loss).__name__)
    elif isinstance(loss, nn.Module):
        for name, part in loss.named_children():
            setattr(loss, name, over_processes(part))
    return loss


def _value(part: Any, labels: Mapping[str, int], region: str) -> int:
    if isinstance(part, str) and part in labels:
        return labels[part]
    if isinstance(part, int) and part in labels.values():
        return part
    raise ConfigError(f"loss, regions, {region}", "unknown class", repr(part), nearest(str(part), labels))
