"""Where the files of a data set are: the Decathlon's folders, nnU-Net's raw folders, or pairs found by patterns."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from decathlete.data.cases import Case, list_cases, paths_of
from decathlete.data.folds import split
from decathlete.data.kinds import CHANNEL, IMAGE_SUFFIXES, WORDS, kind_of, read_description
from decathlete.data.tasks import task_of_folder
from decathlete.data.verification import Fault, strays
from decathlete.errors import DataError, UsageError, listed
from decathlete.files import NIFTI_SUFFIXES, check_content, is_file_or_broken_link
from decathlete.names import check_name, plain_text, same_name

logger = logging.getLogger(__name__)

LONGEST_PATTERN = 255  # characters
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
        return [Path(p) for case in self.cases for key in ("image", "label") for p in paths_of(case[key])]


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
        raise DataError(folder, "no such folder", "", "Correct --data")
    if bool(images) != bool(labels):
        raise UsageError("--images, --labels", "only one of the two is given", "", _HINT)
    for option, patterns in (("--images", images), ("--labels", (labels,) if labels else ())):
        for pattern in patterns:
            check_name(pattern, option, "a pattern of files", LONGEST_PATTERN, UsageError)
    description = read_description(folder) or {}
    kind = kind_of(folder, description)
    stated = _channel_names(folder, description)
    found, regions, ignore = (_numbered(classes), {}, ()) if classes else _classes(folder, description)
    if images and labels:
        layout = _by_patterns(folder, tuple(images), labels)
    elif kind in ("nfbs", "sunnybrook"):
        raise DataError(folder, "this data set already has a bundle", WORDS[kind], f"Use the bundle {kind}")
    elif kind == "dicom":
        raise DataError(folder, "the images must be NIfTI, NRRD or MetaImage files", WORDS[kind],
                        "Convert images and labels to NIfTI first")  # fmt: skip
    elif kind == "nnunet":
        layout = _by_nnunet(folder, description, len(stated))
    else:
        layout = _by_decathlon(folder)
    names = tuple(check_name(name, "--channels", "a channel's name", kind=UsageError) for name in channels)
    names = names or stated or ("image",)
    if names == ("image",) and len(layout.images) > 1:
        names = tuple(f"channel_{n}" for n in range(len(layout.images)))
    if layout.images and len(names) != len(layout.images):
        raise DataError(folder, f"{len(layout.images)} files per case need {len(layout.images)} channel names",
                        f"{len(names)} given: {', '.join(names)}", "Correct dataset.json, or --channels")  # fmt: skip
    if modality is not None:
        check_name(modality, "--modality", "a modality", kind=UsageError)
    return replace(
        layout,
        channels=names,
        classes=found,
        regions=regions,
        ignore=ignore,
        modality=modality or _modality(stated),
        about={
            key: plain_text(description[other])
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
    without: str | None = None,
) -> list[Case]:
    """Cases by patterns of their files, as ``{"image": path or list, "label": path, "case_id": id}``, sorted by id.

    A file that two patterns match is the narrower one's: ``*_seg.nii.gz`` are labels beside images ``*.nii.gz``.
    Letters with accents may be spelt in either of Unicode's ways, and the suffixes be in capitals.

    Args:
        dataset_dir: the data set's folder.
        images: patterns relative to it, one a channel; what ``*`` stands for is the case.
        labels: pattern of the labels; None lists the images alone.
        fold: 0 to 4, or ``all``.
        part: of the fold.
        without: pattern of files that are no images, though a pattern of the images matches them.

    Raises:
        DataError: no case, or a case that lacks a file.
        UsageError: a pattern that cannot be, or an unknown fold.
    """
    cases, faults = _matched(Path(dataset_dir), tuple(images), labels, without)
    if faults:
        raise faults[0].as_error(f"{len(faults)} faults in total" if len(faults) > 1 else "")
    if not cases:
        raise DataError(dataset_dir, f"no file matches {listed(images)}", "", "Check --dataset_dir")
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
        raise DataError(folder, "no known layout of images and labels", found, _HINT) from None
    faults = (*_missing(cases), *strays(folder, cases))
    return Layout(folder, "msd", cases=tuple(cases), faults=faults)


def _by_patterns(folder: Path, images: tuple[str, ...], labels: str) -> Layout:
    cases, faults = _matched(folder, images, labels)
    if not cases and not faults:
        raise DataError(folder, f"no file matches --images {listed(images)}", "",
                        "Quote the pattern, and start it at the folder of --data: --images '*/t1.nii.gz'")  # fmt: skip
    # a channel number beyond those of the patterns
    if all(CHANNEL.match(PurePosixPath(p).name) for p in images):
        for path in sorted((folder / images[0]).parent.glob("*")) if "*" not in str(Path(images[0]).parent) else []:
            match = CHANNEL.match(path.name)
            if match and int(match["number"]) >= len(images):
                faults.append(Fault(path, f"is channel {int(match['number'])} of a data set that states "
                                    f"{len(images)}. Remove it, or add the channel to dataset.json"))  # fmt: skip
    return Layout(folder, "pairs", images, labels, cases=tuple(cases), faults=tuple(faults))


def _by_nnunet(folder: Path, description: Mapping[str, Any], channels: int) -> Layout:
    """nnU-Net's raw folders, ``imagesTr/case_0000.nii.gz`` with ``labelsTr/case.nii.gz``."""
    where, ending = folder / "imagesTr", description.get("file_ending")
    known = [p.name for p in sorted(where.iterdir()) if p.name.lower().endswith(IMAGE_SUFFIXES) and p.name[0] != "."]
    if ending is not None:
        if not isinstance(ending, str) or ending.lower() not in IMAGE_SUFFIXES:
            raise DataError(folder / "dataset.json", f"file_ending must be one of {', '.join(IMAGE_SUFFIXES)}",
                            f"{ending!r:.80}", "Correct it, or convert the images to NIfTI first")  # fmt: skip
        others, known = known, [name for name in known if name.lower().endswith(ending.lower())]
        if others and not known:
            raise DataError(folder / "dataset.json", "file_ending does not fit the images in imagesTr",
                            f"'{ending}' for {listed(others, 3)}", "Correct file_ending")  # fmt: skip
    matches = [match for name in known if (match := CHANNEL.match(name))]
    if not matches:
        found = listed(known, 3) or "no image"
        remedy = f"Rename {known[0]} to {_numbered_name(known[0])}, and so on" if known else "Add the images"
        raise DataError(where, "names of nnU-Net's images must end in the channel number, such as case_0000.nii.gz",
                        found, remedy)  # fmt: skip
    suffix = (ending or matches[0]["suffix"]).lower()
    number = channels or 1 + max(int(match["number"]) for match in matches)
    layout = _by_patterns(folder, tuple(f"imagesTr/*_{n:04d}{suffix}" for n in range(number)), f"labelsTr/*{suffix}")
    unnumbered = [
        Fault(where / name, f"has no channel number in its name. Rename it to {_numbered_name(name)}")
        for name in known if not CHANNEL.match(name)
    ]  # fmt: skip
    return replace(layout, faults=(*layout.faults, *unnumbered))


