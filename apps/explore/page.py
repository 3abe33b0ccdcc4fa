"""The study's page; all numbers come from the tables beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from decathlete.drawing import pages
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
from decathlete.io.contours import CONTOUR_ORIGIN

TEMPLATE = Path(__file__).with_name("templates") / "thresholds.html"
PLAIN, HULL = POSTPROCESSING[0], POSTPROCESSING[3]


def write_page(study: Study, shown: str, path: Path) -> Path:
    """Write the page beside its pictures, and return its path.

    Args:
        study: the results.
        shown: case of the montage.
        path: the HTML file.
    """
    count = len(study.pairs)
    ways = [(study.share(m, k), m, k) for m in study.methods if m != BEST for k in POSTPROCESSING]
    share, method, kind = max(ways, key=lambda way: way[0])
    as_source = next(r for r in study.dependence if r["origin"] == 0 and r["rasterizer"] == SOURCE_RASTERIZER)
    zero = int(np.abs(SHIFTS).argmin())
    return pages.write_page(
        path,
        TEMPLATE,
        of=lambda share: f"{round(share * count)} of {count} pairs = {share:.0%}",
        bar=GOOD_IOU,
        bar_dice=dice_of(GOOD_IOU),
        count=count,
        kinds=list(POSTPROCESSING),
        otsu={**_results(study, "Otsu"), "interval": interval(study.share("Otsu"), count)},
        ideal=_results(study, BEST),
        source_share=SOURCE_SHARE,
        as_source=as_source[PLAIN],
        area={
            name: np.mean([row[area_column(kind)] for row in study.pairs])
            for name, kind in (("plain", PLAIN), ("hull", HULL))
        },
        ways=len(ways),
        best={"share": share, "method": method, "kind": kind},
        near=int((np.abs(study.ious("Otsu") - GOOD_IOU) < 0.05).sum()),
        methods=[
            [
                method,
                *_percentages(study, method),
                f"{study.ious(method).mean():.3f}",
                f"{study.ious(method, HULL).mean():.3f}",
                f"{study.ious(method, HULL).min():.2f}",
            ]
            for method in sorted(study.methods, key=lambda m: -study.share(m, HULL))
        ],
        readings=_readings(study),
        bars=[[f"IoU above {bar}", *_percentages(study, "Otsu", bar)] for bar in (0.70, 0.75, 0.80)],
        shifts=", ".join("{} ({:g}, {:g})".format(who, *study.best_shift(who)) for who in study.steps),
        step={"highest": study.steps["all"].max(), "at_zero": study.steps["all"][zero, zero]},
        origin=CONTOUR_ORIGIN,
        shown=shown,
        subset=SUBSET,
        ks=_two_samples(study),
        pairs=[
            [
                row["case_id"],
                f"{row['blood_pixels']} / {row['muscle_pixels']}",
                f"{row['blood_mean']:.0f} ± {row['blood_std']:.0f}",
                f"{row['muscle_mean']:.0f} ± {row['muscle_std']:.0f}",
                f"{row['ks_statistic']:.2f}",
                in_words(row["ks_p"]),
                in_words(row["ks_p_50"]),
                f"{plain:.2f}",
                f"{hull:.2f}",
            ]
            for row, plain, hull in zip(study.pairs, study.ious("Otsu"), study.ious("Otsu", HULL), strict=True)
        ],
        data="\n".join(study.index.table()),
        left_out=[f for f in study.index.findings if f.severity != "note"],
        notes=[f for f in study.index.findings if f.severity == "note"],
    )


def _results(study: Study, method: str) -> dict[str, Any]:
    """Share above the bar, mean IoU and mean Dice of a method, plain and with the hull."""
    kinds = {"plain": PLAIN, "hull": HULL}
    return {
        **{name: study.share(method, kind) for name, kind in kinds.items()},
        "iou": {name: study.ious(method, kind).mean() for name, kind in kinds.items()},
        "dice": {name: np.mean([dice_of(v) for v in study.ious(method, kind)]) for name, kind in kinds.items()},
    }


def _percentages(study: Study, method: str, bar: float = GOOD_IOU) -> list[str]:
    return [f"{study.share(method, kind, bar):.0%}" for kind in POSTPROCESSING]


def _readings(study: Study) -> dict[str, Any]:
    """Otsu by the reading of the contours: a table, and its lowest and highest values."""
    plain, hull = (np.array([row[kind] for row in study.dependence]) for kind in (PLAIN, HULL))
    return {
        "rows": [
            [f"from {row['origin']:g}, {row['rasterizer']}", *(f"{row[kind]:.0%}" for kind in POSTPROCESSING)]
            for row in study.dependence
        ],
        **{
            name: (values.min(), values.max())
            for name, values in (("plain", plain), ("hull", hull), ("gains", 100 * (hull - plain)))
        },
    }


def _two_samples(study: Study) -> dict[str, Any]:
    statistics, some = (np.array([row[key] for row in study.pairs]) for key in ("ks_statistic", "ks_p_50"))
    plain = study.ious("Otsu")
    related = len(plain) >= 3 and statistics.std() > 0 and plain.std() > 0
    return {
        "median": np.median(statistics),
        "lowest": statistics.min(),
        "highest": statistics.max(),
        "largest_p": in_words(max(row["ks_p"] for row in study.pairs)),
        "p_of_some": in_words(float(np.median(some))),
        "correlation": np.corrcoef(statistics, plain)[0, 1] if related else None,
    }
