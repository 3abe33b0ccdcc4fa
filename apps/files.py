"""Files written whole or not at all, and the names that NIfTI files carry."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from decathlete.errors import UsageError

NIFTI_SUFFIXES = (".nii.gz", ".nii")
PROBABILITIES = "_probabilities"  # ends the name of the class probabilities beside a label map


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; on success it is synced and renamed to ``path``, on failure removed.

    The temporary name keeps the suffixes, since writers choose the format by them, and is short, since a long
    ``path`` has no room for more letters.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = ".nii.gz" if path.name.lower().endswith(".nii.gz") else path.suffix
    handle, name = tempfile.mkstemp(prefix=".part_", suffix=suffix, dir=path.parent)
    os.close(handle)
    part = Path(name)
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        part.chmod(0o666 & ~umask)  # mkstemp makes files that only the owner reads
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def check_output_folder(folder: str | Path, option: str = "--output") -> None:
    """Refuse an output folder that can never be made or written to, before work is done for it; makes nothing.

    Raises:
        UsageError: a file has its place, or the folder above is not to be written to; names ``option``.
    """
    there = Path(folder).absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise UsageError(folder, "the output must be a folder", f"a file, {there}", f"Choose another {option}")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(folder, "the output must be writable", f"{there}, which is not", f"Choose another {option}")


def strip_nifti_suffix(name: str) -> str:
    """Return the name before ``.nii.gz`` or ``.nii``, in any case: ``a.b.NII.GZ`` gives ``a.b``."""
    for suffix in NIFTI_SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def nifti_files(folder: str | Path) -> list[Path]:
    """NIfTI files directly in ``folder``, sorted; side files (``._x``), hidden files and folders are passed over."""
    return sorted(
        p
        for p in Path(folder).iterdir()
        if p.name.lower().endswith(NIFTI_SUFFIXES) and not p.name.startswith(".") and p.is_file()
    )
