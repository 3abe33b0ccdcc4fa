"""``decathlete serve``: copies of bundles in a folder of the user's, and MONAI Label over them."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import sys
from collections.abc import Mapping, Sequence
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path
from typing import NoReturn

from decathlete.bundle import Bundle, bundle_folder, bundle_names
from decathlete.errors import DataError, UsageError
from decathlete.files import atomic_write
from decathlete.label.environment import data_root, label_python

MAIN = "from decathlete.label.main import LabelApp  # noqa: F401 - MONAI Label looks for it here\n"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def serve(
    bundles: Sequence[str | Path] = (),
    studies: str | Path = ".",
    host: str = "127.0.0.1",
    port: int = 8000,
    folder: str | Path | None = None,
) -> NoReturn:
    """Become MONAI Label's server over copies of bundles; ends with it.

    Args:
        bundles: folders or names; without any, all packaged ones.
        studies: folder of NIfTI images, or the address of a DICOMweb server.
        host: address to listen on; with any but this machine's own, a warning is printed.
        port: to listen on.
        folder: for the copies with their weights, the runs and logs; default: ``default_folder()``.

    Raises:
        UsageError: an unknown bundle, two of the same name, or a port that is in use.
        DataError: no folder of studies.
        WorkError: MONAI Label's environment is missing.
    """
    sources = [bundle_folder(bundle) for bundle in bundles or bundle_names()]
    address = str(studies).startswith(("http://", "https://"))
    if not address and not Path(studies).is_dir():
        raise DataError(studies, "not a folder of NIfTI images or the address of a DICOMweb server", "no such folder",
                        "Make it; it may be empty")  # fmt: skip
    if not address and not os.access(studies, os.W_OK | os.X_OK):
        raise DataError(studies, "this folder of studies cannot be written to, and labels are saved beside the images",
                        "", "Copy the images to a folder of your own")  # fmt: skip
    if address and "@" in str(studies):
        raise UsageError("--studies", "the address contains a user name, which logs would show", "'@'",
                         "Set MONAI_LABEL_DICOMWEB_USERNAME and MONAI_LABEL_DICOMWEB_PASSWORD")  # fmt: skip
    check_port(host, port)
    python = label_python()
    folder = Path(folder if folder is not None else default_folder()).resolve()
    names = copy_bundles(sources, folder)
    if not is_local(host):
        print(f"decathlete: warning: there is no password: anyone who can reach port {port} of this machine can read, "
              "change and delete studies and weights. Without --host only this machine can; others can use an SSH "
              f"tunnel: ssh -L {port}:127.0.0.1:{port} THIS_MACHINE", file=sys.stderr)  # fmt: skip
    shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    print(f"decathlete: MONAI Label at http://{shown}:{port} (3D Slicer: this address; log: {folder / 'logs'}). "
          "Not for clinical use.", file=sys.stderr, flush=True)  # fmt: skip
    command = [str(python), "-m", "monailabel.main", "start_server", "--app", str(folder)]
    command += ["--studies", str(studies) if address else str(Path(studies).resolve())]
    command += ["--host", host, "--port", str(port), "--conf", "models", ",".join(names)]
    command += ["--uvicorn_app", "decathlete.label.server:app"]
    os.chdir(folder)  # MONAI Label takes a file of this name for an image before it asks the studies
    os.execve(python, command, server_environment(python, folder, host, modality_of(folder, names)))


def default_folder() -> Path:
    """``label`` in the user's data (`data_root`)."""
    return data_root() / "label"


def is_local(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def check_port(host: str, port: int) -> None:
    """Refuse an address that cannot be listened on.

    Raises:
        UsageError: it is in use, not allowed, or no address of this machine.
    """
    if not 1 <= port <= 65535:
        raise UsageError("--port", "expected a number from 1 to 65535", str(port), "Choose another --port")
    try:
        family, kind, proto, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, proto) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as error:
        raise UsageError(f"{host}:{port}", "the server cannot listen there", error.strerror or str(error),
                         "Choose another --port") from None  # fmt: skip


