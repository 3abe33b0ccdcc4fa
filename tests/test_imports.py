"""Importing our modules changes nothing of the process that another part of it could notice."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"apps": "decathlete", "transforms": "decathlete.transforms", "networks": "decathlete.networks"}

# what others import stands before the first look: their settings are not ours
LOOK = """
import importlib, json, logging, multiprocessing, os, signal, sys, warnings
others, ours = json.load(sys.stdin)
for name in others:
    try:
        importlib.import_module(name)
    except Exception:
        pass  # it is no module, or none that is installed here

def settings():
    found = {
        "warnings.filters": [repr(f) for f in warnings.filters],
        "warnings.showwarning": repr(warnings.showwarning),
        "os.environ": dict(os.environ),
        "working folder": os.getcwd(),
        "signals": {str(s): repr(signal.getsignal(s)) for s in signal.valid_signals()},
        "sys": [repr(sys.excepthook), repr(sys.unraisablehook), sys.getrecursionlimit(), list(sys.path)],
        "start method": multiprocessing.get_start_method(allow_none=True),
    }
    umask = os.umask(0)
    os.umask(umask)
    found["umask"] = umask
    loggers = {"root": logging.getLogger(), **logging.Logger.manager.loggerDict}
    for name, log in loggers.items():
        if isinstance(log, logging.Logger) and name.partition(".")[0] != "decathlete":
            shown = [log.level, log.disabled, log.propagate, len(log.handlers), len(log.filters)]
            if shown != [0, False, True, 0, 0]:
                found[f"log {name}"] = shown
    if "pydicom" in sys.modules:
        import pydicom.config
        for name, value in vars(pydicom.config).items():
            if isinstance(value, (bool, int, float, str, type(None), list, tuple)) and not name.startswith("__"):
                found[f"pydicom.config.{name}"] = repr(value)
        found["pydicom.config.settings"] = repr(sorted(vars(pydicom.config.settings).items(), key=str))
    if "numpy" in sys.modules:
        import numpy
        found["numpy"] = [repr(numpy.geterr()), repr(numpy.get_printoptions())]
    if "torch" in sys.modules:
        import torch
        found["torch"] = [
            torch.get_num_threads(), torch.is_grad_enabled(), repr(torch.get_default_dtype()),
            torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled(),
            torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic, torch.initial_seed(),
        ]
    if "matplotlib" in sys.modules:
        import matplotlib
        found["matplotlib"] = repr(sorted(matplotlib.rcParams.items(), key=str))
    return found

changed, missing, before = {}, [], settings()
for name in ours:
    try:
        importlib.import_module(name)
    except ImportError as error:
        missing.append(f"{name}: {error}")
    after = settings()
    for key in sorted(set(before) | set(after)):
        if before.get(key) != after.get(key):
            changed[f"{name}: {key}"] = [repr(before.get(key))[:500], repr(after.get(key))[:500]]
    before = after
print(json.dumps([changed, missing]))
"""


def our_modules() -> dict[str, Path]:
    """Name of each module of ours to its file, packages before what is in them."""
    found = {}
    for folder, package in FOLDERS.items():
        for file in (ROOT / folder).rglob("*.py"):
            parts = file.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([package, *(p for p in parts if p != "__init__")])] = file
    return dict(sorted(found.items()))


def other_modules(files: list[Path]) -> list[str]:
    """What the files import of others anywhere, and what may be a module of it."""
    names: set[str] = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.update([node.module, *(f"{node.module}.{alias.name}" for alias in node.names)])
    return sorted(name for name in names if name.partition(".")[0] not in ("decathlete", "__future__"))


@pytest.mark.slow
def test_importing_any_module_changes_no_setting_of_the_process():
    modules = our_modules()
    words = json.dumps([other_modules(list(modules.values())), list(modules)])
    # by stdin: a command line that names monai.bundle has our package loaded at start
    done = subprocess.run([sys.executable, "-c", LOOK], input=words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    changed, missing = json.loads(done.stdout.splitlines()[-1])
    assert changed == {}
    assert [line for line in missing if not line.startswith("decathlete.label.")] == []  # it needs MONAI Label
