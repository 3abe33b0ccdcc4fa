"""Where a task's data are looked for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from decathlete.data import nfbs
from decathlete.data.tasks import task_of_folder
from decathlete.errors import DataError
from decathlete.names import SPECIAL


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


def data_folder(default: Any, given: Any = None, *, file: str | Path = "config") -> Path | None:
    """Folder of a run's data: the given one, else the one of its name in ``$DECATHLETE_DATA``, else the config's.

    Args:
        default: ``dataset_dir`` of the config.
        given: ``dataset_dir`` of the user.
        file: the config's file, for the message.

    Returns:
        The folder, or None where the config has none or computes it.

    Raises:
        DataError: the folder is missing or empty.
    """
    chosen = default if given is None else given
    if not isinstance(chosen, os.PathLike) and (not isinstance(chosen, str) or chosen.startswith(SPECIAL)):
        return None
    folder = Path(chosen).expanduser()
    where, root = f"{file}, dataset_dir", os.environ.get("DECATHLETE_DATA")
    if given is None and root:
        folder = Path(root).expanduser() / folder.name
        where = "$DECATHLETE_DATA"
        if not folder.is_dir() and Path(chosen).is_dir():
            folder = Path(chosen)
    elif given is not None:
        where = "--dataset_dir"
    found = "no such folder" if not folder.is_dir() else "" if any(folder.iterdir()) else "an empty folder"
    if found:
        raise DataError(
            folder,
            f"must be a folder with data ({where})",
            found,
            f"Run 'decathlete data {_task_name(folder.name)}' or pass --dataset_dir",
        )
    return folder


def _task_name(folder: str) -> str:
    """What ``decathlete data`` calls the data set of a folder's name: ``hippocampus`` for ``Task04_Hippocampus``."""
    task = task_of_folder(folder)
    return task.name if task else nfbs.NAME if nfbs.is_name(folder) else "TASK"
