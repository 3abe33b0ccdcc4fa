"""The bundles of the package that are rendered from the table of tasks. ``make bundles`` writes their configs anew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from decathlete.bundle import packaged_root
from decathlete.data.tasks import get_task
from decathlete.files import atomic_write
from decathlete.planning.plans import Plan
from decathlete.planning.rules import plan_of_task
from decathlete.planning.writer import render

CONFIGS = ("train", "inference", "evaluate", "multi_gpu_train")  # cards, metadata and licences are written by hand


def _gpu(name: str) -> Plan:
    return plan_of_task(get_task(name), device="cuda")


PLANS: dict[str, Callable[[str], Plan]] = {
    "brain_tumour": _gpu,
    "liver": _gpu,
    "prostate": _gpu,
    "pancreas": _gpu,
    "hepatic_vessel": _gpu,
    "spleen": _gpu,
    "colon": _gpu,
}


def render_packaged(name: str) -> dict[str, str]:
    """Text of each config of a packaged bundle, by its path in the bundle's folder.

    Args:
        name: one of `PLANS`.
    """
    texts = render(PLANS[name](name))
    return {file: texts[file] for file in (f"configs/{config}.yaml" for config in CONFIGS)}


def write_packaged(root: Path) -> list[Path]:
    """Write the configs of all bundles of `PLANS` below ``root``; return the files that changed."""
    changed = []
    for name in PLANS:
        for file, text in render_packaged(name).items():
            path = root / name / file
            if path.is_file() and path.read_text(encoding="utf-8") == text:
                continue
            with atomic_write(path) as part:
                part.write_text(text, encoding="utf-8")
            changed.append(path)
    return changed


if __name__ == "__main__":
    written = write_packaged(packaged_root())
    print("\n".join(map(str, written)) or "The configs are up to date.")
