"""Classes by label value, and the regions made of them. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from decathlete.errors import ConfigError, nearest


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
                    f"regions, {name}", "expected classes in a region", f"{list(parts)}", nearest(str(name), values)
                )
            found[str(name)] = tuple(int(values.get(part, part)) for part in parts)
        if any(value == 0 or value in known for value in ignore):
            raise ConfigError("ignore", "an ignored value must not be a class", f"{list(ignore)}")
        return cls(found, tuple(int(value) for value in ignore))


def foreground(labels: Mapping[Any, Any], where: str | Path = "labels") -> dict[int, str]:
    """Classes as value to name without background, from either spelling: name to value, or value to name.

    Raises:
        ConfigError: a pair without a whole number on either side, a value given twice, or background alone.
    """
    found: dict[int, str] = {}
    for one, other in labels.items():
        value, name = (other, one) if _is_whole(other) else (one, other)
        if not _is_whole(value):
            raise ConfigError(where, "expected a name and a whole number for each class", f"{one!r}: {other!r}")
        if int(value) in found:
            raise ConfigError(where, "two classes of one value", f"{int(value)} is '{found[int(value)]}' and '{name}'")
        found[int(value)] = str(name)
    classes = {value: found[value] for value in sorted(found) if value != 0}
    if not classes:
        raise ConfigError(where, "no class besides background", f"{dict(labels)}")
    return classes


def _is_whole(value: Any) -> bool:
    return (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, str) and value.isdecimal())
