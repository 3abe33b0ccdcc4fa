"""Dice of the hippocampus bundle after 1, 2, 5 and 20 minutes of training: nnU-Net's fold 0, each scan's own grid.

    python benchmarks/hippocampus.py --minutes 1 2 5 20 --output hippocampus.json
    python benchmarks/hippocampus.py --minutes 5 --nnunet path/to/nnunet/environment --reference nnunet_cases.csv
    python benchmarks/hippocampus.py --minutes 5 --networks ours monai_unet monai_unet_residual monai_dynunet --fold 1

Every budget is a training of its own, with the one recipe of ``bundles/hippocampus/configs/train.yaml``; the time is
that of the iterations, set-up and validation apart. The scored weights are the last ones, with and without mirrored
copies: nothing is chosen on the scored cases. ``--networks`` trains MONAI's networks too, each for the same time with
the same recipe. ``--nnunet`` names a virtual environment that holds nnU-Net 2.8; it trains the same cases on the same
machine for five of its own epochs, whatever they take. ``--reference`` names a CSV with the columns case, label and
dice, to compare with case by case.
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
import yaml

from decathlete.bundle import bundle_folder, bundle_labels
from decathlete.data import data_hash, datalist, dataset_folder
from decathlete.evaluation import compare
from decathlete.evaluation.report import write_report
from decathlete.evaluation.scoring import score_pairs
from decathlete.files import atomic_write

BUNDLE, FOLDER = "hippocampus", "Task04_Hippocampus"
NNUNET_EPOCHS = 5  # the shortest of its own trainers that learns anything here

_WIDTHS = [32, 64, 128, 256]
NETWORKS: dict[str, dict[str, Any] | None] = {
    "ours": None,  # the bundle's own
    # the fastest of MONAI's on a CPU
    "monai_unet": {"_target_": "UNet", "channels": [16, 32, 64, 128], "strides": [2, 2, 2], "norm": "BATCH"},
    "monai_unet_residual": {"_target_": "UNet", "channels": _WIDTHS, "strides": [2, 2, 2], "num_res_units": 2,
                            "norm": "BATCH"},
    "monai_dynunet": {"_target_": "DynUNet", "filters": _WIDTHS, "kernel_size": [3, 3, 3, 3], "strides": [1, 2, 2, 2],
                      "upsample_kernel_size": [2, 2, 2], "norm_name": "BATCH"},
}  # fmt: skip


def main() -> None:
    """Run the trainings that are asked for and print their scores as a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, nargs="+", default=[1.0, 2.0, 5.0, 20.0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["ours"])
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--dataset_dir", default=dataset_folder(FOLDER))
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark_hippocampus"))
    parser.add_argument("--reference", type=Path, help="CSV with the columns case, label, dice")
    parser.add_argument("--nnunet", type=Path, help="virtual environment that holds nnU-Net")
    parser.add_argument("--output", type=Path, default=Path("hippocampus.json"))
    options = parser.parse_args()

    validation = datalist(options.dataset_dir, options.fold, "validation", BUNDLE)
    training = datalist(options.dataset_dir, options.fold, "training", BUNDLE)
    print(f"{len(training)} cases to train, {len(validation)} to score; {machine()}")
    results = []
    for minutes in options.minutes:
        for network in options.networks:
            name = f"{minutes:g} min" + (f", {network}" if len(options.networks) > 1 else "")
            run = options.runs / re.sub(r"\W+", "_", name)
            bundle = with_network(network, options.runs / network)
            results.append({"name": name, **train_and_score(bundle, minutes, options, validation, run)})
            print(line(results[-1]), flush=True)
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
    """Processor, cores and versions, to show beside the results."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    cpu = next((x.split(":")[1].strip() for x in lines if "model name" in x), platform.processor())
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{cpu}, {os.cpu_count()} cores"
    return f"{device}, torch {torch.__version__}, Python {platform.python_version()}"


def with_network(name: str, folder: Path) -> Path:
    """The bundle; for another network than its own a copy in ``folder`` whose two configs name that one."""
    bundle = bundle_folder(BUNDLE)
    if NETWORKS[name] is None:
        return bundle
    copy = folder / BUNDLE
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(bundle, copy, ignore=shutil.ignore_patterns("models"))
    size = {"spatial_dims": 3, "in_channels": "@channels", "out_channels": "$len(@labels)"}
    for config in ("train", "inference"):
        file = copy / "configs" / f"{config}.yaml"
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        content["network_def"] = {**(NETWORKS[name] or {}), **size}
        if config == "train":
            content["train"]["trainer"]["channels_last"] = True  # as our own asks for: faster with batch norm
        file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return copy


def train_and_score(
    bundle: Path, minutes: float, options: argparse.Namespace, cases: list[dict[str, Any]], run: Path
) -> dict[str, Any]:
    """One training of ``minutes`` in a process of its own, scored without and with mirrored copies."""
    shutil.rmtree(run, ignore_errors=True)
    decathlete = [sys.executable, "-m", "decathlete.cli"]
    start, load = time.perf_counter(), os.getloadavg()[0]
    command = [*decathlete, "run", "training", "--config", str(bundle), "--fold", str(options.fold)]
    command += ["--minutes", str(minutes), "--dataset_dir", str(options.dataset_dir), "--output_dir", str(run)]
    subprocess.run(command, check=True)
    whole = time.perf_counter() - start
    state = torch.load(run / "last.pt", weights_only=True)
    result: dict[str, Any] = {
        "iterations": int(state["iteration"]),
        "training_s": float(state["schedule"]["trained_s"]),
        "process_s": whole,
        "load_before": load,
    }
    for name, more in (("dice", []), ("dice_mirrored", ["--tta"])):
        folder = run / f"predictions_{name}"
        weights = ["--checkpoint", str(run / "model_final.pt")]
        images = [case["image"] for case in cases]
        subprocess.run(
            [*decathlete, "predict", str(bundle), *images, "--output", str(folder), *weights, *more], check=True
        )
        result |= score(folder, cases, name)
    return result


def score(folder: Path, cases: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Mean Dice of the classes over the cases, under ``name``, and the file with the scores of each case."""
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
        f"{result['name']:<28} Dice {result['dice']:.4f}  mirrored {mirrored}  "
        f"{result['iterations']} iterations in {result['training_s']:.0f} s  process {result['process_s']:.0f} s"
    )


if __name__ == "__main__":
    main()
