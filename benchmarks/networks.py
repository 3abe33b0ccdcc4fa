"""Time of a training step and number of parameters: our networks beside MONAI's UNet and DynUNet, in one run.

    python benchmarks/networks.py --rounds 5 --output networks.json

Every round runs each network once, so that a busy moment falls on all; the table holds medians over the rounds and
their ratio to the first row. Time is the process's own (CPU seconds of all its threads) on CPU, which other
programs change little, and wall time beside it; on a GPU wall time alone is meaningful.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from monai.networks.nets import DynUNet
from monai.networks.nets import UNet as MonaiUNet

from decathlete.files import atomic_write
from decathlete.networks import ResUNet, UNet

PATCH = (40, 56, 40)  # voxels, nnU-Net's patch for the hippocampus
CLASSES = 3
INSTANCE = ("INSTANCE", {"affine": True})
THIN = (8, 32, 64, 128)  # channels of the hippocampus bundle, whose network this is
HALF = (2, 2, 2, 1)  # finest level on the halved grid; the same total stride as MONAI's UNet with (2, 2, 2)


def networks(channels: tuple[int, ...]) -> dict[str, tuple[Callable[[], torch.nn.Module], bool]]:
    """Name to (builder, channels-last or not); the memory format is the faster one for the norm."""
    levels = len(channels)

    def ours(cls: type[UNet], **options) -> Callable[[], torch.nn.Module]:
        return lambda: cls(3, 1, CLASSES, channels=channels, **options)

    def monai(norm, units: int) -> Callable[[], torch.nn.Module]:
        return lambda: MonaiUNet(3, 1, CLASSES, channels, (2,) * (levels - 1), norm=norm, num_res_units=units)

    def dynunet(norm) -> Callable[[], torch.nn.Module]:
        strides = [1] + [2] * (levels - 1)
        return lambda: DynUNet(3, 1, CLASSES, [3] * levels, strides, strides[1:], filters=channels, norm_name=norm)

    return {
        "MONAI UNet, batch": (monai("BATCH", 0), True),
        "MONAI UNet, 2 residual units, batch": (monai("BATCH", 2), True),
        "MONAI UNet, 2 residual units, instance": (monai(INSTANCE, 2), False),
        "MONAI DynUNet, batch": (dynunet("BATCH"), True),
        "MONAI DynUNet, instance": (dynunet(INSTANCE), False),
        "UNet, batch": (ours(UNet, norm="BATCH"), True),
        "UNet, instance": (ours(UNet, norm=INSTANCE), False),
        "UNet, thin first level, batch (hippocampus bundle)": (
            lambda: UNet(3, 1, CLASSES, THIN, convs_per_stage=(1, 3, 3, 3), decoder_convs=1, norm="BATCH"),
            True,
        ),
        "UNet, strided first level, batch": (ours(UNet, norm="BATCH", strides=HALF), True),
        "UNet, strided first level, batch, nearest": (
            ours(UNet, norm="BATCH", strides=HALF, upsample="nearest"),
            True,
        ),
        "UNet, strided first level, batch, 1 convolution": (
            ours(UNet, norm="BATCH", strides=HALF, convs_per_stage=1),
            True,
        ),
        "UNet, strided first level, instance": (ours(UNet, norm=INSTANCE, strides=HALF), False),
        "ResUNet, strided first level, batch": (ours(ResUNet, norm="BATCH", strides=HALF), True),
    }


def training_step(network: torch.nn.Module, channels_last: bool, batch: int, device: str, bf16: bool) -> Callable:
    """Return a function that runs forward, cross entropy and backward once on random data."""
    image = torch.randn(batch, 1, *PATCH, device=device)
    label = torch.randint(0, CLASSES, (batch, *PATCH), device=device)
    network = network.to(device).train()
    if channels_last:
        network = network.to(memory_format=torch.channels_last_3d)
        image = image.contiguous(memory_format=torch.channels_last_3d)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            logits = network(image)
        torch.nn.functional.cross_entropy(logits.float(), label).backward()
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def measure(steps: dict[str, Callable], rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds of each step over ``rounds``, one of each in turn, after one round that is not counted."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for round_ in range(rounds + 1):
        for name, step in steps.items():
            wall, cpu = time.perf_counter(), time.process_time()
            step()
            if round_:
                times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        name: {"wall_s": statistics.median(w for w, _ in pairs), "cpu_s": statistics.median(c for _, c in pairs)}
        for name, pairs in times.items()
    }


def processor() -> str:
    """Return the CPU's name as the system states it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if "model name" in line), platform.processor())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--channels", type=int, nargs=4, default=(16, 32, 64, 128))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--fp32", action="store_true", help="no bf16 autocast")
    parser.add_argument("--output", type=Path, default=Path("networks.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    built = {name: (build(), last) for name, (build, last) in networks(tuple(options.channels)).items()}
    steps = {
        name: training_step(network, last, options.batch, options.device, not options.fp32)
        for name, (network, last) in built.items()
    }
    results = measure(steps, options.rounds)
    clock = "cpu_s" if options.device == "cpu" else "wall_s"
    base = next(iter(results.values()))[clock]
    rows = [
        {
            "network": name,
            "parameters": sum(p.numel() for p in network.parameters()),
            "channels_last": last,
            **results[name],
            "ratio": results[name][clock] / base,
        }
        for name, (network, last) in built.items()
    ]

    kind = "fp32" if options.fp32 else "bf16"
    print(f"forward + backward, batch {options.batch} of {PATCH}, channels {tuple(options.channels)}, {kind}")
    print(f"{'network':50s} {'memory':13s} {'parameters':>11s} {'wall ms':>8s} {'CPU ms':>8s} {'ratio':>6s}")
    for row in rows:
        memory = "channels-last" if row["channels_last"] else "contiguous"
        print(
            f"{row['network']:50s} {memory:13s} {row['parameters']:11,d} {1e3 * row['wall_s']:8.0f} "
            f"{1e3 * row['cpu_s']:8.0f} {row['ratio']:6.2f}"
        )
    report = {
        "patch": PATCH,
        "channels": list(options.channels),
        "batch": options.batch,
        "rounds": options.rounds,
        "precision": kind,
        "device": torch.cuda.get_device_name() if options.device == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "ratio_of": clock,
        "rows": rows,
    }
    with atomic_write(options.output) as path:
        Path(path).write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
