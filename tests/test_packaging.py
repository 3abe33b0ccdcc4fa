"""The package as pip installs it: wheel and editable, the short form with both, and nothing left after uninstall.

Everything is built from a copy of the sources, in a path with a space, and into environments that borrow the libraries
of the running one by links, so that nothing is downloaded.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PTH = "decathlete_short_form.pth"
FOLDERS = ("apps", "transforms", "networks", "bundles")
FILES = ("setup.py", "setup.cfg", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
BACKUP = "model.pt.bak-1"  # what a promotion leaves beside the weights
TRAIN = """
bundle_root: bundles/tiny
max_epochs: 3
training:
- "$print('trained', @max_epochs, @bundle_root, sep='|')"
failing: {_target_: decathlete.data.tasks.get_task, name: hipocampus}
run: "$@failing"
"""
MULTI_GPU = "training:\n- \"$print('rank', __import__('os').environ['RANK'], sep='|', flush=True)\"\n"


def call(*command: str | Path, cwd: Path | None = None, **environ: str) -> subprocess.CompletedProcess:
    keep = {k: v for k, v in os.environ.items() if k not in ("DECATHLETE_DATA", "PYTHONPATH")}
    keep |= {"OMP_NUM_THREADS": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", **environ}
    return subprocess.run(list(map(str, command)), cwd=cwd, env=keep, capture_output=True, text=True, timeout=300)


def pip(python: Path, *arguments: str | Path) -> None:
    done = call(sys.executable, "-m", "pip", "--python", python, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """A copy of what the build reads, without weights."""
    folder = tmp_path_factory.mktemp("copy") / "a checkout"
    folder.mkdir()
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.pt"))
    for name in FILES:
        shutil.copy(ROOT / name, folder)
    (folder / "bundles" / "hippocampus" / "models").mkdir(parents=True, exist_ok=True)
    for name in ("model.pt", BACKUP):
        (folder / "bundles" / "hippocampus" / "models" / name).write_bytes(b"weights")
    return folder


@pytest.fixture(scope="module")
def libraries(tmp_path_factory) -> Path:
    """Links to the installed libraries, without this project and without any line that Python runs at start."""
    folder = tmp_path_factory.mktemp("libraries")
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not re.match(r"decathlete|__editable__|.*\.pth$", entry.name):
            (folder / entry.name).symlink_to(entry)
    return folder


def new_environment(folder: Path, libraries: Path) -> Path:
    """Interpreter of a fresh environment that sees ``libraries``."""
    assert call(sys.executable, "-m", "venv", "--without-pip", folder).returncode == 0
    python = folder / "bin" / "python"
    site(python).joinpath("libraries.pth").write_text(f"{libraries}\n")
    return python


def site(python: Path) -> Path:
    return Path(call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip())


@pytest.fixture(scope="module")
def wheel(sources, tmp_path_factory) -> Path:
    """The built wheel."""
    folder = tmp_path_factory.mktemp("dist")
    done = call(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", folder, sources)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("decathlete-*.whl"))


@pytest.fixture(scope="module")
def python(wheel, libraries, tmp_path_factory) -> Path:
    """Interpreter of an environment with the wheel."""
    interpreter = new_environment(tmp_path_factory.mktemp("environment") / "with wheel", libraries)
    pip(interpreter, "install", "--no-deps", wheel)
    return interpreter


@pytest.fixture
def work(tmp_path) -> Path:
    """A working directory outside the checkout with the bundle ``bundles/tiny``."""
    configs = tmp_path / "a place" / "bundles" / "tiny" / "configs"
    configs.mkdir(parents=True)
    (configs / "train.yaml").write_text(TRAIN)
    (configs / "multi_gpu_train.yaml").write_text(MULTI_GPU)
    return tmp_path / "a place"


def test_wheel_holds_every_module_and_file_of_the_bundles(wheel, sources):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, target in {"apps": "", "transforms": "transforms/", "networks": "networks/"}.items():
        for file in (sources / folder).rglob("*"):
            if file.is_file():  # code, tables and templates
                assert f"decathlete/{target}{file.relative_to(sources / folder).as_posix()}" in names
    for file in (sources / "bundles").rglob("*"):
        if file.is_file() and file.name != BACKUP:
            assert f"decathlete/bundles/{file.relative_to(sources / 'bundles').as_posix()}" in names
    assert PTH in names
    assert not [name for name in names if name.startswith(("apps/", "tests/", "bundles/")) or name.endswith(BACKUP)]


def test_wheel_needs_ranges_and_not_the_pinned_versions(wheel):
    with zipfile.ZipFile(wheel) as file:
        metadata = file.read(next(n for n in file.namelist() if n.endswith("METADATA"))).decode()
    needs = [line for line in metadata.splitlines() if line.startswith("Requires-Dist: ")]
    assert needs
    assert not [line for line in needs if "==" in line.partition(";")[0]]


def test_wheel_says_which_pythons_it_is_for_and_links_to_no_file_of_the_checkout(wheel):
    with zipfile.ZipFile(wheel) as file:
        metadata = file.read(next(n for n in file.namelist() if n.endswith("METADATA"))).decode()
    headers, _, page = metadata.partition("\n\n")
    assert "Requires-Python: >=3.11" in headers
    assert re.findall(r"Python :: (3\.\d+)$", headers, re.MULTILINE) == ["3.11", "3.12", "3.13"]
    assert "License :: OSI Approved :: Apache Software License" in headers
    assert "# decathlete" in page
    assert [link for link in re.findall(r"\]\(([^)]*)\)", page) if not link.startswith(("http", "#"))] == []


def test_constraints_pin_every_direct_dependency_without_places_or_builds():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9a-z.]*", line)] == []
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines}
    section = (ROOT / "setup.cfg").read_text().partition("install_requires =")[2].partition("\n\n")[0]
    direct = {re.split(r"[<>=!~;\[ ]", line.strip())[0].lower() for line in section.splitlines() if line.strip()}
    assert direct - pinned == set()


def test_start_line_costs_other_programs_no_import(python):
    done = call(python, "-c", "import sys; print([m for m in sys.modules if m.startswith('decathlete')])", "monai")
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("end", [(), ("-m", "monai.bundle"), ("monai.bundle",)])
def test_config_of_another_program_is_never_touched(python, work, end):
    (work / "program.py").write_text("import sys; print(sys.argv)")
    words = ["run", "--config", "bundles/tiny", *end]
    assert call(python, "program.py", *words, cwd=work).stdout == f"{['program.py', *words]}\n"
    assert call(python, "-c", "import sys; print(sys.argv)", *words, cwd=work).stdout == f"{['-c', *words]}\n"
    assert call(python, "-m", "program", *words, cwd=work).stdout.endswith(f"{words}\n"[1:])


def test_unknown_bundle_ends_with_one_line_and_status_2(python, work):
    done = call(python, "-m", "monai.bundle", "run", "training", "--config", "bundles/hipocampus", cwd=work)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("decathlete: bundles/hipocampus: neither a bundle's folder nor the name")


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ("-m", "monai.bundle", "run", "training", "--config", "bundles/tiny", "--max_epochs", "7"),
        ("-um", "monai.bundle", "run", "--max_epochs=7", "--config=bundles/tiny", "--run_id=training"),
        ("-W", "ignore", "-mmonai.bundle", "run", "training", "--config", "./bundles/tiny", "--max_epochs", "7"),
    ],
)
def test_spellings_of_the_short_form_run_from_the_wheel(python, work, command):
    done = call(python, *command, cwd=work)
    assert done.returncode == 0, done.stderr
    assert f"trained|7|{work / 'bundles' / 'tiny'}" in done.stdout
    assert f"--config {'./' * ('./bundles/tiny' in command)}bundles/tiny is the folder" in done.stderr


@pytest.mark.slow
def test_children_of_torchrun_are_translated_and_the_parent_is_not(python, work):
    start = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    done = call(python, *start, "-m", "monai.bundle", "run", "training", "--config", "bundles/tiny", cwd=work)
    assert done.returncode == 0, done.stderr
    assert sorted(line for line in done.stdout.splitlines() if line.startswith("rank")) == ["rank|0", "rank|1"]
    assert done.stderr.count("is the folder") == 1


@pytest.mark.slow
def test_error_of_ours_ends_the_stock_command_as_one_line(python, work):
    done = call(python, "-m", "monai.bundle", "run", "--config", "bundles/tiny", cwd=work)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "Did you mean 'hippocampus'" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_packaged_bundle_runs_from_the_wheel_outside_the_checkout(python, work, hippocampus_data):
    few = work / "Task04_Hippocampus"
    for folder in ("imagesTr", "labelsTr"):
        (few / folder).mkdir(parents=True)
        for file in sorted((hippocampus_data / folder).glob("hippocampus_*.nii.gz"))[:12]:
            shutil.copy(file, few / folder)
    if (hippocampus_data / "dataset.json").is_file():
        shutil.copy(hippocampus_data / "dataset.json", few)
    command = ("-m", "monai.bundle", "run", "training", "--config", "bundles/hippocampus", "--max_epochs", "1")
    done = call(python, *command, "--output_dir", "out", cwd=work, DECATHLETE_DATA=str(work))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "is the packaged bundle" in done.stderr
    assert list((work / "out").rglob("*.pt"))


@pytest.mark.slow
def test_uninstall_of_the_wheel_leaves_nothing(wheel, libraries, tmp_path):
    python = new_environment(tmp_path / "env", libraries)
    before = sorted(p.relative_to(tmp_path) for p in (tmp_path / "env").rglob("*") if "__pycache__" not in p.parts)
    pip(python, "install", "--no-deps", "--no-compile", wheel)
    assert (site(python) / PTH).is_file()
    pip(python, "uninstall", "-y", "decathlete")
    after = sorted(p.relative_to(tmp_path) for p in (tmp_path / "env").rglob("*") if "__pycache__" not in p.parts)
    assert after == before


@pytest.mark.slow
def test_editable_install_has_the_short_form_and_leaves_nothing(sources, libraries, tmp_path):
    python = new_environment(tmp_path / "env", libraries)
    before = sorted(os.listdir(site(python)))
    pip(python, "install", "--no-deps", "--no-build-isolation", "-e", sources)
    assert (site(python) / PTH).is_file()
    done = call(python, "-c", "import decathlete.networks; print(decathlete.networks.__path__)", cwd=tmp_path)
    assert str(sources / "networks") in done.stdout
    done = call(python, "-m", "monai.bundle", "run", "--config", "bundles/hipocampus", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "bundles/hipocampus: neither" in done.stderr
    pip(python, "uninstall", "-y", "decathlete")
    assert sorted(name for name in os.listdir(site(python)) if name != "__pycache__") == before
