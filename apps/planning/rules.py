"""From a fingerprint, or a row of the table of tasks, to a plan: nnU-Net's rules under a budget of memory and time.

Source: Isensee et al. 2021 (docs/references.md), supplementary note 2, and its code of version 2; where this differs,
the reason stands with the constant.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from decathlete.data.folds import NUM_FOLDS, official_ids, split
from decathlete.data.tasks import Task, Window, task_of_folder
from decathlete.errors import DataError, DeviceError
from decathlete.names import plain_text
from decathlete.planning.fingerprints import CaseFacts, Fingerprint
from decathlete.planning.footprint import CUDA_GIB, PROCESS_GIB, Resident, resident_gib, training_gib, weight_bytes
from decathlete.planning.layouts import Layout
from decathlete.planning.plans import Plan, Topology, Triple
from decathlete.planning.sides import find_side, one_sided

THICK = 3.0  # slices this many times as far apart as voxels within them make an axis thick
SMALLEST_EDGE = 4  # of the coarsest feature map, in voxels
START_VOXELS = 256**3  # of the first patch tried
CPU_PATCH_VOXELS = 2**19  # on a CPU time runs out before memory; the bundle heart_3d's patch is of about that size
CPU_BATCH = 4  # at most: twice the steps of 8 in the same time did better (hippocampus)
COARSEST = 2.0  # times the data's own spacing, on a CPU
FINE_ENOUGH = 10_000  # voxels of the smallest class on a coarsened grid
GPU_GIB = 24.0  # that a plan takes at most: nnU-Net's larger presets gain little (ResEnc L over M)
GPU_VOXEL_SHARE = 0.05  # of all voxels of the data set, that a batch covers at most
MARGIN = 1.12  # of a patch's edge
NONZERO_SHARE = 0.75  # of a scan's voxels: a smaller box around what is not 0 means that the rest was erased
CPU_CHANNELS = (8, 32, 64, 128)  # the hippocampus bundle's, measured; coarser levels keep 128
GPU_CHANNELS = (32, 64, 128, 256, 320)  # nnU-Net's
WEIGHT_BYTES = 19.5e6  # what a bundle can carry: the coarsest levels get as many features as fit
CPU_ITERATIONS = 6000  # 20 minutes for the hippocampus on two cores
GPU_ITERATIONS = 100_000  # nnU-Net takes 250,000: to be raised where the curve still climbs
VALIDATIONS = 15
NNUNET_PROBS = {"noise_prob": 0.1, "blur_prob": 0.2, "contrast_prob": 0.15, "low_resolution_prob": 0.25}
SMALLEST_PATCH = 32  # voxels an edge, where the scans have as many: less shows too little of its surroundings


def plan(
    name: str,
    layout: Layout,
    fingerprint: Fingerprint,
    memory_gib: float,
    device: str = "cpu",
    network: Topology | None = None,
) -> Plan:
    """A training that fits into the memory, with the reason for each number.

    Args:
        name: of the bundle.
        layout: where the files are.
        fingerprint: of the data.
        memory_gib: of the GPU, or of the machine for ``device="cpu"``.
        device: ``cpu`` or ``cuda``, where the bundle will mostly be trained.
        network: to take in place of a planned one: that of weights to start from.

    Raises:
        DeviceError: not even the smallest patch fits.
    """
    gpu = device != "cpu"
    reasons: dict[str, str] = {}
    spacing = _spacing(fingerprint, gpu, reasons)
    shapes = np.array([_resampled(case, spacing) for case in fingerprint.cases])
    median = [float(n) for n in np.median(shapes, axis=0)]
    ids = [case.case_id for case in fingerprint.cases]
    task = task_of_folder(layout.folder)
    task = task if task and set(ids) <= set(official_ids(task)) else None
    train = len(split(ids, 0, task)[0]) if len(ids) > 1 else 1
    channels, classes = len(fingerprint.channels), len(fingerprint.classes)
    spent = resident_gib(fingerprint, spacing, shapes)
    budget = min(memory_gib, GPU_GIB) - CUDA_GIB if gpu else memory_gib - spent.process
    patch, network = _patch(median, spacing, budget, gpu, channels, classes, reasons, network)
    margin = _margin(patch)
    whole = bool((shapes.max(0) <= margin).all())
    window = None
    if fingerprint.is_ct and channels == 1:
        found = fingerprint.intensities[0]
        window = Window(round(found.percentile_00_5, 1), round(found.percentile_99_5, 1), found.mean, found.std)
    covers = "; covers every case completely" if whole else ""
    reasons["margin_size"] = "read for each patch, so that it can be rotated and shifted" + covers
    reasons["roi_size"] = "sliding window of validation" + covers
    made = Plan(
        name=name,
        dataset=_name_of(layout),
        task=task.name if task else "",
        images=layout.images,
        labels_pattern=layout.labels,
        modality=fingerprint.modality,
        channels=fingerprint.channels,
        classes=fingerprint.classes,
        window=window,
        nonzero=_is_erased(fingerprint),
        spacing=spacing,
        patch_size=patch,
        margin_size=margin,
        roi_size=_divisible(margin, network) if whole else patch,
        whole=whole,
        regions=layout.regions,
        ignore=layout.ignore,
        batch_size=_batch(network, patch, median, train, budget, gpu, channels, classes, reasons),
        network=network,
        fold=0 if len(ids) > 1 else "all",
        memory_gib=memory_gib,
        train_cases=train,
        folds=min(NUM_FOLDS, len(ids)),
        notes=_notes(fingerprint),
        title=_title(fingerprint),
        data_source=_source(layout),
        licence=layout.about.get("licence", ""),
        references=tuple(filter(None, [layout.about.get("reference", "")])),
    )
    return _with_memory(_with_recipe(made, gpu, reasons, fingerprint.cases), spent, gpu)


def plan_of_task(task: Task, name: str = "", device: str = "cpu", memory_gib: float = 0.0) -> Plan:
    """A plan with the spacing, patch, batch and window that nnU-Net has for a task of the Decathlon.

    Args:
        task: row of the table.
        name: of the bundle; by default the task's.
        device: whose recipe and network are taken.
        memory_gib: for the record.
    """
    gpu = device != "cpu"
    network = topology(task.patch_size, task.spacing, gpu)
    shape = [n * a / b for n, a, b in zip(task.median_shape, task.median_spacing, task.spacing, strict=True)]
    reasons = {
        "spacing": f"mm; nnU-Net's for this task, the median of the scans is {_by(task.median_spacing)}",
        "patch_size": f"voxels, nnU-Net's; the median scan has {_by(round(n) for n in shape)}",
        "margin_size": "read for each patch, so that it can be rotated and shifted",
        "roi_size": "sliding window of validation",
        "batch_size": "nnU-Net's",
        "network": _why_network(gpu),
    }
    made = Plan(
        name=name or task.name,
        dataset=task.folder,
        task=task.name,
        modality=task.modality,
        channels=task.channels,
        classes={"background": 0, **task.labels},
        window=task.window,
        nonzero=task.nonzero,
        spacing=task.spacing,
        patch_size=task.patch_size,
        margin_size=_margin(task.patch_size),
        roi_size=task.patch_size,
        batch_size=task.batch_size,
        network=network,
        batch_dice=task.batch_dice,
        memory_gib=memory_gib,
        train_cases=task.num_training - math.ceil(task.num_training / NUM_FOLDS),
        title=task.title,
        data_source=f"Medical Segmentation Decathlon, {task.folder} ({task.source}), http://medicaldecathlon.com",
        licence=task.licence,
        references=(task.reference,),
    )
    made = _with_recipe(made, gpu, reasons)
    return replace(made, estimate_gib=round(_step_gib(made) + (CUDA_GIB if gpu else PROCESS_GIB), 2))


def _step_gib(made: Plan) -> float:
    return training_gib(
        made.network, made.patch_size, made.margin_size, made.batch_size, len(made.channels), len(made.classes)
    )


def _margin(patch: Sequence[int]) -> Triple:
    """A little more than the patch."""
    steps = [8 if n >= 32 else 4 for n in patch]
    return tuple(math.ceil(MARGIN * n / step) * step for n, step in zip(patch, steps, strict=True))


def _divisible(size: Sequence[int], network: Topology) -> Triple:
    """The next larger size that the network takes."""
    return tuple(math.ceil(n / d) * d for n, d in zip(size, network.divisor, strict=True))


def _with_recipe(made: Plan, gpu: bool, reasons: dict[str, str], cases: Sequence[CaseFacts] = ()) -> Plan:
    """The plan with what follows from patch, batch and number of cases: epochs, optimizer and augmentation."""
    per_epoch = math.ceil(made.train_cases / made.batch_size)
    epochs = math.ceil((GPU_ITERATIONS if gpu else CPU_ITERATIONS) / per_epoch)
    reasons["max_epochs"] = f"{epochs * per_epoch:,} iterations, {per_epoch} per epoch; or pass --minutes"
    mirror_axes, reasons["mirror_axes"] = _mirror(made, gpu, cases)
    thick = _thick_axis(made.spacing)
    turn = 0.5 if gpu else 0.4  # nnU-Net's 30 degrees
    reasons["augmentation"] = "these four probabilities are nnU-Net's"
    return replace(
        made,
        recipe="sgd" if gpu else "muon",
        max_epochs=epochs,
        val_interval=max(1, round(epochs / VALIDATIONS)),
        average_decay=0.999 if gpu else 0.99,
        mirror_axes=mirror_axes,
        move_prob=0.4 if gpu else 0.8,
        scale=0.25 if gpu else 0.15,
        augmentation=dict(NNUNET_PROBS) if gpu else {},
        rotation=tuple(turn if thick in (None, axis) else 0.0 for axis in range(3)),
        translation=tuple(3 * (m - p) // 8 for m, p in zip(made.margin_size, made.patch_size, strict=True)),
        padding="min" if made.window else "zeros",
        resampling="cubic" if gpu else "linear",
        reasons=reasons,
    )


def topology(patch: Sequence[int], spacing: Sequence[float], gpu: bool) -> Topology:
    """The network for a patch: axes are halved until an edge has 4 voxels, the finest ones first, and no kernel
    reaches across a thick axis before the others have come within a factor 2 of it.
    """
    size, edge = [int(n) for n in patch], [float(s) for s in spacing]
    strides: list[Triple] = [(1, 1, 1)]
    kernels: list[Triple] = []
    kernel = [1, 1, 1]
    while True:
        kernel = [3 if k == 3 or s / min(edge) < 2 else 1 for k, s in zip(kernel, edge, strict=True)]
        able = [a for a in range(3) if size[a] >= 2 * SMALLEST_EDGE]
        finest = min((edge[a] for a in able), default=0.0)
        able = [a for a in able if edge[a] / finest < 2]
        if not able:
            break
        kernels.append(tuple(kernel))
        stride = tuple(2 if a in able else 1 for a in range(3))
        strides.append(stride)
        # an odd size is padded up, as the patch will be
        size = [math.ceil(n / s) for n, s in zip(size, stride, strict=True)]
        edge = [e * s for e, s in zip(edge, stride, strict=True)]
    kernels.append((3, 3, 3))
    if len(strides) == 1:  # a patch too small to halve: the network needs two levels
        strides.append((1, 1, 1))
        kernels.append((3, 3, 3))
    kernels = [tuple(3 if s > 1 else k for k, s in zip(ks, ss, strict=True))
               for ks, ss in zip(kernels, strides, strict=True)]  # fmt: skip
    widths = GPU_CHANNELS if gpu else CPU_CHANNELS
    levels = len(strides)
    network = Topology(
        channels=tuple(widths[min(level, len(widths) - 1)] for level in range(levels)),
        strides=tuple(strides),
        kernel_sizes=tuple(kernels),
        convs_per_stage=(2,) * levels if gpu else (1,) + (3,) * (levels - 1),
        decoder_convs=1,  # as nnU-Net's ResEnc presets; the weights go where the encoder is
        norm="INSTANCE" if gpu else "BATCH",
        channels_last=not gpu,
        deep_supervision=gpu and levels > 2,
    )
    most = max(network.channels)
    while weight_bytes(network) > WEIGHT_BYTES:
        most -= 16
        network = replace(network, channels=tuple(min(c, most) for c in network.channels))
    return network


def _why_network(gpu: bool) -> str:
    if gpu:
        return "nnU-Net's, with fewer channels so that the weights stay below 20 MB"
    return "few channels at full resolution, which costs most; half resolution does most of the work"


def _spacing(fingerprint: Fingerprint, gpu: bool, reasons: dict[str, str]) -> tuple[float, ...]:
    """Median of the cases; along a thick axis the 10th percentile; on a CPU coarser where the structures stay large."""
    spacings = np.array([case.spacing for case in fingerprint.cases])
    shapes = np.array([case.nonzero_shape for case in fingerprint.cases])
    target, shape = np.median(spacings, axis=0), np.median(shapes, axis=0)
    why = "median of the cases" if np.ptp(spacings, axis=0).max() > 1e-3 else "all cases have it"
    worst = int(target.argmax())
    others = [axis for axis in range(3) if axis != worst]
    if target[worst] > THICK * target[others].max() and shape[worst] * THICK < shape[others].min():
        # a few thin-sliced scans are not to lose what they have
        tenth = max(float(np.percentile(spacings[:, worst], 10)), float(target[others].max()))
        if tenth < target[worst] - 1e-3:
            why = f"median of the cases; between slices their 10th percentile, for the median is {target[worst]:.3g}"
            target[worst] = tenth
    factor = 1.0 if gpu else _coarser(fingerprint, [float(s) for s in target])
    if factor > 1:
        why = f"{factor:.3g} times the {_by(target)} of the cases: on a CPU one patch then holds more of a scan"
        target = np.maximum(target, np.minimum(factor * target, 1.5 * factor * target.min()))  # thick axes stay
    reasons["spacing"] = f"mm; {why}"
    return tuple(float(f"{s:.{3 if factor > 1 else 4}g}") for s in target)


def _coarser(fingerprint: Fingerprint, target: Sequence[float]) -> float:
    """Factor that brings the median scan to a CPU's patch, at most 2, and none that the smallest class cannot bear."""
    voxels = float(np.median([math.prod(_resampled(case, target)) for case in fingerprint.cases]))
    wanted = min(COARSEST, (voxels / (0.8 * CPU_PATCH_VOXELS)) ** (1 / 3))
    smallest = math.inf
    for value in fingerprint.classes.values():
        volumes = [case.voxels[value] * math.prod(case.spacing) for case in fingerprint.cases if case.voxels.get(value)]
        if value and volumes:
            smallest = min(smallest, float(np.median(volumes)) / math.prod(target))
    bearable = (smallest / FINE_ENOUGH) ** (1 / 3) if math.isfinite(smallest) else 1.0
    factor = min(wanted, bearable)
    return round(factor, 2) if factor >= 1.25 else 1.0  # less is not worth the interpolation


