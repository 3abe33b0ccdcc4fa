"""`decathlete predict`: label maps that lie on their inputs, and what happens to inputs that cannot be read."""

from __future__ import annotations

import json
import re
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch

import decathlete.inference.limits as limits
from decathlete.cli import main
from decathlete.files import strip_nifti_suffix
from decathlete.inference import predict


def run(*words):
    return main(["predict", *map(str, words)])


def test_label_map_has_the_geometry_of_its_input(bundle, scan_file, out):
    assert run(bundle, scan_file, "--output", out) == 0
    label, image = nib.load(out / "case_001.nii.gz"), nib.load(scan_file)
    assert label.shape == image.shape
    assert label.get_data_dtype() == np.uint8
    np.testing.assert_allclose(label.affine, image.affine, atol=1e-6)
    for form in ("sform", "qform"):
        assert label.header[f"{form}_code"] == image.header[f"{form}_code"]
        np.testing.assert_array_equal(getattr(label, f"get_{form}")(), getattr(image, f"get_{form}")())
    assert label.header.get_xyzt_units() == ("mm", "sec")
    assert set(np.unique(label.dataobj)) == {0, 1, 2}
    assert re.fullmatch(rb"decathlete threshold [0-9a-f]{16}; not for clinical use", label.header["descrip"].item())
    assert label.header["cal_max"] == 0


def test_other_options_override_the_config(bundle, scan_file, out, tmp_path):
    assert run(bundle, scan_file, "--output", out, "--inferer::sw_batch_size", "1", "--amp=false") == 0
    other = "--deterministic_transforms::4::_disabled_"  # without the z-score another threshold holds
    assert run(bundle, scan_file, "--output", tmp_path / "other", other) == 0
    first, second = (np.asarray(nib.load(folder / "case_001.nii.gz").dataobj) for folder in (out, tmp_path / "other"))
    assert (first != second).any()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--overwite", "true"), "unknown argument '--overwite'. Did you mean '--overwrite'?"),
        (("--patch_sze", "2"), "Did you mean 'patch_size'?"),  # nearer than any option
        (("--inferer::sw_batch_sze", "2"), "Did you mean 'inferer::sw_batch_size'?"),
        (("7",), "Overrides must be written as --id value"),
        (("--overlap", "0.5", "0.5"), "unknown argument '0.5'"),
    ],
)
def test_slips_in_options_and_ids_are_named(bundle, scan_file, out, capsys, words, message):
    try:
        found = run(bundle, scan_file, "--output", out, *words)
    except SystemExit as stop:  # argparse's way
        found = stop.code
    assert found == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PIR"])
def test_copies_in_other_orders_keep_their_geometry_and_labels(bundle, scan_file, out, tmp_path, axes):
    image = nib.load(scan_file)
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(image.affine), nib.orientations.axcodes2ornt(axes)
    )
    copy = tmp_path / "copy.nii.gz"
    nib.save(image.as_reoriented(turn), copy)
    assert run(bundle, scan_file, copy, "--output", out) == 0
    first, second = nib.load(out / "case_001.nii.gz"), nib.load(out / "copy.nii.gz")
    np.testing.assert_allclose(second.affine, nib.load(copy).affine, atol=1e-6)
    expected = np.asarray(first.as_reoriented(turn).dataobj)
    assert (np.asarray(second.dataobj) != expected).mean() < 0.002


def test_four_dimensional_input_gives_three_dimensional_label(make_bundle, threshold_weights, scan, out, tmp_path):
    bundle = make_bundle(weights=threshold_weights(2), channels=("channels: 1", "channels: 2"))
    array, affine = scan
    nib.save(nib.Nifti1Image(np.stack([array, array], -1), affine), tmp_path / "two.nii.gz")
    assert run(bundle, tmp_path / "two.nii.gz", "--output", out) == 0
    assert nib.load(out / "two.nii.gz").shape == array.shape


def test_nifti2_and_uncompressed_upper_case_inputs(bundle, scan, out, tmp_path):
    array, affine = scan
    nib.save(nib.Nifti2Image(array, affine), tmp_path / "new.nii.gz")
    nib.save(nib.Nifti1Image(array, affine), tmp_path / "old.nii")
    (tmp_path / "old.nii").rename(tmp_path / "OLD.NII")
    assert run(bundle, tmp_path / "new.nii.gz", tmp_path / "OLD.NII", "--output", out) == 0
    assert isinstance(nib.load(out / "new.nii.gz"), nib.Nifti2Image)
    assert nib.load(out / "OLD.nii.gz").shape == array.shape


def test_folder_means_its_nifti_files(bundle, scan_file, out):
    shutil.copy(scan_file, scan_file.with_name("B.NII.GZ"))
    for name in ("._case_001.nii.gz", ".hidden.nii.gz", "notes.txt"):
        scan_file.with_name(name).write_text("no image")
    report = predict(bundle, scan_file.parent, out)
    assert [p.name for p in report.done] == ["B.nii.gz", "case_001.nii.gz"]
    assert not report.failed


