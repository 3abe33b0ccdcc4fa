"""Public names of a package, imported when they are asked for: torch and MONAI cost seconds at start."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(package: str, home: Mapping[str, str]) -> Callable[[str], Any]:
    """The ``__getattr__`` of a package.

    No module may bear the name of a public function: importing it would put the module in the function's place.

    Args:
        package: its ``__name__``.
        home: public name to the module that holds it: one of this package, or a whole name, ``decathlete.x.y``.
    """

    def get(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        module = home[name] if "." in home[name] else f"{package}.{home[name]}"
        return getattr(import_module(module), name)

    return get
