"""Every file that is listed, or lies in a folder that is, is predicted, present, failed, or left out with a reason."""

from __future__ import annotations

import os
import shutil

import nibabel as nib
import numpy as np
import pytest

from decathlete.bundle.outputs import Outputs
from decathlete.cli import main
from decathlete.errors import DataError
from decathlete.inference import predict
from decathlete.inference.inputs import find_inputs, input_files


def run(*words):
    return main(["predict", *map(str, words)])


@pytest.fixture
def annex(tmp_path, scan_file):
    """Three scans by links to a store, as git-annex lays them: two of one content, one not fetched."""
    store, scans = tmp_path / "store", tmp_path / "scans"
    store.mkdir()
    scans.mkdir()
    shutil.copy(scan_file, store / "KEY1.nii.gz")
    for name, key in (("sub-01", "KEY1"), ("sub-02", "KEY1"), ("sub-03", "KEY2")):
        (scans / f"{name}.nii.gz").symlink_to(f"../store/{key}.nii.gz")
    return scans


def test_two_names_of_one_content_are_two_cases_and_a_link_into_nowhere_has_failed(bundle, annex, out, capsys):
    assert run(bundle, annex, "--output", out) == 1
    said = capsys.readouterr().err
    assert "2 predicted, 0 present, 1 failed, 0 left out" in said
    missing = annex / "sub-03.nii.gz"
    assert f"decathlete: {missing}: the file's content is missing (a link to ../store/KEY2.nii.gz" in said
    assert "git annex get" in said
    assert sorted(p.name for p in out.glob("sub-*")) == ["sub-01.nii.gz", "sub-02.nii.gz"]


def test_a_link_into_nowhere_that_is_listed_has_failed_too(bundle, annex, scan_file, out, capsys):
    (annex / "list.txt").write_text("sub-01.nii.gz\nsub-03.nii.gz\n")
    assert run(bundle, annex / "list.txt", scan_file, "--output", out) == 1
    assert "2 predicted, 0 present, 1 failed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("/annex/objects/MD5E-s1--0.nii.gz\n", "only a git-annex pointer). Fetch it ('git annex get'"),
        ("../.git/annex/objects/Xk/9q/MD5E-s1--0.nii/MD5E-s1--0.nii", "only a git-annex pointer"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "only a Git LFS pointer)."),
    ],
)
@pytest.mark.parametrize("name", ["pointer.nii.gz", "pointer.nii"])
def test_a_pointer_in_place_of_a_scan_is_told_as_such(bundle, scan_file, out, capsys, text, said, name):
    scan_file.with_name(name).write_text(text)
    assert run(bundle, scan_file.parent, "--output", out) == 1
    assert f"{scan_file.with_name(name)}: the file's content is missing ({said}" in capsys.readouterr().err


def test_what_a_folder_holds_besides_is_counted_by_kind(bundle, scan_file, out, capsys):
    folder = scan_file.parent
    for name in ("a.json", "b.json", "notes.TXT", "._case_001.nii.gz", ".hidden", "README"):
        (folder / name).write_text("{}")
    (folder / "more").mkdir()
    assert run(bundle, folder, "--output", out) == 0
    said = capsys.readouterr().err
    kinds = "2 .json, 1 .txt, 1 folder, 2 hidden, 1 without a suffix"
    assert f"1 predicted, 0 present, 0 failed, 7 left out ({kinds}). Not for clinical use" in said
    report = predict(bundle, folder, out)
    assert len(report.left_out) == 7
    assert report.left_out[folder / "more"] == "folder"
    assert len(report.skipped) == 1


def test_a_series_beside_nifti_files_is_left_out_and_told_how_to_predict_it(
    bundle, scan, scan_file, write_slices, out, capsys
):
    series = write_slices(scan_file.parent / "slices", scan[0].round(), scan[1])
    for file in series.iterdir():
        file.rename(scan_file.parent / file.name)
    series.rmdir()
    assert run(bundle, scan_file.parent, "--output", out) == 0
    said = capsys.readouterr().err
    assert "1 predicted, 0 present, 0 failed, 24 left out (24 DICOM: put a series into a folder of its own)" in said


def test_predictions_beside_their_scans_are_left_out_by_name(tmp_path):
    for name in ("a.nii.gz", "a_mask.nii.gz", "a_probabilities.nii.gz"):
        (tmp_path / name).touch()
    found = find_inputs(tmp_path, Outputs(label="mask"))
    assert [path.name for path in found.files] == ["a.nii.gz"]
    assert sorted(found.left_out.values()) == ["named as predictions"] * 2


