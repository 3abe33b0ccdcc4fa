from __future__ import annotations

import os

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
