"""Checks of a bundle or a data folder before a long run."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from pydoc import locate
from typing import TYPE_CHECKING, Any

from decathlete.bundle import Bundle, bundle_folder, config_file, is_bundle, packaged_root
from decathlete.errors import DecathleteError, listed, one_line
from decathlete.failures import find_error
from decathlete.machine import cores, free_device_bytes, free_memory_bytes
from decathlete.names import inert

if TYPE_CHECKING:
    from decathlete.planning import Layout
    from decathlete.planning.fingerprints import CaseFacts

SAMPLED_BYTES = 1 << 30  # a larger data set is looked over in 20 cases: reading all of it takes minutes
SAMPLED_CASES = 20


@dataclass
class CheckReport:
    """What a check found.

    Attributes:
        ok: nothing was found that would stop a run.
        lines: one line a finding; those that would stop a run start with ``FAULT``.
    """

    ok: bool = True
    lines: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        """Print a line and keep it; what is not printable, such as in a file's name, is spelt out."""
        text = one_line(text)
        self.lines.append(text)
        print(text, flush=True)

    def fault(self, text: object) -> None:
        """Print and keep a line on something that would stop a run."""
        self.ok = False
        self.say(f"FAULT {text}")


def check(target: str | Path, dataset_dir: str | Path | None = None) -> CheckReport:
    """Check a bundle (configs, data, weights, environment, expected memory and time), or a folder of data.

    Args:
        target: a bundle's folder or name, or a data set's folder.
        dataset_dir: data to check a bundle with; by default where a training would look.

    Raises:
        UsageError: neither a bundle nor a folder.
        DataError: the data folder given as ``target`` is missing or empty.
    """
    report = CheckReport()
    if _is_data(Path(target)):
        _check_data(report, Path(target))
        return report
    folder = bundle_folder(target)
    report.say(f"bundle       {folder}")
    parsers = {name: _check_config(report, folder, name) for name in ("train", "inference", "evaluate")}
    _check_metadata(report, folder)
    _check_environment(report)
    train = parsers["train"]
    if train is not None:
        if dataset_dir is not None:
            train["dataset_dir"] = inert(Path(dataset_dir))
        try:
            _check_training(report, train)
        except Exception as error:  # whatever a config's expressions raise is a finding
            report.fault(_one_line(folder, error))
    if parsers["inference"] is not None:
        _check_weights(report, parsers["inference"], folder)
    report.say("ok" if report.ok else "not ok: see the lines that start with FAULT")
    return report


def _is_data(path: Path) -> bool:
    from decathlete.data.kinds import kind_of
    from decathlete.data.tasks import task_of_folder

    if is_bundle(path):
        return False
    if not path.is_dir():
        return task_of_folder(path) is not None and len(path.parts) > 1  # data/Task09_Spleen that is not there yet
    if path.parent.name not in ("", "bundles") or not is_bundle(packaged_root() / path.name):
        return True
    return kind_of(path) == "sunnybrook"  # which has a bundle of its name


def _check_data(report: CheckReport, folder: Path, limit: int | None = None) -> None:
    """A data set of any kind, looked over as that kind is read."""
    from decathlete.data.cases import list_cases
    from decathlete.data.kinds import kind_of
    from decathlete.data.verification import stated, verify

    kind = kind_of(folder)
    if kind == "sunnybrook":
        _check_sunnybrook(report, folder)
        return
    if kind == "nnunet":
        from decathlete.planning import find_layout

        _check_layout(report, find_layout(folder))
        return
    cases = list_cases(folder)
    channels, labels = stated(folder)
    faults = verify(folder, limit=limit)
    looked = f"{min(limit, len(cases))} of {len(cases)} cases" if limit else f"{len(cases)} cases"
    report.say(f"data         {folder}: {looked} checked, {channels} channel(s), labels {labels or 'not stated'}")
    for fault in faults:
        report.fault(fault)
    if not faults:
        report.say("data         every file is readable and finite, every label on its image's grid")


