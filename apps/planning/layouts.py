"""Where the files of a data set are: the Decathlon's folders, nnU-Net's raw folders, or pairs told by patterns."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from decathlete.data.cases import Case, list_cases, read_description
from decathlete.data.folds import split
from decathlete.data.nfbs import is_nfbs
from decathlete.data.tasks import task_of_folder
from decathlete.data.verification import Fault
from decathlete.errors import DataError, UsageError, listed
from decathlete.files import NIFTI_SUFFIXES, check_content, is_file_or_broken_link, nifti_files

logger = logging.getLogger(__name__)

OTHER_SUFFIXES = (".nrrd", ".mha")  # read by ITK and converted once; .mhd and .nhdr keep their voxels elsewhere
_CHANNEL = re.compile(r"^(?P<case>.+)_(?P<number>\d{4})(?P<suffix>\.nii\.gz|\.nii|\.nrrd|\.mha)$", re.IGNORECASE)
_HINT = "Give imagesTr and labelsTr, or say which files they are with --images '*/t1.nii.gz' --labels '*/seg.nii.gz'"


@dataclass(frozen=True)
class Layout:
    """A data set's files, and what it says about them.

    Attributes:
        folder: the data set's folder.
        kind: ``msd`` (``decathlete.data.datalist`` lists the cases) or ``pairs`` (`matched_cases` does, by patterns).
        images: patterns of the image files relative to the folder, one a channel; ``*`` stands for the case.
        labels: pattern of the label files.
        channels: a name for each channel.
        classes: name to value, background at 0; None where nothing is stated.
        regions: name to the values that it is made of, where the data set states regions that overlap.
        ignore: the label value of voxels that nobody judged, in a list, where there is one: the one after the classes.
        modality: ``CT``, another word, or None where nothing is stated.
        about: ``name``, ``description``, ``reference`` and ``licence`` of ``dataset.json``, as far as they are there.
        cases: every case, with the files that it ought to have.
        faults: what is wrong with the names alone.
    """

    folder: Path
    kind: Literal["msd", "pairs"]
    images: tuple[str, ...] = ()
    labels: str = ""
    channels: tuple[str, ...] = ()
    classes: Mapping[str, int] | None = None
    regions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    ignore: tuple[int, ...] = ()
    modality: str | None = None
    about: Mapping[str, str] = field(default_factory=dict)
    cases: tuple[Case, ...] = ()
    faults: tuple[Fault, ...] = ()

    @property
    def files(self) -> list[Path]:
        """All files of all cases."""
        return [Path(p) for case in self.cases for key in ("image", "label") for p in _paths(case[key])]


def find_layout(
    folder: str | Path,
    images: Sequence[str] = (),
    labels: str | None = None,
    channels: Sequence[str] = (),
    classes: Sequence[str] = (),
    modality: str | None = None,
) -> Layout:
    """The layout of a data set's folder; only names and ``dataset.json`` are looked at.

    Args:
        folder: the data set's folder.
        images: patterns of the images, one a channel, in the order of the channels; ``*`` stands for the case.
        labels: pattern of the labels.
        channels: names of the channels, in place of those in ``dataset.json``.
        classes: names of the classes 1, 2, and so on, in place of those in ``dataset.json``.
        modality: in place of the one in ``dataset.json``.

    Raises:
        DataError: no folder, no cases, or a ``dataset.json`` that states no classes 0, 1, 2, ....
        UsageError: patterns that cannot be.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(folder, "--data is a data set's folder", "no such folder", "Check the path")
    if bool(images) != bool(labels):
        raise UsageError("--images, --labels", "are given together", "one of them", _HINT)
    description = read_description(folder) or {}
    if images and labels:
        layout = _by_patterns(folder, tuple(images), labels)
    elif is_nfbs(folder):
        raise DataError(folder, "a bundle is made of a data set that has none", "NFBS", "Use the bundle nfbs")
    elif "training" not in description and (raw := _nnunet_patterns(folder, description)):
        layout = _by_patterns(folder, *raw)
    else:
        layout = _by_decathlon(folder)
    stated = _channel_names(folder, description)
    names = tuple(channels) or stated or ("image",)
    if names == ("image",) and len(layout.images) > 1:
        names = tuple(f"channel_{n}" for n in range(len(layout.images)))
    if layout.images and len(names) != len(layout.images):
        raise DataError(folder, f"{len(layout.images)} files a case need {len(layout.images)} channel names",
                        f"{len(names)}: {', '.join(names)}", "Correct dataset.json, or --channels")  # fmt: skip
    found, regions, ignore = (_numbered(classes), {}, ()) if classes else _classes(folder, description)
    return replace(
        layout,
        channels=names,
        classes=found,
        regions=regions,
        ignore=ignore,
        modality=modality or _modality(stated),
        about={
            key: str(description[other])
            for key, other in (
                ("name", "name"), ("description", "description"), ("reference", "reference"),
                ("licence", "licence"), ("licence", "license"),
            )
            if description.get(other)
        },
    )  # fmt: skip


