"""``decathlete new``: from a folder of data to a bundle."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from decathlete.data.folders import dataset_folder
from decathlete.errors import UsageError, listed, one_line
from decathlete.machine import free_memory_bytes
from decathlete.planning.conversion import convert, needs_conversion
from decathlete.planning.fine_tuning import find_weights, load_fitting, network_of
from decathlete.planning.fingerprints import Fingerprint, take_fingerprint
from decathlete.planning.footprint import make_network
from decathlete.planning.layouts import find_layout
from decathlete.planning.plans import Plan
from decathlete.planning.rules import plan as make_plan
from decathlete.planning.writer import check_target, write_bundle


def new_bundle(
    name: str,
    data: str | Path,
    output: str | Path | None = None,
    *,
    images: Sequence[str] = (),
    labels: str | None = None,
    channels: Sequence[str] = (),
    classes: Sequence[str] = (),
    modality: str | None = None,
    memory_gib: float | None = None,
    device: str | None = None,
    overwrite: bool = False,
    accept: bool = False,
    explain: bool = False,
    pretrained: str | Path | None = None,
) -> Path | None:
    """Check a data set, take its fingerprint, plan a training, and write its bundle; return the bundle's folder.

    Args:
        name: of the bundle.
        data: the data set's folder: the Decathlon's layout, nnU-Net's raw folders, or files given by ``images`` and
            ``labels``.
        output: the bundle's folder; by default ``bundles/<name>``.
        images: patterns of the image files, one a channel; ``*`` stands for the case.
        labels: pattern of the label files.
        channels, classes: their names, in place of those that the data set states.
        modality: ``CT`` or ``MRI``, in place of what the data set states.
        memory_gib: to plan for; by default what the GPU, or else the machine, has free.
        device: ``cpu`` or ``cuda``; by default a GPU where there is one.
        overwrite: replace the configs of a bundle that is there.
        accept: continue although something looks wrong but may be right.
        explain: print the plan and write nothing; None is returned.
        pretrained: weights to start from, or the bundle that has them: its network is taken, its heads are made new.

    Raises:
        UsageError: an invalid name, folder or pattern.
        DataError: faults of the data, each named.
        DeviceError: not even the smallest patch fits into the memory.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
        raise UsageError("NAME", "a bundle name must start with a letter and hold only letters, digits, _ and -",
                         f"'{name}'", "Choose another")  # fmt: skip
    folder = Path(output) if output is not None else Path("bundles", name)
    if not explain:
        check_target(folder, overwrite)
    where, memory = _device(device, memory_gib)
    weights = find_weights(pretrained) if pretrained is not None else None
    network = network_of(weights) if weights else None
    layout = find_layout(data, images, labels, channels, classes, modality)
    if not layout.faults and needs_conversion(layout):
        target = Path(dataset_folder(name))
        print(f"converting {len(layout.cases)} cases to NIfTI in {target}", file=sys.stderr)
        layout = find_layout(convert(layout, target), channels=channels, classes=classes, modality=modality)
    fingerprint = take_fingerprint(layout, accept)
    plan = make_plan(name, layout, fingerprint, memory, where, network)
    if weights is not None:
        plan = replace(plan, pretrained=True)
        _say_what_stays_new(plan, weights)
    print("\n".join(map(one_line, describe_plan(plan, fingerprint, where))))
    if explain:
        return None
    write_bundle(plan, folder, fingerprint, overwrite, pretrained=weights)
    expected = Path(dataset_folder(plan.dataset))
    at = shlex.quote(str(folder))
    given = "" if expected.resolve() == layout.folder.resolve() else f" --dataset_dir {shlex.quote(str(layout.folder))}"
    print(f"\nwritten      {folder}\nnext         decathlete check {at}{given}\n"
          f"             decathlete run training --config {at}{given}")  # fmt: skip
    return folder


def _say_what_stays_new(plan: Plan, weights: Path) -> None:
    """Try the weights before anything is written, and name the layers that they do not fit."""
    new = load_fitting(make_network(plan.network, len(plan.channels), len(plan.classes)), weights)
    print(f"pretrained   {weights}; new layers: {listed(new, 20)}")


def describe_plan(plan: Plan, fingerprint: Fingerprint, device: str) -> list[str]:
    """The plan in lines, each number with its reason."""
    why, net = plan.reasons, plan.network
    by = " x ".join
    lines = [
        f"data         {len(fingerprint.cases)} cases, {plan.modality}, channels {', '.join(plan.channels)}, classes "
        + ", ".join(f"{value} {name}" for name, value in plan.classes.items()),
        f"spacing      {by(f'{s:g}' for s in plan.spacing)}  {why['spacing']}",
        f"patch        {by(map(str, plan.patch_size))}  {why['patch_size']}",
        f"margin       {by(map(str, plan.margin_size))}  {why['margin_size']}",
        f"batch        {plan.batch_size}  {why['batch_size']}",
        f"network      {len(net.channels)} levels of {', '.join(map(str, net.channels))} features, {net.norm} norm; "
        f"{why['network']}",
        "intensities  " + (f"CT: clipped to {plan.window.low:g}..{plan.window.high:g} HU, mean {plan.window.mean:g}, "
                           f"deviation {plan.window.std:g} of the foreground" if plan.window
                           else "z-score of each scan" + (" where it is not 0" if plan.nonzero else "")),
        f"mirroring    {_axes(plan.mirror_axes)}{why['mirror_axes']}",
        f"optimizer    {'Muon, minutes on a CPU' if plan.recipe == 'muon' else 'SGD as nnU-Net, hours on a GPU'}",
        f"epochs       {plan.max_epochs}  {why['max_epochs']}",
        f"memory       {plan.estimate_gib:.1f} GiB expected at the peak, {plan.memory_gib:.1f} planned for ({device})"
        + ("; cases are kept on disk" if plan.cache == "disk" else ""),
    ]  # fmt: skip
    return lines + [f"note         {note}" for note in plan.notes]


def _axes(axes: Sequence[int]) -> str:
    """The mirrored axes by letter; nothing for none, which the reason says."""
    return f"along {', '.join('xyz'[axis] for axis in axes)}  " if axes else ""


def _device(device: str | None, memory_gib: float | None) -> tuple[str, float]:
    """Device to plan for, and its memory in GiB."""
    import torch

    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if where != "cpu" and not where.startswith("cuda"):
        raise UsageError("--device", "must be cpu or cuda", f"'{where}'")
    if memory_gib is not None:
        return where, memory_gib
    if where == "cpu":
        return where, free_memory_bytes() / 2**30
    if not torch.cuda.is_available():
        raise UsageError("--device", "to plan for a GPU that is not in this machine, its memory is needed", where,
                         "Pass its GiB: --memory 24")  # fmt: skip
    return where, torch.cuda.mem_get_info()[0] / 2**30
