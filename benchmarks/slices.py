"""The slice store beside a file per slice and beside NIfTI: reading, training throughput, memory; in one run.

    python benchmarks/slices.py --output slices.json

Reading: one random slice with its label as tensors, files in the system's cache; medians over the rounds, each of
which runs every way. Training: slices a second through data, augmentation and a step of the network, on phantoms of
the heart. The sources' way is a ``.npy`` file per slice, a dataset that turns, scales and bends slice by slice with
SciPy, and a plain U-Net in float32; here affine and elastic motion are one resampling, which is less work than two.
Its data under our network, and both data sides without a network, show where the differences come from. Memory: the
peak of a process that builds the store and trains a short epoch on 4 and on 12 volumes of 512x512x250; all volumes are
one file under many names, which the store cannot know.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from hippocampus import machine  # the benchmark beside this one
from monai.losses import DiceLoss
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    NormalizeIntensityd,
    Orientationd,
    ResizeWithPadOrCropd,
    ScaleIntensityd,
)
from scipy import ndimage
from torch import nn
from torch.utils.data import DataLoader, Dataset

from decathlete.data import ForegroundSampler, SliceDataset, datalist, make_phantoms
from decathlete.files import atomic_write
from decathlete.machine import peak_memory_gib
from decathlete.networks import UNet
from decathlete.training import Muon, autocast
from decathlete.transforms import BatchAugment, CropMargind

KEYS = ["image", "label"]
BATCH = 8  # the sources'
PLANE = 256  # voxels along a slice's edges
ROTATION, SCALE, SHIFT, BEND = np.pi / 4, 0.15, 16, 3.0  # radians, fraction, voxels, voxels


def chain(plane: int) -> Compose:
    """Deterministic transforms of the heart, all slices of one size."""
    return Compose(
        [
            LoadImaged("image", reader="decathlete.transforms.NiftiReader"),
            LoadImaged("label", reader="decathlete.transforms.NiftiReader", kind="label"),
            EnsureChannelFirstd(KEYS),
            Orientationd(KEYS, axcodes="RAS", labels=None),
            CropMargind(KEYS, [32, 32, 0], [plane, plane, 0]),
            NormalizeIntensityd("image"),
            ScaleIntensityd("image"),
            ResizeWithPadOrCropd(KEYS, [plane, plane, -1]),
        ]
    )


class FilePerSlice(Dataset):
    """The sources' way: ``.npy`` files of single slices, each moved on its own."""

    def __init__(self, store: SliceDataset, folder: Path, moves: bool = True) -> None:
        self.folder, self.length, self.moves = folder, len(store), moves
        folder.mkdir(parents=True)
        for number in range(len(store)):
            item = store[number]
            np.save(folder / f"{number}_image.npy", item["image"].numpy())
            np.save(folder / f"{number}_label.npy", item["label"].numpy().astype(np.uint8))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        image = np.load(self.folder / f"{number}_image.npy")
        label = np.load(self.folder / f"{number}_label.npy")
        if self.moves:
            image, label = move(image, label)
        return {"image": torch.from_numpy(image), "label": torch.from_numpy(label).float()}


