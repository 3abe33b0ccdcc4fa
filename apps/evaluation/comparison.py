"""The Dice of two methods on the same cases, side by side."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from decathlete.errors import DataError, listed
from decathlete.evaluation.report import RESAMPLES, SEED, aligned, read_rows
from decathlete.names import read_text


@dataclass(frozen=True)
class Comparison:
    """The cases that are in both tables.

    Attributes:
        rows: per case and class: ``case``, ``class``, ``dice``, ``reference``, ``difference`` (ours minus reference).
        groups: per class, and ``mean`` over each case's classes: ``dice``, ``reference``, ``difference``, ``ci95`` of
            the mean difference (paired bootstrap over cases), ``better`` and ``worse`` (numbers of cases), ``cases``.
        unmatched: our cases that are not in the reference table.
    """

    rows: list[dict[str, Any]]
    groups: dict[str, dict[str, Any]]
    unmatched: list[str]

    def table(self, per_case: bool = True) -> str:
        """Aligned text: the groups, then each case, sorted by the difference from the largest loss on."""
        heads = ("class", "Dice", "reference", "difference", "95% interval", "better", "worse", "cases")
        text = aligned([heads, *(paired_cells(name, group) for name, group in self.groups.items())])
        if per_case:
            worst_first = sorted(self.rows, key=lambda row: row["difference"])
            text += "\n\n" + aligned(
                [("case", "class", "Dice", "reference", "difference")]
                + [
                    (r["case"], r["class"], f"{r['dice']:.4f}", f"{r['reference']:.4f}", f"{r['difference']:+.4f}")
                    for r in worst_first
                ]
            )
        return text


def compare(metrics_csv: str | Path, reference_csv: str | Path, labels: Mapping[int, str] | None = None) -> Comparison:
    """Compare the Dice of a ``metrics.csv`` case by case with a published table.

    Args:
        metrics_csv: our scores.
        reference_csv: columns ``case``, ``label``, ``dice``, others ignored; ``label`` is a class name or label value.
        labels: label value to class name; default: the label values in the reference, in rising order, are the classes
            of ``metrics_csv`` in its order.

    Raises:
        DataError: a table without these columns, or no case in both.
    """
    ours = [row for row in read_rows(metrics_csv) if not np.isnan(row["dice"])]
    names = list(dict.fromkeys(row["class"] for row in ours))
    known = _reference(Path(reference_csv), {row["case"] for row in ours}, names, labels)
    rows = [
        {
            "case": row["case"],
            "class": row["class"],
            "dice": row["dice"],
            "reference": known[row["case"], row["class"]],
            "difference": row["dice"] - known[row["case"], row["class"]],
        }
        for row in ours
        if (row["case"], row["class"]) in known
    ]
    if not rows:
        found = f"cases there: {listed(sorted({row['case'] for row in ours}))}"
        raise DataError(reference_csv, f"no case and class in common with {metrics_csv}", found,
                        "Check the names in both files")  # fmt: skip
    matched = {row["case"] for row in rows}
    groups = {name: paired([row for row in rows if row["class"] == name]) for name in names}
    groups = {name: group for name, group in groups.items() if group["cases"]}
    if len(groups) > 1:
        groups["mean"] = paired([_mean([r for r in rows if r["case"] == case]) for case in sorted(matched)])
    return Comparison(rows, groups, sorted({row["case"] for row in ours} - matched))


def _reference(
    path: Path, cases: set[str], names: list[str], labels: Mapping[int, str] | None
) -> dict[tuple[str, str], float]:
    try:
        table = csv.DictReader(StringIO(read_text(path), newline=""))
        rows = [row for row in table if row["case"] in cases and row["dice"] not in ("", "nan")]
        found = {(row["case"], str(row["label"])): float(row["dice"]) for row in rows}
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise DataError(path, "expected a CSV file with the columns case, label, dice",
                        f"{type(error).__name__}: {error}") from error  # fmt: skip
    if labels is None:
        values = sorted({int(label) for _, label in found if _is_value(label)})
        labels = dict(zip(values, names, strict=False))
    return {(case, labels.get(int(label), "") if _is_value(label) else label): v for (case, label), v in found.items()}


def _is_value(label: str) -> bool:
    return re.fullmatch("[0-9]{1,9}", label) is not None


def _mean(rows: list[dict[str, Any]]) -> dict[str, float]:
    return {key: float(np.mean([row[key] for row in rows])) for key in ("dice", "reference", "difference")}


def paired(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means of ``dice``, ``reference`` and ``difference`` over ``rows`` (one per case), and more; see `Comparison`."""
    if not rows:
        return {"cases": 0}
    differences = np.array([row["difference"] for row in rows])
    drawn = np.random.default_rng(SEED).integers(len(rows), size=(RESAMPLES, len(rows)))
    low, high = np.percentile(differences[drawn].mean(axis=1), (2.5, 97.5))
    return {
        **_mean(rows),
        "ci95": [float(low), float(high)],
        "better": int((differences > 0).sum()),
        "worse": int((differences < 0).sum()),
        "cases": len(rows),
    }


def paired_cells(name: str, group: Mapping[str, Any]) -> tuple[str, ...]:
    """A table row from a result of `paired`: name, Dice, reference, difference, interval, better, worse, cases."""
    means = (f"{group['dice']:.4f}", f"{group['reference']:.4f}", f"{group['difference']:+.4f}")
    low, high = (f"{value:+.4f}" for value in group["ci95"])
    return (name, *means, f"{low} to {high}", *(str(group[key]) for key in ("better", "worse", "cases")))
