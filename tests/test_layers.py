"""Who may know whom: each part of the package has a floor, read here from every import of every file."""

from __future__ import annotations

import ast
import configparser
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"apps": "decathlete", "transforms": "decathlete.transforms", "networks": "decathlete.networks"}
HEAVY = ("torch", "monai", "numpy", "scipy", "nibabel", "ignite", "matplotlib", "skimage", "itk")
LIGHT_MODULES = ("decathlete", "decathlete.cli", "decathlete.bundle", "decathlete.short_form", "decathlete.failures")

# From the ground up: a part imports from itself and from floors below, not even inside a function from elsewhere.
# A part is packages and modules below `decathlete`; a module named here has another place than its package.
FLOORS: list[dict[str, tuple[str, ...]]] = [
    {"ground": ("", "colours", "errors", "failures", "files", "lazy", "machine", "names", "progress")},
    {"process": ("quiet", "threads")},
    {
        "io": ("io", "dicom"),
        "networks": ("networks", "training.precision"),
        "compat": ("compat",),
    },
    {
        "transforms": ("transforms",),
        "distributed": ("distributed",),
    },
    {"bundle": ("bundle",)},
    {"tasks": ("data.tasks", "data.nfbs")},
    {"phantoms": ("phantoms",)},
    {"data": ("data",), "metrics": ("evaluation.metrics",)},
    {
        "evaluation": ("evaluation",),
        "drawing": ("drawing",),
    },
    {"training": ("training",), "inference": ("inference",)},
    {"report": ("report",), "view": ("view",), "planning": ("planning",), "explore": ("explore",)},
    {
        "check": ("check",),
        "evaluate": ("evaluation.folders",),
        "info": ("info",),
        "predict": ("inference.folders",),
        "promote": ("training.promotion",),
        "run": ("workflow",),
    },
    {"cross-validate": ("evaluation.cross_validation",), "label": ("label",)},  # made of other verbs
    {"words": ("cli", "demo", "short_form")},
]


def python_files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def imported(file: Path) -> set[str]:
    """Modules that a file imports anywhere, inside functions too; ``from a import b`` counts as ``a.b``."""
    names: set[str] = set()
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def is_under(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


class Import(NamedTuple):
    """One import of one of our modules by another."""

    importer: str
    imported: str
    where: str  # "top", "function" or "typing": executed with the module, with a function, or never

    def __str__(self) -> str:
        return f"{short(self.importer)} -> {short(self.imported)}"


def short(module: str) -> str:
    return module.removeprefix("decathlete").removeprefix(".") or "decathlete"


@cache
def modules() -> dict[str, Path]:
    """Our modules by their whole names."""
    found = {}
    for folder, package in FOLDERS.items():
        for file in python_files(folder):
            parts = file.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([package, *(parts[:-1] if parts[-1] == "__init__" else parts)])] = file
    return found


