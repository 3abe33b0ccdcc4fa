"""The bundles of the package that are rendered from the table of tasks. ``make bundles`` writes their configs anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from decathlete.bundle import packaged_root
from decathlete.data.tasks import get_task
from decathlete.files import atomic_write
from decathlete.planning.plans import Plan, Topology
from decathlete.planning.rules import plan_of_task
from decathlete.planning.writer import render

CONFIGS = ("train", "inference", "evaluate", "multi_gpu_train")  # cards, metadata and licences are written by hand


def _gpu(name: str) -> Plan:
    return plan_of_task(get_task(name), device="cuda")


def _cpu(name: str, reasons: Mapping[str, str], **values: Any) -> Plan:
    """The plan for a CPU with values set by hand, each with its reason. The measurements are in the bundle's card."""
    made = plan_of_task(get_task(name), name)
    return replace(made, reasons={**made.reasons, **reasons}, **values)


def _network(*channels: int) -> Topology:
    levels = len(channels)
    return Topology(
        channels=channels,
        strides=((1, 1, 1),) + ((2, 2, 2),) * (levels - 1),
        kernel_sizes=((3, 3, 3),) * levels,
        convs_per_stage=(1,) + (3,) * (levels - 1),
        decoder_convs=1,
        norm="BATCH",
        channels_last=True,
        deep_supervision=False,
    )


def _hippocampus(name: str) -> Plan:
    return _cpu(
        name,
        {
            "max_epochs": "7,800 iterations, 52 per epoch: 20 minutes on two cores; or pass --minutes",
            "batch_size": "in the same time, twice the steps of a batch of 8 gave a better Dice",
            "patch_size": "voxels, nnU-Net's; 95% of the cases fit completely",
            "margin_size": "read for each patch, so that it can be rotated and shifted; covers every case completely",
            "roi_size": "sliding window of validation; covers every case completely",
            "spacing": "mm, that of all cases",
            "lr": "tuned on this data set",
            "matrix_lr": "tuned on this data set; 0.1 gave the same Dice",
            "mirror_axes": "left and right: a left hippocampus becomes a right one",
            "resampling": "all cases have 1 mm, so this only concerns other scans",
            "loss": _AS_MONAI,
        },
        max_epochs=150,
        val_interval=10,
        batch_size=4,
        roi_size=(48, 64, 48),
        whole=True,
        translation=(3, 4, 3),
        resampling="spline",
        batch_dice=True,
        loss_as_monai=True,
    )


def _heart_3d(name: str) -> Plan:
    return _cpu(
        name,
        {
            "max_epochs": "1,800 iterations on a fold, 8 per epoch; or pass --minutes",
            "patch_size": "voxels; 1.12 mm with a whole atrium in a patch was no better",
            "spacing": "mm, for scans of 0.625 mm as well as of 1.25 mm",
            "mirror_axes": "none; mirroring all three lowered the Dice after 600 iterations from 0.904 to 0.845",
            "augmentation": "elastic in voxels; the scans are few, so whatever may differ on another scanner",
            "largest": "the atrium is one connected component",
            "lr": "tuned on the hippocampus, not here",
            "loss": _AS_MONAI,
        },
        max_epochs=225,
        val_interval=25,
        average_decay=0.995,
        patch_size=(112, 96, 64),
        margin_size=(128, 112, 72),
        roi_size=(128, 112, 64),
        spacing=(0.9, 0.9, 0.9),
        network=_network(8, 32, 64, 128, 128),
        mirror_axes=(),
        move_prob=0.9,
        rotation=(0.5, 0.5, 0.5),
        scale=0.2,
        translation=(6, 6, 3),
        augmentation={
            "elastic": 5.0,
            "contrast_prob": 0.4,
            "bias_prob": 0.4,
            "curve_prob": 0.3,
            "blur_prob": 0.2,
            "low_resolution_prob": 0.2,
        },
        batch_dice=True,
        loss_as_monai=True,
        largest=(1,),
    )


def _lung_3d(name: str) -> Plan:
    return _cpu(
        name,
        {
            "max_epochs": "5,000 iterations, 25 per epoch; or pass --minutes",
            "patch_size": "voxels",
            "spacing": "mm; nnU-Net's 0.785 x 0.785 x 1.245 gave a Dice of 0.503, not 0.923, on the training scans",
            "mirror_axes": "none; left and right anatomy differ",
            "lr": "tuned on the hippocampus, not here",
            "loss": _AS_MONAI,
        },
        max_epochs=200,
        val_interval=10,
        patch_size=(96, 96, 48),
        margin_size=(112, 112, 64),
        roi_size=(96, 96, 48),
        spacing=(1.2, 1.2, 2.0),
        network=_network(8, 32, 64, 128),
        mirror_axes=(),
        translation=(6, 6, 3),
        loss_as_monai=True,
    )


_AS_MONAI = "as_monai keeps the rounding with which the card's metrics were measured"

PLANS: dict[str, Callable[[str], Plan]] = {
    "hippocampus": _hippocampus,
    "heart_3d": _heart_3d,
    "lung_3d": _lung_3d,
    "brain_tumour": _gpu,
    "liver": _gpu,
    "prostate": _gpu,
    "pancreas": _gpu,
    "hepatic_vessel": _gpu,
    "spleen": _gpu,
    "colon": _gpu,
}


def render_packaged(name: str) -> dict[str, str]:
    """Text of each config of a packaged bundle, by its path in the bundle's folder.

    Args:
        name: one of `PLANS`.
    """
    texts = render(PLANS[name](name))
    return {file: texts[file] for file in (f"configs/{config}.yaml" for config in CONFIGS)}


def write_packaged(root: Path) -> list[Path]:
    """Write the configs of all bundles of `PLANS` below ``root``; return the files that changed."""
    changed = []
    for name in PLANS:
        for file, text in render_packaged(name).items():
            path = root / name / file
            if path.is_file() and path.read_text(encoding="utf-8") == text:
                continue
            with atomic_write(path) as part:
                part.write_text(text, encoding="utf-8")
            changed.append(path)
    return changed


if __name__ == "__main__":
    written = write_packaged(packaged_root())
    print("\n".join(map(str, written)) or "The configs are up to date.")
