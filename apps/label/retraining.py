"""A bundle's training on the labels that were drawn, after which the better weights are served."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.utils.others.generic import device_list

from decathlete.bundle import Bundle
from decathlete.bundle.checkpoints import BEST, FINAL
from decathlete.bundle.configs import load
from decathlete.errors import DataError, DecathleteError
from decathlete.label.adoption import Pair, adopt
from decathlete.label.guard import number, switch
from decathlete.label.segmentation import device_of
from decathlete.label.splitting import data_overrides, own_validation, split
from decathlete.label.stats import elapsed, ended, read_stats, started, write_stats
from decathlete.label.studies import Archive, StudiesFolder
from decathlete.workflow import run

logger = logging.getLogger(__name__)

MOST_EPOCHS = 100_000
FINE_TUNING = 0.1  # of a bundle's learning rates, which are for new networks: full ones would forget what is known
MOST_COMPARED = 20  # cases on which old and new weights are compared


@dataclass(frozen=True)
class Settings:
    """What a request for a training says, checked.

    Attributes:
        device: such as ``cpu`` or ``cuda:0``.
        max_epochs: 1 or more.
        val_split: fraction of the labels to validate on; -1 for the cases that the bundle itself names.
        pretrained: start from the weights in use.
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
            UsageError: a value that is not allowed.
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

    When it has ended, old and new weights predict the same labelled cases, those held out where there are any. The new
    ones are served if their Dice is no lower, and the old ones stay beside them; else the old ones stay in use, and the
    new ones are kept beside them. A viewer can choose any of them (``model_filename``).

    Args:
        folder: the bundle.
        runs: folder for the runs.
    """

    def __init__(self, folder: Path, runs: Path) -> None:
        self.folder, self.runs = folder, runs / folder.name
        self._stats = self.runs / "train_stats.json"
        load(folder, "train")  # a config that cannot be read is reported at the start
        self.metadata = Bundle(folder).metadata
        super().__init__(self.metadata.get("description", ""))

    def config(self) -> dict[str, Any]:
        """What a request may choose, with defaults."""
        return {"device": device_list(), "pretrained": True, "max_epochs": 50, "val_split": 0.2, "multi_gpu": True}

    def info(self) -> dict[str, Any]:
        """What ``/info/`` says about the trainer."""
        return super().info() | {"version": self.metadata.get("version")}

    def stats(self) -> dict[str, Any]:
        """How far the latest training is, and the Dice of the weights; before the first one, a training that has ended
        without an epoch: viewers show missing stats as a complete training."""
        return read_stats(self._stats) or ended(started(self.config()["max_epochs"], time.time())) | {"start_ts": 0}

    def __call__(self, request: Mapping[str, Any], datastore: StudiesFolder | Archive) -> dict[str, Any]:
        """Train, compare, and put the better weights in place.

        Returns:
            What was served before and is now, with the mean Dice of both, and the cases on which it was measured.

        Raises:
            DataError: no final label, or a label that does not lie on its image.
            CheckpointError: weights to start from that are another network's.
        """
        start = time.time()
        settings = Settings.of(request)
        pairs = checked_pairs(datastore, self.folder)
        training, validation = split(pairs, settings.val_split)
        output = self._new_run()
        weights = self.folder / "models" / BEST
        resumed = settings.pretrained and weights.is_file()
        write_stats(self._stats, started(settings.max_epochs, start))
        logger.info(
            "%s: %d cases to train on, %s to validate on, %s", self.folder.name, len(training),
            "the bundle's own" if settings.val_split < 0 else len(validation),
            "starting from the weights in use" if resumed else "from new weights",
        )  # fmt: skip
        overrides = self._overrides(settings, training, validation, output, weights if resumed else None)
        run("training", self.folder, overrides, gpus=settings.gpus)
        if settings.val_split < 0:  # the cases that the bundle itself names: they too were not trained on
            validation = own_validation(self.folder, overrides)
        held_out = [pair for pair in validation if pair not in training]
        result = adopt(self.folder, output / FINAL, (held_out or training)[:MOST_COMPARED], settings.device)
        dice = result["dice_after" if result["adopted"] else "dice_before"]
        if result["adopted"] and held_out:
            try:
                dice = self._score(output, held_out[:MOST_COMPARED], settings.device)
            except DecathleteError as error:  # such as a bundle without evaluate.yaml; the weights are served already
                logger.warning("%s: no summary.json: %s", self.folder.name, error)
        stats = read_stats(self._stats) | {"current_time": elapsed(start)}
        write_stats(self._stats, ended(stats) | ({} if dice is None else {"best_metric": dice}))
        return result | {"held_out": bool(held_out), "run": output.name}

    def _new_run(self) -> Path:
        stamp = datetime.now().strftime("%Y%m%d_%H%M%S")
        for n in range(1, 1000):
            output = self.runs / (stamp if n == 1 else f"{stamp}_{n}")
            try:
                output.mkdir(parents=True)
            except FileExistsError:
                continue
            return output
        raise FileExistsError(output)

    def _score(self, output: Path, pairs: list[Pair], device: str) -> float | None:
        """Mean Dice of a run's final weights on held-out cases, as ``decathlete run evaluating`` leaves it in the run's
        folder, from where `decathlete promote` takes it."""
        values = data_overrides(pairs, pairs, output) | {"device": f"$torch.device('{device}')"}
        run("evaluating", self.folder, values)
        return json.loads((output / "summary.json").read_text(encoding="utf-8"))["mean"]["dice"]["mean"]

    def _overrides(
        self, settings: Settings, training: list[Pair], validation: list[Pair], output: Path, weights: Path | None
    ) -> dict[str, Any]:
        config = load(self.folder, "train")
        watched = validation if settings.val_split >= 0 else None
        values = data_overrides(training, watched, output) | {"train::trainer::max_epochs": settings.max_epochs}
        if settings.gpus is None:
            values["device"] = f"$torch.device('{settings.device}')"
        validator = "@validate::evaluator" if "validate::evaluator" in config else None
        handlers = [{"_target_": "decathlete.label.stats.TrainStats", "file": self._stats,
                     "validator": validator, "labels": config.get("labels")}]  # fmt: skip
        if weights is not None:
            loader = "decathlete.training.StrictCheckpointLoader"
            handlers += [{"_target_": loader, "network": "@network", "path": weights}]
            rates = {name: config.get(name) for name in ("lr", "matrix_lr")}
            values |= {k: FINE_TUNING * float(v) for k, v in rates.items() if isinstance(v, (int, float))}
        return values | {"train::handlers": [*config.get("train::handlers"), *handlers]}


def checked_pairs(datastore: StudiesFolder | Archive, bundle: Path) -> list[Pair]:
    """Images and final labels of a datastore, for a bundle.

    Raises:
        DataError: there is none.
    """
    pairs = datastore.pairs(bundle.name)
    if not pairs:
        raise no_labels(bundle.name)
    return pairs


def no_labels(bundle: str = "") -> DataError:
    """What is said of studies without a final label, or without one for a bundle."""
    whose, place = (f" for '{bundle}'", f"labels/final_{bundle}") if bundle else ("", "labels/final")
    return DataError("studies", f"no final labels{whose} to train on", "",
                     f"Submit a label in the viewer, or put label maps into {place}")  # fmt: skip
