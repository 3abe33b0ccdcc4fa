"""Training speed on a GPU, bundle by bundle with its own patch and batch, beside nnU-Net's trainer.

    python benchmarks/gpu.py --bundles hippocampus spleen brain_tumour prostate --iterations 100
    python benchmarks/gpu.py --bundles spleen --nnunet path/to/nnunet/environment --output gpu.json

Every row is a process of its own that trains on phantoms: iterations per second after a warm-up, the GPU's peak
memory, the fraction of its peak arithmetic (multiplications and additions of the convolutions, counted by torch, over
time and the maker's dense number for 16 bits), and fractions of the time: in which the process waited for the loader,
in which the GPU ran no kernel (torch's profiler, some iterations more), and which augmentation took on the GPU. The
ways:

    plain      as the bundle stands
    tuned      ``deterministic: false``: cuDNN tries which of its convolutions are fastest
    on_card    cases kept on the card (``train::dataset::device``), no worker processes
    compiled   the network through ``torch.compile``
    graphs     the same with CUDA graphs (``mode="reduce-overhead"``)
    layout     the other memory format, channels-last or not
    float32    without ``amp``

``--nnunet`` names a virtual environment, of the same Python, that holds nnU-Net 2.8: its trainer, loader and
augmentation around the bundle's network, patch and batch in bfloat16, compiled as it does by itself; deep supervision
is off in that row and in the one it stands beside (``equal``). It also runs on a CPU, but that says little.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from hippocampus import machine  # the benchmark beside this one
from ignite.engine import Events
from torch.utils.flop_counter import FlopCounterMode

from decathlete.bundle import bundle_names
from decathlete.bundle.configs import load
from decathlete.data import fetch
from decathlete.files import atomic_write
from decathlete.machine import peak_memory_gib

PROFILED = 10  # iterations after the measured ones
COMPILED = {"network": "$torch.compile(@network_def.to(@device))"}
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tuned": {"deterministic": False},
    "on_card": {"train::dataset::device": "@device", "num_workers": 0},
    "compiled": COMPILED,
    "graphs": {"network": "$torch.compile(@network_def.to(@device), mode='reduce-overhead')"},
    "layout": {},  # what the bundle has, the other way round
    "float32": {"amp": False},
    "equal": {"network_def::deep_supervision": False},
}
# dense TFLOP/s in bfloat16 or float16, from the makers' data sheets
PEAK_TFLOPS = {"H100": 989, "H200": 989, "A100": 312, "L40S": 362, "L4": 121, "V100": 125, "RTX 4090": 165}
NNUNET = """
import json, os, site, sys, time
given = json.loads(sys.argv[1])
import torch
from nnunetv2.run.run_training import get_trainer_from_args
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
site.addsitedir(given["packages"])  # behind nnU-Net's own
from decathlete.bundle.configs import load
network = load(given["bundle"], "train", given["overrides"]).get_parsed_content("network_def")
device = torch.device(given["device"])
if device.type == "cuda":
    torch.set_autocast_dtype("cuda", torch.bfloat16)
nnUNetTrainer.build_network_architecture = lambda self, *args, **kwargs: network
nnUNetTrainer.set_deep_supervision_enabled = nnUNetTrainer.plot_network_architecture = lambda self, *args: None
trainer = get_trainer_from_args(given["dataset"], "3d_fullres", "all", device=device)
trainer.enable_deep_supervision = False
trainer.on_train_start()
trainer.on_train_epoch_start()
marks = []
for number in range(given["warm_up"] + given["iterations"]):
    if number == given["warm_up"] and device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    batch = next(trainer.dataloader_train)
    there = time.perf_counter()
    trainer.train_step(batch)  # ends with the loss on the CPU
    marks.append((there - start, time.perf_counter() - start))
peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
print(json.dumps({"marks": marks[given["warm_up"]:], "memory_gib": peak}), flush=True)
for loader in (trainer.dataloader_train, trainer.dataloader_val):
    if hasattr(loader, "_finish"):
        loader._finish()  # their processes, as its own end does
