"""Files written whole or not at all."""

from __future__ import annotations

import multiprocessing
import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from decathlete.errors import DataError, UsageError
from decathlete.files import (
    atomic_folder,
    atomic_write,
    check_content,
    check_output_folder,
    is_nifti_name,
    lock,
    nifti_files,
    remove_leftovers,
    strip_nifti_suffix,
    temporary_folder,
)

FORK = multiprocessing.get_context("fork") if os.name == "posix" else None
POSIX = pytest.mark.skipif(os.name != "posix", reason="POSIX modes and processes")


def test_file_appears_with_its_content(tmp_path):
    with atomic_write(tmp_path / "new" / "a.json") as part:
        part.write_text("1")
    assert (tmp_path / "new" / "a.json").read_text() == "1"
    assert os.listdir(tmp_path / "new") == ["a.json"]


def test_output_below_a_file_is_refused_and_nothing_made(tmp_path):
    (tmp_path / "a").write_text("1")
    for path in (tmp_path / "a", tmp_path / "a" / "b" / "c"):
        with pytest.raises(UsageError, match=r"a file is in the way.*--output"):
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


@POSIX
def test_file_has_the_mode_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_text("x")
    with atomic_write(tmp_path / "ours") as part:
        part.write_text("x")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.fixture
def umask():
    """A umask that gives nothing to others and lets the group read."""
    before = os.umask(0o027)
    yield 0o027
    os.umask(before)


@pytest.fixture
def turns():
    """New threads let others go on after each call that our code makes."""

    def give_way(frame, event, _argument):
        if event == "c_return" and frame.f_code.co_filename.endswith("files.py"):
            time.sleep(1e-6)

    threading.setprofile(give_way)
    yield
    threading.setprofile(None)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_umask_of_the_process_stays_while_threads_write(tmp_path, umask, turns):
    def write(number):
        for _ in range(50):
            with atomic_write(tmp_path / f"{number}.txt") as part:
                part.write_text("x")
            with atomic_folder(tmp_path / f"{number} {_}"):
                pass

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    seen = set()
    while any(thread.is_alive() for thread in threads):
        with open("/proc/self/status") as file:
            seen |= {line.split()[1] for line in file if line.startswith("Umask")}
    assert seen <= {"0027"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o640, 0o750}


@POSIX
@pytest.mark.parametrize("mode", [0o600, 0o644, 0o664, 0o400])
def test_file_that_is_replaced_keeps_its_permissions_and_shows_no_more_before(tmp_path, umask, mode):
    (tmp_path / "a").write_text("earlier")
    (tmp_path / "a").chmod(mode)
    with atomic_write(tmp_path / "a") as part:
        assert stat.S_IMODE(part.stat().st_mode) & ~(mode | 0o600) == 0
        part.write_text("x")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode
    assert (tmp_path / "a").read_text() == "x"


@POSIX
def test_link_is_replaced_and_what_it_leads_to_stays(tmp_path, umask):
    (tmp_path / "content").write_text("earlier")
    (tmp_path / "a").symlink_to(tmp_path / "content")
    with atomic_write(tmp_path / "a") as part:
        part.write_text("x")
    assert not (tmp_path / "a").is_symlink()
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640
    assert (tmp_path / "content").read_text() == "earlier"


def test_folder_appears_with_all_that_is_in_it_or_not_at_all(tmp_path):
    with atomic_folder(tmp_path / "new" / "a") as part:
        (part / "b").mkdir()
        assert [p.name for p in (tmp_path / "new").iterdir()] == [part.name]
    assert [p.name for p in (tmp_path / "new" / "a").iterdir()] == ["b"]
    with pytest.raises(OSError, match="not empty"), atomic_folder(tmp_path / "new" / "a"):
        pass
    with pytest.raises(ValueError, match="while it is filled"), atomic_folder(tmp_path / "new" / "c"):
        raise ValueError("while it is filled")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a"]
    assert [p.name for p in (tmp_path / "new" / "a").iterdir()] == ["b"]


def _write_and_stay(folder: Path, ready) -> None:
    with atomic_write(folder / "a.nii.gz") as part, temporary_folder(folder) as work, lock(folder / "b"):
        part.write_text("half")
        (work / "inner").mkdir()
        (work / "inner" / "file").write_text("half")
        ready.set()
        time.sleep(60)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_a_killed_process_left_goes_and_what_a_living_one_is_at_stays(tmp_path):
    ready = FORK.Event()
    process = FORK.Process(target=_write_and_stay, args=(tmp_path, ready), daemon=True)
    process.start()
    assert ready.wait(30)
    assert len(list(tmp_path.iterdir())) == 3
    remove_leftovers(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    process.kill()
    while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)  # it has ended, but not been asked for
    with atomic_write(tmp_path / "later") as part:  # the first file that this process writes there
        remove_leftovers(tmp_path)
        assert os.listdir(tmp_path) == [part.name]
        (tmp_path / f"{part.name[:-8]}01234567").touch()  # of an earlier process of the same number
        remove_leftovers(tmp_path)
        assert os.listdir(tmp_path) == [part.name]
    assert os.listdir(tmp_path) == ["later"]
    process.join(30)


