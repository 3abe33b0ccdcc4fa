from __future__ import annotations

import os

from decathlete.machine import free_memory_bytes


def test_free_memory_is_less_than_the_machine_has():
    assert 0 < free_memory_bytes() < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
