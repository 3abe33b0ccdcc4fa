"""Every page does what it says: its commands parse, and run one after the other; what it names is there."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import pytest

from decathlete.cli import parse
from decathlete.data import fetch, make_phantoms

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
}
NOT_RUN = {  # how a command begins, or a word in it: why it is not run here
    "make ": "makes environments and runs these tests",
    "pip install": "installs what is there when tests run",
    "tensorboard": "a server; tests/training/test_handlers.py asks one",
    "decathlete serve": "a server; tests/label ask it",
    "monailabel ": "MONAI Label's own app; tests/label/test_stock_app.py",
    "monaibundle": "MONAI Label's own app; tests/label/test_stock_app.py",
    "torchrun": "tests/training/test_many_gpus.py",
    "--gpus": "tests/training/test_many_gpus.py",
    "srun": "a cluster",
    "scontrol": "a cluster",
    "/archive": "a cluster's disk",
    "set -euo pipefail": "a cluster's script",
    "export ": "a cluster's script",
    "cuda": "a GPU",
    "CUDA": "a GPU",
    "spleen": "a network for a GPU; tests/bundles/test_contract.py",
    "python benchmarks/": "measures for an hour",
}
SHORTER = (  # what makes a command one of seconds, on phantoms
    ("SCD0000301", "PHANTOM05"),
    (r"--phantom \d+", "--phantom 5"),
    (r"--minutes \S+", ""),
    (r"^(.*(?:run training|cross-validate) (?!.*--max_epochs).*?)$", r"\1 --max_epochs 1"),
    (r"(cross-validate \S+)", r"\1 --folds 4"),
    (r"(--config lung\b)", r"\1 --slice_size '[64, 64]' --patch_size '[64, 64]' --roi_size '[64, 64]'"),
    (r"(--config heart\b)", r"\1 --patch_size '[96, 96]' --roi_size '[96, 96]'"),
    (r"(--config nfbs\b)", r"\1 --spacing '[4, 4, 4]' --head_size '[48, 64, 80]' --patch_size '[48, 64, 80]'"),
)


def commands(page: str) -> list[str]:
    """The shell commands of a page, one a line."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGES[page], re.DOTALL)
    lines = (re.sub(r"\s+#\s.*$", "", line).strip() for b in blocks for line in b.replace("\\\n", " ").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def is_run(command: str) -> bool:
    return not any(word in command for word in NOT_RUN)


EVERY = [(page, command) for page in PAGES for command in commands(page)]


@pytest.mark.parametrize("command", sorted({c for _, c in EVERY if c.startswith("decathlete ")}))
def test_the_command_line_knows_every_command(command):
    arguments = parse(shlex.split(command)[1:])
    assert not arguments.overrides or arguments.verb in ("run", "cross-validate", "view")
    assert arguments.function


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CONTRIBUTING.md"])  # that tells of any bundle's
def test_files_that_a_page_names_are_there(page):
    named = re.findall(r"`((?:docs|tests|apps|transforms|networks|bundles|benchmarks)/[\w./]+\.\w+)`", PAGES[page])
    named += [link for link in re.findall(r"\]\(([^)#]+)\)", PAGES[page]) if "://" not in link]
    for name in named:
        if "/my_" in name or name == "docs/README.md":  # a reader's own bundle, and its card
            continue
        places = [ROOT / name, (ROOT / page).parent / name]
        assert any(place.exists() for place in places), name


@pytest.mark.parametrize(
    "text", re.findall(r"^\| (?:a scan )?`([^`]+)` ", PAGES["docs/troubleshooting.md"], re.MULTILINE)
)
def test_messages_that_are_explained_exist(text):
    sources = (
        p.read_text(encoding="utf-8")
        for part in ("apps", "transforms", "networks")
        for p in (ROOT / part).rglob("*")
        if p.suffix in (".py", ".html")
    )
    assert any(text in source for source in sources)


@pytest.fixture
def room(tmp_path, monkeypatch) -> Path:
    """A folder like a fresh clone's root, with a scan, and without any data set."""
    shutil.copytree(ROOT / "bundles", tmp_path / "bundles")
    drawn = make_phantoms("hippocampus", 2, tmp_path / "drawn")
    (tmp_path / "scans").mkdir()
    image = next((drawn / "imagesTr").glob("*.nii.gz"))
    for target in ("scan.nii.gz", "scans/one.nii.gz"):
        shutil.copy(image, tmp_path / target)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(is_run(c) for c in commands(page))])
def test_a_pages_commands_run_one_after_the_other(room, page):
    if page in ("README.md", "docs/report.md", "docs/gpu.md"):  # the page begins after the download
        fetch("hippocampus", room / "data", phantom=5)
    if page == "docs/report.md":
        shutil.copytree(room / "data/Task04_Hippocampus/labelsTr", room / "predictions")
    environment = {k: v for k, v in os.environ.items() if k != "DECATHLETE_DATA"}
    environment |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    environment |= {"DECATHLETE_CACHE": str(room / "cache")}
    for command in filter(is_run, commands(page)):
        for pattern, short in SHORTER:
            command = re.sub(pattern, short, command)
        done = subprocess.run(["bash", "-ec", command], cwd=room, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}"
    for output in re.findall(r"--output (\S+\.(?:png|gif|html))", "\n".join(commands(page))):
        assert (room / output).stat().st_size > 1000
    for folder in ("predictions", "brains"):
        for label in (room / folder).glob("*.nii.gz"):
            assert nib.load(label).shape


def test_snippets_of_python_are_python():
    for page, text in PAGES.items():
        for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            compile(block, page, "exec")
