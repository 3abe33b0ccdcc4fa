"""Overrides of a bundle's config: read from words, and refused where they name nothing or hold another kind of value.

The command line, the workflow and the short form all use this module. Imports nothing heavy, but the class of a
component whose argument is overridden.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from decathlete.errors import ConfigError, UsageError, listed
from decathlete.names import SPECIAL, inert

# numbers of a config in whose place a word may stand
NUMBERS_OR = {"fold": ("all",)}
COMPONENT_KEYS = ("_target_", "_disabled_", "_requires_", "_desc_", "_mode_")


def value_of(text: str, where: str) -> Any:
    """Value of an override as typed: a number, true, false, null, or what YAML reads within brackets or quotes.

    Everything else is text, letter for letter: YAML would end a path at ' #' and split it at ': '.

    Args:
        text: the word.
        where: the option, for the message.

    Raises:
        UsageError: a bracket or quote that is not closed.
    """
    if text.startswith(SPECIAL):
        return text
    if re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", text):
        return float(text)  # 1e-3, which YAML takes for text
    enclosed = text.startswith(("[", "{", "'", '"'))
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):  # a date that is none
        if enclosed:
            raise UsageError(where, "a bracket or quote is not closed", f"'{text}'",
                             "Close it, or write ./ before a path") from None  # fmt: skip
        return text
    plain = value is None or isinstance(value, (bool, int, float))
    return value if enclosed or (plain and ":" not in text) else text


def laid_over(configs: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Contents of config files as one config, each laid over those before it, ``a::b`` inside ``a``, as MONAI does."""
    made: dict[str, Any] = {}
    for config in configs:
        for key, value in config.items():
            *parents, leaf = str(key).replace("#", "::").split("::")
            place: Any = made
            for parent in parents:
                inner = place.get(parent)
                place[parent] = place = dict(inner) if isinstance(inner, Mapping) else {}
            place[leaf] = value
    return made


def check_overrides(
    config: Mapping[str, Any], overrides: Mapping[str, Any], *, where: str = "override", file: str | Path = "config"
) -> dict[str, Any]:
    """Overrides with ids spelt with ``::``, each of which names an id of the config or an argument of a component.

    Args:
        config: content of the config, nothing resolved.
        overrides: id to value; the number of a fold may be text.
        where: the place of the words, for the message.
        file: the config's file, for the message.

    Raises:
        ConfigError: an unknown id, with the nearest known one; text or a switch where the config has a number.
    """
    checked = {}
    for word, value in overrides.items():
        name = str(word).replace("#", "::")
        if name == "fold" and str(value).isdecimal():
            value = int(value)
        known = has_id(config, name)
        if not known and not _is_argument(config, name):
            raise ConfigError(file, "no such id in this config", f"'{name}', {where}", _suggestion(config, name))
        if known:
            _check_kind(_at(config, name), value, name, where)
        checked[name] = inert(value, expressions=True)
    return checked


def has_id(config: Any, name: str) -> bool:
    """Whether a config has an id, spelt with ``::`` or ``#``."""
    try:
        _at(config, name)
    except (KeyError, IndexError, ValueError, TypeError):
        return False
    return True


def _at(config: Any, name: str) -> Any:
    for part in name.replace("#", "::").split("::"):
        config = config[int(part)] if isinstance(config, list) else config[part]
    return config


def _check_kind(default: Any, value: Any, name: str, where: str) -> None:
    """Refuse text in place of a number, and anything but true or false in place of one of these.

    Such a value would fail late, or count as true: ``--amp scan.nii.gz``, ``--overlap`` without a number.
    """
    if value is None or (isinstance(value, str) and value.startswith(SPECIAL)):
        return
    switch = isinstance(default, bool)
    numbers = default if isinstance(default, list) else [default]
    if switch and value not in (True, False):
        wrong, remedy = "expected true or false", f"Write --{name}=true"
    elif not switch and numbers and all(isinstance(n, (int, float)) for n in numbers):
        if not isinstance(value, (bool, str)) or value in NUMBERS_OR.get(name, ()) or _is_number(value):
            return
        kind = "a number" if numbers is not default else "numbers"
        wrong, remedy = f"expected {kind}, such as {default}", ""
    else:
        return
    found = repr(value) if isinstance(value, str) else str(value).lower()
    raise ConfigError(f"{name} ({where})", wrong, found, remedy)


def _is_number(value: bool | str) -> bool:
    try:
        return isinstance(value, str) and float(value) == float(value)
    except ValueError:
        return False


def _ids(config: Any, prefix: str = "") -> Iterator[str]:
    """Every id of a config, parents before children."""
    children = config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else ()
    for key, value in children:
        name = f"{prefix}::{key}" if prefix else str(key)
        yield name
        yield from _ids(value, name)


def _arguments(component: Any) -> tuple[set[str], bool]:
    """Argument names that a component's target takes, and whether it takes any other name too."""
    if not isinstance(component, dict) or "_target_" not in component:
        return set(), False
    target = component["_target_"]
    if not isinstance(target, str) or target.startswith(SPECIAL):
        return set(), True  # known only when the config runs
    from pydoc import locate

    if "." not in target:
        from monai.bundle.config_item import ComponentLocator

        path = ComponentLocator().get_component_module_name(target)
        target = f"{path[0] if isinstance(path, list) else path}.{target}"
    found: Any = locate(target)
    # a class that hands **kwargs on takes its base's arguments too
    makers = (
        [vars(c)["__init__"] for c in found.__mro__ if "__init__" in vars(c)] if inspect.isclass(found) else [found]
    )
    names = set(COMPONENT_KEYS)
    for maker in makers:
        try:
            parameters = inspect.signature(maker).parameters.values()
        except (TypeError, ValueError):
            return set(), True
        names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)} - {"self"}
        if not any(p.kind == p.VAR_KEYWORD for p in parameters):
            return names, False
    return names, True


def _is_argument(config: Mapping[str, Any], name: str) -> bool:
    component, separator, argument = name.rpartition("::")
    if not separator or not has_id(config, component):
        return False
    names, any_name = _arguments(_at(config, component))
    return any_name or argument in names


def _suggestion(config: Mapping[str, Any], name: str) -> str:
    """The nearest id: among the neighbours of the wrong one, else an id that ends alike, else any."""
    from difflib import get_close_matches

    everything = [i for i in _ids(config) if not i.startswith("_meta_")]
    parent = name.rpartition("::")[0]
    while parent and not has_id(config, parent):
        parent = parent.rpartition("::")[0]
    depth = parent.count("::") + 1 if parent else 0
    siblings = [i for i in everything if i.count("::") == depth and (not parent or i.startswith(parent + "::"))]
    if parent:
        siblings += [f"{parent}::{a}" for a in _arguments(_at(config, parent))[0] - set(COMPONENT_KEYS)]
    leaf = name.rpartition("::")[2]
    alike = [i for i in everything if i.rpartition("::")[2] == leaf]
    stem = "::".join(name.split("::")[: depth + 1])  # up to the first part that is wrong
    close = get_close_matches(name, siblings, n=1, cutoff=0.75) or get_close_matches(name, everything, n=1, cutoff=0.75)
    close = close or get_close_matches(stem, siblings, n=1) or get_close_matches(name, everything, n=1) or alike
    hint = f"Did you mean '{close[0]}'? " if close else ""
    known = sorted({i.rpartition("::")[2] for i in siblings})
    return f"{hint}Known {'in ' + parent if parent else 'at the top'}: {listed(known, len(known))}"
