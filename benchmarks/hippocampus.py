"""Dice of the hippocampus bundle after 1, 2, 5 and 20 minutes of training: nnU-Net's fold 0, each scan's own grid.

    python benchmarks/hippocampus.py --minutes 1 2 5 20 --output hippocampus.json
    python benchmarks/hippocampus.py --minutes 5 --nnunet path/to/nnunet/environment --reference nnunet_cases.csv

Every budget is a training of its own, with the one recipe of ``bundles/hippocampus/configs/train.yaml``; the time is
that of the iterations, set-up and validation apart. The scored weights are the last ones, with and without mirrored
copies: nothing is chosen on the scored cases. ``--nnunet`` names a virtual environment that holds nnU-Net 2.8; it
trains the same cases on the same machine for five of its own epochs, whatever they take. ``--reference`` names a CSV
with the columns case, label and dice, to compare with case by case.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from decathlete.data import data_hash, datalist, dataset_folder
from decathlete.evaluation import compare
from decathlete.evaluation.labels import bundle_labels
from decathlete.evaluation.report import write_report
from decathlete.evaluation.scoring import score_pairs
from decathlete.files import atomic_write

BUNDLE, FOLDER, FOLD = "hippocampus", "Task04_Hippocampus", 0
NNUNET_EPOCHS = 5  # the shortest of its own trainers that learns anything here


def main() -> None:
    """Run the trainings that are asked for and print their scores as a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, nargs="+", default=[1.0, 2.0, 5.0, 20.0])
    parser.add_argument("--dataset_dir", default=dataset_folder(FOLDER))
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark_hippocampus"))
    parser.add_argument("--reference", type=Path, help="CSV with the columns case, label, dice")
    parser.add_argument("--nnunet", type=Path, help="virtual environment that holds nnU-Net")
    parser.add_argument("--output", type=Path, default=Path("hippocampus.json"))
    options = parser.parse_args()

    validation = datalist(options.dataset_dir, FOLD, "validation", BUNDLE)
    training = datalist(options.dataset_dir, FOLD, "training", BUNDLE)
    print(f"{len(training)} cases to train, {len(validation)} to score; {machine()}")
    results = []
    for minutes in options.minutes:
        result = train_and_score(minutes, options.dataset_dir, validation, options.runs / f"{minutes:g}_minutes")
        results.append(result)
        print(line(result), flush=True)
    if options.nnunet:
        results.append(nnunet(options.nnunet, training, validation, options.runs / "nnunet"))
        print(line(results[-1]), flush=True)
    if options.reference:
        for result in results:
            comparison = compare(result["metrics_csv"], options.reference, bundle_labels(BUNDLE))
            result["reference"] = comparison.groups
            print(f"\n{result['name']} against {options.reference.name}\n{comparison.table(per_case=False)}")
    document = {"machine": machine(), "data_sha256": data_hash(training + validation), "results": results}
    with atomic_write(options.output) as part:
        part.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def machine() -> str:
    """Processor, cores and versions, for beside the figures."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    cpu = next((x.split(":")[1].strip() for x in lines if "model name" in x), platform.processor())
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{cpu}, {os.cpu_count()} cores"
    return f"{device}, torch {torch.__version__}, Python {platform.python_version()}"


def train_and_score(minutes: float, dataset_dir: str, cases: list[dict[str, Any]], run: Path) -> dict[str, Any]:
    """One training of ``minutes`` in a process of its own, scored without and with mirrored copies."""
    shutil.rmtree(run, ignore_errors=True)
    decathlete = [sys.executable, "-m", "decathlete.cli"]
    start, load = time.perf_counter(), os.getloadavg()[0]
    command = [*decathlete, "run", "training", "--config", BUNDLE, "--fold", str(FOLD), "--minutes", str(minutes)]
    subprocess.run([*command, "--dataset_dir", dataset_dir, "--output_dir", str(run)], check=True)
    whole = time.perf_counter() - start
    state = torch.load(run / "last.pt", weights_only=True)
    result: dict[str, Any] = {
        "name": f"{minutes:g} min",
        "iterations": int(state["iteration"]),
        "training_s": float(state["schedule"]["trained_s"]),
        "process_s": whole,
        "load_before": load,
    }
    for name, options in (("dice", []), ("dice_mirrored", ["--tta"])):
        folder = run / f"predictions_{name}"
        weights = ["--checkpoint", str(run / "model_final.pt")]
        images = [case["image"] for case in cases]
        subprocess.run(
            [*decathlete, "predict", BUNDLE, *images, "--output", str(folder), *weights, *options], check=True
        )
        result |= score(folder, cases, name)
    return result


def score(folder: Path, cases: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Mean Dice of the classes over the cases, under ``name``, and where the figures of each case are."""
    pairs = {case["case_id"]: (folder / f"{case['case_id']}.nii.gz", Path(case["label"])) for case in cases}
    rows, failed = score_pairs(pairs, bundle_labels(BUNDLE))
    if failed:
        raise SystemExit("\n".join(failed.values()))
    summary = write_report(rows, folder, failed)
    classes = {label: values["dice"]["mean"] for label, values in summary.values["classes"].items()}
    return {name: summary.mean_dice, f"{name}_classes": classes, "metrics_csv": str(summary.metrics_csv)}


