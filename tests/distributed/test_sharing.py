"""Cases over processes and jobs: each is predicted once, whatever ends in between."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from decathlete.distributed.sharing import Share, claim, listed_inputs
from decathlete.errors import DataError
from decathlete.inference import predict
from decathlete.inference.inputs import input_files
from decathlete.inference.outcome import PredictReport
from decathlete.quiet import quiet

FORK = multiprocessing.get_context("fork")
SPAWN = multiprocessing.get_context("spawn")  # a forked process may wait for ever for threads that its parent had


def test_what_is_claimed_is_nobody_elses_and_nothing_is_left(tmp_path):
    target = tmp_path / "out" / "case.nii.gz"
    with claim(target) as mine:
        with claim(target) as theirs, claim(tmp_path / "out" / "other.nii.gz") as other:
            assert (mine, theirs, other) == (True, False, True)
        with claim(target) as still:
            assert not still
    with claim(target) as again:
        assert again
    assert list((tmp_path / "out").iterdir()) == []


def _claim_and_stay(target: Path, ready) -> None:
    with claim(target):
        ready.set()
        time.sleep(60)


def test_the_claim_of_a_killed_process_is_free(tmp_path):
    ready = FORK.Event()
    process = FORK.Process(target=_claim_and_stay, args=(tmp_path / "case.nii.gz", ready), daemon=True)
    process.start()
    assert ready.wait(30)
    with claim(tmp_path / "case.nii.gz") as mine:
        assert not mine
    process.kill()
    process.join(30)
    with claim(tmp_path / "case.nii.gz") as mine:
        assert mine


def _count(path: Path, times: int) -> None:
    for _ in range(times):
        with claim(path, wait=True):
            path.write_text(str(int(path.read_text()) + 1))


def test_one_at_a_time_adds_to_a_file_though_locks_come_and_go(tmp_path):
    path = tmp_path / "count.txt"
    path.write_text("0")
    processes = [FORK.Process(target=_count, args=(path, 100), daemon=True) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert path.read_text() == "400"


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="the output cannot be written"), claim(tmp_path / "file" / "case.nii.gz"):
        pass


@pytest.fixture
def files(tmp_path) -> tuple[list[Path], dict[Path, dict[str, Path]]]:
    """Five inputs and their outputs, of which the fourth is there."""
    inputs = [Path(f"in/{n}.nii") for n in range(5)]
    targets = {path: {"label": tmp_path / path.name} for path in inputs}
    targets[inputs[3]]["label"].write_text("done")
    return inputs, targets


def test_a_process_takes_its_share_and_then_what_the_others_have_not_begun(files):
    assert [int(file.stem) for file in Share(0, 2).claimed(*files)] == [0, 2, 4, 1]
    assert [int(file.stem) for file in Share(1, 2).claimed(*files)] == [3, 1, 4, 2, 0]  # 3 is told as already there
    assert [int(file.stem) for file in Share(1, 2).claimed(*files, overwrite=True)] == [1, 3]


def test_what_another_job_has_claimed_is_passed_over_and_asked_for_again(files):
    inputs, targets = files
    share = Share(0, 1)
    with claim(targets[inputs[1]]["label"]):
        assert [int(file.stem) for file in share.claimed(*files)] == [3, 0, 2, 4]
    assert share.elsewhere == [inputs[1]]
    claimed = claim(targets[inputs[1]]["label"])
    claimed.__enter__()
    seen = []
    for file in share.claimed(*files):
        seen.append(int(file.stem))
        if file == inputs[4]:
            claimed.__exit__(None, None, None)  # its owner ends without having written it
    assert seen == [3, 0, 2, 4, 1]


def test_a_text_file_lists_inputs_beside_itself(tmp_path):
    for name in ("a.nii.gz", "b.nii.gz"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "c.nii").write_bytes(b"")
    (tmp_path / "cases.txt").write_text(f"# of today\nb.nii.gz\n\n{tmp_path}/a.nii.gz\nmore\n")
    assert [file.name for file in input_files(tmp_path / "cases.txt")] == ["b.nii.gz", "a.nii.gz", "c.nii"]
    for mark in ("utf-8-sig", "utf-16"):  # as editors of Windows write
        (tmp_path / "marked.txt").write_text("b.nii.gz\n", encoding=mark)
        assert listed_inputs(tmp_path / "marked.txt") == [tmp_path / "b.nii.gz"]
    (tmp_path / "none.txt").write_text("# nothing\n")
    with pytest.raises(DataError, match="no path"):
        listed_inputs(tmp_path / "none.txt")
    (tmp_path / "cases.txt").write_text("z.nii.gz\n")
    with pytest.raises(DataError, match=r"z\.nii\.gz: no such file"):
        input_files(tmp_path / "cases.txt")


def _scans(folder: Path, number: int) -> Path:
    folder.mkdir()
    for n in range(number):
        voxels = np.random.default_rng(n).normal(100, 20, (8, 8, 8)).astype(np.float32)
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), folder / f"case_{n:03d}.nii.gz")
    return folder


def _predict(rank: int, port: int, bundle: Path, inputs: Path, output: Path, queue) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")  # as torchrun does
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
    sys.stderr = open(output.parent / f"stderr_{rank}", "w")  # noqa: SIM115
    quiet()  # as the command line is
    report = predict(bundle, inputs, output)
    sys.stderr.flush()
    queue.put((rank, [p.name for p in report.done], {p.name: text for p, text in report.failed.items()}))


@pytest.mark.slow
def test_two_processes_predict_each_case_once_and_one_of_them_tells(bundle, tmp_path):
    inputs, output = _scans(tmp_path / "in", 7), tmp_path / "out"
    (inputs / "case_009.nii.gz").write_bytes(b"noise")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    queue = SPAWN.Queue()
    processes = [
        SPAWN.Process(target=_predict, args=(r, port, bundle, inputs, output, queue), daemon=True) for r in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    said = [(tmp_path / f"stderr_{r}").read_text() for r in range(2)]
    assert [process.exitcode for process in processes] == [0, 0], said
    (_, first, failed), (_, second, _) = sorted(queue.get(timeout=10) for _ in processes)
    names = [f"case_{n:03d}.nii.gz" for n in range(7)]
    assert sorted(first) == names  # the first process returns what all of them did
    assert set(second) < set(names)
    assert list(failed) == ["case_009.nii.gz"]
    assert len(json.loads((output / "volumes.json").read_text())) == 7
    assert sorted(p.name for p in output.iterdir()) == [*names, "predictions.json", "volumes.json"]
    assert "7 predicted, 0 present, 1 failed, 0 left out, by 2 processes" in said[0]
    assert said[1] == ""


def test_a_case_that_one_process_made_and_another_found_counts_once():
    first = PredictReport(done=[Path("a"), Path("b")], skipped=[Path("c")])
    first.compare(Path("a"), "", [])
    second = {"paths": [["d"], ["b", "c"], [], ["d"], ["d"]], "failed": [["e", "no image"]]}

    class Two(Share):
        def gather(self, result):
            return [result, [*second["paths"], second["failed"], [["d", ["odd"]]]]]

    assert first.gather(Two(0, 2))
    assert [path.name for path in first.done] == ["a", "b", "d"]
    assert first.skipped == [Path("c")]
    assert first.failed == {Path("e"): "no image"}
    assert first.compared == [Path("a"), Path("d")]
    assert first.unlike == [Path("d")]
    assert first.warnings == {Path("d"): ["odd"]}


def _torchrun(bundle: Path, inputs: Path, output: Path) -> subprocess.Popen:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*start, "-m", "decathlete.cli", "predict", str(bundle), str(inputs), "--output", str(output)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def _second_rank(agent: int) -> int:
    for pid in Path(f"/proc/{agent}/task/{agent}/children").read_text().split():
        if "RANK=1" in Path(f"/proc/{pid}/environ").read_text().split("\0"):
            return int(pid)
    raise AssertionError("no second process")


@pytest.mark.slow
def test_cases_of_a_killed_process_are_predicted_by_the_next_start(bundle, tmp_path):
    inputs, output = _scans(tmp_path / "in", 200), tmp_path / "out"
    process = _torchrun(bundle, inputs, output)
    while process.poll() is None and (not output.is_dir() or len(list(output.glob("case_*"))) < 60):
        time.sleep(0.02)
    os.kill(_second_rank(process.pid), signal.SIGKILL)
    process.communicate(timeout=120)
    before = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in output.glob("case_*")}
    assert 60 <= len(before) < 200  # the other rank goes on until torchrun ends it
    again = _torchrun(bundle, inputs, output)
    text = again.communicate(timeout=300)[1]
    assert f"{200 - len(before)} predicted, {len(before)} present, 0 failed, 0 left out, by 2 processes" in text, text
    written = {path.name: path for path in output.glob("case_*")}
    assert len(written) == 200
    assert all((written[name].stat().st_ino, written[name].stat().st_mtime_ns) == was for name, was in before.items())
    assert all(np.asarray(nib.load(path).dataobj).shape == (8, 8, 8) for path in written.values())
    assert len(json.loads((output / "volumes.json").read_text())) == 200
    assert list(output.glob(".*")) == []  # neither lock nor half a file of what was killed