def matched_cases(
    dataset_dir: str | Path,
    images: Sequence[str],
    labels: str | None = None,
    fold: int | str = "all",
    part: Literal["training", "validation", "all"] = "all",
) -> list[Case]:
    """Cases by patterns of their files, as ``{"image": path or list, "label": path, "case_id": id}``, sorted by id.

    Args:
        dataset_dir: the data set's folder.
        images: patterns relative to it, one a channel; what ``*`` stands for is the case.
        labels: pattern of the labels; None lists the images alone.
        fold: 0 to 4, or ``all``.
        part: of the fold.

    Raises:
        DataError: no case, or a case that lacks a file.
        UsageError: a pattern that cannot be, or an unknown fold.
    """
    cases, faults = _matched(Path(dataset_dir), tuple(images), labels)
    if faults:
        raise DataError(faults[0].path, "every case has its files", faults[0].message,
                        f"{len(faults)} in all: add them, or take the cases away")  # fmt: skip
    if not cases:
        raise DataError(dataset_dir, f"files match {listed(images)}", "none", "Check --dataset_dir")
    if part == "all":
        return cases
    train, validation = split([case["case_id"] for case in cases], fold, task_of_folder(dataset_dir))
    wanted = set(train if part == "training" else validation)
    return [case for case in cases if case["case_id"] in wanted]


def _by_decathlon(folder: Path) -> Layout:
    try:
        cases = list_cases(folder)
    except DataError as error:
        if error.found not in ("0 cases", "no such folder"):
            raise
        found = listed(sorted(p.name for p in folder.iterdir())) or "an empty folder"
        raise DataError(folder, "the folder has images and labels in a layout that is known", found, _HINT) from None
    faults = [*_missing(cases)]
    known = {Path(case["label"]).name for case in cases}
    if (folder / "labelsTr").is_dir():
        faults += [
            Fault(path, "belongs to no case: its image is missing, or not listed in dataset.json. Add it, or take "
                  "the label away")
            for path in nifti_files(folder / "labelsTr") if path.name not in known
        ]  # fmt: skip
    return Layout(folder, "msd", cases=tuple(cases), faults=tuple(faults))


def _by_patterns(folder: Path, images: tuple[str, ...], labels: str) -> Layout:
    cases, faults = _matched(folder, images, labels)
    if not cases and not faults:
        raise DataError(folder, f"files match --images {listed(images)}", "none", "Quote the pattern, and start it at "
                        "the folder of --data: --images '*/t1.nii.gz'")  # fmt: skip
    # a channel that the patterns do not know: a number beyond them
    if all(_CHANNEL.match(PurePosixPath(p).name) for p in images):
        for path in sorted((folder / images[0]).parent.glob("*")) if "*" not in str(Path(images[0]).parent) else []:
            match = _CHANNEL.match(path.name)
            if match and int(match["number"]) >= len(images):
                faults.append(Fault(path, f"is channel {int(match['number'])} of a data set that states "
                                    f"{len(images)}. Take it away, or add the channel to dataset.json"))  # fmt: skip
    return Layout(folder, "pairs", images, labels, cases=tuple(cases), faults=tuple(faults))


