"""What `decathlete new` plans, beside what was made by hand and what the training then takes.

    python benchmarks/planning.py memory --data DIR --limits 0.8 1 4
    python benchmarks/planning.py dice --minutes 10 --fold 1

``memory``: a bundle is planned for each data set and limit (GiB, on a CPU), and trained for two epochs with a
validation after each; the results are the peak that the plan expects and that of the training. ``dice``: a bundle is
planned without a hint for the hippocampus and the heart and trained for as many minutes as the one made by hand, on the
same fold; thresholded Dice per case, on each scan's own grid, final weights.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from phantoms import train_and_score, write  # the benchmark beside this one

from decathlete.data import dataset_folder
from decathlete.planning import new_bundle
from decathlete.planning.fingerprints import take_fingerprint
from decathlete.planning.layouts import find_layout
from decathlete.planning.rules import plan

SETS = {"hippocampus": "Task04_Hippocampus", "heart_3d": "Task02_Heart"}  # bundle made by hand to its data
MOST = 0.25  # of the expected peak, that the measured one is off
NEAR = 0.01  # Dice


def main() -> None:
    """Plan, train and print the table that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("memory", "dice"))
    parser.add_argument("--data", type=Path, nargs="+", help="of memory (default: hippocampus, heart and lung)")
    parser.add_argument("--limits", type=float, nargs="+", default=[0.8, 1.0, 4.0], metavar="GIB")
    parser.add_argument("--minutes", type=float, default=10.0, help="of each training")
    parser.add_argument("--fold", type=int, default=1)
    parser.add_argument("--bundles", nargs="+", choices=SETS, default=list(SETS), metavar="BUNDLE", help="of dice")
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark_planning"))
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    folders = options.data or [Path(dataset_folder(name)) for name in [*SETS.values(), "Task06_Lung"]]
    if options.what == "memory":
        results = [memory(folder, limit, options.runs) for folder in folders for limit in options.limits]
    else:
        results = [dice(bundle, SETS[bundle], options) for bundle in options.bundles]
    output = options.output or Path(f"planning_{options.what}.json")
    write(output, {"minutes": options.minutes, "fold": options.fold, "results": results})
    print("\n" + "\n".join(result["told"] for result in results))


def memory(data: Path, limit_gib: float, runs: Path) -> dict[str, Any]:
    """The peak that a plan expects and the one that its training has, in GiB."""
    layout = find_layout(data)
    made = plan("planned", layout, take_fingerprint(layout, accept=True), limit_gib)
    run = runs / "memory" / f"{data.name}_{limit_gib:g}"
    shutil.rmtree(run, ignore_errors=True)
    folder = new_bundle("planned", data, run / "planned", memory_gib=limit_gib, device="cpu", accept=True)
    command = [sys.executable, "-m", "decathlete.cli", "run", "training", "--config", str(folder)]
    command += ["--dataset_dir", str(data), "--output_dir", str(run / "out")]
    command += ["--max_epochs", "2", "--val_interval", "1"]
    peak = peak_gib(command, {**os.environ, "DECATHLETE_CACHE": str(run / "cache")})  # a first training: all is read
    shutil.rmtree(run / "cache", ignore_errors=True)
    ratio = peak / made.estimate_gib
    told = (
        f"{data.name:<20} for {limit_gib:>4.1f} GiB: patch {' x '.join(map(str, made.patch_size))}, batch "
        f"{made.batch_size}; expected {made.estimate_gib:.2f}, measured {peak:.2f} GiB, ratio {ratio:.2f}"
        + ("" if abs(ratio - 1) <= MOST else "  off by more than a quarter")
        + ("" if peak <= limit_gib else "  above the limit")
    )
    print(told, flush=True)
    return {
        "data": data.name, "limit_gib": limit_gib, "patch_size": made.patch_size, "batch_size": made.batch_size,
        "expected_gib": made.estimate_gib, "measured_gib": peak, "told": told,
    }  # fmt: skip


def peak_gib(command: list[str], environment: dict[str, str]) -> float:
    """Peak resident memory of a command's own process."""
    process = subprocess.Popen(command, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"failed: {' '.join(command)}")
    return usage.ru_maxrss / 2**20


def dice(bundle: str, data: str, options: argparse.Namespace) -> dict[str, Any]:
    """Mean Dice of the planned bundle and of the one made by hand."""
    where = Path(dataset_folder(data))
    root = options.runs / "dice" / bundle
    shutil.rmtree(root / "planned", ignore_errors=True)
    planned = new_bundle("planned", where, root / "planned", device="cpu")
    values = {"dataset_dir": str(where), "fold": options.fold}
    found = {
        name: train_and_score(str(which), options.minutes, values, root / f"run_{name}")
        for name, which in (("by hand", bundle), ("planned", planned))
    }
    means = {name: sum(result["dice"].values()) / len(result["dice"]) for name, result in found.items()}
    difference = means["planned"] - means["by hand"]
    told = (f"{bundle:<12} by hand {means['by hand']:.4f} ({found['by hand']['iterations']} iterations), planned "
            f"{means['planned']:.4f} ({found['planned']['iterations']} iterations), difference {difference:+.4f}"
            + ("" if difference >= -NEAR else f"  more than {NEAR} behind"))  # fmt: skip
    print(told, flush=True)
    return {"bundle": bundle, "found": found, "means": means, "told": told}


if __name__ == "__main__":
    main()
