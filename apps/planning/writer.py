"""The files of a bundle, from a plan and templates that read as the files do."""

from __future__ import annotations

import functools
import json
import re
import shlex
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

import jinja2
import yaml

import decathlete
from decathlete.bundle import bundle_names, dicom_modality, packaged_root
from decathlete.bundle.places import is_packaged
from decathlete.data.tasks import get_task
from decathlete.errors import DataError, DecathleteError, UsageError, one_line
from decathlete.files import atomic_folder, atomic_write, check_output_folder
from decathlete.names import check_name, expression, is_code
from decathlete.planning.fingerprints import Fingerprint
from decathlete.planning.layouts import are_overlapping
from decathlete.planning.plans import Plan

TEMPLATES = Path(__file__).with_name("templates")
FILES = {
    "train.yaml": "configs/train.yaml",
    "inference.yaml": "configs/inference.yaml",
    "evaluate.yaml": "configs/evaluate.yaml",
    "multi_gpu_train.yaml": "configs/multi_gpu_train.yaml",
    "metadata.json": "configs/metadata.json",
    "README.md": "docs/README.md",
    "data_license.txt": "docs/data_license.txt",
}
COPIED = ("configs/logging.conf", "LICENSE")  # the same in all bundles
PRETRAINED = "models/pretrained.pt"
METHOD = (
    "Isensee et al. nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation. Nature "
    "Methods 18, 203-211 (2021)"
)
UNTRIED = "The configuration was planned, not tuned. Its accuracy is unknown until the bundle is trained and evaluated."
_COLUMN = 32  # where the comments of the first block stand


def write_bundle(
    plan: Plan,
    folder: str | Path,
    fingerprint: Fingerprint | None = None,
    overwrite: bool = False,
    root: str | None = None,
    authors: str = "",
    pretrained: Path | None = None,
) -> Path:
    """Write the bundle of a plan and return its folder.

    A new folder appears when all is written. With ``overwrite``, each file is replaced completely, and other
    files in the folder, such as weights, are kept.

    Args:
        plan: what to write.
        folder: of the bundle.
        fingerprint: written beside the configs.
        overwrite: write into a folder that is there.
        root: ``bundle_root`` of the configs; by default ``folder`` where it is relative, else ``bundles/<name>``.
        authors: for the metadata.
        pretrained: weights to start from, copied into the bundle; the plan says so too.

    Raises:
        UsageError: the folder is there, or cannot be written.
    """
    folder = Path(folder)
    check_target(folder, overwrite)
    texts = render(plan, root or _root(folder, plan.name), fingerprint, authors)
    if folder.is_dir():
        for name, text in texts.items():
            with atomic_write(folder / name) as part:
                part.write_text(text, encoding="utf-8")
        if pretrained is not None:
            with atomic_write(folder / PRETRAINED) as part:
                shutil.copyfile(pretrained, part)
        return folder
    with atomic_folder(folder) as new:
        for name, text in texts.items():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            (new / name).write_text(text, encoding="utf-8")
        if pretrained is not None:
            (new / PRETRAINED).parent.mkdir()
            shutil.copyfile(pretrained, new / PRETRAINED)
    return folder


def check_target(folder: Path, overwrite: bool) -> None:
    """Refuse a bundle's folder that must not be written, before anything costs time.

    Raises:
        UsageError: it is there, is the folder of a packaged bundle, or cannot be made.
    """
    ours = is_packaged(folder) and folder.name in bundle_names()
    if ours and not (folder / "configs" / "fingerprint.json").is_file():
        raise UsageError(folder, "a bundle of the package cannot be overwritten", "", "Choose another NAME or --output")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise UsageError(folder, "the folder already exists", "",
                         "Pass --overwrite to replace its configs, or choose another NAME or --output")  # fmt: skip
    check_output_folder(folder)


def render(plan: Plan, root: str = "", fingerprint: Fingerprint | None = None, authors: str = "") -> dict[str, str]:
    """Text of each file of a bundle, by its path in the folder.

    Args:
        plan: what to write.
        root: ``bundle_root`` of the configs.
        fingerprint: of the data, where there is one.
        authors: for the metadata.
    """
    values = _values(plan, root or f"bundles/{plan.name}", fingerprint, authors)
    texts = _rendered(values)
    neutral = _values(_neutral(plan), "bundles/neutral", fingerprint, "") | {"overlapping": values["overlapping"]}
    neutral["references"] = [f"neutral {n}" for n in range(len(values["references"]))]
    _check_same_ids(texts, _rendered(neutral), plan)
    example = packaged_root() / "hippocampus"
    texts |= {name: (example / name).read_text(encoding="utf-8") for name in COPIED}
    if fingerprint is not None:
        texts["configs/fingerprint.json"] = fingerprint.to_json()
    return texts


