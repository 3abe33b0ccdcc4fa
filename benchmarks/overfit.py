"""Overfitting one real scan: can preprocessing, network and loss of a bundle fit their training data? (docs/results.md)

    python benchmarks/overfit.py --data path/to/folder/of/data/sets
    python benchmarks/overfit.py --bundles spleen liver --minutes 15 --output overfit.json

Each bundle trains on the first case of its data set and is scored on that same case, on the scan's own grid. This
does not show how well a bundle segments a scan that it has not seen. Patch, network and optimizer are those of
``benchmarks/phantoms.py``; scans whose voxels are much coarser than a bundle's grid are resampled to half of their
own, since finer ones hold nothing more. The time is that of the iterations.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
from phantoms import lines, small, train_and_score, write  # the benchmark beside this one

from decathlete.data import datalist, get_task

GOALS: Mapping[str, Mapping[str, float]] = {  # Dice on the case that was trained on
    "brain_tumour": {"edema": 0.9, "non-enhancing tumour": 0.9, "enhancing tumour": 0.9},
    "spleen": {"spleen": 0.9},
    "liver": {"liver": 0.95, "cancer": 0.8},
    "prostate": {"PZ": 0.85, "TZ": 0.85},
    "hepatic_vessel": {"vessel": 0.75, "tumour": 0.75},
    "pancreas": {"pancreas": 0.8},
    "colon": {"colon cancer primaries": 0.8},
}
OTHER_LABELS = {"prostate": "labelsTr_zones_AI"}  # folder of labels that lie beside the data set's own
COARSE = 2.0  # times a bundle's spacing


def main() -> None:
    """Train and score the bundles that are asked for; print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundles", nargs="+", choices=GOALS, default=list(GOALS), metavar="BUNDLE")
    parser.add_argument("--minutes", type=float, default=12.0, help="of each training")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("DECATHLETE_DATA", "data")))
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark_overfit"))
    parser.add_argument("--output", type=Path, default=Path("overfit.json"))
    options = parser.parse_args()

    results = []
    for bundle in options.bundles:
        folder = options.data / get_task(bundle).folder
        case = first_case(folder, OTHER_LABELS.get(bundle))
        spacing = spacing_for(bundle, Path(case["image"]))
        values = {**small(bundle), "spacing": spacing, "dataset_dir": str(folder), "fold": "all"}
        values |= {"train::dataset::data": [case], "validate::dataset::data": [case]}
        found = train_and_score(bundle, options.minutes, values, options.runs / bundle)
        results.append({"bundle": bundle, "case": case["case_id"], "spacing": spacing, **found})
        print("\n".join(lines(results[-1], goal_of)), flush=True)
        write(options.output, {"minutes": options.minutes, "results": results})
    print("\noverfit: each bundle scored on the one case that it was trained on")
    for result in results:
        print("\n".join(lines(result, goal_of)))


def first_case(folder: Path, labels: str | None) -> dict[str, Any]:
    """The first case of a data set, with its label from another folder where one is named and there."""
    case = datalist(folder, "all", "all")[0]
    other = folder / labels / Path(case["label"]).name if labels else None
    return {**case, "label": str(other)} if other and other.is_file() else case


def spacing_for(bundle: str, image: Path) -> list[float]:
    """The bundle's spacing; along axes on which the scan is much coarser, half of the scan's own."""
    # spacings of an image whose axes are not those of RAS would need sorting: all of these lie straight
    own = [float(s) for s in nib.load(image).header.get_zooms()[:3]]
    target = get_task(bundle).spacing
    return [s / 2 if s > COARSE * t else t for s, t in zip(own, target, strict=True)]


def goal_of(bundle: str, name: str) -> float | None:
    """Dice that a class should reach; None for one that the case may not hold."""
    return GOALS[bundle].get(name)


if __name__ == "__main__":
    main()
