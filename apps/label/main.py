"""The app that MONAI Label starts: our bundles as models, trainers and scores of a folder of studies."""

from __future__ import annotations

import logging
import random
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from dicomweb_client.session_utils import create_session_from_user_pass
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMwebClientX
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.batch_infer import BatchInferTask
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.tasks.activelearning.epistemic import Epistemic
from monailabel.tasks.activelearning.first import First
from monailabel.tasks.scoring.sum import Sum
from monailabel.utils.async_tasks.task import AsyncTask

from decathlete import __version__
from decathlete.bundle import is_bundle
from decathlete.errors import DataError, DecathleteError, listed
from decathlete.label.classes import Classes
from decathlete.label.guard import NotFoundError
from decathlete.label.retraining import Retraining
from decathlete.label.scoring import LabelAgreement, Uncertainty
from decathlete.label.segmentation import Segmentation
from decathlete.label.stats import ended
from decathlete.label.studies import Archive, StudiesFolder

logger = logging.getLogger(__name__)


class LabelApp(MONAILabelApp):
    """MONAI Label's app over the bundles in ``<app_dir>/model``.

    Args:
        app_dir: folder with ``model/<bundle>``; weights, runs and logs go there too.
        studies: folder of NIfTI images, or the address of a DICOMweb server.
        conf: ``models``: names of the bundles to serve, with commas between; all without it.
    """

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str]) -> None:
        there = sorted(folder for folder in Path(app_dir, "model").iterdir() if is_bundle(folder))
        names = conf["models"].split(",") if conf.get("models") else [folder.name for folder in there]
        found = {folder.name: folder.resolve() for folder in there}
        self.bundles = {name: found[name] for name in names if name in found}  # the first one is a viewer's default
        self._models = {name: Segmentation(folder) for name, folder in self.bundles.items()}
        self.classes = Classes({name: model.labels for name, model in self._models.items()})
        for name, model in self._models.items():
            model.labels = self.classes.shown(name)
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=dict(conf),
            name="decathlete",
            description="Segmentation with decathlete's bundles. Not for clinical use.",
            version=__version__,
            labels=self.classes.names,  # of bundles without weights too: an annotator has to start somewhere
        )

    def init_datastore(self) -> Datastore:
        """A folder, or what MONAI Label has for an address."""
        if self.studies.startswith(("http://", "https://")):
            return self._archive()
        channels = {model.channels for model in self._models.values()}
        return StudiesFolder(self.studies, channels, self.classes, watch=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD)

    def _archive(self) -> Archive:
        if shutil.which("itkimage2segimage") is None:
            logger.warning(
                "DICOM SEG cannot be written without itkimage2segimage: 'decathlete serve --setup' installs it"
            )
        user, password = settings.MONAI_LABEL_DICOMWEB_USERNAME, settings.MONAI_LABEL_DICOMWEB_PASSWORD
        client = DICOMwebClientX(
            url=self.studies.rstrip("/"),
            session=create_session_from_user_pass(user, password) if user and password else None,
            qido_url_prefix=settings.MONAI_LABEL_QIDO_PREFIX,
            wado_url_prefix=settings.MONAI_LABEL_WADO_PREFIX,
            stow_url_prefix=settings.MONAI_LABEL_STOW_PREFIX,
        )
        search, cache = settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER, settings.MONAI_LABEL_DICOMWEB_CACHE_PATH
        return Archive(client, search, cache, self.classes)

    def init_infers(self) -> dict[str, InferTask]:
        """Every bundle; one without weights is listed as a model in ``/info/`` once it has some."""
        return dict(self._models)

    def init_trainers(self) -> dict[str, TrainTask]:
        """Every bundle."""
        return {name: Retraining(folder, Path(self.app_dir, "runs")) for name, folder in self.bundles.items()}

    def init_strategies(self) -> dict[str, Strategy]:
        """Random, first, and for every bundle the image about which it is least certain."""
        uncertain = {
            f"{name}_uncertainty": Epistemic(key=f"{name}_uncertainty", desc=f"'{name}' is least certain about it")
            for name in self.bundles
        }
        return {"random": RandomImage(), "first": First(), **uncertain}

    def init_scoring_methods(self) -> dict[str, ScoringMethod]:
        """Sums and Dice of labels, and the uncertainty of every bundle."""
        uncertain = {f"{name}_uncertainty": Uncertainty(model) for name, model in self._models.items()}
        return {"sum": Sum(), "dice": LabelAgreement(), **uncertain}

    def init_batch_infer(self) -> Callable:
        """Prediction of many images."""
        return BatchPrediction()

    def info(self) -> dict[str, Any]:
        """As MONAI Label's, with the classes of every trainer: a bundle without weights is no model yet.

        Of the statistics, the running training comes first, then the latest, since viewers show the first one alone.
        A training that was stopped or has failed counts as ended.
        """
        found, task = super().info(), AsyncTask.status("train", check_if_running=True)[0]
        for name, trainer in found["trainers"].items():
            trainer["labels"] = self.classes.shown(name)
        running = task["request"].get("model") if task else None
        stats = {name: one if name == running else ended(one) for name, one in found["train_stats"].items()}
        latest = sorted(stats, key=lambda name: (name == running, stats[name]["start_ts"]), reverse=True)
        return found | {"train_stats": {name: stats[name] for name in latest}}

    def infer(self, request: Mapping[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """As MONAI Label's, for models and images that are there.

        Raises:
            NotFoundError: no such model or image.
        """
        if request.get("model") not in self._infers:
            raise NotFoundError(f"model '{str(request.get('model'))[:80]}'", "this server has no such model", "",
                                f"Choose one of: {', '.join(sorted(self._infers))}")  # fmt: skip
        store = datastore or self.datastore()
        if not Path(request["image"]).is_absolute():  # a file that our routes have received
            store.check_known(request["image"])
        return super().infer(dict(request), datastore)


class RandomImage(Strategy):
    """A random image, the more likely the longer it was not offered.

    MONAI Label's own strategy fails on the second call within a second.
    """

    def __init__(self) -> None:
        super().__init__("Random image")

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """The image's id; None if all are labelled."""
        images, now = datastore.get_unlabeled_images(), time.time()
        if not images:
            return None
        offered = [datastore.get_image_info(i).get("strategy", {}).get(request["strategy"], {}) for i in images]
        weights = [max(0, now - float(info.get("ts", 0))) + 1 for info in offered]
        return {"id": random.choices(images, weights=weights)[0]}


class BatchPrediction(BatchInferTask):
    """MONAI Label's batch, also on a machine without a GPU; an image that fails does not stop the others."""

    def __call__(self, request: Mapping[str, Any], datastore: Datastore, infer: Callable) -> dict[str, Any]:
        """Image to the result; every result is saved as a label.

        Raises:
            DataError: at the end; names the images that failed.
        """
        failed: dict[str, str] = {}

        def forgiving(one: Mapping[str, Any], store: Datastore) -> dict[str, Any]:
            try:
                return infer(one, store)
            except DecathleteError as error:
                failed[str(one["image"])] = str(error)
                logger.warning("%s: %s", one["image"], error)
                return {}

        several = torch.cuda.device_count() > 1  # MONAI Label's default, true, divides by the number of GPUs
        request = dict(request) | {"multi_gpu": bool(request.get("multi_gpu", True)) and several}
        result = super().__call__(request, datastore, forgiving)
        if failed:
            one = next(iter(failed.values())).rstrip(".")
            raise DataError(listed(failed), f"{len(failed)} of {len(result)} images could not be predicted", one,
                            "The others are done. Mend or remove these")  # fmt: skip
        return result