@functools.cache
def _environment() -> jinja2.Environment:
    """Templates whose insertions never end a line: unprintable characters are escaped.

    Text of the data is inserted as a value by ``flow`` or ``json``, inside of an expression by ``expression``.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, autoescape=False,
        finalize=lambda value: one_line(str(value)),
    )  # fmt: skip
    environment.filters.update(short=_short, json=_json, expression=expression, shell=shlex.quote)
    return environment


def _rendered(values: Mapping[str, Any]) -> dict[str, str]:
    texts = {}
    for template, name in FILES.items():
        text = _environment().get_template(template).render(values)
        texts[name] = align(text) if name.endswith(".yaml") else text
    return texts


def _json(value: Any) -> str:
    """JSON on one line, which is YAML too, with letters of any script as they are."""
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isprintable() else json.dumps(value)


def _neutral(plan: Plan) -> Plan:
    """The plan with words of our own in place of all that came with the data."""
    return replace(
        plan,
        name="neutral",
        dataset="neutral",
        modality="neutral",
        title="neutral",
        data_source="neutral",
        licence="neutral",
        channels=tuple(f"channel {n}" for n in range(len(plan.channels))),
        classes={f"class {n}": value for n, value in enumerate(plan.classes.values())},
        regions={f"region {n}": values for n, values in enumerate(plan.regions.values())},
        images=tuple(f"{n}/*.nii.gz" for n in range(len(plan.images))),
        labels_pattern="labels/*.nii.gz" if plan.labels_pattern else "",
        notes=("neutral",) * len(plan.notes),
        reasons=dict.fromkeys(plan.reasons, "neutral"),
    )


def _check_same_ids(texts: Mapping[str, str], neutral: Mapping[str, str], plan: Plan) -> None:
    """Refuse configs to which the names in a plan add an id or an expression, whatever way they found.

    Raises:
        DataError: the configs have other ids than those of the same plan with neutral names.
    """
    names = [name for name in texts if name.endswith((".yaml", ".json"))]
    for name in names:
        found = "a text that ends its place"
        try:
            ours, plain = (_leaves(yaml.load(text[name], _Loader)) for text in (texts, neutral))
            found = next((f"'{one_line(str(a))[:60]}'" for a, b in zip(ours, plain, strict=True) if a != b), "")
        except (yaml.YAMLError, ValueError):  # another number of leaves
            pass
        if found:
            raise DataError(f"{plan.name}, {name}", "names in the data set would change the bundle's configs", found,
                            "Use plain letters for channels, classes and the folder")  # fmt: skip


_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NAMED = ("labels", "regions")  # whose keys are names of the data


def _leaves(config: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], str]]:
    """Place of each leaf, and the leaf itself where it is an expression, a reference or a macro."""
    if isinstance(config, Mapping):
        own = place and place[-1] in _NAMED
        for number, (key, value) in enumerate(config.items()):
            yield from _leaves(value, (*place, number if own else key))
    elif isinstance(config, list):
        for number, value in enumerate(config):
            yield from _leaves(value, (*place, number))
    else:
        special = isinstance(config, str) and is_code(config)
        data = place in (("dataset_dir",), ("output_dir",))  # expressions around the names of data set and bundle
        yield place, "expression" if special and data else config if special else ""


def align(text: str) -> str:
    """The YAML with the comments of top-level values in one column, where the values are short enough."""

    def pad(match: re.Match[str]) -> str:
        return f"{match[1]:<{_COLUMN - 1}} {match[2]}" if len(match[1]) < _COLUMN else f"{match[1]}  {match[2]}"

    return re.sub(r"(?m)^(\w+: [^#\n]*?\S) {2,}(# .*)$", pad, text)


def flow(value: Any) -> str:
    """A list or mapping in YAML's flow form, on one line: ``[40, 56, 40]``, ``{background: 0, liver: 1}``."""
    plain = dict(value) if isinstance(value, Mapping) else _plain(value)
    text = yaml.safe_dump(plain, default_flow_style=True, width=10**6, sort_keys=False, allow_unicode=True)
    return text.strip().removesuffix("...").strip()  # which ends a lone number


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _short(value: Iterable[int]) -> Any:
    """One number for a list of equal ones."""
    numbers = list(value)
    return numbers[0] if len(set(numbers)) == 1 else numbers