os._exit(0)
"""


def main() -> None:
    """Measure what is asked for; print a table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundles", nargs="+", choices=bundle_names(), metavar="BUNDLE",
                        default=["hippocampus", "spleen", "brain_tumour", "prostate"])  # fmt: skip
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=[way for way in WAYS if way != "equal"])
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--warm_up", type=int, default=20, help="iterations before the clock starts")
    parser.add_argument("--cases", type=int, default=10, help="phantoms of each bundle")
    parser.add_argument("--workers", type=int, help="of the loader; by default what the bundle has")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--nnunet", type=Path, help="virtual environment that holds nnU-Net")
    parser.add_argument("--set", default={}, type=json.loads, help="overrides of the configs, as JSON")
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark_gpu"))
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(train(**options.child)), flush=True)
        return

    rows = []
    for bundle in options.bundles:
        data = fetch(bundle, options.runs / "data", phantom=options.cases)
        common = {"bundle": bundle, "device": options.device, "iterations": options.iterations}
        common |= {"warm_up": options.warm_up}
        for way in [*options.ways, *(["equal"] if options.nnunet else [])]:
            child = common | {"overrides": overrides(bundle, way, options), "data": str(data)}
            rows.append({"way": way} | common | ask([sys.executable, __file__, "--child", json.dumps(child)]))
            print(line(rows[-1]), flush=True)
        if options.nnunet:
            found = nnunet(options.nnunet, data, common | {"overrides": overrides(bundle, "equal", options)}, options)
            # the same network, patch and batch: the same work
            rows.append({"way": "nnU-Net"} | common | found | {"tflop": rows[-1].get("tflop")})
            print(line(rows[-1]), flush=True)
    with atomic_write(options.output) as part:
        part.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n", encoding="utf-8")


def overrides(bundle: str, way: str, options: argparse.Namespace) -> dict[str, Any]:
    """Values of the config for one way of training."""
    values: dict[str, Any] = {**options.set, **WAYS[way]}
    if options.workers is not None:
        values.setdefault("num_workers", options.workers)
    if way == "layout":
        parser = load(bundle, "train", options.set)
        values["network_def::channels_last"] = not parser.get("network_def").get("channels_last", False)
    return values


def train(
    bundle: str, data: str, overrides: dict[str, Any], device: str, iterations: int, warm_up: int
) -> dict[str, Any]:
    """Train some iterations in this process: seconds of each and of its wait for the loader; memory; work of one."""
    parser = load(bundle, "train", {
        "dataset_dir": data, "device": f"$torch.device('{device}')", "fold": "all", "max_epochs": 1, **overrides,
        "train::handlers": [],
        "train::dataloader": {  # one epoch: a new one starts the loader's processes again
            "_target_": "DataLoader", "dataset": "@train::dataset", "batch_size": "@batch_size",
            "num_workers": "@num_workers", "pin_memory": "$@num_workers > 0 and 'cuda' in str(@device)",
            "sampler": {"_target_": "torch.utils.data.RandomSampler", "data_source": "@train::dataset",
                        "replacement": True, "num_samples": f"$@batch_size * {warm_up + iterations + PROFILED}"},
        },
    })  # fmt: skip
    parser.get_parsed_content("initialize")
    trainer = parser.get_parsed_content("train::trainer")
    on_card = torch.device(device).type == "cuda"
    marks: list[list[float]] = []
    augmented: list[Any] = []  # events on the GPU, before and after
    transform = trainer.batch_transform
    activities = [torch.profiler.ProfilerActivity.CUDA] if on_card else [torch.profiler.ProfilerActivity.CPU]
    profiler = torch.profiler.profile(activities=activities)

    def timed(batch: dict) -> Any:
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        events[0].record()
        out = transform(batch)
        events[1].record()
        augmented.append(events)
        return out

    if on_card:
        trainer.batch_transform = timed

    @trainer.on(Events.GET_BATCH_STARTED)
    def _asks(engine: Any) -> None:
        if engine.state.iteration == warm_up and on_card:
            torch.cuda.reset_peak_memory_stats(device)
        if engine.state.iteration == warm_up + iterations and on_card:
            profiler.start()
        marks.append([time.perf_counter()])

    @trainer.on(Events.GET_BATCH_COMPLETED)
    def _has(engine: Any) -> None:
        marks[-1].append(time.perf_counter())

    @trainer.on(Events.ITERATION_COMPLETED)
    def _ends(engine: Any) -> None:
        if on_card and engine.state.iteration in (warm_up, warm_up + iterations):  # else they run ahead, as they do
            torch.cuda.synchronize(device)
        marks[-1].append(time.perf_counter())

    trainer.run()
    kept = [(there - start, end - start) for start, there, end in marks[warm_up : warm_up + iterations]]
    found = {"marks": kept, "memory_gib": peak_memory_gib(device), "tflop": work_of_a_step(parser, device)}
    if on_card:
        torch.cuda.synchronize(device)
        profiler.stop()
        seconds = sum(a.elapsed_time(b) for a, b in augmented[warm_up : warm_up + iterations]) / 1000
        found |= {"augmentation": seconds / sum(whole for _, whole in kept), "no_kernel": without_kernel(profiler)}
    return found


