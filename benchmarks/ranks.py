"""What two processes on the CPU cost beside one process with the same cases a step.

    python benchmarks/ranks.py [--bundle hippocampus] [--iterations 40] [--repeat 3] [--output ranks.json]

Trains a bundle on phantoms: in one process on all cores, and in two on half of them each with half the batch. The time
is that of the training iterations, as the checkpoint keeps it, without start-up and validation. The two take turns, so
that a changing load meets both alike; on a machine that does other work the result says little, since the threads of
one process wait for each other. Prints a table and writes it as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import yaml

from decathlete.bundle import bundle_folder
from decathlete.bundle.checkpoints import read_checkpoint
from decathlete.data import fetch
from decathlete.files import atomic_write

MOST_RATIO = 1.15


def seconds(bundle: str, data: Path, output: Path, batch: int, epochs: int, processes: int, cores: int) -> float:
    """Seconds of a training iteration."""
    command = [sys.executable, "-m", "decathlete.cli", "run", "training", "--config", bundle]
    command += ["--dataset_dir", str(data)]
    command += ["--output_dir", str(output), "--batch_size", str(batch // processes), "--max_epochs", str(epochs)]
    command += ["--val_interval", "100000", "--num_workers", "0"]
    command += ["--gpus", str(processes)] if processes > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, cores // processes)), "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(command, check=True, env=environment, capture_output=True)
    content = read_checkpoint(output / "last.pt")
    return content["schedule"]["trained_s"] / content["iteration"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default="hippocampus")
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--output", default="ranks.json")
    a = parser.parse_args()
    config = yaml.safe_load((bundle_folder(a.bundle) / "configs" / "train.yaml").read_text())
    batch = config["batch_size"] + config["batch_size"] % 2
    cores = len(os.sched_getaffinity(0))
    times: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        cases = 5 * batch // 2  # four of five folds train: two iterations an epoch
        data = Path(fetch(a.bundle, Path(folder), phantom=cases))
        for turn in range(a.repeat):
            for processes, found in times.items():
                output = Path(folder) / f"run_{turn}_{processes}"
                found.append(seconds(a.bundle, data, output, batch, a.iterations // 2, processes, cores))
    one, two = (statistics.median(found) for found in times.values())
    result = {
        "bundle": a.bundle,
        "cases a step": batch,
        "cores": cores,
        "seconds an iteration, one process": round(one, 4),
        "seconds an iteration, two processes": round(two, 4),
        "ratio": round(two / one, 3),
        "at most": MOST_RATIO,
        "all": times,
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
    }
    for name, value in result.items():
        print(f"{name:38} {value}")
    with atomic_write(a.output) as part:
        part.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if two / one <= MOST_RATIO else 1


if __name__ == "__main__":
    sys.exit(main())
