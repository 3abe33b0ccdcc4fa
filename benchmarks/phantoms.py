"""What each bundle learns from phantoms in five minutes on a CPU (docs/results.md).

    python benchmarks/phantoms.py
    python benchmarks/phantoms.py --bundles spleen liver --minutes 5 --cases 20 --output phantoms.json

Every bundle trains on the phantoms of fold 0's training cases with the chain, loss and schedule of its own config, and
is scored on those of the validation cases, which it never saw: Dice per case on the original grid, final weights. The
bundles whose patches are too large for minutes (`PATCHES`) get one of at most 64 voxels an edge, the network that
`decathlete new` plans for such a patch on a CPU, and its optimizer (`SMALL`); the others train as they stand. The time
is that of the iterations. Phantoms show that a bundle learns; they say nothing about patients.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hippocampus import machine  # the benchmark beside this one

from decathlete.bundle import bundle_folder, bundle_names
from decathlete.bundle.configs import load
from decathlete.data import fetch
from decathlete.data.tasks import get_task
from decathlete.files import atomic_write
from decathlete.planning.rules import topology

PATCHES = {  # of the bundles whose patches are too large for minutes; few voxels along thick axes
    "brain_tumour": (64, 64, 64),
    "liver": (64, 64, 64),
    "prostate": (64, 64, 20),
    "pancreas": (64, 64, 32),
    "hepatic_vessel": (48, 48, 32),
    "spleen": (64, 64, 48),
    "colon": (64, 64, 32),
    "lung_3d": (64, 64, 32),
}
SMALL = {
    "batch_size": 2,
    "foreground_share": 0.7,  # minutes, not hours: more of the patches hold something
    "average_decay": 0.99,
    "warmup": 20,
    "lr": 0.012,
    "num_workers": 0,
    "optimizer": {
        "_target_": "decathlete.training.Muon", "params": "$@network.parameters()",
        "lr": "@lr", "matrix_lr": 0.06, "weight_decay": 0.01,
    },
    "train::dataloader": {  # epochs of more than a few iterations, since each ends with a checkpoint
        "_target_": "DataLoader", "dataset": "@train::dataset", "batch_size": "@batch_size", "num_workers": 0,
        "sampler": {"_target_": "torch.utils.data.RandomSampler", "data_source": "@train::dataset",
                    "replacement": True, "num_samples": 100},
    },
    "network_def::norm": "BATCH",
    "network_def::channels_last": True,
    "network_def::deep_supervision": False,
    "train::augmentation::mirror_axes": [],  # minutes are too few to learn a body and its mirror image
    "train::augmentation::prob": 0.8,
    "train::augmentation::blur_prob": 0.0,  # the two that cost most on a CPU
    "train::augmentation::low_resolution_prob": 0.0,
}  # fmt: skip
LESIONS = ("cancer", "tumour", "edema")  # words in the names of what is harder to find than an organ
GOALS = {"organ": 0.8, "lesion": 0.6}


def main() -> None:
    """Train and score the bundles that are asked for; print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundles", nargs="+", choices=bundle_names(), default=bundle_names(), metavar="BUNDLE")
    parser.add_argument("--minutes", type=float, default=5.0, help="of each training")
    parser.add_argument("--cases", type=int, default=20, help="phantoms of each bundle, a fifth of them for the scores")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark_phantoms"))
    parser.add_argument("--output", type=Path, default=Path("phantoms.json"))
    options = parser.parse_args()

    results = []
    for bundle in options.bundles:
        data = draw(bundle, options.cases, options.seed, options.runs / "data")
        values = {**small(bundle), "dataset_dir": str(data), "seed": options.seed}
        found = train_and_score(bundle, options.minutes, values, options.runs / bundle)
        results.append({"bundle": bundle, **found})
        print("\n".join(lines(results[-1], goal_of)), flush=True)
        write(options.output, {"minutes": options.minutes, "cases": options.cases, "results": results})
    print("\nbundle           class                     Dice    goal  scored")
    for result in results:
        print("\n".join(lines(result, goal_of)))


def write(output: Path, found: dict[str, Any]) -> None:
    """What is known so far as JSON; written after each bundle, so that an interrupted run leaves its results."""
    with atomic_write(output) as part:
        part.write_text(json.dumps({"machine": machine(), **found}, indent=2) + "\n", encoding="utf-8")


def draw(bundle: str, cases: int, seed: int, root: Path) -> Path:
    """Folder of a bundle's phantoms; those that are there are kept."""
    return fetch(bundle, root / f"{cases}_{seed}", phantom=cases, seed=seed)


def small(bundle: str, patch: tuple[int, ...] | None = None) -> dict[str, Any]:
    """Overrides that bring a bundle of `PATCHES` to a size that a CPU trains in minutes; none for the others."""
    if bundle not in PATCHES:
        return {}
    patch = patch or PATCHES[bundle]
    network = topology(patch, get_task(bundle).spacing, gpu=False)
    return {
        **SMALL,
        "patch_size": list(patch),
        "margin_size": [n + (8 if n >= 32 else 4) for n in patch],
        "roi_size": list(patch),
        "network_def::channels": list(network.channels),
        "network_def::strides": [list(s) for s in network.strides],
        "network_def::kernel_sizes": [list(k) for k in network.kernel_sizes],
        "network_def::convs_per_stage": list(network.convs_per_stage),
    }


def train_and_score(bundle: str, minutes: float, values: dict[str, Any], run: Path) -> dict[str, Any]:
    """Dice of each class over the validation cases, after a training in a process of its own."""
    import torch

    shutil.rmtree(run, ignore_errors=True)
    words = []
    for name, value in values.items():
        words += [f"--{name}", value if isinstance(value, str) and name == "dataset_dir" else json.dumps(value)]
    known = load(bundle_folder(bundle), "train")
    if "val_interval" in known:
        words += ["--val_interval", "1000000"]  # once, at the end
    load_before = os.getloadavg()[0]
    for run_id, more in (("training", ["--minutes", str(minutes)]), ("evaluating", [])):
        command = [sys.executable, "-m", "decathlete.cli", "run", run_id, "--config", bundle, "--output_dir", str(run)]
        if subprocess.run([*command, *words, *more], check=False).returncode:
            raise SystemExit(f"{bundle}: {run_id} failed, see above")
    state = torch.load(run / "last.pt", weights_only=True)
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return {
        "dice": {name: facts["dice"]["mean"] for name, facts in summary["classes"].items()},
        "cases": summary["cases"],
        "iterations": int(state["iteration"]),
        "training_s": float(state["schedule"]["trained_s"]),
        "load_before": load_before,
        "overrides": values,
    }


def goal_of(bundle: str, name: str) -> float:
    """Dice that a class should reach."""
    return GOALS["lesion" if any(word in name.lower() for word in LESIONS) else "organ"]


def lines(result: dict[str, Any], goal: Any) -> list[str]:
    """Rows of the table, one a class."""
    rows = []
    for name, dice in result["dice"].items():
        wanted = goal(result["bundle"], name)
        told = "no case" if dice is None else f"{dice:.3f}"
        verdict = "  below" if dice is not None and wanted is not None and dice < wanted else ""
        goal_told = "   -" if wanted is None else f"{wanted:.2f}"
        rows.append(f"{result['bundle']:<16} {name:<24} {told:>7}  {goal_told}  {result['cases']} cases, "
                    f"{result['iterations']} iterations in {result['training_s']:.0f} s{verdict}")  # fmt: skip
    return rows


if __name__ == "__main__":
    main()
