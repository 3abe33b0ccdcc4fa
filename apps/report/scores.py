"""Scores of label maps against references as one HTML file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from pathlib import Path

import numpy as np

from decathlete.errors import DecathleteError
from decathlete.evaluation.report import METRICS, WORST_SHOWN, Summary, case_scores, figure_lines, shown
from decathlete.progress import ProgressBar
from decathlete.report.parts import dots, facts, picture, table, write_page

BEST_SHOWN = 3


def write_score_page(
    path: str | Path,
    bundle: str,
    summary: Summary,
    pairs: Mapping[str, tuple[Path, Path]],
    labels: Mapping[int, str],
    images: Mapping[str, Path] | None = None,
) -> Path:
    """Write what an evaluation found, with pictures of the worst and best cases, and return the file's path.

    Args:
        path: the HTML file, written whole or not at all.
        bundle: name of the bundle.
        summary: of `decathlete.evaluation.evaluate`.
        pairs: case to its prediction and its reference.
        labels: value to name of the classes.
        images: case to the scan below the outlines; a case without one is drawn on black.
    """
    values = summary.values
    head, *lines = figure_lines(values)
    parts = [
        f"<h1>{escape(bundle)}: {values['cases']} cases scored</h1>",
        f"<p>Mean Dice <b>{shown(summary.mean_dice, 4)}</b> on each case's original grid. Not for clinical use.</p>",
        table(head, lines, "Means over cases; 95% interval of the Dice by bootstrap over cases"),
        "<h2>Each case</h2>",
        _points(summary),
        *_failed(summary),
        *_pictures(summary, pairs, labels, images or {}),
        _all(summary),
        *facts(
            {
                **{name: values[name] for name in ("command", "versions")},
                **{name: values[name] for name in ("prediction", "label") if name in values},
                **{f"SHA-256 of {name}s": values[f"{name}_sha256"] for name in ("prediction", "label")
                   if f"{name}_sha256" in values},
            }
        ),
    ]  # fmt: skip
    return write_page(path, f"{bundle}: scores", parts)


def _points(summary: Summary) -> str:
    classes = list(summary.values["classes"])
    points = {name: {r["case"]: r["dice"] for r in summary.rows if r["class"] == name} for name in classes}
    found = {name: summary.values["classes"][name]["dice"] for name in classes}
    bars = {name: (f["mean"], *f["ci95"]) for name, f in found.items()}
    return dots(points, bars, "Dice of each case; line: mean, bar: its 95% interval. Hold the pointer on a point "
                              "for its case.")  # fmt: skip


def _failed(summary: Summary) -> list[str]:
    left_out = summary.values.get("not_predicted") or []
    parts = [f"<p class='warn'>Not scored: {escape(message)}</p>" for message in summary.failed.values()]
    if left_out:
        parts.append(f"<p>{len(left_out)} references have no prediction.</p>")
    return parts


def _pictures(
    summary: Summary, pairs: Mapping[str, tuple[Path, Path]], labels: Mapping[int, str], images: Mapping[str, Path]
) -> list[str]:
    ranked = sorted(((v, c) for c, v in case_scores(summary.rows).items() if not math.isnan(v) and c in pairs))
    worst = ranked[:WORST_SHOWN]
    best = ranked[len(worst) :][::-1][:BEST_SHOWN]
    parts = []
    bar = ProgressBar([*worst, *best], desc="pictures", unit="case")
    drawn = {case: _drawn(case, value, *pairs[case], labels, images.get(case)) for value, case in bar}
    for title, group in (("Lowest Dice", worst), ("Highest Dice", best)):
        if group:
            parts += [f"<h2>{title}</h2>", *(drawn[case] for _, case in group)]
    if drawn and not set(drawn) & set(images):
        parts.append("<p>The scans themselves were not given: --image DIR shows them below the outlines.</p>")
    return parts


def _drawn(
    case: str, value: float, prediction: Path, reference: Path, labels: Mapping[int, str], image: Path | None
) -> str:
    from decathlete.io.nifti import read_nifti
    from decathlete.report.figures import planes_picture

    try:
        truth, predicted = (read_nifti(p, kind="label") for p in (reference, prediction))
        below, affine = (image, None) if image else (np.zeros(truth.array.shape, np.float32), truth.affine)
        maps = (reference, prediction) if image else (truth.array, predicted.array)
        drawn = planes_picture(below, *maps, affine=affine, labels=labels, title=case)
    except (DecathleteError, OSError) as error:
        return f"<p class='warn'>{escape(case)}: no picture. {escape(str(error))}</p>"
    return picture(drawn, f"{case}: Dice {value:.3f}. Outline: reference, fill: prediction")


def _all(summary: Summary) -> str:
    rows = [[row["case"], row["class"], *(shown(row[metric], 3) for metric in METRICS)] for row in summary.rows]
    head = ["case", "class", "Dice", "IoU", "NSD 1 mm", "HD95 mm", "volume ml", "reference ml"]
    return f"<details><summary>All cases</summary>{table(head, rows, 'also in metrics.csv')}</details>"
