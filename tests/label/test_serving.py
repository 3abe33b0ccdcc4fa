"""`decathlete serve` up to the server."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest

from decathlete.bundle import bundle_folder
from decathlete.cli import main
from decathlete.errors import DataError, UsageError
from decathlete.label import serving
from decathlete.label.serving import check_port, copy_bundles, default_folder, is_local


@pytest.fixture
def bundle(tmp_path) -> Path:
    """A bundle of one's own."""
    return shutil.copytree(bundle_folder("hippocampus"), tmp_path / "own" / "mine")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_bundles_are_copied_and_stay_as_they_are(bundle, tmp_path):
    before = contents(bundle)
    assert copy_bundles([bundle], tmp_path / "label") == ["mine"]
    copy = tmp_path / "label" / "model" / "mine"
    assert contents(copy) == before
    (copy / "models" / "model.pt").write_bytes(b"trained")
    assert contents(bundle) == before


def test_own_weights_are_kept_and_told_of(bundle, tmp_path, capsys):
    copy_bundles([bundle], tmp_path / "label")
    own = tmp_path / "label" / "model" / "mine" / "models" / "model.pt"
    own.write_bytes(b"trained")
    copy_bundles([bundle], tmp_path / "label")
    assert own.read_bytes() == b"trained"
    assert (
        f"mine: your own model.pt is served, not the bundle's; to return to that one, delete {own}"
        in capsys.readouterr().err
    )
    own.unlink()
    copy_bundles([bundle], tmp_path / "label")
    assert own.read_bytes() == (bundle / "models" / "model.pt").read_bytes()


def test_configs_are_the_bundles_of_today(bundle, tmp_path):
    copy_bundles([bundle], tmp_path / "label")
    (bundle / "configs" / "inference.yaml").write_text("labels: {a: 1}")
    (bundle / "configs" / "logging.conf").unlink()
    copy_bundles([bundle], tmp_path / "label")
    configs = tmp_path / "label" / "model" / "mine" / "configs"
    assert (configs / "inference.yaml").read_text() == "labels: {a: 1}"
    assert not (configs / "logging.conf").exists()


def test_uploads_of_an_earlier_server_go(bundle, tmp_path):
    copy_bundles([bundle], tmp_path / "label")
    (tmp_path / "label" / "tmp" / "upload_x.nii.gz").touch()
    copy_bundles([bundle], tmp_path / "label")
    assert list((tmp_path / "label" / "tmp").iterdir()) == []


def test_two_bundles_of_one_name_are_refused(bundle, tmp_path):
    other = shutil.copytree(bundle, tmp_path / "other" / "mine")
    with pytest.raises(UsageError, match=r"bundle 'mine': .*must have different names \(2 have this one\)"):
        copy_bundles([bundle, other], tmp_path / "label")


@pytest.mark.parametrize("name", ["a,b", "a b", ".hidden", "a#b"])
def test_names_that_addresses_cannot_hold_are_refused(bundle, tmp_path, name):
    other = shutil.copytree(bundle, tmp_path / "other" / name)
    with pytest.raises(UsageError, match="expected a name of letters"):
        copy_bundles([other], tmp_path / "label")


def test_folder_that_cannot_be_made_is_told(bundle, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="Choose another --folder"):
        copy_bundles([bundle], tmp_path / "file" / "label")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.0.0.2"])
def test_addresses_of_this_machine_alone(host):
    assert is_local(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "my-machine"])
def test_addresses_that_others_reach(host):
    assert not is_local(host)


def test_taken_port_is_told():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=rf"127\.0\.0\.1:{port}: .*in use.*Choose another --port"):
            check_port("127.0.0.1", port)
    check_port("127.0.0.1", port)


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 70_000), ("127.0.0.1", -1), ("192.0.2.1", 8000)])
def test_address_that_is_none_of_this_machine_is_told(host, port):
    with pytest.raises(UsageError, match="Choose another --port"):
        check_port(host, port)


def test_missing_environment_is_one_line_that_says_how_to_make_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DECATHLETE_LABEL_ENV", str(tmp_path / "none"))
    assert main(["serve", "hippocampus", "--studies", str(tmp_path), "--folder", str(tmp_path / "label")]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "Make it with 'decathlete serve --setup'" in said[0]
    assert not (tmp_path / "label").exists()


def test_missing_studies_and_passwords_in_addresses_are_told(tmp_path, capsys):
    assert main(["serve", "hippocampus", "--studies", str(tmp_path / "none")]) == 1
    assert main(["serve", "hippocampus", "--studies", "http://me:word@127.0.0.1/dicom-web"]) == 2
    said = capsys.readouterr().err
    assert "no such folder" in said
    assert "word@" not in said


def test_studies_that_cannot_be_written_to_are_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    assert main(["serve", "hippocampus", "--studies", str(tmp_path)]) == 1
    assert "labels are saved beside the images. Copy the images" in capsys.readouterr().err


def test_unknown_bundle_is_told_with_the_nearest(tmp_path, capsys):
    assert main(["serve", "hipocampus", "--studies", str(tmp_path)]) == 2
    assert "Did you mean 'hippocampus'" in capsys.readouterr().err


def test_default_folder_is_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "decathlete" / "label"
    monkeypatch.delenv("XDG_DATA_HOME")
    assert default_folder() == Path.home() / ".local" / "share" / "decathlete" / "label"


@pytest.mark.parametrize(("host", "words"), [(None, 1), ("0.0.0.0", 2)])
def test_listening_for_other_machines_is_warned_of(tmp_path, monkeypatch, capsys, host, words):
    started = []
    monkeypatch.setattr(os, "execve", lambda *a: started.append(a))
    monkeypatch.setattr(os, "chdir", lambda folder: None)
    monkeypatch.setattr(serving, "label_python", lambda: Path("/env/bin/python"))
    monkeypatch.setattr(serving, "check_port", lambda host, port: None)
    command = ["serve", "hippocampus", "--studies", str(tmp_path), "--folder", str(tmp_path / "label")]
    main(command + (["--host", host] if host else []))
    said = capsys.readouterr().err
    assert ("there is no password: anyone" in said) == (host is not None)
    assert len(said.splitlines()) == words
    [(_, words_, environ)] = started
    assert words_[words_.index("--host") + 1] == (host or "127.0.0.1")
    assert environ["DECATHLETE_LABEL_LOCAL"] == ("0" if host else "1")
    assert environ["TMPDIR"] == str(tmp_path / "label" / "tmp")


def test_relative_folder_is_that_of_the_working_directory(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(os, "execve", lambda *a: started.append(a))
    monkeypatch.setattr(serving, "label_python", lambda: Path("/env/bin/python"))
    monkeypatch.setattr(serving, "check_port", lambda host, port: None)
    monkeypatch.chdir(tmp_path)
    assert main(["serve", "hippocampus", "--studies", ".", "--folder", "server"]) in (None, 0)
    [(_, words, environ)] = started
    assert words[words.index("--app") + 1] == str(tmp_path / "server")
    assert words[words.index("--studies") + 1] == str(tmp_path)
    assert environ["TMPDIR"] == str(tmp_path / "server" / "tmp")
