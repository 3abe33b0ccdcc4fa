"""Lung tumours: the effect of drawing tumour slices more often, and overfitting five real scans.

    python benchmarks/lung.py phantoms --minutes 10
    python benchmarks/lung.py phantoms --minutes 8 --fold 1 --shares 0.5 --neighbours 0
    python benchmarks/lung.py overfit --minutes 20
    python benchmarks/lung.py leave-one-out --minutes 20

``phantoms`` draws 20 chests with one to three small tumours each, trains ``lung`` on a fold's 16 with half of the
slices from tumours and again with slices as they come, and scores the other 4. ``overfit`` trains ``lung`` and
``lung_3d`` on all five scans and scores those same five: this only shows that the pipeline can fit its training
data. ``leave-one-out`` trains on four and scores the fifth. Thresholded Dice per case, on each scan's own grid.
Finished runs are kept, and an interrupted one resumes.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import yaml
from hippocampus import machine  # the benchmark beside this one

from decathlete.bundle import bundle_labels
from decathlete.bundle.checkpoints import FINAL
from decathlete.data import datalist, dataset_folder, make_phantoms
from decathlete.evaluation.report import write_report
from decathlete.evaluation.scoring import score_pairs
from decathlete.files import atomic_write
from decathlete.inference import predict

FOLDER = "Task06_Lung"
SHAPE = (160, 160, 200)  # of a phantom, in voxels
NUM_PHANTOMS = 20


def main() -> None:
    """Run one of the three and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("phantoms", "overfit", "leave-one-out"))
    parser.add_argument("--bundles", nargs="+", default=["lung", "lung_3d"], help="of overfit and leave-one-out")
    parser.add_argument("--minutes", type=float, default=20.0, help="of each training")
    parser.add_argument("--fold", type=int, default=0, help="of the phantoms")
    parser.add_argument("--shares", nargs="+", default=["0.5", "null"], help="foreground_share, one training each")
    parser.add_argument("--dataset_dir", default=dataset_folder(FOLDER))
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark_lung"))
    parser.add_argument("--output", type=Path)
    options, overrides = parser.parse_known_args()  # what is left goes to the trainings, such as --drop_mm 0

    root = options.runs / options.what
    if options.what == "phantoms":
        data = make_phantoms("lung", NUM_PHANTOMS, options.runs / "phantoms", shape=SHAPE)
        train, test = (datalist(data, options.fold, part, "lung") for part in ("training", "validation"))
        jobs = [("lung", f"foreground_share {share}", train, test, ["--foreground_share", share])
                for share in options.shares]  # fmt: skip
    else:
        cases = datalist(options.dataset_dir, "all", "all", "lung")
        groups = [(cases, cases)] if options.what == "overfit" else [(_without(cases, c), [c]) for c in cases]
        jobs = [(bundle, f"{bundle} {'all' if len(test) > 1 else test[0]['case_id']}", train, test, [])
                for bundle in options.bundles for train, test in groups]  # fmt: skip
    results = []
    for bundle, name, train, test, more in jobs:
        settings = [name, f"fold {options.fold}", f"{options.minutes:g} min", *overrides]
        run = root / re.sub(r"[^\w.]+", "_", " ".join(settings))  # a run of other settings is another
        dice = train_and_score(bundle, train, test, run, options.minutes, [*more, *overrides])
        results.append({"name": name, "dice": dice, "mean": sum(dice.values()) / len(dice)})
        print(f"{name:<28} mean Dice {results[-1]['mean']:.4f}  "
              + "  ".join(f"{case} {value:.3f}" for case, value in dice.items()), flush=True)  # fmt: skip
    given = {"minutes": options.minutes, "fold": options.fold, "overrides": overrides}
    document = {"machine": machine(), **given, "results": results}
    with atomic_write(options.output or Path(f"lung_{options.what}.json")) as part:
        part.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def train_and_score(
    bundle: str, train: list[dict], test: list[dict], run: Path, minutes: float, options: list[str]
) -> dict[str, float]:
    """Dice of each case of ``test`` after a training of its own on ``train``."""
    if not (run / FINAL).is_file():
        command = [sys.executable, "-m", "decathlete.cli", "run", "training", "--config", bundle, "--resume"]
        command += ["--minutes", str(minutes), "--output_dir", str(run), *options]
        command += ["--val_interval", "1000000"]  # once, at the end
        command += ["--dataset_dir", str(Path(train[0]["image"]).parents[1])]
        command += ["--train::dataset::data", json.dumps(train), "--validate::dataset::data", json.dumps(test)]
        subprocess.run(command, check=True)
    given = zip(options[::2], options[1::2], strict=True)
    inference = {name.lstrip("-"): yaml.safe_load(value) for name, value in given}
    inference.pop("foreground_share", None)  # of the training alone
    predictions = run / "predictions"
    predict(bundle, [case["image"] for case in test], predictions, [run / FINAL], overwrite=True, overrides=inference)
    pairs = {c["case_id"]: (predictions / Path(c["image"]).name, Path(c["label"])) for c in test}
    rows, failed = score_pairs(pairs, bundle_labels(bundle))
    write_report(rows, run, failed)
    return {row["case"]: row["dice"] for row in rows}


def _without(cases: list[dict], left_out: dict) -> list[dict]:
    return [case for case in cases if case is not left_out]


if __name__ == "__main__":
    main()
