"""Packages whose public names are imported when they are asked for."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from importlib import import_module

import pytest

PACKAGES = ["", ".bundle", ".data", ".dicom", ".evaluation", ".inference", ".training", ".transforms", ".view"]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_there(package):
    module = import_module(f"decathlete{package}")
    assert [name for name in module.__all__ if getattr(module, name, None) is None] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_bears_the_name_of_a_public_one(package):
    module = import_module(f"decathlete{package}")
    assert {info.name for info in pkgutil.iter_modules(module.__path__)} & set(module.__all__) == set()


def test_unknown_name_is_told_as_by_any_module():
    with pytest.raises(ImportError, match="cannot import name 'nope'"):
        exec("from decathlete.data import nope")
    with pytest.raises(AttributeError, match=r"module 'decathlete\.data' has no attribute 'nope'"):
        _ = import_module("decathlete.data").nope


@pytest.mark.slow
@pytest.mark.parametrize(("declare", "found"), [("predict_only()", []), ("pass", ["ignite"])])
def test_a_process_that_only_predicts_starts_without_what_trainings_need(declare, found):
    code = (
        "import sys\nfrom decathlete.lazy import import_monai, predict_only\n"
        f"{declare}\nimport_monai()\nimport decathlete.inference.predictor, decathlete.report.predictions\n"
        "print([name for name in ('ignite', 'mlflow') if name in sys.modules][:1])\n"
        "import ignite\nprint(ignite.__name__)"  # not hidden for ever
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True)
    assert done.stdout.splitlines() == [str(found), "ignite"]
