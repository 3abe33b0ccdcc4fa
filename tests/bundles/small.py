"""Overrides that make a bundle's training small: seconds in place of hours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

SLICES = {  # what the bundles that are not made of 3D patches need, to be small
    "heart": {"crop_min_size": [96, 96, 0], "margin_size": [96, 96, -1], "roi_size": [64, 64]},
    "lung": {"slice_size": [64, 64], "roi_size": [64, 64]},
    "nfbs": {"head_size": [64, 64, 80], "roi_size": [64, 64, 80]},
}


def read(bundle: Path, *names: str) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([str(bundle / "configs" / f"{name}.yaml") for name in names])
    return parser


def slim(bundle: Path, network_alone: bool = False) -> dict[str, Any]:
    """Overrides that make a deep 3D network small, its first three levels with few features, and its patches too."""
    network = read(bundle, "inference")["network_def"]
    planned = network.get("spatial_dims") == 3 and "margin_size" in read(bundle, "train")
    if not planned or len(network["channels"]) <= 4:
        return {}
    per_level = ("strides", "kernel_sizes", "convs_per_stage", "num_res_units")
    kept = {key: network[key][:3] for key in per_level if isinstance(network.get(key), list)}
    values: dict[str, Any] = {f"network_def#{key}": value for key, value in {"channels": [4, 8, 8], **kept}.items()}
    if network_alone:
        return values
    return {**values, "margin_size": [n + 4 for n in patch_of(bundle)], "roi_size": patch_of(bundle), "num_workers": 0}


def patch_of(bundle: Path) -> list[int]:
    """A small patch that the network's strides divide."""
    config = read(bundle, "inference")
    config.update(slim(bundle, network_alone=True))
    network = config.get_parsed_content("network_def")
    # four voxels at the bottom: of two, oneDNN 3.12 makes bfloat16 weight gradients from memory that nobody wrote
    return [max(16, 4 * n) for n in network.divisor]
