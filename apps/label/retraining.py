"""A bundle's training on the labels that were drawn, after which the better weights are served."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.utils.others.generic import device_list

from decathlete.checkpoints import BEST, FINAL, load_weights, plain_weights, save_checkpoint
from decathlete.errors import DataError, DecathleteError
from decathlete.evaluation.labels import bundle_labels
from decathlete.evaluation.metrics import dice
from decathlete.inference.predictor import Predictor
from decathlete.label.guard import number, switch
from decathlete.label.segmentation import device_of
from decathlete.transforms.read import check_pair, read_nifti
from decathlete.workflow import load, run

logger = logging.getLogger(__name__)

Pair = dict[str, str]
MOST_EPOCHS = 100_000
FINE_TUNING = 0.1  # of a bundle's learning rates, which are for new networks: full ones would forget what is known
MOST_COMPARED = 20  # cases on which old and new weights are compared


@dataclass(frozen=True)
class Settings:
    """What a request for a training says, checked.

    Attributes:
        device: such as ``cpu`` or ``cuda:0``.
        max_epochs: 1 or more.
        val_split: share of the labels to validate on; -1 for the cases that the bundle itself names.
        pretrained: go on from the weights in use.
        gpus: processes; None for one on ``device``.
    """

    device: str
    max_epochs: int
    val_split: float
    pretrained: bool
    gpus: int | None

    @classmethod
    def of(cls, request: Mapping[str, Any]) -> Settings:
        """Settings of a request's body; viewers send numbers as text, too.

        Raises:
            UsageError: a value that cannot be.
        """
        split = number(request, "val_split", 0.2, -1, 0.9)
        many = torch.cuda.device_count() if switch(request, "multi_gpu", True) else 0
        return cls(
            device=device_of(request),
            max_epochs=int(number(request, "max_epochs", 50, 1, MOST_EPOCHS)),
            val_split=-1.0 if split < 0 else split,
            pretrained=switch(request, "pretrained", True),
            gpus=many if many > 1 else None,
        )


class Retraining(TrainTask):
    """A bundle as MONAI Label's trainer: its training on the studies' final labels, in a folder of its own.

    When it has ended, old and new weights predict the same labelled cases, those held out where there are such. The
    new ones are served if their Dice is no lower, and the old ones stay beside them; else the old ones go on being
    served, and the new ones lie beside them. A viewer can choose among all of them (``model_filename``).

    Args:
        folder: the bundle.
        runs: folder for the runs.
    """

    def __init__(self, folder: Path, runs: Path) -> None:
        self.folder, self.runs = folder, runs
        load(folder, "train")  # a config that cannot be read is told at the start
        self.metadata = json.loads((folder / "configs" / "metadata.json").read_text(encoding="utf-8"))
        super().__init__(self.metadata.get("description", ""))

    def config(self) -> dict[str, Any]:
        """What a request may choose, with defaults."""
        return {"device": device_list(), "pretrained": True, "max_epochs": 50, "val_split": 0.2, "multi_gpu": True}

    def info(self) -> dict[str, Any]:
        """What ``/info/`` tells of the trainer."""
        return super().info() | {"version": self.metadata.get("version")}

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Train, compare, and put the better weights in place.

        Returns:
            What was served before and is now, with the mean Dice of both, and the cases that it was measured on.

        Raises:
            DataError: no final label, or a label that does not lie on its image.
            CheckpointError: weights to go on from that are another network's.
        """
        settings = Settings.of(request)
        pairs = checked_pairs(datastore)
        training, validation = split(pairs, settings.val_split)
        output = self._new_run()
        weights = self.folder / "models" / BEST
        go_on = settings.pretrained and weights.is_file()
        logger.info(
            "%s: %d cases to train on, %s to validate on, %s", self.folder.name, len(training),
            "the bundle's own" if settings.val_split < 0 else len(validation),
            "going on from the weights in use" if go_on else "from new weights",
        )  # fmt: skip
        overrides = self._overrides(settings, training, validation, output, weights if go_on else None)
        run("training", self.folder, overrides, gpus=settings.gpus)
        held_out = [pair for pair in validation if pair not in training]
        result = adopt(self.folder, output / FINAL, (held_out or training)[:MOST_COMPARED], settings.device)
        return result | {"held_out": bool(held_out), "run": output.name}

    def _new_run(self) -> Path:
        stamp = datetime.now().strftime("%Y%m%d_%H%M%S")
        for n in range(1, 1000):
            output = self.runs / self.folder.name / (stamp if n == 1 else f"{stamp}_{n}")
            try:
                output.mkdir(parents=True)
            except FileExistsError:
                continue
            return output
        raise FileExistsError(output)

    def _overrides(
        self, settings: Settings, training: list[Pair], validation: list[Pair], output: Path, weights: Path | None
    ) -> dict[str, Any]:
        config = load(self.folder, "train")
        values: dict[str, Any] = {
            "train::dataset::data": training,
            "train::trainer::max_epochs": settings.max_epochs,
            "output_dir": str(output),
        }
        if settings.val_split >= 0:
            values |= {"validate::dataset::data": validation, "dataset_dir": str(output.parent)}
        if settings.gpus is None:
            values["device"] = f"$torch.device('{settings.device}')"
        if weights is not None:
            start = {"_target_": "decathlete.training.LoadWeights", "network": "@network", "path": str(weights)}
            values["train::handlers"] = [*config.get("train::handlers"), start]
            rates = {name: config.get(name) for name in ("lr", "matrix_lr")}
            values |= {k: FINE_TUNING * float(v) for k, v in rates.items() if isinstance(v, (int, float))}
        return values


def checked_pairs(datastore: Datastore) -> list[Pair]:
    """Images and final labels of a datastore.

    Raises:
        DataError: there is none.
    """
    pairs = datastore.pairs() if hasattr(datastore, "pairs") else [
        {"image": d["image"], "label": d["label"], "case_id": Path(d["image"]).name} for d in datastore.datalist()
    ]  # fmt: skip
    if not pairs:
        raise DataError("studies", "a training needs final labels", "none",
                        "Submit a label in the viewer, or put label maps into labels/final")  # fmt: skip
    return pairs


def split(pairs: Sequence[Pair], share: float) -> tuple[list[Pair], list[Pair]]:
    """Cases to train on and cases to validate on, in the order of the pairs.

    Which cases are held out goes by their ids, so that a case mostly stays where it is while others come. Where
    none can be held out (one label, or ``share`` 0), all are trained on and watched.
    """
    count = min(max(1, round(len(pairs) * share)), len(pairs) - 1) if share > 0 else 0
    ranked = sorted(pairs, key=lambda pair: sha256(pair["case_id"].encode()).digest())
    held_out = ranked[:count]
    training = [pair for pair in pairs if pair not in held_out]
    return training, [pair for pair in pairs if pair in held_out] or training


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
        image = read_nifti(pair["image"], channels=predictor.channels)
        label = read_nifti(pair["label"], kind="label")
        check_pair(image, label)
        found = predictor(image.array, image.affine, name=pair["case_id"]).label
        scores += [dice(found == value, label.array == value) for value in bundle_labels(folder)]
    known = [score for score in scores if not np.isnan(score)]
    return float(np.mean(known)) if known else 0.0
