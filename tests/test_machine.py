from __future__ import annotations

import os
import subprocess
import sys

import pytest

from decathlete.machine import free_memory_bytes, peak_memory_gib


def test_free_memory_is_less_than_the_machine_has():
    assert 0 < free_memory_bytes() < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_peak_memory_grows_with_what_is_taken():
    before = peak_memory_gib()
    assert 0 < before < 1024
    taken = b"\1" * int((before + 0.1) * 2**30)
    assert peak_memory_gib() >= before + 0.09
    del taken
    assert peak_memory_gib() >= before + 0.09


@pytest.mark.skipif(sys.platform != "linux", reason="what is told elsewhere is getrusage's")
def test_the_peak_is_not_that_of_the_process_that_started_this_one():
    taken = bytearray(b"x") * 200_000_000
    command = [sys.executable, "-c", "from decathlete.machine import peak_memory_gib; print(peak_memory_gib())"]
    child = float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    assert child < 0.15 < len(taken) / 2**30 < peak_memory_gib()
