"""How uncertain a network is about a scan."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from decathlete.errors import DataError


def mean_entropy(probabilities: NDArray) -> float:
    """Mean entropy of probabilities (C, X, Y, Z), 0 to 1, over the voxels that are foreground with at least 1%.

    Raises:
        DataError: fewer than two classes.
    """
    if probabilities.shape[0] < 2:
        raise DataError("probabilities", "expected background and at least one class",
                        f"{probabilities.shape[0]} channel(s)")  # fmt: skip
    here = probabilities[:, 1 - probabilities[0] >= 0.01].astype(np.float64)
    if not here.size:
        return 1.0
    entropy = -(here * np.log(np.clip(here, 1e-12, 1))).sum(axis=0) / np.log(probabilities.shape[0])
    return float(np.clip(entropy.mean(), 0, 1))
