"""What ``--tracking`` may be. Imports nothing heavy."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from decathlete.errors import UsageError


def check_tracking(tracking: Any) -> None:
    """Refuse an invalid ``--tracking`` before the cases are read; MONAI looks for MLflow only after that.

    Args:
        tracking: ``mlflow``, a file of MONAI's settings (or several), or settings; None for no tracking.

    Raises:
        UsageError: another word, or MLflow is not installed.
    """
    if not tracking:
        return
    if (
        isinstance(tracking, str)
        and tracking != "mlflow"
        and not tracking.startswith("[")
        and not Path(tracking).is_file()
    ):
        raise UsageError("--tracking", "expected mlflow or a settings file of MONAI", f"'{tracking}'")
    text = Path(tracking).read_text(encoding="utf-8") if os.path.isfile(str(tracking)) else str(tracking)
    if "mlflow" in text.lower() and find_spec("mlflow") is None:
        raise UsageError("--tracking", "MLflow is not installed", remedy="Run pip install 'decathlete[mlflow]'")
