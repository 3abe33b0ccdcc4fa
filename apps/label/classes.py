"""Which class of which bundle a drawn segment is: by its name, never by its number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from decathlete.errors import UsageError, listed

LONGEST = 80  # letters of a client's text in a message


class Classes:
    """The classes of the bundles that a server has.

    Viewers show one list of names for all bundles. A name that several bundles have, such as ``tumour``, is shown with
    its bundle in front: ``lung: tumour``.

    Args:
        of: bundle to its classes, name to value, in the order in which they are shown.
    """

    def __init__(self, of: Mapping[str, Mapping[str, int]]) -> None:
        self.of = {bundle: dict(classes) for bundle, classes in of.items()}
        count = Counter(_key(name) for classes in self.of.values() for name in classes)
        self._shown = {
            bundle: {name if count[_key(name)] == 1 else f"{bundle}: {name}": value for name, value in classes.items()}
            for bundle, classes in self.of.items()
        }

    @property
    def bundles(self) -> list[str]:
        """Names of the bundles."""
        return list(self.of)

    @property
    def names(self) -> list[str]:
        """All names as viewers show them, bundle by bundle, by value."""
        return [name for shown in self._shown.values() for name in sorted(shown, key=shown.__getitem__)]

    def shown(self, bundle: str) -> dict[str, int]:
        """Classes of a bundle as viewers show them: name to value."""
        return dict(self._shown[bundle])

    def described(self, bundle: str) -> list[dict[str, Any]]:
        """What MONAI Label keeps of a bundle's values, from 1 on: name, value and bundle."""
        names = {value: name for name, value in self.of[bundle].items()}
        return [{"name": names.get(v, "unknown"), "idx": v, "model_name": bundle} for v in range(1, max(names) + 1)]

    def value(self, bundle: str, name: str) -> int | None:
        """Value of a bundle's class by its name or the one that viewers show; None where it has no such class."""
        known = {_key(n): v for classes in (self.of[bundle], self._shown[bundle]) for n, v in classes.items()}
        return known.get(_key(name))

    def assign_names(self, drawn: Sequence[str], where: str, bundle: str | None = None) -> dict[str, dict[str, int]]:
        """Whose classes the drawn names are: bundle to name to value of its class.

        Names of several bundles go each to its own. A name that several bundles have goes to the one that another
        drawn name belongs to.

        Args:
            drawn: names of the segments that have voxels.
            where: what the message is about.
            bundle: the bundle that they are for, if it is known.

        Raises:
            UsageError: a name that is no class, or of which it is open whose.
        """
        bundles = [bundle] if bundle is not None else self.bundles
        owners = {name: [b for b in bundles if self.value(b, name) is not None] for name in drawn}
        if unknown := [name for name, found in owners.items() if not found]:
            known = self.names if bundle is None else self.shown(bundle)
            raise UsageError(where, "a drawn segment has a name that is no class", _quoted(unknown),
                             f"Rename or delete it; known classes: {listed(known, 40)}")  # fmt: skip
        certain = {found[0] for found in owners.values() if len(found) == 1}
        assigned: dict[str, dict[str, int]] = {}
        for name, found in owners.items():
            mine = found if len(found) == 1 else [b for b in found if b in certain]
            if len(mine) != 1:
                raise UsageError(where, f"several bundles have a class {_quoted([name])}", listed(found, 20),
                                 f"Put the bundle in front, as in '{found[0]}: {name[:LONGEST]}'")  # fmt: skip
            value = self.value(mine[0], name)
            assert value is not None
            assigned.setdefault(mine[0], {})[name] = value
        return assigned or {self._only(where, bundle): {}}

    def assign_values(self, drawn: Sequence[int], where: str, bundle: str | None = None) -> str:
        """Whose label map it is that holds these values and no names.

        Raises:
            UsageError: a value that is no class, or several bundles that have all of them.
        """
        bundles = [bundle] if bundle is not None else self.bundles
        fitting = [b for b in bundles if set(drawn) <= set(self.of[b].values())]
        if not fitting:
            known = "; ".join(f"{b}: " + ", ".join(f"{v} {n}" for n, v in self.of[b].items()) for b in bundles[:20])
            raise UsageError(where, "the label map holds values that are no classes of one bundle",
                             listed(drawn, 20), f"Known classes: {known}")  # fmt: skip
        return fitting[0] if len(fitting) == 1 else self._only(where, bundle)

    def _only(self, where: str, bundle: str | None) -> str:
        if bundle is not None:
            return bundle
        if len(self.of) != 1:
            raise UsageError(where, "it is open which bundle the label is for", f"served are {listed(self.of, 20)}",
                             "Send the names of the segments as 'label_info', or the bundle as 'model'")  # fmt: skip
        return self.bundles[0]


def values_of_names(values: Sequence[int], label_info: Any, where: str) -> dict[int, str]:
    """What the values of a label map are called, by a viewer's ``label_info``: a list of objects with ``name``.

    3D Slicer numbers the segments that it sends by their place in that list, and states as ``idx`` the place among all
    segments; other clients state the value as ``idx``. Where both readings are possible and differ, none is taken.

    Args:
        values: that occur, without 0.
        label_info: as it came.
        where: what the message is about.

    Raises:
        UsageError: no such list, a value without a name, or two readings.
    """
    if not isinstance(label_info, list) or not all(isinstance(i, Mapping) for i in label_info):
        raise UsageError(where, "expected 'label_info' as a list of objects, one a segment", f"{label_info!r:.80}")
    if strange := [i for i in label_info if not isinstance(i.get("name"), str) or not i["name"].strip()]:
        raise UsageError(where, "a segment of 'label_info' has no name", f"{strange[0]!r:.80}", "Name each segment")
    by_place = {place: info["name"] for place, info in enumerate(label_info, 1)}
    by_index = {info["idx"]: info["name"] for info in label_info if type(info.get("idx")) is int}
    readings = [reading for reading in (by_place, by_index) if set(values) <= set(reading)]
    if not readings:
        raise UsageError(where, "'label_info' does not name all values of the label map",
                         f"values {listed(values, 20)}, {len(label_info)} names", "Submit the label again")  # fmt: skip
    names = [{value: reading[value] for value in values} for reading in readings]
    if any(_keys(other) != _keys(names[0]) for other in names[1:]):
        value = next(v for v in values if names[0][v] != names[1][v])
        raise UsageError(where, f"value {value} has two names in 'label_info'",
                         f"by its place {_quoted([names[0][value]])}, by 'idx' {_quoted([names[1][value]])}",
                         "Delete segments that are no classes, such as 'background', and submit again")  # fmt: skip
    return names[0]


def _key(name: str) -> str:
    return " ".join(name.split()).casefold()


def _keys(names: Mapping[int, str]) -> dict[int, str]:
    return {value: _key(name) for value, name in names.items()}


def _quoted(names: Sequence[str]) -> str:
    return listed([f"'{name[:LONGEST]}'" for name in names])
