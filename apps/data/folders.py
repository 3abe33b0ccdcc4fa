"""Where a task's data are looked for."""

from __future__ import annotations

import os
from pathlib import Path


def dataset_folder(name: str) -> str:
    """Folder of a data set: ``$DECATHLETE_DATA/<name>`` where that is set, else ``data/<name>`` where the command runs.

    A folder that is not in ``$DECATHLETE_DATA`` but in ``data`` is found there. Whether it is there at all is checked
    by what reads it.
    """
    near = Path("data", name)
    root = os.environ.get("DECATHLETE_DATA")
    if not root:
        return str(near)
    chosen = Path(root).expanduser() / name
    return str(near if near.is_dir() and not chosen.is_dir() else chosen)
