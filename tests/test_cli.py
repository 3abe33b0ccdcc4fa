"""The command's words, its exit statuses and its one-line errors."""

from __future__ import annotations

import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

from decathlete import __version__
from decathlete.cli import main, parse
from decathlete.errors import DataError

VERBS = ("data", "check", "run", "predict", "evaluate", "cross-validate", "promote", "new", "view", "info")


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
        (("data", "hippocampus", "--phantm", "3"), "Did you mean '--phantom'?"),
        (("evaluate", "hippocampus", "--pred", "x", "--label", "y"), "Did you mean '--prediction'?"),
        (("run", "trainig", "--config", "x"), "invalid choice: 'trainig'"),
        (("run", "training"), "required: --config"),
        (("run", "training", "--config", "hippocampus", "--minutes", "-1"), "--minutes: expected a number above 0"),
        (("cross-validate", "hippocampus", "--minutes", "abc"), "--minutes: expected a number above 0"),
        (("run", "training", "--config", "hippocampus", "--deadline"), "--deadline needs --minutes"),
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
    assert "Overrides must be written as --id value" in capsys.readouterr().err


def test_unforeseen_error_is_one_line_and_a_traceback_with_debug(capsys, monkeypatch):
    def fetch(*args, **kwargs):
        raise KeyError("spleen")

    monkeypatch.setattr("decathlete.data.fetch", fetch)
    assert status("data", "spleen") == 1
    assert capsys.readouterr().err.splitlines() == ["decathlete: KeyError: 'spleen'. Add --debug to see where"]
    with pytest.raises(KeyError):
        status("data", "spleen", "--debug")


def test_failed_work_is_one_line_with_status_1(capsys, monkeypatch):
    def fetch(*args, **kwargs):
        raise DataError("la_007", "must be finite", "NaN", "Fix the file")

    monkeypatch.setattr("decathlete.data.fetch", fetch)
    assert status("data", "heart") == 1
    assert capsys.readouterr().err == "decathlete: la_007: must be finite (NaN). Fix the file.\n"


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
    assert capsys.readouterr().err == "decathlete: interrupted; run the same command again to resume\n"


@pytest.mark.parametrize("value", ["0", "-1", "much"])
def test_memory_must_be_a_number_above_0(value, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["predict", "hippocampus", "scan.nii.gz", "--output", "out", "--memory", value])
    assert stop.value.code == 2
    assert "--memory: expected a number above 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ("B", "scan.nii.gz", "--output", "out", "--overlap", "0.25", "--checkpoint", "a.pt", "b.ckpt", "--tta"),
        ("B", "--overlap", "0.25", "scan.nii.gz", "--tta", "--output", "out", "--checkpoint", "a.pt", "b.ckpt"),
        ("--tta", "B", "--checkpoint", "a.pt", "b.ckpt", "scan.nii.gz", "--overlap=0.25", "--output=out"),
        ("--checkpoint", "a.pt", "b.ckpt", "B", "scan.nii.gz", "--output", "out", "--tta", "--overlap", "0.25"),
        ("--output", "out", "--checkpoint", "a.pt", "b.ckpt", "--tta", "--overlap", "0.25", "--", "B", "scan.nii.gz"),
    ],
)
def test_options_and_inputs_come_in_any_order(words):
    a = parse(["predict", *words])
    assert (a.bundle, a.input, a.output, a.checkpoint) == ("B", ["scan.nii.gz"], "out", ["a.pt", "b.ckpt"])
    assert (a.tta, a.overrides) == (True, {"overlap": 0.25})


def test_an_option_of_several_words_takes_no_input(tmp_path):
    run = tmp_path / "fold_0"
    run.mkdir()
    scans = tmp_path / "scans"
    scans.mkdir()
    words = ["predict", "B", "--output", "out", "--checkpoint", str(run), str(run), str(scans)]
    assert parse(words).checkpoint == [str(run)]  # a first word may be anything
    (run / "model_final.pt").touch()
    a = parse(words)
    assert (a.checkpoint, a.input) == ([str(run)] * 2, [str(scans)])
    a = parse(["new", "--data", "D", "--images", "t1_*", "t2_*", "brains", "--labels", "l_*"])
    assert (a.name, a.images) == ("brains", ["t1_*", "t2_*"])


