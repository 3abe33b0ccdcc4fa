"""MONAI Label's environment: where it is, and ``decathlete serve --setup``, which makes it."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import requires
from importlib.util import find_spec
from pathlib import Path

import decathlete
from decathlete.errors import UsageError, WorkError

PACKAGE = Path(decathlete.__file__).resolve().parent
CONSTRAINTS = Path(__file__).resolve().parent / "constraints-label.txt"
STAMP = ".installed"  # written last
# of MONAI Label's own requirements those that a server of bundles needs; the others ask for older packages
NEEDS = (
    "cachetools", "dicomweb-client", "expiring_dict", "fastapi", "filelock", "girder-client", "google-auth", "httpx",
    "jsonschema", "passlib", "psutil", "pydantic-settings", "pyjwt", "pynrrd", "python-multipart", "requests",
    "requests-toolbelt", "schedule", "setuptools", "shapely", "SimpleITK", "timeloop", "uvicorn", "watchdog",
)  # fmt: skip
ALONE = ("monailabel", "pydicom-seg", "dcmqi")  # installed without what they require


def data_root() -> Path:
    """``decathlete`` in ``$XDG_DATA_HOME``, by default ``~/.local/share``."""
    root = os.environ.get("XDG_DATA_HOME")
    return (Path(root) if root else Path.home() / ".local" / "share") / "decathlete"


def checkout() -> Path | None:
    """Root of the checkout that this package runs from; None where it was installed."""
    return PACKAGE.parent if (PACKAGE.parent / "setup.cfg").is_file() else None


def environment_folder() -> Path:
    """``$DECATHLETE_LABEL_ENV``, else ``.venv-label`` in a checkout, else ``label-environment`` in the user's data."""
    if named := os.environ.get("DECATHLETE_LABEL_ENV"):
        return Path(named).absolute()
    root = checkout()
    return root / ".venv-label" if root else data_root() / "label-environment"


def label_python() -> Path:
    """Interpreter of MONAI Label's environment: this one if it has MONAI Label, else that of `environment_folder`.

    Raises:
        WorkError: there is none, or `set_up` was interrupted.
    """
    if find_spec("monailabel") is not None:
        return Path(sys.executable)
    folder = environment_folder()
    python, named = folder / "bin" / "python", bool(os.environ.get("DECATHLETE_LABEL_ENV"))
    if not python.is_file() or not (named or (folder / STAMP).is_file()):
        raise WorkError(folder, "MONAI Label's environment is missing or incomplete", "",
                        "Make it with 'decathlete serve --setup' (downloads about 1 GB, takes 3 GB of disk), or set "
                        "DECATHLETE_LABEL_ENV to the folder of another one")  # fmt: skip
    return python


def set_up() -> Path:
    """Make MONAI Label's environment, or complete one that was interrupted, with the versions in `CONSTRAINTS`.

    This package itself is linked into it, so that the server's version is that of the command line.

    Returns:
        The environment's folder.

    Raises:
        UsageError: an interpreter that MONAI Label does not run on.
        WorkError: venv or pip fails.
    """
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        raise UsageError(sys.executable, "MONAI Label needs Python 3.11, 3.12 or 3.13",
                         ".".join(map(str, sys.version_info[:3])), "Install decathlete with one of these")  # fmt: skip
    folder, root = environment_folder(), checkout()
    python = folder / "bin" / "python"
    (folder / STAMP).unlink(missing_ok=True)
    print(f"decathlete: installing MONAI Label in {folder}; the first time this downloads about 1 GB ...",
          file=sys.stderr, flush=True)  # fmt: skip
    if not _runs(python, "-m", "pip", "--version", quiet=True):
        _check(_runs(sys.executable, "-m", "venv", "--clear", folder), folder, "venv")
    ours = ["-e", root] if root else [one for one in requires("decathlete") or () if "extra ==" not in one]
    pip = ("-m", "pip", "install", "-c", CONSTRAINTS)
    _check(_runs(python, *pip, *ours, *NEEDS), folder, "pip")
    _check(_runs(python, *pip, "--no-deps", *ALONE), folder, "pip")
    if root is None:
        version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        link = folder / "lib" / version / "site-packages" / decathlete.__name__
        if link.is_symlink() or not link.exists():
            link.unlink(missing_ok=True)
            link.symlink_to(PACKAGE)
    (folder / STAMP).touch()
    return folder


def _runs(*words: str | Path, quiet: bool = False) -> bool:
    output = subprocess.DEVNULL if quiet else None
    try:
        return subprocess.run([str(word) for word in words], stdout=output, stderr=output).returncode == 0
    except FileNotFoundError:
        return False


def _check(done: bool, folder: Path, program: str) -> None:
    if not done:
        raise WorkError(folder, f"MONAI Label's environment is incomplete: {program} failed", "",
                        "Read its message above, and run 'decathlete serve --setup' again to resume")  # fmt: skip