def _patch(
    median: Sequence[float],
    spacing: Sequence[float],
    budget_gib: float,
    gpu: bool,
    channels: int,
    classes: int,
    reasons: dict[str, str],
    given: Topology | None = None,
) -> tuple[Triple, Topology]:
    """The largest patch, of the median scan's proportions, that the budget of memory (and on a CPU of time) bears."""
    cube = (START_VOXELS * math.prod(spacing)) ** (1 / 3)  # mm
    patch = [max(SMALLEST_EDGE, min(round(cube / s), math.ceil(n))) for s, n in zip(spacing, median, strict=True)]
    limit = ""
    while True:
        network = given or topology(patch, spacing, gpu)
        padded = list(_divisible(patch, network))
        if padded != patch:  # which may allow one more halving
            patch = padded
            continue
        too_slow = not gpu and math.prod(patch) > CPU_PATCH_VOXELS
        needed = 0.0 if too_slow else training_gib(network, patch, _margin(patch), 2, channels, classes)
        if needed <= budget_gib and not too_slow:
            break
        limit = "what a CPU trains in time" if too_slow else f"what {budget_gib:.1f} GiB hold twice"
        able = [a for a in range(3) if patch[a] - network.divisor[a] >= min(SMALLEST_PATCH, median[a])]
        if not able:
            raise DeviceError("--memory", f"a batch of two patches of {_by(patch)} voxels does not fit",
                              f"{max(budget_gib, 0):.2f} GiB are left for it, {needed:.2f} GiB are needed",
                              f"Pass --memory {math.ceil(needed + PROCESS_GIB)}, or free some memory")  # fmt: skip
        axis = max(able, key=lambda a: patch[a] / median[a])
        patch[axis] -= network.divisor[axis]
    covered = math.prod(min(p, m) for p, m in zip(patch, median, strict=True)) / math.prod(median)
    reasons["patch_size"] = f"voxels; the median scan has {_by(round(n) for n in median)}" + (
        "" if covered > 0.99 else f", {100 * covered:.0f}% of it is {limit or 'a cube'}"
    )
    reasons["network"] = _why_network(gpu) if given is None else "that of the weights that training starts from"
    return tuple(patch), network


