"""Sliding windows beside MONAI's and nnU-Net's, and the largest CT: time and peak memory, each in its own process.

    python benchmarks/inference.py windows --nnunet path/to/nnunet/environment --repeats 3
    python benchmarks/inference.py batches
    python benchmarks/inference.py large --shape 512 512 800 --runs runs/benchmark_inference

``windows``: one network (TorchScript), one volume, equal patch and overlap (0.5, Gaussian weights), in float32, and in
bfloat16 as the bundles compute where the processor can; nnU-Net's predictor knows float32 only there. What is timed is
the way from the volume to the logits; memory is what that way takes beyond what the process held before. The ways take
turns, and the median is reported. ``--nnunet`` names a virtual environment that holds nnU-Net 2.8.

``batches``: milliseconds a window of the processor's forward pass, of windows of several sizes and 1 to 8 of them at a
time, in the number format of the bundles; the least of the repeats, in which the batches take turns.

``large``: a phantom CT goes through `decathlete predict` with a CT bundle's chain and window and a slim network of
random weights: seconds and peak memory of the process, and whether the label map lies on the scan's grid.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from hippocampus import machine  # the benchmark beside this one

from decathlete.files import atomic_write
from decathlete.networks import UNet
from decathlete.training.precision import autocast

BATCHES = (1, 4)
SIZES = {2: (128, 192, 256, 384, 512), 3: (32, 48, 64, 96)}  # edges of the windows of ``batches``, by dimensions
FEATURES = {2: (16, 32, 64, 128, 256), 3: (8, 16, 32, 64, 64)}
SLIM = {"network_def::channels": [4, 8, 16, 32, 32, 32], "network_def::deep_supervision": False}
BEFORE = """
import json, sys, time, warnings
import numpy as np, torch
warnings.filterwarnings("ignore")
torch.set_num_threads(int(sys.argv[2]))
torch.manual_seed(0)
volume = torch.randn(1, 1, *json.loads(sys.argv[3]))
patch = json.loads(sys.argv[4])
network = torch.jit.load(sys.argv[1]).eval()
with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=json.loads(sys.argv[6])):
    for batch in (1, 1, 1, 4, 4, 4):  # the first calls compile
        network(torch.rand(batch, 1, *patch))
def status(name):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 2**20
"""
AFTER = """
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak is counted anew
before, start = status("VmRSS"), time.perf_counter()
with torch.no_grad():
    logits = predict()
seconds = time.perf_counter() - start
peak, logits = status("VmHWM"), logits.float()
result = {"seconds": seconds, "gib": peak - before, "mean": float(logits.mean()), "std": float(logits.std())}
print(json.dumps(result))
"""
OURS = """
from decathlete.inference import SlidingWindow
inferer = SlidingWindow(patch, sw_batch_size={batch}, amp={amp})
def predict():
    return inferer(volume, network)[0]
"""
MONAIS = """
from monai.inferers import SlidingWindowInferer
inferer = SlidingWindowInferer(patch, sw_batch_size={batch}, overlap=0.5, mode="gaussian")
def predict():
    return inferer(volume, network)[0]
"""
NNUNETS = """
from types import SimpleNamespace
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
made = nnUNetPredictor(tile_step_size=0.5, use_gaussian=True, use_mirroring=False, perform_everything_on_device=False,
                       device=torch.device("cpu"), verbose=False, allow_tqdm=False)
made.network = network
made.configuration_manager = SimpleNamespace(patch_size=patch)
made.label_manager = SimpleNamespace(num_segmentation_heads=int(sys.argv[5]))
made.allowed_mirroring_axes = None
def predict():
    return made.predict_sliding_window_return_logits(volume[0])
"""
DRAW = """
import json, shutil, sys, tempfile
from pathlib import Path
import nibabel as nib
from decathlete.data import make_phantoms
task, target, shape, spacing = sys.argv[1], Path(sys.argv[2]), *map(json.loads, sys.argv[3:])
with tempfile.TemporaryDirectory(dir=target.parent) as folder:
    made = make_phantoms(task, 1, folder, shape=shape)
    drawn = nib.load(next((made / "imagesTr").iterdir()))
    affine = drawn.affine.copy()
    affine[:3, :3] *= [s / own for s, own in zip(spacing, drawn.header.get_zooms())]  # columns: voxel axes
    part = Path(folder) / target.name
    nib.save(nib.Nifti1Image(drawn.dataobj, affine, drawn.header), part)
    shutil.move(part, target)
