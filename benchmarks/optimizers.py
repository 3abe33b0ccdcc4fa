"""Dice of the hippocampus after equal numbers of iterations: Muon beside AdamW at several rates.

    python benchmarks/optimizers.py --epochs 20 --output optimizers.json

The bundle's own config but for the optimizer, on fold 1 (docs/results.md reports fold 0), final weights, on each scan's
own grid.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from decathlete.data import dataset_folder
from decathlete.files import atomic_write

BUNDLE, FOLDER, FOLD = "hippocampus", "Task04_Hippocampus", 1
ADAMW_RATES = (1e-3, 3e-3, 6e-3)


def main() -> None:
    """Train once with each optimizer and print the scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--dataset_dir", default=dataset_folder(FOLDER))
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark_optimizers"))
    parser.add_argument("--output", type=Path, default=Path("optimizers.json"))
    options = parser.parse_args()
    candidates: dict[str, dict[str, Any]] = {"Muon": {}}
    for rate in ADAMW_RATES:
        adamw = {"_target_": "torch.optim.AdamW", "params": "$@network.parameters()", "weight_decay": 0.01}
        candidates[f"AdamW {rate:g}"] = {"optimizer": json.dumps(adamw | {"lr": rate})}
    results = {}
    for name, overrides in candidates.items():
        run = options.runs / name.replace(" ", "_")
        words = [word for key, value in overrides.items() for word in (f"--{key}", value)]
        common = ["--fold", str(FOLD), "--dataset_dir", options.dataset_dir, "--output_dir", str(run)]
        command = [sys.executable, "-m", "decathlete.cli", "run"]
        epochs = ["--train::trainer::max_epochs", str(options.epochs)]
        subprocess.run([*command, "training", "--config", BUNDLE, *common, *epochs, *words], check=True)
        subprocess.run([*command, "evaluating", "--config", BUNDLE, *common], check=True)
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        results[name] = summary["mean"]["dice"]["mean"]
        print(f"{name:<14} {results[name]:.4f}", flush=True)
    with atomic_write(options.output) as part:
        part.write_text(json.dumps({"epochs": options.epochs, "fold": FOLD, "dice": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