def _values(plan: Plan, root: str, fingerprint: Fingerprint | None, authors: str) -> dict[str, Any]:
    by_value = {value: name for name, value in plan.classes.items()}
    words = "z-score normalised, each scan and channel on its own" + (
        ", over the nonzero voxels" if plan.nonzero else ""
    )
    limits = [-5.0, 5.0]
    if window := plan.window:
        words = (
            f"CT in HU, clipped to {window.low:g} to {window.high:g}, then z-score normalised with the mean and "
            "standard deviation of the training foreground"
        )
        limits = [round((edge - window.mean) / window.std, 2) for edge in (window.low, window.high)]
    rates = plan.reasons.get("lr", "tuned on the hippocampus")
    names = ("nibabel", "pytorch-ignite", "tensorboard")
    return {
        "plan": plan,
        "why": {**dict.fromkeys(_EXPLAINED, "chosen by hand"), **dict.fromkeys(_RATES, rates), **plan.reasons},
        "root": root,
        "task": f", {expression(plan.task)}" if plan.task else "",
        "val_fold": "'all'" if plan.train_cases == 1 else "0 if @fold == 'all' else @fold",
        "flow": flow,
        "overlapping": are_overlapping(plan.images, plan.labels_pattern),
        "fingerprint": fingerprint,
        "authors": authors or "the authors of this bundle",
        "versions": {name: version(name).partition("+")[0] for name in ("monai", "torch", "numpy")},
        "packages": {**{name: version(name) for name in names}, "decathlete": decathlete.__version__},
        "image_classes": words,
        "label_classes": ", ".join(f"{value} {name}" for value, name in sorted(by_value.items())),
        "label_def": {str(value): name for value, name in sorted(by_value.items())},
        "foreground": [name for name, value in plan.classes.items() if value],
        "modality": dicom_modality(plan.modality),
        "example": _example(plan),
        # a patch on a GPU takes minutes on a CPU, where tools only want to know what fits
        "spatial_shape": [f"{2 * d}*n" for d in plan.network.divisor]
        if plan.recipe == "sgd"
        else list(plan.patch_size),
        "input_scan": _input_scan(plan),
        "licence": plan.licence or "not stated in the data set; find out before you share the data or the weights",
        "untried": UNTRIED,
        "channel_def": {str(n): name for n, name in enumerate(plan.channels)},
        "value_range": limits,
        "references": list(dict.fromkeys([*plan.references, METHOD])),
    }


def _input_scan(plan: Plan) -> str:
    """What a scan must be, for the card and the metadata."""
    if len(plan.channels) > 1:
        return f"one 4D NIfTI file per scan, with the channels in this order: {', '.join(plan.channels)}"
    name = plan.channels[0] if plan.channels[0] != "image" else plan.modality
    return f"one 3D NIfTI file per scan, or a folder with one DICOM series: {name}"


def _example(plan: Plan) -> str:
    """What the comment on regions gives as an example."""
    foreground = [value for value in plan.classes.values() if value]
    if plan.regions:
        return ""
    if len(foreground) < 2:
        return "overlapping parts, a list of classes each: "
    known = get_task(plan.task).regions if plan.task else {}
    return f"such as {flow(known or {'whole': foreground})}: "


_RATES = ("lr", "matrix_lr")
_EXPLAINED = (
    "network",
    "resampling",
    "loss",
    "largest",
    "augmentation",
    "max_epochs",
    "batch_size",
    "patch_size",
    "margin_size",
    "roi_size",
    "spacing",
    "mirror_axes",
)


def _root(folder: Path, name: str) -> str:
    """The folder as the configs state it: no machine's path, and none that a config would take for code."""
    path = PurePosixPath(folder.as_posix())
    try:
        check_name(str(path), "--output", "a folder")
    except DecathleteError:
        return f"bundles/{name}"
    return f"bundles/{name}" if path.is_absolute() or ".." in path.parts else str(path)