"""
LARGE = """
import json, resource, sys, time
from decathlete.inference import predict
bundle, image, output, weights, overrides = sys.argv[1:6]
start = time.perf_counter()
memory = float(sys.argv[6]) or None
report = predict(bundle, image, output, weights, overrides=json.loads(overrides), memory_gib=memory, overwrite=True)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(json.dumps({"seconds": time.perf_counter() - start, "peak_gib": peak, "failed": list(report.failed.values())}))
"""


def main() -> None:
    """Measure what is asked for; print a table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark_inference"))
    parser.add_argument("--output", type=Path, default=Path("inference.json"))
    parts = parser.add_subparsers(dest="part", required=True)
    part = parts.add_parser("windows")
    part.add_argument("--shape", type=int, nargs=3, default=(256, 256, 192))
    part.add_argument("--patch", type=int, nargs=3, default=(96, 96, 96))
    part.add_argument("--classes", type=int, default=3)
    part.add_argument("--repeats", type=int, default=3)
    part.add_argument("--nnunet", type=Path, help="virtual environment that holds nnU-Net")
    part = parts.add_parser("batches")
    part.add_argument("--repeats", type=int, default=3)
    part = parts.add_parser("large")
    part.add_argument("--shape", type=int, nargs=3, default=(512, 512, 800))
    part.add_argument("--spacing", type=float, nargs=3, default=(0.8, 0.8, 1.0), help="mm, of the phantom's voxels")
    part.add_argument("--bundle", default="liver")
    part.add_argument("--memory", type=float, default=0.0, help="GiB allowed; 0: what is free")
    options = parser.parse_args()

    options.runs.mkdir(parents=True, exist_ok=True)
    measured = {"windows": windows, "batches": batches, "large": large}[options.part](options)
    document = {"machine": machine(), "threads": options.threads, options.part: measured}
    with atomic_write(options.output) as file:
        file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def windows(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Each way's seconds and GiB, medians over the repeats."""
    torch.manual_seed(0)
    network = UNet(3, 1, options.classes, channels=(8, 16, 32, 64, 64), strides=(1, 2, 2, 2, 2)).eval()
    script = options.runs / "network.ts"
    torch.jit.script(network).save(str(script))
    own = sys.executable
    ways = [(f"ours, bfloat16, sw_batch_size {b}", own, OURS.format(batch=b, amp=True), "true") for b in BATCHES]
    ways += [(f"ours, sw_batch_size {b}", own, OURS.format(batch=b, amp=False), "false") for b in BATCHES]
    ways += [(f"MONAI, sw_batch_size {b}", own, MONAIS.format(batch=b), "false") for b in BATCHES]
    if options.nnunet:
        ways.append(("nnU-Net", str(options.nnunet / "bin" / "python"), NNUNETS, "false"))
    arguments = [str(script), str(options.threads), json.dumps(options.shape), json.dumps(options.patch)]
    arguments.append(str(options.classes))
    found: dict[str, list[dict[str, float]]] = {name: [] for name, *_ in ways}
    for _ in range(options.repeats):
        for name, python, code, half in ways:
            found[name].append(call(python, BEFORE + code + AFTER, [*arguments, half]))
    first = statistics.median(one["seconds"] for one in found[ways[-1][0]])
    rows = []
    print(f"{'way':32} seconds  of the last   GiB   mean and std of the logits")
    for name, runs in found.items():
        row = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        rows.append({"way": name, **row, "ratio": row["seconds"] / first})
        print(f"{name:32} {row['seconds']:7.1f} {row['seconds'] / first:12.2f} {row['gib']:5.2f}   "
              f"{row['mean']:.5f} {row['std']:.5f}")  # fmt: skip
    return rows


@torch.no_grad()
def batches(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Milliseconds a window, by the windows' size and the number of them that go through the network together."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    most, rows = 8, []
    print(f"{'window':16}" + "".join(f"{count:8} at a time" for count in (1, 2, 4, most)) + "   ms a window")
    for dims, edges in SIZES.items():
        network = UNet(dims, 1, 2, channels=FEATURES[dims], channels_last=True).eval()
        for edge in edges:
            volume = torch.rand(most, 1, *[edge] * dims)
            best = dict.fromkeys((1, 2, 4, most), float("inf"))
            for count in [*best, *list(best) * options.repeats]:  # the first calls compile
                with autocast(volume.device, True):
                    start = time.perf_counter()
                    for part in volume.split(count):
                        network(part)
                best[count] = min(best[count], (time.perf_counter() - start) * 1000 / most)
            rows.append({"window": [edge] * dims, "milliseconds": best})
            print(f"{'x'.join([str(edge)] * dims):16}" + "".join(f"{ms:18.1f}" for ms in best.values()), flush=True)
    return rows


def large(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds and peak memory of one prediction."""
    from decathlete.bundle import bundle_folder
    from decathlete.bundle.configs import load

    bundle = bundle_folder(options.bundle)
    name = "x".join(map(str, options.shape))
    image = options.runs / f"{bundle.name}_{name}_{'x'.join(f'{s:g}' for s in options.spacing)}_mm.nii.gz"
    if not image.is_file():
        words = [bundle.name, str(image), json.dumps(options.shape), json.dumps(options.spacing)]
        subprocess.run([sys.executable, "-c", textwrap.dedent(DRAW), *words], check=True)
    weights, output = options.runs / "weights.pt", options.runs / "predictions"
    torch.manual_seed(0)
    torch.save(load(bundle, "inference", SLIM).get_parsed_content("network").state_dict(), weights)
    words = [str(bundle), str(image), str(output), str(weights), json.dumps(SLIM), str(options.memory)]
    found = call(sys.executable, LARGE, words)
    if found["failed"]:
        raise SystemExit(f"{bundle.name}, {name} voxels: {found['failed'][0]}")
    scan, label = nib.load(image), nib.load(output / image.name)
    on_grid = scan.shape == label.shape and bool(np.array_equal(scan.affine, label.affine))
    print(f"{bundle.name}, {name} voxels: {found['seconds']:.0f} s, peak {found['peak_gib']:.2f} GiB, "
          f"label map on the scan's grid: {on_grid}")  # fmt: skip
    return {
        "bundle": bundle.name,
        "shape": options.shape,
        "spacing": options.spacing,
        "allowed_gib": options.memory,
        "on_grid": on_grid,
        **found,
    }


def call(python: str, code: str, words: Sequence[str]) -> dict[str, Any]:
    """What a script prints last, as JSON."""
    done = subprocess.run([python, "-c", textwrap.dedent(code), *words], stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
