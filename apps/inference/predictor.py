"""A bundle with its weights loaded: it takes scans and returns label maps on the scans' own grids."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from dataclasses import field as dataclasses_field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirst, LoadImaged, SaveImaged
from monai.transforms.transform import apply_transform
from monai.utils import fall_back_tuple
from numpy.typing import NDArray
from torch import Tensor

from decathlete import __version__
from decathlete.bundle import Bundle, config_file
from decathlete.bundle.checkpoints import FINAL, load_weights
from decathlete.bundle.configs import load
from decathlete.compat import puts_channels_first
from decathlete.data.sides import side_in_names
from decathlete.errors import CheckpointError, ConfigError, DataError, DecathleteError, DeviceError, UsageError
from decathlete.failures import find_error, is_out_of_memory
from decathlete.files import file_sha256
from decathlete.inference.inferers import SliceWise, SlidingWindow, entropy_bits
from decathlete.inference.likeness import TrainingScans, scan_figures
from decathlete.inference.memory import estimate_gib, window_bytes
from decathlete.inference.records import changes_voxels, config_sha256
from decathlete.io.frames import read_frame
from decathlete.io.nifti import read_nifti
from decathlete.io.volume import Volume
from decathlete.transforms.bias_field import N4BiasFieldCorrectiond
from decathlete.transforms.restore import RestoreGridd, restore_to_grid

FIELD_POSTFIX = ":field"  # of its key in a case; Spacingd takes what begins with "image_" for meta data
UNLIKE = "the scan looks unlike the training scans ({}). Check its label map before you use it."
SMALLEST_PROBABILITY = 1e-7  # of an ensemble's mean, before the logarithm


@dataclass(frozen=True)
class Prediction:
    """What a network says about a scan, on the scan's own grid.

    Attributes:
        label: (X, Y, Z), class numbers, uint8 (uint16 beyond 256 classes).
        affine: 4x4, voxel indices to RAS mm: the scan's.
        probabilities: (C, X, Y, Z), float32, summing to 1 over the classes; None unless asked for.
        field: bias field by which the scan was divided, float32, (X, Y, Z), or (X, Y, Z, C) of several channels; None
            unless asked for.
        disagreement_map: bits by which the networks of an ensemble and mirrored copies disagree, (X, Y, Z), float32
            (`decathlete.inference.inferers.disagreement_bits`); None unless asked for, or with a lone prediction.
        disagreement: the sum of these bits over the expected number of foreground voxels; nan without any; or None.
        figures: features of scan and prediction, `decathlete.inference.likeness.scan_figures`; None where the bundle
            has nothing to compare them with and they were not asked for.
        distance: of these features from those of the training scans; None: not known.
        unlike: why the scan looks unlike the training scans, in words; empty: it does not, or nothing is known.
        warnings: sentences on what makes the prediction doubtful, without the scan's name.
    """

    label: NDArray[Any]
    affine: NDArray[np.float64]
    probabilities: NDArray[np.float32] | None = None
    field: NDArray[np.float32] | None = None
    disagreement_map: NDArray[np.float32] | None = None
    disagreement: float | None = None
    figures: dict[str, float] | None = None
    distance: float | None = None
    unlike: str = ""
    warnings: list[str] = dataclasses_field(default_factory=list)


class Predictor:
    """A bundle's network, its preprocessing and postprocessing, for one scan after the other.

    The way is that of the bundle's ``inference.yaml``: its ``preprocessing`` without loading, ``inferer``, and
    ``postprocessing`` without saving. Several checkpoints make an ensemble: the mean of their softmax probabilities on
    the network's grid, handed on as logarithms, which is what one network's logits are up to a shift.

    Args:
        bundle: a bundle's folder or name.
        checkpoints: weights, one path or several; a run's folder means its final ones, ``model_final.pt``. Default: the
            bundle's own.
        device: such as ``cpu``, ``cuda:1``; default: what the bundle's config chooses.
        tta: average the logits of mirrored copies too, along the axes of the config's ``tta_axes``, else along all, but
            where names of classes say left or right; where ``overrides`` name ``mirror_axes``, along these.
        overrides: id of ``inference.yaml`` to value.
        field: return the bias field that the chain's N4BiasFieldCorrectiond finds, with each prediction.

    Attributes:
        channels: volumes that the input holds.
        classes: channels of the network's output, background included.
        labels: class name to label value, background left out.
        checkpoints: files of the weights.
        tta: whether mirrored copies are averaged.
        overrides: of the config, as given.

    Raises:
        UsageError: unknown bundle or device, or a bias field of a chain that finds none.
        ConfigError: an unknown id, or a config without the parts that prediction needs.
        CheckpointError: no weights, or another network's.
        DeviceError: the device is not there.
    """

    def __init__(
        self,
        bundle: str | Path,
        checkpoints: str | Path | Sequence[str | Path] | None = None,
        device: str | torch.device | None = None,
        tta: bool = False,
        overrides: Mapping[str, Any] | None = None,
        field: bool = False,
    ) -> None:
        self._given = bundle
        self.tta, self.overrides = tta, dict(overrides or {})
        self._bundle = Bundle(bundle)
        self.folder = self._bundle.folder.resolve()
        self._config = config_file(self.folder, "inference")
        values = dict(self.overrides)
        if device is not None:
            values["device"] = f"$torch.device('{_checked_device(device)}')"
        self._parser = load(self.folder, "inference", values)
        self.name = self.folder.name
        self.device = torch.device(self._parsed("device"))
        network = self._parsed("network").to(self.device).eval()
        self.checkpoints = self._checkpoints(checkpoints)
        self.networks = []
        for n, path in enumerate(self.checkpoints):
            member = network if n == len(self.checkpoints) - 1 else copy.deepcopy(network)
            self.networks.append(load_weights(member, path, where=f"weights of {self.name}"))
        self.inferer = self._parsed("inferer")
        self._output_on = getattr(self.inferer, "output_on", None)  # as the config or the user says
        self._bytes_of_windows: dict[tuple[int, ...], int] = {}
        self.channels = self._volumes()
        self.classes = int(self._parsed("network_def::out_channels"))
        own_axes = {"mirror_axes", "inferer::mirror_axes"} & {name.replace("#", "::") for name in values}
        if tta and not (own_axes and getattr(self.inferer, "mirror_axes", None)):  # the user's axes go before tta_axes
            self._mirror()
        self._loader, self._preprocessing = self._split_loading(self._parsed("preprocessing"))
        if field:
            self._keep_field()
        chain = self._parsed("postprocessing")
        self._postprocessing = [t for t in chain.flatten().transforms if not isinstance(t, SaveImaged)]

    @cached_property
    def labels(self) -> dict[str, int]:
        """Class name to label value, background left out, in the order of the values."""
        return {name: value for value, name in self._bundle.labels.items()}

    @cached_property
    def origin(self) -> dict[str, Any]:
        """What a label map depends on besides its scan: weights, config and options, with hashes, as JSON holds it."""
        meta = self._parser.get("_meta_") or {}
        options = {name: value for name, value in self.overrides.items() if changes_voxels(name)}
        return {
            "decathlete": __version__,
            "bundle": self.name,
            "bundle_version": meta.get("version"),
            "weights": [
                {"path": str(path), "sha256": sha} for path, sha in zip(self.checkpoints, self._sha256, strict=True)
            ],
            "config_sha256": config_sha256(self._parser.config),
            "tta": self.tta,
            "options": json.loads(json.dumps(options, default=str)),
        }

    @cached_property
    def training_scans(self) -> TrainingScans | None:
        """What the training scans looked like, where that was kept beside the (first) weights."""
        return TrainingScans.beside(self.checkpoints[0], self._sha256[0])

    @cached_property
    def _sha256(self) -> list[str]:
        """Hash of each file of weights."""
        return [file_sha256(path) for path in self.checkpoints]

    def __call__(
        self,
        array: NDArray[Any] | Tensor,
        affine: NDArray[Any] | Tensor,
        probabilities: bool = False,
        name: str | Path = "array",
        disagreement: bool = False,
        figures: bool = False,
    ) -> Prediction:
        """Predict a scan held in memory.

        Args:
            array: intensities as a NIfTI file holds them: (X, Y, Z), or (X, Y, Z, C) for several channels.
            affine: 4x4, voxel indices to RAS mm.
            probabilities: return each class's probability too.
            name: what messages call this scan.
            disagreement: return how far the networks of an ensemble, and mirrored copies, disagree.
            figures: return features of the scan where there are no training scans to compare it with, too.

        Raises:
            DataError: another number of channels, values that are not finite, or no affine.
            DeviceError: memory ran out.
        """
        image = self._image(array, affine, name)
        try:
            with torch.no_grad():
                data = {"image": image}
                for transform in self._preprocessing:
                    data = apply_transform(transform, data)
                logits, bits = self._logits(data["image"], disagreement)
                prediction = self._on_original_grid(data, logits, image.meta, probabilities, name)
                if figures or self.training_scans is not None:
                    prediction = self._compared(prediction, data["image"], logits)
                return prediction if bits is None else _with_disagreement(prediction, logits, bits, data["image"])
        except Exception as error:
            if is_out_of_memory(error):
                raise self._out_of_memory(name) from error
            if (ours := find_error(error)) is not None and ours is not error:
                raise ours from error
            raise

    def _compared(self, prediction: Prediction, image: MetaTensor, logits: Tensor) -> Prediction:
        """The prediction with the features of its scan, compared with those of the training scans."""
        spacing = np.linalg.norm(np.asarray(image.affine)[:3, :3], axis=0)
        axes = 2 if self._bundle.outputs.frames else 3  # of frames, one or many may come as a volume
        figures = scan_figures(_plain(image), _plain(logits), spacing, axes)
        if self.training_scans is None:
            return replace(prediction, figures=figures)
        names = {value: name for name, value in self.labels.items()}
        unlike, distance = self.training_scans.unlike(figures, names), self.training_scans.distance(figures)
        warnings = [UNLIKE.format(unlike)] if unlike else []
        return replace(prediction, figures=figures, distance=distance, unlike=unlike, warnings=warnings)

    def predict_file(self, path: str | Path, probabilities: bool = False) -> Prediction:
        """Predict a NIfTI file, read strictly; a DICOM frame too, where the bundle takes them.

        Raises:
            DataError: the file is missing, damaged, or holds another number of channels.
        """
        volume = self.read(path)
        return self(volume.array, volume.affine, probabilities, name=path)

    def read(self, path: str | Path) -> Volume:
        """A scan as the bundle's chain would load it, strictly; or a folder with one DICOM series.

        Raises:
            DataError: it cannot be read, or the series is of another modality than the bundle's.
        """
        if Path(path).is_dir():
            return self._series(Path(path))
        return read_frame(path) if self._bundle.outputs.frames else read_nifti(path, channels=self.channels)

    def _series(self, folder: Path) -> Volume:
        from decathlete.io.series import read_series

        series = read_series(folder)
        own = self._bundle.modality
        if own in ("CT", "MR") and series.modality != own:
            raise DataError(folder, f"the bundle '{self.name}' expects {own}", f"the series is {series.modality}",
                            f"Give a series of {own}, or use another bundle")  # fmt: skip
        return series

    def keep_output(self, on_file: bool) -> None:
        """Keep the network's output in a file from now on, or wherever it fits (the default).

        Where the config or an override says ``device``, ``cpu`` or ``file``, that holds.
        """
        if self._output_on == "auto":
            self.inferer.output_on = "file" if on_file else "auto"

    def memory_gib(
        self, shape: Sequence[int], spacing: Sequence[float], probabilities: bool = False, output_on_file: bool = False
    ) -> float:
        """Upper estimate of the peak memory for a scan of spatial ``shape`` and ``spacing`` (mm), in GiB.

        ``output_on_file``: were the network's output kept in a file; without effect where `keep_output` has none.
        """
        restores_logits = not any(isinstance(t, RestoreGridd) and t.argmax for t in self._postprocessing)
        return estimate_gib(
            shape,
            spacing,
            channels=self.channels,
            classes=self.classes,
            preprocessing=Compose(self._preprocessing),
            window_bytes=self._window_bytes(shape),
            window_edge=self._window_edge(shape),
            restores_logits=restores_logits,
            probabilities=probabilities,
            networks=len(self.networks),
            output_on_file=self._output_on == "file" or (output_on_file and self._output_on == "auto"),
        )

    def _volumes(self) -> int:
        """Volumes of an input: the config's ``channels``, which a 2.5D network takes of several slices."""
        if "channels" in self._parser and isinstance(channels := self._parsed("channels"), int):
            return channels
        return int(self._parsed("network_def::in_channels")) // self._slices

    @property
    def _slices(self) -> int:
        """Slices that go in at a time as channels; 1 but for 2.5D."""
        return 2 * getattr(self.inferer, "neighbours", 0) + 1

    @property
    def _dims(self) -> int:
        """Spatial axes that the network sees, 2 or 3."""
        if "network_def::spatial_dims" in self._parser:
            return int(self._parsed("network_def::spatial_dims"))
        roi = getattr(self.inferer, "roi_size", None)
        return len(roi) if isinstance(roi, Sequence) else 3

    def _window_edge(self, shape: Sequence[int]) -> float:
        """Voxels along the first axis for which the windows' weights are kept; MONAI's inferers keep them all."""
        if isinstance(self.inferer, SliceWise) or not hasattr(self.inferer, "roi_size"):
            return 0
        ours = isinstance(self.inferer, SlidingWindow)
        return self.inferer.window(sorted(shape, reverse=True)[: self._dims])[0] if ours else math.inf

    def _window_bytes(self, shape: Sequence[int]) -> int:
        """Bytes of a forward pass for a scan of spatial ``shape``."""
        roi = getattr(self.inferer, "roi_size", None)
        if roi is None:
            return 0
        # a window may be as large as the scan; orientation decides which axes the network sees, so: the longest
        longest = sorted(shape, reverse=True)[: self._dims]
        ours = isinstance(self.inferer, SlidingWindow)
        window = self.inferer.window(longest) if ours else fall_back_tuple(roi, longest)
        if window not in self._bytes_of_windows:
            device = self.device
            batch = (self.inferer.windows_at_a_time(window, device) if ours
                     else getattr(self.inferer, "sw_batch_size", 1))  # fmt: skip
            size = (batch, self.channels * self._slices, *window)
            self._bytes_of_windows[window] = window_bytes(self.networks[0], size)
        return self._bytes_of_windows[window]

    def _parsed(self, name: str) -> Any:
        if name not in self._parser:
            raise ConfigError(self._config, f"prediction needs the id '{name}'", remedy="See docs/architecture.md")
        return self._parser.get_parsed_content(name)

    def _checkpoints(self, given: str | Path | Sequence[str | Path] | None) -> list[Path]:
        if given is None:
            own = self._parsed("checkpoint") if "checkpoint" in self._parser else self.folder / "models" / "model.pt"
            if not Path(own).is_file():
                raise CheckpointError(
                    own,
                    f"the bundle '{self.name}' has no weights",
                    "no such file",
                    f"Train it ('decathlete run training --config {self._given}') and pass --checkpoint RUN, "
                    "or put weights into it with 'decathlete promote'",
                )
            return [Path(own)]
        paths = [Path(p) for p in ([given] if isinstance(given, (str, Path)) else given)]
        if not paths:
            raise UsageError("checkpoints", "empty list", remedy="Give a file, or None for the bundle's own weights")
        return [p / FINAL if p.is_dir() else p for p in paths]

    def _mirror(self) -> None:
        if not hasattr(self.inferer, "mirror_axes"):
            raise ConfigError(
                f"{self._config}, inferer",
                "this inferer cannot average mirrored copies",
                f"{type(self.inferer).__name__} has no mirror_axes",
                "Use decathlete.inference.SlidingWindow, or SliceWise for a 2D network",
            )
        stated = "tta_axes" in self._parser
        axes = tuple(self._parsed("tta_axes") if stated else range(self._dims))
        if not stated and (side := side_in_names(self.labels)):
            raise ConfigError(
                f"{self._config}, tta_axes",
                "classes with a side need tta_axes",
                side,
                "Predict without --tta, or list the axes to mirror in tta_axes",
            )
        if not axes:
            raise ConfigError(
                f"{self._config}, tta_axes",
                "no axis to mirror",
                "training mirrored none",
                "Predict without --tta, or list the axes to mirror in tta_axes",
            )
        self.inferer.mirror_axes = axes

    def _keep_field(self) -> None:
        """Have the chain's bias field correction leave its field in the case."""
        found = [t for t in self._preprocessing if isinstance(t, N4BiasFieldCorrectiond)]
        if not found:
            raise UsageError(
                f"{self._config}, preprocessing",
                "no bias field to write",
                "N4BiasFieldCorrectiond is missing or switched off",
                "Predict without --field",
            )
        found[-1].field_postfix = FIELD_POSTFIX

    def _split_loading(self, chain: Compose) -> tuple[LoadImaged, list[Any]]:
        transforms = list(chain.flatten().transforms)
        if not transforms or not isinstance(transforms[0], LoadImaged):
            found = type(transforms[0]).__name__ if transforms else "an empty chain"
            raise ConfigError(f"{self._config}, preprocessing", "expected LoadImaged first", found)
        return transforms[0], transforms[1:]

    def _image(self, array: NDArray[Any] | Tensor, affine: NDArray[Any] | Tensor, name: str | Path) -> MetaTensor:
        """The scan as LoadImaged gives it."""
        voxels = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
        place = np.asarray(affine, dtype=np.float64)
        if voxels.ndim not in (3, 4) or 0 in voxels.shape:
            raise DataError(
                name, "expected an array (X, Y, Z), or (X, Y, Z, C) of several channels", f"shape {tuple(voxels.shape)}"
            )
        channels = voxels.shape[3] if voxels.ndim == 4 else 1
        if channels != self.channels:
            raise DataError(
                name,
                f"the bundle '{self.name}' expects {self.channels} channel(s)",
                f"{channels} in the scan",
                "Stack the images of a patient into one 4D file, in the order of the bundle's channels",
            )
        if place.shape != (4, 4) or not np.isfinite(place).all():
            raise DataError(name, "expected a finite 4x4 affine", str(place.tolist()))
        if not bool(torch.isfinite(voxels).all()):
            raise DataError(name, "voxels that are not finite", f"{int((~torch.isfinite(voxels)).sum())} of them")
        meta = {
            "affine": torch.from_numpy(place.copy()),
            "original_affine": place.copy(),
            "spatial_shape": np.array(voxels.shape[:3]),
            "original_channel_dim": -1 if voxels.ndim == 4 else float("nan"),
            "space": "RAS",
            "filename_or_obj": str(name),
        }
        image = MetaTensor(voxels, meta=meta)
        return EnsureChannelFirst()(image) if puts_channels_first(self._loader) else image  # type: ignore[return-value]

    def _logits(self, image: MetaTensor, disagreement: bool) -> tuple[Tensor, Tensor | None]:
        """(num_classes, *network grid) on the device, and bits of disagreement (1, *network grid) if there are any."""
        batch = image[None].to(self.device)
        mirrored = disagreement and bool(getattr(self.inferer, "mirror_axes", ()))
        if mirrored:
            self.inferer.disagreement = True
        try:
            outputs = (_plain(self.inferer(batch, network)[0]).float() for network in self.networks)
            if len(self.networks) == 1:
                output = next(outputs)
                return (output[:-1], output[-1:]) if mirrored else (output, None)
            return self._ensemble(outputs, mirrored, disagreement)
        finally:
            if mirrored:
                self.inferer.disagreement = False

    def _ensemble(self, outputs: Iterator[Tensor], mirrored: bool, disagreement: bool) -> tuple[Tensor, Tensor | None]:
        """Logarithms of the mean of the networks' softmax, and bits, within each network's copies and between all."""
        count = len(self.networks)
        mean: Tensor | None = None
        within: Tensor | float = 0.0
        for output in outputs:
            fractions = output[:-1].softmax(0) if mirrored else output.softmax(0)
            if disagreement:  # one map of entropies is kept, not every network's classes
                within = within - entropy_bits(fractions, 0) + (output[-1:] if mirrored else 0)
            mean = fractions if mean is None else mean.add_(fractions)
        assert mean is not None
        mean.div_(count)
        bits = (entropy_bits(mean, 0) + within / count).clamp_(min=0) if disagreement else None
        return mean.clamp_(min=SMALLEST_PROBABILITY).log_(), bits

    def _on_original_grid(
        self, data: dict[str, Any], logits: Tensor, meta: Mapping[str, Any], probabilities: bool, name: str | Path
    ) -> Prediction:
        try:
            return self._restored(data, logits, meta, probabilities, name)
        except RuntimeError as error:
            if logits.device.type == "cpu" or not is_out_of_memory(error):
                raise
        torch.cuda.empty_cache()  # the original grid can be larger than the GPU: the machine's memory then
        return self._restored(data, logits.cpu(), meta, probabilities, name)

    def _restored(
        self, data: dict[str, Any], logits: Tensor, meta: Mapping[str, Any], probabilities: bool, name: str | Path
    ) -> Prediction:
        field = data.get(f"image{FIELD_POSTFIX}")
        shape, affine = tuple(int(n) for n in meta["spatial_shape"]), np.asarray(meta["original_affine"])
        image = data["image"]
        soft = None
        if probabilities:
            restored = restore_to_grid(logits, image.affine, affine, shape)
            soft = restored.softmax(0).cpu().numpy()
            del restored
        # Invertd wants the image's history on the prediction, as the evaluator's inferer leaves it
        items = {**data, "pred": MetaTensor(logits).copy_meta_from(image, copy_attr=False)}
        for transform in self._postprocessing:
            items = apply_transform(transform, items)
        label = _plain(items["pred"])
        if tuple(label.shape) != (1, *shape):
            raise ConfigError(
                f"{self._config}, postprocessing",
                f"expected labels on the scan's grid at the end, (1, {', '.join(map(str, shape))})",
                f"shape {tuple(label.shape)} for {name}",
                "Use RestoreGridd with argmax: true",
            )
        dtype = np.uint8 if self.classes <= 256 else np.uint16
        if field is not None:  # of the grid that it was fitted on
            field = restore_to_grid(field, field.affine, affine, shape, fill="border").cpu().numpy()
            field = field[0] if len(field) == 1 else np.moveaxis(field, 0, -1)
        return Prediction(label[0].cpu().numpy().astype(dtype), affine.copy(), soft, field)

    def _out_of_memory(self, name: str | Path) -> DecathleteError:
        on_cpu = self.device.type == "cpu"
        return DeviceError(
            name,
            f"out of memory on {self.device}",
            f"with windows of {getattr(self.inferer, 'roi_size', '?')}",
            "Free memory, or crop the image" if on_cpu else "Try --inferer::sw_batch_size 1, or --device cpu",
        )


def _with_disagreement(prediction: Prediction, logits: Tensor, bits: Tensor, image: MetaTensor) -> Prediction:
    foreground = float((1 - logits.softmax(0)[0]).double().sum())
    number = float(bits.double().sum()) / foreground if foreground >= 1 else math.nan
    restored = restore_to_grid(bits, image.affine, prediction.affine, prediction.label.shape, fill=0.0)
    return replace(prediction, disagreement_map=restored[0].cpu().numpy(), disagreement=number)


def _plain(x: Tensor) -> Tensor:
    return x.as_tensor() if isinstance(x, MetaTensor) else x


def _checked_device(device: str | torch.device) -> torch.device:
    """The device, if this machine has it."""
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise UsageError("--device", "expected a device such as cpu, cuda or cuda:1", f"'{device}'") from error  # type: ignore[arg-type]
    count = torch.cuda.device_count() if chosen.type == "cuda" else math.inf
    if (chosen.index or 0) >= count:
        raise DeviceError("--device", f"this machine has no {chosen}", f"{count} CUDA devices", "Leave --device out")
    return chosen
