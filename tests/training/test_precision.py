from __future__ import annotations

import pytest
import torch

from decathlete.errors import DeviceError
from decathlete.training import amp_dtype, precision


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


@pytest.mark.parametrize(("version", "cudnn", "known"), [
    ("2.13.0", 91600, ""), ("2.8.0", 90701, ""), ("2.8.0+cu128", 91002, "cuDNN 9.8 to 9.10"), ("2.8.0", 91100, ""),
    ("2.9.1", 91002, "torch 2.9"), ("2.9.1", 91300, "torch 2.9"), ("2.9.1", 91500, ""), ("2.13.0", None, ""),
])  # fmt: skip
def test_versions_with_faulty_3d_convolutions_are_named_with_the_remedy(monkeypatch, version, cudnn, known):
    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: cudnn)
    warning = precision.gpu_warning()
    assert (known in warning and "9.15 or newer" in warning) if known else warning == ""


def test_a_sound_convolution_passes_its_trial(monkeypatch):
    monkeypatch.setattr(precision, "_TESTED_EDGE", 8)
    precision.check_convolutions(torch.device("cpu"), torch.bfloat16)


def test_a_wrong_convolution_is_refused_before_a_training(monkeypatch):
    inner = torch.nn.functional.conv3d

    def wrong(image, *args, **kwargs):
        out = inner(image, *args, **kwargs)
        return out * (image.dtype == torch.float32)

    monkeypatch.setattr(precision, "_TESTED_EDGE", 8)
    monkeypatch.setattr(precision.F, "conv3d", wrong)
    with pytest.raises(DeviceError, match=r"cpu: 3D convolutions .*wrong on this GPU \(off by 100.0%.*torch 2.*9.15"):
        precision.check_convolutions(torch.device("cpu"), torch.bfloat16)
