"""Predictions without a reference as one HTML file: volumes, pictures, disagreement."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decathlete.evaluation.report import provenance, shown
from decathlete.report.parts import facts, picture, table, write_page

MAX_PICTURES = 60  # cases; a page of more is too large to open
STRONGEST_BITS = 1.0  # colour of a map: half of the predictions are sure of another class


@dataclass
class PredictedCase:
    """What a report says of a case.

    Attributes:
        case: name.
        volumes: class to ml.
        disagreement: bits a foreground voxel, see `decathlete.inference.Prediction`; None: not known.
        distance: from the training scans, see `decathlete.inference.likeness`; None: not known.
        unlike: why the scan looks unlike them; empty: it does not, or that is not known.
        pictures: JPEG and the line below it.
    """

    case: str
    volumes: Mapping[str, float]
    disagreement: float | None = None
    distance: float | None = None
    unlike: str = ""
    pictures: list[tuple[bytes, str]] = field(default_factory=list)

    def draw(
        self,
        image: NDArray[Any],
        label: NDArray[Any],
        affine: NDArray[Any],
        labels: Mapping[str, int],
        bits: NDArray[Any] | None = None,
    ) -> None:
        """Draw label map and disagreement over the scan.

        Args:
            image: (X, Y, Z), or (X, Y, Z, C), of which the first channel is shown.
            label: (X, Y, Z).
            affine: voxel to RAS mm.
            labels: class name to value.
            bits: disagreement, (X, Y, Z).
        """
        from decathlete.report.figures import map_picture, planes_picture

        below = image[..., 0] if image.ndim == 4 else image
        names = {value: name for name, value in labels.items()}
        drawn = planes_picture(below, prediction=label, affine=affine, labels=names, title=self.case)
        self.pictures.append((drawn, f"{self.case}: prediction"))
        if bits is not None:
            drawn = map_picture(below, bits, affine, STRONGEST_BITS)
            self.pictures.append((drawn, f"{self.case}: disagreement in bits, {self._number()} a foreground voxel"))

    @property
    def oddness(self) -> tuple[bool, float]:
        """What cases are ranked by: unlike the training scans, then disagreement; an empty prediction is odd."""
        number = self.disagreement
        return bool(self.unlike), -1.0 if number is None else math.inf if math.isnan(number) else number

    def is_worth_drawing(self, others: Sequence[PredictedCase]) -> bool:
        """Whether the page has room for it among ``others``, of which the least odd one gives way."""
        drawn = [case for case in others if case.pictures]
        if len(drawn) < MAX_PICTURES:
            return True
        least = min(drawn, key=lambda case: case.oddness)
        if least.oddness >= self.oddness:
            return False
        least.pictures.clear()
        return True

    def _number(self) -> str:
        return shown(self.disagreement, 4)


def write_prediction_page(
    path: str | Path,
    bundle: str,
    cases: Sequence[PredictedCase],
    failed: Mapping[Any, str] | None = None,
    **more: Any,
) -> Path:
    """Write what was predicted, the oddest cases first in the pictures, and return the file's path.

    Args:
        path: the HTML file, written whole or not at all.
        bundle: name of the bundle.
        cases: what is told.
        failed: input to the line that says why it has no prediction.
        more: further lines of the foot.
    """
    classes = list(dict.fromkeys(name for case in cases for name in case.volumes))
    head = ["case", *(f"{name}, ml" for name in classes), "disagreement", "distance from the training scans"]
    rows = [[c.case, *(shown(c.volumes.get(name), 2) for name in classes), c._number(), _distance(c)] for c in cases]
    ranked = sorted(cases, key=lambda case: case.oddness, reverse=True)
    drawn = [case for case in ranked if case.pictures]
    parts = [
        f"<h1>{escape(bundle)}: {len(cases)} predicted</h1>",
        "<p>Not for clinical use. Nobody has checked these predictions.</p>",
        *(f"<p class='warn'>No prediction: {escape(message)}</p>" for message in (failed or {}).values()),
        *(f"<p class='warn'>{escape(c.case)} looks unlike the training scans: {escape(c.unlike)}</p>"
          for c in cases if c.unlike),
        table(head, rows, "Volumes on each scan's own grid"),
        _about(cases),
        "<h2>Pictures</h2>",
        f"<p>{len(drawn)} of {len(cases)} cases, those that are unlike the training scans first, then by disagreement. "
        "Each plane goes through the slice with most of what is shown.</p>",
        *(picture(*one) for case in drawn for one in case.pictures),
        *facts({**provenance(), **more}),
    ]  # fmt: skip
    return write_page(path, f"{bundle}: predictions", parts)


def _distance(case: PredictedCase) -> str:
    return shown(case.distance, 2) + (", unlike them" if case.unlike else "")


def _about(cases: Sequence[PredictedCase]) -> str:
    known = [c.disagreement for c in cases if c.disagreement is not None and math.isfinite(c.disagreement)]
    parts = [
        "Disagreement: bits by which the folds, or the passes over mirrored copies, differ (mutual information), "
        "summed over the scan and divided by the expected number of foreground voxels. 0: all say the same. "
        f"Median here {np.median(known):.4f}, highest {max(known):.4f}."
        if known
        else "Disagreement: not known. --tta (mirrored copies) or several weights in --checkpoint (folds) give "
        "predictions to compare.",
        "Distance: of some thirty figures of scan and prediction from those of the training scans, which are about 1 "
        "from their own middle."
        if any(c.distance is not None for c in cases)
        else "Distance: not known. 'decathlete promote --scans' keeps what the training scans look like.",
    ]
    return f"<p>{' '.join(parts)}</p>"
