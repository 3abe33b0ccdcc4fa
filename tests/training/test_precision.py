from __future__ import annotations

import pytest
import torch

from decathlete.training import amp_dtype


@pytest.mark.parametrize(("capability", "expected"), [((9, 0), torch.bfloat16), ((8, 0), torch.bfloat16),
                                                      ((7, 0), torch.float16)])  # fmt: skip
def test_gpus_before_ampere_compute_in_float16(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert amp_dtype("cuda") == expected


@pytest.mark.parametrize(("has_it", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_cpu_computes_in_bfloat16_where_it_has_the_instructions(monkeypatch, has_it, expected):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: has_it, raising=False)
    assert amp_dtype("cpu") == expected


def test_amp_off_and_other_devices_are_float32():
    assert amp_dtype("cuda", amp=False) == amp_dtype("mps") == torch.float32
