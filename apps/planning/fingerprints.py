"""What a data set is like, in numbers from which a training can be planned; every file is checked on the way."""

from __future__ import annotations

import hashlib
import json
import logging
import statistics
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from decathlete.data.cache import content_hash, describe_case, load_entry, package_versions, save_entry
from decathlete.data.cases import Case, paths_of
from decathlete.data.verification import Fault
from decathlete.errors import DataError, listed
from decathlete.files import cache_folder
from decathlete.io.nifti import read_nifti, read_nifti_header
from decathlete.io.volume import Volume, check_pair
from decathlete.planning.layouts import Layout, check_consecutive
from decathlete.progress import ProgressBar

logger = logging.getLogger(__name__)

SAMPLED_VOXELS = 10_000  # of the foreground of each case and channel; nnU-Net takes about as many
AIR_HU = -500.0  # a scan with values below is taken for CT: MR images have none
FEW_CASES = 5  # of the folds
PLACED_VOXELS = 10_000  # of each class of a case, from which its place and shape are taken
SPACING_FACTOR = 5.0  # centimetres or metres in place of millimetres are off by 10 or 1000 on every axis
_VERSION = 2  # of what is kept of a case


@dataclass(frozen=True)
class Place:
    """Where the voxels of one class lie in a case, along X, Y and Z of RAS, in mm.

    Attributes:
        centre: mean, from the middle of the scan.
        spread: standard deviation along each axis.
        skew: third central moments, (3, 3, 3): what a class differs in from its mirror image.
    """

    centre: tuple[float, ...]
    spread: tuple[float, ...]
    skew: NDArray[np.float32] = field(compare=False, repr=False)


@dataclass(frozen=True)
class CaseFacts:
    """One case. Axes are in the order of RAS, (X, Y, Z); lengths in mm.

    Attributes:
        case_id: of the case.
        shape: of the image as stored.
        nonzero_shape: of the box around all voxels that are not 0 in every channel.
        spacing: voxel edges.
        minimum: smallest intensity of the channels.
        voxels: label value to number of voxels.
        places: value of each class that is there to where it lies.
    """

    case_id: str
    shape: tuple[int, ...]
    nonzero_shape: tuple[int, ...]
    spacing: tuple[float, ...]
    minimum: tuple[float, ...]
    voxels: Mapping[int, int]
    places: Mapping[int, Place] = field(default_factory=dict)


@dataclass(frozen=True)
class Intensities:
    """Foreground voxels of one channel, sampled over all cases."""

    mean: float
    std: float
    median: float
    percentile_00_5: float
    percentile_99_5: float


