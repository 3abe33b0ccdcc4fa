"""Small tensors that travel to a GPU in one copy."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

_ALIGNED = 8  # bytes of the largest type


class Parcel:
    """Numbers that were drawn on the CPU, sent to a device in one pinned copy that nobody waits for.

    On the CPU nothing is copied.
    """

    def __init__(self) -> None:
        self._tensors: list[Tensor] = []

    def add(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Take in a tensor; what is returned gives it on the device, once the parcel was sent."""
        self._tensors.append(tensor)
        number = len(self._tensors) - 1
        return lambda: self._tensors[number]

    def send(self, device: torch.device) -> None:
        """Bring all tensors to ``device``."""
        if device.type == "cpu" or not self._tensors:
            return
        flat = [tensor.contiguous().view(-1).view(torch.uint8) for tensor in self._tensors]
        sizes = [len(part) + -len(part) % _ALIGNED for part in flat]
        together = torch.cat([F.pad(part, (0, size - len(part))) for part, size in zip(flat, sizes, strict=True)])
        arrived = pinned(together, device).to(device, non_blocking=True).split(sizes)
        self._tensors = [
            there[: len(part)].view(tensor.dtype).view(tensor.shape)
            for there, part, tensor in zip(arrived, flat, self._tensors, strict=True)
        ]


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor in memory from which a copy to ``device`` need not be waited for."""
    return tensor.pin_memory() if device.type == "cuda" else tensor
