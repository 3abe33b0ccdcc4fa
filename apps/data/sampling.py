"""Which slices a training sees, and how often."""

from __future__ import annotations

from collections.abc import Sequence

import ignite.distributed as idist
import numpy as np
from torch.utils.data import WeightedRandomSampler

from decathlete.data.slice_store import SliceDataset
from decathlete.errors import ConfigError, DataError


class ForegroundSampler(WeightedRandomSampler):
    """Draws slices with replacement so that a given fraction of them holds foreground.

    Every process of a distributed training draws its part from all slices, independently of the others, with torch's
    global generator: the fractions hold over all processes and in each, and processes with different seeds draw
    differently. :class:`decathlete.training.Trainer` seeds them at the start of every epoch.

    Args:
        dataset: the slices; its cases should not be changed afterwards.
        share: expected fraction of drawn slices that hold a voxel of ``classes``; ``None`` draws all slices with equal
            probability. So does any other value if every slice holds one.
        classes: label values; by default all but 0.
        num_samples: slices an epoch over all processes; by default as many as there are.

    Raises:
        ConfigError: a share outside 0 to 1, or a class that the data set does not have.
        DataError: no slice with foreground, or none without, although the share asks for it.
    """

    def __init__(
        self,
        dataset: SliceDataset,
        share: float | None = 0.5,
        classes: Sequence[int] | None = None,
        num_samples: int | None = None,
    ) -> None:
        if share is not None and not 0 <= share <= 1:
            raise ConfigError("ForegroundSampler, share", "must be a number from 0 to 1, or null", repr(share))
        if num_samples is not None and (not isinstance(num_samples, int) or num_samples < 1):
            raise ConfigError("ForegroundSampler, num_samples", "must be a whole number, 1 or more", repr(num_samples))
        known = dataset.counts.shape[1]
        chosen = list(range(1, known)) if classes is None else list(classes)
        if any(not 0 <= value < known for value in chosen):
            raise ConfigError("ForegroundSampler, classes", f"must be label values, 0 to {known - 1}", str(chosen))
        total = len(dataset) if num_samples is None else num_samples
        super().__init__(_weights(dataset.counts, share, chosen), -(-total // idist.get_world_size()))


def _weights(counts: np.ndarray, share: float | None, classes: list[int]) -> np.ndarray:
    """Probability of each slice."""
    has = counts[:, classes].sum(axis=1) > 0
    with_foreground = int(has.sum())
    without = len(has) - with_foreground
    uniform = np.full(len(has), 1 / len(has))
    if share is None:
        return uniform
    if share > 0 and not with_foreground:
        raise DataError("ForegroundSampler", f"no slice holds any of the classes {classes}",
                        f"{len(has)} slices, share {share:g}",
                        "Set the share to null, or check the labels")  # fmt: skip
    if share < 1 and not without:
        if share == 0:
            raise DataError("ForegroundSampler",
                            f"every slice holds one of the classes {classes}, so a share of 0 leaves none",
                            f"{len(has)} slices", "Set the share to null")  # fmt: skip
        return uniform
    return np.where(has, share / max(with_foreground, 1), (1 - share) / max(without, 1))