def test_leftovers_of_others_stay_a_week_and_what_is_not_ours_stays(tmp_path):
    theirs = [
        ".part_000000001f_0123abcd.nii",
        ".part_ab_3xyz9",
        ".part_ab_3xyz9.nii.gz",
    ]  # another machine, and unsigned
    kept = [".part_mine", ".lock_x", "part_ab_3xyz9", ".part_ab_3xyz9y_z.nii", ".partial_ab_3xyz9"]
    for name in (*theirs, *kept):
        (tmp_path / name).write_text("x")
    (tmp_path / ".lock_0123456789abcdef").write_text("zzzz")  # signed by another machine
    (tmp_path / ".part_ab_3xyz8").symlink_to(tmp_path / "part_ab_3xyz9")
    remove_leftovers(tmp_path)
    assert len(list(tmp_path.iterdir())) == 10
    for name in (*theirs, *kept, ".lock_0123456789abcdef"):
        os.utime(tmp_path / name, (time.time() - 8 * 86400,) * 2)
    remove_leftovers(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {*kept, ".part_ab_3xyz8"}


def test_lock_leaves_no_file_and_tells_who_comes_second(tmp_path):
    with lock(tmp_path / "new" / "a") as mine:
        with lock(tmp_path / "new" / "a", wait=False) as second, lock(tmp_path / "new" / "b", wait=False) as other:
            assert (mine, second, other) == (True, False, True)
        with lock(tmp_path / "new" / "a", wait=0.1) as after_a_while:
            assert not after_a_while
    with lock(tmp_path / "new" / "a", wait=False) as again:
        assert again
    assert os.listdir(tmp_path / "new") == []


@POSIX
def test_lock_is_free_though_a_process_that_was_forked_meanwhile_lives(tmp_path):
    with lock(tmp_path / "a"):
        process = FORK.Process(target=time.sleep, args=(60,), daemon=True)
        process.start()
        path = next(tmp_path.iterdir())
        (tmp_path / "waits").hardlink_to(path)  # as one who opened the lock's file before it went
    with (tmp_path / "waits").open("a") as file:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    process.kill()
    process.join(30)


@POSIX
def test_lock_that_was_deleted_is_not_held_by_two(tmp_path):
    ends = []
    with lock(tmp_path / "a"):
        waits = threading.Thread(target=lambda: ends.append(_held_alone(tmp_path / "a")))
        waits.start()
        time.sleep(0.05)  # it has opened the file that goes now
    waits.join(30)
    assert ends == [True]


def _held_alone(target: Path) -> bool:
    with lock(target) as mine, lock(target, wait=False) as second:
        return mine and not second


@POSIX
def test_lock_never_writes_where_a_link_leads(tmp_path):
    with lock(tmp_path / "a"):
        name = next(tmp_path.iterdir()).name
    (tmp_path / "content").write_text("precious")
    (tmp_path / name).symlink_to(tmp_path / "content")
    with pytest.raises(OSError, match=name), lock(tmp_path / "a"):
        pass
    assert (tmp_path / "content").read_text() == "precious"


def test_no_other_module_needs_what_only_some_systems_have():
    apps = Path(__file__).resolve().parent.parent / "apps"
    words = ("import fcntl", "import msvcrt", "os.umask(", 'mkdtemp(prefix=".part_')
    found = {path.relative_to(apps).as_posix() for path in apps.rglob("*.py") for w in words if w in path.read_text()}
    assert found == {"files.py"}


def test_files_are_written_where_the_system_has_no_locks(tmp_path):
    code = (
        "import sys; sys.modules['fcntl'] = None\n"
        "from decathlete.files import atomic_write, lock, remove_leftovers\n"
        "with atomic_write('a.txt') as part: part.write_text('x')\n"
        "with lock('a.txt', wait=False) as mine, lock('a.txt', wait=False, sure=True) as sure: print(mine, sure)\n"
        "remove_leftovers('.')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]
    assert "has no locks" in done.stderr
    assert os.listdir(tmp_path) == ["a.txt"]


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


def test_nifti_files_keep_a_link_whose_content_is_not_there(tmp_path):
    (tmp_path / "b.nii").touch()
    (tmp_path / "a.nii.gz").symlink_to("../store/KEY.nii.gz")
    (tmp_path / "folder").mkdir()
    (tmp_path / "c.nii").symlink_to(tmp_path / "folder")
    assert [p.name for p in nifti_files(tmp_path)] == ["a.nii.gz", "b.nii"]


@pytest.mark.parametrize(
    ("name", "is_one"),
    [("a.nii.gz", True), ("UPPER.NII.GZ", True), ("a.Nii", True), ("._a.nii.gz", False), (".nii", False), ("a", False)],
)
def test_one_rule_says_which_names_are_niftis(name, is_one):
    assert is_nifti_name(name) == is_one


def test_what_stands_in_a_files_place_is_named_and_how_it_is_fetched(tmp_path):
    link, pointer, small = tmp_path / "link.nii.gz", tmp_path / "pointer.nii", tmp_path / "small.nii"
    link.symlink_to("../.git/annex/objects/KEY")
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    small.write_bytes(b"n+1 /annex/objects/")
    with pytest.raises(DataError, match=r"link to \.\./\.git/annex/objects/KEY, which does not exist\). Fetch it"):
        check_content(link)
    with pytest.raises(DataError, match=r"only a Git LFS pointer\). Fetch it \('git lfs pull'\)"):
        check_content(pointer)
    for path in (small, tmp_path / "nothing", tmp_path):
        check_content(path)