def _numbered_name(name: str) -> str:
    suffix = next(end for end in IMAGE_SUFFIXES if name.lower().endswith(end))
    return f"{name[: -len(suffix)]}_0000{name[-len(suffix) :]}"


def are_overlapping(images: Iterable[str], labels: str) -> bool:
    """Whether a pattern of images matches what a pattern of labels does."""
    return bool(labels) and any(_shape(image).fullmatch(labels.replace("*", "x")) for image in images)


def _matched(
    folder: Path, images: tuple[str, ...], labels: str | None, without: str | None = None
) -> tuple[list[Case], list[Fault]]:
    patterns = [*images, *([labels] if labels else [])]
    matches = {pattern: _match(folder, pattern) for pattern in [*patterns, *([without] if without else [])]}
    narrowest: dict[Path, int] = {}
    for pattern, files in matches.items():
        for file in files.values():
            narrowest[file] = max(narrowest.get(file, 0), _letters(pattern))
    found = [
        {case_id: file for case_id, file in matches[pattern].items() if narrowest[file] == _letters(pattern)}
        for pattern in patterns
    ]
    if labels and (both := set(found[-1].values()) & {file for files in found[:-1] for file in files.values()}):
        raise DataError(min(both), "the file matches the pattern of the images and that of the labels",
                        f"{listed(images)} and {labels}", "Make the patterns narrower")  # fmt: skip
    if labels and not any(found[:-1]):
        return [], []
    cases, faults = [], []
    for case_id in sorted(set().union(*found)):
        for pattern, files in zip(patterns, found, strict=True):
            if case_id not in files:
                what = "label" if labels and pattern is patterns[-1] else "image"
                faults.append(Fault(folder / pattern, f"{case_id} has no {what} that matches this pattern. Add it, or "
                                    "remove the case"))  # fmt: skip
        if all(case_id in files for files in found):
            paths = [str(files[case_id]) for files in found]
            image = paths[: len(images)]
            case: Case = {"image": image[0] if len(images) == 1 else image}
            cases.append(case | ({"label": paths[-1]} if labels else {}) | {"case_id": case_id})
    return cases, faults


def _letters(pattern: str) -> int:
    return len(pattern.replace("*", ""))


def _match(folder: Path, pattern: str) -> dict[str, Path]:
    """Case id to file. Several stars are joined by ``_`` where they stand for different words."""
    if re.search(r"[?\[\]]|\*\*", pattern) or "*" not in pattern:
        raise UsageError(pattern, "a pattern must have * where the case id is, and no other wildcard", "", _HINT)
    path = PurePosixPath(pattern)
    if path.is_absolute() or ".." in path.parts:
        raise UsageError(pattern, "a pattern must be relative to the folder of --data and stay inside it", "", _HINT)
    shape = _shape(str(path))
    found: dict[str, Path] = {}
    for file in _walk(folder, path.parts):
        match = shape.fullmatch(same_name(file.relative_to(folder).as_posix()))
        if match is None or not is_file_or_broken_link(file):
            continue
        case_id = "_".join(dict.fromkeys(match.groups()))
        if case_id in found:
            raise DataError(file, "a pattern matches two files of one case", f"the other is {found[case_id].name}",
                            "Make the pattern narrower")  # fmt: skip
        found[case_id] = file
    return found


