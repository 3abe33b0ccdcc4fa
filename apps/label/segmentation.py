"""A bundle's network as MONAI Label's segmentation of one image, by the way of ``decathlete predict``."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.transform.writer import write_itk
from monailabel.utils.others.generic import device_list, name_to_device

from decathlete.bundle import Bundle
from decathlete.bundle.checkpoints import BEST
from decathlete.bundle.configs import load
from decathlete.errors import CheckpointError, GeometryError, UsageError
from decathlete.files import NIFTI_SUFFIXES
from decathlete.inference.limits import check_memory
from decathlete.inference.predictor import Prediction, Predictor
from decathlete.io.volume import PAIR_TOLERANCE_MM, Volume
from decathlete.io.write import write_on_grid
from decathlete.label.drawing import viewer_affine
from decathlete.label.entropy import mean_entropy
from decathlete.label.guard import choice, switch

logger = logging.getLogger(__name__)

SUFFIXES = (*NIFTI_SUFFIXES, ".nrrd")  # of a result; 3D Slicer and OHIF ask for .nrrd
# what viewers send where a person has clicked or scribbled
CLICKS = ("foreground", "background", "points", "point_labels", "clicks", "roi", "selected_label_name")
NOT_INTERACTIVE = "No bundle is interactive: correct the label map with the viewer's own tools"
DTYPES = ("uint8", "uint16", "int16", "int32", "float32")


class Segmentation(InferTask):
    """A bundle as MONAI Label's model: an image in, the file of a label map on the image's own grid out.

    The network stays loaded until its file of weights changes. One image is predicted at a time; others wait.

    Args:
        folder: the bundle. Without weights it is no model yet, and becomes one as soon as a training leaves some.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        config = load(folder, "inference")
        self._bundle = Bundle(folder)
        self.metadata = self._bundle.metadata
        self.channels = int(config.get_parsed_content("channels")) if "channels" in config else 1
        self.can_mirror = bool(config.get("tta_axes"))
        self._lock = threading.RLock()
        self._loaded: dict[tuple, Predictor] = {}
        super().__init__(
            type=InferType.SEGMENTATION,
            labels={name: value for value, name in self._bundle.labels.items()},
            dimension=3,  # whole volumes go in and come out, of 2D networks too
            description=self.metadata.get("description", ""),
        )

    @property
    def name(self) -> str:
        """What the server calls the model."""
        return self.folder.name

    @property
    def weights(self) -> Path:
        """File of the weights that are used unless a request names others."""
        return self.folder / "models" / BEST

    def weight_files(self) -> list[str]:
        """Names of all weights of the bundle, those in use first."""
        names = sorted(file.name for file in self.weights.parent.glob("*.pt") if not file.name.startswith("."))
        return sorted(names, key=lambda name: name != BEST)

    def is_valid(self) -> bool:
        """Whether there are weights."""
        return self.weights.is_file()

    def get_path(self, validate: bool = True) -> str | None:
        """File of the weights, None where there is none; with ``validate=False`` where it would be."""
        return str(self.weights) if self.is_valid() or not validate else None

    def config(self) -> dict[str, Any]:
        """What a request may choose, each with its default first."""
        mirrored = {"tta": False} if self.can_mirror else {}
        return {"device": device_list(), "model_filename": self.weight_files(), **mirrored}

    def info(self) -> dict[str, Any]:
        """What ``/info/`` says about the model."""
        return super().info() | {"version": self.metadata.get("version")}

    def options(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """What of a request this model goes by, checked; all else is left out.

        Raises:
            UsageError: a value that cannot be, or clicks.
        """
        if clicked := [name for name in (*CLICKS, *self.labels) if request.get(name)]:
            raise UsageError(f"params, {clicked[0]}", "clicks are not used", f"{request[clicked[0]]!r:.80}",
                             NOT_INTERACTIVE)  # fmt: skip
        return {
            "device": device_of(request),
            "model_filename": choice(request, "model_filename", {BEST, *self.weight_files()}, BEST),
            "tta": switch(request, "tta", False) and self.can_mirror,
            "result_extension": choice(request, "result_extension", SUFFIXES, ".nii.gz"),
            "result_dtype": choice(request, "result_dtype", DTYPES, "uint8"),
        }

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Path of a new file with the label map, and what belongs to it: the labels' names and values, seconds, and
        warnings about a doubtful label map, such as one of a scan that looks unlike the training scans.

        Raises:
            CheckpointError: no weights, or another network's.
            DataError: the image cannot be read.
            DeviceError: the work would not fit into memory.
        """
        options, start = self.options(request), time.monotonic()
        volume, prediction = self.predict(request["image"], options)
        predicted = time.monotonic()
        file = self._write(prediction.label, volume, options)
        written = time.monotonic()
        seconds = {"infer": predicted - start, "write": written - predicted, "total": written - start}
        logger.info("%s: %s in %.2f s", self.name, Path(request["image"]).name, seconds["total"])
        for warning in prediction.warnings:
            logger.warning("%s: %s: %s", self.name, Path(request["image"]).name, warning)
        return str(file), {
            "label_names": self.label_names(),
            "latencies": {name: round(value, 3) for name, value in seconds.items()},
            "centroids": {},
            "warnings": prediction.warnings,
        }

    def label_names(self) -> dict[str, int]:
        """Name to value in the order of the values, from 1 without a gap: 3D Slicer gives the first name to value 1."""
        names = {value: name for name, value in self.labels.items()}
        return {names.get(value, f"unused {value}"): value for value in range(1, max(names) + 1)}

    def predict(self, image: str | Path, options: Mapping[str, Any]) -> tuple[Volume, Prediction]:
        """An image's file as it was read, and its prediction."""
        with self._lock:
            predictor = self.predictor(**{name: options[name] for name in ("device", "model_filename", "tta")})
            check_memory(predictor, Path(image), False, None)
            volume = predictor.read(image)
            return volume, predictor(volume.array, volume.affine, name=Path(image).name)

    def uncertainty(self, image: str | Path, device: str = "cpu") -> float:
        """How undecided the network is about an image, 0 to 1: the entropy of its classes in each voxel, in units of
        the largest one, averaged over the voxels that are foreground with a probability of 1% or more.

        1 where there is no such voxel: an image in which nothing is found is worth a look.
        """
        with self._lock:
            predictor = self.predictor(device, BEST, False)
            check_memory(predictor, Path(image), True, None)
            volume = predictor.read(image)
            probabilities = predictor(
                volume.array, volume.affine, probabilities=True, name=Path(image).name
            ).probabilities
        assert probabilities is not None
        return mean_entropy(probabilities)

    def predictor(self, device: str, model_filename: str, tta: bool) -> Predictor:
        """The loaded network; loaded anew when its file is another one.

        Raises:
            CheckpointError: no weights, or another network's.
        """
        file = self.weights.with_name(model_filename)
        try:
            stat = file.stat()
        except FileNotFoundError:
            raise CheckpointError(f"model '{self.name}'", "no weights to predict with", f"no {model_filename}",
                                  "Submit labels and train it, or upload weights") from None  # fmt: skip
        key = (device, model_filename, tta, stat.st_mtime_ns, stat.st_size, stat.st_ino)
        with self._lock:
            if key not in self._loaded:
                self._loaded.clear()  # one network at a time: memory counts
                logger.info("%s: loading %s for %s", self.name, model_filename, device)
                self._loaded[key] = Predictor(self.folder, checkpoints=file, device=device, tta=tta)
            return self._loaded[key]

    def _write(self, label: Any, volume: Volume, options: Mapping[str, Any]) -> Path:
        handle, name = tempfile.mkstemp(prefix=f"{self.name}_", suffix=options["result_extension"])
        os.close(handle)
        file = Path(name)
        array = label.astype(np.dtype(options["result_dtype"]))
        seen = viewer_affine(volume.path)  # a viewer lays the label map over the image as it has read that
        try:
            if options["result_extension"] == ".nrrd":
                write_itk(array, name, volume.affine if seen is None else seen, array.dtype, True)
            else:
                write_on_grid(array, volume, file, f"decathlete {self.name}")
                own = viewer_affine(file)
                if seen is not None and own is not None and np.abs(seen - own).max() > PAIR_TOLERANCE_MM:
                    raise GeometryError(volume.path, "viewers show this image in another place than its label map",
                                        f"voxel size {volume.header['pixdim'][1:4]} in the header",
                                        "Correct the header: voxel sizes are above 0")  # fmt: skip
        except BaseException:
            file.unlink(missing_ok=True)
            raise
        return file


def device_of(request: Mapping[str, Any]) -> str:
    """Device that a request names, by its own name or the one that ``/info/`` shows; by default the fastest.

    Raises:
        UsageError: a device that is not there.
    """
    shown = device_list()
    plain = {name_to_device(name) for name in shown}
    return name_to_device(choice(request, "device", {*shown, *plain, "cpu", "cuda"}, shown[0]))
