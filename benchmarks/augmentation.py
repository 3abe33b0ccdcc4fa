"""Time to augment a batch: ``BatchAugment`` beside MONAI's dictionary transforms that change the same things.

    python benchmarks/augmentation.py --rounds 20 --output augmentation.json

Affine, mirror, scale, shift, noise and gamma on 8 random cases of 48x64x48 with three classes, to patches of 40x56x40.
The two take turns in one process; the table holds medians. MONAI's chain resamples image and label of each case by
itself, and a label by its nearest neighbour; ours resamples the batch at once, and the label as class probabilities.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from monai.data import list_data_collate, set_track_meta
from monai.transforms import (
    Compose,
    RandAdjustContrastd,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    RandScaleIntensityd,
    RandShiftIntensityd,
)

from decathlete.files import atomic_write
from decathlete.transforms import BatchAugment

MARGIN, PATCH, CLASSES, BATCH = (48, 64, 48), (40, 56, 40), 3, 8


def main() -> None:
    """Time both and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--output", type=Path, default=Path("augmentation.json"))
    options = parser.parse_args()
    set_track_meta(False)
    torch.manual_seed(0)
    both = ["image", "label"]
    chain = Compose(
        [
            RandAffined(
                both,
                spatial_size=PATCH,
                prob=0.8,
                rotate_range=[0.4] * 3,
                scale_range=[0.2] * 3,
                translate_range=[3, 4, 3],
                mode=("bilinear", "nearest"),
                padding_mode="zeros",
            ),
            RandFlipd(both, prob=0.5, spatial_axis=0),
            RandScaleIntensityd("image", factors=0.25, prob=1.0),
            RandShiftIntensityd("image", offsets=0.25, prob=1.0),
            RandGaussianNoised("image", prob=0.3, std=0.15),
            RandAdjustContrastd("image", prob=0.3, gamma=(0.74, 1.35)),
        ]
    )
    ours, nearest = (
        BatchAugment(PATCH, CLASSES, translation=[3.0, 4.0, 3.0], mirror_axes=[0], label_mode=mode)
        for mode in ("soft", "nearest")
    )
    cases = [
        {"image": torch.randn(1, *MARGIN), "label": torch.randint(0, CLASSES, (1, *MARGIN)).float()}
        for _ in range(BATCH)
    ]
    candidates = {
        "MONAI's dictionary transforms": lambda: list_data_collate([chain(dict(case)) for case in cases]),
        "BatchAugment, nearest labels": lambda: nearest(list_data_collate(cases)),
        "BatchAugment, soft labels": lambda: ours(list_data_collate(cases)),
    }
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for n in range(options.rounds + 1):
        for name, call in candidates.items():
            start = time.perf_counter()
            call()
            if n:  # the first round lays out memory
                times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    reference = medians["MONAI's dictionary transforms"]
    for name, seconds in medians.items():
        print(f"{name:<32} {1000 * seconds:7.1f} ms a batch of {BATCH}  ratio {seconds / reference:.2f}")
    with atomic_write(options.output) as part:
        part.write_text(json.dumps({"seconds": medians, "threads": torch.get_num_threads()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
