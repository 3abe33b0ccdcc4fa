"""`decathlete info`: what is installed, and what a bundle takes, gives and is worth. No torch, nothing is run."""

from __future__ import annotations

import math
import os
import platform
import re
import shutil
import textwrap
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from decathlete import __version__
from decathlete.bundle import Bundle, bundle_names, packaged_root
from decathlete.bundle.places import WEIGHTS, is_packaged
from decathlete.errors import DecathleteError, one_line
from decathlete.files import cache_folder, file_sha256
from decathlete.machine import cores, free_memory_bytes, gpu_names, has_bfloat16, total_memory_bytes

FORM = 1  # of the JSON; a key that goes or changes its meaning makes it 2
MOST_FILES = 20_000  # of the cache that are counted
COLUMN = 14  # where the text of a row begins
_LAST = "'decathlete info BUNDLE' says more of one, 'decathlete check' tries the GPU. Not for clinical use."


def installed_facts() -> dict[str, Any]:
    """What is installed, as docs/info.md states it: versions, machine, folders, and each packaged bundle in short."""
    packages, extras = _packages()
    gpus = gpu_names()
    on_gpu = bool(gpus) and not (packages.get("torch") or "+cpu").endswith("+cpu")
    cache, data = cache_folder(), os.environ.get("DECATHLETE_DATA")
    size, complete = _size(cache)
    return {
        "form": FORM,
        "decathlete": __version__,
        "python": platform.python_version(),
        "packages": packages,
        "extras": extras,
        "machine": {
            "cores": cores(),
            "memory_bytes": _whole(total_memory_bytes()),
            "free_memory_bytes": _whole(free_memory_bytes()),
            "gpus": gpus,
        },
        "device": "cuda" if on_gpu else "cpu",
        "precision": None if on_gpu else "bfloat16" if has_bfloat16() else "float32",
        "bundles_folder": str(packaged_root()),
        "data_folder": data or None,
        "cache": {"folder": str(cache), "bytes": size, "complete": complete},
        "bundles": [_short(Bundle(packaged_root() / name)) for name in bundle_names()],
    }


def bundle_facts(bundle: str | Path) -> dict[str, Any]:
    """What a bundle says of itself, as docs/info.md states it; its configs are read as text and nothing is run.

    Args:
        bundle: a bundle's folder or name.

    Raises:
        UsageError: neither a bundle's folder nor a known name. A file that is damaged is named under ``problems``.
    """
    described = Bundle(bundle)
    problems: list[str] = []

    def ask(question: Callable[[], Any], otherwise: Any) -> Any:
        try:
            return question()
        except DecathleteError as error:
            if (line := str(error)) not in problems:
                problems.append(line)
            return otherwise

    metadata = ask(lambda: described.metadata, {})
    if problems:
        described.metadata = {}  # said once; what else is asked needs none
    scored = ask(lambda: described.scored.regions, {})
    facts = {
        **_short(described, ask),
        "description": _text(metadata, "description"),
        "folder": str(described.folder),
        "trusted": _is_trusted(described.folder),
        "takes": {
            "modality": one_line(described.modality),
            "channels": ask(lambda: described.channels, None),
            "channel_names": [one_line(name) for name in ask(lambda: described.channel_names, [])],
            "scan": _text(metadata, "input_scan") or _text(metadata, "data_type"),
            "intensities": _text(metadata, "image_classes"),
        },
        "gives": {
            "classes": {str(value): one_line(name) for value, name in ask(lambda: described.labels, {}).items()},
            "regions": [one_line(name) for name in scored],
            "files": [one_line(path.name) for path in ask(lambda: described.outputs.files("", "SCAN"), {}).values()],
            "contours": ask(lambda: described.outputs.contours, False),
        },
        "measured_on": _texts(metadata, "eval_data"),
        "trained_on": _text(metadata, "data_source"),
        "limits": _texts(metadata, "limits"),
        "intended_use": _text(metadata, "intended_use"),
    }
    return {"form": FORM, **facts, "problems": problems}


