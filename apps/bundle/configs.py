"""A bundle's configs as MONAI's parser, which resolves references and builds components."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ConfigParser

from decathlete.bundle.description import Bundle
from decathlete.bundle.overrides import check_overrides
from decathlete.bundle.places import config_file
from decathlete.bundle.trust import check_trust
from decathlete.errors import ConfigError
from decathlete.names import inert


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
        where: where the overrides stand, for the message about an unknown id.

    Raises:
        UsageError: unknown bundle or config.
        ConfigError: a file that is not YAML or JSON, or an override that names no id of the config.
    """
    found = Bundle(bundle)
    folder = found.folder.resolve()
    names = ("train", "evaluate") if config == "evaluate" else (config,)
    files = [config_file(folder, name) for name in names]
    parser = read_configs(files)
    if found.metadata:
        parser.read_meta(found.metadata)
    values = check_overrides(parser.config, overrides or {}, where=where, file=files[-1])
    if "bundle_root" in parser:
        values.setdefault("bundle_root", inert(folder))
    parser.update(values)
    return parser


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
        wrong = " ".join(str(error).split())
        raise ConfigError(", ".join(str(f) for f in files), "not readable as YAML or JSON", wrong) from error
    check_trust(files[-1].parent.parent, parser.get())
    return parser