def nnunet(environment: Path, training: list[dict], validation: list[dict], work: Path) -> dict[str, Any]:
    """nnU-Net's own recipe for five of its epochs, on the same cases; its wall time is stated, not set."""
    shutil.rmtree(work, ignore_errors=True)
    raw = work / "raw" / "Dataset004_Hippocampus"
    for name in ("imagesTr", "labelsTr"):
        (raw / name).mkdir(parents=True)
    for case in training + validation:
        shutil.copy(case["image"], raw / "imagesTr" / f"{case['case_id']}_0000.nii.gz")
        shutil.copy(case["label"], raw / "labelsTr" / f"{case['case_id']}.nii.gz")
    labels = {"background": 0, "anterior": 1, "posterior": 2}
    description = {"channel_names": {"0": "MRI"}, "labels": labels, "file_ending": ".nii.gz"}
    count = {"numTraining": len(training) + len(validation)}
    (raw / "dataset.json").write_text(json.dumps(description | count), encoding="utf-8")
    keys = {"nnUNet_raw": "raw", "nnUNet_preprocessed": "preprocessed", "nnUNet_results": "results"}
    env = os.environ | {key: str((work / folder).resolve()) for key, folder in keys.items()}

    def call(program: str, *arguments: str) -> None:
        subprocess.run([str(environment / "bin" / program), *arguments], env=env, check=True)

    call("nnUNetv2_plan_and_preprocess", "-d", "4", "-c", "3d_fullres", "-np", "2")
    split = {"train": [c["case_id"] for c in training], "val": [c["case_id"] for c in validation]}
    target = work / "preprocessed" / raw.name / "splits_final.json"
    target.write_text(json.dumps([split]), encoding="utf-8")
    trainer = f"nnUNetTrainer_{NNUNET_EPOCHS}epochs"
    start = time.perf_counter()
    call("nnUNetv2_train", "4", "3d_fullres", "0", "-tr", trainer, "-device", "cpu")
    seconds = time.perf_counter() - start
    fold = next((work / "results" / raw.name).glob(f"{trainer}__*/fold_0"))
    times = re.findall(r"Epoch time: ([0-9.]+) s", "".join(p.read_text() for p in fold.glob("training_log_*.txt")))
    iterations = {"iterations": NNUNET_EPOCHS * 250, "training_s": sum(map(float, times)), "process_s": seconds}
    return {"name": f"nnU-Net, {NNUNET_EPOCHS} epochs"} | iterations | score(fold / "validation", validation, "dice")


def line(result: dict[str, Any]) -> str:
    """One row of the table."""
    mirrored = f"{result['dice_mirrored']:.4f}" if "dice_mirrored" in result else "-"
    return (
        f"{result['name']:<20} Dice {result['dice']:.4f}  mirrored {mirrored}  "
        f"{result['iterations']} iterations in {result['training_s']:.0f} s  process {result['process_s']:.0f} s"
    )


if __name__ == "__main__":
    main()
