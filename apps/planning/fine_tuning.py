"""Weights of one bundle as the start of another with other classes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from decathlete.bundle import bundle_folder, is_bundle
from decathlete.bundle.checkpoints import read_checkpoint, state_dict_of, unwrap
from decathlete.errors import CheckpointError, listed
from decathlete.planning.plans import Topology, Triple

logger = logging.getLogger(__name__)

HEADS = "heads."  # end in the classes, which are others


def find_weights(weights: str | Path) -> Path:
    """File of ``--pretrained``: a file of weights, or the weights of a bundle.

    Raises:
        CheckpointError: the bundle has no weights.
        UsageError: neither a file nor a bundle.
    """
    file = Path(weights)
    if not file.is_file():
        file = bundle_folder(weights) / "models" / "model.pt"
    state_dict_of(read_checkpoint(file), file)
    return file


def network_of(file: Path) -> Topology | None:
    """The network that the weights in a bundle's ``models`` belong to; None for a file on its own.

    Raises:
        CheckpointError: the bundle's network is no 3D UNet of ours with a set number of decoder convolutions.
    """
    folder = file.parent.parent
    if file.parent.name != "models" or not is_bundle(folder):
        return None
    from decathlete.bundle.configs import load

    config: dict[str, Any] = load(folder, "inference").get("network_def")
    wanted = config.get("_target_") == "decathlete.networks.UNet" and config.get("spatial_dims") == 3
    if not wanted or not isinstance(config.get("decoder_convs"), int) or "convs_per_stage" not in config:
        raise CheckpointError(file, "pretrained weights must be of a 3D decathlete.networks.UNet with decoder_convs",
                              f"{config.get('_target_')}", "Choose the weights of another bundle")  # fmt: skip
    levels = len(config["channels"])
    convs, kernels = config["convs_per_stage"], config.get("kernel_sizes", 3)
    return Topology(
        channels=tuple(config["channels"]),
        strides=tuple(_triple(s) for s in config.get("strides", [1] + [2] * (levels - 1))),
        kernel_sizes=tuple(_triple(k) for k in ([kernels] * levels if isinstance(kernels, int) else kernels)),
        convs_per_stage=(convs,) * levels if isinstance(convs, int) else tuple(convs),
        decoder_convs=config["decoder_convs"],
        norm="BATCH" if config.get("norm") == "BATCH" else "INSTANCE",
        channels_last=bool(config.get("channels_last", False)),
        deep_supervision=bool(config.get("deep_supervision", False)),
    )


def load_fitting(network: torch.nn.Module, path: str | Path) -> list[str]:
    """Copy weights into the layers of ``network`` that they fit, and return the names of those that stay new.

    The heads, which end in the classes, always stay new. A line in the log names what was left out.

    Raises:
        CheckpointError: no such file, or weights that fit less than half of the layers.
    """
    target = unwrap(network)
    own = target.state_dict()
    weights = state_dict_of(read_checkpoint(path), path, own.keys())
    fitting = {
        name: value
        for name, value in weights.items()
        if name in own and own[name].shape == value.shape and not name.startswith(HEADS)
    }
    new = [name for name in own if name not in fitting]
    if 2 * len(fitting) < len(own):
        raise CheckpointError(path, "the pretrained weights fit fewer than half of the layers",
                              f"{len(fitting)} of {len(own)}; not {listed(new)}",
                              "Give weights of a network with the same levels")  # fmt: skip
    target.load_state_dict({**own, **fitting})
    logger.info("%d of %d layers start from %s; new: %s", len(fitting), len(own), path, listed(new, 20))
    return new


def _triple(value: int | list[int]) -> Triple:
    return (value,) * 3 if isinstance(value, int) else tuple(value)
