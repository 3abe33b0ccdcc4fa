"""A label map that is there is kept only if it is the one that would be written now."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from decathlete.cli import main
from decathlete.distributed.sharing import add_to_json
from decathlete.inference import predict
from decathlete.inference.records import config_sha256, read_mark

FORK = multiprocessing.get_context("fork")


def run(*words):
    return main(["predict", *map(str, words)])


@pytest.fixture
def others(tmp_path, threshold_weights):
    """Weights of another threshold."""
    torch.save(threshold_weights(first=0.9), tmp_path / "others.pt")
    return tmp_path / "others.pt"


def voxels(path):
    return np.asarray(nib.load(path).dataobj)


def test_a_map_of_other_weights_is_refused_with_both_named(bundle, scan_file, out, others, capsys):
    assert run(bundle, scan_file, "--output", out) == 0
    before = (out / "case_001.nii.gz").read_bytes()
    assert run(bundle, scan_file, "--output", out, "--checkpoint", others) == 1
    said = capsys.readouterr().err
    assert "0 predicted, 0 present, 1 failed" in said
    assert f"{out / 'case_001.nii.gz'}: the existing label map was not made" in said
    assert f"(it was made with the weights {bundle / 'models' / 'model.pt'} (" in said
    assert f", not with {others} (" in said
    assert "Pass --overwrite, or choose another --output" in said
    assert (out / "case_001.nii.gz").read_bytes() == before
    assert run(bundle, scan_file, "--output", out, "--checkpoint", others, "--overwrite") == 0
    assert (out / "case_001.nii.gz").read_bytes() != before


@pytest.mark.parametrize(
    ("words", "difference"),
    [
        (["--tta"], "(it was made without --tta, this run is with)."),
        (["--patch_size", "[16, 16, 16]"], "(--patch_size was not given, now [16, 16, 16])."),
        (["--deterministic_transforms::4::_disabled_"], "_disabled_ was not given, now true)."),
    ],
)
def test_a_map_of_other_options_is_refused_with_the_option_named(bundle, scan_file, out, capsys, words, difference):
    assert run(bundle, scan_file, "--output", out) == 0
    assert run(bundle, scan_file, "--output", out, *words) == 1
    assert difference in capsys.readouterr().err


def test_a_changed_config_of_the_bundle_is_told_too(bundle, scan_file, out, capsys):
    assert run(bundle, scan_file, "--output", out) == 0
    file = bundle / "configs" / "inference.yaml"
    file.write_text(file.read_text() + "# a comment changes nothing\n")
    assert run(bundle, scan_file, "--output", out) == 0
    file.write_text(file.read_text().replace("[1.0, 1.0, 1.0]", "[1.5, 1.0, 1.0]"))
    assert run(bundle, scan_file, "--output", out) == 1
    assert "the bundle's inference config has changed since" in capsys.readouterr().err


def test_options_that_change_no_voxel_keep_the_map(bundle, scan_file, out, tmp_path):
    first = predict(bundle, scan_file, out)
    words = {"device": "cpu", "memory_gib": 8, "overrides": {"inferer::sw_batch_size": 1, "output_dir": "elsewhere"}}
    assert predict(bundle, scan_file, out, **words).skipped == first.done
    moved = Path(shutil.copytree(bundle, tmp_path / "moved" / bundle.name))
    assert predict(moved, scan_file, out).skipped == first.done


def test_a_scan_changed_in_place_is_noticed_and_a_touched_or_moved_one_is_the_same(bundle, scan_file, out, tmp_path):
    first = predict(bundle, scan_file, out)
    os.utime(scan_file, (1, 1))
    assert predict(bundle, scan_file, out).skipped == first.done
    moved = tmp_path / "moved" / scan_file.name
    moved.parent.mkdir()
    shutil.copy(scan_file, moved)
    assert predict(bundle, moved, out).skipped == first.done
    stat, image = scan_file.stat(), nib.load(scan_file)
    nib.save(nib.Nifti1Image(image.get_fdata(dtype=np.float32) * 2, image.affine, image.header), scan_file)
    os.utime(scan_file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    [message] = predict(bundle, scan_file, out).failed.values()
    assert "it was made from" in message
    assert str(moved) in message
    assert not predict(bundle, scan_file, out, overwrite=True).failed


def test_both_files_of_a_pair_count(bundle, scan, out, tmp_path):
    nib.save(nib.Nifti1Pair(*scan), tmp_path / "pair.hdr")
    first = predict(bundle, tmp_path / "pair.hdr", out)
    assert len(first.done) == 1
    assert predict(bundle, tmp_path / "pair.hdr", out).skipped == first.done
    nib.save(nib.Nifti1Pair(scan[0] + 100, scan[1]), tmp_path / "other.hdr")
    shutil.copy(tmp_path / "other.img", tmp_path / "pair.img")
    [message] = predict(bundle, tmp_path / "pair.hdr", out).failed.values()
    assert "the scan has changed since" in message


def test_a_series_is_what_its_slices_hold(bundle, scan, write_slices, out, tmp_path):
    series = write_slices(tmp_path / "ct", scan[0].round(), scan[1])
    first = predict(bundle, series, out)
    (series / "notes.txt").write_text("arrived later")
    again = predict(bundle, series, out)
    assert again.skipped == first.done
    assert list(again.left_out.values()) == [".txt"]
    write_slices(series, scan[0].round() + 10, scan[1])
    [message] = predict(bundle, series, out).failed.values()
    assert "the scan has changed since" in message


@pytest.mark.parametrize("note", [b"", b"decathlete threshold; not for clinical use", b"ITK-SNAP"])
def test_a_map_of_which_nothing_is_known_is_not_taken_for_ours(bundle, scan_file, out, note):
    target, image = out / "case_001.nii.gz", nib.load(scan_file)
    out.mkdir()
    theirs = nib.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine)
    theirs.header["descrip"] = note
    nib.save(theirs, target)
    [message] = predict(bundle, scan_file, out).failed.values()
    assert "(no record of how it was made: by an earlier version, or another tool)" in message
    assert voxels(target).sum() == 0
    assert predict(bundle, scan_file, out, overwrite=True).done == [target]


def test_a_map_without_its_record_as_a_kill_leaves_it_is_kept_and_recorded(bundle, scan_file, out, others):
    first = predict(bundle, scan_file, out)
    record = json.loads((out / "predictions.json").read_text())["cases"]["case_001"]
    for name in ("predictions.json", "volumes.json"):
        (out / name).unlink()
    [message] = predict(bundle, scan_file, out, others).failed.values()
    assert f"another record, {record['key'][:8]} instead of" in message
    assert predict(bundle, scan_file, out).skipped == first.done
    again = json.loads((out / "predictions.json").read_text())["cases"]["case_001"]
    assert again == record
    assert "case_001" in json.loads((out / "volumes.json").read_text())


def test_the_record_says_what_a_map_was_made_of(bundle, scan_file, out):
    import hashlib

    predict(bundle, scan_file, out, overrides={"patch_size": [16, 16, 16]}, tta=True)
    content = json.loads((out / "predictions.json").read_text())
    record = content["cases"]["case_001"]
    weights = bundle / "models" / "model.pt"
    assert content["format"] == 1
    assert record["input"] == str(scan_file)
    assert record["input_sha256"] == hashlib.sha256(scan_file.read_bytes()).hexdigest()
    assert record["weights"] == [{"path": str(weights), "sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}]
    assert (record["bundle"], record["bundle_version"], record["tta"]) == ("threshold", "0.0.1", True)
    assert record["options"] == {"patch_size": [16, 16, 16]}
    assert read_mark(out / record["label"]) == (record["key"], set())


def test_what_others_write_into_the_records_stays(bundle, scan_file, out):
    predict(bundle, scan_file, out)
    content = json.loads((out / "predictions.json").read_text())
    content["cases"]["elsewhere"] = {"note": "of another job"}
    (out / "predictions.json").write_text(json.dumps({**content, "made_by": "hand"}))
    predict(bundle, scan_file, out, overwrite=True)
    again = json.loads((out / "predictions.json").read_text())
    assert again["made_by"] == "hand"
    assert again["cases"]["elsewhere"] == {"note": "of another job"}


def test_files_beside_a_map_never_belong_to_another_map(bundle, scan_file, out, others):
    shares = out / "case_001_probabilities.nii.gz"
    predict(bundle, scan_file, out, save_probabilities=True)
    predict(bundle, scan_file, out, others, overwrite=True)
    assert not shares.exists()
    assert len(predict(bundle, scan_file, out, others, save_probabilities=True).done) == 1
    np.testing.assert_array_equal(nib.load(shares).get_fdata().argmax(-1), voxels(out / "case_001.nii.gz"))
    assert len(predict(bundle, scan_file, out, others).skipped) == 1
    assert len(predict(bundle, scan_file, out, others, save_probabilities=True).skipped) == 1


def test_a_file_beside_a_map_that_it_does_not_vouch_for_is_made_again(make_bundle, scan_file, out):
    bundle = make_bundle(outputs=("channels: 1\n", "channels: 1\noutputs: {masked: cut}\n"))
    predict(bundle, scan_file, out)
    plain, name = voxels(out / "case_001_cut.nii.gz"), "case_001_probabilities.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2, 3), np.float32), np.eye(4)), out / name)  # of another tool
    assert len(predict(bundle, scan_file, out, save_probabilities=True).done) == 1
    assert nib.load(out / name).shape == (20, 28, 24, 3)
    np.testing.assert_array_equal(voxels(out / "case_001_cut.nii.gz"), plain)
    assert read_mark(out / "case_001.nii.gz")[1] == {"masked", "probabilities"}


def test_volumes_and_statistics_are_those_of_the_map_that_is_there(bundle, scan_file, out, others, tmp_path):
    predict(bundle, scan_file, out, statistics=tmp_path / "s.json")
    old = (out / "volumes.json").read_text()
    predict(bundle, scan_file, out, others, overwrite=True)
    (out / "volumes.json").write_text(old)  # as a run that was killed before its end leaves it
    assert len(predict(bundle, scan_file, out, others, statistics=tmp_path / "s.json").skipped) == 1
    number = int((voxels(out / "case_001.nii.gz") == 1).sum())
    assert json.loads((tmp_path / "s.json").read_text())["case_001"]["anterior"]["voxels"] == number
    volume = json.loads((out / "volumes.json").read_text())["case_001"]["anterior"]
    assert volume == pytest.approx(number * 1.5 * 1.0 * 1.2 / 1000, abs=1e-5)


def test_volumes_of_a_map_that_was_corrected_by_hand_are_counted_anew(bundle, scan_file, out):
    predict(bundle, scan_file, out)
    target = out / "case_001.nii.gz"
    label = nib.load(target)
    nib.save(nib.Nifti1Image(np.where(voxels(target) == 1, 2, 0).astype(np.uint8), label.affine, label.header), target)
    assert len(predict(bundle, scan_file, out).skipped) == 1
    assert json.loads((out / "volumes.json").read_text())["case_001"]["anterior"] == 0


def test_only_what_was_made_otherwise_is_made_again_on_request(bundle, scan_file, out, others):
    shutil.copy(scan_file, second := scan_file.with_name("b.nii.gz"))
    predict(bundle, scan_file, out, others)
    predict(bundle, second, out)
    report = predict(bundle, scan_file.parent, out, overwrite="others")
    assert [path.name for path in report.done] == ["case_001.nii.gz"]
    assert [path.name for path in report.skipped] == ["b.nii.gz"]


def _add(path, first):
    for n in range(first, first + 25):
        add_to_json({f"case_{n:03d}": {"key": n}}, path, under="cases", format=1)


def test_processes_that_write_records_at_a_time_lose_none(tmp_path):
    path = tmp_path / "predictions.json"
    processes = [FORK.Process(target=_add, args=(path, n * 25), daemon=True) for n in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    content = json.loads(path.read_text())
    assert content["format"] == 1
    assert content["cases"] == {f"case_{n:03d}": {"key": n} for n in range(100)}
    assert [p.name for p in tmp_path.iterdir()] == ["predictions.json"]


def test_the_hash_of_a_config_is_that_of_what_a_prediction_reads():
    config = {
        "spacing": [1, 1], "device": "cpu", "lr": 0.1, "preprocessing": {"pixdim": "@spacing"},
        "network": "$@network_def.to(@device)", "network_def": {"out_channels": "$len(@labels)"}, "labels": {"a": 0},
        "inferer": {"sw_batch_size": 4, "overlap": 0.5}, "postprocessing": [{"output_dir": "x"}],
    }  # fmt: skip
    first = config_sha256(config)
    same = {"device": "cuda", "lr": 1, "inferer": {"sw_batch_size": 1, "overlap": 0.5}, "postprocessing": [{}]}
    for name, value in same.items():
        assert config_sha256({**config, name: value}) == first, name
    for name, value in {"spacing": [1, 2], "labels": {"a": 0, "b": 1}, "inferer": {"overlap": 0.25}}.items():
        assert config_sha256({**config, name: value}) != first, name
