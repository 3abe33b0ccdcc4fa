"""Archives from a real server on this machine: cut connections, wrong sums, hostile members."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import http.server
import io
import logging
import shutil
import socket
import ssl
import struct
import subprocess
import tarfile
import threading
import urllib.request
from collections import namedtuple
from pathlib import Path

import pytest

from decathlete.data import download as downloads
from decathlete.data import get_task
from decathlete.data.download import download, download_task, fetch, unpack
from decathlete.errors import DataError, UsageError
from decathlete.files import lock


class _Handler(http.server.BaseHTTPRequestHandler):
    """Gives ``server.content`` with ranges; cuts a connection after ``server.cut_after`` bytes while told to."""

    def do_GET(self):
        server = self.server
        server.requests.append(self.headers.get("Range"))
        if server.status != 200:
            self.send_error(server.status)
            return
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        start = start if server.ranges else 0
        if start and start >= len(server.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.content)}")
            self.end_headers()
            return
        body = server.content[start:]
        self.send_response(206 if start else 200)
        if start:
            given = f"bytes {start}-{len(server.content) - 1}/{len(server.content)}"
            self.send_header("Content-Range", server.content_range or given)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        cut = server.cuts.pop(0) if server.cuts else len(body)
        self.wfile.write(body[:cut])
        if cut < len(body) and server.end:
            self.wfile.flush()
            server.ends[server.end](self.connection)

    def log_message(self, *args):
        """Keep the test's output clean."""


def _reset(connection: socket.socket) -> None:
    """End a connection as a machine does that was switched off and on: "Connection reset by peer"."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def _noise(connection: ssl.SSLSocket) -> None:
    """Go on with what is no TLS."""
    with socket.socket(fileno=connection.detach()) as plain:
        plain.sendall(b"no record of TLS" * 100)


@pytest.fixture
def server(monkeypatch):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.content, server.requests, server.cuts = b"", [], []
        server.status, server.ranges, server.content_range = 200, True, ""
        server.ends, server.end = {"reset": _reset, "noise": _noise}, None
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("DECATHLETE_MSD_URL", f"http://127.0.0.1:{server.server_port}/")
        monkeypatch.setattr(downloads, "_WAIT_S", 0)
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def task(server, tmp_path, write_dataset):
    """The hippocampus task with an archive of three tiny cases on the server."""
    source = write_dataset(tmp_path / "source" / "Task04_Hippocampus", ["hippocampus_001", "hippocampus_003", "x"])
    (source / "imagesTr" / "._x.nii.gz").write_bytes(b"side file")
    archive = tmp_path / "source" / "archive.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(source, source.name)
    server.content = archive.read_bytes()
    return dataclasses.replace(get_task("hippocampus"), md5=hashlib.md5(server.content).hexdigest())


def test_data_set_is_unpacked_without_side_files_and_nothing_is_left(task, tmp_path):
    folder = download_task(task, tmp_path / "data", progress=False)
    assert folder == tmp_path / "data" / "Task04_Hippocampus"
    names = sorted(p.name for p in (folder / "imagesTr").iterdir())
    assert names == ["hippocampus_001.nii.gz", "hippocampus_003.nii.gz", "x.nii.gz"]
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["Task04_Hippocampus"]


def test_second_call_asks_the_server_nothing(task, server, tmp_path):
    download_task(task, tmp_path, progress=False)
    server.requests.clear()
    download_task(task, tmp_path, progress=False)
    assert server.requests == []


def test_cut_connections_are_taken_up_where_they_stopped(task, server, tmp_path):
    server.cuts = [1000, 0, 500]
    download_task(task, tmp_path, progress=False)
    assert server.requests == [None, "bytes=1000-", "bytes=1000-", "bytes=1500-"]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> Path:
    """A certificate for this machine that signs itself, with its key."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate")
    folder = tmp_path_factory.mktemp("certificate")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 1 -subj /CN=localhost"
    subprocess.run([*command.split(), "-addext", "subjectAltName=IP:127.0.0.1"], cwd=folder, check=True,
                   capture_output=True)  # fmt: skip
    return folder / "cert.pem"


