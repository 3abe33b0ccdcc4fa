"""Who may know whom, read from the imports."""

from __future__ import annotations

import ast
import configparser
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"apps": "decathlete", "transforms": "decathlete.transforms", "networks": "decathlete.networks"}
SHARED = ("decathlete.errors", "decathlete.files")
HEAVY = ("torch", "monai", "numpy", "scipy", "nibabel", "ignite", "matplotlib", "skimage", "itk")
LIGHT_MODULES = ("decathlete", "decathlete.cli", "decathlete.bundle", "decathlete.short_form", "decathlete.failures")


def python_files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imported(file: Path) -> set[str]:
    """Modules that a file imports anywhere, inside functions too; ``from a import b`` counts as ``a.b``."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def is_under(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize("folder", ["transforms", "networks"])
def test_transforms_and_networks_know_only_themselves_and_the_errors(folder):
    allowed = (*SHARED, FOLDERS[folder])
    for file in python_files(folder):
        ours = {name for name in imported(file) if is_under(name, "decathlete")}
        strangers = {name for name in ours if not any(is_under(name, package) for package in allowed)}
        assert not strangers, f"{file.relative_to(ROOT)} imports {sorted(strangers)}"


@pytest.mark.parametrize("folder", [*FOLDERS, "bundles", "tests", "benchmarks"])
def test_nothing_imports_the_folders_by_their_own_names(folder):
    for file in python_files(folder):
        wrong = {name for name in imported(file) if name.partition(".")[0] in (*FOLDERS, "bundles")}
        assert not wrong, f"{file.relative_to(ROOT)} imports {sorted(wrong)}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_packages_import_by_whole_names(folder):
    for file in python_files(folder):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        assert not [n.lineno for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level], file


def test_errors_know_nobody():
    assert not {name for name in imported(ROOT / "apps" / "errors.py") if is_under(name, "decathlete")}


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_command_line_starts_without_heavy_imports(module):
    code = f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from decathlete.cli import main\n"
        "try: main(['--help'])\n"
        f"except SystemExit: print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_folder_of_code_is_a_package_of_setup_cfg():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    there = {
        ".".join([name, *file.parent.relative_to(ROOT / folder).parts])
        for folder, name in FOLDERS.items()
        for file in (ROOT / folder).rglob("__init__.py")
    }
    assert there - listed == set()
    assert listed - there == {"decathlete.bundles"}
