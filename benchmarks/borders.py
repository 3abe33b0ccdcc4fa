"""Scans with an empty border: is the label map the same as without it?

    python benchmarks/borders.py hippocampus --images TASK/imagesTr --labels TASK/labelsTr --cases 12

Each scan is predicted as it is, and with planes of zeros (or of its own minimum) on all sides, on some, and unevenly:
mean Dice with the drawn label, the largest loss of a case, and in how many cases every voxel is as without the border.
The JSON keeps a hash of each label map of the scan as it is, so that two versions can be compared voxel for voxel.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from hippocampus import machine  # the benchmark beside this one
from numpy.typing import NDArray

from decathlete.evaluation import dice
from decathlete.files import atomic_write, nifti_files, strip_nifti_suffix
from decathlete.inference import Predictor
from decathlete.io.nifti import read_nifti

Width = tuple[tuple[int, int], ...]  # voxels before and after, of each axis
BORDERS: dict[str, tuple[Width, str]] = {
    "none": (((0, 0),) * 3, "zero"),
    "20 zeros on all sides": (((20, 20),) * 3, "zero"),
    "zeros, uneven": (((5, 0), (0, 30), (12, 20)), "zero"),
    "20 zeros on one side": (((0, 0), (20, 0), (0, 0)), "zero"),
    "20 of the minimum": (((20, 20),) * 3, "minimum"),
}


def main() -> None:
    """Print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--images", type=Path, nargs="+", required=True, help="folders of scans, or files")
    parser.add_argument("--labels", type=Path, help="folder of labels of the same names")
    parser.add_argument("--checkpoint", type=Path, help="weights; by default the bundle's own")
    parser.add_argument("--cases", type=int, help="how many of them get a border; all are predicted without")
    parser.add_argument("--output", type=Path, default=Path("borders.json"))
    options = parser.parse_args()
    predictor = Predictor(options.bundle, options.checkpoint)
    files = [file for path in options.images for file in (nifti_files(path) if path.is_dir() else [path])]
    hashes: dict[str, str] = {}
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in BORDERS}
    for number, file in enumerate(files):
        scan = predictor.read(file)
        plain = predictor(scan.array, scan.affine, name=file).label
        hashes[str(file)] = hashlib.sha256(np.ascontiguousarray(plain).tobytes()).hexdigest()
        if options.cases is not None and number >= options.cases:
            continue
        truth = label_of(options.labels, file) if options.labels else plain
        for name, (width, value) in BORDERS.items():
            label = with_border(predictor, scan.array, scan.affine, width, value) if name != "none" else plain
            scores = [dice(label == n, truth == n) for n in predictor.labels.values()]
            rows[name].append(
                {"case": file.name, "dice": float(np.nanmean(scores)), "same": bool((label == plain).all())}
            )
    print(f"{options.bundle}: {len(hashes)} scans, {len(rows['none'])} of them with borders\n")
    print(f"{'border':<24}{'mean Dice':>10}{'largest loss':>14}{'same voxels':>13}")
    for name, found in rows.items():
        loss = max(a["dice"] - b["dice"] for a, b in zip(rows["none"], found, strict=True))
        same = sum(row["same"] for row in found)
        print(f"{name:<24}{np.mean([row['dice'] for row in found]):>10.4f}{loss:>14.4f}{same:>8} of {len(found)}")
    document = {"machine": machine(), "bundle": options.bundle, "borders": rows, "sha256": hashes}
    with atomic_write(options.output) as part:
        part.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def label_of(folder: Path, file: Path) -> NDArray[Any]:
    """The drawn label of a scan: of the same name, or a head's ``_brainmask`` in place of ``_T1w...``."""
    stem = strip_nifti_suffix(file.name)
    names = (f"{stem.partition('_T1w')[0]}_brainmask.nii.gz", file.name)
    return read_nifti(next(folder / n for n in names if (folder / n).is_file()), kind="label").array


def with_border(
    predictor: Predictor, array: NDArray[Any], affine: NDArray[np.float64], width: Width, value: str
) -> NDArray[Any]:
    """The label map of a scan with a border, cropped to the scan again."""
    pads = [*width, *[(0, 0)] * (array.ndim - 3)]
    padded = np.pad(array, pads, constant_values=0 if value == "zero" else array.min())
    moved = affine.copy()
    moved[:3, 3] -= affine[:3, :3] @ [before for before, _ in width]
    label = predictor(padded, moved, name=f"a border of {width}").label
    return label[tuple(slice(a, n - b) for (a, b), n in zip(width, label.shape, strict=True))]


if __name__ == "__main__":
    main()