def _check_sunnybrook(report: CheckReport, folder: Path) -> None:
    """Frames and contours of every patient as a table, and each thing that is wrong by its file."""
    from decathlete.data.sunnybrook import index_sunnybrook

    index = index_sunnybrook(folder, progress=True, pixels=True)
    for line in index.table():
        report.say(f"data         {line}")
    for finding in index.findings:
        if finding.severity == "FAULT":
            report.fault(finding)
        else:
            report.say(f"{finding.severity:<13}{finding}")
    if not any(frame.inner for frame in index.frames):
        report.fault(f"{folder}: no frame has a usable inner contour, so there is nothing to train on")


def _check_config(report: CheckReport, folder: Path, name: str) -> Any:
    """Parser of a config of which every reference and every class is there; None where it cannot be read."""
    from decathlete.bundle.configs import load

    try:
        file = config_file(folder, name)
        parser = load(folder, name)
    except DecathleteError as error:
        if name == "evaluate":
            report.say(f"config       {error}")
        else:
            report.fault(error)
        return None
    problems = [*_unknown_references(parser), *_unknown_targets(parser)]
    if name != "evaluate":
        problems += _missing_ids(parser, name)
    for problem in problems:
        report.fault(f"{file}, {problem}")
    if not problems:
        report.say(f"config       {file.name}: every reference and class exists")
    return parser


