"""New weights in the place of old ones, unless they are worse or worthless."""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from decathlete.bundle import bundle_labels
from decathlete.bundle.checkpoints import BEST, load_weights, plain_weights, save_checkpoint
from decathlete.bundle.configs import load
from decathlete.errors import DecathleteError
from decathlete.evaluation.metrics import dice
from decathlete.inference.predictor import Predictor
from decathlete.io.nifti import read_nifti
from decathlete.io.volume import check_pair

logger = logging.getLogger(__name__)

Pair = dict[str, str]
EXCHANGED = 0.1  # Dice by which other names for the classes must fit better to be taken for an exchange


def adopt(folder: Path, new: Path, pairs: Sequence[Pair], device: str = "cpu") -> dict[str, Any]:
    """Put new weights in the place of a bundle's ``models/model.pt``, unless on ``pairs`` they are worse than the old
    ones or than a map that needs no network, or classes look exchanged.

    Nothing is lost: what is not in use stays in ``models`` as ``earlier_<time>.pt`` or ``worse_<time>.pt``.

    Returns:
        ``adopted``, ``reason``, ``dice_before`` (None where there were no weights, or other networks'),
        ``dice_after``, ``cases``.

    Raises:
        CheckpointError: the new weights are not this network's.
    """
    target = folder / "models" / BEST
    target.parent.mkdir(exist_ok=True)
    network = load(folder, "inference", {"device": "cpu"}).get_parsed_content("network_def")
    weights = plain_weights(load_weights(network, new, where=f"trained for {folder.name}"))
    after = agreement(folder, new, pairs, device)
    try:
        before = agreement(folder, target, pairs, device) if target.is_file() else None
    except DecathleteError as error:
        logger.warning("%s: the weights in use cannot be compared: %s", folder.name, error)
        before = None
    fault = fault_of(after, before)
    stamp = datetime.now().strftime("%Y%m%d_%H%M%S_%f")
    if fault:
        save_checkpoint(weights, target.with_name(f"worse_{stamp}.pt"))
        logger.info("%s: the new weights are not used: %s", folder.name, fault)
    else:
        if target.is_file():
            shutil.copy2(target, target.with_name(f"earlier_{stamp}.pt"))
        save_checkpoint(weights, target)
        logger.info("%s: the new weights are served", folder.name)
    known = {"dice_before": before.dice if before else None, "dice_after": after.dice}
    return {"adopted": not fault, "reason": fault or _merit(after, before), **known, "cases": len(pairs)}


@dataclass(frozen=True)
class Agreement:
    """How label maps of a network and of people agree.

    Attributes:
        names: of the classes.
        of_classes: mean Dice of each predicted class (row) with each drawn class (column), nan where both are absent
            from all cases.
        dice: mean over classes and cases of the Dice of a class with itself; 0 where no case has any class.
        trivial: the same of a map that is this class everywhere: what needs no network.
    """

    names: tuple[str, ...]
    of_classes: NDArray[np.float64]
    dice: float
    trivial: float

    def exchange(self) -> str:
        """Which classes fit other names clearly better, as ``'a' as 'b' (Dice 0.90)``; empty if none do."""
        known = np.nan_to_num(self.of_classes)
        rows, columns = linear_sum_assignment(known, maximize=True)
        if known[rows, columns].mean() < known.diagonal().mean() + EXCHANGED:
            return ""
        return ", ".join(f"'{self.names[r]}' as '{self.names[c]}' (Dice {known[r, c]:.2f})"
                         for r, c in zip(rows, columns, strict=True) if r != c)  # fmt: skip


def fault_of(after: Agreement, before: Agreement | None) -> str:
    """Why new weights must not be used; empty if they may."""
    for agreement_, whose in ((before, "the weights in use"), (after, "the new weights")):
        if agreement_ and (other := agreement_.exchange()):
            return f"classes look exchanged: {whose} and the labels would fit better with {other}"
    if after.dice <= after.trivial:
        return f"Dice {after.dice:.4f} is no better than without a network ({after.trivial:.4f}): train longer"
    if before and after.dice < before.dice:
        return f"Dice {after.dice:.4f} is below the {before.dice:.4f} of the weights in use"
    return ""


def _merit(after: Agreement, before: Agreement | None) -> str:
    if before is None:
        return f"Dice {after.dice:.4f}; there were no weights to compare with"
    return f"Dice {after.dice:.4f} is not below the {before.dice:.4f} of the weights before"


def mean_dice(folder: Path, weights: Path, pairs: Sequence[Pair], device: str = "cpu") -> float:
    """Mean over classes and cases of the Dice on each image's own grid; a class that is in neither counts for nothing.

    0 where no case has any class.
    """
    return agreement(folder, weights, pairs, device).dice


def agreement(folder: Path, weights: Path, pairs: Sequence[Pair], device: str = "cpu") -> Agreement:
    """Predict labelled cases, and compare on each image's own grid.

    Raises:
        CheckpointError: another network's weights.
        DataError: an image or a label that cannot be read.
        GeometryError: a label that does not lie on its image.
    """
    predictor = Predictor(folder, checkpoints=weights, device=device)
    classes = bundle_labels(folder)
    of_cases, trivial = [], []
    for pair in pairs:
        image = predictor.read(pair["image"])
        label = read_nifti(pair["label"], kind="label")
        check_pair(image, label)
        found = predictor(image.array, image.affine, name=pair["case_id"]).label
        of_cases.append([[dice(found == a, label.array == b) for b in classes] for a in classes])
        fractions = [float(np.mean(label.array == value)) for value in classes]
        trivial += [2 * f / (1 + f) for f in fractions if f]
    scores = np.array(of_cases, dtype=np.float64).reshape(len(pairs), len(classes), len(classes))
    own = scores[:, range(len(classes)), range(len(classes))]
    known = own[~np.isnan(own)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a class that no case has: nan, as it should be
        mean = np.nanmean(scores, axis=0)
    return Agreement(
        names=tuple(classes.values()),
        of_classes=mean,
        dice=float(known.mean()) if known.size else 0.0,
        trivial=float(np.mean(trivial)) if trivial else 0.0,
    )
