"""The study's page: its conclusion in numbers, all of them from the tables beside it."""

from __future__ import annotations

from html import escape
from pathlib import Path

import numpy as np

from decathlete.explore.methods import POSTPROCESSING, dice_of
from decathlete.explore.pictures import in_words
from decathlete.explore.results import (
    BEST,
    GOOD_IOU,
    SHIFTS,
    SOURCE_RASTERIZER,
    SOURCE_SHARE,
    SUBSET,
    Study,
    area_column,
    interval,
)
from decathlete.files import atomic_write
from decathlete.io.contours import CONTOUR_ORIGIN
from decathlete.report.parts import page, table


def write_page(study: Study, shown: str, path: Path) -> Path:
    """Write the page, with the pictures beside it, and return its path.

    Args:
        study: the results.
        shown: case of the montage.
        path: the HTML file.
    """
    parts = [
        "<h1>Can thresholds tell blood from muscle?</h1>",
        *_conclusion(study),
        *_shares(study),
        *_dependence(study),
        *_montage(shown),
        *_tests(study),
        *_data(study),
        "<footer>Written by <code>decathlete explore sunnybrook</code>. Not for clinical use.</footer>",
    ]
    with atomic_write(path) as part:
        part.write_text(page("Thresholds on the Sunnybrook pairs", parts), encoding="utf-8")
    return path


def _conclusion(study: Study) -> list[str]:
    count, hull_name = len(study.pairs), POSTPROCESSING[3]
    plain, hull = study.share("Otsu"), study.share("Otsu", hull_name)
    low, high = interval(plain, count)
    ways = [(study.share(m, k), m, k) for m in study.methods if m != BEST for k in POSTPROCESSING]
    best = max(ways, key=lambda way: way[0])
    as_source = next(r for r in study.dependence if r["origin"] == 0 and r["rasterizer"] == SOURCE_RASTERIZER)
    near = int((np.abs(study.ious("Otsu") - GOOD_IOU) < 0.05).sum())
    shares = {kind: float(np.mean([row[area_column(kind)] for row in study.pairs])) for kind in POSTPROCESSING}
    return [
        f"<p><b>Plain Otsu inside the outer contour is above IoU {GOOD_IOU} in {_of(plain, count)}</b> (95% interval "
        f"{low:.0%} to {high:.0%}, mean IoU {study.ious('Otsu').mean():.3f}), and <b>with the hull of the largest "
        f"component in {_of(hull, count)}</b> (mean IoU {study.ious('Otsu', hull_name).mean():.3f}). The source "
        f"reports about {SOURCE_SHARE:.0%}; with masks made as the source made them, plain Otsu comes to "
        f"{_of(as_source[POSTPROCESSING[0]], count)} here.</p>",
        f"<p>Papillary muscles are dark, but inside the contour by definition: Otsu's mask has {shares['plain']:.2f} "
        f"of the contour's area in the mean, and the hull of its largest component {shares[hull_name]:.2f}. The "
        f"highest share of all {len(ways)} ways tried is {_of(best[0], count)}, {escape(best[1])}, {best[2]}; picked "
        "from so many on the same pairs, it flatters.</p>",
        f"<p><b>What any threshold could do.</b> With the best threshold of each frame, chosen by looking at the "
        f"answer, {_of(study.share(BEST), count)} are above {GOOD_IOU} plain, at a mean Dice of "
        f"{_mean_dice(study, BEST):.3f}, and {study.share(BEST, hull_name):.0%} with the hull, at "
        f"{_mean_dice(study, BEST, hull_name):.3f}. Otsu comes to {_mean_dice(study, 'Otsu'):.3f} and "
        f"{_mean_dice(study, 'Otsu', hull_name):.3f}. So the share tells less about whether intensities separate "
        "blood from muscle than about how the threshold is found, and what is counted as cavity.</p>",
        "<p>All of these were told the outer contour, which nobody has for a new scan; a network gets the frame "
        "alone. The settings of Canny and of the flood were chosen on the five public patients.</p>",
        f"<p><b>Definition.</b> Share of frames with two sound contours whose intersection over union with "
        f"the mask of the inner contour is above {GOOD_IOU} (the same as Dice above {dice_of(GOOD_IOU):.3f}); light "
        f"is blood. {near} of {count} plain values lie within 0.05 of that bar, where small changes move "
        "the share.</p>",
    ]


def _shares(study: Study) -> list[str]:
    methods = sorted(study.methods, key=lambda m: -study.share(m, POSTPROCESSING[3]))
    head = ["method", *POSTPROCESSING, "mean IoU, plain", "mean IoU, hull of the largest", "worst"]
    rows = [
        [
            method,
            *(f"{study.share(method, kind):.0%}" for kind in POSTPROCESSING),
            f"{study.ious(method).mean():.3f}",
            f"{study.ious(method, POSTPROCESSING[3]).mean():.3f}",
            f"{study.ious(method, POSTPROCESSING[3]).min():.2f}",
        ]
        for method in methods
    ]
    return [
        f"<h2>Share of {len(study.pairs)} pairs above IoU {GOOD_IOU}</h2>",
        table(head, rows, "Best first by the hull of the largest component; all values in scores.csv and shares.csv"),
        "<p><img src='shares.png' alt='Share by method and postprocessing'></p>",
        "<p><img src='sizes.png' alt='IoU against the size of the cavity'></p>",
    ]


