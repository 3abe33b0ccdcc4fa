"""What is imported late, or not at all: torch, and all that MONAI imports, cost seconds at start."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

# MONAI imports them where they are installed, for trainings and tables; transforms, inferers and networks do without
FOR_TRAINING = ("clearml", "ignite", "matplotlib", "mlflow", "pandas", "tensorboard", "tensorboardX")
_predicts_only = False


def predict_only() -> None:
    """Declare that this process trains nothing: for the command line, whose process ends after its verb."""
    global _predicts_only
    _predicts_only = True


def import_monai() -> None:
    """Import MONAI; in a process that only predicts, as if the packages for trainings were not installed.

    They can still be imported afterwards. Where MONAI or one of them is there already, that stays as it is.
    """
    hidden = [name for name in FOR_TRAINING if _predicts_only and name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: import raises ModuleNotFoundError
    try:
        import_module("monai.bundle")
    finally:
        for name in hidden:
            del sys.modules[name]


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
