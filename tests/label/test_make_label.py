"""`make label` in a path with a space, with an interpreter that only notes what it is asked to do."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INPUTS = ("constraints.txt", "constraints-label.txt", "setup.cfg", "setup.py", "pyproject.toml")
STAND_IN = """#!/bin/sh
echo "$*" >> calls.txt
case "$*" in
  "-m venv"*) mkdir -p .venv-label/bin && cp "$0" .venv-label/bin/python ;;
  *install*) exit "${INSTALL_STATUS:-0}" ;;
esac
"""

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make here")


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A folder with the Makefile and what its stamp depends on."""
    folder = tmp_path / "a checkout"
    folder.mkdir()
    shutil.copy(ROOT / "Makefile", folder)
    for name in INPUTS:
        (folder / name).touch()
        os.utime(folder / name, (1, 1))
    (folder / "stand_in").write_text(STAND_IN)
    (folder / "stand_in").chmod(0o755)
    return folder


def make(folder: Path, **environ: str) -> tuple[int, list[str]]:
    """Status of `make label`, and what the interpreter was asked to do."""
    (folder / "calls.txt").write_text("")
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS", "PYTEST_ARGS"))}
    command = ["make", "PYTHON=./stand_in", "label"]
    status = subprocess.run(command, cwd=folder, env=keep | environ, capture_output=True).returncode
    return status, (folder / "calls.txt").read_text().splitlines()


def test_first_call_makes_and_fills_an_environment_of_its_own(checkout):
    status, (venv, ours, theirs) = make(checkout)
    assert status == 0
    assert venv == "-m venv --clear .venv-label"
    assert ours.startswith("-m pip install -c constraints-label.txt -e . ")
    assert theirs == "-m pip install -c constraints-label.txt --no-deps monailabel pydicom-seg dcmqi"


def test_second_call_does_nothing_until_a_version_changes(checkout):
    make(checkout)
    assert make(checkout) == (0, [])
    os.utime(checkout / "constraints-label.txt", (2**32, 2**32))
    assert len(make(checkout)[1]) == 3


def test_interrupted_call_goes_on_where_it_was(checkout):
    assert make(checkout, INSTALL_STATUS="1")[0] != 0
    status, lines = make(checkout)
    assert status == 0
    assert lines[0] == "-m pip --version"


def test_every_package_that_is_asked_for_has_its_version():
    text = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    needs = re.search(r"^LABEL_NEEDS := (.*)$", text, re.MULTILINE)[1].split()
    asked = [*needs, "monailabel", "pydicom-seg", "dcmqi", "torch", "monai"]
    lines = (ROOT / "constraints-label.txt").read_text().splitlines()
    pinned = {plain(line.partition("==")[0]) for line in lines if "==" in line}
    assert {plain(name) for name in asked} - pinned == set()
    assert [line for line in lines if not line.startswith("#") and "==" not in line] == []


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
