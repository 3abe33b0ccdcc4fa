"""Where MONAI Label's environment is, and how it is made: by a Python that only notes what it is asked to do."""

from __future__ import annotations

import sys

import pytest

from decathlete.cli import main
from decathlete.errors import UsageError, WorkError
from decathlete.label import environment
from decathlete.label.environment import CONSTRAINTS, NEEDS, environment_folder, label_python, set_up

STAND_IN = """#!/bin/sh
echo "$*" >> "$CALLS"
case "$*" in
  "-m venv"*) mkdir -p "$4/bin" "$4/lib/python$PYTHON_VERSION/site-packages" && cp "$0" "$4/bin/python" ;;
  *install*) exit "${INSTALL_STATUS:-0}" ;;
esac
"""


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """What the interpreter was asked to do since the last look."""
    stand_in, log = tmp_path / "python", tmp_path / "calls.txt"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stand_in))
    monkeypatch.setenv("CALLS", str(log))
    monkeypatch.setenv("PYTHON_VERSION", ".".join(map(str, sys.version_info[:2])))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "user data"))
    monkeypatch.delenv("DECATHLETE_LABEL_ENV", raising=False)

    def look() -> list[str]:
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines

    return look


@pytest.fixture
def installed(monkeypatch):
    """This package as pip installs it: no checkout around it."""
    monkeypatch.setattr(environment, "checkout", lambda: None)


def test_environment_of_an_installed_package_is_in_the_users_data(calls, installed, tmp_path):
    folder = tmp_path / "user data" / "decathlete" / "label-environment"
    assert set_up() == folder
    venv, ours, theirs = calls()
    assert venv == f"-m venv --clear {folder}"
    assert ours.startswith(f"-m pip install -c {CONSTRAINTS} monai<1.7,>=1.6 torch>=2.8 ")
    assert ours.endswith(" ".join(NEEDS))
    assert "extra" not in ours
    assert theirs == f"-m pip install -c {CONSTRAINTS} --no-deps monailabel pydicom-seg dcmqi"
    assert label_python() == folder / "bin" / "python"
    [link] = (folder / "lib").glob("python*/site-packages/*")
    assert (link.name, link.resolve()) == ("decathlete", environment.PACKAGE)


def test_a_second_set_up_keeps_the_environment(calls, installed):
    set_up()
    calls()
    set_up()
    assert [line.split()[:3] for line in calls()] == [["-m", "pip", "--version"], *[["-m", "pip", "install"]] * 2]


def test_a_checkout_has_its_environment_beside_it_and_is_installed_editable(calls, tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "checkout", lambda: tmp_path / "a checkout")
    assert set_up() == tmp_path / "a checkout" / ".venv-label"
    assert f" -e {tmp_path / 'a checkout'} cachetools " in calls()[1]


def test_interrupted_set_up_is_no_environment_and_resumes(calls, installed, monkeypatch):
    monkeypatch.setenv("INSTALL_STATUS", "1")
    with pytest.raises(WorkError, match=r"incomplete: pip failed.*run 'decathlete serve --setup' again"):
        set_up()
    with pytest.raises(WorkError, match=r"missing or incomplete. Make it with 'decathlete serve --setup'"):
        label_python()
    monkeypatch.delenv("INSTALL_STATUS")
    calls()
    set_up()
    assert calls()[0] == "-m pip --version"
    assert label_python().is_file()


def test_named_environment_comes_first(calls, tmp_path, monkeypatch):
    monkeypatch.setenv("DECATHLETE_LABEL_ENV", str(tmp_path / "own"))
    assert environment_folder() == tmp_path / "own"
    python = tmp_path / "own" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    assert label_python() == python  # made by its user: no stamp


def test_python_that_monai_label_does_not_run_on_is_refused(calls, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 14, 0, "final", 0))
    with pytest.raises(UsageError, match=r"needs Python 3.11, 3.12 or 3.13 \(3.14.0\)"):
        set_up()
    assert calls() == []


def test_set_up_needs_no_studies_and_serving_does(calls, installed, capsys):
    assert main(["serve", "--setup"]) == 0
    said = capsys.readouterr().err
    assert "MONAI Label is installed in" in said
    assert main(["serve", "hippocampus"]) == 2
    assert "--studies: missing" in capsys.readouterr().err


def test_every_package_that_is_asked_for_has_its_version():
    lines = CONSTRAINTS.read_text().splitlines()
    pinned = {plain(line.partition("==")[0]) for line in lines if "==" in line}
    assert {plain(name) for name in (*NEEDS, *environment.ALONE, "torch", "monai")} - pinned == set()
    assert [line for line in lines if not line.startswith("#") and "==" not in line] == []


def plain(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")
