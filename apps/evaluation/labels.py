"""Which classes a bundle scores, by label value."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from decathlete.bundle import bundle_folder, config_file
from decathlete.errors import ConfigError


def bundle_labels(bundle: str | Path) -> dict[int, str]:
    """Label value to class name of a bundle, without background, in the order of the values.

    They stand under ``labels`` in its inference config (name to value); where that is missing or computed, in
    ``outputs.pred.channel_def`` of ``metadata.json``.

    Raises:
        UsageError: unknown bundle.
        ConfigError: neither place names the classes.
    """
    folder = bundle_folder(bundle)
    file = config_file(folder, "inference")
    try:
        labels = (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).get("labels")
    except yaml.YAMLError as error:
        raise ConfigError(file, "must be YAML", " ".join(str(error).split())) from error
    if isinstance(labels, Mapping):
        return foreground(labels, where=file)
    metadata = folder / "configs" / "metadata.json"
    try:
        formats = json.loads(metadata.read_text(encoding="utf-8"))["network_data_format"]
        labels = formats["outputs"]["pred"]["channel_def"]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            folder,
            "a bundle names its classes under 'labels' in inference.yaml or outputs.pred.channel_def in metadata.json",
            "neither",
            "Add 'labels: {background: 0, name: 1}'",
        ) from error
    return foreground(labels, where=metadata)


def foreground(labels: Mapping[Any, Any], where: str | Path = "labels") -> dict[int, str]:
    """Classes as value to name without background, from either spelling: name to value, or value to name.

    Raises:
        ConfigError: a pair without a whole number on either side, a value given twice, or background alone.
    """
    found: dict[int, str] = {}
    for one, other in labels.items():
        value, name = (other, one) if _is_whole(other) else (one, other)
        if not _is_whole(value):
            raise ConfigError(where, "labels pair a name with a whole number", f"{one!r}: {other!r}")
        if int(value) in found:
            raise ConfigError(
                where, "each label value has one name", f"{int(value)} for '{found[int(value)]}' and '{name}'"
            )
        found[int(value)] = str(name)
    classes = {value: found[value] for value in sorted(found) if value != 0}
    if not classes:
        raise ConfigError(where, "labels name a class besides background", f"{dict(labels)}")
    return classes


def _is_whole(value: Any) -> bool:
    return (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, str) and value.isdigit())