def _batch(
    network: Topology,
    patch: Triple,
    median: Sequence[float],
    train: int,
    budget_gib: float,
    gpu: bool,
    channels: int,
    classes: int,
    reasons: dict[str, str],
) -> int:
    """Patches in a batch, two at least where there are two cases."""
    voxels = math.prod(patch)
    if gpu:
        most, why = max(2, round(GPU_VOXEL_SHARE * math.prod(median) * train / voxels)), "5% of the data set's voxels"
    else:
        most = max(2, min(CPU_BATCH, 2 ** int(math.log2(max(1, CPU_PATCH_VOXELS / voxels)))))
        why = "twice the steps of 8 in the same time did better" if most == CPU_BATCH else "more steps in the same time"
    two, three = (training_gib(network, patch, _margin(patch), n, channels, classes) for n in (2, 3))
    fits = 2 + int(max(0.0, budget_gib - two) / (three - two))
    if fits < most:
        most, why = fits, "as many as fit"
    if most == 2:
        why = "two, the fewest that norms and gradients bear"
    if most > train:
        most, why = max(1, train), "as many as there are cases"
    reasons["batch_size"] = why
    return most


def _with_memory(made: Plan, spent: Resident, gpu: bool) -> Plan:
    """The plan with its expected peak, and the cache on disk where it would break the limit."""
    if gpu:  # the GPU holds the step alone
        return replace(made, estimate_gib=round(_step_gib(made) + CUDA_GIB, 2))
    beside = spent.process + max(_step_gib(made), spent.validation, spent.preparing)
    # the cases in memory count where they fit into what the limit leaves; a run takes half of what is free at most
    fits = spent.cache <= made.memory_gib / 2 and beside + spent.cache <= made.memory_gib
    notes = made.notes
    if beside > made.memory_gib:
        notes += (f"reading or validating the largest case takes {beside:.1f} GiB, more than planned for",)
    estimate = round(beside + (spent.cache if fits else 0.0), 2)
    return replace(made, estimate_gib=estimate, cache="auto" if fits else "disk", notes=notes)