def test_a_series_with_a_slice_that_was_not_fetched_is_no_shorter_series(bundle, scan, write_slices, out, capsys):
    series = write_slices(out.parent / "ct", scan[0].round(), scan[1])
    last = max(series.iterdir())
    last.unlink()
    last.symlink_to("../store/KEY.dcm")
    assert run(bundle, series, "--output", out) == 1
    assert f"{last}: the file's content is missing (a link to ../store/KEY.dcm" in capsys.readouterr().err


def test_two_links_to_one_series_are_two_cases_of_their_own_names(bundle, scan, write_slices, out, tmp_path):
    series = write_slices(tmp_path / "store" / "KEY", scan[0].round(), scan[1])
    for name in ("patient_1", "patient_2"):
        (tmp_path / name).symlink_to(series)
    report = predict(bundle, [tmp_path / "patient_1", tmp_path / "patient_2"], out)
    assert [path.name for path in report.done] == ["patient_1.nii.gz", "patient_2.nii.gz"]


def test_the_same_path_in_several_spellings_is_one_input(scan_file, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(scan_file.parent)
    monkeypatch.chdir(scan_file.parent)
    ways = [scan_file, scan_file.parent, scan_file.name, f"../images/{scan_file.name}", tmp_path / "link"]
    assert find_inputs(ways).files == [scan_file]


def test_bad_folders_and_paths_fail_alone_and_the_rest_is_predicted(bundle, scan_file, out, capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.csv").touch()
    bad = [tmp_path / "empty", tmp_path / "text", tmp_path / "nowhere.nii.gz"]
    assert run(bundle, *bad, scan_file, "--output", out) == 1
    said = capsys.readouterr().err
    assert "1 predicted, 0 present, 3 failed" in said
    assert f"decathlete: {bad[0]}: no NIfTI files (.nii, .nii.gz) and no DICOM series" in said
    assert "(an empty folder" in said
    assert f"decathlete: {bad[2]}: no such file or folder" in said
    assert (out / "case_001.nii.gz").is_file()


def test_a_folder_of_several_series_fails_alone(bundle, scan, scan_file, write_slices, out, capsys):
    series = write_slices(out.parent / "two", scan[0].round(), scan[1])
    write_slices(series, scan[0][:, :, :3].round(), scan[1], series="1.2.9")
    assert run(bundle, series, scan_file, "--output", out) == 1
    said = capsys.readouterr().err
    assert "1 predicted, 0 present, 1 failed" in said
    assert "1.2.9 (CT, 3 slices)" in said


def test_only_bad_inputs_are_all_named(bundle, out, capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    assert run(bundle, tmp_path / "empty", tmp_path / "nowhere", "--output", out) == 1
    said = capsys.readouterr().err
    assert "0 predicted, 0 present, 2 failed" in said
    assert f"{tmp_path / 'nowhere'}: no such file" in said
    assert not out.exists()


def test_names_that_collide_or_are_too_long_fail_alone(bundle, scan_file, out, capsys, tmp_path):
    other = tmp_path / "more" / scan_file.name
    other.parent.mkdir()
    for path in (other, other.with_name("b.nii.gz"), other.with_name("n" * 240 + ".nii.gz")):
        shutil.copy(scan_file, path)
    assert run(bundle, scan_file, other.parent, "--output", out, "--save-probabilities") == 1
    said = capsys.readouterr().err
    assert "1 predicted, 0 present, 3 failed" in said
    assert said.count("would get the same output") == 2
    assert "output name longer than 255 bytes" in said
    assert sorted(p.name for p in out.glob("*.nii.gz")) == ["b.nii.gz", "b_probabilities.nii.gz"]


def test_a_list_that_names_itself_is_read_once(tmp_path):
    (tmp_path / "a.nii").touch()
    (tmp_path / "cases.txt").write_text("cases.txt\na.nii\n")
    assert [path.name for path in input_files(tmp_path / "cases.txt")] == ["a.nii"]


def test_one_bad_path_alone_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        find_inputs(tmp_path / "nowhere")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_cannot_be_read_fails_alone(bundle, scan_file, out, tmp_path):
    (tmp_path / "locked").mkdir(mode=0)
    report = predict(bundle, [tmp_path / "locked", scan_file], out)
    assert list(report.failed) == [tmp_path / "locked"]


def test_counts_are_whole_on_a_folder_of_everything(bundle, annex, scan_file, out):
    shutil.copy(scan_file, annex / "plain.nii.gz")
    array = np.zeros((4, 4, 4, 2), np.float32)
    nib.save(nib.Nifti1Image(array, np.eye(4)), annex / "two_channels.nii.gz")
    (annex / "list.csv").touch()
    predict(bundle, annex / "plain.nii.gz", out)
    report = predict(bundle, annex, out)
    parts = (report.done, report.skipped, report.failed, report.left_out)
    assert [len(part) for part in parts] == [2, 1, 2, 1]
    assert sum(map(len, parts)) == len(list(annex.iterdir()))
