"""The left ventricle with one patient left out at a time, beside the best threshold, which uses the outer contour.

    python benchmarks/sunnybrook.py --output sunnybrook.json
    python benchmarks/sunnybrook.py --fold 2 --minutes 10

Trains the folds of ``bundles/sunnybrook`` that are asked for, each on the patients that it does not score, and scores
the final weights on every drawn contour: Dice, average perpendicular distance in mm, fraction above IoU 0.75, and the
challenge's metrics over good contours (below 5 mm). The thresholds are those of ``decathlete explore sunnybrook``, on
the frames with both contours; of all methods and ways to clean the mask, the one with the largest fraction above IoU
0.75 is in the table, chosen on the same frames. Where the fold of a patient whose frames cover a heartbeat was trained,
that patient's volumes by phase are predicted too. Finished trainings are kept, and an interrupted one resumes.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from hippocampus import machine  # the benchmark beside this one

from decathlete.bundle.checkpoints import FINAL
from decathlete.data import data_hash, dataset_folder, index_sunnybrook, sunnybrook_datalist
from decathlete.data.sunnybrook import patient_folder
from decathlete.errors import DataError
from decathlete.evaluation import cross_validate
from decathlete.evaluation.contour_metrics import (
    CONTOURS,
    GOOD_IOU,
    contour_table,
    read_contour_rows,
    score_contour,
    summarise_contours,
)
from decathlete.evaluation.cross_validation import fold_numbers
from decathlete.evaluation.heartbeat import drawn_areas, heart_function
from decathlete.explore.methods import iou, other_masks, postprocessed, threshold_masks
from decathlete.explore.study import read_pair
from decathlete.files import atomic_write
from decathlete.inference import predict
from decathlete.io.contours import CONTOUR_ORIGIN
from decathlete.io.dicom import read_dicom_frame

BUNDLE = "sunnybrook"


def main() -> None:
    """Train what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fold", default="0-4", help="such as 2 or 0-4 (default: all five)")
    parser.add_argument("--minutes", type=float, help="wall time of each training (default: the recipe's epochs)")
    parser.add_argument("--dataset_dir", default=dataset_folder(BUNDLE))
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark_sunnybrook"))
    parser.add_argument("--output", type=Path, default=Path("sunnybrook.json"))
    options = parser.parse_args()

    folds = fold_numbers(options.fold)
    summary = cross_validate(
        BUNDLE, options.fold, None, options.runs, minutes=options.minutes, dataset_dir=options.dataset_dir
    )
    rows, by_patient = [], {}
    for fold in folds:
        own = read_contour_rows(options.runs / f"fold_{fold}" / CONTOURS)
        rows += own
        by_patient |= {f"{own[0]['case'].partition('_')[0]} {name}": v for name, v in summarise_contours(own).items()}
    patients = {row["case"].partition("_")[0] for row in rows}
    tables = {f"network, {name}": v for name, v in summarise_contours(rows).items()} | thresholds(
        options.dataset_dir, patients, rows
    )
    print(f"\n{machine()}\n\n{contour_table(by_patient)}\n\n{contour_table(tables)}\n")
    beats = heartbeats(options, folds)
    for patient, found in beats.items():
        print(f"{patient}: {json.dumps(found)}")
    cases = sunnybrook_datalist(options.dataset_dir, part="contoured")
    document = {
        "machine": machine(),
        "data_sha256": data_hash(cases),
        "minutes": options.minutes,
        "training_s": summary.values["training_s"],
        "all": tables,
        "patients": by_patient,
        "heartbeats": beats,
    }
    with atomic_write(options.output) as part:
        part.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def thresholds(dataset_dir: str, patients: set[str], network: list[dict]) -> dict[str, dict[str, float]]:
    """Metrics of the best threshold method on the patients' frames with both contours, and the network's on these."""
    frames = [frame for frame in index_sunnybrook(dataset_dir).pairs if frame.patient in patients]
    if not frames:
        return {}
    pairs = [read_pair(frame) for frame in frames]
    masks: dict[str, list[Any]] = defaultdict(list)
    for pair in pairs:
        tried = {name: mask for name, (mask, _) in threshold_masks(pair.image, pair.outer).items()}
        for name, mask in (tried | other_masks(pair.image, pair.outer)).items():
            for kind, cleaned in postprocessed(mask).items():
                masks[f"{name}, {kind}"].append(cleaned)
    overlaps = {
        way: [iou(mask, pair.inner) for mask, pair in zip(found, pairs, strict=True)] for way, found in masks.items()
    }
    best = max(overlaps, key=lambda way: (np.mean(np.array(overlaps[way]) > GOOD_IOU), np.mean(overlaps[way])))
    names = {frame.case_id for frame in frames}
    same = [row for row in network if row["case"] in names and row["contour"] == "endocardium"]
    told = [
        {
            "contour": "endocardium",
            **score_contour(
                mask, pair.inner, pair.inner_points + CONTOUR_ORIGIN, read_dicom_frame(pair.frame.image).spacing
            ),
        }
        for mask, pair in zip(masks[best], pairs, strict=True)
    ]
    return {
        "network, endocardium, frames with both contours": summarise_contours(same)["endocardium"],
        f"{best}, given the epicardium": summarise_contours(told)["endocardium"],
    }


def heartbeats(options: argparse.Namespace, folds: list[int]) -> dict[str, Any]:
    """Volumes of each patient whose frames cover a heartbeat, by the weights that never saw that patient."""
    found = {}
    index = index_sunnybrook(options.dataset_dir)
    for fold in folds:
        for patient in {c["patient"] for c in sunnybrook_datalist(options.dataset_dir, fold, "validation")}:
            try:
                drawn = heart_function(drawn_areas(f for f in index.frames if f.patient == patient), patient)
            except DataError:  # slices without all phases
                continue
            run = options.runs / f"fold_{fold}"
            folder = run / "heartbeat"
            predict(BUNDLE, patient_folder(options.dataset_dir, patient), folder, [run / FINAL], overwrite="others")
            predicted = json.loads((folder / "heart_function.json").read_text(encoding="utf-8"))
            predicted.pop("drawn", None)
            found[patient] = {"predicted": predicted, "drawn": drawn.metrics()}
    return found


if __name__ == "__main__":
    main()
