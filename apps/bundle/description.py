"""What a bundle says of itself, read from its files once and when it is first asked for. Imports nothing heavy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from decathlete.bundle.labels import Scored, foreground
from decathlete.bundle.outputs import Outputs
from decathlete.bundle.places import WEIGHTS, bundle_folder, config_file, dicom_modality
from decathlete.errors import ConfigError
from decathlete.names import SPECIAL, read_text


class Bundle:
    """A bundle's folder and what its configs and ``metadata.json`` say; nothing in them is run.

    Args:
        bundle: a bundle's folder or name.

    Attributes:
        folder: the bundle's folder, as given.

    Raises:
        UsageError: neither a bundle's folder nor a known name.
        ConfigError: on access, a file that is missing or damaged, or a value that cannot be.
    """

    def __init__(self, bundle: str | Path) -> None:
        self.folder = bundle_folder(bundle)
        self._configs: dict[str, dict[str, Any]] = {}

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.resolve().name

    def config(self, name: str) -> dict[str, Any]:
        """Content of the config ``train``, ``inference``, ...: references and expressions stay text."""
        if name not in self._configs:
            self._configs[name] = read_mapping(config_file(self.folder, name))
        return self._configs[name]

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """Content of ``metadata.json``; empty without one."""
        file = self.folder / "configs" / "metadata.json"
        return read_mapping(file) if file.is_file() else {}

    @cached_property
    def modality(self) -> str:
        """DICOM's code of the scans, ``CT`` or ``MR``; another word where ``metadata.json`` has one, or none."""
        return dicom_modality(str(_at(self.metadata, "network_data_format", "inputs", "image", "modality") or ""))

    @cached_property
    def channels(self) -> int | None:
        """Channels of a scan, which the inference config states, or ``metadata.json``; None where neither does.

        Slices beside a slice, which a 2.5D network sees as more channels, do not count.
        """
        stated = self.config("inference").get("channels")
        if not isinstance(stated, int):
            stated = _at(self.metadata, "network_data_format", "inputs", "image", "num_channels")
        return stated if isinstance(stated, int) else None

    @cached_property
    def channel_names(self) -> list[str]:
        """Names of a scan's channels in their order, in ``metadata.json``; empty where it names others or none."""
        names = _at(self.metadata, "network_data_format", "inputs", "image", "channel_def")
        return (
            [str(name) for name in names.values()] if isinstance(names, Mapping) and len(names) == self.channels else []
        )

    @cached_property
    def labels(self) -> dict[int, str]:
        """Label value to class name, without background, in the order of the values.

        They stand under ``labels`` in the inference config (name to value); where that is missing or computed, in
        ``outputs.pred.channel_def`` of ``metadata.json``.
        """
        file = config_file(self.folder, "inference")
        labels = self.config("inference").get("labels")
        if not isinstance(labels, Mapping):
            file = self.folder / "configs" / "metadata.json"
            labels = _at(self.metadata, "network_data_format", "outputs", "pred", "channel_def")
        if not isinstance(labels, Mapping):
            raise ConfigError(self.folder, "no class names, neither under 'labels' in inference.yaml nor in "
                              "outputs.pred.channel_def of metadata.json",
                              remedy="Add 'labels: {background: 0, name: 1}' to inference.yaml")  # fmt: skip
        return foreground(labels, where=file)

    @cached_property
    def scored(self) -> Scored:
        """Regions and ignored values, under ``regions`` and ``ignore`` in the train config; none without one."""
        try:
            file = config_file(self.folder, "train")
        except ConfigError:  # a bundle for prediction alone
            return Scored()
        config = self.config("train")
        regions, ignore = config.get("regions"), config.get("ignore") or ()
        if not regions and not ignore:
            return Scored()
        if not isinstance(ignore, Sequence) or (regions and not isinstance(regions, Mapping)):
            raise ConfigError(file, "expected a mapping under 'regions' and a list under "
                              "'ignore'", f"{regions}, {ignore}")  # fmt: skip
        return Scored.of(self.labels, regions, ignore)

    @cached_property
    def outputs(self) -> Outputs:
        """Names of a prediction's files, under ``outputs`` in the inference config."""
        given = self.config("inference").get("outputs", {})
        return Outputs.of(given, f"{config_file(self.folder, 'inference')}, outputs")

    @property
    def weights(self) -> Path:
        """File of the weights that the bundle predicts with unless its config computes another, there or not."""
        stated = self.config("inference").get("checkpoint")
        if isinstance(stated, str) and not stated.startswith(SPECIAL):
            return Path(stated)
        return self.folder / WEIGHTS


def bundle_labels(bundle: str | Path) -> dict[int, str]:
    """Label value to class name of a bundle, without background: ``Bundle(bundle).labels``."""
    return Bundle(bundle).labels


def read_mapping(file: Path) -> dict[str, Any]:
    """Content of a config file, YAML or JSON.

    Raises:
        ConfigError: it cannot be read, or holds something else than keys and values.
    """
    kind = "JSON" if file.suffix == ".json" else "YAML"
    try:
        text = read_text(file)
        content = json.loads(text) if kind == "JSON" else yaml.safe_load(text) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(file, f"not readable as {kind}", " ".join(str(error).split())) from error
    if not isinstance(content, dict):
        raise ConfigError(file, "expected keys with values", f"a {type(content).__name__}")
    return content


def _at(content: Any, *keys: str) -> Any:
    """What stands under keys within keys; None where one of them is missing."""
    for key in keys:
        content = content.get(key) if isinstance(content, Mapping) else None
    return content