def copy_bundles(sources: Sequence[Path], folder: Path) -> list[str]:
    """Copy bundles to ``folder/model`` and return their names; a copy's own weights are kept.

    Configs and docs are copied anew each time. Weights are copied where there are none; where a training has left
    others, a line says so.

    Raises:
        UsageError: a name that the server's addresses cannot hold, or two bundles of the same name.
        DataError: the folder cannot be written to.
    """
    names = [source.resolve().name for source in sources]
    for name in names:
        if not NAME.fullmatch(name) or ".." in name:
            raise UsageError(f"bundle '{name}'", "expected a name of letters, digits, '_', '-' and '.'", "",
                             "Rename its folder")  # fmt: skip
        if names.count(name) > 1:
            raise UsageError(f"bundle '{name}'", "bundles that are served together must have different names",
                             f"{names.count(name)} have this one", "Rename a folder")  # fmt: skip
    try:
        for name in ("model", "runs", "logs", "sessions"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder / "tmp", ignore_errors=True)  # what an earlier server left of uploads
        (folder / "tmp").mkdir()
        with atomic_write(folder / "main.py") as part_file:
            part_file.write_text(MAIN, encoding="utf-8")
        for name, source in zip(names, sources, strict=True):
            _copy_bundle(source.resolve(), folder.resolve() / "model" / name)
    except OSError as error:
        raise DataError(folder, "the server's folder cannot be written to", error.strerror or str(error),
                        "Choose another --folder") from error  # fmt: skip
    return names


def _copy_bundle(source: Path, copy: Path) -> None:
    if source == copy:
        return
    ignored = shutil.ignore_patterns("models", "runs", "__pycache__", "*.bak-*")
    for part in ("configs", "docs"):
        shutil.rmtree(copy / part, ignore_errors=True)
    shutil.copytree(source, copy, ignore=ignored, dirs_exist_ok=True)
    (copy / "models").mkdir(exist_ok=True)
    for file in (source / "models").glob("*.json"):  # statistics of the training scans; other weights ignore them
        shutil.copyfile(file, copy / "models" / file.name)
    for file in sorted((source / "models").glob("*.pt")):
        own = copy / "models" / file.name
        if not own.exists():
            with atomic_write(own) as part_file:
                shutil.copyfile(file, part_file)
        elif _digest(own) != _digest(file):
            print(f"decathlete: {copy.name}: your own {file.name} is served, not the bundle's; to return to that one, "
                  f"delete {own}", file=sys.stderr)  # fmt: skip


def _digest(file: Path) -> bytes:
    return sha256(file.read_bytes()).digest()


def modality_of(folder: Path, names: Sequence[str]) -> str:
    """DICOM modality of the series that are listed from an archive: that of most bundles, by default CT."""
    found = [Bundle(folder / "model" / name).modality or "CT" for name in names]
    return max(found, key=found.count, default="CT")


def server_environment(python: Path, folder: Path, host: str, modality: str = "CT") -> dict[str, str]:
    """Environment variables of the server's process; the user's own settings of MONAI Label stay."""
    environ = dict(os.environ)
    ours: Mapping[str, str] = {
        "MONAI_LABEL_AUTO_UPDATE_SCORING": "false",  # each request for an image would start all scorings
        "MONAI_LABEL_SESSION_PATH": str(folder / "sessions"),
        "MONAI_LABEL_DICOMWEB_CACHE_PATH": str(folder / "dicom"),
        "MONAI_LABEL_DICOMWEB_CACHE_EXPIRY": "5",  # seconds; its default of two hours would hide new series
        "MONAI_LABEL_DICOMWEB_SEARCH_FILTER": json.dumps({"Modality": modality}),
    }
    for name, value in ours.items():
        environ.setdefault(name, value)
    environ["DECATHLETE_LABEL_LOCAL"] = "1" if is_local(host) else "0"
    environ["TMPDIR"] = str(folder / "tmp")
    environ["PATH"] = os.pathsep.join([str(python.parent), environ.get("PATH", "")])  # itkimage2segimage
    for name in ("PYTHONHOME", "PYTHONPATH"):  # of another interpreter
        environ.pop(name, None)
    return environ
