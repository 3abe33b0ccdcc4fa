"""New weights in the place of old ones, unless they are worse."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

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


def adopt(folder: Path, new: Path, pairs: Sequence[Pair], device: str = "cpu") -> dict[str, Any]:
    """Put new weights in the place of a bundle's ``models/model.pt`` unless they are worse on ``pairs``.

    Nothing is lost: what is not in use stays in ``models`` as ``earlier_<time>.pt`` or ``worse_<time>.pt``.

    Returns:
        ``adopted``, ``dice_before`` (None where there were no weights, or other networks'), ``dice_after``, ``cases``.

    Raises:
        CheckpointError: the new weights are not this network's.
    """
    target = folder / "models" / BEST
    target.parent.mkdir(exist_ok=True)
    network = load(folder, "inference", {"device": "cpu"}).get_parsed_content("network_def")
    weights = plain_weights(load_weights(network, new, where=f"trained for {folder.name}"))
    after = mean_dice(folder, new, pairs, device)
    try:
        before = mean_dice(folder, target, pairs, device) if target.is_file() else None
    except DecathleteError as error:
        logger.warning("%s: the weights in use cannot be compared: %s", folder.name, error)
        before = None
    stamp = datetime.now().strftime("%Y%m%d_%H%M%S_%f")
    if before is None or after >= before:
        if target.is_file():
            shutil.copy2(target, target.with_name(f"earlier_{stamp}.pt"))
        save_checkpoint(weights, target)
        logger.info("%s: the new weights are served", folder.name)
    else:
        save_checkpoint(weights, target.with_name(f"worse_{stamp}.pt"))
        logger.info("%s: the weights of before are served on: Dice %.4f against %.4f", folder.name, before, after)
    known = {"dice_before": before, "dice_after": after}
    return {"adopted": before is None or after >= before, **known, "cases": len(pairs)}


def mean_dice(folder: Path, weights: Path, pairs: Sequence[Pair], device: str = "cpu") -> float:
    """Mean over classes and cases of the Dice on each image's own grid; a class that is in neither counts for nothing.

    0 where no case has any class.
    """
    predictor = Predictor(folder, checkpoints=weights, device=device)
    scores = []
    for pair in pairs:
        image = predictor.read(pair["image"])
        label = read_nifti(pair["label"], kind="label")
        check_pair(image, label)
        found = predictor(image.array, image.affine, name=pair["case_id"]).label
        scores += [dice(found == value, label.array == value) for value in bundle_labels(folder)]
    known = [score for score in scores if not np.isnan(score)]
    return float(np.mean(known)) if known else 0.0