def facts_text(facts: Mapping[str, Any]) -> str:
    """The facts of `installed_facts` or `bundle_facts` on one screen."""
    width = max(60, min(120, shutil.get_terminal_size((100, 24)).columns))
    rows = _installed_rows(facts) if "bundles" in facts else _bundle_rows(facts)
    lines, above = [], ""
    for title, text in rows:
        start = f"{title if title != above else '':<{COLUMN}}"
        lines += textwrap.wrap(text, width, initial_indent=start, subsequent_indent=" " * COLUMN,
                               break_on_hyphens=False)  # fmt: skip
        above = title
    if "bundles" in facts:
        table = [("bundle", "version", "weights", "data licence", "segments"), *map(_columns, facts["bundles"])]
        wide = [max(map(len, column)) for column in zip(*table, strict=True)]
        texts = ("  ".join(f"{word:<{n}}" for word, n in zip(row, wide, strict=True)).rstrip() for row in table)
        lines += ["", *(text if len(text) <= width else f"{text[: width - 3]}..." for text in texts), "", _LAST]
    return "\n".join(lines)


def _short(bundle: Bundle, ask: Callable[[Callable[[], Any], Any], Any] = lambda question, _: question()) -> dict:
    """A bundle in a few facts; its inference config is read only where it is not a packaged one."""
    metadata = ask(lambda: bundle.metadata, {})
    weights = bundle.folder / WEIGHTS if is_packaged(bundle.folder) else ask(lambda: bundle.weights, None)
    there = weights is not None and weights.is_file()
    stated = _text(metadata, "weights_sha256")
    metrics = metadata.get("eval_metrics")
    licences = metadata.get("licences")
    return {
        "name": one_line(bundle.name),
        "version": _text(metadata, "version"),
        "segments": _text(metadata, "task").removeprefix("Segmentation: "),
        "weights": {
            "file": str(weights) if there else None,
            "bytes": weights.stat().st_size if there and weights else None,
            "are_measured": file_sha256(weights) == stated if there and weights and stated else None,
        },
        "metrics": {
            one_line(str(name)): value
            for name, value in (metrics.items() if isinstance(metrics, Mapping) else ())
            if isinstance(value, (int, float)) and math.isfinite(value)
        },
        "licences": {
            one_line(str(what)): one_line(str(name))
            for what, name in (licences.items() if isinstance(licences, Mapping) else ())
        },
    }


def _is_trusted(folder: Path) -> bool | None:
    """Whether a bundle's configs may run: it is packaged, or this user has trusted it; None: that was not looked at."""
    if is_packaged(folder):
        return True
    from decathlete.bundle.trust import is_trusted

    return is_trusted(folder) or None  # whether they are harmless is found with torch and MONAI alone


def _packages() -> tuple[dict[str, str | None], dict[str, bool]]:
    """Versions of the packages that decathlete needs, None where one is missing; and which extras are complete."""
    try:
        stated = requires("decathlete") or []
    except PackageNotFoundError:
        stated = []
    needed: dict[str, str | None] = {}
    extras: dict[str, bool] = {}
    for line in stated:
        name = re.split(r"[^\w.-]", line, maxsplit=1)[0]
        extra = re.search(r"""extra == ['"]([\w-]+)""", line)
        if extra is None:
            needed[name] = _version(name)
        elif extra[1] != "dev":
            extras[extra[1]] = extras.get(extra[1], True) and _version(name) is not None
    return needed, extras


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _size(folder: Path) -> tuple[int, bool]:
    """Bytes of the first `MOST_FILES` files in a folder, and whether these are all."""
    size = count = 0
    for root, _, files in os.walk(folder):
        for file in files:
            if (count := count + 1) > MOST_FILES:
                return size, False
            try:
                size += os.lstat(os.path.join(root, file)).st_size
            except OSError:  # removed by another process
                continue
    return size, True


