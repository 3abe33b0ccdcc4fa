"""The number format of the forward pass, for training and prediction alike."""

from __future__ import annotations

import torch


def amp_dtype(device: torch.device | str, amp: bool = True) -> torch.dtype:
    """Type in which convolutions run: bfloat16 where ``amp`` is set and the device computes in it, else float32.

    float16 on CUDA devices before Ampere: they have it and lack bfloat16; training then needs a gradient scaler.
    On a CPU without bfloat16 instructions it is emulated and slower than float32, which is then taken.
    """
    device = torch.device(device)
    if not amp:
        return torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16
    if device.type == "cpu":
        supported = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        if any(getattr(torch.cpu, name, lambda: False)() for name in supported):
            return torch.bfloat16
    return torch.float32


def autocast(device: torch.device | str, amp: bool = True) -> torch.autocast:
    """Context in which a forward pass on ``device`` runs in :func:`amp_dtype`.

    MONAI's engines ask for ``autocast("cuda")`` whatever the device is, which does nothing on a CPU.
    """
    device, dtype = torch.device(device), amp_dtype(device, amp)
    if dtype == torch.float32:  # torch warns when an enabled autocast is asked for float32
        return torch.autocast(device.type if device.type in ("cpu", "cuda") else "cpu", enabled=False)
    return torch.autocast(device.type, dtype=dtype)