@dataclass(frozen=True)
class Fingerprint:
    """What a plan goes by.

    Attributes:
        modality: ``CT``, or the data set's word for anything else.
        channels: name of each.
        classes: name to value, background at 0.
        intensities: of the foreground, by channel.
        cases: sorted by id.
        notes: what was assumed, and what a person should look at; a line each.
    """

    modality: str
    channels: tuple[str, ...]
    classes: Mapping[str, int]
    intensities: tuple[Intensities, ...]
    cases: tuple[CaseFacts, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def is_ct(self) -> bool:
        """Whether intensities are Hounsfield units."""
        return self.modality.upper() == "CT"

    def to_json(self) -> str:
        """Readable JSON: a line a case, with the places of its classes but not their shapes."""
        head = {**asdict(self), "version": _VERSION}
        for case in head["cases"]:
            for place in case["places"].values():
                del place["skew"]
        rows = [json.dumps(case) for case in head.pop("cases")]
        head["median_spacing"] = [round(statistics.median(c.spacing[a] for c in self.cases), 4) for a in range(3)]
        head["median_shape"] = [statistics.median(c.shape[a] for c in self.cases) for a in range(3)]
        text = json.dumps(head, indent=2)
        return text.removesuffix("\n}") + ',\n  "cases": [\n    ' + ",\n    ".join(rows) + "\n  ]\n}\n"


def take_fingerprint(layout: Layout, accept: bool = False, progress: bool = True) -> Fingerprint:
    """Read every case, strictly, and say what the data set is like.

    What is found of a case is kept on disk (``$DECATHLETE_CACHE``), so that an interrupted call and the next one
    read only the files that are new or have changed.

    Args:
        layout: of NIfTI files.
        accept: continue although something looks wrong but may be right: few cases, an odd spacing or order of
            channels.
        progress: show a bar on stderr.

    Raises:
        DataError: faults of the data set; several are first named in the log.
    """
    faults = [*layout.faults]
    suspicions = [*_few(layout)]
    _refuse(layout, faults, suspicions, accept)
    channels = layout.channels if len(layout.images) > 1 else _channel_names_of(layout)
    allowed = sorted([*layout.classes.values(), *layout.ignore]) if layout.classes else None
    facts: list[dict[str, Any]] = []
    cases: list[Case] = []
    for case in ProgressBar(layout.cases, desc=f"fingerprint {layout.folder.name}", unit="case", disable=not progress):
        try:
            facts.append(_facts_of(case, len(channels), allowed, layout.ignore))
            cases.append(case)
        except DataError as error:
            faults.append(Fault(Path(error.where), str(error)))
    faults += _twice(cases, facts)
    classes = layout.classes or _classes_found(layout, facts, faults)
    if facts and not faults and not any(int(v) for f in facts for v in f["voxels"]):
        faults.append(Fault(layout.folder, "every label is empty: there is nothing to learn. Pass the labels with the "
                            "drawn structures"))  # fmt: skip
    if not faults:  # what follows compares sound cases
        suspicions += [*_odd_spacings(cases, facts), *_odd_orders(cases, facts, channels)]
    _refuse(layout, faults, suspicions, accept)
    notes = [str(s) for s in suspicions]
    modality = layout.modality
    minimum = statistics.median(min(f["minimum"]) for f in facts)
    if modality is None:
        modality = "CT" if minimum < AIR_HU else "MRI"
        words = f"intensities from {minimum:g}" + (", below " if modality == "CT" else ", none below ") + f"{AIR_HU:g}"
        notes.append(f"modality is not stated: assumed {modality} because of {words}; --modality corrects it")
    if layout.ignore and all(str(layout.ignore[0]) not in f["voxels"] for f in facts):
        notes.append(f"no case holds the ignored value {layout.ignore[0]}")
    present = {int(v) for f in facts for v in f["voxels"]}
    absent = [name for name, value in classes.items() if value not in present]
    if absent:
        notes.append(f"no case holds {listed(absent)}")
    if empty := [c["case_id"] for c, f in zip(cases, facts, strict=True) if set(f["voxels"]) <= {"0"}]:
        notes.append(f"{len(empty)} cases with an empty label: {listed(empty)}")
    return Fingerprint(
        modality,
        channels,
        dict(classes),
        tuple(_intensities(np.concatenate([f["sample"][n] for f in facts])) for n in range(len(channels))),
        tuple(_case_facts(case, f) for case, f in zip(cases, facts, strict=True)),
        tuple(notes),
    )


def _refuse(layout: Layout, faults: Sequence[Fault], suspicions: Sequence[Fault], accept: bool) -> None:
    """Name every fault; with ``accept``, what only looks wrong is no fault."""
    stopping = [*faults, *([] if accept else suspicions)]
    if not stopping:
        return
    remedy = "Correct the data" if faults else "Check it; --accept takes it as it is"
    if len(stopping) == 1:
        raise stopping[0].as_error(remedy)
    for fault in stopping:
        logger.error("%s", fault)
    found = f"{len(stopping)} faults: " + "; ".join(str(fault).rstrip(".") for fault in stopping[:3])
    more = "" if len(stopping) <= 3 else "; all are in the lines above"
    raise DataError(layout.folder, "the data set has faults", found + more, remedy)


def _few(layout: Layout) -> list[Fault]:
    number = len(layout.cases)
    if number >= FEW_CASES:
        return []
    return [Fault(layout.folder, f"holds {number} case{'s' * (number != 1)}: too few for five folds and for a "
                  "meaningful score. Add cases")]  # fmt: skip


def _channel_names_of(layout: Layout) -> tuple[str, ...]:
    """Channels of one 4D file a case: those stated, else as many as the first image has."""
    first = layout.cases[0]["image"]
    if layout.channels and (layout.channels != ("image",) or isinstance(first, list)):
        return layout.channels
    try:
        shape = read_nifti_header(first).get_data_shape()
    except Exception:  # what is wrong with it, the strict reader says
        return layout.channels
    number = shape[3] if len(shape) == 4 else 1
    return layout.channels if number == 1 else tuple(f"channel_{n}" for n in range(number))


def _facts_of(case: Case, channels: int, allowed: Sequence[int] | None, ignore: Sequence[int] = ()) -> dict[str, Any]:
    """Facts of one case, from the disk where nothing has changed."""
    described = {key: describe_case(case[key]) for key in ("image", "label")}
    key = content_hash(["fingerprint", _VERSION, channels, *ignore, package_versions()["nibabel"], described])
    path = cache_folder() / key[:2] / f"{key}.json"
    facts = load_entry(path)
    if facts is None or not set(map(int, facts["voxels"])) <= set(allowed or map(int, facts["voxels"])):
        facts = _measure(case, channels, allowed, ignore)
        save_entry(path, facts)
    return facts


def _measure(case: Case, channels: int, allowed: Sequence[int] | None, ignore: Sequence[int]) -> dict[str, Any]:
    label = read_nifti(case["label"], kind="label", allowed_labels=allowed)
    volumes = [_image(path, channels if isinstance(case["image"], str) else 1) for path in paths_of(case["image"])]
    for volume in volumes:
        check_pair(volume, label)
    image = np.stack([v.array for v in volumes], -1) if len(volumes) > 1 else volumes[0].array
    image = image if image.ndim == 4 else image[..., None]  # (X, Y, Z, C)
    order = nib.io_orientation(label.affine)[:, 0].argsort()  # the file's axis along X, Y and Z of RAS
    shape, spacing = np.array(label.array.shape), np.array(label.spacing)
    draw = np.random.default_rng(zlib.crc32(str(case["case_id"]).encode()))
    inside = np.flatnonzero((label.array > 0) & ~np.isin(label.array, ignore))
    chosen = draw.choice(inside, SAMPLED_VOXELS) if len(inside) else inside  # with replacement, as nnU-Net
    values, counts = np.unique(label.array, return_counts=True)
    drawn = (values > 0) & ~np.isin(values, ignore)
    flat = image.reshape(-1, image.shape[-1])
    return {
        "shape": shape[order].tolist(),
        "nonzero_shape": _nonzero_shape(image)[order].tolist(),
        "spacing": [round(float(s), 6) for s in spacing[order]],
        "minimum": [float(m) for m in flat.min(0)],
        "voxels": {str(v): int(n) for v, n in zip(values, counts, strict=True)},
        "placed": values[drawn].tolist(),
        "places": _places(label, inside, counts[drawn], draw),
        "sample": np.ascontiguousarray(flat[chosen].T.astype(np.float32)),  # (C, N)
        "digest": hashlib.sha256(str(shape).encode() + np.ascontiguousarray(image).tobytes()).hexdigest(),
    }


def _places(
    label: Volume, inside: NDArray[np.intp], counts: NDArray[np.intp], draw: np.random.Generator
) -> NDArray[np.float64]:
    """Centre, spread and skew of each class (`Place`), by value: (classes, 33).

    Args:
        label: of a case.
        inside: flat indices of the voxels of all classes.
        counts: voxels of each class.
        draw: for the voxels of a class that has more than are needed.
    """
    inside = inside[np.argsort(label.array.reshape(-1)[inside], kind="stable")]
    turn = label.affine[:3, :3]
    rows = []
    for chosen in np.split(inside, np.cumsum(counts)[:-1]) if len(inside) else []:
        if len(chosen) > PLACED_VOXELS:
            chosen = draw.choice(chosen, PLACED_VOXELS)
        indices = np.stack(np.unravel_index(chosen, label.array.shape), -1)
        where = (indices - (np.array(label.array.shape) - 1) / 2) @ turn.T  # (N, 3), mm
        centre = where.mean(0)
        off = where - centre
        spread = np.sqrt(off.var(0) + (turn**2).sum(1) / 12)  # a voxel is as wide as it is
        skew = np.einsum("ni,nj,nk->ijk", off, off, off, optimize=True) / len(off)
        rows.append(np.concatenate([centre, spread, skew.ravel()]))
    return np.array(rows).reshape(-1, 33)


def _image(path: str, channels: int) -> Volume:
    return read_nifti(path, channels=channels)


def _nonzero_shape(image: NDArray) -> NDArray[np.int64]:
    mask = (image != 0).any(-1)
    sides = []
    for axis in range(3):
        hit = np.flatnonzero(mask.any(tuple(a for a in range(3) if a != axis)))
        sides.append(int(hit[-1] - hit[0] + 1) if len(hit) else mask.shape[axis])
    return np.array(sides)


def _case_facts(case: Case, facts: Mapping[str, Any]) -> CaseFacts:
    return CaseFacts(
        case["case_id"],
        tuple(facts["shape"]),
        tuple(facts["nonzero_shape"]),
        tuple(facts["spacing"]),
        tuple(facts["minimum"]),
        {int(value): count for value, count in facts["voxels"].items()},
        {value: _place(row) for value, row in zip(facts["placed"], facts["places"], strict=True)},
    )


def _place(row: NDArray) -> Place:
    centre, spread = (tuple(round(float(mm), 2) for mm in part) for part in (row[:3], row[3:6]))
    return Place(centre, spread, row[6:].reshape(3, 3, 3).astype(np.float32))


def _intensities(values: NDArray) -> Intensities:
    low, median, high = np.percentile(values, (0.5, 50, 99.5)) if len(values) else (0.0, 0.0, 0.0)
    mean, std = (values.mean(dtype=np.float64), values.std(dtype=np.float64)) if len(values) else (0.0, 1.0)
    return Intensities(*(float(f"{v:.6g}") for v in (mean, std, median, low, high)))


def _classes_found(layout: Layout, facts: Sequence[Mapping[str, Any]], faults: list[Fault]) -> dict[str, int]:
    """Classes by the values in the labels, where nothing states them."""
    values = sorted({0, *(int(v) for f in facts for v in f["voxels"])})
    try:
        check_consecutive(layout.folder, values)
    except DataError as error:
        counts = {v: sum(f["voxels"].get(str(v), 0) for f in facts) for v in values}
        faults.append(Fault(layout.folder, f"{error} Voxels: {counts}"))
    return {"background" if v == 0 else f"class_{v}": v for v in values}


def _twice(cases: Sequence[Case], facts: Sequence[Mapping[str, Any]]) -> list[Fault]:
    """Images that two cases share: one in training and one in validation would make the scores too good."""
    seen: dict[str, Path] = {}
    faults = []
    for case, f in zip(cases, facts, strict=True):
        path = Path(paths_of(case["image"])[0])
        first = seen.setdefault(f["digest"], path)
        if first != path:
            faults.append(Fault(path, f"holds the same voxels as {first.name}: one scan under two names. Remove one"))
    return faults


def _odd_spacings(cases: Sequence[Case], facts: Sequence[Mapping[str, Any]]) -> list[Fault]:
    """Cases whose voxels are as much larger or smaller as another unit makes them, on every axis."""
    median = np.median([f["spacing"] for f in facts], axis=0)
    faults = []
    for case, f in zip(cases, facts, strict=True):
        ratios = np.array(f["spacing"]) / median
        if ratios.min() > SPACING_FACTOR or ratios.max() < 1 / SPACING_FACTOR:
            path = Path(paths_of(case["image"])[0])
            found = f"has spacing {_triple(f['spacing'])} mm where the others have {_triple(median)}"
            faults.append(Fault(path, f"{found}: another unit, it seems. Correct the header"))
    return faults


def _odd_orders(cases: Sequence[Case], facts: Sequence[Mapping[str, Any]], channels: Sequence[str]) -> list[Fault]:
    """Cases whose foreground is as bright in two channels as that of the others is in the same two, exchanged.

    A rank says more than a value, since MR intensities have no unit: the channels' order by brightness is compared,
    and only where nearly all other cases share one.
    """
    if len(channels) < 2 or len(facts) < FEW_CASES:
        return []
    medians = np.array([[np.median(c) if len(c) else np.nan for c in f["sample"]] for f in facts])  # (cases, C)
    usual = np.nanmedian(medians, axis=0)
    faults = []
    for a in range(len(channels)):
        for b in range(a + 1, len(channels)):
            brighter = medians[:, a] > medians[:, b]
            share = max(brighter.mean(), 1 - brighter.mean())
            factor = max(usual[a], usual[b]) / max(min(usual[a], usual[b]), 1e-6)
            if share < 0.8 or factor < 2:  # no clear order among the others
                continue
            for n in map(int, np.flatnonzero(brighter != (brighter.mean() > 0.5))):
                low, high = sorted((medians[n, a], medians[n, b]))
                if high > 2 * max(low, 1e-6):
                    path = Path(paths_of(cases[n]["image"])[0])
                    faults.append(Fault(path, f"has channels {channels[a]} and {channels[b]} in another order than the "
                                        f"others, it seems: medians of the foreground {medians[n, a]:.3g} and "
                                        f"{medians[n, b]:.3g}, elsewhere {usual[a]:.3g} and {usual[b]:.3g}. Exchange "
                                        "them"))  # fmt: skip
    return faults


def _triple(numbers: Sequence[float]) -> str:
    return " x ".join(f"{float(n):.3g}" for n in numbers)