def test_volumes_are_voxels_times_their_size(bundle, scan_file, out):
    predict(bundle, scan_file, out)
    label = nib.load(out / "case_001.nii.gz")
    volumes = json.loads((out / "volumes.json").read_text())
    voxel_ml = 1.5 * 1.0 * 1.2 / 1000
    for name, value in (("anterior", 1), ("posterior", 2)):
        expected = np.sum(np.asarray(label.dataobj) == value) * voxel_ml
        assert volumes["case_001"][name] == pytest.approx(expected, abs=1e-5)


def test_statistics_hold_the_mean_intensity_of_each_label(bundle, scan_file, scan, out, tmp_path):
    assert run(bundle, scan_file, "--output", out, "--statistics", tmp_path / "s.json") == 0
    label = np.asarray(nib.load(out / "case_001.nii.gz").dataobj)
    found = json.loads((tmp_path / "s.json").read_text())["case_001"]["posterior"]
    assert found["mean_intensity"] == pytest.approx(scan[0][label == 2].mean(), rel=1e-5)
    assert found["voxels"] == np.sum(label == 2)


def test_probabilities_lie_on_the_input_and_their_largest_is_the_label(bundle, scan_file, out):
    assert run(bundle, scan_file, "--output", out, "--save-probabilities") == 0
    shares = nib.load(out / "case_001_probabilities.nii.gz")
    label = nib.load(out / "case_001.nii.gz")
    assert shares.shape == (*label.shape, 3)
    np.testing.assert_array_equal(shares.affine, label.affine)
    np.testing.assert_array_equal(shares.get_fdata().argmax(-1), np.asarray(label.dataobj))
    np.testing.assert_allclose(shares.get_fdata().sum(-1), 1, atol=1e-5)


def test_finished_outputs_are_skipped_and_overwritten_only_on_request(bundle, scan_file, out, tmp_path):
    predict(bundle, scan_file, out)
    target = out / "case_001.nii.gz"
    before = target.stat().st_mtime_ns
    (out / "volumes.json").unlink()
    report = predict(bundle, scan_file, out, statistics=tmp_path / "s.json")
    assert report.skipped == [target]
    assert target.stat().st_mtime_ns == before
    assert json.loads((out / "volumes.json").read_text())["case_001"]["posterior"] > 0
    assert "case_001" in json.loads((tmp_path / "s.json").read_text())
    assert predict(bundle, scan_file, out, overwrite=True).done == [target]
    assert target.stat().st_mtime_ns > before


def test_bad_inputs_are_named_at_the_end_and_the_rest_is_predicted(bundle, scan_file, out, capsys):
    scan_file.with_name("a_cut.nii.gz").write_bytes(scan_file.read_bytes()[:2000])
    array = nib.load(scan_file).get_fdata()
    nib.save(nib.Nifti1Image(np.stack([array] * 2, -1), np.eye(4)), scan_file.with_name("b_two.nii.gz"))
    array[0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(array, np.eye(4)), scan_file.with_name("c_nan.nii.gz"))
    assert run(bundle, scan_file.parent, "--output", out) == 1
    assert sorted(p.name for p in out.iterdir()) == ["case_001.nii.gz", "predictions.json", "volumes.json"]
    error = capsys.readouterr().err
    assert "1 predicted, 0 present, 3 failed, 0 left out" in error
    for name in ("a_cut.nii.gz", "b_two.nii.gz", "c_nan.nii.gz"):
        assert f"decathlete: {scan_file.with_name(name)}: " in error
    assert "Traceback" not in error


