"""Messages of others are switched off by programs, and by no import."""

from __future__ import annotations

import subprocess
import sys

LOGGERS = ("monai.data.nvimgcodec_pydicom_plugin", "matplotlib")
STATE = f"str((warnings.filters, [logging.getLogger(n).level for n in {LOGGERS}], dict(os.environ)))"


def output(code: str) -> list[str]:
    command = [sys.executable, "-c", f"import logging, os, warnings\n{code}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def test_import_changes_no_logger_or_filter_and_of_the_environment_only_how_threads_wait():
    modules = "decathlete, decathlete.cli, decathlete.short_form, decathlete.failures, decathlete.bundle"
    code = f"os.environ['OMP_WAIT_POLICY'] = 'passive'\nbefore = {STATE}\nimport {modules}\nprint(before == {STATE})"
    assert output(f"os.environ['OMP_NUM_THREADS'] = '1'\n{code}") == ["True"]


def test_command_line_is_quiet():
    code = "from decathlete.cli import main\nmain(['data', 'hipocampus'])\nprint(logging.getLogger('matplotlib').level)"
    assert output(code) == ["40"]
