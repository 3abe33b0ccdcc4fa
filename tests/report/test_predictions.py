"""`decathlete predict --report`: one HTML file about predictions that nobody has checked."""

from __future__ import annotations

import re

import numpy as np
import pytest

from decathlete.report import PredictedCase, write_prediction_page
from decathlete.report.predictions import MAX_PICTURES


def case(name, disagreement=None, unlike="", drawn=True):
    return PredictedCase(name, {"spleen": 12.5}, disagreement, 1.25, unlike, [(b"jpeg", f"{name}: prediction")] * drawn)


def test_pictures_begin_with_what_is_odd(tmp_path):
    cases = [case("calm", 0.01), case("torn", 0.4), case("strange", 0.02, unlike="darker"), case("empty", np.nan)]
    page = write_prediction_page(tmp_path / "p.html", "spleen", cases).read_text()
    order = re.findall(r"<figcaption>(\w+): prediction", page)
    assert order == ["strange", "empty", "torn", "calm"]
    assert "strange looks unlike the training scans: darker" in page
    assert page.count("<td>1.25</td>") == 3
    assert "<td>1.25, unlike them</td>" in page
    assert "Median here 0.0200, highest 0.4000" in page


def test_volumes_and_failures_are_reported(tmp_path):
    page = write_prediction_page(
        tmp_path / "p.html", "spleen", [case("a")], {"b": "b.nii.gz: a <bad> file"}
    ).read_text()
    assert "<td>12.50</td>" in page
    assert "b.nii.gz: a &lt;bad&gt; file" in page
    assert "Disagreement: not known" in page
    assert "Not for clinical use" in page


def test_the_least_odd_pictures_give_way(tmp_path):
    cases = [case(f"c{n}", disagreement=n / 100) for n in range(1, MAX_PICTURES + 1)]
    assert not case("calmer", 0.001).is_worth_drawing(cases)
    assert case("torn", 0.9).is_worth_drawing(cases)
    assert [c.case for c in cases if not c.pictures] == ["c1"]
    assert case("another", 0.0).is_worth_drawing(cases)


def test_pictures_show_prediction_and_disagreement():
    image = np.random.default_rng(0).normal(size=(20, 24, 16)).astype(np.float32)
    label = np.zeros(image.shape, np.uint8)
    label[5:12, 6:14, 4:9] = 1
    found = PredictedCase("a", {"spleen": 1.0}, 0.1)
    found.draw(image, label, np.diag([-1.0, 1, 2, 1]), {"spleen": 1}, np.where(label, 0.5, 0))
    (first, _), (second, words) = found.pictures
    assert first[:3] == second[:3] == b"\xff\xd8\xff"
    assert words == "a: disagreement in bits, 0.1000 per foreground voxel"


@pytest.mark.parametrize("shape", [(20, 24, 1), (20, 24, 6, 2)])
def test_single_slices_and_several_channels_are_drawn(shape):
    found = PredictedCase("a", {})
    found.draw(np.ones(shape, np.float32), np.zeros(shape[:3], np.uint8), np.eye(4), {"x": 1}, np.zeros(shape[:3]))
    assert len(found.pictures) == 2
