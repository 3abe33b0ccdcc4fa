"""The command's words, its exit statuses and its one-line errors."""

from __future__ import annotations

import subprocess
import sys

import pytest

from decathlete import __version__
from decathlete.cli import main
from decathlete.errors import DataError

VERBS = ("data", "check", "run", "predict", "evaluate", "cross-validate", "promote", "new", "view")


def status(*words: str) -> int:
    """Exit status of the command, in-process."""
    try:
        return main(words)
    except SystemExit as end:
        return int(end.code or 0)


def test_help_lists_every_verb(capsys):
    assert status("--help") == 0
    text = capsys.readouterr().out
    assert [verb for verb in VERBS if f"\n    {verb}" not in text] == []


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb, capsys):
    assert status(verb, "--help") == 0
    assert f"usage: decathlete {verb}" in capsys.readouterr().out


def test_version_is_printed(capsys):
    assert status("--version") == 0
    assert capsys.readouterr().out == f"decathlete {__version__}\n"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ((), "required: VERB"),
        (("dat",), "invalid choice: 'dat'"),
        (("data",), "required: task"),
        (("data", "hippocampus", "--verbose"), "unknown argument '--verbose'"),
        (("data", "hippocampus", "--phantm", "3"), "did you mean '--phantom'?"),
        (("evaluate", "hippocampus", "--pred", "x", "--label", "y"), "required: --prediction"),
        (("run", "trainig", "--config", "x"), "invalid choice: 'trainig'"),
        (("run", "training"), "required: --config"),
        (("run", "training", "--config", "hippocampus", "--minutes", "-1"), "--minutes: must be a number above 0"),
        (("cross-validate", "hippocampus", "--minutes", "abc"), "--minutes: must be a number above 0"),
    ],
)
def test_wrong_use_ends_with_status_2(words, text, capsys):
    assert status(*words) == 2
    message = capsys.readouterr().err
    assert text in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    "words",
    [("data", "hipocampus", "--phantom", "1"), ("run", "training", "--config", "nowhere/at_all")],
)
def test_unknown_name_is_one_line_with_status_2(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert status(*words) == 2
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1
    assert captured.err.startswith("decathlete: ")


def test_word_without_an_id_is_refused(capsys):
    assert status("run", "training", "--config", "hippocampus", "--fold", "0", "7") == 2
    assert "spelt --id value" in capsys.readouterr().err


def test_unforeseen_error_is_one_line_and_a_traceback_with_debug(capsys, monkeypatch):
    def fetch(*args, **kwargs):
        raise KeyError("spleen")

    monkeypatch.setattr("decathlete.data.fetch", fetch)
    assert status("data", "spleen") == 1
    assert capsys.readouterr().err.splitlines() == [
        "decathlete: KeyError: 'spleen'. The same command with --debug shows where"
    ]
    with pytest.raises(KeyError):
        status("data", "spleen", "--debug")


def test_failed_work_is_one_line_with_status_1(capsys, monkeypatch):
    def fetch(*args, **kwargs):
        raise DataError("la_007", "must be finite", "NaN", "Fix the file")

    monkeypatch.setattr("decathlete.data.fetch", fetch)
    assert status("data", "heart") == 1
    assert capsys.readouterr().err == "decathlete: la_007: must be finite. found NaN. Fix the file.\n"


def test_debug_shows_the_traceback():
    command = [sys.executable, "-m", "decathlete.cli", "data", "hipocampus", "--phantom", "1", "--debug"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert "Traceback (most recent call last)" in done.stderr
    assert "UsageError: hipocampus" in done.stderr


def test_interrupt_is_said_without_a_traceback(capsys, monkeypatch):
    def fetch(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("decathlete.data.fetch", fetch)
    assert status("data", "heart") == 130
    assert capsys.readouterr().err == "decathlete: interrupted; the same command goes on\n"


@pytest.mark.parametrize("value", ["0", "-1", "much"])
def test_memory_must_be_a_number_above_0(value, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["predict", "hippocampus", "scan.nii.gz", "--output", "out", "--memory", value])
    assert stop.value.code == 2
    assert "--memory: must be a number above 0" in capsys.readouterr().err
