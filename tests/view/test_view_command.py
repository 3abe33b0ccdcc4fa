"""`decathlete view`: its two ways, the words that it takes, and one line for those that it does not."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from decathlete.cli import main


@pytest.fixture
def scan(tmp_path):
    path = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(np.arange(720, dtype=np.float32).reshape(10, 12, 6) - 360, np.eye(4)), path)
    return str(path)


@pytest.fixture
def seen(monkeypatch):
    """What the sheet of a batch is asked for."""
    calls = []
    monkeypatch.setattr("decathlete.view.batch_montage", lambda *a, **k: calls.append((a, k)), raising=False)
    return calls


def status(*words):
    try:
        return main(words)
    except SystemExit as end:
        return int(end.code or 0)


@pytest.mark.parametrize("first", [True, False])
def test_film_of_a_file_is_made(scan, tmp_path, capsys, first):
    output = str(tmp_path / "a.gif")
    options = ["--output", output, "--axis", "coronal", "--window", "-160,240", "--slices", "3:6", "--size", "64"]
    assert status("view", *([scan, *options] if first else [*options, scan])) == 0
    assert capsys.readouterr().out == f"{output}\n"
    with Image.open(output) as opened:
        assert opened.n_frames == 4


def test_batch_takes_overrides_as_run_does(seen):
    words = ["--fold", "1", "--axis", "0", "--train::dataloader::batch_size=3", "--size", "99"]
    assert status("view", "--batch", "heart", "--output", "a.png", *words) == 0
    overrides = {"fold": 1, "train::dataloader::batch_size": 3, "axis": 0}
    assert seen == [(("heart", "a.png", overrides), {"size": 99})]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--output", "a.gif"], "expected one IMAGE, or --batch BUNDLE"),
        (["scan.nii", "other.nii", "--output", "a.gif"], "expected one IMAGE (2 given)"),
        (["scan.nii", "--batch", "heart", "--output", "a.png"], "not both ('scan.nii')"),
        (["scan.nii"], "required: --output"),
        (["scan.nii", "--output", "a.gif", "--lable", "b"], "Did you mean '--label'?"),
        (["scan.nii", "--output", "a.avi"], "expected a name that ends in .gif, .mp4, .png ('.avi')"),
        (["scan.nii", "--output", "a.gif", "--axis", "4"], "expected sagittal, coronal, axial, or 0, 1, 2"),
        (["scan.nii", "--output", "a.gif", "--window", "soft"], "expected two numbers, such as -160,240 ('soft')"),
        (["scan.nii", "--output", "a.gif", "--slices", "7"], "expected two slices, such as 20:60"),
        (["--batch", "hippocampus", "--output", "a.png", "--label", "x"], "'label'"),
        (["--batch", "hipocampus", "--output", "a.png"], "Did you mean 'hippocampus'"),
    ],
)
def test_wrong_use_is_one_line_with_status_2(words, text, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert status("view", *words) == 2
    message = capsys.readouterr().err
    assert text in message
    assert len(message.splitlines()) == 1
    assert not list(tmp_path.iterdir())