def _nnunet_patterns(folder: Path, description: Mapping[str, Any]) -> tuple[tuple[str, ...], str] | None:
    """Patterns of nnU-Net's raw folders (``imagesTr/case_0000.nii.gz``), or None for another layout."""
    if not (folder / "imagesTr").is_dir():
        return None
    matches = [m for p in sorted((folder / "imagesTr").iterdir()) if (m := _CHANNEL.match(p.name))]
    labels = {p.name.lower() for p in (folder / "labelsTr").iterdir()} if (folder / "labelsTr").is_dir() else set()
    belong = any(f"{m['case']}{m['suffix']}".lower() in labels for m in matches)
    if not matches or not (belong or "channel_names" in description):
        return None
    suffix = str(description.get("file_ending") or matches[0]["suffix"])
    number = len(description.get("channel_names") or ()) or 1 + max(int(m["number"]) for m in matches)
    return tuple(f"imagesTr/*_{n:04d}{suffix}" for n in range(number)), f"labelsTr/*{suffix}"


def _matched(folder: Path, images: tuple[str, ...], labels: str | None) -> tuple[list[Case], list[Fault]]:
    patterns = [*images, *([labels] if labels else [])]
    found = [_match(folder, pattern) for pattern in patterns]
    if labels and not any(found[:-1]):
        return [], []
    cases, faults = [], []
    for case_id in sorted(set().union(*found)):
        for pattern, files in zip(patterns, found, strict=True):
            if case_id not in files:
                what = "label" if labels and pattern is patterns[-1] else "image"
                faults.append(Fault(folder / pattern, f"{case_id} has no {what} by this pattern. Add the file, or take "
                                    "the case away"))  # fmt: skip
        if all(case_id in files for files in found):
            paths = [str(files[case_id]) for files in found]
            image = paths[: len(images)]
            case: Case = {"image": image[0] if len(images) == 1 else image}
            cases.append(case | ({"label": paths[-1]} if labels else {}) | {"case_id": case_id})
    return cases, faults


def _match(folder: Path, pattern: str) -> dict[str, Path]:
    """Case id to file. Several stars are joined by ``_`` where they stand for different words."""
    if re.search(r"[?\[\]]|\*\*", pattern) or "*" not in pattern:
        raise UsageError(pattern, "a pattern has * where the case stands, and no other wildcard", pattern, _HINT)
    path = PurePosixPath(pattern)
    if path.is_absolute() or ".." in path.parts:
        raise UsageError(pattern, "a pattern starts at the folder of --data and stays in it", pattern, _HINT)
    shape = re.compile("([^/]*)".join(re.escape(part) for part in str(path).split("*")))
    found: dict[str, Path] = {}
    for file in sorted(folder.glob(str(path))):
        match = shape.fullmatch(file.relative_to(folder).as_posix())
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        if match is None or hidden or not is_file_or_broken_link(file):
            continue
        case_id = "_".join(dict.fromkeys(match.groups()))
        if case_id in found:
            raise DataError(file, "a case has one file by each pattern", f"{found[case_id].name} too",
                            "Make the pattern narrower")  # fmt: skip
        found[case_id] = file
    return found


def _missing(cases: Iterable[Case]) -> Iterable[Fault]:
    for case in cases:
        for key in ("image", "label"):
            for path in _paths(case[key]):
                try:
                    check_content(path)
                except DataError as error:
                    yield Fault(Path(path), str(error))
                    continue
                if not Path(path).is_file():
                    yield Fault(Path(path), f"{case['case_id']} has no {key}: no such file. Add it, or take the case "
                                "away")  # fmt: skip


def _paths(entry: str | list[str]) -> list[str]:
    return [entry] if isinstance(entry, str) else entry


