"""N4 beside SimpleITK's and ANTs' at the same settings, on heads whose true bias field is known, in one run.

    python benchmarks/bias_field.py HEADS --output bias_field.json

HEADS is a folder of heads in NFBS's layout with their fields, ``sub-*_T1w_biasfield.nii.gz`` on a coarse grid of nodes.
Reported per head and method: wall time from array to corrected array (mask and shrinking included, reading files not),
correlation of the found and the true log field inside the brain mask, and the coefficient of variation within white
matter before and after. White matter are the brain's voxels that, freed of the true field and smoothed, are brighter
than 0.87 of the brain's 90th percentile, one voxel inwards. ANTs is run where ``antspyx`` is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from hippocampus import machine  # the benchmark beside this one
from numpy.typing import NDArray
from scipy import ndimage

from decathlete.data.nfbs import IMAGE, MASK, list_heads
from decathlete.files import atomic_write
from decathlete.transforms import correct_bias_field

ITERATIONS = (20, 10, 10, 5)
FIELD = "_T1w_biasfield.nii.gz"

Method = Callable[[NDArray, NDArray, int, float], NDArray]


def main() -> None:
    """Correct every head with every method and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("heads", type=Path)
    parser.add_argument("--shrink", type=int, nargs="+", default=[3, 4])
    parser.add_argument("--threshold", type=float, default=0.0, help="convergence threshold of all methods")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--cases", type=int, help="the first so many only")
    parser.add_argument("--methods", nargs="+", help="of: separable, itk, SimpleITK, ANTs (default: all there are)")
    parser.add_argument("--output", type=Path, default=Path("bias_field.json"))
    options = parser.parse_args()

    chosen = {name: make for name, make in methods(options.threads).items() if name in (options.methods or METHODS)}
    rows = []
    for case in list_heads(options.heads)[: options.cases]:
        head = Head(case)
        for shrink in options.shrink:
            for name, correct in chosen.items():  # one after the other, so that a busy moment falls on all
                row = head.score(correct, shrink, options.threshold)
                rows.append({"case": case["case_id"], "method": name, "shrink": shrink, **row})
                change = f"{row['before']:.4f} -> {row['after']:.4f}"
                print(f"{case['case_id']} {name:10} shrink {shrink}: {row['seconds']:6.2f} s, correlation "
                      f"{row['correlation']:.3f}, white matter {change}", flush=True)  # fmt: skip
    table = summary(rows)
    settings = {"iterations": ITERATIONS, "threshold": options.threshold, "threads": options.threads}
    with atomic_write(options.output) as part:
        part.write_text(json.dumps({"machine": machine(), **settings, "table": table, "rows": rows}, indent=2) + "\n")


METHODS = ("separable", "itk", "SimpleITK", "ANTs")


def methods(threads: int) -> dict[str, Method]:
    """Name to function (image, affine, shrink, threshold) that returns the corrected image."""

    def ours(engine: Any) -> Method:
        return lambda image, affine, shrink, threshold: correct_bias_field(
            image, affine, shrink, ITERATIONS, threshold, threads=threads, engine=engine
        )

    found: dict[str, Method] = {"separable": ours("separable"), "itk": ours("itk")}
    if importlib.util.find_spec("SimpleITK"):
        found["SimpleITK"] = simple_itk(threads)
    if importlib.util.find_spec("ants"):
        os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(threads)
        found["ANTs"] = ants
    return found


def simple_itk(threads: int) -> Method:
    """SimpleITK's way, as its documentation has it: fit the shrunk image, draw the log field on the whole grid."""
    import SimpleITK as sitk  # noqa: N813

    def correct(image: NDArray, affine: NDArray, shrink: int, threshold: float) -> NDArray:
        whole = sitk.GetImageFromArray(image)
        mask = sitk.OtsuThreshold(whole, 0, 1, 200)
        n4 = sitk.N4BiasFieldCorrectionImageFilter()
        n4.SetNumberOfThreads(threads)
        n4.SetMaximumNumberOfIterations(list(ITERATIONS))
        n4.SetConvergenceThreshold(threshold)
        n4.Execute(sitk.Shrink(whole, [shrink] * 3), sitk.Shrink(mask, [shrink] * 3))
        return sitk.GetArrayFromImage(whole / sitk.Exp(n4.GetLogBiasFieldAsImage(whole)))

    return correct


