"""`decathlete predict --report`, from scans to the page."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import nibabel as nib
import numpy as np
import torch

from decathlete.cli import main


def predict(bundle, *words):
    return main(["predict", str(bundle), *map(str, words)])


def test_the_page_shows_volumes_and_how_far_networks_disagree(bundle, scan_file, tmp_path, threshold_weights):
    weights = [tmp_path / "a.pt", tmp_path / "b.pt"]
    for first, path in zip((0.2, 0.9), weights, strict=True):
        torch.save(threshold_weights(first=first), path)
    report, out = tmp_path / "report.html", tmp_path / "out"
    assert predict(bundle, scan_file, "--output", out, "--report", report, "--checkpoint", *weights) == 0
    page, label = report.read_text(), nib.load(out / "case_001.nii.gz")
    anterior = np.count_nonzero(np.asarray(label.dataobj) == 1) * np.prod(label.header.get_zooms()) / 1000
    assert f"<td>{anterior:.2f}</td>" in page
    assert float(re.search(r"disagreement in bits, ([\d.]+) per foreground voxel", page)[1]) > 0.05
    assert page.count("data:image/jpeg;base64") == 2
    assert f"weights: {weights[0]}, {weights[1]}" in page


def test_finished_and_failed_cases_are_on_the_page_too(bundle, scan_file, tmp_path):
    report, out = tmp_path / "report.html", tmp_path / "out"
    predict(bundle, scan_file, "--output", out)
    (scan_file.parent / "bad.nii.gz").write_bytes(b"no image")
    assert predict(bundle, scan_file.parent, "--output", out, "--report", report) == 1
    page = report.read_text()
    assert "case_001: prediction" in page
    assert "No prediction: " in page
    assert "Disagreement: not known" in page


def test_a_report_that_cannot_be_is_refused_before_the_work(bundle, scan_file, tmp_path, capsys):
    assert predict(bundle, scan_file, "--output", tmp_path / "out", "--report", tmp_path / "report.txt") == 2
    assert "ends in .html" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_several_processes_write_no_report(bundle, scan_file, tmp_path):
    words = [bundle, scan_file, "--output", tmp_path / "out", "--report", tmp_path / "report.html"]
    done = subprocess.run(
        [sys.executable, "-m", "decathlete.cli", "predict", *map(str, words)], stderr=subprocess.PIPE, text=True,
        check=False, env={**os.environ, "WORLD_SIZE": "2", "LOCAL_RANK": "0", "RANK": "0"},  # as torchrun sets them
    )  # fmt: skip
    assert done.returncode == 2
    assert "--report: only one process can write the page (2 of torchrun). Predict first, then repeat" in done.stderr
    assert not (tmp_path / "out").exists()


def test_one_process_of_a_slurm_step_writes_its_report(bundle, scan_file, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")  # as job scripts export it; no torchrun started this process
    assert predict(bundle, scan_file, "--output", tmp_path / "out", "--report", tmp_path / "report.html") == 0
    assert "case_001: prediction" in (tmp_path / "report.html").read_text()
