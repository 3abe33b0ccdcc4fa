from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from decathlete.cli import main
from decathlete.data import index_sunnybrook, make_sunnybrook_phantoms
from decathlete.errors import DataError
from decathlete.explore import explore_sunnybrook
from decathlete.explore.results import BEST, interval
from decathlete.explore.study import contour_steps, dependence, read_pair, two_samples


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return make_sunnybrook_phantoms(2, tmp_path_factory.mktemp("data"), size=96, slices=2, phases=2)


@pytest.fixture(scope="module")
def results(made, tmp_path_factory) -> Path:
    return explore_sunnybrook(made, tmp_path_factory.mktemp("study"), progress=False).parent


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as text:
        return list(csv.DictReader(text))


def test_page_tables_and_pictures_are_there(results):
    names = {str(p.relative_to(results)) for p in results.rglob("*") if p.is_file()}
    tables = {"scores.csv", "pairs.csv", "shares.csv", "dependence.csv", "summary.json", "index.html"}
    pictures = {"thresholds.png", "shares.png", "sizes.png", "origin.png"}
    pairs = {f"pairs/PHANTOM0{p}_000{n}.png" for p in (1, 2) for n in (2, 4)}
    assert names == tables | pictures | pairs
    page = (results / "index.html").read_text()
    assert all(f"src='{name}'" in page for name in pictures | pairs)


def test_shares_are_those_of_the_scores(results):
    scores = [r for r in rows(results / "scores.csv") if r["method"] == "Otsu" and r["postprocessing"] == "plain"]
    share = sum(float(r["iou"]) > 0.75 for r in scores) / len(scores)
    summary = json.loads((results / "summary.json").read_text())
    assert len(scores) == summary["pairs"] == 4
    assert summary["shares"]["Otsu"]["plain"] == share
    listed = next(r for r in rows(results / "shares.csv") if r["method"] == "Otsu" and r["postprocessing"] == "plain")
    assert float(listed["share_above_0.75"]) == pytest.approx(share)


def test_no_threshold_beats_the_best_one_of_each_frame(results):
    plain = [r for r in rows(results / "scores.csv") if r["postprocessing"] == "plain" and r["threshold"]]
    best = {r["case_id"]: float(r["iou"]) for r in plain if r["method"] == BEST}
    plain = [r for r in plain if r["method"] != "one threshold for all, normalized values"]
    assert all(float(r["iou"]) <= best[r["case_id"]] + 1e-6 for r in plain)


def test_the_same_data_give_the_same_study(made, results, tmp_path):
    explore_sunnybrook(made, tmp_path, progress=False)
    for path in (p for p in results.rglob("*") if p.is_file()):
        again = tmp_path / path.relative_to(results)
        if path.suffix == ".png":  # matplotlib's resampling is not the same to the last bit each time
            drawn = (np.asarray(Image.open(p).convert("RGB"), dtype=int) for p in (path, again))
            np.testing.assert_allclose(*drawn, atol=8, err_msg=path.name)
        else:
            assert again.read_bytes() == path.read_bytes(), path.name


def test_contours_counted_from_one_are_found_out(made):
    steps = contour_steps(index_sunnybrook(made))
    at = np.unravel_index(steps["all"].argmax(), steps["all"].shape)
    np.testing.assert_allclose(np.arange(-3, 3.25, 0.25)[list(at)], [-1, -1], atol=0.25)


def test_two_samples_are_tested_as_scipy_does(made):
    pair = read_pair(index_sunnybrook(made).pairs[0])
    found = two_samples(pair)
    expected = stats.ks_2samp(pair.image[pair.inner], pair.image[pair.outer & ~pair.inner])
    assert found["ks_statistic"] == pytest.approx(expected.statistic)
    assert found["ks_p_50"] > found["ks_p"]  # fewer pixels, weaker evidence
    assert two_samples(pair) == found


def test_an_interval_of_a_share_is_wilsons():
    # 22 of 37: worked by hand, (p + z^2/2n +- z sqrt(p q / n + z^2/4n^2)) / (1 + z^2/n)
    assert interval(22 / 37, 37) == pytest.approx((0.435, 0.737), abs=0.001)
    assert interval(1.0, 10)[1] == 1.0


def test_real_shares_are_those_found_before(shared):
    index = index_sunnybrook(shared / "data" / "sunnybrook")
    found = {(r["origin"], r["rasterizer"]): r for r in dependence([read_pair(frame) for frame in index.pairs])}
    row = found[0.0, "skimage.draw.polygon"]
    assert [round(37 * row[kind]) for kind in list(row)[2:]] == [12, 14, 26, 33]
    row = found[1.0, "skimage.draw.polygon"]
    assert [round(37 * row[kind]) for kind in list(row)[2:]] == [20, 22, 31, 35]


def test_a_set_without_pairs_is_refused(made, tmp_path):
    folder = make_sunnybrook_phantoms(1, tmp_path, size=96, slices=2, phases=2)
    for path in (folder / "final_data").rglob("*ocontour*"):
        path.unlink()
    with pytest.raises(DataError, match="no frame with two valid contours"):
        explore_sunnybrook(folder, tmp_path / "out", progress=False)


def test_the_command_names_the_folder_that_is_missing(tmp_path, capsys):
    assert main(["explore", "sunnybrook", "--dataset_dir", str(tmp_path / "no"), "--output", str(tmp_path / "o")]) == 1
    assert f"decathlete: {tmp_path / 'no'}: expected link.csv" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
