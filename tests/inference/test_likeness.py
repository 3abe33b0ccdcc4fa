"""Scans that look unlike those of training, told from their image and prediction."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import torch

from decathlete.cli import main
from decathlete.errors import DataError
from decathlete.inference import Predictor
from decathlete.inference.likeness import FILE, MIN_SCANS, TrainingScans, _in_words, scan_figures
from decathlete.training.promotion import fit_training_scans


def ball(seed, shape=(20, 24, 22)):
    """A bright ball of varying size and place in noise."""
    rng = np.random.default_rng(seed)
    centre = np.array(shape) / 2 + rng.normal(0, 1, 3)
    distance = np.linalg.norm(np.moveaxis(np.indices(shape), 0, -1) - centre, axis=-1)
    return (200 / (1 + np.exp(distance - rng.uniform(5, 7))) + rng.normal(0, 5, shape)).astype(np.float32)


@pytest.fixture
def scans(tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    for n in range(24):
        nib.save(nib.Nifti1Image(ball(n), np.eye(4)), folder / f"s{n:02}.nii.gz")
    return folder


@pytest.fixture(scope="module")
def kept() -> list[str]:
    """What the first test fitted: the scans and the weights of the others are the same."""
    return []


@pytest.fixture
def fitted(bundle, scans, kept):
    file = bundle / "models" / FILE
    if not kept:
        kept.append(fit_training_scans(bundle, scans).read_text())
    file.write_text(kept[0])
    return bundle


def test_scans_of_another_kind_are_told_and_others_of_the_same_are_not(fitted):
    predictor = Predictor(fitted)

    def unlike(array):
        return predictor.training_scans.unlike(predictor(array, np.eye(4), figures=True).figures)

    rng = np.random.default_rng(7)
    odd = {
        "noise": rng.normal(0, 50, (20, 24, 22)),
        "inverted": 200 - ball(50),
        "moved": np.roll(ball(51), 8, axis=1),
        "cut": ball(52)[:10],
        "noisy": ball(53) + rng.normal(0, 60, (20, 24, 22)),
    }
    told = {name: unlike(array) for name, array in odd.items()}
    assert all(told.values()), told
    assert sum(bool(unlike(ball(seed))) for seed in range(100, 110)) <= 1


def test_what_is_farthest_off_is_named():
    rng = np.random.default_rng(0)
    fitted = TrainingScans.fit([{"a": rng.normal(), "b": rng.normal(5, 0.1), "c": rng.normal()} for _ in range(60)])
    assert fitted.unlike({"a": 0.2, "b": 5.02, "c": -0.3}) == ""
    assert fitted.unlike({"a": 0.2, "b": 9.0, "c": -0.3}).startswith("b is 9, in training 4.8")
    assert fitted.unlike({"a": 0.2, "c": 0.0})  # a figure that the scan lacks


def test_the_distance_knows_what_goes_together():
    rng = np.random.default_rng(0)
    first = rng.normal(size=200)
    rows = [{"a": x, "b": x + e} for x, e in zip(first, rng.normal(0, 0.1, 200), strict=True)]
    fitted = TrainingScans.fit(rows)
    assert fitted.distance({"a": 1.5, "b": 1.5}) < fitted.limit < fitted.distance({"a": 1.5, "b": -1.5})


def test_a_prediction_says_where_its_foreground_lies():
    logits = torch.full((2, 10, 4, 4), -20.0)
    logits[0] = 20.0
    logits[:, 8:] *= -1  # foreground at the end of x
    figures = scan_figures(torch.zeros(1, 10, 4, 4), logits, (1, 1, 2))
    assert figures["centre of the foreground along x"] == pytest.approx(8.5 / 9, abs=1e-3)
    assert figures["foreground at the ends of x"] == pytest.approx(0.5, abs=1e-3)
    assert figures["log volume of class 1"] == pytest.approx(np.log(33))
    assert figures["log extent z"] == pytest.approx(np.log(8))


def test_it_is_kept_beside_its_weights_and_used_with_no_others(fitted, threshold_weights, tmp_path, caplog):
    weights = fitted / "models" / "model.pt"
    assert TrainingScans.beside(weights).scans == 24
    assert set(json.loads((fitted / "models" / FILE).read_text())) >= {"names", "limit", "weights_sha256"}
    torch.save(threshold_weights(first=0.9), weights)
    assert TrainingScans.beside(weights) is None
    assert "belongs to other weights" in caplog.text
    assert TrainingScans.beside(tmp_path / "other.pt") is None


def test_a_damaged_file_is_told_and_left_alone(fitted, caplog):
    (fitted / "models" / FILE).write_text("{")
    assert TrainingScans.beside(fitted / "models" / "model.pt") is None
    assert "cannot be read" in caplog.text


def test_too_few_scans_are_refused(bundle, scans):
    for file in sorted(scans.iterdir())[MIN_SCANS - 1 :]:
        file.unlink()
    with pytest.raises(DataError, match="at least 20"):
        fit_training_scans(bundle, scans)
    assert not (bundle / "models" / FILE).exists()


def test_the_report_flags_the_odd_scan_first(fitted, scans, tmp_path):
    nib.save(nib.Nifti1Image(200 - ball(50), np.eye(4)), tmp_path / "inverted.nii.gz")
    words = ["predict", str(fitted), str(scans / "s00.nii.gz"), str(tmp_path / "inverted.nii.gz")]
    assert main([*words, "--output", str(tmp_path / "out"), "--report", str(tmp_path / "r.html")]) == 0
    page = (tmp_path / "r.html").read_text()
    assert "inverted looks unlike the training scans: 1% of its normalised intensities" in page
    assert "s00 looks unlike" not in page
    assert page.index("inverted: prediction") < page.index("s00: prediction")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("log extent x", np.log(182), "the scan is 182 x 40 mm, the training scans were 30 to 43 x 40 mm"),
        (
            "intensity percentile 99",
            9.0,
            "99% of its normalised intensities are below 9.00, in training below values of -1.00",
        ),
        ("log roughness 2 along x", 2.0, "differ 7.4 times as much along x as in training: it is noisier"),
        ("log roughness 2 along x", -2.0, "differ 7.4 times as little along x as in training: it is smoother"),
        ("log volume of class 1", 3.0, "the volume of left atrium is 20.1 times as large as is usual in training"),
        ("unsureness of the foreground", 5.0, "the network is less confident of its answer"),
        ("centre of the foreground along x", 9.0, "the structure lies elsewhere along x (at 900%, in training"),
        ("foreground at the ends of x", 3.0, "more of the structure lies at the border of the scan along x"),
    ],
)
def test_a_feature_that_is_far_off_is_said_in_words(name, value, words):
    usual = {f"log extent {axis}": (np.log(np.sqrt(30 * 43)), np.log(43 / 30) / 4) for axis in "x"}
    usual |= {"log extent y": (np.log(40), 0.0), name: usual.get(name, (0.0, 0.5))}
    figures = {"log extent x": np.log(36), "log extent y": np.log(40), name: value}
    assert words in _in_words(name, figures, usual, {1: "left atrium"})


def test_one_persons_scans_do_not_vouch_for_each_other():
    rng = np.random.default_rng(0)
    places = rng.normal(0, 1, 6)  # 6 people who differ, 10 scans each that hardly do
    rows = [{"a": x + e} for x in places for e in rng.normal(0, 0.01, 10)]
    people = [n // 10 for n in range(60)]
    assert TrainingScans.fit(rows, people=people).limit > TrainingScans.fit(rows).limit * 1.1


def test_features_of_slices_do_not_depend_on_how_many_there_are():
    torch.manual_seed(0)
    image, logits = torch.randn(1, 40, 50, 1), torch.randn(2, 40, 50, 1)
    one = scan_figures(image, logits, (1, 1, 8), axes=2)
    many = scan_figures(image.expand(-1, -1, -1, 7), logits.expand(-1, -1, -1, 7), (1, 1, 8), axes=2)
    assert many == pytest.approx(one, rel=2e-2, abs=1e-2)


def test_a_sample_of_a_large_scan_gives_its_features():
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 90, 80, 70, generator=generator)
    logits = torch.zeros(2, 90, 80, 70)
    logits[0] = 8.0
    logits[:, 20:60, 30:50, 35:] *= -1  # 40 x 20 x 35 voxels of foreground, up to one end of z
    figures = scan_figures(image, logits, (1, 1, 1))
    assert figures["log volume of class 1"] == pytest.approx(np.log(28000), abs=0.1)
    assert figures["intensity percentile 90"] == pytest.approx(1.28, abs=0.02)
    assert figures["log roughness 1 along y"] == pytest.approx(np.log(2 / np.sqrt(np.pi)), abs=0.02)
    assert figures["centre of the foreground along x"] == pytest.approx(39.5 / 89, abs=0.02)
    assert figures["foreground at the ends of z"] == pytest.approx(1 / 35, rel=0.1)


@pytest.fixture
def odd(tmp_path):
    nib.save(nib.Nifti1Image(200 - ball(50), np.eye(4)), tmp_path / "inverted.nii.gz")
    return tmp_path / "inverted.nii.gz"


def test_every_prediction_says_which_scans_look_unlike_training(fitted, scans, odd, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["predict", str(fitted), str(scans / "s00.nii.gz"), str(odd), "--output", str(out)]
    assert main(words) == 0
    said = capsys.readouterr().err
    assert f"{odd}: the scan looks unlike the training scans (" in said
    assert "s00.nii.gz: " not in said
    assert "1 of 2 scans look unlike the training scans." in said
    assert (out / "inverted.nii.gz").is_file()
    records = json.loads((out / "predictions.json").read_text())["cases"]
    assert records["s00"]["warnings"] == []
    assert len(records["inverted"]["warnings"]) == 1
    assert main(words) == 0  # present now, and still said
    assert "1 of 2 scans look unlike the training scans." in capsys.readouterr().err
    assert main([*words, "--strict"]) == 1
    assert "inverted.nii.gz: the scan looks unlike the training scans (" in capsys.readouterr().err


def test_strict_writes_no_label_map_of_an_odd_scan(fitted, scans, odd, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["predict", str(fitted), str(scans / "s00.nii.gz"), str(odd), "--output", str(out), "--strict"]
    assert main(words) == 1
    assert "without --strict" in capsys.readouterr().err
    assert [path.name for path in out.glob("*.nii.gz")] == ["s00.nii.gz"]


def test_strict_is_refused_where_there_is_nothing_to_compare_with(bundle, scans, tmp_path, capsys):
    words = ["predict", str(bundle), str(scans / "s00.nii.gz"), "--output", str(tmp_path / "out"), "--strict"]
    assert main(words) == 2
    assert "--strict: nothing to compare the scans with" in capsys.readouterr().err


def test_a_prediction_in_python_carries_its_warnings(fitted):
    predictor = Predictor(fitted)
    assert predictor(ball(3), np.eye(4)).warnings == []
    (warning,) = predictor(200 - ball(50), np.eye(4)).warnings
    assert warning.startswith("the scan looks unlike the training scans (")


def test_promoting_weights_with_their_scans_keeps_both(bundle, scans, threshold_weights, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    torch.save(threshold_weights(first=0.5), run / "model_final.pt")
    assert main(["promote", str(run), str(bundle), "--scans", str(scans)]) == 0
    assert TrainingScans.beside(bundle / "models" / "model.pt").scans == 24


def test_promoting_weights_describes_the_scans_of_the_bundles_config(bundle, scans, threshold_weights, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    torch.save(threshold_weights(first=0.5), run / "model_final.pt")
    torch.save({"settings": {"fold": 3}}, run / "last.pt")
    cases = [{"image": str(file)} for file in sorted(scans.iterdir())]
    config = {
        "device": "cuda",
        "fold": 0,
        "cases": cases,
        "train": {"dataset": {"data": "$@cases if @fold == 3 else []"}},
    }
    (bundle / "configs" / "train.yaml").write_text(json.dumps(config))
    assert main(["promote", str(run), str(bundle)]) == 0
    assert TrainingScans.beside(bundle / "models" / "model.pt").scans == 24
    (run / "last.pt").unlink()
    before = (bundle / "models" / FILE).read_text()
    assert main(["promote", str(run), str(bundle)]) == 0  # no data for that fold: the weights alone
    assert (bundle / "models" / FILE).read_text() == before


def test_promoting_with_a_folder_without_scans_changes_nothing(bundle, threshold_weights, tmp_path, capsys):
    run, empty = tmp_path / "run", tmp_path / "empty"
    run.mkdir()
    empty.mkdir()
    torch.save(threshold_weights(first=0.5), run / "model_final.pt")
    before = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    assert main(["promote", str(run), str(bundle), "--scans", str(empty)]) != 0
    assert "no NIfTI files" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()} == before
