"""A bundle's configs as MONAI's parser, and overrides that must name what is in them."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ConfigParser

from decathlete.bundle import bundle_folder, config_file
from decathlete.bundle.trust import check_trust
from decathlete.errors import ConfigError
from decathlete.names import SPECIAL, inert, read_text

# numbers of a config in whose place a word may stand
NUMBERS_OR = {"fold": ("all",)}
COMPONENT_KEYS = ("_target_", "_disabled_", "_requires_", "_desc_", "_mode_")


def load(
    bundle: str | Path,
    config: str = "inference",
    overrides: Mapping[str, Any] | None = None,
    *,
    where: str = "override",
) -> ConfigParser:
    """Config of a bundle as MONAI's parser, with ``bundle_root`` set to the bundle's absolute folder.

    Args:
        bundle: a bundle's folder or name.
        config: ``inference``, ``train``, or ``evaluate`` (laid over ``train``).
        overrides: id to value; ids spelt with ``::`` or ``#``. A text that starts with ``$``, ``@`` or ``%`` means to
            MONAI what it means in a config, a ``Path`` is a path whatever it starts with.
        where: what the message about an unknown id names as the place of the word.

    Raises:
        UsageError: unknown bundle or config.
        ConfigError: a file that is not YAML or JSON, or an override that names no id of the config.
    """
    folder = bundle_folder(bundle).resolve()
    names = ("train", "evaluate") if config == "evaluate" else (config,)
    files = [config_file(folder, name) for name in names]
    parser = read_configs(files)
    metadata = folder / "configs" / "metadata.json"
    if metadata.is_file():
        parser.read_meta(_read_json(metadata))
    values = check_overrides(parser, overrides or {}, where=where, file=files[-1])
    if "bundle_root" in parser:
        values.setdefault("bundle_root", inert(folder))
    parser.update(values)
    return parser


def check_overrides(
    parser: ConfigParser, overrides: Mapping[str, Any], *, where: str = "override", file: str | Path = "config"
) -> dict[str, Any]:
    """Overrides with ids spelt with ``::``, each of which names an id of the config or an argument of a component.

    Args:
        parser: the config.
        overrides: id to value.
        where: the place of the words, for the message.
        file: the config's file, for the message.

    Raises:
        ConfigError: an unknown id, with the nearest known one; text or a switch where the config has a number.
    """
    checked = {}
    for word, value in overrides.items():
        name = str(word).replace("#", "::")
        if name not in parser and not _is_argument(parser, name):
            raise ConfigError(
                file, "an override must name an id of this config", f"'{name}' ({where})", _suggestion(parser, name)
            )
        if name in parser:
            _check_kind(parser.get(name), value, name, where)
        checked[name] = inert(value, expressions=True)
    return checked


def _check_kind(default: Any, value: Any, name: str, where: str) -> None:
    """Refuse text in place of a number, and anything but true or false in place of one of these.

    Such a value would fail late, or count as true: ``--amp scan.nii.gz``, ``--overlap`` without a number.
    """
    if value is None or (isinstance(value, str) and value.startswith(SPECIAL)):
        return
    switch = isinstance(default, bool)
    numbers = default if isinstance(default, list) else [default]
    if switch and value not in (True, False):
        rule, remedy = "must be true or false", f"Write --{name}=true"
    elif not switch and numbers and all(isinstance(n, (int, float)) for n in numbers):
        if not isinstance(value, (bool, str)) or value in NUMBERS_OR.get(name, ()) or _is_number(value):
            return
        kind = "a number" if numbers is not default else "numbers"
        rule, remedy = f"must be {kind}, such as {default}", ""
    else:
        return
    raise ConfigError(f"{name} ({where})", rule, repr(value) if isinstance(value, str) else str(value).lower(), remedy)


def _is_number(value: bool | str) -> bool:
    try:
        return isinstance(value, str) and float(value) == float(value)
    except ValueError:
        return False


def read_configs(files: Sequence[Path]) -> ConfigParser:
    """Config files as MONAI's parser, each laid over those before it.

    Raises:
        ConfigError: a file that is not YAML or JSON.
        TrustError: a bundle from elsewhere whose configs run more than what is known to be harmless.
    """
    parser = ConfigParser()
    try:
        parser.read_config([str(file) for file in files])
    except (yaml.YAMLError, json.JSONDecodeError, UnicodeDecodeError, ValueError) as error:
        found = " ".join(str(error).split())
        raise ConfigError(", ".join(str(f) for f in files), "must be YAML or JSON", found) from error
    check_trust(files[-1].parent.parent, parser.get())
    return parser


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(file))
    except (OSError, ValueError) as error:
        raise ConfigError(file, "must be JSON", " ".join(str(error).split())) from error
    if not isinstance(content, dict):
        raise ConfigError(file, "must be a JSON object", type(content).__name__)
    return content


def _ids(config: Any, prefix: str = "") -> Iterator[str]:
    """Every id of a config, parents before children."""
    children = config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else ()
    for key, value in children:
        name = f"{prefix}::{key}" if prefix else str(key)
        yield name
        yield from _ids(value, name)


def _arguments(parser: ConfigParser, component: str) -> tuple[set[str], bool]:
    """Argument names that a component's target takes, and whether it takes any other name too."""
    config = parser.get(component)
    if not isinstance(config, dict) or "_target_" not in config:
        return set(), False
    target = config["_target_"]
    if not isinstance(target, str) or target.startswith(SPECIAL):
        return set(), True  # known only when the config runs
    from pydoc import locate

    path = parser.locator.get_component_module_name(target) if "." not in target else target
    path = path[0] if isinstance(path, list) else path
    found: Any = locate(f"{path}.{target}" if "." not in target and path else target)
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


def _is_argument(parser: ConfigParser, name: str) -> bool:
    component, separator, argument = name.rpartition("::")
    if not separator or component not in parser:
        return False
    names, any_name = _arguments(parser, component)
    return any_name or argument in names


def _suggestion(parser: ConfigParser, name: str) -> str:
    """The nearest id: among the neighbours of the wrong one, else an id that ends alike, else any."""
    from difflib import get_close_matches

    everything = [i for i in _ids(parser.get()) if not i.startswith("_meta_")]
    parent = name.rpartition("::")[0]
    while parent and parent not in parser:
        parent = parent.rpartition("::")[0]
    depth = parent.count("::") + 1 if parent else 0
    siblings = [i for i in everything if i.count("::") == depth and (not parent or i.startswith(parent + "::"))]
    if parent:
        siblings += [f"{parent}::{a}" for a in _arguments(parser, parent)[0] - set(COMPONENT_KEYS)]
    leaf = name.rpartition("::")[2]
    alike = [i for i in everything if i.rpartition("::")[2] == leaf]
    close = get_close_matches(name, siblings, n=1, cutoff=0.75) or get_close_matches(name, everything, n=1) or alike
    hint = f"Did you mean '{close[0]}'? " if close else ""
    known = sorted({i.rpartition("::")[2] for i in siblings})
    return f"{hint}Known {'in ' + parent if parent else 'at the top'}: {', '.join(known)}"