def without_kernel(profiler: Any) -> float:
    """Fraction of the time from the first to the last kernel in which none ran."""
    spans = sorted((e.time_range.start, e.time_range.end) for e in profiler.events()
                   if e.device_type == torch.autograd.DeviceType.CUDA)  # fmt: skip
    busy, until = 0.0, spans[0][0]
    for start, end in spans:
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return 1 - busy / (until - spans[0][0])


def work_of_a_step(parser: Any, device: str) -> float:
    """Million million floating-point operations of the network, forward and backward, for one batch."""
    network = parser.get_parsed_content("network_def").to(device).train()
    shape = (parser.get_parsed_content("batch_size"), parser.get_parsed_content("network_def").in_channels)
    image = torch.zeros(*shape, *parser.get_parsed_content("patch_size"), device=device)
    with FlopCounterMode(display=False) as counter:
        out = network(image)
        sum(part.sum() for part in (out if isinstance(out, (list, tuple)) else [out])).backward()
    return counter.get_total_flops() / 1e12


def nnunet(environment: Path, data: str | Path, common: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """nnU-Net's trainer around the bundle's network, on the same phantoms in its own form."""
    work = options.runs / f"nnunet_{common['bundle']}"
    shutil.rmtree(work, ignore_errors=True)
    folders = {"nnUNet_raw": "raw", "nnUNet_preprocessed": "preprocessed", "nnUNet_results": "results"}
    env = os.environ | {key: str((work / name).resolve()) for key, name in folders.items()}
    for key in folders:
        Path(env[key]).mkdir(parents=True)

    def call(program: str, *words: str) -> None:
        subprocess.run([str(environment / "bin" / program), *words], env=env, check=True, stdout=subprocess.DEVNULL)

    call("nnUNetv2_convert_MSD_dataset", "-i", str(Path(data).resolve()))
    (dataset,) = [path.name for path in Path(env["nnUNet_raw"]).iterdir()]
    call("nnUNetv2_plan_and_preprocess", "-d", dataset[7:10], "-c", "3d_fullres", "-np", "2")
    config = load(common["bundle"], "train", common["overrides"])
    plans = Path(env["nnUNet_preprocessed"]) / dataset / "nnUNetPlans.json"
    content = json.loads(plans.read_text(encoding="utf-8"))
    for key in ("patch_size", "batch_size"):
        content["configurations"]["3d_fullres"][key] = config.get_parsed_content(key)
    plans.write_text(json.dumps(content), encoding="utf-8")
    given = common | {"dataset": dataset, "packages": str(Path(torch.__file__).parents[1])}
    return ask([str(environment / "bin" / "python"), "-c", NNUNET, json.dumps(given)], env)


def ask(command: list[str], env: dict[str, str] | None = None) -> dict[str, Any]:
    """What a process prints last."""
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        return {"failed": f"exit status {done.returncode}, see above"}
    return json.loads(done.stdout.splitlines()[-1])


def line(row: dict[str, Any]) -> str:
    """One row of the table; means of the iterations, since those of a GPU run ahead of each other."""
    start = f"{row['bundle']:<16} {row['way']:<9}"
    if "failed" in row:
        return f"{start} {row['failed']}"
    seconds = statistics.mean(whole for _, whole in row["marks"])
    waited = sum(wait for wait, _ in row["marks"]) / sum(whole for _, whole in row["marks"])
    memory = f"{row['memory_gib']:.1f} GiB" if row["memory_gib"] is not None else "-"
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    peak = next((tflops for name, tflops in PEAK_TFLOPS.items() if name in card), None)
    share = f"{row['tflop'] / seconds / peak:.1%} of the peak" if peak and row.get("tflop") else "-"
    parts = [f"loader {waited:.1%}"]
    parts += [f"{name} {row[key]:.1%}" for name, key in (("no kernel", "no_kernel"), ("augmentation", "augmentation"))
              if row.get(key) is not None]  # fmt: skip
    return f"{start} {1 / seconds:8.2f} iterations/s  {memory:>9}  {', '.join(parts)}  {share}"


if __name__ == "__main__":
    main()
