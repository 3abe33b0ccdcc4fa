"""Scores of many cases: rows, a summary with intervals, and the two files ``metrics.csv`` and ``summary.json``."""

from __future__ import annotations

import csv
import json
import math
import platform
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decathlete import __version__
from decathlete.bundle.labels import Scored
from decathlete.errors import DataError
from decathlete.evaluation.metrics import Mask, score
from decathlete.files import atomic_write
from decathlete.names import read_text

METRICS = ("dice", "iou", "nsd_1mm", "hd95_mm", "volume_ml", "reference_volume_ml")
COLUMNS = ("case", "class", *METRICS)
RESAMPLES = 10_000
SEED = 0
WORST_SHOWN = 5
DEFINITIONS = {
    "grid": "each case's original grid, that of its reference file",
    "dice": "2 |P and R| / (|P| + |R|)",
    "iou": "|P and R| / |P or R|",
    "nsd_1mm": "fraction of the surface voxels of P and R within 1 mm of the other surface; a surface voxel has a face "
    "neighbour outside the mask, or beyond the image",
    "hd95_mm": "larger of the two directed 95th percentiles of surface voxel distances in mm, linearly interpolated",
    "volume_ml": "voxels times voxel volume / 1000",
    "empty": "class in neither P nor R: missing, left out of every statistic; in only one: dice, iou and nsd 0, hd95 "
    "infinite",
    "infinite": "written as null; mean, std and interval are then null, median includes it, mean_of_finite does not",
    "mean": "of a class: mean over cases; of all classes: mean of the class means, with median and std over the cases' "
    "means of their classes",
    "ci95": f"percentile bootstrap of the mean over cases, {RESAMPLES} resamples, seed {SEED}; null for one case",
}

METRIC_HEADS = ("Dice", "IoU", "NSD 1 mm", "HD95 mm", "volume ml", "reference ml")  # of `METRICS` in tables

Row = dict[str, Any]


@dataclass
class Summary:
    """The results of an evaluation.

    Attributes:
        rows: one per case and class: ``case``, ``class`` and `METRICS` (and ``fold`` after a cross-validation).
        values: the content of ``summary.json``, with NaN and inf as floats.
        failed: case to message for those that could not be scored.
        metrics_csv, summary_json: the files.
    """

    rows: list[Row]
    values: dict[str, Any]
    metrics_csv: Path
    summary_json: Path
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def mean_dice(self) -> float:
        """Mean Dice: over the cases of each class, then over the classes."""
        return self.values["mean"]["dice"]["mean"]

    def metrics(self) -> dict[str, float]:
        """Mean Dice, and that of each class, under the names that MONAI's evaluators give to their metrics."""
        of_classes = {f"val_{name}_mean_dice": one["dice"]["mean"] for name, one in self.values["classes"].items()}
        return {"val_mean_dice": self.mean_dice, **of_classes}

    def table(self) -> str:
        """The results as aligned plain text."""
        return table(self.values)


def score_case(
    case: str,
    pred: NDArray[Any],
    label: NDArray[Any],
    spacing: Sequence[float],
    labels: Mapping[int, str],
    scored: Scored | None = None,
) -> list[Row]:
    """One row per class or region of two label maps (X, Y, Z) on one grid with ``spacing`` in mm."""
    rows = []
    for name, ours, theirs in judged_masks(pred, label, labels, scored or Scored()):
        found = score(ours, theirs, spacing)
        found["nsd_1mm"] = found.pop("nsd")
        rows.append({"case": case, "class": name} | {metric: found[metric] for metric in METRICS})
    return rows


