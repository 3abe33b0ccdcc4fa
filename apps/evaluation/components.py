"""Whether label maps score better with the largest component of a class alone: measured, not assumed."""

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
    """What keeping the largest component does to the Dice of each case.

    Attributes:
        steps: by class, and for `ALL`: ``labels`` (values whose largest component is kept), ``dice`` with it,
            ``reference`` as the maps are, ``difference``, ``ci95`` of its mean (paired bootstrap over cases),
            ``better``, ``worse`` and ``cases`` (numbers of them), ``changed`` (cases with more than one component). A
            class is judged by its own Dice; where regions are scored, and for `ALL`, it is the mean over them.
    """

    steps: dict[str, dict[str, Any]]

    def helpful(self) -> list[str]:
        """Steps whose gain has an interval above 0."""
        return [name for name, step in self.steps.items() if step["ci95"][0] > 0]

    def table(self) -> str:
        """Aligned lines, and the transform of each step that helps."""
        heads = ("largest component of", "Dice", "as it is", "difference", "95% interval", "better", "worse", "cases")
        text = aligned([heads, *(paired_cells(name, step) for name, step in self.steps.items())])
        if not any(step["changed"] for step in self.steps.values()):
            return f"{text}\n\nnothing changes: each class is one component in every map"
        helpful = self.helpful()
        if not helpful:
            return f"{text}\n\nno gain whose interval is above 0: leave the maps as they are"
        transforms = [
            f"- {{_target_: KeepLargestConnectedComponentd, keys: pred, applied_labels: {self.steps[name]['labels']}, "
            f"{'independent: false, ' if name == ALL else ''}connectivity: 1}}"
            for name in helpful
        ]
        where = "each by itself helps here; the last transform before SaveImaged in inference.yaml:"
        return "\n".join([text, "", where, *transforms])


def compare_components(
    pairs: Mapping[str, tuple[Path, Path]], labels: Mapping[int, str], scored: Scored | None = None
) -> Components:
    """Dice of label maps with the largest component of each class alone, and of all classes as one, beside their own.

    A component's voxels share faces, as in MONAI's `KeepLargestConnectedComponent` with ``connectivity=1``, which does
    the work here as it would in a bundle.

    Args:
        pairs: case to its prediction and its reference, which have been scored: on one grid, with known values.
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
    """Label map (X, Y, Z) without what is not the largest component of the classes ``values`` taken as one."""
    keep = KeepLargestConnectedComponent(applied_labels=values, independent=False, connectivity=1)
    return np.asarray(keep(torch.from_numpy(label[None].astype(np.int32)))[0]).astype(label.dtype)


def _dices(
    pred: NDArray[Any], label: NDArray[Any], labels: Mapping[int, str], scored: Scored
) -> Iterator[tuple[str, float]]:
    for name, ours, theirs in judged_masks(pred, label, labels, scored):
        yield name, dice(ours, theirs)
