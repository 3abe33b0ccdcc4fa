"""Which classes a bundle scores, by label value."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from decathlete.bundle import bundle_folder, config_file
from decathlete.errors import ConfigError, nearest


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


@dataclass(frozen=True)
class Scored:
    """What is scored beside or in place of the classes.

    Attributes:
        regions: name to the values that it is made of, scored in place of the classes; empty: the classes.
        ignore: values of a reference whose voxels nobody judged: they are left out on both sides.
    """

    regions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    ignore: tuple[int, ...] = ()

    @classmethod
    def of(
        cls, labels: Mapping[Any, Any], regions: Mapping[str, Sequence[Any]] | None, ignore: Sequence[int]
    ) -> Scored:
        """As a config states them, with classes by name or value.

        Raises:
            ConfigError: a region of something that is no class, or an ignored value that is one.
        """
        known = foreground(labels)
        values = {name: value for value, name in known.items()}
        found = {}
        for name, parts in (regions or {}).items():
            strange = [part for part in parts if part not in values and part not in known]
            if strange or not parts:
                raise ConfigError(
                    f"regions, {name}", "is made of classes", f"{list(parts)}", nearest(str(name), values)
                )
            found[str(name)] = tuple(int(values.get(part, part)) for part in parts)
        if any(value == 0 or value in known for value in ignore):
            raise ConfigError("ignore", "is no value of a class", f"{list(ignore)}")
        return cls(found, tuple(int(value) for value in ignore))


def bundle_scored(bundle: str | Path) -> Scored:
    """Regions and ignored values that a bundle's train config states under ``regions`` and ``ignore``.

    Raises:
        UsageError: unknown bundle.
        ConfigError: values that cannot be.
    """
    folder = bundle_folder(bundle)
    try:
        config = yaml.safe_load(config_file(folder, "train").read_text(encoding="utf-8")) or {}
    except (ConfigError, yaml.YAMLError):  # a bundle for prediction alone
        return Scored()
    regions, ignore = config.get("regions"), config.get("ignore") or ()
    if not regions and not ignore:
        return Scored()
    if not isinstance(ignore, Sequence) or (regions and not isinstance(regions, Mapping)):
        raise ConfigError(
            config_file(folder, "train"), "'regions' is a mapping and 'ignore' a list", f"{regions}, {ignore}"
        )
    return Scored.of(bundle_labels(folder), regions, ignore)


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
    return (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, str) and value.isdecimal())
