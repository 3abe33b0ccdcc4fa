"""Two processes train on phantoms; one meets a fault, and all end with one message."""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from decathlete.data import fetch
from decathlete.distributed import faults
from decathlete.distributed.faults import FaultElsewhereError, fail_together, is_lost_process
from decathlete.errors import DataError, TrainingError

SMALL = {
    "batch_size": 1,
    "patch_size": "[32,32,32]",
    "margin_size": "[36,36,36]",
    "roi_size": "[32,32,32]",
    "network_def::channels": "[4,8,8,8]",
    "train::handlers::0::every_s": 0,
    "val_interval": 100000,
}
# the images of the second process are no numbers; labels become shares of three classes
NAN_IN_THE_SECOND = (
    "$lambda b: {'image': b['image'] * (float('nan') if __import__('os').environ['RANK'] == '1' else 1), "
    "'label': torch.cat([b['label'] == c for c in range(3)], 1).float()}"
)


def _fail(rank: int, port: int, folder: Path, error: Exception, parent: int | None) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), MASTER_ADDR="localhost")
    os.environ["MASTER_PORT"] = str(port)
    os.dup2(os.open(folder / f"{rank}.txt", os.O_CREAT | os.O_WRONLY), 2)
    sys.stderr = os.fdopen(2, "w")
    faults.process_store()
    faults.PATIENCE_S = 2.0  # the first process holds the store
    faults._parent = parent
    fail_together(error)


