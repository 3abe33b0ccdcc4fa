"""How torch's threads wait is decided before torch is loaded, by what runs beside, and never against the user."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from decathlete import threads
from decathlete.threads import prepare_threads, share_threads

NAMES = (*threads.WAITING, threads.NUMBER)


def in_process(code: str, **environ: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in NAMES} | environ
    command = [sys.executable, "-c", f"import os, sys\n{code}\nprint([n for n in {NAMES} if n in os.environ])"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout.strip()


def test_beside_other_programs_threads_wait_without_spinning():
    environ: dict[str, str] = {}
    prepare_threads(environ, running=1)
    assert environ == {"OMP_WAIT_POLICY": "passive"}


def test_on_an_idle_machine_threads_spin_but_not_for_long():
    environ: dict[str, str] = {}
    prepare_threads(environ, running=0)
    assert list(environ) == ["GOMP_SPINCOUNT"]
    assert int(environ["GOMP_SPINCOUNT"]) < 100_000  # libgomp's own is 300,000


@pytest.mark.parametrize("name", threads.WAITING)
@pytest.mark.parametrize("running", [0, 3])
def test_what_the_user_has_set_stays(name, running):
    environ = {name: "1", "OMP_NUM_THREADS": "3"}
    prepare_threads(environ, running)
    assert environ == {name: "1", "OMP_NUM_THREADS": "3"}


def test_threads_are_as_many_as_the_cores_that_a_container_allows(monkeypatch):
    monkeypatch.setattr(threads, "cores", lambda: 2)
    monkeypatch.setattr(threads, "affinity_cores", lambda: 8)
    monkeypatch.setattr(threads, "_set_here", set())
    environ = {"OMP_WAIT_POLICY": "active"}
    prepare_threads(environ)
    assert environ["OMP_NUM_THREADS"] == "2"


def test_processes_share_the_cores_unless_the_user_has_set_a_number(monkeypatch):
    monkeypatch.setattr(threads, "cores", lambda: 8)
    monkeypatch.setattr(threads, "_set_here", set())
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    share_threads(2)
    assert os.environ["OMP_NUM_THREADS"] == "3"
    monkeypatch.setattr(threads, "_set_here", {"OMP_NUM_THREADS"})  # a container's limit, which is for all of them
    share_threads(2)
    assert os.environ["OMP_NUM_THREADS"] == "4"
    share_threads(16)
    assert os.environ["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize(
    "module", ["decathlete", "decathlete.cli", "decathlete.workflow", "decathlete.short_form", "decathlete.demo"]
)
def test_importing_us_decides_before_torch_is_loaded(module):
    code = (
        "import importlib.abc\n"
        "class Stop(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'torch':\n"
        f"            print([n for n in {NAMES} if n in os.environ]); os._exit(0)\n"
        f"sys.meta_path.insert(0, Stop())\nimport {module}"
    )
    assert in_process(code) in ("['OMP_WAIT_POLICY']", "['GOMP_SPINCOUNT']")


def test_nothing_is_set_once_torch_is_loaded():
    assert in_process("sys.modules['torch'] = sys\nimport decathlete") == "[]"
