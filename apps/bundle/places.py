"""Where a bundle's files are. Imports nothing heavy, since the command line starts with it."""

from __future__ import annotations

import re
from pathlib import Path

from decathlete.errors import ConfigError, UsageError, nearest

SUFFIXES = ("yaml", "yml", "json")
# files of each run id; later files override earlier ones
RUNS = {
    "training": ("train",),
    "inferring": ("inference",),
    "evaluating": ("train", "evaluate"),
    "run": ("train",),  # MONAI's default id
}
WEIGHTS = "models/model.pt"  # in a bundle's folder, unless its inference config states another file


def packaged_root() -> Path:
    """Folder of the packaged bundles, in a checkout and in an installation alike."""
    import decathlete.bundles

    return Path(next(iter(decathlete.bundles.__path__)))


def bundle_names() -> list[str]:
    """Names of the packaged bundles, sorted."""
    return sorted(p.parent.parent.name for p in packaged_root().glob("*/configs/metadata.json"))


def names_with_weights() -> list[str]:
    """Names of the packaged bundles that predict without a training, sorted."""
    return [name for name in bundle_names() if (packaged_root() / name / WEIGHTS).is_file()]


def is_packaged(folder: Path) -> bool:
    """Whether a bundle's folder is one that came with the package."""
    return folder.resolve().parent == packaged_root().resolve()


def is_bundle(folder: Path) -> bool:
    """Whether ``folder`` holds a bundle's configs."""
    return any((folder / "configs" / f"{name}.{end}").is_file() for name in ("train", "inference") for end in SUFFIXES)


def config_file(folder: Path, name: str) -> Path:
    """File of the config ``name`` (``train``, ``inference``, ...) in a bundle's folder.

    Raises:
        ConfigError: the bundle has no such config.
    """
    for end in SUFFIXES:
        file = folder / "configs" / f"{name}.{end}"
        if file.is_file():
            return file
    there = sorted(p.name for end in SUFFIXES for p in (folder / "configs").glob(f"*.{end}"))
    raise ConfigError(folder, f"no configs/{name}.yaml", f"configs/ holds {', '.join(there) or 'nothing'}")


def config_files(folder: Path, run_id: str, distributed: bool = False) -> list[Path]:
    """Files that a run id reads, in the order in which MONAI lays them over each other.

    Args:
        folder: the bundle's folder.
        run_id: ``training``, ``inferring``, ``evaluating`` or ``run``.
        distributed: whether this is one of several processes; training then reads ``multi_gpu_train`` too.

    Raises:
        UsageError: an unknown run id.
        ConfigError: a file that the run needs is missing.
    """
    if run_id not in RUNS:
        raise UsageError(run_id, "unknown run", remedy=nearest(run_id, RUNS))
    names = [*RUNS[run_id]]
    if distributed and names == ["train"]:
        names.append("multi_gpu_train")
    return [config_file(folder, name) for name in names]


def bundle_folder(bundle: str | Path) -> Path:
    """Folder of a bundle: ``bundle`` itself if it is one, else the packaged bundle of that name.

    Args:
        bundle: a folder, a name (``hippocampus``), or ``bundles/hippocampus`` from any working directory.

    Raises:
        UsageError: neither a bundle's folder nor a known name; the message suggests the nearest name.
    """
    folder = Path(bundle)
    if is_bundle(folder):
        return folder
    name = folder.name
    packaged = packaged_root() / name
    if folder.parent.name in ("", "bundles") and is_bundle(packaged):
        return packaged
    found = "a folder without configs/train.yaml or configs/inference.yaml" if folder.is_dir() else "no such folder"
    raise UsageError(
        bundle, "neither a bundle's folder nor the name of a packaged bundle", found, nearest(name, bundle_names())
    )


def dicom_modality(name: str) -> str:
    """DICOM's code for a modality or a channel: ``MR`` for MRI and its sequences (T1w, FLAIR, ...), ``CT`` for CT.

    ``metadata.json`` states it, and older bundles have another word there. A name that is not known stays as it is.
    """
    for code, names in {"CT": "CT", "MR": "MR|T[12]|FLAIR|ADC|DWI"}.items():
        if re.match(names, name.strip(), re.IGNORECASE):
            return code
    return name