def _leaves(config: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(config, dict):
        for key, value in config.items():
            if not str(key).startswith("_meta_"):
                yield from _leaves(value, f"{name}::{key}" if name else str(key))
    elif isinstance(config, list):
        for number, value in enumerate(config):
            yield from _leaves(value, f"{name}::{number}")
    else:
        yield name, config


def _unknown_references(parser: Any) -> Iterator[str]:
    from monai.bundle.reference_resolver import ReferenceResolver

    for name, value in _leaves(parser.get()):
        if isinstance(value, str):
            for reference in ReferenceResolver.match_refs_pattern(value):
                if reference not in parser and reference.partition("::")[0] != "_meta_":
                    yield f"{name}: refers to '@{reference}', which is not in the config"


def _unknown_targets(parser: Any) -> Iterator[str]:
    for name, value in _leaves(parser.get()):
        if name.endswith("_target_") and isinstance(value, str) and not value.startswith(("$", "@", "%")):
            known = locate(value) if "." in value else parser.locator.get_component_module_name(value)
            if not known:
                yield f"{name}: '{value}' cannot be imported"


def _missing_ids(parser: Any, name: str) -> Iterator[str]:
    from monai.bundle.properties import InferProperties, TrainProperties
    from monai.utils import BundleProperty, BundlePropertyConfig

    for facts in (TrainProperties if name == "train" else InferProperties).values():
        wanted = facts[BundlePropertyConfig.ID]
        if facts[BundleProperty.REQUIRED] and wanted not in parser:
            yield f"{wanted}: MONAI's tools need this id ({facts[BundleProperty.DESC].rstrip('.')})"


def _check_metadata(report: CheckReport, folder: Path) -> None:
    file = folder / "configs" / "metadata.json"
    try:
        content = Bundle(folder).metadata
    except DecathleteError as error:
        report.fault(error)
        return
    if missing := [name for name in ("version", "task") if name not in content]:
        report.fault(f"{file}: {listed(missing)} missing" if content else f"{file}: no such file")
    else:
        report.say(f"metadata     version {content['version']}, {content['task']}")


def _check_environment(report: CheckReport) -> None:
    import monai
    import torch

    from decathlete.training.precision import gpu_versions, gpu_warning

    versions = f"python {platform.python_version()}, torch {torch.__version__}, monai {monai.__version__}"
    report.say(f"environment  {versions}; {cores()} cores, {free_memory_bytes() / 2**30:.1f} GiB of memory free")
    if not torch.cuda.is_available():
        report.say("environment  no CUDA GPU: training and prediction run on the CPU")
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        name = torch.cuda.get_device_name(number)
        report.say(f"environment  cuda:{number} {name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free")
    if torch.cuda.is_available():
        report.say(f"environment  {gpu_versions()}")
        if warning := gpu_warning():
            report.say(f"warning      {warning}")


def _check_training(report: CheckReport, parser: Any) -> None:
    """Data, and memory and time estimated from the first case."""
    from decathlete.data.cache import size_bytes

    data = Path(str(parser.get_parsed_content("dataset_dir")))
    train = parser.get_parsed_content("train::dataset::data") if "train::dataset::data" in parser else []
    validation = parser.get_parsed_content("validate::dataset::data") if "validate::dataset::data" in parser else []
    fold = parser.get("fold")
    report.say(f"data         {data}, fold {fold}: {len(train)} training cases, {len(validation)} validation cases")
    size = sum(Path(p).stat().st_size for case in train + validation for p in _files(case))
    if "image_files" in parser:
        _check_patterns(report, data, parser)
    else:
        _check_data(report, data, SAMPLED_CASES if size > SAMPLED_BYTES else None)
        _note_sides(report, parser)
    if not train or "train::preprocessing" not in parser:
        return
    preprocessing = parser.get_parsed_content("train::preprocessing")
    start = time.perf_counter()
    first = preprocessing(train[0])
    first = first[0] if isinstance(first, list) else first  # random crops come as a list
    needed = size_bytes(first) * (len(train) + len(validation))
    minutes = (time.perf_counter() - start) * (len(train) + len(validation)) / 60
    free = free_memory_bytes()
    samples = len(train)
    if "SliceDataset" in str(parser.get("train::dataset::_target_")):
        samples *= int(first["image"].shape[1:][int(parser.get_parsed_content("train::dataset::axis"))])
        report.say(f"forecast     {needed / 2**30:.2f} GiB of disk for the slices of all cases, about {samples} to "
                   f"train on; {minutes:.1f} minutes to prepare them")  # fmt: skip
    else:
        kept = "fits in" if needed <= free / 2 else "exceeds"
        report.say(f"forecast     {needed / 2**30:.2f} GiB for all cases after preprocessing, which {kept} half of the "
                   f"{free / 2**30:.1f} GiB that are free; {minutes:.1f} minutes to prepare them")  # fmt: skip
    if needed > free / 2 and "CacheDataset" in str(parser.get("train::dataset::_target_")):
        report.say("forecast     use decathlete.data.CachedDataset for train::dataset, which caches on disk instead")
    _forecast_iterations(report, parser, samples)


def _check_patterns(report: CheckReport, data: Path, parser: Any) -> None:
    """Data whose files a config names by patterns."""
    from decathlete.planning import find_layout

    classes = [name for name, value in parser.get("labels").items() if value]
    layout = find_layout(data, parser.get("image_files"), parser.get("label_files"), classes=classes)
    cases = _check_layout(report, replace(layout, ignore=tuple(parser.get("ignore") or ())))
    _note_sides(report, parser, cases)


def _check_layout(report: CheckReport, layout: Layout) -> Sequence[CaseFacts]:
    """A data set as ``decathlete new`` reads it; faults are raised, the facts of the cases returned."""
    from decathlete.planning import take_fingerprint

    found = take_fingerprint(layout, accept=True)
    for note in found.notes:
        report.say(f"note         {note}")
    report.say(
        f"data         {len(found.cases)} cases: every file is readable and finite, every label on its image's grid"
    )
    return found.cases


def _note_sides(report: CheckReport, parser: Any, cases: Sequence[CaseFacts] = ()) -> None:
    """Warn where a training mirrors classes that differ only by left and right."""
    from decathlete.planning.sides import find_side

    labels, regions = (parser.get(name) for name in ("labels", "regions"))
    axes = parser.get("train::augmentation::mirror_axes")
    if not axes or not isinstance(labels, Mapping):
        return
    if side := find_side(labels, cases, regions if isinstance(regions, Mapping) else ()):
        report.say(f"note         training mirrors along axes {axes}, but {side}, so it would learn to confuse them. "
                   "Set train::augmentation::mirror_axes, and tta_axes of inference.yaml, to []")  # fmt: skip


def _forecast_iterations(report: CheckReport, parser: Any, samples: int) -> None:
    """Time of one forward and backward pass of one patch, scaled to the full training: a rough estimate.

    Nothing runs whose estimated memory is not free: the system would end the process.
    """
    import torch

    from decathlete.planning.footprint import step_gib
    from decathlete.training.precision import autocast

    if any(name not in parser for name in ("network", "network_def", "patch_size", "batch_size", "device")):
        return
    network, device = parser.get_parsed_content("network"), torch.device(parser.get_parsed_content("device"))
    patch, batch = parser.get_parsed_content("patch_size"), int(parser.get_parsed_content("batch_size"))
    channels = int(parser.get_parsed_content("network_def::in_channels"))  # with neighbouring slices, where there are
    amp = bool(parser.get_parsed_content("amp")) if "amp" in parser else False
    free, size = free_device_bytes(device) / 2**30, "x".join(map(str, patch))
    needed = step_gib(network, (1, channels, *patch), amp, device)
    if needed is not None and needed > free:
        report.say(f"forecast     training on one patch of {size} takes about {needed:.1f} GiB of memory on {device}, "
                   f"but only {free:.1f} GiB are free, so its time is not measured. Use a machine with more "
                   "memory, or lower patch_size")  # fmt: skip
        return
    needed = step_gib(network, (batch, channels, *patch), amp, device)
    if needed is not None and needed > free:
        report.say(f"forecast     training on {batch} patches of {size} takes about {needed:.1f} GiB of memory on "
                   f"{device}, but only {free:.1f} GiB are free. Use a machine with more memory, or lower "
                   "batch_size")  # fmt: skip
    image = torch.randn(1, channels, *patch, device=device)
    seconds: list[float] = []
    while len(seconds) < 3 and sum(seconds) < 10:  # the first call also chooses kernels; the fastest counts
        start = time.perf_counter()
        with autocast(device, amp):
            out = network(image)
        sum(o.float().mean() for o in (out if isinstance(out, (list, tuple)) else [out])).backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    parameters = sum(p.numel() for p in network.parameters()) / 1e6
    epoch = min(seconds) * samples / 60
    epochs = parser.get_parsed_content("train::trainer::max_epochs")
    report.say(f"forecast     network of {parameters:.2f} million parameters; a batch of {batch} takes about "
               f"{_short(min(seconds) * batch)} s on {device}, an epoch {_time(epoch)}, {epochs} epochs "
               f"{_time(epoch * epochs)}; at this machine's current load, without augmentation")  # fmt: skip


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def _files(case: dict[str, Any]) -> Iterator[str]:
    for key in ("image", "label"):
        entry = case.get(key, [])
        yield from [entry] if isinstance(entry, str) else entry


def _check_weights(report: CheckReport, parser: Any, folder: Path) -> None:
    from decathlete.bundle.checkpoints import load_weights

    file = folder / "models" / "model.pt"
    if not file.is_file():
        report.say(f"weights      {file} does not exist: train first, or pass --checkpoint to predict")
        return
    try:
        load_weights(parser.get_parsed_content("network_def"), file)
        report.say(f"weights      {file} fits the network, {file.stat().st_size / 2**20:.1f} MiB")
    except Exception as error:  # whatever a config's expressions raise is a finding
        report.fault(_one_line(file, error))


def _one_line(where: Path, error: BaseException) -> str:
    if (own := find_error(error)) is not None:
        return str(own)
    texts = []
    cause: BaseException | None = error
    while cause is not None:  # MONAI names the expression that failed, the cause says why
        texts.append(f"{type(cause).__name__}: {' '.join(str(cause).split())[:300]}")
        cause = cause.__cause__
    return f"{where}: {'; '.join(texts)}"


def _time(minutes: float) -> str:
    return f"{_short(minutes)} minutes" if minutes >= 1 else f"{_short(minutes * 60)} s"
