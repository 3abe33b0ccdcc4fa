"""Whether a scan looks like the training scans, by about thirty features of its image and its prediction.

A Gaussian is fitted to the features of the training scans, with a shrunk covariance, and kept beside the weights. A
scan whose Mahalanobis distance is above nearly all of theirs is reported, with the features that are farthest off.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decathlete.errors import DataError
from decathlete.files import atomic_write, file_sha256
from decathlete.inference.inferers import entropy_bits

logger = logging.getLogger(__name__)

FILE = "training_scans.json"  # beside the weights
MIN_SCANS, MAX_SCANS = 20, 200
QUANTILE = 0.98  # of the training scans' distances, each to a Gaussian fitted without it
FOLDS = 10
LARGEST_Z = 10.0  # larger distances count as this one
SHOWN = 3
_PERCENTILES = (1, 10, 25, 50, 75, 90, 99)
_SAMPLE = 10**6  # voxels for percentiles
_AXES = "xyz"


def scan_figures(image: Tensor, logits: Tensor, spacing: Sequence[float]) -> dict[str, float]:
    """Features of a scan (extent, intensities, roughness) and of its prediction (volumes, confidence, place, spread).

    Args:
        image: (C, *grid), as the network gets it.
        logits: (num_classes, *grid).
        spacing: mm, one per axis of the grid.
    """
    figures = {f"log extent {a}": math.log(n * mm) for a, n, mm in zip(_AXES, image.shape[1:], spacing, strict=False)}
    for number, channel in enumerate(image.float()):
        of = f" of channel {number}" if len(image) > 1 else ""
        values = channel.flatten()
        sample = values[:: max(1, values.numel() // _SAMPLE)].cpu().numpy()
        for percent, value in zip(_PERCENTILES, np.percentile(sample, _PERCENTILES), strict=True):
            figures[f"intensity percentile {percent}{of}"] = float(value)
        spread = float(values.std()) + 1e-6
        for order in (1, 2):  # of differences between neighbours: fine noise has more of the second
            for axis, letter in enumerate(_AXES[: channel.ndim]):
                if channel.shape[axis] > order:
                    step = float(channel.diff(n=order, dim=axis).abs().mean()) / spread
                    figures[f"log roughness {order} along {letter}{of}"] = math.log(step + 1e-6)
    return figures | _figures_of_prediction(logits)


def _figures_of_prediction(logits: Tensor) -> dict[str, float]:
    probabilities = logits.float().softmax(0)
    bits, foreground = entropy_bits(probabilities, 0)[0], 1 - probabilities[0]
    total = float(foreground.sum()) + 1e-3
    figures = {f"log volume of class {n}": float(p.sum().log1p()) for n, p in enumerate(probabilities[1:], start=1)}
    figures["unsureness of the foreground"] = float((bits * foreground).sum()) / (total + 1)
    figures["log unsureness"] = math.log(float(bits.mean()) + 1e-6)
    for axis, letter in enumerate(_AXES[: foreground.ndim]):
        profile = foreground.sum([a for a in range(foreground.ndim) if a != axis]).double().cpu()
        place = torch.linspace(0, 1, len(profile), dtype=torch.float64)
        centre = float(profile @ place) / total
        figures[f"centre of the foreground along {letter}"] = centre
        figures[f"spread of the foreground along {letter}"] = math.sqrt(float(profile @ (place - centre) ** 2) / total)
        figures[f"foreground at the ends of {letter}"] = float(profile[0] + profile[-1]) / total
    return figures


@dataclass(frozen=True)
class TrainingScans:
    """What training scans look like.

    Attributes:
        names: of the features.
        mean, std: of each.
        precision: inverse of the shrunk covariance of the standardised features.
        limit: distance above which a scan counts as unlike them.
        scans: their number.
        weights_sha256: of the weights that made the predictions.
    """

    names: list[str]
    mean: list[float]
    std: list[float]
    precision: list[list[float]]
    limit: float
    scans: int
    weights_sha256: str

    @classmethod
    def fit(cls, figures: Sequence[Mapping[str, float]], weights_sha256: str = "") -> TrainingScans:
        """Fit the features of at least `MIN_SCANS` scans.

        Raises:
            DataError: fewer scans.
        """
        check_count(len(figures))
        names = [name for name in figures[0] if all(name in one for one in figures)]
        rows = np.array([[one[name] for name in names] for one in figures])
        part = np.arange(len(rows)) % FOLDS
        distances = np.empty(len(rows))
        for n in range(FOLDS):
            distances[part == n] = _distances(rows[part == n], *_gaussian(rows[part != n]))
        mean, std, precision = _gaussian(rows)
        limit = float(np.quantile(distances, QUANTILE))
        return cls(names, mean.tolist(), std.tolist(), precision.tolist(), limit, len(rows), weights_sha256)

    def distance(self, figures: Mapping[str, float]) -> float:
        """Mahalanobis distance over the root of the number of features: about 1 for a scan like the training scans."""
        row = np.array([[figures.get(name, math.inf) for name in self.names]])
        return float(_distances(row, np.array(self.mean), np.array(self.std), np.array(self.precision))[0])

    def unlike(self, figures: Mapping[str, float]) -> str:
        """Why a scan is unlike the training scans, in words; empty if it is not."""
        distance = self.distance(figures)
        if distance <= self.limit:
            return ""
        off = {
            name: (figures.get(name, math.inf) - mean) / std
            for name, mean, std in zip(self.names, self.mean, self.std, strict=True)
        }
        farthest = sorted(off, key=lambda name: -abs(off[name]))[:SHOWN]
        shown = ", ".join(f"{_plain(name)} ({off[name]:+.1f} standard deviations)" for name in farthest)
        return f"distance {distance:.2f}, limit {self.limit:.2f}; farthest off: {shown}"

    def save(self, path: str | Path) -> Path:
        """Write as JSON, completely or not at all."""
        with atomic_write(path) as part:
            part.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")
        return Path(path)

    @classmethod
    def beside(cls, weights: str | Path) -> TrainingScans | None:
        """What was kept beside weights; None where there is nothing, or it belongs to other weights (in the log)."""
        path = Path(weights).with_name(FILE)
        if not path.is_file():
            return None
        try:
            found = cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            logger.warning("%s cannot be read, so scans are not compared with the training scans: %s", path, error)
            return None
        if found.weights_sha256 != file_sha256(weights):
            logger.warning("%s belongs to other weights than %s, so scans are not compared with it", path, weights)
            return None
        return found


def _plain(name: str) -> str:
    """A feature's name for people; files of weights keep the older word."""
    return name.replace("unsureness", "uncertainty")


