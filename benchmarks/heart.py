"""The left atrium in 2D and in 3D on the same folds, and the score of the notebook that the 2D bundle comes from.

    python benchmarks/heart.py --output heart.json
    python benchmarks/heart.py --bundles heart --loss_name dice

Cross-validates ``heart`` and ``heart_3d`` over nnU-Net's five folds: thresholded Dice per case on each scan's own grid,
final weights. Then trains ``heart`` once more on the first 17 cases by sorted id and gives the last 3's soft Dice,
pooled over all their voxels, as the notebook scored itself; that score must not be compared with the others. Finished
trainings are kept, and an interrupted one resumes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from hippocampus import machine  # the benchmark beside this one

from decathlete import Predictor
from decathlete.bundle.checkpoints import FINAL
from decathlete.data import data_hash, datalist, dataset_folder
from decathlete.evaluation import cross_validate, pooled_soft_dice
from decathlete.files import atomic_write
from decathlete.io.nifti import read_nifti

BUNDLES = ("heart", "heart_3d")
FOLDER = "Task02_Heart"
TRAINED = 17  # of 20: the notebook's split


def main() -> None:
    """Train what is missing and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundles", nargs="+", choices=BUNDLES, default=BUNDLES)
    parser.add_argument("--folds", default="0-4")
    parser.add_argument("--loss_name", choices=("dice", "dice_ce"), default="dice_ce", help="of heart")
    parser.add_argument("--dataset_dir", default=dataset_folder(FOLDER))
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--output", type=Path, default=Path("heart.json"))
    options = parser.parse_args()

    cases = datalist(options.dataset_dir, "all", "all", "heart")
    results: dict[str, Any] = {"machine": machine(), "data_sha256": data_hash(cases)}
    for bundle in options.bundles:
        overrides = {"loss_name": options.loss_name} if bundle == "heart" else {}
        root = options.runs / "_".join([bundle, *overrides.values()])  # a run with another loss is another
        summary = cross_validate(bundle, options.folds, overrides, root, dataset_dir=options.dataset_dir)
        results[bundle] = summary.values
        print(f"{bundle}: mean Dice {summary.mean_dice:.4f}\n", flush=True)
    if "heart" in options.bundles:
        run = options.runs / f"heart_notebook_split_{options.loss_name}"
        results["notebook"] = notebook(cases, options.dataset_dir, run, options.loss_name)
        print(f"soft Dice pooled over the last {len(cases) - TRAINED} cases: {results['notebook']:.4f}")
    with atomic_write(options.output) as part:
        part.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def notebook(cases: list[dict[str, Any]], dataset_dir: str, run: Path, loss_name: str) -> float:
    """Soft Dice of the last cases, pooled, by a network that was trained on the first ones."""
    if not (run / FINAL).is_file():
        every = "datalist(@dataset_dir, 'all', 'all', 'heart')"
        command = [sys.executable, "-m", "decathlete.cli", "run", "training", "--config", "heart"]
        command += ["--dataset_dir", str(dataset_dir), "--output_dir", str(run), "--resume"]
        command += ["--loss_name", loss_name]
        command += ["--train::dataset::data", f"${every}[:{TRAINED}]"]
        command += ["--validate::dataset::data", f"${every}[{TRAINED}:]"]
        subprocess.run(command, check=True)
    predictor = Predictor("heart", run / FINAL)

    def pairs() -> Any:
        for case in cases[TRAINED:]:
            prediction = predictor.predict_file(case["image"], probabilities=True)
            yield prediction.probabilities[1], read_nifti(case["label"], kind="label").array == 1

    return float(pooled_soft_dice(pairs()))


if __name__ == "__main__":
    main()