def _shape(pattern: str) -> re.Pattern[str]:
    """What names look like by a pattern, in the form in which names are compared."""
    suffix = next((end for end in IMAGE_SUFFIXES if pattern.lower().endswith(end)), "")
    before = same_name(pattern[: len(pattern) - len(suffix)])
    return re.compile("([^/]*)".join(re.escape(part) for part in before.split("*")) + f"(?i:{re.escape(suffix)})")


def _walk(folder: Path, parts: Sequence[str]) -> Iterator[Path]:
    """Paths that a pattern's parts match, none of them hidden."""
    shape = _shape(parts[0])
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not path.name.startswith(".") and shape.fullmatch(same_name(path.name)):
            if len(parts) == 1:
                yield path
            else:
                yield from _walk(path, parts[1:])


def _missing(cases: Iterable[Case]) -> Iterable[Fault]:
    for case in cases:
        for key in ("image", "label"):
            for path in paths_of(case[key]):
                try:
                    check_content(path)
                except DataError as error:
                    yield Fault(Path(path), str(error))
                    continue
                if not os.path.isfile(path):
                    yield Fault(Path(path), f"{case['case_id']} has no {key}: no such file. Add it, or remove the "
                                "case")  # fmt: skip


def _channel_names(folder: Path, description: Mapping[str, Any]) -> tuple[str, ...]:
    field = "modality" if description.get("modality") else "channel_names"
    given = description.get(field) or {}
    try:
        numbered = {int(number): name for number, name in given.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise DataError(folder / "dataset.json", "modality must name the channels by number", f"{given!r:.200}",
                        'Write {"0": "T2", "1": "ADC"}') from error  # fmt: skip
    if sorted(numbered) != list(range(len(numbered))):
        raise DataError(folder / "dataset.json", "channels must be numbered 0, 1, 2 without a gap",
                        f"{sorted(numbered)}", "Renumber the channels, in the order of the files")  # fmt: skip
    where = f"{folder / 'dataset.json'}, {field}"
    return tuple(check_name(numbered[n], where, "a channel's name") for n in range(len(numbered)))


def _modality(names: Sequence[str]) -> str | None:
    if not names:
        return None
    return "CT" if all(name.strip().upper() == "CT" for name in names) else names[0] if len(names) == 1 else "MRI"


def _numbered(names: Sequence[str]) -> dict[str, int]:
    for name in names:
        check_name(name, "--classes", "a class's name", kind=UsageError)
    classes = {"background": 0, **{name: value for value, name in enumerate(names, start=1)}}
    if len(classes) != len(names) + 1:
        raise UsageError("--classes", "class names must be unique", ", ".join(names),
                         "Rename one; leave background out")  # fmt: skip
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
        raise DataError(file, "labels must name the classes", f"{given!r:.200}",
                        'Write {"0": "background", "1": "liver"}')  # fmt: skip
    named: dict[str, tuple[int, ...]] = {}
    for one, other in given.items():
        value, name = (one, other) if _is_value(one) else (other, one)
        values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
        taken = len(values) == 1 and _is_value(values[0]) and (int(values[0]),) in named.values()
        if not values or not all(map(_is_value, values)) or str(name) in named or taken:
            raise DataError(file, "each label must be one name with one value, neither used twice",
                            f"{one!r:.80}: {other!r:.80}", 'Write {"0": "background", "1": "liver"}')  # fmt: skip
        named[check_name(name, f"{file}, labels", "a class's name")] = tuple(int(v) for v in values)
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
        raise DataError(file, f"the ignored value must be the one after the classes, {len(classes)}", f"{list(ignore)}",
                        "Renumber it in the label files and in dataset.json")  # fmt: skip
    return dict(sorted(classes.items(), key=lambda item: item[1])), regions, ignore


def _is_value(value: object) -> bool:
    """Whether it is a label's value; four digits are more classes than anybody draws."""
    return re.fullmatch(r"[0-9]{1,4}", str(value)) is not None


def check_consecutive(where: str | Path, values: Iterable[int]) -> None:
    """Refuse label values that leave out a number: a network gives one channel a class, counted from 0.

    Raises:
        DataError: names the values that are there and those that are missing.
    """
    there = sorted(values)
    near = range(min(max(there), 2 * len(there) + 5) + 1)  # a damaged label may hold values of any size
    absent = [value for value in near if value not in there]
    if absent:
        raise DataError(where, "classes must be numbered 0, 1, 2 without a gap", f"{there}, without {listed(absent)}",
                        "Renumber them in the label files and in dataset.json")  # fmt: skip


def is_nifti(path: str | Path) -> bool:
    """Whether a name ends as NIfTI files do."""
    return str(path).lower().endswith(NIFTI_SUFFIXES)