def test_words_that_start_with_a_minus_are_values_and_inputs_where_they_stand_as_such():
    a = parse(["view", "--window", "-160,240", "--output", "-a.gif", "--", "-b.nii.gz"])
    assert (a.window, a.output, a.image) == ([-160.0, 240.0], "-a.gif", ["-b.nii.gz"])
    assert parse(["run", "training", "--config", "B", "--lr", "-1"]).overrides == {"lr": -1}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3), ("-0.5", -0.5), ("1e-3", 1e-3), ("true", True), ("null", None), ("[1, 2]", [1, 2]),
        ("{a: b}", {"a": "b"}), ("'5'", "5"), ("$1 # x", "$1 # x"), ("@a", "@a"), ("a: b", "a: b"), ("a #1", "a #1"),
        ("2024-01-01", "2024-01-01"), ("1:30", "1:30"), ("- a", "- a"), ("2024-99-99", "2024-99-99"), ("`", "`"),
        ("!!python/name:os.system", "!!python/name:os.system"),
    ],
)  # fmt: skip
def test_value_of_an_override_is_a_number_a_word_a_list_or_text_as_it_stands(text, value):
    found = parse(["run", "training", "--config", "B", f"--id={text}"]).overrides["id"]
    assert (found, type(found)) == (value, type(value))


def test_an_id_alone_is_true_and_the_word_behind_an_id_its_value():
    a = parse(["predict", "B", "scan.nii.gz", "--output", "out", "--amp", "--resume=false", "--spacing", "2"])
    assert a.overrides == {"amp": True, "resume": False, "spacing": 2}


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("data hippocampus --phantom -1", "--phantom: expected a whole number, 1 or more ('-1')"),
        ("data hippocampus --phantom 1.5", "--phantom: expected a whole number"),
        ("data hippocampus --phantom 1 --seed x", "--seed: expected a whole number, 0 or more"),
        ("run training --config hippocampus --fold -1", "--fold: expected the number of a fold"),
        ("run training --config hippocampus --fold first", "or 'all' ('first')"),
        ("run training --config hippocampus --gpus 0", "--gpus: expected a whole number, 1 or more"),
        ("run training --config hippocampus --max-restarts -1", "--max-restarts: expected a whole number, 0 or more"),
        ("run training --config hippocampus --lr [1,", "--lr: a bracket or quote is not closed"),
        (
            "run training --config hippocampus --max_epochs some",
            "max_epochs (command line): expected a number,",
        ),
        (
            "run training --config hippocampus --patch_size big",
            "patch_size (command line): expected numbers,",
        ),
        ("run training --config hippocampus --amp maybe", "amp (command line): expected true or false ('maybe'"),
        ("run training --config hippocampus --device gpu", "--device: expected a device such as cpu"),
        ("cross-validate hippocampus --folds a", "folds: expected numbers such as 0-4"),
        ("new x --data {} --modality X-ray", "--modality: expected CT or MRI ('X-ray')"),
        ("new x --data {} --memory x", "--memory: expected a number above 0"),
        ("serve --studies {} --port 99999", "--port: expected a whole number, from 1 to 65535"),
        ("view {} --output a.gif --window nan,1", "--window: expected two numbers"),
        ("view {} --output a.gif --size 3", "--size: expected a whole number, from 16 to 4096"),
        ("view {} --output a.gif --channel -1", "--channel: expected a whole number, 0 or more"),
        ("predict hippocampus {} --output o --overlap [1,", "--overlap: a bracket or quote is not closed"),
        ("predict hippocampus {} --output o --overlap much", "overlap (override): expected a number, such as 0.5"),
        ("predict hippocampus {} --output o --overlap 2", "overlap"),
        (
            "predict hippocampus {} --overlap --output o",
            "overlap (override): expected a number, such as 0.5 (true",
        ),
        ("predict hippocampus {} --output o --amp {}", "Write --amp=true"),
        ("predict hippocampus {} --output o --device gpu", "expected a device such as cpu"),
        ("predict hippocampus --amp {} --output o", "required: INPUT"),
    ],
)
def test_wrong_value_is_one_line_with_status_2(words, text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DECATHLETE_DATA", raising=False)
    for name in ("imagesTr", "data/Task04_Hippocampus/imagesTr"):
        (tmp_path / name).mkdir(parents=True)
    scan = tmp_path / "imagesTr" / "a.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((8, 8, 8), np.float32), np.eye(4)), scan)
    target = tmp_path if " --data" in words or "--studies" in words else scan
    assert status(*words.replace("{}", str(target)).split()) == 2
    message = capsys.readouterr().err
    assert text in message
    assert len(message.splitlines()) == 1