def judged_masks(
    pred: NDArray[Any], label: NDArray[Any], labels: Mapping[int, str], scored: Scored
) -> Iterator[tuple[str, Mask, Mask]]:
    """Name and two masks of each class or region in two label maps, without the voxels to ignore."""
    if scored.ignore:
        judged = ~np.isin(label, scored.ignore)
        pred, label = pred * judged, label * judged
    for name, values in (scored.regions or {name: (value,) for value, name in labels.items()}).items():
        yield name, np.isin(pred, values), np.isin(label, values)


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Statistics per class and over classes, and the worst cases; see `DEFINITIONS`."""
    cases, classes = (list(dict.fromkeys(row[key] for row in rows)) for key in ("case", "class"))
    scores = {metric: _matrix(rows, cases, classes, metric) for metric in METRICS}
    weights = _resamples(len(cases))
    per_class = {
        name: {metric: _statistics(scores[metric][:, [n]], weights) for metric in METRICS}
        for n, name in enumerate(classes)
    }
    of_cases = case_scores(rows)
    worst = sorted((c for c in cases if not math.isnan(of_cases[c])), key=of_cases.__getitem__)[:WORST_SHOWN]
    return {
        "cases": len(cases),
        "mean": {metric: _statistics(scores[metric], weights) for metric in METRICS},
        "classes": per_class,
        "worst_cases": [{"case": case, "dice": of_cases[case]} for case in worst],
    }


def case_scores(rows: Sequence[Row], metric: str = "dice") -> dict[str, float]:
    """Case to the mean over its classes; NaN if no class has a value."""
    cases, classes = (list(dict.fromkeys(row[key] for row in rows)) for key in ("case", "class"))
    means = _mean_of_known(_matrix(rows, cases, classes, metric), axis=1)
    return dict(zip(cases, map(float, means), strict=True))


def write_report(
    rows: Sequence[Row], output: str | Path, failed: Mapping[str, str] | None = None, **facts: Any
) -> Summary:
    """Write ``metrics.csv`` and ``summary.json`` into a folder, each completely or not at all.

    Args:
        rows: from `score_case`; a ``fold`` in them becomes the first column and is summarised too.
        output: the folder.
        failed: case to message.
        facts: other entries of the summary, such as the hash of the data.
    """
    output = Path(output)
    rows = list(rows)
    values = summarise(rows)
    folds = sorted({row["fold"] for row in rows if "fold" in row})
    if folds:
        values["folds"] = {str(fold): _means([row for row in rows if row["fold"] == fold]) for fold in folds}
    values |= {"failed": dict(failed or {}), **facts, "definitions": DEFINITIONS, **provenance()}
    files = output / "metrics.csv", output / "summary.json"
    write_rows(rows, files[0])
    with atomic_write(files[1]) as part:
        part.write_text(json.dumps(_plain(values), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return Summary(rows, values, *files, failed=dict(failed or {}))


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Write rows as CSV; a missing score is an empty field, an infinite one is ``inf``."""
    columns = (("fold",) if rows and "fold" in rows[0] else ()) + COLUMNS
    with atomic_write(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_field(row[column]) for column in columns] for row in rows)


def read_rows(path: str | Path) -> list[Row]:
    """Rows of a ``metrics.csv``.

    Raises:
        DataError: no such file, or a table with other columns.
    """

    def numbers(row: Row) -> Row:
        row |= {metric: float(row[metric] or "nan") for metric in METRICS}
        return row | {"fold": int(row["fold"])} if "fold" in row else row

    return read_table(path, COLUMNS, numbers)


def read_table(path: str | Path, columns: Sequence[str], convert: Callable[[Row], Row]) -> list[Row]:
    """Rows of a CSV file with a header, each converted from text by ``convert``.

    Raises:
        DataError: no such file, or ``convert`` fails on a row.
    """
    path = Path(path)
    try:
        return [convert(row) for row in csv.DictReader(StringIO(read_text(path), newline=""))]
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        found = f"{type(error).__name__}: {error}"
        raise DataError(path, f"expected a CSV file with the columns {', '.join(columns)}", found) from error


def table(values: Mapping[str, Any]) -> str:
    """Aligned text: a line per class and their mean, with the interval of the Dice; ``-``: not known.

    Args:
        values: of a `Summary`, or read from ``summary.json``.
    """
    text = aligned(table_lines(values))
    if "folds" in values:
        folds = [(n, shown(f["dice"], 4), str(f["cases"])) for n, f in values["folds"].items()]
        text += "\n\n" + aligned([("fold", "Dice", "cases"), *folds])
    worst = ", ".join(f"{c['case']} {shown(c['dice'], 3)}" for c in values["worst_cases"])
    return f"{text}\n\nlowest Dice: {worst}" if worst else text


