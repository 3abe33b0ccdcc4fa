"""The number format of the forward pass, for training and prediction alike."""

from __future__ import annotations

import logging
import time

import torch
import torch.nn.functional as F

from decathlete.errors import DeviceError

logger = logging.getLogger(__name__)

_LARGEST_ERROR = 0.05  # of bfloat16 against float32, relative; rounding gives 0.003
_TESTED_EDGE = 96  # voxels, of a patch as large as those of a training


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


def gpu_versions() -> str:
    """Versions of what computes on a GPU, in words."""
    return f"torch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN {_cudnn() or 'missing'}"


def gpu_warning() -> str:
    """A warning about versions whose 3D convolutions in bfloat16 are known to be wrong or slow; empty for others.

    Source: PyTorch issues 166122, 166643 and 163539.
    """
    version = tuple(int(part) for part in _cudnn().split(".")) if _cudnn() else ()
    if torch.__version__.startswith("2.9.") and version < (9, 15):
        known = "torch 2.9"
    elif (9, 8) <= version[:2] <= (9, 10):
        known = "cuDNN 9.8 to 9.10"
    else:
        return ""
    return (f"3D convolutions in bfloat16 are known to be wrong or slow with {known}: install cuDNN 9.15 or newer "
            "(pip install 'nvidia-cudnn-cu12>=9.15')")  # fmt: skip


def _cudnn() -> str:
    number = torch.backends.cudnn.version()  # 91002 is 9.10.2
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}" if number else ""


def describe_gpu(device: torch.device, dtype: torch.dtype, deterministic: bool) -> str:
    """One line on how a training computes on a GPU."""
    kernels = "deterministic kernels (deterministic: false may be faster)" if deterministic else "the fastest kernels"
    exact = torch.backends.cudnn.allow_tf32
    return (f"{device} ({torch.cuda.get_device_name(device)}), {gpu_versions()}: {str(dtype).partition('.')[2]}, "
            f"float32 convolutions {'in TF32' if exact else 'without TF32'}, {kernels}")  # fmt: skip


def check_convolutions(device: torch.device, dtype: torch.dtype) -> None:
    """Compare a 3D convolution in the format of a training with one in float32, in about a second.

    Raises:
        DeviceError: they differ by more than rounding.
    """
    if warning := gpu_warning():
        logger.warning("%s", warning)
    if dtype == torch.float32:
        return
    edge = _TESTED_EDGE
    image = torch.arange(2 * 32 * edge**3, device=device, dtype=torch.float32).sin_().view(2, 32, edge, edge, edge)
    weight = torch.arange(32 * 32 * 27, device=device, dtype=torch.float32).cos_().view(32, 32, 3, 3, 3)
    found, seconds = [], []
    for kind in (torch.float32, dtype):
        inputs, kernel = image.to(kind), weight.to(kind)
        F.conv3d(inputs, kernel, padding=1)  # chooses the kernel
        _wait(device)
        start = time.perf_counter()
        found.append(F.conv3d(inputs, kernel, padding=1).float())
        _wait(device)
        seconds.append(time.perf_counter() - start)
    error = float((found[0] - found[1]).norm() / found[0].norm())
    if not error < _LARGEST_ERROR:
        raise DeviceError(device, f"3D convolutions in {dtype} are wrong on this GPU",
                          f"off by {error:.1%} of those in float32, {gpu_versions()}",
                          "Install cuDNN 9.15 or newer, or set amp to false")  # fmt: skip
    if seconds[1] > seconds[0]:
        logger.warning("%s: 3D convolutions in %s take %.1f times as long as in float32 (%s): try cuDNN 9.15 or newer, "
                       "or amp: false", device, dtype, seconds[1] / seconds[0], gpu_versions())  # fmt: skip


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