def ants(image: NDArray, affine: NDArray, shrink: int, threshold: float) -> NDArray:
    """ANTs with the same mask as the others; its field is read, since its image is not the image over the field."""
    import ants
    import SimpleITK as sitk  # noqa: N813

    mask = sitk.GetArrayFromImage(sitk.OtsuThreshold(sitk.GetImageFromArray(image), 0, 1, 200))
    field = ants.n4_bias_field_correction(
        ants.from_numpy(image),
        mask=ants.from_numpy(mask.astype(np.float32)),
        shrink_factor=shrink,
        convergence={"iters": list(ITERATIONS), "tol": threshold},
        return_bias_field=True,
    ).numpy()
    return image / field


class Head:
    """A head with its brain, its white matter and its true field."""

    def __init__(self, case: dict[str, Any]) -> None:
        image, mask = nib.load(case["image"]), nib.load(case["label"])
        nodes = nib.load(case["image"].removesuffix(IMAGE) + FIELD)
        assert case["label"].endswith(MASK)
        self.voxels, self.affine = image.get_fdata(dtype=np.float32), image.affine
        self.brain = np.asarray(mask.dataobj) > 0.5
        indices = np.vstack([np.argwhere(self.brain).T, np.ones(self.brain.sum())])
        at = np.linalg.inv(nodes.affine) @ image.affine @ indices
        truth = ndimage.map_coordinates(nodes.get_fdata(), at[:3], order=1)
        self.log_truth = np.log(truth)
        even = np.zeros_like(self.voxels)
        even[self.brain] = self.voxels[self.brain] / truth
        even = ndimage.gaussian_filter(even, 1)
        self.white = ndimage.binary_erosion(self.brain & (even > 0.87 * np.percentile(even[self.brain], 90)))

    def score(self, correct: Method, shrink: int, threshold: float) -> dict[str, float]:
        """Time and accuracy of one method."""
        start = time.perf_counter()
        corrected = correct(self.voxels, self.affine, shrink, threshold)
        seconds = time.perf_counter() - start
        there = self.voxels[self.brain] > 0
        log_field = np.log(self.voxels[self.brain][there] / corrected[self.brain][there])
        return {
            "seconds": seconds,
            "correlation": float(np.corrcoef(log_field, self.log_truth[there])[0, 1]),
            "before": variation(self.voxels[self.white]),
            "after": variation(corrected[self.white]),
        }


def variation(values: NDArray) -> float:
    """Coefficient of variation."""
    return float(values.std() / values.mean())


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Medians per method and shrink factor, printed and returned."""
    table = []
    print(f"\n{'method':10} shrink  seconds  correlation (least)  white matter before -> after  worst ratio")
    for key in dict.fromkeys((row["method"], row["shrink"]) for row in rows):
        mine = [row for row in rows if (row["method"], row["shrink"]) == key]
        median = {
            name: statistics.median(row[name] for row in mine) for name in ("seconds", "correlation", "before", "after")
        }
        least = min(row["correlation"] for row in mine)
        worst = max(row["after"] / row["before"] for row in mine)
        table.append({"method": key[0], "shrink": key[1], "cases": len(mine), **median, "least_correlation": least,
                      "worst_ratio": worst})  # fmt: skip
        print(f"{key[0]:10} {key[1]:6}  {median['seconds']:7.2f}  {median['correlation']:.3f} ({least:.3f})        "
              f"{median['before']:.4f} -> {median['after']:.4f}             {worst:.3f}")  # fmt: skip
    return table


if __name__ == "__main__":
    main()
