"""Measures whether label maps score better if only the largest component of each class is kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import KeepLargestConnectedComponent
from numpy.typing import NDArray

from decathlete.bundle.labels import Scored
from decathlete.evaluation.comparison import paired, paired_cells
from decathlete.evaluation.metrics import dice
from decathlete.evaluation.report import aligned, judged_masks
from decathlete.progress import ProgressBar

ALL = "all classes as one"


@dataclass(frozen=True)
class Components:
    """How keeping the largest component changes the Dice of each case.

    Attributes:
        steps: by class, and for `ALL`: ``labels`` (values whose largest component is kept), ``dice`` with that step,
            ``reference`` (Dice of the maps as they are), ``difference``, ``ci95`` of its mean (paired bootstrap over
            cases), ``better``, ``worse`` and ``cases`` (numbers of cases), ``changed`` (number of cases with more than
            one component). The Dice is that of the class; for `ALL`, or if regions are scored, it is the mean.
    """

    steps: dict[str, dict[str, Any]]

    def helpful(self) -> list[str]:
        """Steps whose gain has a 95% interval above 0."""
        return [name for name, step in self.steps.items() if step["ci95"][0] > 0]

    def table(self) -> str:
        """Aligned text, and the transform of each step that helps."""
        heads = ("largest component of", "Dice", "as it is", "difference", "95% interval", "better", "worse", "cases")
        text = aligned([heads, *(paired_cells(name, step) for name, step in self.steps.items())])
        if not any(step["changed"] for step in self.steps.values()):
            return f"{text}\n\nno change: each class is a single component in every label map"
        helpful = self.helpful()
        if not helpful:
            return f"{text}\n\nno gain with an interval above 0: keep the label maps as they are"
        transforms = [
            f"- {{_target_: KeepLargestConnectedComponentd, keys: pred, applied_labels: {self.steps[name]['labels']}, "
            f"{'independent: false, ' if name == ALL else ''}connectivity: 1}}"
            for name in helpful
        ]
        where = "each of these helps on its own here; add it to inference.yaml, right before SaveImaged:"
        return "\n".join([text, "", where, *transforms])


def compare_components(
    pairs: Mapping[str, tuple[Path, Path]], labels: Mapping[int, str], scored: Scored | None = None
) -> Components:
    """Compare the Dice of label maps with that of their largest components: of each class, and of all classes as one.

    The voxels of a component share faces: MONAI's `KeepLargestConnectedComponent` with ``connectivity=1`` is used here,
    as a bundle would use it.

    Args:
        pairs: case to its prediction and its reference, which have been scored before: on one grid, with known values.
        labels: value to name of the classes.
        scored: regions in place of the classes, and ignored values.
    """
    from decathlete.io.nifti import read_nifti

    scored = scored or Scored()
    steps: dict[str, list[int]] = {name: [value] for value, name in labels.items()}
    if len(labels) > 1:
        steps[ALL] = list(labels)
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in steps}
    changed = dict.fromkeys(steps, 0)
    for predicted, reference in ProgressBar(pairs.values(), desc="largest component", unit="case"):
        pred = read_nifti(predicted, kind="label").array
        truth = read_nifti(reference, kind="label").array
        before = dict(_dices(pred, truth, labels, scored))
        for name, values in steps.items():
            kept = largest_component(pred, values)
            changed[name] += not np.array_equal(kept, pred)
            after = dict(_dices(kept, truth, labels, scored))
            judged = [name] if name in before and not scored.regions else list(before)
            known = [one for one in judged if not np.isnan(before[one])]
            if known:
                own, other = (float(np.mean([found[one] for one in known])) for found in (after, before))
                rows[name].append({"dice": own, "reference": other, "difference": own - other})
    found = {name: {"labels": steps[name], **paired(rows[name]), "changed": changed[name]} for name in steps}
    return Components({name: step for name, step in found.items() if step["cases"]})


def largest_component(label: NDArray[Any], values: list[int]) -> NDArray[Any]:
    """Label map (X, Y, Z) with only the largest component of the classes ``values``, which are taken as one."""
    keep = KeepLargestConnectedComponent(applied_labels=values, independent=False, connectivity=1)
    return np.asarray(keep(torch.from_numpy(label[None].astype(np.int32)))[0]).astype(label.dtype)


def _dices(
    pred: NDArray[Any], label: NDArray[Any], labels: Mapping[int, str], scored: Scored
) -> Iterator[tuple[str, float]]:
    for name, ours, theirs in judged_masks(pred, label, labels, scored):
        yield name, dice(ours, theirs)