def imports_in(node: ast.AST, where: str = "top") -> Iterator[tuple[str, str, str]]:
    """Module, name (or "") and kind of each import below a node of a file's tree."""
    for child in ast.iter_child_nodes(node):
        kind = where
        if isinstance(child, ast.Import):
            yield from ((alias.name, "", kind) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from ((child.module or "", alias.name, kind) for alias in child.names)
        elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            kind = "function"
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            kind = "typing"
        yield from imports_in(child, kind)


@cache
def public_names(package: str) -> dict[str, str]:
    """Names that a package hands on, and the module of each: its ``__init__`` imports them, most for typing alone."""
    file = modules()[package]
    if file.name != "__init__.py":
        return {}
    return {name: module for module, name, _ in imports_in(parsed(file)) if name}


def home(module: str, name: str) -> str:
    """Module of ours that ``from module import name`` leads to; a module of others stays as it is."""
    if f"{module}.{name}" in modules():
        return f"{module}.{name}"
    handed_on = public_names(module).get(name) if module in modules() else None
    return home(handed_on, name) if handed_on else module


@cache
def all_imports() -> frozenset[Import]:
    """Every import between our modules; what an ``__init__`` hands on of its own package is none."""
    found = set()
    for importer, file in modules().items():
        for module, name, where in imports_in(parsed(file)):
            imported = home(module, name)
            handed_on = file.name == "__init__.py" and is_under(imported, importer)
            if imported in modules() and imported != importer and not handed_on:
                found.add(Import(importer, imported, where))
    return frozenset(found)


def place(module: str) -> tuple[int, str]:
    """Floor and part of a module, by the longest name in the table that covers it."""
    name = module.removeprefix("decathlete").removeprefix(".")
    covering = [
        (len(member), floor, part)
        for floor, parts in enumerate(FLOORS)
        for part, members in parts.items()
        for member in members
        if (is_under(name, member) if member else name == "")
    ]
    assert covering, f"{module} has no floor"
    _, floor, part = max(covering)
    return floor, part


def is_allowed(one: Import) -> bool:
    (floor, part), (other, other_part) = place(one.importer), place(one.imported)
    return other < floor or part == other_part


def circles() -> list[set[str]]:
    """Sets of modules that reach each other by imports."""
    arrows: dict[str, set[str]] = {module: set() for module in modules()}
    for one in all_imports():
        arrows[one.importer].add(one.imported)

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        queue = [*arrows[start]]
        while queue:
            module = queue.pop()
            if module not in seen:
                seen.add(module)
                queue += arrows[module]
        return seen

    reach = {module: reached(module) for module in arrows}
    found = []
    for module in sorted(arrows):
        if module in reach[module] and not any(module in one for one in found):
            found.append({other for other in reach[module] if module in reach[other]})
    return found


def test_every_module_has_one_floor():
    assert {place(module)[1] for module in modules()} == {part for parts in FLOORS for part in parts}
    members = [member for parts in FLOORS for names in parts.values() for member in names]
    assert len(members) == len(set(members))
    known = [short(module) for module in modules()]
    assert [m for m in members if m and m not in known] == []  # no place is kept for what is gone


def test_nothing_imports_from_its_own_floor_or_a_higher_one():
    wrong = {str(one): one.where for one in all_imports() if not is_allowed(one)}
    assert wrong == {}  # a function that needs something from above takes it as an argument, or moves up


def test_no_modules_import_each_other():
    assert [sorted(short(module) for module in one) for one in circles()] == []


def test_imports_inside_functions_and_for_typing_are_read_too():
    text = (
        "import a\nif TYPE_CHECKING:\n    import b.c\ndef f():\n    from d import e\n    def g():\n        import h\n"
    )
    assert [*imports_in(ast.parse(text))] == [
        ("a", "", "top"), ("b.c", "", "typing"), ("d", "e", "function"), ("h", "", "function")
    ]  # fmt: skip
    assert home("decathlete", "predict") == "decathlete.inference.folders"
    assert home("decathlete.data", "cases") == "decathlete.data.cases"
    assert home("decathlete", "__version__") == "decathlete"


@pytest.mark.parametrize("folder", [*FOLDERS, "bundles", "tests", "benchmarks"])
def test_nothing_imports_the_folders_by_their_own_names(folder):
    for file in python_files(folder):
        wrong = {name for name in imported(file) if name.partition(".")[0] in (*FOLDERS, "bundles")}
        assert not wrong, f"{file.relative_to(ROOT)} imports {sorted(wrong)}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_packages_import_by_whole_names(folder):
    for file in python_files(folder):
        tree = parsed(file)
        assert not [n.lineno for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level], file


def test_errors_know_nobody():
    assert [one for one in all_imports() if one.importer == "decathlete.errors"] == []


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_command_line_starts_without_heavy_imports(module):
    code = f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_scans_are_read_and_written_without_torch_and_monai():
    code = f"""import importlib, sys
for name in {[name for name in modules() if place(name)[1] == "io"]!r}: importlib.import_module(name)
print([m for m in {("torch", "monai", "ignite", "itk", "matplotlib", "skimage", "highdicom")!r} if m in sys.modules])"""
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


@pytest.mark.parametrize("words", [
    ["view", "{0}/imagesTr/a.nii.gz", "--label", "{0}/labelsTr/a.nii.gz", "--output", "{0}/a.png"],
    ["view", "{0}/imagesTr/a.nii.gz", "--output", "{0}/a.gif"],
    ["evaluate", "hippocampus", "--prediction", "{0}/labelsTr", "--label", "{0}/labelsTr", "--output", "{0}/scores"],
    ["data", "hippocampus", "--verify", "--output", "{0}/.."],
    ["info"],
    ["info", "hippocampus"],
])  # fmt: skip
def test_commands_without_a_network_load_neither_torch_nor_monai(words, tmp_path):
    folder = tmp_path / "Task04_Hippocampus"
    for part, dtype in (("imagesTr", np.int16), ("labelsTr", np.uint8)):
        (folder / part).mkdir(parents=True)
        voxels = np.arange(120).reshape(4, 5, 6) % 3
        nib.save(nib.Nifti1Image(voxels.astype(dtype), np.eye(4)), folder / part / "a.nii.gz")
    code = (
        f"import sys; from decathlete.cli import main\nstatus = main({[word.format(folder) for word in words]!r})\n"
        "print(status, [m for m in ('torch', 'monai', 'ignite') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr


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
