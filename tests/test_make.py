"""`make venv` in a path with a space, with an interpreter that only notes what it is asked to do."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
INPUTS = ("constraints.txt", "apps/label/constraints-label.txt", "setup.cfg", "setup.py", "pyproject.toml")
STAND_IN = """#!/bin/sh
echo "$*" >> calls.txt
case "$*" in
  "-c"*) exit "${TOO_OLD:-0}" ;;
  "-m venv"*) mkdir -p "$4/bin" && cp "$0" "$4/bin/python" ;;
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
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
        os.utime(folder / name, (1, 1))
    (folder / "stand_in").write_text(STAND_IN)
    (folder / "stand_in").chmod(0o755)
    return folder


def make(folder: Path, *words: str, output: bool = False, **environ: str):
    (folder / "calls.txt").write_text("")
    command = ["make", "PYTHON=./stand_in", *words]
    # an outer make hands its flags and variables down
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS", "PYTEST_ARGS"))}
    done = subprocess.run(command, cwd=folder, env=keep | environ, capture_output=True, text=True)
    return done if output else done.returncode


def calls(folder: Path) -> list[str]:
    """What the interpreter was asked to do, but for the look at its version."""
    return [line for line in (folder / "calls.txt").read_text().splitlines() if not line.startswith("-c ")]


def test_first_call_makes_and_fills_the_environment(checkout):
    assert make(checkout, "venv") == 0
    assert calls(checkout) == ["-m venv --clear .venv", "-m pip install -c constraints.txt -e .[dev]"]


def test_wrong_interpreter_is_told_in_one_line_before_anything_is_made(checkout):
    for target in ("demo", "label"):
        done = make(checkout, target, TOO_OLD="1", output=True)
        assert done.returncode != 0
        assert "Python 3.11, 3.12 or 3.13 is needed, and ./stand_in is not one of them: make PYTHON=" in done.stdout
        assert calls(checkout) == []


def test_interrupted_call_goes_on_where_it_was(checkout):
    assert make(checkout, "venv", INSTALL_STATUS="1") != 0
    assert make(checkout, "venv") == 0
    assert calls(checkout) == ["-m pip --version", "-m pip install -c constraints.txt -e .[dev]"]


def test_second_call_does_nothing_until_a_dependency_changes(checkout):
    make(checkout, "venv")
    assert make(checkout, "venv") == 0
    assert calls(checkout) == []
    (checkout / "constraints.txt").write_text("numpy==2.4.6")
    os.utime(checkout / "constraints.txt", (2**32, 2**32))
    assert make(checkout, "venv") == 0
    assert "-m pip install -c constraints.txt -e .[dev]" in calls(checkout)


@pytest.mark.parametrize(
    ("target", "command"),
    [
        ("test", "-m pytest -m not slow"),
        ("test-slow", "-m pytest -m slow"),
        ("demo", "-m decathlete.demo"),
        ("bundles", "-m decathlete.planning.packaged"),
    ],
)
def test_target_sets_up_and_runs(checkout, target, command):
    assert make(checkout, target) == 0
    assert calls(checkout)[-1].strip() == command
    assert "-m venv --clear .venv" in calls(checkout)


def test_monai_label_gets_an_environment_of_its_own(checkout):
    assert make(checkout, "label") == 0
    assert calls(checkout)[-1] == "-m decathlete.cli serve --setup"
    (checkout / ".venv-label").mkdir()
    (checkout / ".venv-label" / ".installed").touch()  # as the set-up leaves it
    assert make(checkout, "label") == 0
    assert calls(checkout) == []
    os.utime(checkout / "apps" / "label" / "constraints-label.txt", (2**32, 2**32))
    assert make(checkout, "label") == 0
    assert calls(checkout) == ["-m decathlete.cli serve --setup"]
