"""Files written whole or not at all."""

from __future__ import annotations

import os
import stat

import pytest

from decathlete.errors import UsageError
from decathlete.files import atomic_write, check_output_folder, nifti_files, strip_nifti_suffix


def test_file_appears_with_its_content(tmp_path):
    with atomic_write(tmp_path / "new" / "a.json") as part:
        part.write_text("1")
    assert (tmp_path / "new" / "a.json").read_text() == "1"
    assert os.listdir(tmp_path / "new") == ["a.json"]


def test_output_below_a_file_is_refused_and_nothing_made(tmp_path):
    (tmp_path / "a").write_text("1")
    for path in (tmp_path / "a", tmp_path / "a" / "b" / "c"):
        with pytest.raises(UsageError, match=r"the output must be a folder.*--output"):
            check_output_folder(path)
    check_output_folder(tmp_path / "new" / "deep")
    assert os.listdir(tmp_path) == ["a"]


def fail_while_writing(path):
    with atomic_write(path) as part:
        part.write_text("half")
        raise OSError("disk full")


def test_failure_keeps_the_earlier_file_and_leaves_no_other(tmp_path):
    (tmp_path / "a.json").write_text("earlier")
    with pytest.raises(OSError, match="disk full"):
        fail_while_writing(tmp_path / "a.json")
    assert (tmp_path / "a.json").read_text() == "earlier"
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize(("name", "end"), [("a.nii.gz", ".nii.gz"), ("a.b.NII.GZ", ".nii.gz"), ("m.pt", ".pt")])
def test_temporary_name_keeps_what_writers_choose_the_format_by(tmp_path, name, end):
    with atomic_write(tmp_path / name) as part:
        assert part.name.endswith(end)
        assert part.parent == tmp_path
        part.write_text("x")


def test_name_of_255_letters_can_be_written(tmp_path):
    name = "a" * 248 + ".nii.gz"
    with atomic_write(tmp_path / name) as part:
        part.write_text("x")
    assert (tmp_path / name).is_file()


@pytest.mark.skipif(os.name == "nt", reason="POSIX modes")
def test_file_has_the_mode_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_text("x")
    with atomic_write(tmp_path / "ours") as part:
        part.write_text("x")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.mark.parametrize(
    ("name", "stem"), [("a.nii.gz", "a"), ("a.b.NII.GZ", "a.b"), ("a.nii", "a"), ("a.nrrd", "a.nrrd"), (".nii", "")]
)
def test_nifti_suffix_is_taken_off(name, stem):
    assert strip_nifti_suffix(name) == stem


def test_nifti_files_passes_over_folders_hidden_and_other_files(tmp_path):
    for name in ("b.nii", "a.nii.gz", "C.NII.GZ", "._a.nii.gz", "notes.txt", "dataset.json"):
        (tmp_path / name).touch()
    (tmp_path / "folder.nii").mkdir()
    assert [p.name for p in nifti_files(tmp_path)] == ["C.NII.GZ", "a.nii.gz", "b.nii"]