def test_a_failed_overwrite_keeps_the_earlier_result(bundle, scan_file, out):
    predict(bundle, scan_file, out)
    before = (out / "case_001.nii.gz").read_bytes(), (out / "volumes.json").read_text()
    scan_file.write_bytes(b"not an image")
    assert run(bundle, scan_file, "--output", out, "--overwrite") == 1
    assert ((out / "case_001.nii.gz").read_bytes(), (out / "volumes.json").read_text()) == before


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["threshold", "missing.nii.gz"], 1, "missing.nii.gz: no such file or folder"),
        (["threshold", "empty"], 1, "empty: no NIfTI files"),
        (["hipocampus", "scan"], 2, "neither a bundle's folder nor the name of a packaged bundle"),
        (["threshold", "scan", "--device", "abacus"], 2, "--device: expected a device"),
        (["threshold", "scan", "--checkpoint", "no.pt"], 1, "no.pt: no such file of weights"),
        (["threshold", "scan", "--checkpoint", "scan"], 1, "case_001.nii.gz: expected weights only"),
        (["threshold", "scan", "--checkpoint", "other.pt"], 1, "missing weight, bias; unexpected 0.weight, 0.bias"),
        (["threshold", "scan", "--checkpoint", "object.pt"], 1, "expected weights only, nothing that runs code"),
    ],
)
def test_wrong_use_is_one_line(bundle, scan_file, out, tmp_path, capsys, words, status, message):
    (tmp_path / "empty").mkdir()
    torch.save(torch.nn.Sequential(torch.nn.Linear(2, 2)).state_dict(), tmp_path / "other.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "object.pt")
    known = {"threshold": bundle, "scan": scan_file}
    words = [known.get(w, tmp_path / w if w in ("empty", "other.pt", "object.pt") else w) for w in words]
    assert run(*words, "--output", out) == status
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not out.exists()


def test_two_inputs_for_one_output_are_refused_before_anything_is_predicted(bundle, scan_file, out, capsys):
    other = scan_file.parent / "more" / "case_001.nii.gz"
    other.parent.mkdir()
    shutil.copy(scan_file, other)
    assert run(bundle, scan_file, other, "--output", out) == 1
    said = capsys.readouterr().err
    for one, two in ((scan_file, other), (other, scan_file)):
        assert f"{one}: {two} would get the same output ({out / 'case_001.nii.gz'})" in said
    assert not out.exists()


def test_the_same_input_twice_is_predicted_once(bundle, scan_file, out):
    assert len(predict(bundle, [scan_file, scan_file.parent], out).done) == 1


def test_inputs_are_never_overwritten(bundle, scan_file, tmp_path, capsys):
    before = scan_file.read_bytes()
    link = tmp_path / "link"
    link.symlink_to(scan_file.parent)
    for folder in (scan_file.parent, link):
        assert run(bundle, scan_file, "--output", folder, "--overwrite") == 2
        assert "an output would overwrite an input" in capsys.readouterr().err
    for file in (scan_file, tmp_path / "o" / "volumes.json", tmp_path / "o" / "predictions.json"):
        assert run(bundle, scan_file, "--output", tmp_path / "o", "--statistics", file) == 2
    assert scan_file.read_bytes() == before


def test_long_names_are_predicted_and_too_long_ones_refused_at_once(bundle, scan_file, out, capsys):
    long = scan_file.rename(scan_file.with_name("n" * 206 + ".nii.gz"))  # 213 letters
    assert run(bundle, long, "--output", out, "--save-probabilities") == 0
    longer = long.rename(long.with_name("n" * 240 + ".nii.gz"))
    assert run(bundle, longer, "--output", out, "--save-probabilities") == 1
    assert "output name longer than 255 bytes" in capsys.readouterr().err


def test_work_beyond_the_memory_limit_is_refused_from_the_header(bundle, scan_file, out, capsys):
    assert run(bundle, scan_file, "--output", out, "--memory", "0.5") == 1
    error = capsys.readouterr().err
    assert "of memory, more than --memory 0.5" in error
    assert "20x28x24 voxels" in error
    assert run(bundle, scan_file, "--output", out, "--memory", "4") == 0


def test_a_small_file_that_unpacks_to_more_than_the_machine_holds_is_refused(bundle, scan_file, out, monkeypatch):
    monkeypatch.setattr(limits, "free_memory_bytes", lambda: 0.05 * 2**30)
    report = predict(bundle, scan_file, out)
    assert "GiB that are free" in report.failed[scan_file]


def test_full_disk_stops_with_the_file_named_and_leaves_no_part(bundle, scan_file, out, capsys, monkeypatch):
    def full(image, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nib, "save", full)
    assert run(bundle, scan_file, "--output", out) == 1
    assert "case_001.nii.gz: the output cannot be written" in capsys.readouterr().err
    assert list(out.iterdir()) == []


def test_checkpoints_make_an_ensemble(bundle, scan_file, out, tmp_path, threshold_weights):
    paths = []
    for n, first in enumerate((0.2, 0.8)):
        paths.append(tmp_path / f"fold_{n}.pt")
        torch.save(threshold_weights(first=first), paths[-1])
    for name, chosen in (("low", paths[:1]), ("high", paths[1:]), ("both", paths)):
        assert run(bundle, scan_file, "--output", out / name, "--checkpoint", *chosen) == 0
    low, high, both = ((nib.load(out / n / "case_001.nii.gz").get_fdata() > 0).sum() for n in ("low", "high", "both"))
    assert high < both < low


def test_bad_and_odd_files_get_their_verdict_and_the_good_ones_their_geometry(bundle, shared, out):
    root = shared / "data" / "bad_inputs"
    rows = {root / row["path"]: row for row in json.loads((root / "cases.json").read_text()) if row["kind"] == "nifti"}
    stems: dict[str, list] = {}
    for file in rows:
        if file.is_file():
            stems.setdefault(file.name.split(".nii")[0], []).append(file)
    files = [group[0] for group in stems.values()]  # a.nii and a.nii.gz would share an output
    report = predict(bundle, files, out, memory_gib=4)
    verdicts = {verdict: {f for f in files if rows[f]["verdict"] == verdict} for verdict in ("read", "refuse")}
    assert len(verdicts["read"]) > 30
    assert not verdicts["read"] & set(report.failed)
    assert verdicts["refuse"] <= set(report.failed)
    for file, message in report.failed.items():
        assert str(file.parent / file.name.split(".")[0]) in message  # of a pair, the other file may be the fault
    for file in verdicts["read"]:
        truth, label = rows[file]["truth"], nib.load(out / f"{strip_nifti_suffix(file.name)}.nii.gz")
        assert list(label.shape) == truth["shape"][:3]
        np.testing.assert_allclose(label.affine, truth["affine"], atol=1e-5)
