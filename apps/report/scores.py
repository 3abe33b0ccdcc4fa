"""Scores of label maps against references as one HTML file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from decathlete.drawing.pages import as_jpeg, dot_plot, write_page
from decathlete.errors import DecathleteError
from decathlete.evaluation.report import (
    METRIC_HEADS,
    METRICS,
    WORST_SHOWN,
    Summary,
    case_scores,
    shown,
    table_lines,
)
from decathlete.progress import ProgressBar

TEMPLATE = Path(__file__).with_name("templates") / "scores.html"
BEST_SHOWN = 3


def write_score_page(
    path: str | Path,
    bundle: str,
    summary: Summary,
    pairs: Mapping[str, tuple[Path, Path]],
    labels: Mapping[int, str],
    images: Mapping[str, Path] | None = None,
) -> Path:
    """Write the page about an evaluation, with pictures of the worst and best cases, and return its path.

    Args:
        path: the HTML file, written completely or not at all.
        bundle: name of the bundle.
        summary: of `decathlete.evaluation.evaluate`.
        pairs: case to its prediction and its reference.
        labels: value to name of the classes.
        images: case to the scan behind the outlines; a case without one is drawn on black.
    """
    values, images = summary.values, images or {}
    head, *lines = table_lines(values)
    ranked = sorted((v, c) for c, v in case_scores(summary.rows).items() if not math.isnan(v) and c in pairs)
    worst = ranked[:WORST_SHOWN]
    best = ranked[len(worst) :][::-1][:BEST_SHOWN]
    bar = ProgressBar([*worst, *best], desc="pictures", unit="case")
    drawn = {case: _picture(case, value, *pairs[case], labels, images.get(case)) for value, case in bar}
    facts = {name: values[name] for name in ("command", "versions", "prediction", "label") if name in values}
    hashes = {f"SHA-256 of {name}s": values.get(f"{name}_sha256") for name in ("prediction", "label")}
    return write_page(
        path,
        TEMPLATE,
        bundle=bundle,
        count=values["cases"],
        mean_dice=shown(summary.mean_dice, 4),
        head=head,
        lines=lines,
        plot=_dots(summary),
        failed=summary.failed.values(),
        missing=len(values.get("not_predicted") or []),
        groups=[
            (title, [drawn[case] for _, case in group])
            for title, group in (("Lowest Dice", worst), ("Highest Dice", best))
        ],
        without_scans=drawn and not set(drawn) & set(images),
        case_head=["case", "class", *METRIC_HEADS],
        case_rows=[[row["case"], row["class"], *(shown(row[m], 3) for m in METRICS)] for row in summary.rows],
        facts=facts | {name: text for name, text in hashes.items() if text},
    )


def _dots(summary: Summary) -> dict[str, Any]:
    classes = {name: found["dice"] for name, found in summary.values["classes"].items()}
    points = {name: {r["case"]: r["dice"] for r in summary.rows if r["class"] == name} for name in classes}
    return dot_plot(points, {name: (found["mean"], *found["ci95"]) for name, found in classes.items()})


def _picture(
    case: str, value: float, prediction: Path, reference: Path, labels: Mapping[int, str], image: Path | None
) -> dict[str, Any]:
    """JPEG and caption of a case; a message without a JPEG if it cannot be drawn."""
    from decathlete.drawing.planes import overlay_picture
    from decathlete.drawing.scan import class_names, load_scan
    from decathlete.io.nifti import read_nifti

    try:
        if image:
            scan = load_scan(image, reference, prediction)
        else:
            truth, predicted = (read_nifti(p, kind="label") for p in (reference, prediction))
            black = np.zeros(truth.array.shape, np.float32)
            scan = load_scan(black, truth.array, predicted.array, affine=truth.affine)
        drawn = overlay_picture(scan, class_names(labels, ()), case)
    except (DecathleteError, OSError) as error:
        return {"jpeg": None, "text": f"{case}: no picture. {error}"}
    return {"jpeg": as_jpeg(drawn), "text": f"{case}: Dice {value:.3f}. Outline: reference, fill: prediction"}
