"""From the network's grid back to the scan's: all logits at once, logits in slabs, or labels alone.

    python benchmarks/restoring.py --classes 3 20 100
    python benchmarks/restoring.py --classes --heads path/to/heads/with/masks

Artificial logits (smooth noise, the more classes the more borders) at 2 mm are brought to 1 mm: seconds and peak memory
beyond the logits, each way in a process of its own, and the mean Dice of its labels with those of all logits at once.
``--heads``: a folder of T1-weighted heads (``*_T1w*.nii.gz``) with masks (``*_brainmask.nii.gz``): Dice of the ``nfbs``
bundle's brains with these where logits or where labels are brought back from 2 mm.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from hippocampus import machine  # the benchmark beside this one
from torch import Tensor

from decathlete.files import atomic_write
from decathlete.transforms import restore_to_grid

COARSE, FINE = np.diag([2.0, 2.0, 2.0, 1.0]), np.eye(4)


def whole(logits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """All classes on the fine grid, then the largest."""
    return restore_to_grid(logits, COARSE, FINE, shape).argmax(0).to(torch.uint8)


def slabs(logits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The largest slab by slab, as the bundles do."""
    return restore_to_grid(logits, COARSE, FINE, shape, argmax=True)[0]


def labels(logits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The largest on the coarse grid, then the nearest."""
    return restore_to_grid(logits.argmax(0, keepdim=True).to(torch.uint8), COARSE, FINE, shape, mode="nearest")[0]


WAYS: dict[str, Callable[[Tensor, tuple[int, ...]], Tensor]] = {
    "logits, whole": whole,
    "logits, in slabs": slabs,
    "labels, nearest": labels,
}


def main() -> None:
    """Print the tables and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="*", default=(3, 20, 100))
    parser.add_argument("--size", type=int, default=96, help="voxels of an edge of the coarse grid")
    parser.add_argument("--heads", type=Path)
    parser.add_argument("--output", type=Path, default=Path("restoring.json"))
    options = parser.parse_args()

    rows = []
    if options.classes:
        print("classes  way                seconds    GiB   Dice with all logits")
    for classes in options.classes:
        reference: np.ndarray | None = None
        for way in WAYS:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                seconds, gib, found = pool.apply(measure, (way, classes, options.size))
            reference = found if reference is None else reference
            dice = float(np.mean([agreement(found == c, reference == c) for c in range(1, classes)]))
            rows.append({"classes": classes, "way": way, "seconds": seconds, "gib": gib, "dice": dice})
            print(f"{classes:7}  {way:17}  {seconds:7.2f}  {gib:5.2f}   {dice:.4f}", flush=True)
    document: dict[str, Any] = {"machine": machine(), "artificial": rows}
    if options.heads:
        document["heads"] = of_heads(options.heads)
    with atomic_write(options.output) as part:
        part.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def measure(way: str, classes: int, size: int) -> tuple[float, float, np.ndarray]:
    """Seconds, GiB and labels of one way."""
    torch.manual_seed(0)
    noise = torch.nn.functional.interpolate(torch.randn(1, classes, *[size // 8] * 3), [size] * 3, mode="trilinear")
    logits = noise[0].contiguous()
    shape = (2 * size,) * 3
    WAYS[way](logits[:, :16, :16, :16], (32, 32, 32))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    found = WAYS[way](logits, shape)
    seconds = time.perf_counter() - start
    return seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20, found.numpy()


def of_heads(folder: Path) -> dict[str, dict[str, float]]:
    """Dice of each head's brain by logits and by labels."""
    from decathlete.inference import Predictor

    back = {"_target_": "decathlete.transforms.RestoreGridd", "keys": "pred", "orig_keys": "image", "mode": "nearest"}
    hard = {"_target_": "Compose", "transforms": [{"_target_": "AsDiscreted", "keys": "pred", "argmax": True}, back]}
    predictors = {
        "by logits": Predictor("nfbs"),
        "by labels": Predictor("nfbs", overrides={"postprocessing::transforms::0": hard}),
    }
    found: dict[str, dict[str, float]] = {}
    print("\nhead                            by logits  by labels")
    for mask in sorted(folder.glob("*_brainmask.nii.gz")):
        truth = np.asarray(nib.load(mask).dataobj) > 0
        (image,) = folder.glob(mask.name.replace("_brainmask.nii.gz", "_T1w*.nii.gz"))
        row = {way: agreement(p.predict_file(image).label > 0, truth) for way, p in predictors.items()}
        found[image.name] = row
        print(f"{image.name:30}  {row['by logits']:9.4f}  {row['by labels']:9.4f}", flush=True)
    return found


def agreement(a: np.ndarray, b: np.ndarray) -> float:
    """Dice."""
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else 1.0


if __name__ == "__main__":
    main()
