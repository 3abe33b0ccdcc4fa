"""Predictions without a reference as one HTML file: volumes, pictures, disagreement."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decathlete.drawing.pages import write_page
from decathlete.evaluation.report import provenance, shown

TEMPLATE = Path(__file__).with_name("templates") / "predictions.html"
MAX_PICTURES = 60  # cases; with more, the page is too large to open
HIGHEST_BITS = 1.0  # brightest colour of a map: half of the predictions are certain of another class


@dataclass
class PredictedCase:
    """What a report says about a case.

    Attributes:
        case: its name.
        volumes: class to volume in ml.
        disagreement: bits per foreground voxel, see `decathlete.inference.Prediction`; None: not known.
        distance: from the training scans, see `decathlete.inference.likeness`; None: not known.
        unlike: why the scan is flagged as unlike the training scans; empty: it is not, or nothing is known.
        pictures: JPEG and caption of each.
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
        """Add pictures of the label map and of the disagreement over the scan.

        Args:
            image: (X, Y, Z), or (X, Y, Z, C), of which the first channel is shown.
            label: predicted label values, (X, Y, Z).
            affine: voxel to RAS mm.
            labels: class name to value.
            bits: disagreement, (X, Y, Z).
        """
        from decathlete.drawing.pages import as_jpeg
        from decathlete.drawing.planes import overlay_picture, value_picture
        from decathlete.drawing.scan import class_names, load_scan

        below = image[..., 0] if image.ndim == 4 else image
        names = class_names({value: name for name, value in labels.items()}, ())
        drawn = overlay_picture(load_scan(below, prediction=label, affine=affine), names, self.case)
        self.pictures.append((as_jpeg(drawn), f"{self.case}: prediction"))
        if bits is not None:
            drawn = value_picture(below, bits, affine, HIGHEST_BITS, f"{self.case}: disagreement, bits")
            caption = f"{self.case}: disagreement in bits, {shown(self.disagreement, 4)} per foreground voxel"
            self.pictures.append((as_jpeg(drawn), caption))

    @property
    def oddness(self) -> tuple[bool, float]:
        """Rank of the case: unlike the training scans first, then by disagreement, which is NaN without foreground."""
        number = self.disagreement
        return bool(self.unlike), -1.0 if number is None else math.inf if math.isnan(number) else number

    def is_worth_drawing(self, others: Sequence[PredictedCase]) -> bool:
        """Whether its pictures belong on the page; if the page is full, the least odd of ``others`` loses its own."""
        drawn = [case for case in others if case.pictures]
        if len(drawn) < MAX_PICTURES:
            return True
        least = min(drawn, key=lambda case: case.oddness)
        if least.oddness >= self.oddness:
            return False
        least.pictures.clear()
        return True


def write_prediction_page(
    path: str | Path,
    bundle: str,
    cases: Sequence[PredictedCase],
    failed: Mapping[Any, str] | None = None,
    **more: Any,
) -> Path:
    """Write the page about predictions, with the oddest cases first in the pictures, and return its path.

    Args:
        path: the HTML file, written completely or not at all.
        bundle: name of the bundle.
        cases: the predicted cases.
        failed: input to the message that says why it has no prediction.
        more: further lines for the end of the page.
    """
    classes = list(dict.fromkeys(name for case in cases for name in case.volumes))
    known = [c.disagreement for c in cases if c.disagreement is not None and math.isfinite(c.disagreement)]
    ranked = sorted(cases, key=lambda case: case.oddness, reverse=True)
    return write_page(
        path,
        TEMPLATE,
        bundle=bundle,
        cases=cases,
        failed=(failed or {}).values(),
        head=["case", *(f"{name}, ml" for name in classes), "disagreement", "distance from the training scans"],
        rows=[
            [
                case.case,
                *(shown(case.volumes.get(name), 2) for name in classes),
                shown(case.disagreement, 4),
                shown(case.distance, 2) + (", unlike them" if case.unlike else ""),
            ]
            for case in cases
        ],
        disagreement={"median": np.median(known), "highest": max(known)} if known else None,
        has_distance=any(case.distance is not None for case in cases),
        drawn=[case for case in ranked if case.pictures],
        facts={**provenance(), **more},
    )