def _dependence(study: Study) -> list[str]:
    rows = [
        [f"from {row['origin']:g}, {row['rasterizer']}", *(f"{row[kind]:.0%}" for kind in POSTPROCESSING)]
        for row in study.dependence
    ]
    plain = [row[POSTPROCESSING[0]] for row in study.dependence]
    hull = [row[POSTPROCESSING[3]] for row in study.dependence]
    gains = [100 * (b - a) for a, b in zip(plain, hull, strict=True)]
    bars = [
        [f"IoU above {bar}", *(f"{study.share('Otsu', kind, bar):.0%}" for kind in POSTPROCESSING)]
        for bar in (0.70, 0.75, 0.80)
    ]
    who = ", ".join(f"{name} ({x:g}, {y:g})" for name, (x, y) in _best_shifts(study))
    zero = int(np.abs(SHIFTS).argmin())
    at, peak = study.steps["all"][zero, zero], study.steps["all"].max()
    return [
        "<h2>What the answer depends on</h2>",
        f"<p>The same thresholds on the same frames give {min(plain):.0%} to {max(plain):.0%} plain, and "
        f"{min(hull):.0%} to {max(hull):.0%} with the hull of the largest component, by how the contours are read: "
        "whether their coordinates count from 0 or from 1, and which pixels on the rim count as inside. The source's "
        "masks leave the rim out, the pixels that are part blood and part muscle, so they are easier to hit. The "
        f"hull, which gives the papillary muscles back to the cavity, adds {min(gains):.0f} to {max(gains):.0f} "
        "points.</p>",
        table(["Otsu, contours counted", *POSTPROCESSING], rows, f"Share above IoU {GOOD_IOU}"),
        table(["Otsu, another bar", *POSTPROCESSING], bars, "Share above other bars, contours as read here"),
        f"<p><b>From 0 or from 1?</b> Nothing documents it. Moved by every shift up to 3 pixels, the inner "
        f"contours lie on the largest step of brightness at {who}. The step there, over all contours, is {peak:.2f} "
        f"standard deviations, and {at:.2f} where they are taken from 0. Coordinates are read here as counted from "
        f"{CONTOUR_ORIGIN:g}.</p>",
        "<p><img src='origin.png' alt='Brightness step by shift'></p>",
    ]


def _montage(shown: str) -> list[str]:
    return [
        "<h2>All thresholds on one frame</h2>",
        f"<p><img src='thresholds.png' alt='Masks of all methods on {escape(shown)}'></p>",
    ]


def _tests(study: Study) -> list[str]:
    statistics = np.array([row["ks_statistic"] for row in study.pairs])
    p50 = np.array([row["ks_p_50"] for row in study.pairs])
    largest = max(row["ks_p"] for row in study.pairs)
    head = ["pair", "pixels", "blood", "muscle", "KS D", "p", f"p, {SUBSET} each", "Otsu", "hull of the largest"]
    plain, hull = study.ious("Otsu"), study.ious("Otsu", POSTPROCESSING[3])
    rows = [
        [
            row["case_id"],
            f"{row['blood_pixels']} / {row['muscle_pixels']}",
            f"{row['blood_mean']:.0f} ± {row['blood_std']:.0f}",
            f"{row['muscle_mean']:.0f} ± {row['muscle_std']:.0f}",
            f"{row['ks_statistic']:.2f}",
            in_words(row["ks_p"]),
            in_words(row["ks_p_50"]),
            f"{plain[n]:.2f}",
            f"{hull[n]:.2f}",
        ]
        for n, row in enumerate(study.pairs)
    ]
    pictures = [
        f"<p><img loading='lazy' src='pairs/{escape(row['case_id'])}.png' alt='{escape(row['case_id'])}'></p>"
        for row in study.pairs
    ]
    related = _correlation(statistics, plain)
    return [
        "<h2>Two samples: blood and muscle</h2>",
        f"<p>The Kolmogorov-Smirnov statistic D is the largest distance between the two distributions: "
        f"{np.median(statistics):.2f} in the median, {statistics.min():.2f} to {statistics.max():.2f}. Its p value "
        f"says only that the tissues differ, which nobody doubted: it is {in_words(largest)} at most over all pixels, "
        f"since there are hundreds of them, and {in_words(float(np.median(p50)))} in the median for {SUBSET} pixels "
        "of each. Neighbouring pixels are not independent either. D is the figure to look at: it says how far the two "
        f"can be told apart by a threshold{related}.</p>",
        table(head, rows, "IoU in the last two columns; more in pairs.csv"),
        "<h2>Densities</h2><div class='pairs'>",
        *pictures,
        "</div>",
    ]


def _data(study: Study) -> list[str]:
    lines = "\n".join(study.index.table())
    left_out = [f"<li>{escape(str(f))}</li>" for f in study.index.findings if f.severity != "note"]
    notes = [f"<li>{escape(str(f))}</li>" for f in study.index.findings if f.severity == "note"]
    return [
        "<h2>Data</h2>",
        f"<pre class='scroll'>{escape(lines)}</pre>",
        f"<p>Left out: {'nothing.' if not left_out else ''}</p><ul>{''.join(left_out)}</ul>",
        f"<details><summary>{len(notes)} notes</summary><ul>{''.join(notes)}</ul></details>",
    ]


def _best_shifts(study: Study) -> list[tuple[str, tuple[float, float]]]:
    return [(who, study.best_shift(who)) for who in study.steps]


def _mean_dice(study: Study, method: str, postprocessing: str = POSTPROCESSING[0]) -> float:
    return float(np.mean([dice_of(value) for value in study.ious(method, postprocessing)]))


def _correlation(statistics: np.ndarray, scores: np.ndarray) -> str:
    if len(scores) < 3 or statistics.std() == 0 or scores.std() == 0:
        return ""
    return f" (correlation with the IoU of plain Otsu: {np.corrcoef(statistics, scores)[0, 1]:.2f})"


def _of(share: float, count: int) -> str:
    return f"{round(share * count)} of {count} pairs = {share:.0%}"
