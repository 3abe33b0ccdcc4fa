"""Where a bundle's files are. Imports nothing heavy: the command line's start-up passes here."""

from __future__ import annotations

from pathlib import Path

from decathlete.errors import UsageError, nearest



def packaged_root() -> Path:
    """Folder of the bundles that came with the package, in a checkout and in an installation alike."""
    import decathlete.bundles

    return Path(next(iter(decathlete.bundles.__path__)))


def bundle_names() -> list[str]:
    """Names of the packaged bundles, sorted."""
    return sorted(p.parent.parent.name for p in packaged_root().glob("*/configs/metadata.json"))


def is_bundle(folder: Path) -> bool:
    """Whether ``folder`` holds a bundle's configs."""
    return any((folder / "configs" / f"{name}.{end}").is_file()
               for name in ("train", "inference") for end in ("yaml", "json", "yml"))


def bundle_folder(bundle: str | Path) -> Path:
    """Folder of a bundle: ``bundle`` itself if it is one, else the packaged bundle of that name.

    Args:
        bundle: a folder, a name (``hippocampus``), or ``bundles/hippocampus`` from any working directory.

    Raises:
        UsageError: neither a bundle's folder nor a known name; the nearest known name is given.
    """
    folder = Path(bundle)
    if is_bundle(folder):
        return folder
    name = folder.name
    packaged = packaged_root() / name
    if folder.parent.name in ("", "bundles") and is_bundle(packaged):
        return packaged
    found = "a folder without configs/train.yaml or configs/inference.yaml" if folder.is_dir() else "no such folder"
    raise UsageError(bundle, "must be a bundle's folder or the name of a packaged bundle", found,
                     nearest(name, bundle_names()))
