"""Scores of images and labels that MONAI Label keeps with them: agreement of two labels, uncertainty of a network."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.scoring import ScoringMethod

from decathlete.errors import DecathleteError
from decathlete.evaluation.metrics import dice
from decathlete.io.nifti import read_nifti
from decathlete.io.volume import check_pair
from decathlete.label.guard import check_tag, number
from decathlete.label.segmentation import Segmentation, device_of
from decathlete.label.studies import StudiesFolder

logger = logging.getLogger(__name__)


class LabelAgreement(ScoringMethod):
    """Dice of each label value between two tags, by default the submitted and the predicted label.

    An image gets ``dice``, the mean over its values, and ``dice_of_labels``, value to Dice.
    """

    def __init__(self) -> None:
        super().__init__("Dice of the final and the predicted label, mean over the classes")

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Image to its mean Dice, or to an error where a label cannot be read."""
        tags = [check_tag(str(request.get(name) or tag.value)) for name, tag in _TAGS.items()]
        result: dict[str, Any] = {}
        for image in datastore.list_images():
            there = [tag for tag in tags if datastore.get_label_by_image_id(image, tag)]
            if len(there) < len(tags):
                continue
            if isinstance(datastore, StudiesFolder) and len({datastore.about(image, tag).bundle for tag in tags}) > 1:
                continue  # values of different classes
            try:
                first, second = (read_nifti(datastore.get_label_uri(image, tag), kind="label") for tag in tags)
                check_pair(first, second)
            except DecathleteError as error:
                logger.warning("%s: %s", image, error)
                result[image] = {"error": str(error)}
                continue
            values = sorted({*np.unique(first.array), *np.unique(second.array)} - {0})
            of_labels = {str(value): float(dice(first.array == value, second.array == value)) for value in values}
            result[image] = float(np.mean(list(of_labels.values()))) if of_labels else 1.0
            datastore.update_image_info(image, {"dice": result[image], "dice_of_labels": of_labels})
        return result


_TAGS = {"y": DefaultLabelTag.FINAL, "y_pred": DefaultLabelTag.ORIGINAL}


class Uncertainty(ScoringMethod):
    """How uncertain a model is about each image without a final label: the entropy of its classes, 0 to 1.

    Args:
        task: the model.
    """

    def __init__(self, task: Segmentation) -> None:
        self.task = task
        self.key = f"{task.name}_uncertainty"
        super().__init__(f"Uncertainty of '{task.name}': entropy of the classes where it sees foreground, 0 to 1")

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Counts of the images scored and skipped; the values are kept with the images, as ``<model>_uncertainty``.

        Images that the same weights have scored already are skipped.

        Raises:
            CheckpointError: the model has no weights.
        """
        most = int(number(request, "max_samples", 0, 0, 10**6))
        self.task.predictor(device_of(request), self.task.weights.name, False)  # raises first if there are no weights
        version = str(self.task.weights.stat().st_mtime_ns)
        images = sorted(datastore.get_unlabeled_images())
        new = [i for i in images if datastore.get_image_info(i).get(f"{self.key}_weights") != version]
        scores, failed = {}, {}
        for image in new[:most] if most else new:
            try:
                scores[image] = self.task.uncertainty(datastore.get_image_uri(image), device_of(request))
            except DecathleteError as error:
                logger.warning("%s: %s", image, error)
                failed[image] = str(error)
                continue
            datastore.update_image_info(image, {self.key: scores[image], f"{self.key}_weights": version})
        counts = {"total": len(images), "executed": len(scores), "skipped": len(images) - len(new)}
        return counts | {"scores": scores, "failed": failed}