def table_lines(values: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Cells of `table`: heads, a line per class, and the mean of several classes."""
    lines: list[tuple[str, ...]] = [("class", "Dice", "95% interval", *METRIC_HEADS[1:], "cases")]
    groups = dict(values["classes"])
    if len(groups) > 1:
        groups["mean"] = values["mean"]
    for name, found in groups.items():
        low, high = (shown(value, 4) for value in found["dice"]["ci95"])
        interval = "-" if low == "-" else f"{low} to {high}"
        means = [shown(found[m]["mean"], 2 if m.endswith(("_mm", "_ml")) else 4) for m in METRICS[1:]]
        lines.append((name, shown(found["dice"]["mean"], 4), interval, *means, str(found["dice"]["n"])))
    return lines


def provenance() -> dict[str, Any]:
    """Versions of the software that computed the scores, and the command line."""
    versions = {"decathlete": __version__, "python": platform.python_version()}
    for package in ("numpy", "scipy", "nibabel", "monai", "torch"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {"versions": versions, "command": shlex.join(sys.argv)}


def _matrix(rows: Sequence[Row], cases: list[str], classes: list[str], metric: str) -> NDArray[np.float64]:
    matrix = np.full((len(cases), len(classes)), np.nan)
    place = {case: n for n, case in enumerate(cases)}, {name: n for n, name in enumerate(classes)}
    for row in rows:
        matrix[place[0][row["case"]], place[1][row["class"]]] = row[metric]
    return matrix


def _resamples(cases: int) -> NDArray[np.float64]:
    """How often each case is in each resample, shape (resamples, cases)."""
    rng = np.random.default_rng(SEED)
    return rng.multinomial(cases, np.full(cases, 1 / cases), size=RESAMPLES).astype(np.float64)


def _statistics(scores: NDArray[np.float64], weights: NDArray[np.float64]) -> dict[str, Any]:
    """Statistics of a metric, shape (cases, classes), over its cases."""
    of_cases = scores[:, 0] if scores.shape[1] == 1 else _mean_of_known(scores, axis=1)
    known = of_cases[~np.isnan(of_cases)]
    infinite = np.isinf(scores).any(axis=1)
    result: dict[str, Any] = {
        "mean": float(_mean_of_known(_mean_of_known(scores, axis=0))),
        "median": float(np.median(known)) if known.size else math.nan,
        "std": math.nan,
        "ci95": [math.nan, math.nan],
        "n": int(known.size),
        "n_missing": int(np.isnan(scores).any(axis=1).sum()),
    }
    if infinite.any():
        finite = np.where(np.isinf(scores), np.nan, scores)
        mean_of_finite = float(_mean_of_known(_mean_of_known(finite, axis=0)))
        return result | {"mean": math.inf, "n_infinite": int(infinite.sum()), "mean_of_finite": mean_of_finite}
    if known.size:
        present = ~np.isnan(scores)
        with np.errstate(invalid="ignore"):  # a resample may have no case with the class
            means = (weights @ np.where(present, scores, 0)) / (weights @ present)
        resampled = _mean_of_known(means, axis=1)
        result["std"] = float(np.std(known))
        if known.size > 1:  # one case says nothing about the spread of others
            result["ci95"] = [float(v) for v in np.nanpercentile(resampled, (2.5, 97.5))]
    return result


def _mean_of_known(values: NDArray[np.float64], axis: int | None = None) -> NDArray[np.float64]:
    """Mean without NaN; NaN if there is no other value, where numpy's ``nanmean`` would warn."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(axis=axis) / known.sum(axis=axis)


def _means(rows: Sequence[Row]) -> dict[str, Any]:
    cases, classes = (list(dict.fromkeys(row[key] for row in rows)) for key in ("case", "class"))
    means = {m: float(_mean_of_known(_mean_of_known(_matrix(rows, cases, classes, m), axis=0))) for m in METRICS}
    return {"cases": len(cases), **means}


def _field(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.9g}"
    return str(value)


def shown(value: float | None, digits: int) -> str:
    """A number with that many decimals; ``-``: not known."""
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def aligned(lines: Iterable[Sequence[str]]) -> str:
    """Lines of cells as columns: the first aligned to the left, the others to the right."""
    lines = list(lines)
    widths = [max(len(line[n]) for line in lines) for n in range(len(lines[0]))]
    return "\n".join(
        "  ".join(w.ljust(n) if i == 0 else w.rjust(n) for i, (w, n) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    )


def _plain(value: Any) -> Any:
    """Values for JSON: NaN and inf become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value
