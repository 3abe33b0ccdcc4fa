from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from decathlete import machine
from decathlete.machine import (
    affinity_cores,
    cores,
    free_device_bytes,
    free_memory_bytes,
    gpu_names,
    has_bfloat16,
    let_segments_grow,
    peak_memory_gib,
    total_memory_bytes,
)


def test_free_memory_is_less_than_the_machine_has():
    assert 0 < free_memory_bytes() < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Function (path to text) that writes /proc and /sys of a machine with 64 kB, of which 40 are free."""

    def write(files: dict[str, str]) -> None:
        for name, text in {"proc/meminfo": "MemTotal: 64 kB\nMemFree: 9 kB\nMemAvailable: 40 kB\n", **files}.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)

    monkeypatch.setattr(machine, "_SYSTEM", tmp_path)
    return write


def test_limits_of_the_jobs_control_groups_count_and_pages_of_files_are_free(system):
    system({})
    assert (total_memory_bytes(), free_memory_bytes()) == (65536, 40960)
    job, step = "sys/fs/cgroup/slurm/job_7/", "sys/fs/cgroup/slurm/job_7/step_0/"
    system({
        "proc/self/cgroup": "0::/slurm/job_7/step_0\n",
        f"{step}memory.max": "max\n", f"{step}memory.current": "4096\n", f"{step}memory.stat": "anon 1\n",
        f"{job}memory.max": "32768\n", f"{job}memory.current": "20480\n",
        f"{job}memory.stat": "anon 8192\ninactive_file 10240\n",
    })  # fmt: skip
    assert (total_memory_bytes(), free_memory_bytes()) == (32768, 32768 - 20480 + 10240)


def test_limits_of_a_container_by_the_first_version_of_control_groups(system):
    top = "sys/fs/cgroup/memory/"
    system({
        "proc/self/cgroup": "5:cpu:/docker/ab\n4:memory:/docker/ab\n0::/\n",  # a path that is the host's
        f"{top}memory.limit_in_bytes": "16384", f"{top}memory.usage_in_bytes": "8192",
        f"{top}memory.stat": "total_inactive_file 4096",
    })  # fmt: skip
    assert (total_memory_bytes(), free_memory_bytes()) == (16384, 12288)


def test_a_system_that_tells_nothing_has_memory_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_SYSTEM", tmp_path)
    assert (total_memory_bytes(), free_memory_bytes()) == (float("inf"), float("inf"))


@pytest.fixture
def eight_cores(monkeypatch):
    """Affinity of eight cores, and no Slurm."""
    monkeypatch.setattr(machine, "affinity_cores", lambda: 8)
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)


def test_cores_are_those_of_the_affinity_where_nothing_limits_them(system, eight_cores):
    system({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"})
    assert cores() == 8


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity on this system")
def test_affinity_counts_not_the_machine():
    code = "import os\nos.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\nfrom decathlete import machine\n"
    command = [sys.executable, "-c", f"{code}print(machine.affinity_cores())"]
    assert subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout == "1\n"
    assert affinity_cores() == len(os.sched_getaffinity(0))


def test_cores_of_a_container_are_its_quota_rounded_up(system, eight_cores):
    job = "sys/fs/cgroup/kubepods/pod_3"
    system({
        "proc/self/cgroup": "0::/kubepods/pod_3/box\n",
        f"{job}/box/cpu.max": "max 100000\n", f"{job}/cpu.max": "250000 100000\n",
    })  # fmt: skip
    assert cores() == 3


def test_cores_of_a_container_by_the_first_version_of_control_groups(system, eight_cores):
    top = "sys/fs/cgroup/cpu"
    system({
        "proc/self/cgroup": "4:memory:/docker/ab\n3:cpu,cpuacct:/docker/ab\n0::/\n",
        f"{top}/cpu.cfs_quota_us": "400000\n", f"{top}/cpu.cfs_period_us": "100000\n",
    })  # fmt: skip
    assert cores() == 4
    system({f"{top}/cpu.cfs_quota_us": "-1\n"})
    assert cores() == 8


def test_cores_of_a_slurm_task_are_those_it_asked_for(system, eight_cores, monkeypatch):
    system({})
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "2")
    assert cores() == 2


def test_peak_memory_grows_with_what_is_taken():
    code = (  # in a process of its own, whose peak is a small one
        "from decathlete.machine import peak_memory_gib as peak\n"
        "before = peak()\n"
        "taken = b'1' * int((before + 0.1) * 2**30)\n"
        "held = peak()\n"
        "del taken\n"
        "print(before, held, peak())"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True)
    before, held, after = map(float, done.stdout.split())
    assert 0 < before < 1
    assert min(held, after) >= before + 0.09


@pytest.mark.skipif(sys.platform != "linux", reason="what is told elsewhere is getrusage's")
def test_the_peak_is_not_that_of_the_process_that_started_this_one():
    taken = bytearray(b"x") * 200_000_000
    command = [sys.executable, "-c", "from decathlete.machine import peak_memory_gib; print(peak_memory_gib())"]
    child = float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    assert child < 0.15 < len(taken) / 2**30 < peak_memory_gib()


def test_what_torch_has_reserved_and_does_not_use_is_free_on_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 70)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 30)
    assert free_device_bytes("cuda:0") == 140


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_segments_can_grow_unless_the_environment_says_how_torch_allocates(monkeypatch, name):
    for known in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.setenv(known, "")
        monkeypatch.delenv(known)
    let_segments_grow()
    assert os.environ.pop("PYTORCH_CUDA_ALLOC_CONF") == "expandable_segments:True"
    monkeypatch.setenv(name, "backend:native")
    let_segments_grow()
    assert [v for k, v in os.environ.items() if k.endswith("ALLOC_CONF")] == ["backend:native"]


def test_gpus_are_those_that_the_driver_names_and_the_process_may_see(system, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    system({})
    assert gpu_names() == []
    for bus, model in (("0000:81:00.0", "NVIDIA H200"), ("0000:01:00.0", "NVIDIA L4")):
        system({f"proc/driver/nvidia/gpus/{bus}/information": f"Model: \t\t {model}\nIRQ:   \t\t 77\n"})
    assert gpu_names() == ["NVIDIA L4", "NVIDIA H200"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu_names() == []


@pytest.mark.parametrize(("flags", "expected"), [("fpu avx512f", False), ("fpu avx512_bf16", True), ("amx_tile", True)])
def test_a_cpu_computes_in_bfloat16_if_its_flags_say_so(system, flags, expected):
    system({"proc/cpuinfo": f"processor\t: 0\nflags\t\t: {flags}\n"})
    assert has_bfloat16() is expected
    system({"proc/cpuinfo": "Features : asimd\n"})
    assert not has_bfloat16()
