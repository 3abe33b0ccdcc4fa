"""Whether a scan looks like the training scans, by about thirty features of its image and its prediction.

A Gaussian is fitted to the features of the training scans, with a shrunk covariance, and kept beside the weights. A
scan whose Mahalanobis distance is above nearly all of theirs is reported, with the features that are farthest off.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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
SPARE = 5.0  # of the limit, over the number of people: a few say little about how far off the next one may be
LARGEST_Z = 10.0  # larger distances count as this one
SHOWN = 3
ORDINARY = 2.0  # standard deviations within which about 95% of the training scans are
_PERCENTILES = (1, 10, 25, 50, 75, 90, 99)
_SAMPLE = (
    2**17
)  # voxels that are looked at, more or less; a larger scan is looked at in every second, third, ... of them
_AXES = "xyz"


def scan_figures(image: Tensor, logits: Tensor, spacing: Sequence[float], axes: int = 3) -> dict[str, float]:
    """Features of a scan (extent, intensities, roughness) and of its prediction (volumes, confidence, place, spread).

    A sample of the voxels is enough for them, so that they cost no memory and little time.

    Args:
        image: (C, *grid), as the network gets it.
        logits: (num_classes, *grid).
        spacing: mm, one per axis of the grid.
        axes: features along the first 2 alone are those of a slice: volumes are then means over the slices.
    """
    letters, shape = _AXES[:axes], image.shape[1:]
    figures = {f"log extent {a}": math.log(n * mm) for a, n, mm in zip(letters, shape, spacing, strict=False)}
    step = max(1, math.ceil((math.prod(shape) / _SAMPLE) ** (1 / 3)))
    every = tuple(slice(None, None, step if n > step else 1) for n in shape)
    for number, channel in enumerate(image):
        of = f" of channel {number}" if len(image) > 1 else ""
        values = channel[every].float().flatten().cpu().numpy()
        ranks = np.array(_PERCENTILES) / 100 * (len(values) - 1)
        ordered = np.interp(ranks, np.arange(len(values)), np.sort(values))
        figures |= {f"intensity percentile {p}{of}": float(v) for p, v in zip(_PERCENTILES, ordered, strict=True)}
        spread = float(values.std()) + 1e-6
        for axis, letter in enumerate(letters):
            lines = channel[tuple(slice(None) if a == axis else part for a, part in enumerate(every))].float()
            for order in (1, 2):  # of differences between neighbours: fine noise has more of the second
                if channel.shape[axis] > order:
                    lines = lines.diff(dim=axis)
                    rough = float(lines.abs().mean()) / spread
                    figures[f"log roughness {order} along {letter}{of}"] = math.log(rough + 1e-6)
    return figures | _figures_of_prediction(logits, every, axes)


def _figures_of_prediction(logits: Tensor, every: tuple[slice, ...], axes: int) -> dict[str, float]:
    shape = logits.shape[1:]
    probabilities = logits[(slice(None), *every)].float().softmax(0).cpu()
    bits, foreground = entropy_bits(probabilities, 0)[0], 1 - probabilities[0]
    stands_for = math.prod(shape) / foreground.numel()  # voxels of the grid, each of the sample
    slices = math.prod(shape[axes:])
    total = float(foreground.sum()) + 1e-3
    figures = {
        f"log volume of class {n}": math.log1p(float(p.sum()) * stands_for / slices)
        for n, p in enumerate(probabilities[1:], start=1)
    }
    figures["unsureness of the foreground"] = float((bits * foreground).sum()) / (total + 1)
    figures["log unsureness"] = math.log(float(bits.mean()) + 1e-6)
    for axis, letter in enumerate(_AXES[:axes]):
        profile = foreground.sum([a for a in range(foreground.ndim) if a != axis]).double()
        place = torch.linspace(0, 1, shape[axis], dtype=torch.float64)[every[axis]]
        centre = float(profile @ place) / total
        figures[f"centre of the foreground along {letter}"] = centre
        figures[f"spread of the foreground along {letter}"] = math.sqrt(float(profile @ (place - centre) ** 2) / total)
        ends = logits.select(axis + 1, 0), logits.select(axis + 1, shape[axis] - 1)
        inside = (slice(None), *(part for a, part in enumerate(every) if a != axis))
        at_ends = sum(float((1 - end[inside].float().softmax(0)[0]).sum()) for end in ends)
        figures[f"foreground at the ends of {letter}"] = at_ends * len(place) / shape[axis] / total
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
    def fit(
        cls,
        figures: Sequence[Mapping[str, float]],
        weights_sha256: str = "",
        people: Sequence[Any] | None = None,
    ) -> TrainingScans:
        """Fit the features of at least `MIN_SCANS` scans.

        Args:
            figures: of each scan.
            weights_sha256: of the weights that made the predictions.
            people: whose scan each is: those of one person say nothing about how far off another person's may be.
                Default: each of another.

        Raises:
            DataError: fewer scans.
        """
        check_count(len(figures))
        names = [name for name in figures[0] if all(name in one for one in figures)]
        rows = np.array([[one[name] for name in names] for one in figures])
        numbers = {person: n for n, person in enumerate(dict.fromkeys(people or range(len(rows))))}
        part = np.array([numbers[person] for person in people or range(len(rows))]) % FOLDS
        distances = np.empty(len(rows))
        for n in set(part.tolist()):
            distances[part == n] = _distances(rows[part == n], *_gaussian(rows[part != n]))
        mean, std, precision = _gaussian(rows)
        limit = float(np.quantile(distances, QUANTILE)) * (1 + SPARE / len(numbers))
        return cls(names, mean.tolist(), std.tolist(), precision.tolist(), limit, len(rows), weights_sha256)

    def distance(self, figures: Mapping[str, float]) -> float:
        """Mahalanobis distance over the root of the number of features: about 1 for a scan like the training scans."""
        row = np.array([[figures.get(name, math.inf) for name in self.names]])
        return float(_distances(row, np.array(self.mean), np.array(self.std), np.array(self.precision))[0])

    def unlike(self, figures: Mapping[str, float], classes: Mapping[int, str] | None = None) -> str:
        """Why a scan is unlike the training scans, in words; empty if it is not.

        Args:
            figures: `scan_figures`.
            classes: channel of the network's output to the name of its class.
        """
        distance = self.distance(figures)
        if distance <= self.limit:
            return ""
        usual = {name: (mean, std) for name, mean, std in zip(self.names, self.mean, self.std, strict=True)}
        off = {  # of those that are equally far off, the first: a size says more than a roughness
            name: min(abs(figures.get(name, math.inf) - mean) / std, LARGEST_Z) for name, (mean, std) in usual.items()
        }
        farthest: dict[str, str] = {}  # of what is the same for a person, such as extents along x and y, one
        for name in sorted(off, key=lambda name: -off[name]):
            if off[name] > ORDINARY or not farthest:
                farthest.setdefault(_KIND.sub("", name), name)
        said = [_in_words(name, figures, usual, classes or {}) for name in list(farthest.values())[:SHOWN]]
        return f"{'; '.join(said)}; distance {distance:.2f}, limit {self.limit:.2f}"

    def save(self, path: str | Path) -> Path:
        """Write as JSON, completely or not at all."""
        with atomic_write(path) as part:
            part.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")
        return Path(path)

    @classmethod
    def beside(cls, weights: str | Path, weights_sha256: str | None = None) -> TrainingScans | None:
        """What was kept beside weights; None where there is nothing, or it belongs to other weights (in the log).

        Args:
            weights: the file.
            weights_sha256: its hash, where it is known.
        """
        path = Path(weights).with_name(FILE)
        if not path.is_file():
            return None
        try:
            found = cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            logger.warning("%s cannot be read, so scans are not compared with the training scans: %s", path, error)
            return None
        if found.weights_sha256 != (weights_sha256 or file_sha256(weights)):
            logger.warning("%s belongs to other weights than %s, so scans are not compared with it", path, weights)
            return None
        return found


# where the names of two features differ that say the same to a person: an axis, a percentile, an order, a class
_KIND = re.compile(r" [xyz]\b|\b\d+|along [xyz]|log (?=unsureness)| of the foreground$")


def _in_words(
    name: str,
    figures: Mapping[str, float],
    usual: Mapping[str, tuple[float, float]],
    classes: Mapping[int, str],
) -> str:
    """A feature that is far off, for people, beside its ordinary range."""
    if name not in figures:
        return f"it has no {name.removeprefix('log ')}, as of a scan with too few slices"
    value, (mean, std) = figures[name], usual[name]
    low, high, words = mean - ORDINARY * std, mean + ORDINARY * std, name.split()
    more, times = value > mean, math.exp(min(abs(value - mean), 50))
    axis, of_channel = words[-1], name[name.index(" of channel") :] if " of channel" in name else ""
    if name.startswith("log extent"):
        axes = [other for other in usual if other.startswith("log extent") and other in figures]
        sizes = " x ".join(f"{math.exp(figures[other]):.0f}" for other in axes)
        ends = [(math.exp(m - ORDINARY * s), math.exp(m + ORDINARY * s)) for m, s in map(usual.__getitem__, axes)]
        ranges = " x ".join(_range(low, high, 0) for low, high in ends)
        return f"the scan is {sizes} mm, the training scans were {ranges} mm"
    if name.startswith("intensity"):
        return (
            f"{words[2]}% of its normalised intensities{of_channel} are below {value:.2f}, "
            f"in training below values of {_range(low, high, 2)}"
        )
    if name.startswith("log roughness"):
        letter = name.removesuffix(of_channel)[-1]
        return (
            f"neighbouring voxels{of_channel} differ {times:.1f} times as {'much' if more else 'little'} along {letter}"
            f" as in training: it is {'noisier or sharper' if more else 'smoother'}"
        )
    if name.startswith("log volume"):
        known = classes.get(int(axis), f"class {axis}")
        if not more and times > 100:
            return f"hardly any {known} was found"
        return f"the volume of {known} is {times:.1f} times as {'large' if more else 'small'} as is usual in training"
    if "unsureness" in name:
        return f"the network is {'less' if more else 'more'} confident of its answer than on the training scans"
    if name.startswith("foreground at the ends"):
        return f"more of the structure lies at the border of the scan along {axis} than in training"
    shares = f"{value:.0%}, in training {max(0, low):.0%} to {max(0, high):.0%}"
    if name.startswith("centre"):
        return f"the structure lies elsewhere along {axis} (at {shares} of the scan's extent)"
    if name.startswith("spread"):
        return f"the structure is {'wider' if more else 'narrower'} along {axis} ({shares} of the scan's extent)"
    return f"{name} is {value:.3g}, in training {_range(low, high, 3)}"


def _range(low: float, high: float, digits: int) -> str:
    first, last = f"{low:.{digits}f}", f"{high:.{digits}f}"
    return first if first == last else f"{first} to {last}"


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