def check_count(scans: int) -> None:
    """Refuse too few scans to describe the training scans.

    Raises:
        DataError: fewer than `MIN_SCANS`.
    """
    if scans < MIN_SCANS:
        raise DataError("--scans", f"expected at least {MIN_SCANS} training scans", str(scans),
                        "Promote without --scans")  # fmt: skip


def _gaussian(rows: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each column, and the inverse of the covariance between the standardised ones.

    The covariance is shrunk towards a multiple of the unit matrix (Ledoit and Wolf 2004, equation 14).
    """
    mean = rows.mean(0)
    std = rows.std(0) + 1e-3 * np.abs(mean) + 1e-6  # a feature that is the same in all scans must not divide by 0
    z = (rows - mean) / std
    count, size = z.shape
    covariance = z.T @ z / count
    target = np.trace(covariance) / size * np.eye(size)
    apart = ((covariance - target) ** 2).sum()
    error = sum(((np.outer(row, row) - covariance) ** 2).sum() for row in z) / count**2
    weight = min(error, apart) / apart if apart > 0 else 1.0
    return mean, std, np.linalg.inv((1 - weight) * covariance + weight * target)


def _distances(
    rows: NDArray[np.float64], mean: NDArray[np.float64], std: NDArray[np.float64], precision: NDArray[np.float64]
) -> NDArray[np.float64]:
    z = np.clip(np.nan_to_num((rows - mean) / std, nan=LARGEST_Z), -LARGEST_Z, LARGEST_Z)
    return np.sqrt(np.einsum("ij,jk,ik->i", z, precision, z) / len(mean))
