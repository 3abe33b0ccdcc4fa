"""Skull stripping: cross-validation over heads in NFBS's layout, the source's own score, other heads, time and memory.

    python benchmarks/nfbs.py --dataset_dir data/NFBS_Dataset --output nfbs.json
    python benchmarks/nfbs.py --dataset_dir data/NFBS_Dataset --heads path/to/heads --output nfbs.json

Cross-validates over nnU-Net's five folds of the subjects: hard masks, each scan's own grid, final weights. Beside it,
and to be compared with nothing else, the score that the notebook behind the bundle reports for itself: soft IoU on the
    2 mm
grid, pooled over the validation cases. Then predicts ``--heads``, a folder of ``*_T1w*.nii.gz`` with
``*_brainmask.nii.gz``, with the bundle's released weights, and one raw head in a process of its own, N4 included, for
time and memory. Finished trainings are kept, and an interrupted one resumes.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hippocampus import machine  # the benchmark beside this one

from decathlete.bundle.checkpoints import FINAL, load_weights
from decathlete.bundle.configs import load
from decathlete.data import data_hash, datalist, dataset_folder
from decathlete.evaluation import cross_validate
from decathlete.evaluation.scoring import score_files
from decathlete.files import atomic_write, strip_nifti_suffix
from decathlete.inference import predict

BUNDLE, FOLDER = "nfbs", "NFBS_Dataset"
FOLDS = 5


def main() -> None:
    """Train what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", default=dataset_folder(FOLDER))
    parser.add_argument("--heads", type=Path, help="folder of other heads with their masks")
    parser.add_argument("--folds", default="0-4", help="or none")
    parser.add_argument("--runs", type=Path, default=Path("runs/nfbs"))
    parser.add_argument("--checkpoint", type=Path, help="weights for --heads; default: the released ones")
    parser.add_argument("--output", type=Path, default=Path("nfbs.json"))
    options = parser.parse_args()

    cases = datalist(options.dataset_dir, "all", "all", BUNDLE)
    results: dict[str, Any] = {"machine": machine(), "data_sha256": data_hash(cases)}
    # first: the largest of all children so far is all that the system reports about memory
    results["one_head"] = one_head(Path(cases[0]["image"]), options.checkpoint)
    print("one raw head, both files: {seconds:.1f} s, {peak_gib:.2f} GiB\n".format(**results["one_head"]), flush=True)
    if options.folds != "none":
        summary = cross_validate(BUNDLE, options.folds, None, options.runs, dataset_dir=options.dataset_dir)
        results["cross_validation"] = summary.values
        runs = [run for run in (options.runs / f"fold_{n}" for n in range(FOLDS)) if (run / FINAL).is_file()]
        results["soft_iou_pooled_2mm"] = float(np.mean([pooled_soft_iou(run, options.dataset_dir) for run in runs]))
        print(f"soft IoU pooled on the 2 mm grid, mean of {len(runs)} folds: {results['soft_iou_pooled_2mm']:.4f}\n")
    if options.heads:
        results["heads"] = other_heads(options.heads, options.checkpoint)
    with atomic_write(options.output) as part:
        part.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def pooled_soft_iou(run: Path, dataset_dir: str) -> float:
    """Sum of p * y over sum of p + y - p * y, over all voxels of the fold's validation cases on the network's grid."""
    fold = int(run.name.rpartition("_")[2])
    parser = load(BUNDLE, "train", {"fold": fold, "dataset_dir": str(dataset_dir)})
    network = parser.get_parsed_content("network")
    load_weights(network, run / FINAL)
    network.eval()
    inferer = parser.get_parsed_content("validate::inferer")
    both = either = 0.0
    with torch.no_grad():
        for case in parser.get_parsed_content("validate::dataset"):
            share = torch.softmax(inferer(case["image"][None], network), 1)[0, 1].double()
            label = (case["label"][0] >= 0.5).double()
            both += float((share * label).sum())
            either += float((share + label - share * label).sum())
    return both / either


def other_heads(folder: Path, checkpoint: Path | None) -> dict[str, dict[str, float]]:
    """Scores of heads that come from elsewhere, by name."""
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as place:
        for mask in sorted(folder.glob("*_brainmask.nii.gz")):
            name = mask.name.removesuffix("_brainmask.nii.gz")
            image = next(iter(sorted(folder.glob(f"{name}_T1w*.nii.gz"))), None)
            if image is None:
                continue
            predict(BUNDLE, [image], place, [checkpoint] if checkpoint else None, overwrite="others")
            prediction = Path(place) / f"{strip_nifti_suffix(image.name)}_brainmask.nii.gz"
            (row,) = score_files(name, prediction, mask, {1: "brain"})
            found[name] = {key: value for key, value in row.items() if isinstance(value, float)}
            shown = "  ".join(f"{key} {value:.3f}" for key, value in found[name].items())
            print(f"{name}: {shown}", flush=True)
    return found


def one_head(image: Path, checkpoint: Path | None) -> dict[str, float]:
    """Seconds and peak memory of ``decathlete predict`` on one raw head, the whole process."""
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "decathlete.cli", "predict", BUNDLE, str(image), "--output", place]
        command += ["--checkpoint", str(checkpoint)] if checkpoint else []
        start = time.perf_counter()
        subprocess.run(command, check=True)
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20  # Linux: KiB
    return {"seconds": seconds, "peak_gib": peak}


if __name__ == "__main__":
    main()
