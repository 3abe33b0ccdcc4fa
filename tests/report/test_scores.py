"""`decathlete evaluate --report`: one HTML file, from real label maps."""

from __future__ import annotations

import base64
import io
import re

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from decathlete.cli import main

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, AFFINE), path)


@pytest.fixture
def data(tmp_path):
    """A bundle of two classes, and three cases of which ``c<n>`` is predicted n voxels off."""
    (tmp_path / "boxes" / "configs").mkdir(parents=True)
    (tmp_path / "boxes" / "configs" / "inference.yaml").write_text("labels: {background: 0, <head>: 1, tail: 2}\n")
    for n in range(3):
        label = np.zeros((16, 14, 12), np.uint8)
        label[2:8, 3:9, 2:8], label[9:13, 3:9, 2:8] = 1, 2
        save(tmp_path / "labelsTr" / f"c{n}.nii.gz", label)
        save(tmp_path / "imagesTr" / f"c{n}.nii.gz", label * 50 + np.random.default_rng(n).normal(size=label.shape))
        save(tmp_path / "pred" / f"c{n}.nii.gz", np.roll(label, n, axis=2))
    return tmp_path


def evaluate(data, *words):
    command = ["evaluate", str(data / "boxes"), "--prediction", str(data / "pred"), "--label", str(data / "labelsTr")]
    return main([*command, *map(str, words)])


def pictures(page):
    for code in re.findall(r"data:image/jpeg;base64,([^']+)'", page):
        yield np.asarray(Image.open(io.BytesIO(base64.b64decode(code))).convert("RGB")).astype(int)


def test_the_page_holds_scores_points_pictures_and_provenance(data):
    assert evaluate(data, "--report", data / "report.html") == 0
    page = (data / "report.html").read_text()
    assert "3 cases scored" in page
    assert "<td>&lt;head&gt;</td>" in page
    assert page.count("<circle") == 6  # a point a case and class
    assert "c2: 0.667" in page  # of 6 slices, 4 overlap
    assert page.index("c2: Dice") < page.index("c1: Dice") < page.index("c0: Dice 1.000")  # worst first
    for words in ("SHA-256 of predictions: ", "nibabel ", "$ ", "Not for clinical use"):
        assert words in page


def test_pictures_show_scan_and_both_classes(data):
    evaluate(data, "--report", data / "report.html")
    drawn = list(pictures((data / "report.html").read_text()))
    assert len(drawn) == 3
    for picture in drawn:
        blue = (picture[..., 2] > picture[..., 0] + 60).sum()
        orange = (picture[..., 0] > picture[..., 2] + 60).sum()
        assert min(blue, orange) > 1000


def test_the_page_asks_for_nothing_from_elsewhere(data):
    evaluate(data, "--report", data / "report.html")
    page = (data / "report.html").read_text()
    assert "default-src 'none'" in page
    assert not re.search(r"(src|href)=['\"](?!data:)", page)
    assert "http" not in page.replace("http-equiv", "")


def test_without_scans_the_outlines_stand_alone(data, tmp_path):
    (data / "imagesTr").rename(data / "scans")
    evaluate(data, "--report", data / "report.html")
    page = (data / "report.html").read_text()
    assert "Pass --image DIR to show them" in page
    assert len(list(pictures(page))) == 3
    evaluate(data, "--report", data / "report.html", "--image", data / "scans")
    assert "Pass --image DIR to show them" not in (data / "report.html").read_text()


def test_a_scan_that_cannot_be_drawn_is_reported_in_its_place(data):
    (data / "imagesTr" / "c1.nii.gz").write_bytes(b"no image")
    assert evaluate(data, "--report", data / "report.html") == 0
    page = (data / "report.html").read_text()
    assert "c1: no picture" in page
    assert len(list(pictures(page))) == 2


@pytest.mark.parametrize("name", ["report.pdf", "labelsTr"])
def test_a_report_that_is_no_html_file_is_refused_at_once(data, capsys, name):
    assert evaluate(data, "--report", data / name) == 2
    assert "expected a file name that ends in .html" in capsys.readouterr().err
    assert not (data / "pred" / "metrics.csv").exists()