def _resampled(case: CaseFacts, spacing: Sequence[float]) -> list[int]:
    """Voxels along each axis after the crop of a blank border, and resampling."""
    return [max(1, round(n * a / b)) for n, a, b in zip(case.nonzero_shape, case.spacing, spacing, strict=True)]


def _is_erased(fingerprint: Fingerprint) -> bool:
    """Whether the scans lie in a field of zeros: their background was erased."""
    fractions = [math.prod(c.nonzero_shape) / math.prod(c.shape) for c in fingerprint.cases]
    positive = all(min(c.minimum) >= 0 for c in fingerprint.cases)
    return not fingerprint.is_ct and positive and float(np.median(fractions)) < NONZERO_SHARE


def _thick_axis(spacing: Sequence[float]) -> int | None:
    worst = max(range(3), key=lambda axis: spacing[axis])
    others = max(s for axis, s in enumerate(spacing) if axis != worst)
    return worst if spacing[worst] > THICK * others else None


def _mirror(made: Plan, gpu: bool, cases: Sequence[CaseFacts]) -> tuple[tuple[int, ...], str]:
    """Axes to mirror in training and prediction, with the reason.

    Each axis alone, and all three together, turn a left hand into a right one: with sides, none is mirrored.
    """
    if side := find_side(made.classes, cases, made.regions):
        return (), f"none: {side}"
    if gpu and made.task:
        return (0, 1, 2), "all three, as in nnU-Net"
    warning = one_sided(made.classes, cases)
    remedy = f"; {warning}: set [] if the background holds its counterpart" if warning else ""
    return (0,), "left and right; no class belongs to one side" + remedy


