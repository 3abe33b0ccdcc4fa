"""MONAI Label's server as a user starts it, and a client without cookies, caches or second thoughts."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from decathlete.data import make_phantoms
from decathlete.label.environment import environment_folder

ROOT = Path(__file__).resolve().parents[2]
SECRET = "not-for-any-answer-7f3a"
LEFT_OUT = pytest.StashKey[int]()
UP_S, TASK_S = 90, 300  # patience on a machine that does other things too


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the tests with MONAI Label's server out unless they are asked for, and say so at the end."""
    if "label" in (config.option.markexpr or ""):
        return
    left_out = [item for item in items if item.get_closest_marker("label")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if not item.get_closest_marker("label")]
    config.stash[LEFT_OUT] = len(left_out)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """One line for all tests that were left out."""
    if count := config.stash.get(LEFT_OUT, 0):
        terminalreporter.write_line(
            f"{count} tests of MONAI Label's server not run: 'make test-label' builds its environment and runs them"
        )


@dataclass
class Answer:
    """What the server said."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace")


@dataclass
class Server:
    """A running server: its folders, and requests to it."""

    port: int
    studies: Path
    folder: Path
    log: Path
    seconds_to_start: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)

    def ask(
        self,
        method: str,
        path: str,
        *,
        data: Any = None,
        fields: dict[str, Any] | None = None,
        files: dict[str, tuple[str, bytes]] | None = None,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        timeout: float = 120,
    ) -> Answer:
        """Send a request as it is: ``data`` as JSON, ``fields`` and ``files`` as a form, or the bytes of ``body``."""
        sent = dict(self.headers)
        if data is not None:
            body, sent["Content-Type"] = json.dumps(data).encode(), "application/json"
        if fields or files:
            body, sent["Content-Type"] = form(fields or {}, files or {})
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.putrequest(method, path, skip_host="Host" in (headers or {}), skip_accept_encoding=True)
            for name, value in (sent | (headers or {})).items():
                connection.putheader(name, value)
            if body is not None and "Content-Length" not in (headers or {}):
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            response = connection.getresponse()
            headers_, content = {k.lower(): v for k, v in response.getheaders()}, response.read()
            if headers_.get("content-encoding") == "gzip":
                content = gzip.decompress(content)
            return Answer(response.status, headers_, content)
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        answer = self.ask("GET", path)
        assert answer.status == 200, answer.text
        return answer.json

    def infer(self, model: str, image: str, **params: Any) -> Answer:
        fields = {"params": json.dumps(params)}
        return self.ask("POST", f"/infer/{model}?image={image}&output=image", fields=fields)

    def put_label(self, image: str, file: Path, tag: str = "final") -> Answer:
        return self.ask(
            "PUT", f"/datastore/label?image={image}&tag={tag}", files={"label": (file.name, file.read_bytes())}
        )

    def finish(self, what: str) -> dict[str, Any]:
        """Wait for the last task of ``/train/``, ``/batch/infer`` or ``/scoring/``."""
        end = time.monotonic() + TASK_S
        while time.monotonic() < end:
            task = self.get(what)
            if task["status"] not in ("SUBMITTED", "RUNNING"):
                return task
            time.sleep(0.3)
        raise TimeoutError(f"{what} took more than {TASK_S} s")

    def train(self, model: str, **body: Any) -> dict[str, Any]:
        answer = self.ask("POST", f"/train/{model}", data=body)
        assert answer.status == 200, answer.text
        return self.finish("/train/")

    def result(self, task: dict[str, Any]) -> dict[str, Any]:
        """What a finished training says of the weights."""
        assert task["status"] == "DONE", "\n".join(task.get("details", []))
        line = [line for line in task["details"] if "Result: " in line][-1]
        return json.loads(line.split("Result: ")[1])


def form(fields: dict[str, Any], files: dict[str, tuple[str, bytes]]) -> tuple[bytes, str]:
    """A multipart form, names of files as they are given."""
    boundary = uuid.uuid4().hex
    parts = []
    for name, value in fields.items():
        content = value if isinstance(value, bytes) else str(value).encode()
        parts.append(f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + content)
    for name, (filename, content) in files.items():
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"\r\n'
        parts.append(head.encode() + b"Content-Type: application/octet-stream\r\n\r\n" + content)
    return b"\r\n".join([*parts, f"--{boundary}--\r\n".encode()]), f"multipart/form-data; boundary={boundary}"


@contextmanager
def serving(bundles: list[str | Path], studies: Path | str, folder: Path, host: str | None = None) -> Iterator[Server]:
    """``decathlete serve`` until the block ends."""
    command = [sys.executable, "-m", "decathlete.cli", "serve", *map(str, bundles), "--studies", str(studies)]
    command += ["--folder", str(folder), *(["--host", host] if host else [])]
    with running(command, studies, folder) as server:
        yield server


@contextmanager
def running(command: list[str], studies: Path | str, folder: Path, **options: Any) -> Iterator[Server]:
    """A server's command, to which a free port is added, until the block ends; options are those of its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder.parent / f"{folder.name}.log"
    options.setdefault("env", dict(os.environ))["MONAI_LABEL_DICOMWEB_PASSWORD"] = SECRET
    start = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen([*command, "--port", str(port)], stdout=output, stderr=subprocess.STDOUT, **options)
    server = Server(port, Path(studies), folder, log)
    try:
        while True:
            try:
                if server.ask("GET", "/info/").status == 200:
                    break
            except (ConnectionError, http.client.HTTPException):
                pass
            assert process.poll() is None, log.read_text()
            assert time.monotonic() - start < UP_S, log.read_text()
            time.sleep(0.1)
        server.seconds_to_start = time.monotonic() - start
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


