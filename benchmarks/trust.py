"""Hippocampus: are scans of another kind flagged, and does disagreement find the worst cases?

    python benchmarks/trust.py --run runs/hippocampus/fold_0 [--ensemble RUN RUN ...]

Training scans of the fold say what scans look like; its held-out cases say how often one of the same kind is flagged,
and altered ones, and crops of other organs where their data are available, how often one of another kind is. Then the
disagreement of mirrored passes, and of several networks of the same fold, over the held-out cases: how it ranks the
tenth of the cases with the lowest Dice.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from hippocampus import machine  # the benchmark beside this one
from numpy.typing import NDArray
from scipy.stats import rankdata, spearmanr

from decathlete.data import datalist, dataset_folder
from decathlete.evaluation import dice
from decathlete.files import atomic_write, nifti_files
from decathlete.inference import Predictor
from decathlete.inference.likeness import TrainingScans
from decathlete.io.nifti import read_nifti

CUT = (36, 50, 36)  # voxels, a hippocampus's
ORGANS = ("Task01_BrainTumour", "Task02_Heart", "Task03_Liver", "Task05_Prostate", "Task06_Lung", "Task09_Spleen")
RNG = np.random.default_rng(0)
Array = NDArray[Any]
ALTERED: dict[str, Callable[[Array], Array]] = {
    "contrast: inverted": lambda a: a.max() - a,
    "contrast: cubed": lambda a: (a / a.max()) ** 3,
    "contrast: cube root": lambda a: np.cbrt(a / a.max()),
    "noise alone": lambda a: RNG.normal(size=a.shape),
    "noise of the scan's own deviation": lambda a: a + RNG.normal(0, a.std(), a.shape),
    "crop moved by a third, back to front": lambda a: np.roll(a, a.shape[1] // 3, 1),
    "crop moved by a third, upwards": lambda a: np.roll(a, a.shape[2] // 3, 2),
    "half of the crop": lambda a: a[:, : a.shape[1] // 2],
    "upside down": lambda a: a[:, :, ::-1],
}


def main() -> None:
    """Print the results and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="a run of the fold, or its weights")
    parser.add_argument("--ensemble", type=Path, nargs="+", default=(), help="more runs of the same fold")
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--dataset-dir", type=Path, default=None)
    parser.add_argument("--output", type=Path, default=Path("trust.json"))
    options = parser.parse_args()
    folder = Path(options.dataset_dir or dataset_folder("Task04_Hippocampus"))
    train, held_out = (datalist(folder, options.fold, part) for part in ("training", "validation"))

    predictor = Predictor("hippocampus", options.run)

    def figures(array: Array, affine: Array) -> dict[str, float]:
        return predictor(np.ascontiguousarray(array), affine, figures=True).figures or {}

    scans = [read_nifti(case["image"]) for case in held_out]
    fitted = TrainingScans.fit([figures((v := read_nifti(case["image"])).array, v.affine) for case in train])
    shares = {"held out, same kind": flagged(fitted, (figures(v.array, v.affine) for v in scans))}
    for name, alter in ALTERED.items():
        shares[name] = flagged(fitted, (figures(alter(v.array), v.affine) for v in scans))
    for task in ORGANS:
        if found := list(cuts(folder.parent / task)):
            shares[f"other organ: {task}"] = flagged(fitted, (figures(a, np.eye(4)) for a in found))
    print(f"{len(train)} training scans, limit {fitted.limit:.2f}\n")
    for name, (count, total) in shares.items():
        print(f"{name:<40} flagged {count:3d} of {total}")

    distances = [fitted.distance(figures(v.array, v.affine)) for v in scans]
    truths = [read_nifti(case["label"], kind="label").array for case in held_out]
    ways = {"mirrored passes": Predictor("hippocampus", options.run, tta=True)}
    if options.ensemble:
        runs = [options.run, *options.ensemble]
        ways[f"{len(runs)} networks"] = Predictor("hippocampus", runs)
        ways[f"{len(runs)} networks, mirrored passes"] = Predictor("hippocampus", runs, tta=True)
    rankings = {name: ranking(way, scans, truths) for name, way in ways.items()}
    scores = np.array(rankings["mirrored passes"]["dice"])
    rankings["distance from the training scans"] = rank(np.array(distances), scores)
    print(f"\nDisagreement, and distance from the training scans, on {len(scans)} held-out cases:")
    for name, found in rankings.items():
        print(f"{name:<40} AUC {found['auc']:.2f} for the {found['worst']} with the lowest Dice (p {found['p']:.3f}), "
              f"rank correlation with Dice {found['spearman']:.2f}")  # fmt: skip
    document = {"machine": machine(), "flagged": shares, "limit": fitted.limit, "rankings": rankings}
    with atomic_write(options.output) as part:
        part.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def flagged(fitted: TrainingScans, figures: Iterator[dict[str, float]]) -> tuple[int, int]:
    """How many of how many scans are unlike the training scans."""
    answers = [bool(fitted.unlike(one)) for one in figures]
    return sum(answers), len(answers)


def cuts(task: Path) -> Iterator[Array]:
    """Two cuts of each of ten scans: the middle, and beside it."""
    for file in nifti_files(task / "imagesTr")[:10] if (task / "imagesTr").is_dir() else ():
        channels = {"Task01_BrainTumour": 4, "Task05_Prostate": 2}.get(task.name, 1)
        array = read_nifti(file, channels=channels).array
        array = array[..., 0] if array.ndim == 4 else array
        for shift in (0, 15):
            starts = [max(0, (n - k) // 2 - shift) for n, k in zip(array.shape, CUT, strict=True)]
            yield array[tuple(slice(s, s + k) for s, k in zip(starts, CUT, strict=True))]


def ranking(predictor: Predictor, scans: list[Any], truths: list[Array]) -> dict[str, Any]:
    """How the disagreement ranks the cases with the lowest Dice, with the numbers themselves."""
    told, scores = [], []
    for scan, truth in zip(scans, truths, strict=True):
        prediction = predictor(scan.array, scan.affine, disagreement=True)
        told.append(prediction.disagreement)
        scores.append(float(np.mean([dice(prediction.label == n, truth == n) for n in (1, 2)])))
    return {**rank(np.array(told), np.array(scores)), "disagreement": told, "dice": scores}


def rank(told: Array, scores: Array) -> dict[str, float]:
    """How well a number finds the tenth of the cases with the lowest score.

    ``auc``: chance that one of them has a higher number than another case (0.5: none), with its one-sided p by 10,000
    permutations; ``spearman``: correlation of the ranks of number and score.
    """
    worst = scores <= np.sort(scores)[max(1, round(len(scores) / 10)) - 1]
    ranks, count = rankdata(told), int(worst.sum())

    def auc(chosen: Array) -> float:
        return (ranks[chosen].sum() - count * (count + 1) / 2) / (count * (len(ranks) - count))

    rng = np.random.default_rng(0)
    by_chance = [auc(rng.permutation(worst)) for _ in range(10_000)]
    found = auc(worst)
    return {"worst": count, "auc": float(found), "p": float(np.mean(np.array(by_chance) >= found)),
            "spearman": float(spearmanr(told, scores).statistic)}  # fmt: skip


if __name__ == "__main__":
    main()
