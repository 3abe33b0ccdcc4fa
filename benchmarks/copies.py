"""How far the hippocampus labels of copies on other grids agree with those of the scan itself.

    python benchmarks/copies.py --output copies.json

A copy is resampled with cubic interpolation: ``fine`` to 0.7 x 0.8 x 1 voxels, ``thick`` into slices of 1.4 voxels,
``oblique`` turned by some degrees about each axis. The class probabilities of its prediction are brought back to the
scan's grid; the result is the smaller Dice of the two classes with the prediction of the scan. No reference is used.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform

from decathlete import Predictor
from decathlete.data import datalist, dataset_folder
from decathlete.evaluation import dice
from decathlete.files import atomic_write
from decathlete.io.nifti import read_nifti

FOLDER = "Task04_Hippocampus"
EDGES = {"fine": (0.7, 0.8, 1.0), "thick": (1.0, 1.0, 1.4), "oblique": (1.0, 1.0, 1.0)}
TURN = (0.08, 0.1, -0.06)  # radians


def main() -> None:
    """Predict scans and their copies and print the agreement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", default=dataset_folder(FOLDER))
    parser.add_argument("--cases", type=int, nargs="+", default=[*range(0, 200, 20), 50, 150], help="by sorted id")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--output", type=Path, default=Path("copies.json"))
    options = parser.parse_args()
    cases = datalist(options.dataset_dir, "all", "all", "hippocampus")
    predictor = Predictor("hippocampus", options.checkpoint)
    results: dict[str, dict[str, float]] = {kind: {} for kind in EDGES}
    for case in (cases[n] for n in options.cases):
        scan = read_nifti(case["image"])
        array = np.asarray(scan.array, dtype=np.float32)
        label = predictor(array, scan.affine).label
        for kind in EDGES:
            results[kind][case["case_id"]] = agreement(predictor, array, scan.affine, label, kind)
    for kind, values in results.items():
        found = list(values.values())
        print(f"{kind:8} mean {np.mean(found):.4f}  {min(found):.4f} to {max(found):.4f}  {len(found)} cases")
    with atomic_write(options.output) as part:
        part.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def agreement(predictor: Predictor, array: NDArray, affine: NDArray, label: NDArray, kind: str) -> float:
    """Smaller Dice of the classes between a scan's prediction and that of its copy."""
    turn = nib.eulerangles.euler2mat(*TURN) if kind == "oblique" else np.eye(3)
    step = np.eye(4)  # voxel of the copy to voxel of the scan; the copy holds the whole scan
    step[:3, :3] = turn @ np.diag(EDGES[kind])
    last = np.array(array.shape) - 1
    corners = np.array(np.meshgrid(*[(0, n) for n in last])).reshape(3, -1).T @ np.linalg.inv(step[:3, :3]).T
    shape = tuple(np.ceil(np.ptp(corners, axis=0)).astype(int) + 1)
    step[:3, 3] = step[:3, :3] @ corners.min(axis=0)
    copy = affine_transform(array, step, output_shape=shape, order=3, mode="nearest")
    found = predictor(copy, affine @ step, probabilities=True)
    back = np.linalg.inv(step)
    probabilities = [
        affine_transform(p, back, output_shape=array.shape, order=1, mode="nearest") for p in found.probabilities
    ]
    again = np.argmax(probabilities, axis=0)
    return min(float(dice(again == value, label == value)) for value in predictor.labels.values())


if __name__ == "__main__":
    main()