def move(image: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turn, scale, shift and bend a slice, (C, U, V), and its label alike."""
    shape = image.shape[1:]
    angle = np.random.uniform(-ROTATION, ROTATION)
    size = np.random.uniform(1 - SCALE, 1 + SCALE)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / size
    middle = (np.array(shape) - 1) / 2
    where = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")) - middle[:, None, None]
    where = np.tensordot(turn, where, 1) + (middle + np.random.uniform(-SHIFT, SHIFT, 2))[:, None, None]
    for axis in range(2):
        bend = ndimage.gaussian_filter(np.random.uniform(-1, 1, shape), 8)
        where[axis] += bend * BEND / bend.std()
    moved = np.stack([ndimage.map_coordinates(channel, where, order=1) for channel in image])
    return moved, np.stack([ndimage.map_coordinates(channel, where, order=0) for channel in label])


class PlainUNet(nn.Module):
    """The sources' network: two convolutions a level, 64-128-256-512, max pooling, bilinear up, no norm."""

    def __init__(self, channels: tuple[int, ...] = (64, 128, 256, 512)) -> None:
        super().__init__()
        pairs = list(itertools.pairwise(channels))
        self.down = nn.ModuleList([_twice(1, channels[0]), *(_twice(a, b) for a, b in pairs)])
        self.up = nn.ModuleList([_twice(a + b, a) for a, b in reversed(pairs)])
        self.head = nn.Conv2d(channels[0], 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores (B, 1, U, V)."""
        levels = []
        for number, block in enumerate(self.down):
            x = block(nn.functional.max_pool2d(x, 2) if number else x)
            levels.append(x)
        for block, skip in zip(self.up, reversed(levels[:-1]), strict=True):
            x = nn.functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
            x = block(torch.cat([skip, x], 1))
        return self.head(x)


def _twice(before: int, after: int) -> nn.Sequential:
    layers = [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.Conv2d(after, after, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers)


def endless(loader: DataLoader) -> Iterator[dict[str, Any]]:
    """Batches, epoch after epoch."""
    while True:
        yield from loader


def store_batches(store: SliceDataset, plane: int, workers: int = 0) -> Iterator[dict[str, Any]]:
    """Our data side: the store, the sampler, and augmentation of whole batches."""
    augment = BatchAugment(
        [plane, plane], 2, prob=0.9, rotation=float(ROTATION), scale=SCALE, translation=SHIFT, elastic=BEND,
        intensity_scale=0.2, intensity_shift=0.1, noise=0.03)  # fmt: skip
    loader = DataLoader(store, BATCH, sampler=ForegroundSampler(store), num_workers=workers, drop_last=True)
    return map(augment, endless(loader))


def file_batches(files: FilePerSlice, workers: int) -> Iterator[dict[str, Any]]:
    """The sources' data side."""
    keep = workers > 0
    return endless(DataLoader(files, BATCH, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=keep))


def our_step() -> Callable[[dict[str, Any]], None]:
    """A training step of the heart's network: bfloat16, Dice."""
    network = UNet(2, 1, 2, channels=[16, 32, 64, 128, 256], norm="BATCH", channels_last=True).train()
    optimizer = Muon(network.parameters(), lr=0.001, matrix_lr=0.01)
    soft, hard = (DiceLoss(softmax=True, include_background=False, batch=True, to_onehot_y=hot) for hot in (0, 1))
    device = torch.device("cpu")

    def step(batch: dict[str, Any]) -> None:
        with autocast(device, True):
            logits = network(batch["image"].contiguous(memory_format=torch.channels_last))
        loss = (soft if batch["label"].shape[1] == 2 else hard)(logits.float(), batch["label"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def sources_step() -> Callable[[dict[str, Any]], None]:
    """A training step of the sources' network: float32, Dice on a sigmoid, Adam."""
    network = PlainUNet().train()
    optimizer = torch.optim.Adam(network.parameters(), 1e-4)
    loss_function = DiceLoss(sigmoid=True, batch=True)

    def step(batch: dict[str, Any]) -> None:
        loss = loss_function(network(batch["image"]), batch["label"][:, -1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def rate(batches: Iterator[dict[str, Any]], step: Callable[[dict[str, Any]], None], seconds: float) -> float:
    """Slices a second over ``seconds``, two batches at least."""
    done, start = 0, time.perf_counter()
    while done < 2 or time.perf_counter() - start < seconds:
        step(next(batches))
        done += 1
    return BATCH * done / (time.perf_counter() - start)


def throughput(store: SliceDataset, files: FilePerSlice, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Slices a second of each way, median over the rounds, with the ratio to the sources'."""
    plane = store[0]["image"].shape[-1]
    ours, theirs = our_step(), sources_step()
    workers = options.workers

    def nothing(batch: dict[str, Any]) -> None:
        """No network."""

    ways = {
        "data: file per slice, 0 workers": (file_batches(files, 0), nothing, 0),
        f"data: file per slice, {workers} workers": (file_batches(files, workers), nothing, 0),
        "data: store, 0 workers": (store_batches(store, plane), nothing, 0),
        "training: sources' data, 0 workers, and network": (file_batches(files, 0), theirs, 3),
        f"training: sources' data, {workers} workers, and network": (file_batches(files, workers), theirs, 3),
        f"training: sources' data, {workers} workers, our network": (file_batches(files, workers), ours, 3),
        "training: store and our network": (store_batches(store, plane), ours, 3),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(options.rounds + 1):
        for name, (batches, step, _) in ways.items():
            measured = rate(batches, step, options.seconds if round_ else 0)  # the first is not counted
            if round_:
                rates[name].append(measured)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    best: dict[int, float] = {}  # the sources' faster way, of data and of trainings
    for number, name in enumerate(ways):
        if number in (0, 1, 3, 4):
            best[ways[name][2]] = max(best.get(ways[name][2], 0.0), medians[name])
    return [{"way": name, "slices_per_s": medians[name], "ratio": medians[name] / best[ways[name][2]]} for name in ways]


def reading(store: SliceDataset, files: FilePerSlice, rounds: int, slices: int) -> list[dict[str, Any]]:
    """Microseconds to read one random slice with its label, median over the rounds, and the ratio to the store."""
    order = np.random.default_rng(0).integers(0, len(store), (rounds + 1, slices))

    def nifti(number: int) -> dict[str, torch.Tensor]:
        case, z = store.data[store.cases[number]], int(store.slices[number])
        return {
            key: torch.from_numpy(np.asarray(nib.load(case[key]).dataobj[..., z], np.float32))  # type: ignore[attr-defined]
            for key in KEYS
        }

    ways: dict[str, tuple[Callable[[int], Any], int]] = {
        "store": (store.__getitem__, slices),
        "file per slice": (files.__getitem__, slices),
        "NIfTI, compressed": (nifti, 3),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for round_, numbers in enumerate(order):
        for name, (read, count) in ways.items():
            start = time.perf_counter()
            for number in numbers[:count]:
                read(int(number))
            if round_:
                times[name].append((time.perf_counter() - start) / count * 1e6)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return [{"way": name, "us": value, "ratio": value / medians["store"]} for name, value in medians.items()]


def memory(volumes: int, shape: tuple[int, ...], folder: Path, steps: int) -> dict[str, float]:
    """Peak memory in GiB of a process that builds a store of large volumes and trains."""
    data, cache = folder / f"volumes_{volumes}", folder / f"cache_{volumes}"
    data.mkdir()
    for number in range(volumes):
        for key in KEYS:
            os.link(folder / f"{key}.nii.gz", data / f"{number}_{key}.nii.gz")
    command = [sys.executable, __file__, "--child", str(data), str(cache), str(steps)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return {"volumes": volumes, **json.loads(done.stdout)}


def large_volume(shape: tuple[int, ...], folder: Path) -> None:
    """A noisy CT-like volume with a ball as its label."""
    rng = np.random.default_rng(0)
    axes = [np.arange(n, dtype=np.float32) - n / 2 for n in shape]
    ball = (sum(a.reshape([-1 if i == k else 1 for i in range(3)]) ** 2 for k, a in enumerate(axes))) < (
        min(shape) / 5
    ) ** 2
    noise = rng.integers(-20, 20, 1 << 20).astype(np.int16)
    image = np.resize(noise, shape) + ball.astype(np.int16) * np.int16(60)
    for key, array in (("image", image), ("label", ball.astype(np.uint8))):
        nib.save(nib.Nifti1Image(array, np.diag([0.78, 0.78, 1.25, 1])), folder / f"{key}.nii.gz")


def child(data: Path, cache: Path, steps: int) -> None:
    """Build and train; print the peaks."""
    cases = [
        {key: str(data / f"{number}_{key}.nii.gz") for key in KEYS} | {"case_id": str(number)}
        for number in range(len(list(data.iterdir())) // len(KEYS))
    ]
    start = time.perf_counter()
    large = Compose((*chain(PLANE).transforms[:4], NormalizeIntensityd("image"), ScaleIntensityd("image")))
    store = SliceDataset(cases, large, cache_dir=cache, progress=False)
    built = time.perf_counter() - start
    after_build = peak_memory_gib()
    step = our_step()
    for batch in itertools.islice(store_batches(store, PLANE), steps):
        step(batch)
    peak = peak_memory_gib()
    size = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    print(json.dumps({"build_s": built, "store_gib": size / 2**30,
                      "peak_after_build_gib": after_build, "peak_gib": peak}))  # fmt: skip


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        return child(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="a smoke test with tiny volumes and few rounds, not a measurement"
    )
    parser.add_argument("--volumes", type=int, default=6, help="phantoms to read and train on")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=15, help="of each way and round of training")
    parser.add_argument("--workers", type=int, default=2, help="of the sources' data loader")
    parser.add_argument(
        "--large", type=int, nargs="+", default=[4, 12], help="large volumes to train on for the memory"
    )
    parser.add_argument("--steps", type=int, default=40, help="of the training whose memory is measured")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=Path("slices.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    shape, large, plane = (320, 320, 115), (512, 512, 250), PLANE
    if options.quick:
        options.volumes, options.rounds, options.seconds, options.steps = 2, 1, 0.0, 2
        shape, large, plane = (80, 80, 20), (128, 128, 40), 64

    report: dict[str, Any] = {"machine": machine(), "threads": torch.get_num_threads()}
    report |= {"shape": shape, "plane": plane, "batch": BATCH, "rounds": options.rounds, "quick": options.quick}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases = datalist(make_phantoms("heart", options.volumes, folder, shape=shape), part="all", task="heart")
        start = time.perf_counter()
        store = SliceDataset(cases, chain(plane), num_classes=2, cache_dir=folder / "cache")
        report["build_s_per_volume"] = (time.perf_counter() - start) / len(cases)
        still = FilePerSlice(store, folder / "still", moves=False)
        report["reading"] = reading(store, still, options.rounds, 20 if options.quick else 500)
        print(f"reading a slice of {plane}x{plane} and its label\n{'way':55s} {'us':>9s} {'ratio':>7s}")
        for row in report["reading"]:
            print(f"{row['way']:55s} {row['us']:9.1f} {row['ratio']:7.2f}")

        report["training"] = throughput(store, FilePerSlice(store, folder / "files"), options)
        print(f"\n{'way':55s} {'slices/s':>9s} {'ratio':>7s}")
        for row in report["training"]:
            print(f"{row['way']:55s} {row['slices_per_s']:9.1f} {row['ratio']:7.2f}")

        large_volume(large, folder)
        report["large_shape"], report["memory"] = large, []
        print(f"\n{'volumes of ' + 'x'.join(map(str, large)):55s} {'GiB':>9s} {'build s':>7s}")
        for volumes in options.large:
            report["memory"].append(memory(volumes, large, folder, options.steps))
            print(f"{volumes:<55d} {report['memory'][-1]['peak_gib']:9.2f} {report['memory'][-1]['build_s']:7.1f}")
    with atomic_write(options.output) as path:
        path.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