def _messages(folder: Path, errors: list[Exception], parent: int | None = None) -> tuple[list[str], list[int | None]]:
    """What two failing processes, once started by ``parent``, write on stderr, and their exit statuses."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=_fail, args=(r, port, folder, errors[r], parent), daemon=True) for r in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return [(folder / f"{r}.txt").read_text() for r in range(2)], [p.exitcode for p in processes]


def test_a_failure_of_all_processes_is_told_by_one(tmp_path):
    texts, statuses = _messages(tmp_path, [DataError("a.nii.gz", "must be readable", "noise")] * 2)
    assert sorted(len(text.splitlines()) for text in texts) == [0, 1]
    assert statuses == [1, 1]


def test_the_process_where_it_happened_tells_and_not_the_one_that_saw_the_effect(tmp_path):
    effect = FaultElsewhereError("iteration 1", "not finite", "nan")
    (first, second), _ = _messages(tmp_path, [effect, TrainingError("iteration 1, cases b", "not finite", "nan")])
    assert first == ""
    assert second.startswith(f"decathlete: process 1 of 2 on {socket.gethostname()}, iteration 1, cases b: not finite")


def test_a_lost_process_is_told_where_nobody_says_why(tmp_path):
    lost = [RuntimeError("[gloo/pair.cc:5] Connection closed by peer")] * 2
    text = "".join(_messages(tmp_path, lost)[0])
    assert text.count("decathlete:") == 1
    assert "another process no longer answers (" in text


def test_torchrun_that_ended_is_told_and_not_the_process_that_saw_it_first_and_went(tmp_path):
    lost = RuntimeError("[gloo/pair.cc:5] Connection closed by peer")
    gone = TrainingError("torchrun", "must stay", "it has ended")
    (first, second), statuses = _messages(tmp_path, [lost, gone], parent=1 << 30)  # no process has this number
    assert first.startswith("decathlete: process 0 of 2")
    assert "torchrun: ended while its processes were still running" in first
    assert second == ""
    assert statuses == [1, 1]


def test_exchanges_that_fail_are_told_from_other_errors():
    assert is_lost_process(torch.distributed.DistBackendError("NCCL error"))
    assert not is_lost_process(RuntimeError("shapes differ"))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    fetch("hippocampus", folder, phantom=8)
    return folder / "Task04_Hippocampus"


class Run:
    """``decathlete run training --gpus 2`` of the hippocampus bundle, made small."""

    def __init__(self, data: Path, output: Path, *words: str, full: bool = False, **ids: object) -> None:
        values = {**SMALL, "dataset_dir": data, "output_dir": output, **ids}
        pairs = [word for name, value in values.items() for word in (f"--{name}", str(value))]
        command = [sys.executable, "-m", "decathlete.cli", "run", "training", "--config", "hippocampus", "--gpus", "2"]
        limit = (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))) if full else None
        self.last = output / "last.pt"
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen([*command, *words, *pairs], stderr=subprocess.PIPE, text=True,
                                        preexec_fn=limit, env=environment)  # fmt: skip

    def messages(self, timeout_s: float = 240) -> list[str]:
        """The lines that tell of an error, once the run has ended."""
        self.text = self.process.communicate(timeout=timeout_s)[1]
        return [line for line in self.text.splitlines() if line.startswith("decathlete:")]

    def ranks(self) -> dict[int, int]:
        """Process ids of both processes, once the run has written a checkpoint."""
        until = time.monotonic() + 240
        while not self.last.is_file() and self.process.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        found = {}
        for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
            words = Path(f"/proc/{pid}/environ").read_text().split("\0")
            found.update({int(word[5:]): int(pid) for word in words if word.startswith("RANK=")})
        return found


def _wait_for_end(pids: list[int], seconds: float = 30) -> bool:
    until = time.monotonic() + seconds
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < until:
        time.sleep(0.1)
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.slow
def test_nan_in_one_process_is_told_with_its_cases(data, tmp_path):
    run = Run(data, tmp_path, **{"train::trainer::batch_transform": NAN_IN_THE_SECOND, "margin_size": "[32,32,32]"})
    (message,) = run.messages()
    assert "decathlete: process 1 of 2 on" in message
    assert "cases hippocampus_00" in message
    assert "not a finite number (nan" in message


@pytest.mark.slow
def test_a_full_disk_ends_all_processes_with_one_message(data, tmp_path):
    (message,) = Run(data, tmp_path, full=True).messages()
    assert f"decathlete: process 0 of 2 on {socket.gethostname()}, {tmp_path}/last.pt" in message
    assert "Free some disk space" in message


@pytest.mark.slow
def test_a_case_that_one_process_cannot_read_is_named(data, tmp_path):
    broken = shutil.copytree(data, tmp_path / data.name)
    victim = sorted((broken / "imagesTr").iterdir())[2]
    victim.write_bytes(victim.read_bytes()[:500])
    (message,) = Run(broken, tmp_path / "run", **{"train::dataset::mode": "none"}).messages()
    assert f"of 2 on {socket.gethostname()}, {victim}:" in message


@pytest.mark.slow
def test_a_killed_process_ends_the_other_one_and_is_named(data, tmp_path):
    run = Run(data, tmp_path, max_epochs=100000)
    pids = run.ranks()
    os.kill(pids[1], signal.SIGKILL)
    (message,) = run.messages(60)
    assert message.startswith("decathlete: hippocampus, process 1 of 2: the process failed (SIGKILL")
    assert _wait_for_end(list(pids.values()))


@pytest.mark.slow
def test_processes_end_when_what_started_them_is_killed(data, tmp_path):
    run = Run(data, tmp_path, max_epochs=100000)
    pids = run.ranks()
    run.process.kill()
    (message,) = run.messages(60)
    assert "process 0 of 2" in message
    assert "torchrun: ended while" in message
    assert _wait_for_end(list(pids.values()))


@pytest.mark.slow
def test_a_restarted_run_ends_with_the_weights_of_an_unbroken_one(data, tmp_path):
    unbroken = Run(data, tmp_path / "unbroken", max_epochs=30)
    assert unbroken.messages() == []
    run = Run(data, tmp_path / "broken", "--max-restarts", "1", max_epochs=30)
    os.kill(run.ranks()[1], signal.SIGKILL)
    assert run.messages() == [], run.text
    assert "resume: continuing after epoch" in run.text
    first, second = (torch.load(tmp_path / name / "model_final.pt") for name in ("unbroken", "broken"))
    assert all(torch.equal(first[key], second[key]) for key in first)
