"""Resampling of a CT with cubic splines: ours, axis by axis, against MONAI's Spacingd.

    python benchmarks/resampling.py --shape 512 512 120 --spacing 0.75 0.75 2.5 --target 0.8 0.8 1.6

Time of the second call and peak memory, each in a process of its own; and the largest difference inside of the scan,
where both place the voxels alike: Spacingd keeps the middle of the first voxel, ours that of the volume.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hippocampus import machine  # the benchmark beside this one
from monai.data import MetaTensor
from monai.transforms import Spacingd
from scipy import ndimage

from decathlete.files import atomic_write
from decathlete.transforms import ResampleSpacingd, resample_to_spacing

WAYS = {
    "ours, cubic": lambda target: ResampleSpacingd("image", target, "cubic"),
    "MONAI, cubic": lambda target: Spacingd("image", target, mode=3),
    "MONAI, linear": lambda target: Spacingd("image", target, mode="bilinear"),
}


def main() -> None:
    """Print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(512, 512, 120))
    parser.add_argument("--spacing", type=float, nargs=3, default=(0.75, 0.75, 2.5))
    parser.add_argument("--target", type=float, nargs=3, default=(0.8, 0.8, 1.6))
    parser.add_argument("--output", type=Path, default=Path("resampling.json"))
    options = parser.parse_args()

    results = []
    for name in WAYS:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found = pool.apply(measure, (name, options.shape, options.spacing, options.target))
        results.append({"name": name, **found})
        print(f"{name:<16} {found['seconds']:6.2f} s  {found['peak_gib']:5.2f} GiB above the scan  {found['shape']}",
              flush=True)  # fmt: skip
    difference = from_scipy(options.spacing, options.target)
    print(f"largest difference from SciPy's own splines at the same places: {difference:.1e} of a standard deviation")
    document = {"machine": machine(), "results": results, "difference_from_scipy": difference}
    with atomic_write(options.output) as part:
        part.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def measure(name: str, shape: Sequence[int], spacing: Sequence[float], target: Sequence[float]) -> dict[str, Any]:
    """Seconds, peak memory and shape of one way."""
    voxels = torch.randn(1, *shape)
    scan = MetaTensor(voxels, affine=torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(2):
        start = time.perf_counter()
        out = WAYS[name](target)({"image": scan})["image"]
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"seconds": seconds, "peak_gib": peak / 2**20, "shape": list(out.shape[1:])}


def from_scipy(spacing: Sequence[float], target: Sequence[float]) -> float:
    """Largest difference of our cubic values from ``scipy.ndimage.map_coordinates`` on a small scan."""
    x = np.random.default_rng(0).normal(size=(40, 36, 24)).astype(np.float32)
    found = resample_to_spacing(torch.from_numpy(x)[None], spacing, target, anisotropy=np.inf)[0].numpy()
    places = [
        (np.arange(m) - (m - 1) / 2) * (t / s) + (n - 1) / 2
        for n, m, s, t in zip(x.shape, found.shape, spacing, target, strict=True)
    ]
    wanted = ndimage.map_coordinates(x, np.meshgrid(*places, indexing="ij"), order=3, mode="nearest")
    return float(np.abs(found - wanted).max())


if __name__ == "__main__":
    main()
