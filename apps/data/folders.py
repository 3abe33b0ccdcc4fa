"""Where a task's data are looked for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from decathlete.data import nfbs
from decathlete.data.tasks import task_of_folder
from decathlete.errors import DataError
from decathlete.names import SPECIAL


def dataset_folder(name: str, near: str | Path | None = None, environ: Mapping[str, str] = os.environ) -> str:
    """Folder of a data set: ``$DECATHLETE_DATA/<name>`` where that is set, else ``near``.

    A folder that is not in ``$DECATHLETE_DATA`` but is at ``near`` is found there. Whether it exists at all is checked
    by what reads it.

    Args:
        name: of the folder.
        near: another place for it; default: ``data/<name>`` where the command runs.
        environ: in place of ``os.environ``.
    """
    near = Path(near or Path("data", name))
    root = environ.get("DECATHLETE_DATA")
    chosen = Path(root).expanduser() / name if root else near
    return str(near if near.is_dir() and not chosen.is_dir() else chosen)


def stated_folder(config: Mapping[str, Any]) -> str | None:
    """``dataset_dir`` of a config; None where it has none or computes it."""
    stated = config.get("dataset_dir")
    return stated if isinstance(stated, str) and not stated.startswith(SPECIAL) else None


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
    where = f"dataset_dir of {file}" if given is None else "--dataset_dir"
    if given is None and os.environ.get("DECATHLETE_DATA"):
        folder, where = Path(dataset_folder(folder.name, folder)), "$DECATHLETE_DATA"
    wrong = "no such folder" if not folder.is_dir() else "" if any(folder.iterdir()) else "an empty folder"
    if wrong:
        remedy = f"Run 'decathlete data {_task_name(folder.name)}' or pass --dataset_dir"
        raise DataError(folder, "no data found", f"{wrong}, set by {where}", remedy)
    return folder


def _task_name(folder: str) -> str:
    """What ``decathlete data`` calls the data set of a folder's name: ``hippocampus`` for ``Task04_Hippocampus``."""
    task = task_of_folder(folder)
    return task.name if task else nfbs.NAME if nfbs.is_name(folder) else "TASK"