@pytest.fixture
def safe_server(server, certificate, monkeypatch):
    """The server, by TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    monkeypatch.setenv("DECATHLETE_MSD_URL", f"https://127.0.0.1:{server.server_port}/")
    monkeypatch.setattr(urllib.request, "_opener", None)  # which keeps the certificates that it trusts
    return server


def test_connection_that_is_reset_is_taken_up_where_it_stopped(task, server, tmp_path):
    server.cuts, server.end = [1000, 2000], "reset"
    assert download_task(task, tmp_path, progress=False).is_dir()
    assert len(server.requests) == 3


def test_tls_that_breaks_off_is_taken_up_where_it_stopped(task, safe_server, certificate, tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    safe_server.cuts, safe_server.end = [1000], "noise"
    assert download_task(task, tmp_path, progress=False).is_dir()
    assert safe_server.requests == [None, "bytes=1000-"]


def test_tls_that_breaks_off_each_time_is_told_as_the_network(task, safe_server, certificate, tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    safe_server.cuts, safe_server.end = [1000] + [0] * 10, "noise"
    with pytest.raises(DataError, match=r"the server cannot be reached.*\(.*SSL.*Check the network"):
        download_task(task, tmp_path, progress=False)


def test_certificate_that_nobody_trusts_is_told_at_once(task, safe_server, tmp_path):
    with pytest.raises(DataError, match=r"certificate cannot be verified.*\(.*self.signed.*clock.*SSL_CERT_FILE"):
        download_task(task, tmp_path, progress=False)
    assert safe_server.requests == []


@pytest.mark.parametrize("code", [errno.EHOSTUNREACH, errno.ENETDOWN, errno.ETIMEDOUT, errno.ENOSPC])
def test_fault_of_a_read_is_the_networks_and_not_the_disks(code):
    class Response:
        def read1(self, _size):
            raise OSError(code, "somewhere")

    with pytest.raises(downloads._NetworkError):
        downloads._next_block(Response())


def test_file_that_cannot_be_written_is_the_disks_fault_and_not_tried_again(task, server, tmp_path):
    (tmp_path / "data" / "Task04_Hippocampus.tar.part").mkdir(parents=True)
    with pytest.raises(DataError, match=r"the data set cannot be written.*pass another --output"):
        download_task(task, tmp_path / "data", progress=False)
    assert server.requests == []


def test_part_of_another_place_than_told_is_not_taken(task, server, tmp_path):
    server.content_range = "bytes somewhere"
    (tmp_path / "Task04_Hippocampus.tar.part").write_bytes(server.content[:700])
    with pytest.raises(DataError, match=r"part of a file, but not which \(Content-Range: bytes somewhere\)"):
        download_task(task, tmp_path, progress=False)


def test_interrupted_call_is_resumed_by_the_next(task, server, tmp_path):
    server.cuts = [3000] + [0] * 10
    with pytest.raises(DataError, match=r"the server cannot be reached.*\(the connection was lost"):
        download_task(task, tmp_path, progress=False)
    part = tmp_path / "Task04_Hippocampus.tar.part"
    assert part.read_bytes() == server.content[:3000]
    server.cuts = []
    download_task(task, tmp_path, progress=False)
    assert server.requests[-1] == "bytes=3000-"


def test_part_that_is_already_whole_is_used(task, server, tmp_path):
    (tmp_path / "Task04_Hippocampus.tar.part").write_bytes(server.content)
    assert download_task(task, tmp_path, progress=False).is_dir()
    assert len(server.requests) == 1


def test_server_without_ranges_starts_over(task, server, tmp_path):
    server.ranges = False
    (tmp_path / "Task04_Hippocampus.tar.part").write_bytes(server.content[:700])
    assert download_task(task, tmp_path, progress=False).is_dir()


def test_wrong_md5_is_told_and_the_file_removed(task, server, tmp_path):
    wrong = dataclasses.replace(task, md5="0" * 32)
    with pytest.raises(DataError, match=f"MD5, expected {'0' * 32}.*\\({task.md5}"):
        download_task(wrong, tmp_path / "data", progress=False)
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize(("status", "tries"), [(404, 1), (503, 6)])
def test_refusal_is_told_with_its_code(task, server, tmp_path, status, tries):
    server.status = status
    with pytest.raises(DataError, match=f"{status}"):
        download_task(task, tmp_path, progress=False)
    assert len(server.requests) == tries


def test_unreachable_server_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "_WAIT_S", 0)
    with pytest.raises(DataError, match=r"the server cannot be reached.*refused"):
        download("http://127.0.0.1:9/a.tar", tmp_path / "a.tar", "0" * 32, progress=False)
    with pytest.raises(DataError, match="must start with https"):
        download("file:///etc/passwd", tmp_path / "a.tar", "0" * 32, progress=False)


def test_full_disk_is_told_before_the_download(task, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 9, 1))
    with pytest.raises(DataError, match=r"the data set cannot be written \(not enough disk space for the archive"):
        download_task(task, tmp_path, progress=False)


def test_folder_of_another_kind_is_left_alone(task, tmp_path):
    (tmp_path / "Task04_Hippocampus").mkdir()
    (tmp_path / "Task04_Hippocampus" / "mine.txt").write_text("kept")
    with pytest.raises(DataError, match="Move it away"):
        download_task(task, tmp_path, progress=False)
    assert (tmp_path / "Task04_Hippocampus" / "mine.txt").read_text() == "kept"


def _member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, link, size
    return member


@pytest.mark.parametrize(
    "member",
    [
        _member("../escaped.txt"),
        _member("/tmp/escaped.txt"),
        _member("Task04_Hippocampus/../../escaped.txt"),
        _member("Task04_Hippocampus\\..\\..\\escaped.txt"),
        _member("Task04_Hippocampus/link", tarfile.SYMTYPE, "/etc"),
        _member("Task04_Hippocampus/hard", tarfile.LNKTYPE, "../../etc/passwd"),
        _member("Task04_Hippocampus/device", tarfile.CHRTYPE),
        _member("Task04_Hippocampus/pipe", tarfile.FIFOTYPE),
    ],
    ids=lambda member: member.name,
)
def test_hostile_member_is_refused_and_nothing_is_unpacked(tmp_path, member):
    archive, folder = tmp_path / "a.tar", tmp_path / "deep" / "data" / "Task04_Hippocampus"
    folder.parent.mkdir(parents=True)
    with tarfile.open(archive, "w") as tar:
        tar.addfile(_member("Task04_Hippocampus/dataset.json", size=2), io.BytesIO(b"{}"))
        tar.addfile(member)
    with pytest.raises(DataError, match="a member of the archive"):
        unpack(archive, folder, progress=False)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [archive]
    assert list(folder.parent.iterdir()) == []


def test_bomb_is_refused_before_it_fills_the_disk(tmp_path):
    archive = tmp_path / "a.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.addfile(_member("Task04_Hippocampus/zeros", size=1 << 23), io.BytesIO(bytes(1 << 23)))
    with pytest.raises(DataError, match="holds more than"):
        unpack(archive, tmp_path / "Task04_Hippocampus", progress=False)


def test_two_processes_do_not_download_the_same(task, server, tmp_path):
    with lock(tmp_path / "Task04_Hippocampus"), pytest.raises(DataError, match="another process is downloading"):
        download_task(task, tmp_path, progress=False)
    assert server.requests == []
    assert download_task(task, tmp_path, progress=False).is_dir()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["Task04_Hippocampus", "source"]


def test_damaged_archive_and_archive_of_something_else(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(
        DataError, match=r"the archive is damaged \(file could not be opened successfully\)\. Remove it"
    ):
        unpack(tmp_path / "a.tar", tmp_path / "Task04_Hippocampus", progress=False)
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        tar.addfile(_member("readme", size=2), io.BytesIO(b"hi"))
    with pytest.raises(DataError, match=r"does not hold Task04_Hippocampus with dataset\.json"):
        unpack(tmp_path / "b.tar", tmp_path / "Task04_Hippocampus", progress=False)


def test_fetch_verifies_what_is_there_and_names_the_faults(tmp_path, write_dataset, caplog):
    folder = write_dataset(tmp_path / "Task04_Hippocampus", ["a", "b"])
    assert fetch("hippocampus", tmp_path) == folder  # there already: nothing is asked of a server
    assert fetch("hippocampus", tmp_path, verify=True) == folder
    (folder / "labelsTr/b.nii.gz").unlink()
    with caplog.at_level(logging.WARNING), pytest.raises(DataError, match="1 fault, named"):
        fetch("Task04_Hippocampus", tmp_path, verify=True)
    assert str(Path("labelsTr/b.nii.gz: no such file")) in caplog.text


def test_fetch_of_an_unknown_task_gives_the_nearest(tmp_path):
    with pytest.raises(UsageError, match="hippocampus"):
        fetch("hipocampus", tmp_path)


def test_fetch_verify_without_data_says_what_to_run(tmp_path, monkeypatch):
    monkeypatch.delenv("DECATHLETE_DATA", raising=False)
    with pytest.raises(DataError, match="Run 'decathlete data spleen'"):
        fetch("spleen", tmp_path, verify=True)


def test_fetch_makes_phantoms_that_pass_the_check_and_says_what_they_are(tmp_path, caplog):
    folder = fetch("hippocampus", tmp_path, phantom=2, seed=3, verify=True)
    assert folder == tmp_path / "Task04_Hippocampus"
    assert fetch("hippocampus", tmp_path) == folder
    assert "holds phantoms, not patients" in caplog.text
