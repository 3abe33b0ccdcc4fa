"""The first minutes on a GPU: one command that measures what no CPU can tell, the most important first.

    python benchmarks/first_gpu.py
    python benchmarks/first_gpu.py --minutes 8 --nnunet path/to/nnunet/environment --output first_gpu.json

It makes its own phantoms. In this order, until the time is over: 3D convolutions in bfloat16 against float32; four
bundles as they stand, with the fractions of time without a kernel and in augmentation; the same with cuDNN's tuning, in
the other memory format, compiled, with CUDA graphs; nnU-Net's trainer around the same networks, where there is one; a
validation with a small and a large volume on a nearly full GPU; one fold of the hippocampus for the time that is left.
Each part is a process of its own that cannot take longer than what is left. It writes one JSON after each part, and
prints a table for ``docs/gpu.md``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gpu  # the benchmark beside this one
import torch
from hippocampus import machine

from decathlete.bundle import packaged_root
from decathlete.data import dataset_folder, make_phantoms
from decathlete.data.tasks import TASKS
from decathlete.files import atomic_write
from decathlete.training.precision import amp_dtype, check_convolutions, gpu_versions
from decathlete.workflow import run

BUNDLES = ("spleen", "brain_tumour", "prostate", "hippocampus")
WAYS = ("plain", "tuned", "layout", "compiled", "graphs")
LEFT_GIB = 2.0  # of the GPU's memory, in the validation
SMALL, LARGE = (40, 48, 40), (320, 384, 320)  # voxels


def main() -> None:
    """Measure until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--iterations", type=int, default=50)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--nnunet", type=Path, help="virtual environment that holds nnU-Net 2.8")
    parser.add_argument("--runs", type=Path, default=Path("runs/first_gpu"))
    parser.add_argument("--output", type=Path, default=Path("first_gpu.json"))
    parser.add_argument("--child", nargs=2, metavar=("PART", "JSON"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(PARTS[options.child[0]](**json.loads(options.child[1]))), flush=True)
        return
    end = time.monotonic() + 60 * options.minutes
    found: dict[str, Any] = {"machine": machine(), "gpu": gpu_versions(), "rows": []}

    def left() -> float:
        return end - time.monotonic()

    def keep(name: str, value: Any) -> None:
        if name == "rows":
            found["rows"].append(value)
            print(gpu.line(value), flush=True)
        else:
            found[name] = value
            print(f"{name}: {value}", flush=True)
        with atomic_write(options.output) as part:
            part.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")

    def ask(*words: str) -> dict[str, Any]:
        try:
            done = subprocess.run([sys.executable, *words], stdout=subprocess.PIPE, text=True, check=False,
                                  timeout=max(1.0, left()))  # fmt: skip
        except subprocess.TimeoutExpired:
            return {"failed": "the time was over"}
        if done.returncode or not done.stdout.strip():
            return {"failed": f"exit status {done.returncode}, see above"}
        return json.loads(done.stdout.splitlines()[-1])

    def part(name: str, **values: Any) -> dict[str, Any]:
        return ask(__file__, "--child", name, json.dumps(values))

    keep("convolutions", part("convolutions", device=options.device))
    settings = argparse.Namespace(set={}, workers=None, runs=options.runs)
    data = {bundle: make_phantoms(TASKS[bundle], 4, options.runs / "data", shape=(200, 220, 80)) for bundle in BUNDLES}
    for way in WAYS:
        for bundle in BUNDLES if left() > 60 else ():
            common = {"bundle": bundle, "device": options.device, "iterations": options.iterations, "warm_up": 15}
            child = common | {"data": str(data[bundle]), "overrides": gpu.overrides(bundle, way, settings)}
            keep("rows", {"way": way} | common | ask(gpu.__file__, "--child", json.dumps(child)))
    for bundle in BUNDLES if options.nnunet else ():
        if left() > 90:
            common = {"bundle": bundle, "device": options.device, "iterations": options.iterations, "warm_up": 15}
            values = common | {"overrides": gpu.overrides(bundle, "equal", settings)}
            keep("rows", {"way": "nnU-Net"} | common | gpu.nnunet(options.nnunet, data[bundle], values, settings))
    keep("validation", part("validation", device=options.device, folder=str(options.runs / "validation")))
    if left() > 45:
        keep("fold", part("fold", device=options.device, folder=str(options.runs / "fold"), minutes=(left() - 30) / 60))


def convolutions(device: str) -> dict[str, Any]:
    """The trial before each training; an error ends this process."""
    where = torch.device(device)
    check_convolutions(where, amp_dtype(where))
    return {"sound": True, "name": torch.cuda.get_device_name(where)}


def validation(device: str, folder: str) -> dict[str, Any]:
    """A training of one epoch, validated on a small and a large volume while the GPU is nearly full."""
    task, root = TASKS["hippocampus"], Path(folder)
    data = make_phantoms(task, 2, root / "data", shape=SMALL)
    large = make_phantoms(task, 1, root / "large", shape=LARGE)
    free = torch.cuda.mem_get_info(device)[0]
    filler = torch.empty(max(0, int(free - LEFT_GIB * 2**30)), dtype=torch.uint8, device=device)
    lists = {name: f"$datalist({str(where)!r}, 'all', 'training')" for name, where in
             (("small", data), ("large", large))}  # fmt: skip
    run("training", packaged_root() / "hippocampus", {
        "device": f"$torch.device('{device}')", "dataset_dir": str(data), "output_dir": str(root / "run"),
        "max_epochs": 1, "train::dataset::data": lists["small"],
        "validate::dataset::data": f"{lists['small']}[:1] + {lists['large'][1:]}[:1]",
    })  # fmt: skip
    return {"sound": True, "filled_gib": filler.numel() / 2**30}


def fold(device: str, folder: str, minutes: float) -> dict[str, Any]:
    """One fold of the hippocampus, phantoms where there are no data."""
    given = Path(dataset_folder("Task04_Hippocampus"))
    data = given if given.is_dir() else make_phantoms(TASKS["hippocampus"], 40, Path(folder) / "data")
    run("training", packaged_root() / "hippocampus", {
        "device": f"$torch.device('{device}')", "dataset_dir": str(data), "output_dir": folder, "minutes": minutes,
        "val_interval": 1000,
    })  # fmt: skip
    return {"minutes": minutes, "real_data": data == given, "output_dir": folder}


PARTS = {"convolutions": convolutions, "validation": validation, "fold": fold}

if __name__ == "__main__":
    main()
