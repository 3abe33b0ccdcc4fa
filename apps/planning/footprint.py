"""Memory that a planned training takes, from shapes alone."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from decathlete.compat import fake_tensors
from decathlete.inference.memory import PROCESS_GIB
from decathlete.networks import UNet
from decathlete.planning.fingerprints import Fingerprint
from decathlete.planning.plans import Topology
from decathlete.training.precision import autocast

CUDA_GIB = 0.7  # a process's context on a GPU
FLOAT, DOUBLE = 4, 8
# Measured on a CPU in bfloat16, batches of 0.4 to 4 million voxels: the peak is 1.25 to 1.6 times what the backward
# pass keeps (gradients of the largest features, packed copies for the matrix units), and a little that does not grow.
WORKING = 1.45
FIXED_GIB = 0.06
SCORE_COPIES = 3  # float32 scores of every class beside what is kept: softmax, products, the class probabilities
AUGMENT_COPIES = 2.1  # of image, class probabilities and sampling grid, before the forward pass
STATES = 5  # weights, gradients, momentum, the averaged copy, one being made


@dataclass(frozen=True)
class Resident:
    """GiB that stay, or come and go, beside a training step: the process, the cases kept, a validation, a case read."""

    process: float
    cache: float
    validation: float
    preparing: float


@functools.lru_cache(maxsize=1024)
def network_bytes(network: Topology, patch: tuple[int, ...], channels: int, classes: int) -> tuple[int, int]:
    """Bytes that the backward pass keeps for each patch of a batch, and bytes of the weights.

    The network runs on shapes alone (torch's fake tensors), in bfloat16.
    """
    with fake_tensors():
        ghost = make_network(network, channels, classes, channels_last=False)  # the layout does not change the size
        with torch.autocast("cpu", dtype=torch.bfloat16):
            kept = _kept_bytes(lambda: ghost.train()(torch.empty(2, channels, *patch)), ghost.parameters())
        weights = sum(p.numel() for p in ghost.parameters()) * FLOAT
    return kept // 2, weights


def step_gib(network: nn.Module, shape: Sequence[int], amp: bool, device: torch.device) -> float | None:
    """GiB that one forward and backward pass takes beside the weights; None where it cannot be computed.

    The network runs on shapes alone (torch's fake tensors), which a network that looks at values cannot do.

    Args:
        network: as it is; nothing in it changes.
        shape: of the input, (B, C, *spatial).
        amp: whether it runs in autocast.
        device: of network and input.
    """
    mode = fake_tensors()
    own = dict(network.named_parameters())
    try:
        ghosts = {name: mode.from_tensor(value) for name, value in [*own.items(), *network.named_buffers()]}
        with mode, autocast(device, amp):
            kept = _kept_bytes(
                lambda: torch.func.functional_call(network, ghosts, torch.empty(tuple(shape), device=device)),
                ghosts.values(),
            )
    except Exception:  # whatever a network of somebody's own raises without values
        return None
    return FIXED_GIB + (WORKING * kept + sum(p.numel() for p in own.values()) * FLOAT) / 2**30


def _kept_bytes(forward: Callable[[], object], weights: Iterable[torch.Tensor]) -> int:
    """Bytes of all tensors but the weights that the backward pass of ``forward`` keeps."""
    kept: dict[int, int] = {}
    alive: list[Any] = []  # a storage that is freed would give its id to another

    def keep(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        kept[id(storage)] = storage.nbytes()
        alive.append(storage)
        return x

    own = {id(w.untyped_storage()) for w in weights}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        forward()
    return sum(size for key, size in kept.items() if key not in own)


@functools.lru_cache(maxsize=1024)
def weight_bytes(network: Topology, channels: int = 4, classes: int = 16) -> int:
    """Bytes of the network's state as it is saved."""
    with fake_tensors():
        state = make_network(network, channels, classes, channels_last=False).state_dict()
    return sum(t.numel() * t.element_size() for t in state.values())


def make_network(network: Topology, channels: int, classes: int, **changes: Any) -> UNet:
    """The network of a plan."""
    return UNet(
        3, channels, classes,
        **{
            "channels": network.channels, "strides": network.strides, "kernel_sizes": network.kernel_sizes,
            "convs_per_stage": network.convs_per_stage, "decoder_convs": network.decoder_convs,
            "norm": "BATCH" if network.norm == "BATCH" else ("INSTANCE", {"affine": True}),
            "channels_last": network.channels_last, "deep_supervision": network.deep_supervision, **changes,
        },
    )  # fmt: skip


def training_gib(
    network: Topology, patch: Sequence[int], margin: Sequence[int], batch: int, channels: int, classes: int
) -> float:
    """GiB of a training step: network, loss, augmentation, weights and the optimizer's state."""
    kept, weights = network_bytes(network, tuple(int(n) for n in patch), channels, classes)
    voxels, within = math.prod(patch), math.prod(margin)
    augmenting = AUGMENT_COPIES * (channels + classes + 3) * within * FLOAT  # 3 coordinates of the sampling grid
    images = (channels + 1) * within * FLOAT + channels * voxels * FLOAT
    learning = images + WORKING * kept + SCORE_COPIES * classes * voxels * FLOAT
    return FIXED_GIB + (batch * max(augmenting, learning) + STATES * weights) / 2**30


def resident_gib(fingerprint: Fingerprint, spacing: Sequence[float], shapes: NDArray) -> Resident:
    """What stays beside the step; ``shapes`` are those of the cases after resampling."""
    channels, classes = len(fingerprint.channels), len(fingerprint.classes)
    voxels = shapes.astype(float).prod(1)
    # image and label as float32; padded to the patch where smaller, which is small then
    cache = (channels + 1) * float(voxels.sum()) * FLOAT
    largest = float(voxels.max())
    # sums of the windows and their weights, labels, one-hot copies for the metric
    validation = (3 * classes + channels + 1) * largest * FLOAT + largest * DOUBLE
    preparing = 0.0
    for case, after in zip(fingerprint.cases, voxels, strict=True):
        before = math.prod(case.shape)
        resampled = any(abs(a - b) > 1e-3 for a, b in zip(case.spacing, spacing, strict=True))
        step = (
            (channels + 1) * (before + after) * (DOUBLE + FLOAT) if resampled else (channels + 1) * before * 2 * FLOAT
        )
        preparing = max(preparing, step + (after * 2 * 3 * DOUBLE if resampled else 0.0))
    return Resident(PROCESS_GIB, *(float(np.float64(b) / 2**30) for b in (cache, validation, preparing)))