def _notes(fingerprint: Fingerprint) -> tuple[str, ...]:
    notes = list(fingerprint.notes)
    if fingerprint.is_ct and len(fingerprint.channels) > 1:
        notes.append("several channels: each is z-scored by its own, no HU window is taken")
    return tuple(notes)


def _title(fingerprint: Fingerprint) -> str:
    names = ", ".join(name for name, value in fingerprint.classes.items() if value)
    return (
        f"{names} in {fingerprint.modality if fingerprint.channels == ('image',) else ', '.join(fingerprint.channels)}"
    )


def _name_of(layout: Layout) -> str:
    """The folder's name as it was given; a link's target may have another."""
    name = Path(os.path.abspath(layout.folder)).name
    if not name.isprintable():  # it stands in the configs
        raise DataError(layout.folder, "the name of the data set's folder has unprintable characters", repr(name),
                        "Rename it, or give a link to it")  # fmt: skip
    return name


def _source(layout: Layout) -> str:
    task = task_of_folder(layout.folder)
    name = layout.about.get("name", _name_of(layout))
    description = layout.about.get("description", "")
    if task and not description:
        return f"Medical Segmentation Decathlon, {task.folder}"
    return plain_text(f"{name}: {description}" if description else name)


def _by(numbers: Any) -> str:
    return " x ".join(f"{n:.3g}" if isinstance(n, float) else str(n) for n in numbers)