def _installed_rows(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    machine, cache, packages = facts["machine"], facts["cache"], facts["packages"]
    missing = [name for name, number in packages.items() if number is None]
    yield "decathlete", f"{facts['decathlete']}, Python {facts['python']}"
    yield "packages", ", ".join(f"{name} {number}" for name, number in packages.items() if number)
    yield "missing", ", ".join(missing) and f"{', '.join(missing)}: install decathlete again"
    yield "extras", ", ".join(f"{name} {'yes' if there else 'no'}" for name, there in facts["extras"].items())
    memory = [_size_text(machine[name]) for name in ("free_memory_bytes", "memory_bytes")]
    yield "machine", f"{machine['cores']} cores, {memory[0]} of {memory[1]} memory free"
    names = ", ".join(machine["gpus"]) or "no NVIDIA GPU found"
    yield "GPU", f"{names} (by the driver's files; torch was not asked)"
    yield "device", facts["device"]
    yield "precision", facts["precision"] or "bfloat16; float16 on GPUs older than Ampere"
    yield "data", facts["data_folder"] or "$DECATHLETE_DATA is not set: data sets are looked for in ./data"
    yield "cache", f"{cache['folder']}, {'' if cache['complete'] else 'more than '}{_size_text(cache['bytes'])}"
    yield "bundles", facts["bundles_folder"]


def _columns(bundle: Mapping[str, Any]) -> tuple[str, ...]:
    """A bundle's row of the table."""
    weights = bundle["weights"]["bytes"]
    licence = bundle["licences"].get("training data", "not stated").partition(";")[0]
    return bundle["name"], bundle["version"], _size_text(weights) if weights else "-", licence, bundle["segments"]


def _bundle_rows(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    takes, gives, weights = facts["takes"], facts["gives"], facts["weights"]
    yield facts["name"], f"{facts['description'] or facts['segments']} Version {facts['version'] or 'not stated'}."
    yield "folder", facts["folder"]
    yield (
        "trust",
        {
            True: "" if is_packaged(Path(facts["folder"])) else "you have trusted its configs as they are now",
            None: "not looked at; 'decathlete check' names code in its configs that is not known to be harmless",
        }[facts["trusted"]],
    )
    channels = f"{takes['channels'] or '?'} channel{'' if takes['channels'] == 1 else 's'}"
    names = f" ({', '.join(takes['channel_names'])})" if takes["channel_names"] else ""
    yield "takes", f"{takes['modality'] or 'any modality'}, {channels}{names}: {takes['scan'] or 'scan not described'}"
    yield "intensities", takes["intensities"]
    yield "gives", ", ".join(f"{value} {name}" for value, name in gives["classes"].items())
    yield "regions", ", ".join(gives["regions"])
    yield "files", ", ".join(gives["files"]) + (", and contours as text" if gives["contours"] else "")
    size = _size_text(weights["bytes"]) if weights["file"] else ""
    yield "weights", f"{weights['file']}, {size}" if size else "none: train the bundle, or pass --checkpoint"
    if weights["are_measured"] is False:
        yield "WARNING", "the results below were measured with other weights than these. The card may know more."
    results = [f"{name.replace('_', ' ')} {value:g}" for name, value in facts["metrics"].items()]
    unknown = "not stated in its metadata" if size else "not known, since there are no weights"
    yield "accuracy", ", ".join(results) or unknown
    for text in facts["measured_on"]:
        yield "measured on", text
    yield "trained on" if size else "data", facts["trained_on"]
    for what, name in facts["licences"].items():
        yield "licence", f"{what}: {name}"
    for text in facts["limits"]:
        yield "limit", text
    yield "use", facts["intended_use"]
    for text in facts["problems"]:
        yield "PROBLEM", text
    card = Path(facts["folder"], "docs", "README.md")
    yield "more", str(card) if card.is_file() else ""


def _size_text(size: int | None) -> str:
    if size is None:
        return "an unknown amount"
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _whole(number: float) -> int | None:
    return int(number) if math.isfinite(number) else None


def _text(content: Mapping[str, Any], key: str) -> str:
    """What stands under a key if it is text, on one line; metadata of others may hold anything."""
    value = content.get(key)
    return one_line(" ".join(value.split())) if isinstance(value, str) else ""


def _texts(content: Mapping[str, Any], key: str) -> list[str]:
    value = content.get(key)
    return [one_line(text) for text in value if isinstance(text, str)] if isinstance(value, list) else []