def _channel_names(folder: Path, description: Mapping[str, Any]) -> tuple[str, ...]:
    given = description.get("modality") or description.get("channel_names") or {}
    try:
        numbered = {int(number): str(name) for number, name in given.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise DataError(folder / "dataset.json", "modality names the channels by number", f"{given!r:.200}",
                        'Write {"0": "T2", "1": "ADC"}') from error  # fmt: skip
    if sorted(numbered) != list(range(len(numbered))):
        raise DataError(folder / "dataset.json", "channels are numbered 0, 1, 2 without a gap",
                        f"{sorted(numbered)}", "Number the channels anew, in the order of the files")  # fmt: skip
    return tuple(numbered[n] for n in range(len(numbered)))


def _modality(names: Sequence[str]) -> str | None:
    if not names:
        return None
    return "CT" if all(name.strip().upper() == "CT" for name in names) else names[0] if len(names) == 1 else "MRI"


def _numbered(names: Sequence[str]) -> dict[str, int]:
    classes = {"background": 0, **{name: value for value, name in enumerate(names, start=1)}}
    if len(classes) != len(names) + 1:
        raise UsageError("--classes", "every class has a name of its own", ", ".join(names), "Leave background out")
    return classes


def _classes(
    folder: Path, description: Mapping[str, Any]
) -> tuple[dict[str, int] | None, dict[str, tuple[int, ...]], tuple[int, ...]]:
    """Classes, regions and ignored value, as ``dataset.json`` states them.

    MSD writes {"1": "liver"}, nnU-Net v2 {"liver": 1}, {"whole": [1, 2], "core": 2} for regions, and {"ignore": 3}.
    """
    file = folder / "dataset.json"
    given = description.get("labels")
    if not given:
        return None, {}, ()
    if not isinstance(given, dict):
        raise DataError(file, "labels name the classes", f"{given!r:.200}", 'Write {"0": "background", "1": "liver"}')
    named: dict[str, tuple[int, ...]] = {}
    for one, other in given.items():
        value, name = (one, other) if str(one).isdigit() else (other, one)
        values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
        taken = len(values) == 1 and str(values[0]).isdigit() and (int(values[0]),) in named.values()
        if not values or not all(str(v).isdigit() for v in values) or str(name) in named or taken:
            raise DataError(file, "labels pair a name with a value, each once", f"{one!r}: {other!r}",
                            'Write {"0": "background", "1": "liver"}')  # fmt: skip
        named[str(name)] = tuple(int(v) for v in values)
    ignore = next((named.pop(name) for name in list(named) if name.lower() == "ignore"), ())
    regions = {name: values for name, values in named.items() if values != (0,)}
    if all(len(values) == 1 for values in regions.values()):
        regions = {}
        classes = {name: values[0] for name, values in named.items()}
    else:  # a class has the name of the region that is that class alone, where there is one
        alone = {values[0]: name for name, values in regions.items() if len(values) == 1}
        classes = {alone.get(v, f"class {v}"): v for v in sorted({v for values in regions.values() for v in values})}
    if 0 not in classes.values():
        classes["background"] = 0
    check_consecutive(file, classes.values())
    if ignore and ignore != (len(classes),):
        raise DataError(file, f"an ignored value is the one after the classes, {len(classes)}", f"{list(ignore)}",
                        "Number it anew in the label files and in dataset.json")  # fmt: skip
    return dict(sorted(classes.items(), key=lambda item: item[1])), regions, ignore


def check_consecutive(where: str | Path, values: Iterable[int]) -> None:
    """Refuse label values that leave out a number: a network gives one channel a class, counted from 0.

    Raises:
        DataError: names the values that are there and those that are missing.
    """
    there = sorted(values)
    absent = sorted(set(range(max(there) + 1)) - set(there))
    if absent:
        raise DataError(where, "classes are numbered 0, 1, 2 without a gap", f"{there}, without {listed(absent)}",
                        "Number them anew in the label files and in dataset.json")  # fmt: skip


def is_nifti(path: str | Path) -> bool:
    """Whether a name ends as NIfTI files do."""
    return str(path).lower().endswith(NIFTI_SUFFIXES)