@pytest.fixture(scope="session")
def label_environment() -> Path:
    """Interpreter of MONAI Label's environment."""
    python = environment_folder() / "bin" / "python"
    if not python.is_file():
        pytest.skip("no MONAI Label here: run 'make label'")
    return python


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory) -> Path:
    """Eight artificial hippocampi."""
    return make_phantoms("hippocampus", 8, tmp_path_factory.mktemp("phantoms"))


@pytest.fixture(scope="session")
def start_server(label_environment):
    """The server over bundles and studies of one's own, as a context."""
    return serving


@pytest.fixture(scope="session")
def run_server(label_environment):
    """A server of another command, as a context."""
    return running


@pytest.fixture(scope="session")
def make_studies():
    """Studies from a data set."""
    return studies_of


@pytest.fixture(scope="session")
def on_same_grid():
    """Whether two files lie on each other."""
    return same_grid


def studies_of(dataset: Path, folder: Path, labelled: int = 0) -> Path:
    """A folder of studies with the data set's images, the first ``labelled`` of them with their labels."""
    final = folder / "labels" / "final"
    final.mkdir(parents=True)
    for number, image in enumerate(sorted((dataset / "imagesTr").glob("*.nii.gz"))):
        shutil.copy(image, folder)
        if number < labelled:
            shutil.copy(dataset / "labelsTr" / image.name, final)
    return folder


@pytest.fixture(scope="module")
def server(label_environment, phantoms, tmp_path_factory) -> Iterator[Server]:
    """The hippocampus over eight unlabelled studies; its path has a space in it."""
    root = tmp_path_factory.mktemp("a server")
    with serving(["hippocampus"], studies_of(phantoms, root / "studies"), root / "app") as running:
        yield running


@pytest.fixture
def label_of(phantoms):
    """File of a phantom's true label, by its id."""
    return lambda image: phantoms / "labelsTr" / f"{image}.nii.gz"


def same_grid(one: Path, other: Path) -> bool:
    """Whether two NIfTI files lie on each other, by shape, affine, sform and qform."""
    first, second = nib.load(one), nib.load(other)
    return first.shape[:3] == second.shape[:3] and all(
        np.allclose(a, b, atol=1e-5)
        for a, b in [
            (first.affine, second.affine),
            (first.header.get_sform(), second.header.get_sform()),
            (first.header.get_qform(), second.header.get_qform()),
        ]
    )
